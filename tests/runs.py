"""Finished runs without a model: explanations written as a job writes them, from columns that a test chooses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.heatmap import statistics
from pipeline.stream.decode import content_digest
from schemas.explanations import CONTENT, SCHEMA_VERSION, explanations_schema
from schemas.run import RunRecord

GRAPH = "0123456789abcdef"


def columns(rows: int, seed: int = 0, *, classes: int = 4, grid: tuple[int, int] = (6, 6)) -> dict[str, Any]:
    """Explanations of one distribution: predictions from random logits, maps with a blob, and embeddings.

    Args:
        rows: number of images.
        seed: of everything; it is also in the sample ids.
        classes: of the model.
        grid: rows and columns of a map.

    Returns:
        Arrays by column; a test may replace some, or add attributes, before it writes them.
    """
    generator = np.random.default_rng(seed)
    label = generator.integers(classes, size=rows)
    logits = generator.normal(size=(rows, classes)) + 2.0 * np.eye(classes)[label]
    y, x = np.mgrid[0 : grid[0], 0 : grid[1]] / np.array(grid)[:, None, None]
    centre = generator.normal(0.45, 0.15, size=(rows, 2))
    distance = (y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2
    maps = np.exp(-distance / 0.04) + 0.05 * generator.normal(size=(rows, *grid))
    return {
        "sample_id": np.array([f"s{seed}/{i:07d}" for i in range(rows)], dtype=object),
        "width": generator.integers(300, 600, size=rows),
        "height": generator.integers(300, 600, size=rows),
        "label": label,
        **predicted(logits),
        "heatmap": maps.astype(np.float32),
        "embedding": generator.normal(size=(rows, 8)).astype(np.float32),
    }


def predicted(logits: np.ndarray) -> dict[str, Any]:
    """The columns that follow from (N, K) logits."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    best = np.argsort(-probability, axis=1, kind="stable")[:, :5]
    scores = np.take_along_axis(probability, best, axis=1)
    return {
        "prediction": best[:, 0],
        "score": scores[:, 0],
        "top5": best,
        "top5_scores": scores,
        "margin": scores[:, 0] - scores[:, 1],
        "entropy": -(probability * np.log(np.maximum(probability, 1e-30))).sum(axis=1),
    }


def table(values: dict[str, Any]) -> pa.Table:
    """The rows as `raylens explain` writes them; a label below 0 is null."""
    rows, grid = len(values["prediction"]), values["heatmap"].shape[1:]
    names = explanations_schema(grid, "float32", 1).names
    attributes = [name for name in values if name not in names]
    embedding = values.get("embedding")
    schema = explanations_schema(grid, "float32", None if embedding is None else embedding.shape[1], attributes)
    maps = torch.from_numpy(np.ascontiguousarray(values["heatmap"]))
    summary = {name: value.numpy() for name, value in statistics(maps).items()}
    filled: dict[str, Any] = {
        "uri": values["sample_id"],
        CONTENT: np.array([content_digest(str(name).encode()) for name in values["sample_id"]], dtype=object),
        "shard": np.full(rows, "shard-000"),
        "row": np.arange(rows),
        "prediction_name": np.array([f"class {i}" for i in values["prediction"]], dtype=object),
        "rank": np.zeros(rows),
        "target": values["prediction"],
        "target_score": values["score"],
        "method": np.full(rows, "gradcam"),
        "layer": np.full(rows, "features"),
        "heatmap_scale": np.ones(rows),
        "self_check": np.full(rows, np.nan),
        **summary,
        **values,
    }
    if values.get(CONTENT, "") is None:  # a run of an older raylens
        schema = schema.remove(schema.get_field_index(CONTENT))
    return pa.table([_array(np.asarray(filled[field.name]), field.type) for field in schema], schema=schema)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.FixedShapeTensorType):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1).astype(np.float32))
        storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(kind.shape)))
        return pa.ExtensionArray.from_storage(kind, storage)
    if values.ndim == 2:
        flat = pa.array(values.reshape(-1), kind.value_type)
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32()), flat)
    if values.dtype.kind == "O" or values.dtype.kind == "U":
        return pa.array(values.tolist(), kind)
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return pa.array(values, kind, mask=missing, safe=False)


def write(folder: Path, values: dict[str, Any], *, files: int = 1, **fields: Any) -> str:
    """Writes a finished run and returns its address.

    Args:
        folder: of the output.
        values: see `columns`; `content_digest` None leaves the column out, else it follows from the ids.
        files: number of explanation files.
        **fields: of `run.json`, where they differ from the usual.

    Returns:
        The folder as text.
    """
    rows = table(values)
    (folder / "explanations").mkdir(parents=True)
    for index, part in enumerate(np.array_split(np.arange(rows.num_rows), files)):
        some = rows.take(pa.array(part)).replace_schema_metadata({"graph_digest": fields.get("graph_digest", GRAPH)})
        pq.write_table(some, folder / "explanations" / f"{index:05d}-000.parquet")
    found = record(rows, files, **fields)
    (folder / "run.json").write_text(json.dumps(found.model_dump(mode="json")))
    return str(folder)


def record(rows: pa.Table, files: int, **fields: Any) -> RunRecord:
    """What `run.json` says of these rows."""
    images = sum(rank == 0 for rank in rows.column("rank").to_pylist())
    rejected = fields.pop("rejected", 0)
    values: dict[str, Any] = {
        "raylens": "0.1.0",
        "schema_version": SCHEMA_VERSION,
        "status": "complete",
        "job_digest": "0" * 16,
        "graph_digest": GRAPH,
        "images": images + rejected,
        "explained": images,
        "rejected": rejected,
        "rejects_by_code": {"corrupt": rejected} if rejected else {},
        "rows": rows.num_rows,
        "labelled": images - rows.column("label").null_count,
        "correct": 0,
        "shards": 1,
        "parts": files,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "seconds": 60.0,
        "versions": {"torch": "2"},
        "model": {
            "source": "timm:resnet18",
            "weights_sha256": "a" * 64,
            "labels": [f"class {i}" for i in range(4)],
            "layer": {"name": "features"},
        },
        "spec": {"method": "gradcam", "target": "predicted", "input": ["a"]},
    }
    return RunRecord(**{**values, **fields})
