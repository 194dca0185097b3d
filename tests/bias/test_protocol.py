"""The protocol of PlantedCue: its numbers from runs that are made up, and one small run of all of it."""

from pathlib import Path

import planted_cue
import polars as pl
import pytest


def made(recalls: dict[str, float], *, network: int, regime: str = "partial") -> list[dict[str, object]]:
    return [
        {
            "regime": regime, "training_seed": network, "data_seed": 0, "slicer": "kmeans", "space": space,
            "harmful": 4, "accuracy": 0.8, "flagged": 2, "confirmed": 2, "confusions": 1, "right": 1, "recall": recall,
            "p10": 0.5, "chance": 0.2,
        }
        for space, recall in recalls.items()
    ]  # fmt: skip


def test_the_explanation_helps_only_beyond_every_control() -> None:
    better = {"image": 0.2, "evidence": 1.0, "rest": 0.1, "random": 0.5}
    worse = {"image": 1.0, "evidence": 0.5, "rest": 0.0, "random": 0.0}
    helped = pl.DataFrame([row for network in range(5) for row in made(better, network=network)])
    hurt = pl.DataFrame([row for network in range(5) for row in made(worse, network=network)])
    mixed = pl.DataFrame([row for network in range(6) for row in made([better, worse][network % 2], network=network)])
    found = [planted_cue.gains(one)["the explanation helps"].to_list() for one in (helped, hurt, mixed)]
    assert found == [["yes"], ["no"], ["not shown"]]
    assert planted_cue.gains(helped)["gain"].to_list() == ["0.50 [0.50, 0.50]"]


def test_a_row_sums_what_runs_found() -> None:
    [line] = planted_cue.summary(
        pl.DataFrame(made({"image": 0.5}, network=0) + made({"image": 1.0}, network=1))
    ).to_dicts()
    assert line["recall"].startswith("0.75 [0.50, 1.00]")
    assert (line["precision"], line["confirmed"], line["confusions"], line["runs"]) == ("2 of 4", 4, 2, 2)


def test_networks_are_drawn_not_images() -> None:
    """Many images of one network do not make its interval narrow."""
    assert planted_cue.interval([(0, 0.0)] * 50 + [(1, 1.0)] * 50) == (0.5, 0.0, 1.0)
    assert planted_cue.interval([]) is None


def test_all_of_it_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--training-images 64 --images 200 --training-seeds 1 --data-seeds 1 --workers 1 --regimes partial none"
    planted_cue.main(["--output", str(tmp_path), *small.split()])
    runs = pl.read_parquet(tmp_path / "runs.parquet")
    assert len(runs) == 2 * len(planted_cue.TRIALS)
    assert runs.filter(pl.col("slicer") == "random")["confirmed"].sum() == 0
    assert (tmp_path / "recall.png").stat().st_size > 5_000
    assert "written to" in capsys.readouterr().out
