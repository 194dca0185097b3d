"""The images with the highest values of a stream, whatever the batches; and maps at their true scale."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from runs import columns, write

from pipeline.report.explanation import Batch, Top, batches
from pipeline.stream.finished import open_run


@pytest.fixture(scope="module")
def values() -> dict[str, object]:
    found = columns(90)
    found["score"] = np.round(found["score"], 1)  # many are equal
    found["label"][::3] = -1
    return found


def score(batch: Batch) -> NDArray[np.float64]:
    return np.where(batch.label < 0, np.nan, batch.score)


@pytest.mark.parametrize("files", [1, 7])
@pytest.mark.parametrize("size", [1, 8, 200])
def test_top_is_a_stable_sort(tmp_path: Path, values: dict[str, object], files: int, size: int) -> None:
    run = open_run(write(tmp_path / "run", values, files=files))
    top = Top(size, score)
    for batch in batches(run):
        top.add(batch)
    labelled = [i for i in range(90) if values["label"][i] >= 0]
    wanted = sorted(labelled, key=lambda i: -values["score"][i])[:size]
    assert [one.sample_id for one in top.found] == [values["sample_id"][i] for i in wanted]
    for one, i in zip(top.found, wanted, strict=True):
        np.testing.assert_allclose(one.heatmap, values["heatmap"][i])
        assert one.is_right == (values["label"][i] == values["prediction"][i])


def test_a_scale_is_undone(tmp_path: Path) -> None:
    values = columns(4)
    run = open_run(write(tmp_path / "run", values | {"heatmap_scale": np.full(4, 8.0)}))
    [batch] = batches(run)
    np.testing.assert_allclose(batch.maps, 8 * values["heatmap"], rtol=1e-6)
