"""The explanation graph over grids of images: how much of each map lies in the cell of the class that it explains."""

import json
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.evaluation.controls import edge_maps, random_maps
from pipeline.evaluation.grid_settings import GridScorer, GridScores
from pipeline.evaluation.grids import CELLS, SIDE, localisation_score
from pipeline.graph import ExplanationGraph, seed_of
from pipeline.records import not_finite, pixels, with_schema
from pipeline.stream.sheets import CLASSES, IMAGES, SETTING
from schemas.explanations import IDENTITY, REASON
from schemas.grids import GRID, SETTINGS

KEPT = [field.name for field in (*IDENTITY, *REASON)]


class GridGraph(ExplanationGraph):
    """Explains composed grids by the specification's method, in the setting that each row names."""

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows that `__call__` returns."""
        return GRID

    @cached_property
    def _scorers(self) -> dict[str, GridScorer]:
        return {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Explains the class of every scored cell.

        Args:
            batch: of `pipeline.stream.sheets.composed_schema`.

        Returns:
            Of `schemas.grids.GRID`: a row a scored cell, and a row a grid that cannot be explained.
        """
        whole = batch.filter(pc.is_null(batch.column("code")))
        parts = [batch.filter(pc.is_valid(batch.column("code"))).select(KEPT)]
        at_once = max(1, self.spec.batch_size // CELLS)
        for setting in SETTINGS:
            grids = whole.filter(pc.equal(whole.column(SETTING), setting))
            parts += [
                self._explained(setting, grids.slice(start, at_once)) for start in range(0, grids.num_rows, at_once)
            ]
        return pa.concat_tables([with_schema(part, self.schema) for part in parts])

    def _explained(self, setting: str, grids: pa.Table) -> pa.Table:
        """Rows of some grids of one setting."""
        classes = [json.loads(text) for text in grids.column(CLASSES).to_pylist()]
        names = grids.column("sample_id").to_pylist()
        x = self._input(grids)
        seeds = torch.tensor([seed_of(name) for name in names], device=x.device)
        found = self._scorer(setting)(x, torch.tensor(classes, device=x.device), seeds)
        finite = found.maps.isfinite().flatten(1).all(dim=1).tolist()
        controls = _controls(x, names, found, self.spec.seed)
        rows: list[dict[str, Any]] = []
        for index, grid in enumerate(grids.drop_columns(["pixels"]).to_pylist()):
            if not finite[index]:
                rows.append(_not_finite(grid, self.spec.method))
                continue
            rows += [
                _row(grid, rank, cell, classes[index][cell], found.maps[index, rank])
                | {name: float(values[index, rank]) for name, values in {"score": found.scores, **controls}.items()}
                for rank, cell in enumerate(found.cells)
            ]
        return pa.Table.from_pylist(rows, schema=GRID)

    def _input(self, grids: pa.Table) -> Tensor:
        """(N, C, 2 H, 2 W) normalised."""
        preprocessing = self.model.preprocessing
        height, width, channels = preprocessing.shape
        weights = next(self.model.module.parameters())
        seen = torch.tensor(pixels(grids, (SIDE * height, SIDE * width, channels)), device=weights.device)
        return preprocessing.normalise(seen, weights.dtype)

    def _scorer(self, setting: str) -> GridScorer:
        if setting not in self._scorers:
            self._scorers[setting] = GridScorer(setting, self.model, self.bound)
        return self._scorers[setting]


def _controls(x: Tensor, names: list[str], found: GridScores, seed: int) -> dict[str, Tensor]:
    """(N, P) scores of maps that know nothing, by column: a random one for every cell, and the edges of the grid."""
    count = len(found.cells)
    size = (found.maps.shape[2], found.maps.shape[3])
    seeds = torch.tensor([seed_of(f"{name}:{cell}") for name in names for cell in found.cells])
    noise = random_maps(x, seeds, seeds, size=size, seed=seed)
    edges = edge_maps(x, seeds, seeds).repeat_interleave(count, dim=0)
    cells = torch.tensor(found.cells, device=x.device).repeat(len(x))
    return {
        f"score_{name}": localisation_score(maps, cells).view(-1, count)
        for name, maps in (("random", noise), ("edges", edges))
    }


def _row(grid: dict[str, Any], rank: int, cell: int, target: int, heatmap: Tensor) -> dict[str, Any]:
    height, width = heatmap.shape
    return {name: grid[name] for name in KEPT} | {
        "rank": rank,
        "setting": grid[SETTING],
        "cell": cell,
        "target": target,
        "cells": json.loads(grid[IMAGES]),
        "height": height,
        "width": width,
        "heatmap": heatmap.float().flatten().cpu().numpy(),
    }


def _not_finite(grid: dict[str, Any], method: str) -> dict[str, Any]:
    error = not_finite(method)
    return {name: grid[name] for name in KEPT} | {"stage": error.stage, "code": error.code, "message": str(error)}
