"""What is kept of a run to compare it: counts of everything, and bounded samples of images, maps and embeddings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.drift.grid import Maps, resampled, shares
from pipeline.drift.sample import KEY, TIE, Columns, Sample, keys
from pipeline.slices import check_number, texts
from pipeline.stream.finished import Each, FinishedRun, class_names, in_turn
from schemas.audit import DriftSpec
from schemas.explanations import CONTENT, STATISTICS

NAME = "sample_id"
IDENTITY = "identity"
"""What tells images: the digest of their content where both runs have it, else their name."""
UNLABELLED = -1
CLASS_ROWS = 65_536  # rows of all classes together, so that a thousand classes take the memory of ten
SCORES = ("score", "margin", "entropy")
SUMMARIES = tuple(field.name for field in STATISTICS if field.type == pa.float32() and field.name != "heatmap_scale")
"""Numbers that summarise a map."""
NUMBERS = (*SCORES, *SUMMARIES)
WHOLE = ("row", "label", "prediction", "target", "width", "height")
READ = (NAME, "rank", "prediction_name", *WHOLE, *NUMBERS, "heatmap", "heatmap_scale")

IMAGE = (KEY, TIE, NAME, IDENTITY, "label", "prediction", "width", "height", *NUMBERS)
MAPPED = (KEY, TIE, "class", *SUMMARIES)


@dataclass(frozen=True, eq=False)
class Profile:
    """Some files of a run; profiles add up in any order.

    Attributes:
        spec: of the comparison.
        grid: rows and columns that maps are averaged to.
        told_by: column that tells images, `sample_id` or `content_digest`.
        images: of rank 0.
        labelled: of these, with a label.
        correct: of these, predicted right.
        predictions: images by predicted class.
        labels: images by label.
        slices: images by column, predicted class and value.
        names: of predicted classes.
        sample: images: identity, prediction, numbers, and `map` (n, cells) signed.
        maps: images of each class that maps explain: numbers, and `map` (n, cells), shares of evidence.
        embeddings: images: `embedding` (n, D); D is 0 where the run has none.
    """

    spec: DriftSpec
    grid: tuple[int, int]
    told_by: str
    images: int
    labelled: int
    correct: int
    predictions: Counter[int]
    labels: Counter[int]
    slices: dict[str, Counter[tuple[int, str]]]
    names: dict[int, str]
    sample: Sample
    maps: Sample
    embeddings: Sample

    @classmethod
    def empty(cls, run: FinishedRun, spec: DriftSpec, grid: tuple[int, int], told_by: str = NAME) -> "Profile":
        """Of no image.

        Args:
            run: whose images are to come.
            spec: of the comparison.
            grid: that maps are averaged to.
            told_by: column that tells images.

        Returns:
            A profile to add to.
        """
        wide = run.schema.field("embedding").type.list_size if "embedding" in run.schema.names else 0
        cells = np.zeros((0, grid[0] * grid[1]), np.float32)
        image = {name: np.zeros(0, _kind(name)) for name in IMAGE} | {"map": cells}
        mapped = {name: np.zeros(0, _kind(name)) for name in MAPPED} | {"map": cells}
        embedded = {KEY: image[KEY], TIE: image[TIE], "embedding": np.zeros((0, wide), np.float32)}
        of_class = max(spec.class_least, min(spec.class_sample, CLASS_ROWS // run.classes))
        return cls(
            spec,
            grid,
            told_by,
            images=0,
            labelled=0,
            correct=0,
            predictions=Counter(),
            labels=Counter(),
            slices={name: Counter() for name in spec.slices if name in run.schema.names},
            names={},
            sample=Sample(spec.sample, image),
            maps=Sample(of_class, mapped, by="class"),
            embeddings=Sample(spec.embedding_sample, embedded),
        )

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(
            self.spec,
            self.grid,
            self.told_by,
            self.images + other.images,
            self.labelled + other.labelled,
            self.correct + other.correct,
            self.predictions + other.predictions,
            self.labels + other.labels,
            {name: _few(name, found + other.slices[name], self.spec) for name, found in self.slices.items()},
            self.names | other.names,
            self.sample + other.sample,
            self.maps + other.maps,
            self.embeddings + other.embeddings,
        )

    def with_batch(self, batch: pa.RecordBatch) -> "Profile":
        """This profile and the images of a batch.

        Args:
            batch: of explanations: `READ`, the slices, and `embedding` where the run has one.

        Returns:
            A new profile.
        """
        first = batch.filter(pc.equal(batch.column("rank"), 0))
        columns = _columns(first, self.spec.seed, self.told_by)
        label, prediction = columns["label"], columns["prediction"]
        labelled = label != UNLABELLED
        part = Profile(
            self.spec,
            self.grid,
            self.told_by,
            images=first.num_rows,
            labelled=int(labelled.sum()),
            correct=int((label == prediction).sum()),
            predictions=_counted(prediction),
            labels=_counted(label[labelled]),
            slices={name: _sliced(prediction, first.column(name)) for name in self.slices},
            names=class_names(first),
            sample=self._images(first, columns),
            maps=self._maps(first, columns),
            embeddings=self._embeddings(first, columns),
        )
        return self + part

    def _images(self, batch: pa.RecordBatch, columns: Columns) -> Sample:
        chosen = np.flatnonzero(self.sample.admits(columns[KEY], columns["class"]))
        maps = resampled(_heatmaps(batch, chosen), self.grid)
        kept = {name: columns[name][chosen] for name in IMAGE}
        return Sample.of(kept | {"map": maps.reshape(len(chosen), -1)}, self.sample.limit)

    def _maps(self, batch: pa.RecordBatch, columns: Columns) -> Sample:
        """Maps without evidence are left out: they have no place."""
        admitted = self.maps.admits(columns[KEY], columns["class"])
        chosen = np.flatnonzero(admitted & (columns["heatmap_max"] > 0))
        maps = resampled(shares(_heatmaps(batch, chosen)), self.grid)
        maps /= maps.sum(axis=(1, 2), keepdims=True)
        kept = {name: columns[name][chosen] for name in MAPPED}
        return Sample.of(kept | {"map": maps.reshape(len(chosen), -1)}, self.maps.limit, by="class")

    def _embeddings(self, batch: pa.RecordBatch, columns: Columns) -> Sample:
        wide = self.embeddings["embedding"].shape[1]
        chosen = np.flatnonzero(self.embeddings.admits(columns[KEY], columns["class"]) & (wide > 0))
        values = np.zeros((0, wide), np.float32)
        if len(chosen):
            flat = batch.column("embedding").take(pa.array(chosen)).flatten()
            values = np.asarray(flat).reshape(len(chosen), wide)
        kept = {name: columns[name][chosen] for name in (KEY, TIE)}
        return Sample.of(kept | {"embedding": values}, self.embeddings.limit)


def profile(
    run: FinishedRun,
    spec: DriftSpec,
    grid: tuple[int, int],
    *,
    told_by: str = NAME,
    files: Sequence[str] | None = None,
    each: Each = in_turn,
) -> Profile:
    """Reads a run, or some of its files; memory does not grow with the rows.

    Args:
        run: whose explanations to read.
        spec: of the comparison.
        grid: that maps are averaged to, see `pipeline.drift.grid.common`.
        told_by: column that tells images, see `told_by`.
        files: some of the run's; profiles of all of them add up to the run's.
        each: reads the files; every way gives the same profile.

    Returns:
        The profile.

    Raises:
        InputError: a slice column has too many values, or a file cannot be read.
    """
    empty = Profile.empty(run, spec, grid, told_by)
    names = run.files if files is None else files
    if each is in_turn:
        return _added(empty, run, names)
    return reduce(Profile.__add__, each(partial(_of_file, empty, run), names), empty)


def _of_file(empty: Profile, run: FinishedRun, name: str) -> Profile:
    return _added(empty, run, [name])


def _added(found: Profile, run: FinishedRun, files: Sequence[str]) -> Profile:
    """A profile and the images of some files; what it holds already spares the reading of maps."""
    wide = ["embedding"] if "embedding" in run.schema.names else []
    columns = dict.fromkeys([*READ, found.told_by, *found.slices, *wide])
    for batch in run.batches(list(columns), files):
        found = found.with_batch(batch)
    return found


def told_by(before: FinishedRun, after: FinishedRun) -> str:
    """The column by which images of two runs are told: their content where both know it, else their name."""
    return CONTENT if CONTENT in before.schema.names and CONTENT in after.schema.names else NAME


def _kind(name: str) -> Any:
    if name in (NAME, IDENTITY):
        return np.object_
    return np.uint64 if name == KEY else np.int64 if name in (*WHOLE, "class") else np.float64


def _columns(batch: pa.RecordBatch, seed: int, told_by: str) -> Columns:
    """Everything but maps and embeddings; missing numbers are NaN, and a class-agnostic map explains the prediction."""
    columns: Columns = {NAME: np.asarray(batch.column(NAME).to_numpy(zero_copy_only=False))}
    columns[IDENTITY] = np.asarray(
        pc.coalesce(batch.column(told_by), batch.column(NAME)).to_numpy(zero_copy_only=False)
    )
    columns[KEY] = keys(columns[IDENTITY], seed)
    for name in WHOLE:
        columns[name] = np.asarray(batch.column(name).fill_null(UNLABELLED)).astype(np.int64)
    for name in NUMBERS:
        columns[name] = np.asarray(batch.column(name).cast(pa.float64()).fill_null(np.nan))
    columns["class"] = np.where(columns["target"] < 0, columns["prediction"], columns["target"])
    return columns


def _heatmaps(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> Maps:
    """(n, h, w) of some rows, at their true scale."""
    column = batch.column("heatmap").take(pa.array(rows))
    if len(rows) == 0:
        return np.zeros((0, *column.type.shape), np.float32)
    scale = np.asarray(batch.column("heatmap_scale").take(pa.array(rows)))
    maps: Maps = column.to_numpy_ndarray().astype(np.float32) * scale[:, None, None]
    return maps


def _counted(values: NDArray[np.int64]) -> Counter[int]:
    found, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _sliced(prediction: NDArray[np.int64], values: pa.Array) -> Counter[tuple[int, str]]:
    return Counter(zip(prediction.tolist(), texts(values.to_pylist()), strict=True))


def _few(name: str, found: Counter[tuple[int, str]], spec: DriftSpec) -> Counter[tuple[int, str]]:
    check_number(name, {value for _, value in found}, spec.slice_values)
    return found
