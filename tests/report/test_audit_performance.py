"""The audit's tables of performance: groups of too few images are a sentence, and not a row each."""

from typing import Any

import numpy as np
import runs

from pipeline.performance.measure import measured
from pipeline.performance.result import Performance
from pipeline.report.audit.performance import class_table, slice_tables
from schemas.audit import PerformanceSpec

CLASSES = 4
SPEC = PerformanceSpec(slices=("light",))


def performance(columns: dict[str, Any]) -> Performance:
    return measured(runs.table(columns).combine_chunks().to_batches()[0], SPEC).result()


def sliced() -> dict[str, Any]:
    """109 labelled images of class 0 to 3, in the night 9 of them, and one of each of 6 further classes."""
    columns = runs.columns(115, classes=10)
    label = np.where(np.arange(115) < 109, np.arange(115) % CLASSES, np.arange(115) - 105)
    light = np.array(["night" if number < 9 else "day" for number in range(115)], dtype=object)
    return {**columns, "label": label, "prediction": np.where(np.arange(115) % 5, label, 0), "light": light}


def test_classes_of_few_images_are_summed_up() -> None:
    found = performance(sliced())
    table = class_table(found)
    assert table is not None
    assert {row[0].text for row in table.rows} == {f"class {index}" for index in range(CLASSES)}
    short = [one.images.accuracy for one in found.classes if one.index >= CLASSES]
    right = sum(one.hits for one in short)
    assert 0 < right < len(short) == 6
    told = f"6 classes with fewer than 10 images: right {right} of 6. Every class is in tables/classes.parquet."
    assert table.note == told


def test_values_of_few_images_are_summed_up() -> None:
    found = performance(sliced())
    (table,) = slice_tables(found)
    assert [row[0].text for row in table.rows] == ["day"]
    (night,) = (one for one in found.slices["light"] if one.name == "night")
    told = f"1 value of light with fewer than 10 images: right {night.accuracy.hits} of 9."
    assert table.note == f"{told} Every value is in tables/slices.parquet."


def test_without_labels_only_the_number_of_values_is_told() -> None:
    (table,) = slice_tables(performance({**sliced(), "label": np.full(115, -1)}))
    assert table.note == "1 value of light with fewer than 10 images. Every value is in tables/slices.parquet."


def test_enough_images_need_no_sentence() -> None:
    table = class_table(performance({**runs.columns(200), "light": np.full(200, "day", dtype=object)}))
    assert table is not None
    assert (len(table.rows), table.note) == (CLASSES, "")
