"""Images of two runs, each compared with itself."""

from pathlib import Path

import numpy as np
import pytest
from runs import columns, write

from pipeline.report.audit import pairs
from pipeline.report.audit.pairs import distance_to_earlier
from pipeline.report.explanation import batches
from pipeline.stream.finished import FinishedRun, open_run


def found(before: FinishedRun, now: FinishedRun) -> dict[str, float]:
    value = distance_to_earlier(before, now, seed=0)
    return {
        name: distance
        for batch in batches(now)
        for name, distance in zip(batch.rows.column("sample_id").to_pylist(), value(batch), strict=True)
    }


def test_it_is_the_cosine_of_the_same_image(tmp_path: Path) -> None:
    """Told by names, where one of the runs holds no digests."""
    left, right = columns(40, 1), columns(40, 2) | {"content_digest": None}
    right["sample_id"] = left["sample_id"][::-1].copy()
    right |= {name: left[name][::-1].copy() for name in ("width", "height")}
    right["sample_id"][0] = "new"
    right["width"][1] += 1
    runs = [open_run(write(tmp_path / name, one, files=3)) for name, one in (("a", left), ("b", right))]
    distances = found(*runs)
    assert np.isnan([distances[name] for name in right["sample_id"][:2]]).all()
    for index in range(2, 40):
        a, b = (
            left["heatmap"][39 - index].ravel().astype(np.float64),
            right["heatmap"][index].ravel().astype(np.float64),
        )
        wanted = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
        assert abs(distances[right["sample_id"][index]] - wanted) < 1e-6


def test_an_image_twice_is_no_pair(tmp_path: Path) -> None:
    left = columns(10) | {"content_digest": None}
    for name in ("sample_id", "width", "height"):
        left[name][1] = left[name][0]
    run = open_run(write(tmp_path / "a", left))
    distances = found(run, run)
    assert np.isnan(distances.pop(left["sample_id"][0]))
    np.testing.assert_allclose(list(distances.values()), 0, atol=1e-6)


def test_an_image_is_told_by_its_bytes(tmp_path: Path) -> None:
    left = columns(12)
    right = left | {"sample_id": np.array([f"new/{i}" for i in range(12)], dtype=object), "width": left["width"] + 1}
    digests = np.array([f"{i:032x}" for i in range(12)], dtype=object)
    changed = np.where(np.arange(12) < 3, np.array([f"{99 + i:032x}" for i in range(12)], dtype=object), digests)
    runs = [
        open_run(write(tmp_path / str(i), one | {"content_digest": content}))
        for i, (one, content) in enumerate(((left, digests), (right, changed)))
    ]
    distances = list(found(*runs).values())
    assert np.isnan(distances[:3]).all()
    np.testing.assert_allclose(distances[3:], 0, atol=1e-6)


def test_so_many_earlier_maps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample by name, whatever the files."""
    monkeypatch.setattr(pairs, "MOST", 15)
    values = columns(60)
    runs = [open_run(write(tmp_path / str(files), values, files=files)) for files in (1, 4)]
    kept = [{name for name, one in found(run, run).items() if not np.isnan(one)} for run in runs]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 15
