"""Measures by class and slice: numbers by hand, and a slice whose maps are planted to be worse than the others'."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest, t

from pipeline.drift.profile import SUMMARIES
from pipeline.evaluation.boxes import LEVELS, SCORE_BINS, pixel_precision
from pipeline.evaluation.breakdown import MapGroup, breakdown, breakdown_json
from pipeline.evaluation.significance import LEAST
from pipeline.evaluation.weak_localisation import weak_localisation
from pipeline.measuring import measure_fields
from pipeline.report.audit.breakdown import sentences
from pipeline.stream.finished import FinishedRun
from schemas.audit import PerformanceSpec
from schemas.measures import BY_THRESHOLD, CENTRE, LOCALISATION, MeasureSpec, MetricSpec

METRICS = (MetricSpec(name="insertion"), MetricSpec(name="randomlogit", controls=False))
SPEC = PerformanceSpec(slices=("light", "class"))
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("sample_id", "light", "class")),
        *(pa.field(name, pa.int32()) for name in ("rank", "target", "prediction")),
        *(pa.field(name, pa.float32()) for name in SUMMARIES),
        *measure_fields(MeasureSpec(metrics=METRICS, ranks=(0, 0), boxes="boxes")),
    ]
)
RARE = LEAST - 1
LIGHTS = ["day"] * 60 + ["night"] * 40 + ["dusk"] * RARE
Rows = list[dict[str, Any]]


def planted(shift: float = 0.4) -> Rows:
    """Images whose maps lie worse on their objects, and whose score falls, where light is night."""
    random = np.random.default_rng(5)
    return [row(number, light, random, shift if light == "night" else 0.0) for number, light in enumerate(LIGHTS)]


def row(number: int, light: str, random: np.random.Generator, shift: float) -> dict[str, Any]:
    energy, insertion, control, other = random.normal(0.6, 0.1, 4)
    histogram = random.multinomial(400, np.full(SCORE_BINS + 1, 1 / (SCORE_BINS + 1)), size=2)
    overlaps = [float(random.random() > 0.5 + shift)] * LEVELS
    lists = dict(zip(BY_THRESHOLD, (overlaps, overlaps, histogram.ravel().tolist()), strict=True))
    located = (float(random.random() > 0.2 + shift), 0.3, energy - shift, random.random(), 0.25)
    return {
        "sample_id": f"image-{number}",
        "light": light,
        "class": "old" if number % 2 else "new",
        "rank": 0,
        "target": number % 3,
        "prediction": 7,
        **dict(zip(SUMMARIES, random.random(len(SUMMARIES)), strict=True)),
        **dict(zip(LOCALISATION, located, strict=True)),
        **lists,
        **{f"{name}_{CENTRE}": values for name, values in lists.items()},
        "insertion": insertion - shift,
        "insertion_random": control,
        "insertion_edges": control,
        "randomlogit": other,
    }


def run_of(folder, *files: Rows) -> FinishedRun:
    (folder / "explanations").mkdir(parents=True)
    names = tuple(f"part-{number}.parquet" for number in range(len(files)))
    for name, rows in zip(names, files, strict=True):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "explanations" / name)
    return FinishedRun(str(folder), None, SCHEMA, names)


def broken_down(run: FinishedRun) -> dict[tuple[str, str, str], MapGroup]:
    found = breakdown(run, run, METRICS, SPEC, {0: "cat", 1: "dog"})
    return {(one.by, one.column, one.name): one for one in found}


@pytest.fixture(scope="module")
def rows() -> Rows:
    return planted()


@pytest.fixture(scope="module")
def run(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return run_of(tmp_path_factory.mktemp("run"), rows)


@pytest.fixture(scope="module")
def found(run: FinishedRun) -> dict[tuple[str, str, str], MapGroup]:
    return broken_down(run)


def column(rows: Rows, name: str, light: str) -> np.ndarray:
    return np.array([one[name] for one in rows if one["light"] == light], np.float32).astype(np.float64)


def test_the_planted_slice_is_worse_and_no_other(found: dict[tuple[str, str, str], MapGroup]) -> None:
    worse = {(key, name) for key, one in found.items() for name, mean in one.means.items() if mean.is_worse}
    assert {key for key, _ in worse} == {("slice", "light", "night")}
    assert {"energy", "pointing_game"} <= {name for _, name in worse}
    (told,) = sentences(tuple(found.values()))
    night, whole = (
        found[key].means["energy"].value for key in (("slice", "light", "night"), ("all", "", "all images"))
    )
    assert told.startswith("Maps where light is night are worse than elsewhere: ")
    assert f"energy {night:.3f}, over all images {whole:.3f}" in told


def test_what_follows_the_score_or_has_no_better_side_is_not_compared(
    found: dict[tuple[str, str, str], MapGroup],
) -> None:
    night = found["slice", "light", "night"].means
    assert night["insertion"].value < found["slice", "light", "day"].means["insertion"].low
    assert {night[name].is_worse for name in ("insertion", *SUMMARIES)} == {None}


def test_means_have_student_s_interval(found: dict[tuple[str, str, str], MapGroup], rows: Rows) -> None:
    for name in ("energy", "insertion", "randomlogit", "gini"):
        values, mean = column(rows, name, "day"), found["slice", "light", "day"].means[name]
        low, high = t.interval(0.95, len(values) - 1, values.mean(), values.std(ddof=1) / np.sqrt(len(values)))
        assert (mean.value, mean.low, mean.high) == pytest.approx((values.mean(), low, high))
        assert mean.images == 60


def test_hits_and_misses_have_wilson_s_interval(found: dict[tuple[str, str, str], MapGroup], rows: Rows) -> None:
    hits, mean = column(rows, "pointing_game", "night"), found["slice", "light", "night"].means["pointing_game"]
    expected = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    assert (mean.value, mean.low, mean.high) == pytest.approx((hits.mean(), expected.low, expected.high))


def test_numbers_that_are_no_shares_have_none_of_their_intervals(tmp_path, rows: Rows) -> None:
    """A map that never falls below zero has its lowest value in every image."""
    flat = broken_down(run_of(tmp_path, [one | {"heatmap_min": 0.0, "energy": 1.0} for one in rows]))
    day = flat["slice", "light", "day"].means
    assert (day["heatmap_min"].low, day["heatmap_min"].high) == (0, 0)
    assert (day["energy"].low, day["energy"].high) == pytest.approx((60 / (60 + 1.959964**2), 1))


def test_pixels_of_a_group_have_a_curve_of_their_own(
    found: dict[tuple[str, str, str], MapGroup], rows: Rows, run: FinishedRun
) -> None:
    for light in ("day", "night"):
        own = torch.tensor([one["score_histogram"] for one in rows if one["light"] == light])
        expected = float(pixel_precision(own.view(-1, 2, SCORE_BINS + 1).sum(dim=0)))
        assert found["slice", "light", light].means["pxap"].value == pytest.approx(expected)
    whole = np.mean(list(weak_localisation(run)["pxap"].values()))
    assert found["all", "", "all images"].means["pxap"].value == pytest.approx(whole)


def test_maps_that_know_nothing_stand_beside(found: dict[tuple[str, str, str], MapGroup], rows: Rows) -> None:
    night = found["slice", "light", "night"].means
    assert night["energy"].control == pytest.approx(0.25)
    assert night["pointing_game"].control == pytest.approx(0.3)
    assert night["insertion"].control == pytest.approx(column(rows, "insertion_random", "night").mean())
    assert night["max_box_acc"].control == night["max_box_acc"].value  # the centred maps are planted to be the same
    assert night["randomlogit"].control is night["gini"].control is None


def test_too_few_images_give_no_number_and_are_counted(found: dict[tuple[str, str, str], MapGroup]) -> None:
    dusk = found["slice", "light", "dusk"]
    assert not dusk.is_known
    for mean in dusk.means.values():
        assert (mean.value, mean.low, mean.high, mean.control, mean.is_worse) == (None,) * 5
        assert mean.images == RARE
    told = breakdown_json(tuple(found.values()))
    assert told["too_few_images"] == 1
    assert "dusk" not in {one["name"] for one in told["groups"]}


def test_groups_are_classes_and_slices_in_order(found: dict[tuple[str, str, str], MapGroup]) -> None:
    slices = [("slice", "light", name) for name in ("day", "dusk", "night")]
    slices += [("slice", "class", name) for name in ("new", "old")]
    assert list(found) == [("all", "", "all images"), *(("class", "", name) for name in ("cat", "dog", "2")), *slices]
    assert [one.index for one in found.values() if one.by == "class"] == [0, 1, 2]


def test_a_map_of_no_class_explains_the_prediction(tmp_path, rows: Rows) -> None:
    found = broken_down(run_of(tmp_path, [one | {"target": None} for one in rows]))
    assert [key for key in found if key[0] == "class"] == [("class", "", "7")]


def test_further_targets_and_the_cut_into_files_change_nothing(
    tmp_path, rows: Rows, found: dict[tuple[str, str, str], MapGroup]
) -> None:
    more = [one | {"rank": 1, "energy": 0.0, "gini": 0.0} for one in rows]
    again = broken_down(run_of(tmp_path, rows[:30] + more[:50], rows[30:] + more[50:]))
    assert list(again) == list(found)
    for key, one in found.items():
        for name, mean in one.means.items():
            expected = pytest.approx([mean.value, mean.low, mean.high, mean.images], nan_ok=True)
            assert list(vars(again[key].means[name]).values())[:4] == expected


def test_nothing_planted_is_nothing_found(tmp_path) -> None:
    """Of 40 slices of 25 images, whose ends of 95 % intervals would often lie apart."""
    random = np.random.default_rng(9)
    rows = [row(number, str(number % 40), random, 0.0) for number in range(1000)]
    found = broken_down(run_of(tmp_path, rows))
    compared = [mean.is_worse for one in found.values() for mean in one.means.values() if mean.is_worse is not None]
    assert len(compared) > 40 * 5
    assert not any(compared)


def test_without_a_measured_sample_the_shapes_are_told(run: FinishedRun) -> None:
    found = breakdown(run, None, (), PerformanceSpec(), {})
    assert {tuple(one.means) for one in found} == {SUMMARIES}
    assert {one.by for one in found} == {"all", "class"}
