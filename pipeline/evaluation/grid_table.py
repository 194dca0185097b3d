"""The run of grids as numbers: a row of the metrics' table for each setting, and AggAtt's mean maps."""

from collections import defaultdict

import numpy as np
import pyarrow.compute as pc
import torch

from pipeline.evaluation.aggatt import EDGES, AggAtt, aggregate
from pipeline.evaluation.grids import CELLS
from pipeline.evaluation.significance import Floats
from pipeline.evaluation.table import Mean, MetricRow, better, mean
from pipeline.stream.finished import FinishedRun
from schemas.grids import SCORES, SETTINGS
from schemas.measures import CONTROLS

SOURCE = "Rao et al. 2022, eq. 1 and section 3"


def grid_rows(run: FinishedRun) -> list[MetricRow]:
    """Scores of each setting; its unit is the grid, whose cells are not independent.

    Args:
        run: of `schemas.grids.GRID`.

    Returns:
        Rows with the controls and the chance level, their p-values not corrected yet.
    """
    found: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for batch in run.batches(["sample_id", "setting", *SCORES]):
        values = zip(*(batch.column(name).to_pylist() for name in SCORES), strict=True)
        names = zip(batch.column("setting").to_pylist(), batch.column("sample_id").to_pylist(), strict=True)
        for (setting, name), scores in zip(names, values, strict=True):
            found[setting][name].append(list(scores))
    return [_row(setting, found[setting]) for setting in SETTINGS if setting in found]


def _row(setting: str, grids: dict[str, list[list[float]]]) -> MetricRow:
    own, *controls = np.array([np.mean(cells, axis=0) for cells in grids.values()], np.float64).T
    known: dict[str, Floats] = dict(zip(CONTROLS, controls, strict=True))
    return MetricRow(
        setting,
        higher_is_better=True,
        across_models=True,
        method=mean(own),
        controls={name: mean(values) for name, values in known.items()} | {"chance": Mean(1 / CELLS, None, len(own))},
        p_value=better(own, known["random"], higher=True),
        curve=(),
        source=SOURCE,
    )


def aggatt_rows(run: FinishedRun, *, cell: int = 0) -> dict[str, AggAtt]:
    """Mean maps of the grids, sorted by how well they are localised.

    Args:
        run: of `schemas.grids.GRID`.
        cell: that the maps explain; the paper shows the top left one.

    Returns:
        By setting; one with fewer grids than bins is left out.
    """
    found: dict[str, AggAtt] = {}
    for setting in SETTINGS:
        maps, scores = _maps(run, setting, cell)
        if len(maps) >= len(EDGES) - 1:
            found[setting] = aggregate(torch.stack(maps), torch.tensor(scores), cell=cell)
    return found


def _maps(run: FinishedRun, setting: str, cell: int) -> tuple[list[torch.Tensor], list[float]]:
    maps, scores = [], []
    for batch in run.batches(["setting", "cell", "score", "height", "width", "heatmap"]):
        wanted = pc.and_(pc.equal(batch.column("setting"), setting), pc.equal(batch.column("cell"), cell))
        for row in batch.filter(wanted).to_pylist():
            maps.append(torch.tensor(row["heatmap"]).view(row["height"], row["width"]))
            scores.append(row["score"])
    return maps, scores
