"""The explanation graph with embeddings: the same rows, and features of the image, of its evidence, and of controls."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import records
from pipeline.bias import description
from pipeline.bias.embedder import Embedder
from pipeline.bias.masks import evidence_masks, smooth_masks
from pipeline.graph import Columns, ExplanationGraph, seed_of
from pipeline.model import load
from schemas.embeddings import COLUMNS, DESCRIPTIONS, SHARE, EmbedSpec, Space
from schemas.graph import GraphSpec


class EmbeddingGraph(ExplanationGraph):
    """Explains as `ExplanationGraph` does, and embeds what the map of the first target points at.

    Args:
        spec: what to compute; without its own embedding.
        embed: what to embed.
        storage: fsspec options for remote weights.
        cache: see `ExplanationGraph`.
    """

    def __init__(
        self, spec: GraphSpec, embed: EmbedSpec, storage: Mapping[str, Any] | None = None, *, cache: str | None = None
    ) -> None:
        super().__init__(spec, storage, cache=cache)
        self.embed = embed

    @cached_property
    def embedder(self) -> Embedder:
        """The network whose features are taken."""
        if self.embed.model is None:
            return Embedder(self.model)
        device, precision = self.spec.device, self.spec.precision
        return Embedder(load(self.embed.model, device=device, precision=precision, storage=self._storage))

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows that `__call__` returns."""
        looks = pa.list_(pa.float32(), description.width(self.model.preprocessing.channels))
        described = [pa.field(name, looks) for name in DESCRIPTIONS.values()]
        embedded = [
            pa.field(COLUMNS[space], pa.list_(pa.float32(), self.embedder.width)) for space in self.embed.spaces
        ]
        return pa.schema([*super().schema, pa.field(SHARE, pa.float32()), *described, *embedded])

    def rows(self, images: records.Rows, found: Columns) -> pa.Table:
        """See `ExplanationGraph.rows`; embeddings stand beside the first target, null where the mask is empty."""
        table = super().rows(images, found)
        finite = np.flatnonzero(found["finite"])
        if len(finite) == 0:
            return table
        every = found["targets"].shape[1]
        pixels = torch.tensor(images.pixels(self.model.preprocessing.shape)[finite], device=self.spec.device)
        evidence = evidence_masks(
            torch.tensor(found["heatmaps"][finite, 0]), self.model.preprocessing.size, kept=self.embed.kept
        ).to(pixels.device)
        seeds = [seed_of(images.sample_ids[index]) for index in finite]
        first = np.arange(len(finite)) * every
        share = evidence.float().mean(dim=(1, 2)).cpu().numpy()
        table = _with_column(table, SHARE, pa.array(share), first)
        columns = {
            name: (space, description.describe(pixels, self._masks(space, evidence, seeds)))
            for space, name in DESCRIPTIONS.items()
        } | {
            COLUMNS[space]: (space, self.embedder(pixels, self._masks(space, evidence, seeds)))
            for space in self.embed.spaces
        }
        for name, (space, values) in columns.items():
            missing = (share == 0) & (space != "image")
            table = _with_column(table, name, _vectors(values.cpu().numpy(), missing), first)
        return table

    def _masks(self, space: Space, evidence: Tensor, seeds: list[int]) -> Tensor | None:
        """(N, H, W) of what a space keeps; None for everything."""
        if space == "image":
            return None
        if space == "evidence":
            return evidence
        if space == "rest":
            return ~evidence
        counts = evidence.sum(dim=(1, 2)).tolist()
        size = (evidence.shape[1], evidence.shape[2])
        masks = smooth_masks(counts, seeds, size, cells=self.method.shape, seed=self.embed.seed)
        return masks.to(evidence.device)


def _vectors(features: NDArray[np.float32], missing: NDArray[np.bool_]) -> pa.Array:
    """(N, D) as lists of D; null where a row is missing."""
    flat = pa.array(np.ascontiguousarray(features).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, features.shape[1], mask=pa.array(missing))


def _with_column(table: pa.Table, name: str, values: pa.Array, rows: NDArray[np.int64]) -> pa.Table:
    """The table with values in some rows of a column, and null in the others."""
    place = np.full(table.num_rows, -1)
    place[rows] = np.arange(len(rows))
    index = table.schema.get_field_index(name)
    column = values.take(pa.array(place, mask=place < 0))
    return table.set_column(index, table.schema.field(index), column.cast(table.schema.field(index).type))
