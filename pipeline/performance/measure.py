"""Performance of a run: measured batch by batch, added up, and stated at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.performance.calibration import CELLS, calibration, logit_cell
from pipeline.performance.confusion import Confusion
from pipeline.performance.result import ClassRow, Performance, class_row, group
from pipeline.performance.tally import (
    COLUMNS,
    Floats,
    Scored,
    Tally,
    added,
    grouped,
    reliability,
    scored,
    tallies,
)
from pipeline.slices import check_number, texts
from pipeline.stream.finished import Each, FinishedRun, class_names, in_turn
from schemas.audit import PerformanceSpec

ALL = "all"


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums over some files of a run; measurements add up in any order.

    Attributes:
        spec: of the measurement.
        overall: of all images.
        labels: tallies by label.
        slices: tallies by column and value.
        cells: (3, CELLS) labelled images, sums of scores and right predictions by logit of the score.
        confusion: of the labelled images.
        names: of predicted classes.
    """

    spec: PerformanceSpec
    overall: Tally
    labels: dict[int, Tally]
    slices: dict[str, dict[str, Tally]]
    cells: Floats
    confusion: Confusion
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, spec: PerformanceSpec) -> "Measured":
        """Of no image."""
        tally = Tally(np.zeros(4, np.int64), np.zeros(4), np.zeros((3, spec.bins)))
        nothing = np.zeros(0, np.int64)
        slices: dict[str, dict[str, Tally]] = {name: {} for name in spec.slices}
        return cls(spec, tally, {}, slices, np.zeros((3, CELLS)), Confusion.of(nothing, nothing))

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(
            self.spec,
            self.overall + other.overall,
            added(self.labels, other.labels),
            {name: _few(name, added(self.slices[name], other.slices[name]), self.spec) for name in self.spec.slices},
            self.cells + other.cells,
            self.confusion + other.confusion,
            self.names | other.names,
        )

    def result(self, names: Mapping[int, str] | None = None) -> Performance:
        """Rates with intervals, and what must be said of them.

        Args:
            names: of the classes; where one is missing, the name that predictions gave, else the index.

        Returns:
            The performance.
        """
        level = self.spec.confidence_level
        known = {**self.names, **(names or {})}
        return Performance(
            overall=group(ALL, self.overall, level),
            classes=tuple(self._classes(known)),
            slices={
                name: tuple(group(value, tally, level) for value, tally in sorted(found.items()))
                for name, found in self.slices.items()
            },
            calibration=calibration(self.overall.bins, self.cells),
            confusion=self.confusion,
            statements=tuple(self._statements()),
        )

    def _classes(self, names: Mapping[int, str]) -> list[ClassRow]:
        predicted: dict[int, int] = {}
        for index, images in zip(self.confusion.cells[1].tolist(), self.confusion.images.tolist(), strict=True):
            predicted[index] = predicted.get(index, 0) + images
        empty = Measured.empty(self.spec).overall
        level = self.spec.confidence_level
        return [
            class_row(
                index, names.get(index, str(index)), self.labels.get(index, empty), predicted.get(index, 0), level
            )
            for index in sorted(self.labels.keys() | predicted.keys())
        ]

    def _statements(self) -> list[str]:
        images, labelled = int(self.overall.counts[0]), int(self.overall.counts[1])
        if labelled == 0:
            return ["No image has a label: accuracy, calibration, confusion and classes are not stated."]
        if labelled < images:
            return [f"{images - labelled} of {images} images have no label; accuracy and calibration leave them out."]
        return []


def measure(
    run: FinishedRun, spec: PerformanceSpec, *, files: Sequence[str] | None = None, each: Each = in_turn
) -> Measured:
    """Measures the predictions of a run, or of some of its files; memory does not grow with the rows.

    Args:
        run: whose explanations to read.
        spec: what to measure.
        files: some of the run's; measurements of all of them add up to the run's.
        each: reads the files; every way gives the same sums, since they are summed file by file.

    Returns:
        Sums, of which `result` makes numbers.

    Raises:
        InputError: a slice column is missing or has too many values, or a file cannot be read.
    """
    lacking = [name for name in spec.slices if name not in run.schema.names]
    if lacking:
        raise InputError(
            f"slice {', '.join(lacking)} is no column of {run.address} ({', '.join(run.schema.names)}); explain with "
            f"--attribute {lacking[0]} to carry it along from the input"
        )
    parts = each(partial(_of_file, run, spec), run.files if files is None else files)
    return reduce(Measured.__add__, parts, Measured.empty(spec))


def _of_file(run: FinishedRun, spec: PerformanceSpec, name: str) -> Measured:
    batches = run.batches(list(dict.fromkeys([*COLUMNS, *spec.slices])), [name])
    return reduce(Measured.__add__, (measured(batch, spec) for batch in batches), Measured.empty(spec))


def measured(batch: pa.RecordBatch, spec: PerformanceSpec) -> Measured:
    """Measures one batch.

    Args:
        batch: of explanations: `COLUMNS` and the slices.
        spec: what to measure.

    Returns:
        Sums over its images.
    """
    first = batch.filter(pc.equal(batch.column("rank"), 0))
    images = scored(first)
    everyone = np.zeros(first.num_rows, np.int64)
    labels, label_group = np.unique(images.label[images.labelled], return_inverse=True)
    by_label = np.full(first.num_rows, -1)
    by_label[images.labelled] = label_group
    cells = reliability(images, np.where(images.labelled, 0, -1), 1, logit_cell(images.score), CELLS)
    return Measured(
        spec,
        tallies(images, everyone, [ALL], spec.bins)[ALL],
        tallies(images, by_label, labels.tolist(), spec.bins),
        {name: _few(name, _slice(first, images, name, spec.bins), spec) for name in spec.slices},
        cells[0],
        Confusion.of(images.label[images.labelled], images.prediction[images.labelled]),
        class_names(first),
    )


def _slice(batch: pa.RecordBatch, images: Scored, name: str, bins: int) -> dict[str, Tally]:
    values, groups = grouped(texts(batch.column(name).to_pylist()))
    return tallies(images, groups, values, bins)


def _few(name: str, found: dict[str, Any], spec: PerformanceSpec) -> dict[str, Any]:
    check_number(name, found, spec.slice_values)
    return found
