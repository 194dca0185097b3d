"""What is measured on grids of images: the specification, and the rows that a run of it writes."""

from typing import get_args

import pyarrow as pa
from pydantic import PositiveInt

from schemas.explanations import IDENTITY, REASON
from schemas.graph import Frozen
from schemas.measures import CONTROLS, Setting

SETTINGS: tuple[Setting, ...] = get_args(Setting)


class GridsSpec(Frozen):
    """Grids of one run; equal specifications give equal grids.

    Attributes:
        grids: of each setting.
        settings: each once.
        shards: most shards that their images lie in.
        seed: of the draw.
    """

    grids: PositiveInt
    settings: tuple[Setting, ...]
    shards: PositiveInt
    seed: int = 0


MISSING = pa.struct([("code", pa.string()), ("message", pa.string())])
SHEET = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("classes", pa.list_(pa.int32()), nullable=False, metadata={"unit": "of the four cells, row by row"}),
        pa.field("sample_ids", pa.list_(pa.string()), nullable=False),
        pa.field("images", pa.list_(pa.binary()), nullable=False, metadata={"unit": "encoded; null: see errors"}),
        pa.field("errors", pa.list_(MISSING), nullable=False, metadata={"unit": "why an image is missing, or null"}),
    ]
)
"""A grid a row, before it is explained; sheets are removed when the run is sealed."""
SCORES = ("score", *(f"score_{control}" for control in CONTROLS))
GRID = pa.schema(
    [
        *IDENTITY,
        pa.field("rank", pa.int32(), metadata={"unit": "number of the scored cell in its grid"}),
        pa.field("label", pa.int32(), metadata={"unit": "none: a grid has no label"}),
        pa.field("prediction", pa.int32(), metadata={"unit": "none: a grid is not classified"}),
        pa.field("setting", pa.string()),
        pa.field("cell", pa.int32(), metadata={"unit": "0 top left, 1 top right, 2 bottom left, 3 bottom right"}),
        pa.field("target", pa.int32(), metadata={"unit": "class of the cell, which the map explains"}),
        pa.field("cells", pa.list_(pa.string()), metadata={"unit": "sample_id of the image in each cell"}),
        *[pa.field(name, pa.float32(), metadata={"unit": "share of the map's mass in the cell"}) for name in SCORES],
        pa.field("height", pa.int32(), metadata={"unit": "rows of the map"}),
        pa.field("width", pa.int32(), metadata={"unit": "columns of the map"}),
        pa.field("heatmap", pa.list_(pa.float32()), metadata={"unit": "map of the whole grid, row by row"}),
        *REASON,
    ]
)
"""Fragments of a run of grids: a scored cell a row, or a grid that could not be explained."""
