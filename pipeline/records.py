"""Arrow rows of explanations and rejects, from decoded rows and the graph's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline.errors import ModelError, RowError
from pipeline.heatmap import scaled_for_half
from schemas.explanations import IDENTITY, PIXELS, REASON, fragment_schema

if TYPE_CHECKING:
    from pipeline.graph import Columns, ExplanationGraph
    from pipeline.model import LoadedModel

CARRIED = [field.name for field in (*IDENTITY, *PIXELS)]
REJECTED = pa.schema([*IDENTITY, *PIXELS, *REASON])


@dataclass(frozen=True)
class Rows:
    """Decoded images with their labels resolved to class indices.

    Attributes:
        table: of `decoded_schema`, images only.
        label: (N,) int64 class indices, -1 without a label.
    """

    table: pa.Table
    label: NDArray[np.int64]

    def slice(self, start: int, count: int) -> Rows:
        """At most `count` rows from `start`; a view."""
        return Rows(self.table.slice(start, count), self.label[start : start + count])

    @property
    def sample_ids(self) -> list[str]:
        """Identities, in order."""
        ids: list[str] = self.table.column("sample_id").to_pylist()
        return ids

    @property
    def labels(self) -> list[int]:
        """Class indices, 0 where there is no label."""
        return [int(label) for label in self.label.clip(min=0)]

    def pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """(N, H, W, C) uint8; see `pixels`."""
        return pixels(self.table, shape)


def pixels(table: pa.Table, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels of decoded rows.

    Args:
        table: of N rows of `decoded_schema`.
        shape: (H, W, C) of one image.

    Returns:
        (N, H, W, C) uint8, a view of the table where it is one chunk.
    """
    column = table.column("pixels").combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    size = shape[0] * shape[1] * shape[2]
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return flat[array.offset * size : (array.offset + len(array)) * size].reshape(-1, *shape)


def schema(graph: ExplanationGraph) -> pa.Schema:
    """Schema of the rows a graph returns."""
    spec = graph.spec
    return fragment_schema(graph.method.shape, spec.heatmap_dtype, graph.embedding_width, spec.attributes)


def split(batch: pa.Table, model: LoadedModel, *, needs_label: bool) -> tuple[pa.Table, Rows]:
    """Separates images from rejects, and resolves labels.

    Args:
        batch: of `decoded_schema`.
        model: knows the classes.
        needs_label: an image without a label is a reject.

    Returns:
        Reject rows (identity, size and reason), and the images.
    """
    resolved = [_label(text, model, needed=needs_label) for text in batch.column("label").to_pylist()]
    decoded = np.asarray(pc.is_null(batch.column("code")))
    bad_label = np.array([isinstance(label, RowError) for label in resolved], dtype=bool) & decoded
    good = decoded & ~bad_label
    labels = np.array([-1 if isinstance(label, RowError) else label for label in resolved], dtype=np.int64)
    errors = [label for label, bad in zip(resolved, bad_label, strict=True) if bad and isinstance(label, RowError)]
    earlier = batch.filter(pa.array(~decoded)).select(REJECTED.names)
    rejects = pa.concat_tables([earlier, rejected(batch.filter(pa.array(bad_label)), errors)])
    return rejects, Rows(batch.filter(pa.array(good)), labels[good])


def rejected(rows: pa.Table, errors: list[RowError]) -> pa.Table:
    """Rows with the reason why they are not explained.

    Args:
        rows: with the identity columns.
        errors: one a row.

    Returns:
        Identity, size and reason.
    """
    reasons = {
        "stage": pa.array([error.stage for error in errors], pa.string()),
        "code": pa.array([error.code for error in errors], pa.string()),
        "message": pa.array([str(error) for error in errors], pa.string()),
    }
    return pa.table({**{name: rows.column(name) for name in CARRIED}, **reasons}, schema=REJECTED)


def _label(text: str | None, model: LoadedModel, *, needed: bool) -> int | RowError:
    """The class index of a label, -1 without one, or why it is none."""
    if text is None:
        return RowError("missing_label", "target is `label` and the image has none") if needed else -1
    try:
        return model.class_index(text)
    except ModelError as error:
        return RowError("label_out_of_range", str(error))


def explained(rows: Rows, columns: Columns, graph: ExplanationGraph) -> pa.Table:
    """The rows of one graph call: k explanations an image, or one reject where a number is not finite.

    Args:
        rows: N decoded images.
        columns: what the graph said of them.
        graph: its method, layer, labels and storage type.

    Returns:
        Of the graph's schema without order of columns; missing columns are null.
    """
    finite = columns["finite"]
    k = columns["targets"].shape[1]
    index = np.repeat(np.flatnonzero(finite), k)
    rank = np.tile(np.arange(k), int(finite.sum()))
    values = {**_carried(rows, index, graph.spec.attributes), **_prediction(rows, columns, graph, index)}
    values |= _explanation(columns, graph, index, rank) | _heatmap(columns, graph, index, rank)
    table = pa.table(values).select([name for name in graph.schema.names if name in values])
    bad = rows.table.filter(pa.array(~finite))
    errors = [not_finite(graph.spec.method)] * bad.num_rows
    return pa.concat_tables([with_schema(part, graph.schema) for part in (table, rejected(bad, errors))])


def not_finite(method: str) -> RowError:
    """Why an image has no explanation where its logits or its map hold NaN or infinity."""
    message = f"method {method} or the network gave a value that is not a finite number"
    return RowError("non_finite", message, stage="graph")


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with every column of the schema, in its order; columns it lacks are null, or zeros for heatmaps."""
    columns = [
        table.column(field.name).cast(field.type) if field.name in table.schema.names else _empty(field, table.num_rows)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _empty(field: pa.Field, count: int) -> pa.Array:
    if isinstance(field.type, pa.FixedShapeTensorType):
        shape = (count, *field.type.shape)
        return _tensor(np.zeros(shape, dtype=field.type.value_type.to_pandas_dtype()))
    return pa.nulls(count, field.type)


def _tensor(values: NDArray[Any]) -> pa.Array:
    """(M, h, w) as Arrow's canonical fixed-shape tensor, also for M = 0."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
    flat = pa.array(values.reshape(-1), kind.value_type)
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def _lists(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(M, n) as lists of n; a row with NaN is null."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    missing = np.isnan(values).any(axis=1) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=pa.array(missing))


def _carried(rows: Rows, index: NDArray[np.int64], attributes: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    return {name: rows.table.column(name).take(pa.array(index)) for name in (*CARRIED, *attributes)}


def _prediction(rows: Rows, columns: Columns, graph: ExplanationGraph, index: NDArray[np.int64]) -> dict[str, pa.Array]:
    label, top_scores = rows.label[index], columns["top_scores"][index]
    runner_up = top_scores[:, 1] if top_scores.shape[1] > 1 else np.zeros(len(index), np.float32)
    prediction = columns["prediction"][index]
    return {
        "label": pa.array(label, pa.int32(), mask=label < 0),
        "prediction": pa.array(prediction, pa.int32()),
        "prediction_name": pa.array([graph.model.labels[i] for i in prediction], pa.string()),
        "score": pa.array(top_scores[:, 0], pa.float32()),
        "top5": _lists(columns["top"][index], pa.int32()),
        "top5_scores": _lists(top_scores, pa.float32()),
        "margin": pa.array(top_scores[:, 0] - runner_up, pa.float32()),
        "entropy": pa.array(columns["entropy"][index], pa.float32()),
    }


def _explanation(
    columns: Columns, graph: ExplanationGraph, index: NDArray[np.int64], rank: NDArray[np.int64]
) -> dict[str, pa.Array]:
    agnostic = np.full(len(index), not graph.method.traits.discriminative)
    values = {
        "rank": pa.array(rank, pa.int32()),
        "target": pa.array(columns["targets"][index, rank], pa.int32(), mask=agnostic),
        "target_score": pa.array(columns["target_scores"][index, rank], pa.float32(), mask=agnostic),
        "method": pa.array([graph.spec.method] * len(index), pa.string()),
        "layer": pa.array([graph.model.layer.name] * len(index), pa.string()),
    }
    if columns["check"] is not None:
        values["self_check"] = pa.array(columns["check"][index, rank], pa.float32())
    if columns["embedding"] is not None:
        flat = pa.array(columns["embedding"][index].reshape(-1), pa.float32())
        values["embedding"] = pa.FixedSizeListArray.from_arrays(flat, columns["embedding"].shape[1])
    return values


def _heatmap(
    columns: Columns, graph: ExplanationGraph, index: NDArray[np.int64], rank: NDArray[np.int64]
) -> dict[str, pa.Array]:
    maps = columns["heatmaps"][index, rank]
    scale = np.ones(len(maps), np.float32)
    if graph.spec.heatmap_dtype == "float16":
        scaled, scales = scaled_for_half(torch.from_numpy(maps))
        maps, scale = scaled.numpy().astype(np.float16), scales.numpy()
    numbers = {name: value[index, rank] for name, value in columns["statistics"].items()}
    values = {
        name: pa.array(value, pa.float32(), mask=np.isnan(value)) for name, value in numbers.items() if name != "box"
    }
    return {
        "heatmap": _tensor(maps),
        "heatmap_scale": pa.array(scale),
        "box": _lists(numbers["box"], pa.float32()),
        **values,
    }
