"""What each part of an audit costs over plain explaining: the same images, alternating, one thread. `make bench`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import job, save_sure_network, write_tars
from timing import alternating, table

from pipeline.evaluation.metrics import METRICS
from pipeline.jobs.audit import audit
from pipeline.jobs.explain import explain
from schemas.audit import AuditSpec

IMAGES = 40
MEASURED = 20
GRIDS = 10
PARTS: dict[str, dict[str, Any]] = {
    "nothing measured": {"images": 0, "grids": 0},
    **{name: {"images": MEASURED, "metrics": [name], "grids": 0} for name in METRICS},
    **{name: {"images": 0, "grids": GRIDS, "grid_settings": [name]} for name in ("gridpg", "difull", "dipart")},
}
"""What an audit measures, by the name of its row; the first is performance, drift and the page alone."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_cost_of_each_metric(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", shards=2, each=IMAGES // 2)
    save_sure_network(tmp_path / "network.safetensors", IMAGES)
    how = {"size": 96, "weights": str(tmp_path / "network.safetensors"), "label_field": "nothing", "overwrite": True}
    base = job(tmp_path / "in", tmp_path / "explained", **how)
    runs: dict[str, Callable[[], object]] = {"explain": partial(explain, base)}
    explain(base)
    for name, measure in PARTS.items():
        runs[name] = partial(audited, base, tmp_path / name, measure)
    runs["nothing measured"]()  # imports what every page needs
    seconds = alternating(runs, rounds=2, warmup=0)
    parts = {"explain": seconds.pop("explain")}
    alone = seconds.pop("nothing measured")
    parts |= {"report of a night, nothing measured": alone}
    parts |= {f"{name}, added": value - alone for name, value in seconds.items()}
    title = f"{IMAGES} images of 96 px explained; {MEASURED} of them measured, or {GRIDS} grids; s over explaining"
    table(title, parts, unit="s", against="explain")
    assert set(parts) > {"explain"}


def audited(base: Any, output: Path, measure: dict[str, Any]) -> None:
    """An audit of what was explained, anew every time."""
    given = {name: getattr(base, name) for name in base.model_fields_set - {"overwrite"}}
    fields = {"output": str(output), "explanations": base.output, "measure": measure, "against": "none"}
    count = len(list(output.glob("*"))) if output.exists() else 0
    audit(AuditSpec(**{**given, **fields, "night": f"n{count}", "limits": {"better_than_random": False}}))
