"""Night over night on PlantedCue: a strengthened shortcut raises an alert, a re-seeded night none."""

from collections.abc import Iterator
from pathlib import Path

import planted_nights
import pytest
import torch

from pipeline.drift.compare import compare
from schemas.audit import DriftSpec

SIZE, IMAGES = 48, 500


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_strengthened_shortcut_raises_an_alert_and_a_reseeded_night_none(tmp_path: Path) -> None:
    weights = planted_nights.network(tmp_path, rho=0.8, images=800, size=SIZE, seed=0)
    first, reseeded, shortcut = (
        planted_nights.night(tmp_path / str(seed), weights, rho=rho, images=IMAGES, size=SIZE, seed=seed)
        for seed, rho in ((1, 0.25), (2, 0.25), (3, 0.8))
    )
    quiet, loud = (compare(first, night, DriftSpec()) for night in (reseeded, shortcut))
    assert quiet.alerts == ()
    assert {"accuracy", "calibration"} <= {one.name for one in loud.alerts}
    assert first.record.graph_digest == shortcut.record.graph_digest
