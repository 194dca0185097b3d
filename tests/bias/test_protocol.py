"""The protocol of PlantedCue: its numbers from runs that are made up, and one small run of all of it."""

from pathlib import Path

import planted_cue
import planted_maps
import polars as pl
import pytest

from pipeline.evaluation.controls import CONTROLS


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


def test_every_method_is_judged_or_told_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--training-images 64 --images 12 --training-seeds 2 --workers 1 --methods gradcam rise chefer"
    planted_maps.main(["--output", str(tmp_path), *small.split()])
    runs = pl.read_parquet(tmp_path / "maps.parquet")
    assert set(runs["method"]) == {"gradcam", "rise", *CONTROLS}
    assert len(runs) == 2 * len(set(runs["method"]))
    lines = pl.read_csv(tmp_path / "maps.csv")
    assert lines["signs"].str.contains(r"^\d\.\d\d \[\d\.\d\d, \d\.\d\d\], chance \d\.\d\d$").all()
    assert "chefer does not fit: " in capsys.readouterr().out


def test_methods_are_ordered_by_their_mean_over_networks() -> None:
    numbers = dict.fromkeys([name for one in planted_maps.MEASURES for name in (one, f"{one}_chance")], 0.5)
    rows = [
        {**numbers, "training_seed": network, "method": method, "correlation": value}
        for method, values in {"worse": (0.1, 0.9), "better": (0.6, 0.6), "none": (None, None)}.items()
        for network, value in enumerate(values)
    ]
    lines = planted_maps.summary(pl.DataFrame(rows))
    assert lines["method"].to_list() == ["better", "worse", "none"]
    assert [one.split(",")[0] for one in lines["correlation"]] == ["0.60 [0.60", "0.50 [0.10", "–"]
