"""Thresholds over a whole run: slow references of the measures, and runs whose values are known by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reference import localisation as reference

from pipeline.evaluation.boxes import DELTAS, LEVELS, SCORE_BINS, score_histogram
from pipeline.evaluation.controls import centre_maps
from pipeline.evaluation.table import mean
from pipeline.evaluation.weak_localisation import MEASURES, half_of, weak_localisation
from pipeline.measuring import object_fields
from pipeline.stream.finished import FinishedRun
from schemas.measures import BY_THRESHOLD, CENTRE

SHAPE = (6, 7)
SCHEMA = pa.schema([pa.field("sample_id", pa.string()), pa.field("rank", pa.int32()), *object_fields()])


def ids(count, half=None):
    names = (f"image-{number}" for number in range(1000))
    return [name for name in names if half in (None, half_of(name))][:count]


def row(name, largest, every, counts, rank=0):
    values = dict(zip(BY_THRESHOLD, (largest, every, counts), strict=True))
    return {"sample_id": name, "rank": rank, **values, **{f"{column}_{CENTRE}": values[column] for column in values}}


def hits(*levels, overlap=1.0):
    """Overlaps that are `overlap` at some levels and 0 at the others."""
    return [overlap if level in levels else 0.0 for level in range(LEVELS)]


EMPTY = [0] * (2 * (SCORE_BINS + 1))


def run_of(folder, *files):
    (folder / "explanations").mkdir()
    names = tuple(f"part-{number}.parquet" for number in range(len(files)))
    for name, rows in zip(names, files, strict=True):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "explanations" / name)
    return FinishedRun(str(folder), None, SCHEMA, names)


def drawn(count=11):
    """Images with random overlaps and random maps in masks: names, two lists of overlaps, scores and masks."""
    random = np.random.default_rng(7)
    sweeps = random.random((2, count, LEVELS)).astype(np.float32)
    scores, masks = random.random((count, *SHAPE)) ** 2, random.random((count, *SHAPE)) < 0.4
    return ids(count), sweeps, scores, masks


def rows_of(names, sweeps, scores, masks):
    counts = score_histogram(torch.tensor(scores), torch.tensor(masks)).flatten(1).tolist()
    return [row(*each) for each in zip(names, sweeps[0].tolist(), sweeps[1].tolist(), counts, strict=True)]


def test_means_are_the_measures_of_slow_loops(tmp_path):
    names, sweeps, scores, masks = drawn()
    rows = rows_of(names, sweeps, scores, masks)
    found = weak_localisation(run_of(tmp_path, rows[:4], rows[4:]))
    assert tuple(found) == MEASURES
    halves = [[n for n, name in enumerate(names) if half_of(name) == half] for half in (0, 1)]
    for name, overlaps, deltas in (("max_box_acc", sweeps[0], (0.5,)), ("max_box_acc_v2", sweeps[1], DELTAS)):
        lists = overlaps.tolist()
        expected = reference.max_box_acc(lists, lists, deltas)
        assert np.mean(list(found[name].values())) == pytest.approx(expected, abs=1e-6)
        for half, others in (halves, halves[::-1]):
            expected = reference.max_box_acc([lists[n] for n in others], [lists[n] for n in half], deltas)
            held_out = [found[f"{name}_held_out"][names[n]] for n in half]
            assert np.mean(held_out) == pytest.approx(expected, abs=1e-6)
    nothing = np.zeros_like(masks)
    assert np.mean(list(found["pxap"].values())) == pytest.approx(
        reference.pixel_precision(scores, masks, nothing), abs=1e-9
    )


def test_the_error_of_pixel_precision_is_the_jackknife_s(tmp_path):
    names, sweeps, scores, masks = drawn(5)
    found = weak_localisation(run_of(tmp_path, rows_of(names, sweeps, scores, masks)))["pxap"]
    kept = [[n for n in range(5) if n != left_out] for left_out in range(5)]
    without = [reference.pixel_precision(scores[n], masks[n], np.zeros_like(masks[n])) for n in kept]
    assert mean(np.array(list(found.values()))).error == pytest.approx(np.sqrt(4 / 5 * np.var(without) * 5), abs=1e-9)


def test_known_runs(tmp_path):
    """Level 3 finds most boxes; of the first half it is level 3 alone, of the second level 9."""
    first, second = ids(3, half=0), ids(2, half=1)
    largest = [hits(3), hits(3), hits(5), hits(3, 9), hits(9)]
    every = [hits(3, overlap=0.6)] * 5
    rows = [row(*each, EMPTY) for each in zip([*first, *second], largest, every, strict=True)]
    found = {name: list(values.values()) for name, values in weak_localisation(run_of(tmp_path, rows)).items()}
    assert found["max_box_acc"] == [1, 1, 0, 1, 0]
    assert found["max_box_acc_held_out"] == [0, 0, 0, 1, 0]
    assert found["max_box_acc_v2"] == pytest.approx([2 / 3] * 5)


def test_perfect_maps_reach_everything(tmp_path):
    counts = torch.zeros(2, SCORE_BINS + 1, dtype=torch.int64)
    counts[0, 0], counts[1, -1] = 30, 12
    rows = [
        row(name, hits(*range(LEVELS)), hits(*range(LEVELS)), counts.flatten().tolist())
        for name in ids(2, half=0) + ids(2, half=1)
    ]
    found = weak_localisation(run_of(tmp_path, rows))
    assert {name: set(values.values()) for name, values in found.items()} == {name: {1.0} for name in MEASURES}


def test_only_first_targets_of_images_with_boxes_count(tmp_path):
    names = ids(3, half=0)
    rows = [
        row(names[0], hits(3), hits(3), EMPTY),
        row(names[0], hits(4), hits(4), EMPTY, rank=1),
        row(names[1], None, None, None),
        row(names[2], hits(4), hits(4), EMPTY),
    ]
    found = weak_localisation(run_of(tmp_path, rows), CENTRE)
    assert found["max_box_acc"] == {names[0]: 1.0, names[2]: 0.0}
    assert not any("held_out" in name for name in found)  # all are of one half


def test_one_image_has_a_value_without_an_error(tmp_path):
    names, sweeps, scores, masks = drawn(1)
    found = weak_localisation(run_of(tmp_path, rows_of(names, sweeps, scores, masks)))["pxap"]
    assert found == {names[0]: pytest.approx(reference.pixel_precision(scores, masks, masks & False), abs=1e-9)}


def test_runs_without_boxes_have_no_values(tmp_path):
    assert weak_localisation(run_of(tmp_path, [row(ids(1)[0], None, None, None)])) == {}
    plain = FinishedRun(str(tmp_path), None, pa.schema([pa.field("sample_id", pa.string())]), ())
    assert weak_localisation(plain) == {}


def test_centred_maps_are_round_and_highest_in_the_middle():
    found = centre_maps(2, (5, 9))
    assert found.shape == (2, 5, 9)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found, found.flip(1, 2))
    assert found[0].argmax() == 2 * 9 + 4
    torch.testing.assert_close(found[0, 0, 4], found[0, 2, 2])
