"""Photographs read again: equal to what was decoded, and a reason for each that has gone."""

from pathlib import Path

import numpy as np
from PIL import Image
from samples import SIZE, array, job, jpeg, rows, state, write_tar, write_tars

from pipeline.jobs.explain import explain
from pipeline.report.photograph import photographs
from pipeline.stream.ledger import Ledger


def test_images_come_back_or_say_why_not(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", shards=3, each=4)
    explain(job(tmp_path / "in", tmp_path / "out"))
    places = [(row["shard"], row["row"]) for row in rows(tmp_path / "out")]
    first, second, third = sorted({shard for shard, _ in places})
    (tmp_path / "in" / second).unlink()
    write_tar(tmp_path / "in" / third, [("a", {"jpg": b"no image", "cls": b"0"}), ("b", {"jpg": jpeg(9), "cls": b"0"})])
    found = photographs(Ledger(str(tmp_path / "out"), {}), state(tmp_path / "out", "run.json"), [*places, ("other", 0)])
    assert {place for place, one in found.items() if isinstance(one, Image.Image)} == {
        *(place for place in places if place[0] == first),
        (third, 1),
    }
    assert "does not exist" in str(found[second, 0]) or "does not hold" in str(found[second, 0])
    assert str(found[third, 0]).startswith("RowError")
    assert found[third, 3] == "the shard does not hold it any more"
    assert "plan" in str(found["other", 0])
    seen = np.asarray(found[first, 2])
    assert seen.shape == (SIZE, SIZE, 3)
    assert abs(seen.mean() - array(2).mean()) < 6
