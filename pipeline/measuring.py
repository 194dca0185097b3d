"""The explanation graph with metrics: the same rows, and for chosen images how good the map is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import records
from pipeline.embedding import EmbeddingGraph
from pipeline.errors import RowError
from pipeline.evaluation import localisation, metrics
from pipeline.evaluation.boxes import LEVELS, SCORE_BINS, box_sweep, score_histogram, scoremaps
from pipeline.evaluation.controls import centre_maps, edge_maps, random_maps
from pipeline.evaluation.metric import Explain, Explained, Measured, Metric, Subject
from pipeline.graph import Columns, ExplanationGraph, seed_of
from pipeline.grids import GridGraph
from pipeline.model import LoadedModel
from pipeline.objects import Objects, objects
from pipeline.stream.sheets import GridSteps
from pipeline.stream.steps import Steps
from schemas.embeddings import EmbedSpec
from schemas.graph import Device, GraphSpec
from schemas.measures import BY_THRESHOLD, CENTRE, LOCALISATION, MeasureSpec, MetricSpec

Ints = NDArray[np.int64]
Values = dict[str, list[Any]]
"""A value for each image by column; None where there is none."""


def graph_of(steps: Steps, *, device: Device | None = None) -> ExplanationGraph:
    """What a job's workers run; loads on its first use.

    Args:
        steps: of the job.
        device: another one than the job's.

    Returns:
        The graph, with metrics where the job measures, with embeddings, or of grids.
    """
    spec = steps.graph if device is None else steps.graph.model_copy(update={"device": device})
    if isinstance(steps, GridSteps):
        return GridGraph(spec, steps.storage, cache=steps.cache)
    if steps.more is None:
        return ExplanationGraph(spec, steps.storage, cache=steps.cache)
    if isinstance(steps.more, EmbedSpec):
        return EmbeddingGraph(spec, steps.more, steps.storage, cache=steps.cache)
    return MeasuringGraph(spec, steps.more, steps.storage, cache=steps.cache)


def rank(sample_id: str, seed: int) -> int:
    """A number that puts images in a random order, which depends on the seed and on each image alone.

    Args:
        sample_id: of the image.
        seed: of the sample.

    Returns:
        0 to 2^63 - 1.
    """
    return seed_of(f"{seed}:{sample_id}")


class MeasuringGraph(ExplanationGraph):
    """Explains as `ExplanationGraph` does, and measures the maps of the first target.

    Args:
        spec: what to compute.
        measures: what to measure.
        storage: fsspec options for remote weights.
        cache: see `ExplanationGraph`.
    """

    def __init__(
        self,
        spec: GraphSpec,
        measures: MeasureSpec,
        storage: Mapping[str, Any] | None = None,
        *,
        cache: str | None = None,
    ) -> None:
        super().__init__(spec, storage, cache=cache)
        self.measures = measures

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows that `__call__` returns."""
        return pa.schema([*super().schema, *measure_fields(self.measures)])

    def split(self, batch: pa.Table) -> tuple[pa.Table, records.Rows]:
        """See `ExplanationGraph.split`; an image whose objects cannot be read is a reject."""
        rejects, images = super().split(batch)
        errors = {i: one for i, one in enumerate(self._objects(images)) if isinstance(one, RowError)}
        bad = np.isin(np.arange(images.table.num_rows), list(errors))
        told = records.rejected(images.table.filter(pa.array(bad)), list(errors.values()))
        left = records.Rows(images.table.filter(pa.array(~bad)), images.label[~bad])
        return pa.concat_tables([rejects, told]), left

    def rows(self, images: records.Rows, found: Columns) -> pa.Table:
        """See `ExplanationGraph.rows`; measures stand beside the first target, null where none is asked for."""
        table = super().rows(images, found)
        finite = np.flatnonzero(found["finite"])
        if len(finite) == 0:
            return table
        values = self._metric_columns(images, found, finite)
        if self.measures.locates:
            values |= self._object_columns(images, found, finite)
        return _with_columns(table, values, every=found["targets"].shape[1])

    def _metric_columns(self, images: records.Rows, found: Columns, finite: Ints) -> Values:
        ranks = np.array([rank(images.sample_ids[i], self.measures.seed) for i in finite])
        batch = self._batch(images, found, finite)
        values: Values = {}
        for spec, last, metric in self._metrics:
            chosen = np.flatnonzero(ranks <= last)
            part = _part(batch, chosen)
            measured = [
                _measured(metric, s, part, own=not n) for n, s in enumerate(self._subjects[: len(spec.columns)])
            ]
            for name, one in zip(spec.columns, measured, strict=True):
                values[name] = _spread(one.value.tolist() if one else [], chosen, len(finite))
            values[spec.curve] = _spread(_curves(measured[0]), chosen, len(finite))
        return values

    def _batch(self, images: records.Rows, found: Columns, finite: Ints) -> Explained:
        """The finite images as the model sees them, with the maps of their first targets."""
        preprocessing = self.model.preprocessing
        weights = next(self.model.module.parameters())
        pixels = torch.tensor(images.pixels(preprocessing.shape)[finite], device=weights.device)
        return Explained(
            preprocessing.normalise(pixels, weights.dtype),
            torch.tensor(found["heatmaps"][finite, 0], device=weights.device),
            torch.tensor(found["targets"][finite, 0], device=weights.device),
            torch.tensor([seed_of(images.sample_ids[i]) for i in finite], device=weights.device),
        )

    def _object_columns(self, images: records.Rows, found: Columns, finite: Ints) -> Values:
        """Localisation of the images that have objects in what the network sees."""
        of_images = self._objects(images)
        known = [
            (i, one) for i, row in enumerate(finite) if isinstance(one := of_images[row], Objects) and one.mask.any()
        ]
        if not known:
            return {field.name: [None] * len(finite) for field in object_fields()}
        chosen = np.array([i for i, _ in known])
        maps, masks = torch.tensor(found["heatmaps"][finite[chosen], 0]), torch.stack([one.mask for _, one in known])
        truth, size = [one.boxes for _, one in known], self.model.preprocessing.size
        centred = _by_threshold(centre_maps(len(chosen), size), masks, truth)
        columns = (
            _on_masks(maps, masks)
            | _by_threshold(maps, masks, truth)
            | {f"{name}_{CENTRE}": column for name, column in centred.items()}
        )
        return {name: _spread(column.tolist(), chosen, len(finite)) for name, column in columns.items()}

    def _objects(self, images: records.Rows) -> list[Objects | RowError]:
        """Objects of each image; none where none are measured."""
        names = [name for name in (self.measures.boxes, self.measures.masks) if name]
        rows = images.table.select(["width", "height", *names]).to_pylist()
        return [self._objects_of(row) for row in rows] if names else []

    def _objects_of(self, row: Mapping[str, Any]) -> Objects | RowError:
        try:
            return objects(row, self.measures, self.model.preprocessing)
        except RowError as error:
            return error

    @cached_property
    def _metrics(self) -> list[tuple[MetricSpec, int, Metric]]:
        """Each metric with its last rank."""
        return [
            (spec, last, metrics.create(spec.name, **spec.parameters))
            for spec, last in zip(self.measures.metrics, self.measures.ranks, strict=True)
        ]

    @cached_property
    def _subjects(self) -> list[Subject]:
        """The method, then the controls that are called as it is, in the order of `schemas.measures.CONTROLS`."""
        noise = partial(random_maps, size=self.method.shape, seed=self.spec.seed)

        def bound(model: LoadedModel) -> Explain:
            return metrics.explains(self.bound(model))

        return [metrics.subject(self.model, bind) for bind in (bound, lambda _: noise, lambda _: edge_maps)]


def measure_fields(spec: MeasureSpec) -> list[pa.Field]:
    """Columns that a measuring run adds.

    Args:
        spec: what is measured.

    Returns:
        Nullable fields: a number for each metric and control, and the curve of each metric that has one.
    """
    fields = []
    for metric in spec.metrics:
        fields += [pa.field(name, pa.float32()) for name in metric.columns]
        fields.append(pa.field(metric.curve, pa.list_(pa.float32())))
    if spec.locates:
        fields += object_fields()
    return fields


def object_fields() -> list[pa.Field]:
    """Columns of images with boxes or masks.

    Returns:
        Nullable fields: the measures of each image, and lists from which thresholds are chosen for the whole run.
    """
    overlaps, counts = pa.list_(pa.float32(), LEVELS), pa.list_(pa.int32(), 2 * (SCORE_BINS + 1))
    kinds = dict(zip(BY_THRESHOLD, (overlaps, overlaps, counts), strict=True))
    return [
        *(pa.field(name, pa.float32()) for name in LOCALISATION),
        *(pa.field(name, kind) for name, kind in kinds.items()),
        *(pa.field(f"{name}_{CENTRE}", kind) for name, kind in kinds.items()),
    ]


def _on_masks(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    energy = localisation.energy(maps, masks)
    pointing, ranked = localisation.pointing_game(maps, masks), localisation.relevance_rank(maps, masks)
    columns = (pointing.value, pointing.chance, energy.value, ranked.value, energy.chance)
    return dict(zip(LOCALISATION, columns, strict=True))


def _by_threshold(maps: Tensor, masks: Tensor, boxes: Sequence[Tensor]) -> dict[str, Tensor]:
    scores = scoremaps(maps, (masks.shape[1], masks.shape[2]))
    sweeps = [box_sweep(scores, boxes, every_contour=every) for every in (False, True)]
    return dict(zip(BY_THRESHOLD, (*sweeps, score_histogram(scores, masks).flatten(1)), strict=True))


def _part(batch: Explained, chosen: Ints) -> Explained:
    return Explained(*(values[chosen] for values in (batch.x, batch.maps, batch.targets, batch.seeds)))


def _measured(metric: Metric, subject: Subject, batch: Explained, *, own: bool) -> Measured | None:
    """What a metric says of the maps of a method, or of those that a control makes; None without images."""
    if len(batch) == 0:
        return None
    return metric(subject, batch if own else replace(batch, maps=subject.explain(batch.x, batch.targets, batch.seeds)))


def _curves(measured: Measured | None) -> list[list[float]]:
    """(N, S) of the metric's first part that is a curve; nothing where it has none."""
    parts = measured.parts.values() if measured else ()
    curve = next((part for part in parts if part.ndim == 2), None)
    return [] if curve is None else curve.tolist()


def _spread(values: Sequence[Any], chosen: Ints, count: int) -> list[Any]:
    """Values of the chosen images in a column of all; numbers that are not finite are None."""
    column: list[Any] = [None] * count
    for index, value in zip(chosen, values, strict=False):
        column[index] = value if isinstance(value, list) or math.isfinite(value) else None
    return column


def _with_columns(table: pa.Table, values: Values, *, every: int) -> pa.Table:
    """The table with values in its first rows, one image every `every` rows."""
    for name, column in values.items():
        index = table.schema.get_field_index(name)
        spread: list[Any] = [None] * table.num_rows
        spread[: len(column) * every : every] = column
        table = table.set_column(index, table.schema.field(index), pa.array(spread, table.schema.field(index).type))
    return table
