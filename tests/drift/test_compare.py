"""Two runs compared: silent where nothing changed, and an alert for each kind of planted change.

Over 400 lines, since most tests read the one table of planted changes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from pipeline.drift import two_sample
from pipeline.drift.compare import Drift, Side, compare, drift
from pipeline.drift.profile import Profile, profile
from pipeline.errors import InputError
from pipeline.stream.decode import content_digest
from pipeline.stream.finished import FinishedRun, open_run
from schemas.audit import DriftSpec, DriftThresholds

ROWS = 700
SPEC = DriftSpec(embedding_sample=100, class_sample=250)
Columns = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(two_sample, "TREES", 20)
        yield


@pytest.fixture
def earlier(tmp_path: Path) -> FinishedRun:
    return written(tmp_path / "earlier", night(0), rejected=3)


@cache
def _night(seed: int) -> Columns:
    return runs.columns(ROWS, seed)


def night(seed: int, **changes: Any) -> Columns:
    """One night's explanations, with some columns replaced."""
    return {**_night(seed), **changes}


def written(folder: Path, columns: Columns, **fields: Any) -> FinishedRun:
    return open_run(runs.write(folder, columns, **fields))


def names(found: Drift) -> set[str]:
    return {one.name for one in found.alerts}


def hotter(columns: Columns) -> Columns:
    """The same classes with less confidence."""
    scores = np.sort(columns["top5_scores"] ** 0.5, axis=1)[:, ::-1]
    scores = scores / scores.sum(axis=1, keepdims=True)
    entropy = -(scores * np.log(scores)).sum(axis=1)
    return {"score": scores[:, 0], "top5_scores": scores, "margin": scores[:, 0] - scores[:, 1], "entropy": entropy}


def fewer_of_class_0(columns: Columns) -> Columns:
    """Most predictions of class 0 become class 1, where the label does too."""
    change = (columns["prediction"] == 0) & (np.arange(ROWS) % 3 > 0)
    return {name: np.where(change, 1, columns[name]) for name in ("prediction", "label")}


def wrong_labels(columns: Columns) -> Columns:
    return {"label": np.where(np.arange(ROWS) % 4 == 0, (columns["prediction"] + 1) % 4, columns["label"])}


def other_embeddings(columns: Columns) -> Columns:
    return {"embedding": columns["embedding"] + np.float32(0.8)}


def correlated_embeddings(columns: Columns) -> Columns:
    """Equal means and variances, another covariance."""
    return {"embedding": columns["embedding"][:, :1].repeat(8, axis=1)}


def class_2_looks_elsewhere(columns: Columns) -> Columns:
    rolled = np.roll(columns["heatmap"], 3, axis=2)
    return {"heatmap": np.where((columns["prediction"] == 2)[:, None, None], rolled, columns["heatmap"])}


def sharper_maps(columns: Columns) -> Columns:
    return {"heatmap": columns["heatmap"].clip(min=0) ** 3}


def smaller_images(columns: Columns) -> Columns:
    return {"width": columns["width"] - 150, "height": columns["height"] - 150}


SHIFTS: dict[Callable[[Columns], Columns], set[str]] = {
    hotter: {"score", "margin", "entropy", "calibration"},
    fewer_of_class_0: {"predictions", "labels"},
    wrong_labels: {"accuracy", "calibration"},
    other_embeddings: {"embedding.mmd", "embedding.auc"},
    correlated_embeddings: {"embedding.mmd"},
    class_2_looks_elsewhere: {"class.map", "class.distance"},
    sharper_maps: {"map.gini", "class.gini"},
    smaller_images: {"pixels"},
}
"""What each change must raise."""
FOLLOWS = {
    hotter: {"accuracy"},
    fewer_of_class_0: {"class.centroid_x", "class.centroid_y"},
    correlated_embeddings: {"embedding.auc"},
    class_2_looks_elsewhere: {
        "class.centroid_x",
        "map.centroid_x",
        "map.mass_centre",
        "class.mass_centre",
        "class.gini",
        "map.gini",
    },
    sharper_maps: {
        f"{kind}.{name}"
        for kind in ("map", "class")
        for name in ("heatmap_max", "heatmap_min", "mass_centre", "centroid_x", "centroid_y", "map", "distance")
    },
    smaller_images: {"aspect"},
}
"""What it may raise besides."""


@pytest.mark.parametrize("change", SHIFTS, ids=lambda change: change.__name__)
def test_a_planted_change_is_found_and_nothing_else(
    change: Callable[[Columns], Columns], earlier: FinishedRun, tmp_path: Path
) -> None:
    columns = night(1)
    found = compare(earlier, written(tmp_path / "later", columns | change(columns), rejected=3), SPEC)
    assert SHIFTS[change] <= names(found)
    assert names(found) <= SHIFTS[change] | FOLLOWS.get(change, set())
    for one in found.alerts:
        assert one.corrected <= SPEC.thresholds.alpha
        assert one.effect >= one.threshold
        assert "no more than chance" not in one.sentence
        assert one.sentence.startswith(one.statement)
    if change is class_2_looks_elsewhere:
        assert {one.class_name for one in found.alerts if one.family == "classes"} == {"class 2"}
        moved = {one.name: one.moved for one in found.classes}
        assert moved.pop("class 2") > 0.6
        assert max(moved.values()) < 0.2


def test_a_night_against_a_reseeded_night_raises_nothing(tmp_path: Path) -> None:
    """Over sixteen pairs of nights of one distribution; the p-values are right, whatever the effects."""
    spec = replace_thresholds(alpha=0.05)
    nights = [written(tmp_path / str(seed), runs.columns(300, 100 + seed)) for seed in range(17)]
    found = [compare(before, after, spec) for before, after in pairwise(nights)]
    significant = [min(one.corrected for one in one_night.findings) <= 0.05 for one_night in found]
    assert sum(significant) <= 4, "P(more than 4 of 16) = 0.0009 at the level of 0.05"
    assert not any(one_night.alerts for one_night in found)


def replace_thresholds(**limits: float) -> DriftSpec:
    limits_ = DriftThresholds(**{**SPEC.thresholds.model_dump(), **limits})
    return SPEC.model_copy(update={"thresholds": limits_})


def test_a_run_does_not_differ_from_itself(earlier: FinishedRun) -> None:
    found = compare(earlier, earlier, SPEC)
    assert found.pairs == ROWS
    assert found.same_graph
    assert min(one.corrected for one in found.findings) > 0.5
    pairs = {one.name: one for one in found.findings if one.family == "pairs"}
    assert pairs["pairs.flips"].effect == pairs["pairs.map"].effect == 0.0
    assert pairs["pairs.map"].details["spearman_p95"] == pytest.approx(0, abs=1e-6)


def test_an_alert_needs_an_effect_and_a_p_value(tmp_path: Path) -> None:
    spec = DriftSpec(embedding_sample=50, class_least=100, class_sample=100)

    def score_drift(rows: int, shift: float) -> Any:
        runs_ = []
        for seed in (0, 1):
            columns = runs.columns(rows, seed)
            columns["score"] = columns["score"] * np.float32(1 - seed * shift)
            runs_.append(written(tmp_path / f"{rows}-{shift}-{seed}", columns))
        return next(one for one in compare(*runs_, spec).findings if one.name == "score")

    small, scarce = score_drift(6000, 0.04), score_drift(24, 0.2)
    assert small.corrected < 0.01 < small.effect < small.threshold
    assert ", too little to matter; " in small.sentence
    assert scarce.effect > scarce.threshold
    assert scarce.corrected > 0.01
    assert "no more than chance" in scarce.sentence
    assert not small.alert
    assert not scarce.alert


def test_pairs_tell_flips_and_moved_maps(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(0)
    order = np.random.default_rng(0).permutation(ROWS)
    flipped = np.arange(ROWS) % 20 == 0
    rolled = np.where((np.arange(ROWS) % 5 == 0)[:, None, None], columns["heatmap"][:, ::-1], columns["heatmap"])
    changed = columns | {
        "prediction": np.where(flipped, (columns["prediction"] + 1) % 4, columns["prediction"]),
        "heatmap": rolled,
    }
    found = compare(
        earlier, written(tmp_path / "later", {name: values[order] for name, values in changed.items()}), SPEC
    )
    by_name = {one.name: one for one in found.findings}
    assert by_name["pairs.flips"].effect == pytest.approx(flipped.mean())
    assert 0.1 < by_name["pairs.map"].effect <= 0.2
    assert {"pairs.flips", "pairs.map"} <= names(found)


def test_files_in_any_order_and_split_give_the_same(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(1)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = {name: values[order] for name, values in columns.items()}
    shuffled["row"] = order
    spec = SPEC.model_copy(update={"sample": 200, "class_sample": 60, "slices": ("shard",)})
    found = []
    for name, values, files in (("one", columns, 1), ("three", shuffled, 3)):
        run = written(tmp_path / name, values, files=files)
        parts = [profile(run, spec, run.grid, files=[file]) for file in run.files]
        other = profile(earlier, spec, run.grid)
        found.append(drift(Side(earlier, other), Side(run, reduce(Profile.__add__, reversed(parts))), spec))
    first, second = (json.dumps(one.to_json() | {"after": ""}, allow_nan=False) for one in found)
    assert first == second
    assert any("a random sample of 200" in text for text in found[0].statements)


def test_several_maps_of_an_image_count_once(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(1)
    doubled = {name: np.concatenate([values, values]) for name, values in columns.items()}
    doubled["rank"] = np.repeat([0, 1], ROWS)
    once, twice = (
        compare(earlier, written(tmp_path / name, values), SPEC).to_json() | {"after": ""}
        for name, values in (("once", columns), ("twice", doubled))
    )
    assert once == twice


def test_another_graph_is_compared_and_said_aloud(earlier: FinishedRun, tmp_path: Path) -> None:
    later = written(
        tmp_path / "later",
        night(1),
        graph_digest="f" * 16,
        versions={"torch": "3"},
        spec={"method": "eigencam", "target": "predicted"},
        model={"source": "timm:resnet50", "weights_sha256": "b" * 64, "labels": 4, "layer": {"name": "features"}},
    )
    found = compare(earlier, later, SPEC)
    assert not found.same_graph
    told = next(text for text in found.statements if text.startswith("The graphs differ"))
    for part in (
        "method 'gradcam', now 'eigencam'",
        "model timm:resnet18, now timm:resnet50",
        "weights aaaaaaaaaaaa, now bbbbbbbbbbbb",
        "torch 2, now 3",
    ):
        assert part in told
    assert not [one for one in found.findings if one.name.startswith("embedding")]
    assert any("the weights differ" in text for text in found.statements)


def test_another_grid_is_resampled_and_said_aloud(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(1)
    finer = np.repeat(np.repeat(columns["heatmap"], 2, axis=1), 3, axis=2)
    found = compare(earlier, written(tmp_path / "later", columns | {"heatmap": finer}), SPEC)
    assert found.grid == (6, 6)
    assert "Maps of 6 x 6 and 12 x 18 are compared on a grid of 6 x 6, by area." in found.statements
    assert not [one for one in found.alerts if one.name == "class.map"]
    assert np.shape(found.classes[0].mean_after) == (6, 6)
    assert np.sum(found.classes[0].mean_after) == pytest.approx(1)


def test_without_labels_or_embeddings_it_says_so(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(1) | {"label": np.full(ROWS, -1), "embedding": None}
    found = compare(earlier, written(tmp_path / "later", columns), SPEC)
    compared = {one.name for one in found.findings}
    assert not compared & {"accuracy", "calibration", "labels", "embedding.mmd", "embedding.auc"}
    text = " ".join(found.statements)
    assert "The later run has no labels" in text
    assert "explain both runs with --embedding" in text


def test_classes_that_are_rare_renamed_or_without_evidence_are_told(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(1)
    rare = (columns["prediction"] == 3) & (columns["prediction"].cumsum() > 40)
    nothing = (columns["prediction"] == 1) | rare
    later = columns | {
        "heatmap": np.where(nothing[:, None, None], -1, columns["heatmap"]).astype(np.float32),
        "prediction_name": np.array([f"kind {i}" for i in columns["prediction"]], dtype=object),
    }
    found = compare(earlier, written(tmp_path / "later", later), SPEC)
    assert [one.index for one in found.classes] == [0, 2]
    text = " ".join(found.statements)
    assert "Maps of 2 of 4 classes are compared" in text
    assert "4 classes have other names, for example 0: class 0, now kind 0" in text


def test_ids_that_are_no_pairs_are_told(earlier: FinishedRun, tmp_path: Path) -> None:
    columns = night(0, content_digest=None)
    ids = columns["sample_id"].copy()
    ids[:10] = ids[10]
    width = np.where(np.arange(ROWS) >= ROWS - 5, 7, columns["width"])
    found = compare(earlier, written(tmp_path / "later", columns | {"sample_id": ids, "width": width}), SPEC)
    assert found.pairs == ROWS - 11 - 5
    text = " ".join(found.statements)
    assert "5 images have the sample_id of an earlier one of another size" in text
    assert "11 images share their sample_id" in text
    assert f"{ROWS - 16} images are in both runs, by sample_id and size, since one of them holds no" in text


def test_pairs_are_told_by_their_bytes(earlier: FinishedRun, tmp_path: Path) -> None:
    """The first ten are renamed, the last five hold other bytes, and two before them the same ones."""
    columns = night(0)
    content = np.array([content_digest(str(name).encode()) for name in columns["sample_id"]], dtype=object)
    ids = columns["sample_id"].copy()
    ids[:10] = [f"renamed/{i}" for i in range(10)]
    content[-5:] = [content_digest(f"other {i}".encode()) for i in range(5)]
    content[-7] = content[-6]
    later = columns | {"sample_id": ids, "content_digest": content}
    found = compare(earlier, written(tmp_path / "later", later), SPEC)
    assert found.pairs == ROWS - 5 - 2
    text = " ".join(found.statements)
    assert f"{found.pairs} images are in both runs, by their bytes; 10 of them have another sample_id now." in text
    assert "6 images have the sample_id of an earlier one of other bytes; they are no pairs." in text
    assert "2 images share their bytes with another of their run; they are no pairs." in text
    [flips] = [one for one in found.findings if one.name == "pairs.flips"]
    assert flips.effect == 0


def test_samples_of_large_runs_hold_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the names: samples of a hundred of 700 have a hundred pairs."""
    spec = SPEC.model_copy(update={"sample": 100})
    columns = night(0)
    content = np.array([content_digest(str(name).encode()) for name in columns["sample_id"]], dtype=object)
    renamed = columns | {"sample_id": columns["sample_id"][::-1].copy(), "content_digest": content}
    runs_ = written(tmp_path / "a", columns), written(tmp_path / "b", renamed, files=3)
    assert compare(*runs_, spec).pairs == 100


def test_rejects_and_slices_are_compared(earlier: FinishedRun, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"slices": ("weather", "hour")})
    first, second = (
        night(seed) | {"weather": np.where(np.random.default_rng(seed).random(ROWS) < share, "fog", "sun")}
        for seed, share in ((0, 0.2), (1, 0.5))
    )
    before = written(tmp_path / "before", first)
    after = written(tmp_path / "after", second, rejected=60, status="too_many_rejects")
    found = compare(before, after, spec)
    assert names(found) == {"slice.weather", "rejects"}
    text = " ".join(found.statements)
    assert "rejected more images than it allows: 60 of 760" in text
    assert "Slice hour is not compared" in text
    assert "Slice weather" not in text
    with pytest.raises(InputError, match="slice weather has more than 1 values"):
        compare(before, after, spec.model_copy(update={"slice_values": 1}))


def test_maps_of_a_class_agnostic_method_belong_to_the_prediction(tmp_path: Path) -> None:
    columns = night(0) | {"target": np.full(ROWS, -1)}
    run = written(tmp_path / "out", columns)
    found = profile(run, SPEC, run.grid)
    assert np.array_equal(np.bincount(found.maps["class"]), np.bincount(columns["prediction"]))


def test_scaled_maps_are_read_at_their_scale(tmp_path: Path) -> None:
    columns = night(0)
    scaled = columns | {"heatmap": columns["heatmap"] / 8, "heatmap_scale": np.full(ROWS, 8.0)}
    plain, found = (
        profile(written(tmp_path / name, values), SPEC, (6, 6)).sample["map"]
        for name, values in (("plain", columns), ("scaled", scaled))
    )
    assert found == pytest.approx(plain)


@pytest.fixture(scope="module")
def changed_everywhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, FinishedRun, set[str]]:
    """The same images twice, of which everything but the sizes changed, and what raises an alert."""
    folder, columns = tmp_path_factory.mktemp("changed"), night(0)
    changes = [
        change
        for change in SHIFTS
        if change not in (hotter, class_2_looks_elsewhere, smaller_images, correlated_embeddings)
    ]
    later = reduce(lambda values, change: values | change(values), changes, columns)
    later["heatmap"] = later["heatmap"][:, ::-1]
    later["score"] = later["score"] * np.float32(0.9)
    before, after = written(folder / "before", columns), written(folder / "after", later, rejected=40)
    return before, after, names(compare(before, after, SPEC))


@pytest.mark.parametrize("name", [name for name in DriftThresholds.model_fields if name != "alpha"])
def test_every_threshold_decides(name: str, changed_everywhere: tuple[FinishedRun, FinishedRun, set[str]]) -> None:
    before, after, usual = changed_everywhere
    strict = replace_thresholds(**{name: 0.5 if name == "embedding_auc" else 1.0})
    assert names(compare(before, after, strict)) < usual


@pytest.mark.parametrize(
    "change",
    [
        {"slices": ("shard",)},
        {"sample": 100},
        {"class_sample": 30},
        {"class_least": 170},
        {"embedding_sample": 60},
        {"grid": 3},
        {"permutations": 6000},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_setting_changes_the_result(change: dict[str, Any], earlier: FinishedRun, tmp_path: Path) -> None:
    later = written(tmp_path / "later", night(1))
    specs = (SPEC, SPEC.model_copy(update=change))
    usual, other = (replace(compare(earlier, later, spec), spec=SPEC).to_json() for spec in specs)
    assert usual != other


def test_a_class_sample_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="class_sample 10 is less than class_least 20"):
        DriftSpec(class_sample=10)
