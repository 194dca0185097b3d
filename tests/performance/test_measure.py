"""Performance against scikit-learn and plain numpy, over any split into files and batches."""

import json
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics

from pipeline.errors import InputError
from pipeline.performance.calibration import calibration, logit_cell
from pipeline.performance.confusion import Confusion
from pipeline.performance.measure import Measured, measure, measured
from pipeline.performance.result import Performance, share
from pipeline.stream.finished import open_run
from schemas.audit import PerformanceSpec

ROWS, CLASSES = 3000, 12
SPEC = PerformanceSpec()


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    return runs.columns(ROWS, classes=CLASSES)


def performance(columns: dict[str, Any], spec: PerformanceSpec = SPEC, split: int = 1) -> Performance:
    parts = np.array_split(np.arange(len(columns["label"])), split)
    rows = runs.table(columns)
    batches = [rows.take(pa.array(part)).combine_chunks().to_batches()[0] for part in parts]
    return reduce(Measured.__add__, [measured(batch, spec) for batch in batches]).result()


def test_rates_are_those_of_scikit_learn(columns: dict[str, Any]) -> None:
    found = performance(columns)
    label, prediction = columns["label"], columns["prediction"]
    assert found.overall.accuracy.value == metrics.accuracy_score(label, prediction)
    assert found.overall.top5.value == np.mean([y in best for y, best in zip(label, columns["top5"], strict=True)])
    assert found.overall.top5.value > found.overall.accuracy.value
    precision, recall, f1, support = metrics.precision_recall_fscore_support(label, prediction)
    for index, row in enumerate(found.classes):
        assert (row.index, row.images.labelled, row.images.name) == (index, support[index], f"class {index}")
        assert [row.precision.value, row.images.accuracy.value, row.f1] == pytest.approx(
            [precision[index], recall[index], f1[index]]
        )
    matrix = metrics.confusion_matrix(label, prediction)
    assert np.array_equal(found.confusion.matrix(CLASSES), matrix)
    assert found.confusion.table().num_rows == np.count_nonzero(matrix)
    np.fill_diagonal(matrix, 0)
    assert found.confusion.largest(1)[0][2] == matrix.max()


def test_means_are_those_of_the_columns(columns: dict[str, Any]) -> None:
    found, right = performance(columns).overall, columns["label"] == columns["prediction"]
    expected = {
        "confidence": columns["score"].mean(),
        "confidence_right": columns["score"][right].mean(),
        "confidence_wrong": columns["score"][~right].mean(),
        "margin": columns["margin"].mean(),
        "entropy": columns["entropy"].mean(),
    }
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-5)


def reference_error(score: np.ndarray, right: np.ndarray, members: list[np.ndarray]) -> float:
    return sum(len(i) / len(score) * abs(right[i].mean() - score[i].mean()) for i in members if len(i))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_is_that_of_the_definition(columns: dict[str, Any], bins: int) -> None:
    found = performance(columns, PerformanceSpec(bins=bins)).calibration
    assert found is not None
    score, right = columns["score"].astype(float), columns["label"] == columns["prediction"]
    edges = np.linspace(0, 1, bins + 1)
    equal = [np.flatnonzero((score >= low) & (score < high)) for low, high in pairwise(edges)]
    assert found.ece == pytest.approx(reference_error(score, right, equal), abs=1e-9)
    mass = np.array_split(np.argsort(score, kind="stable"), bins)
    assert found.adaptive_ece == pytest.approx(reference_error(score, right, mass), abs=2e-3)
    assert found.gap == pytest.approx(score.mean() - right.mean())
    assert sum(bin_.images for bin_ in found.equal_width) == sum(bin_.images for bin_ in found.equal_mass) == ROWS
    assert all(bin_.low <= (bin_.confidence or bin_.low) <= bin_.high for bin_ in found.equal_mass)
    assert len(found.equal_mass) == bins
    assert all(abs(bin_.images - ROWS / bins) < ROWS / 50 for bin_ in found.equal_mass)


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has_its_gap() -> None:
    generator = np.random.default_rng(0)
    score = generator.uniform(0.3, 1.0, 200_000)
    right = generator.uniform(size=score.size) < score
    for shift in (0.0, -0.2):
        lowered = np.where(generator.uniform(size=score.size) < -shift, False, right)
        sums = np.stack([np.ones(score.size), score, lowered])
        width = np.stack([np.bincount((score * 15).astype(int), row, minlength=15) for row in sums])
        cells = np.stack([np.bincount(logit_cell(score), row, minlength=2176) for row in sums])
        found = calibration(width, cells)
        assert found is not None
        expected = score.mean() * -shift
        assert found.ece == pytest.approx(expected, abs=0.01)
        assert found.adaptive_ece == pytest.approx(expected, abs=0.01)


def test_certain_scores_have_a_bin() -> None:
    assert logit_cell(np.array([0.0, 0.5, 1.0])).tolist() == [0, 1088, 2175]
    columns = runs.columns(40)
    found = performance({**columns, "score": np.ones(40, np.float32)}).calibration
    assert found is not None
    assert found.equal_width[-1].images == found.equal_mass[0].images == 40


@given(hits=st.integers(0, 60), others=st.integers(0, 60), level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None, max_examples=50)
def test_intervals_are_those_of_wilson(hits: int, others: int, level: float) -> None:
    n = hits + others
    found = share(hits, n, level)
    if n == 0:
        assert (found.value, found.low, found.high) == (None, None, None)
        return
    z, p = norm.ppf(0.5 + level / 2), hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_any_split_in_any_order_gives_the_same(columns: dict[str, Any]) -> None:
    spec = PerformanceSpec(slices=("width",))
    once = performance(columns, spec).to_json()
    order = np.random.default_rng(1).permutation(ROWS)
    again = performance({name: values[order] for name, values in columns.items()}, spec, split=7).to_json()
    assert flat(once) == pytest.approx(flat(again))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Numbers and texts of nested dictionaries and lists by their place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in flat(item, f"{path}/{key}").items()}


def test_an_image_with_several_maps_counts_once(columns: dict[str, Any]) -> None:
    doubled = {name: np.concatenate([values, values]) for name, values in columns.items()}
    doubled["rank"] = np.repeat([0, 1], ROWS)
    assert performance(doubled).to_json() == performance(columns).to_json()


def test_without_labels_it_says_so(columns: dict[str, Any]) -> None:
    found = performance({**columns, "label": np.full(ROWS, -1)})
    assert found.overall.images == ROWS
    assert found.overall.confidence == pytest.approx(columns["score"].mean(), rel=1e-5)
    assert found.overall.accuracy.value is found.overall.ece is found.calibration is None
    assert found.classes == ()
    assert "No image has a label" in found.statements[0]
    json.dumps(found.to_json(), allow_nan=False)


def test_images_without_a_label_are_left_out_of_rates(columns: dict[str, Any]) -> None:
    label = np.where(np.arange(ROWS) % 3, columns["label"], -1)
    found = performance({**columns, "label": label})
    kept = label >= 0
    assert found.overall.accuracy.value == metrics.accuracy_score(label[kept], columns["prediction"][kept])
    assert found.statements == ("1000 of 3000 images have no label; accuracy and calibration leave them out.",)


def test_slices(columns: dict[str, Any]) -> None:
    shard = np.where(np.arange(ROWS) < 1000, "left", "right")
    weather = np.where(np.arange(ROWS) % 3, "fog", "").astype(object)
    weather[::7] = None
    found = performance(
        {**columns, "shard": shard, "weather": weather}, PerformanceSpec(slices=("shard", "weather")), split=3
    ).slices
    for name, values in (("shard", shard), ("weather", np.where(weather == None, "(none)", weather))):  # noqa: E711
        assert [group.name for group in found[name]] == sorted(set(values))
        for group in found[name]:
            member = values == group.name
            assert group.images == member.sum()
            assert group.accuracy.value == metrics.accuracy_score(
                columns["label"][member], columns["prediction"][member]
            )


def test_many_classes_give_a_sparse_matrix() -> None:
    found = performance(runs.columns(400, classes=200))
    plain = found.to_json()
    assert plain["confusion"] is None
    assert plain["mistakes"][0][2] == max(images for *_, images in plain["mistakes"])
    assert sum(found.confusion.images) == 400


def test_confusions_add_up() -> None:
    generator = np.random.default_rng(0)
    label, prediction = generator.integers(5, size=(2, 300))
    parts = [Confusion.of(label[i::4], prediction[i::4]) for i in range(4)]
    total = reduce(Confusion.__add__, [Confusion.of(label[:0], label[:0]), *parts])
    assert np.array_equal(total.matrix(5), metrics.confusion_matrix(label, prediction))


def test_a_run_is_measured_file_by_file(tmp_path: Path, columns: dict[str, Any]) -> None:
    run = open_run(runs.write(tmp_path / "out", columns, files=3))
    parts = [measure(run, SPEC, files=[name]) for name in run.files]
    assert flat((parts[2] + parts[0] + parts[1]).result().to_json()) == pytest.approx(
        flat(measure(run, SPEC).result().to_json())
    )


def test_slices_that_cannot_work_are_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    run = open_run(runs.write(tmp_path / "out", columns))
    with pytest.raises(InputError, match=r"slice weather is no column of .* --attribute weather"):
        measure(run, PerformanceSpec(slices=("weather",)))
    with pytest.raises(InputError, match="slice sample_id has more than 10 values"):
        measure(run, PerformanceSpec(slices=("sample_id",), slice_values=10))
