"""Sheets: files of grids that wait to be explained, and the steps that read them. They import no torch."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import RowError
from pipeline.stream.decode import Decoder
from pipeline.stream.ledger import STATE, Ledger
from pipeline.stream.shards import Sample, Shard
from pipeline.stream.steps import Steps, Work
from schemas.decoded import decoded_schema
from schemas.grids import SHEET

SIDE = 2
CELLS = SIDE * SIDE
ROWS = 8  # grids of a sheet: little is done again after a stop, and every worker has one to do
FOLDER = "sheets"
SETTING, CLASSES, IMAGES = "setting", "classes", "cells"
CARRIED = (SETTING, CLASSES, IMAGES)
"""Texts that go with a composed grid; the last two are JSON lists."""


def write(ledger: Ledger, grids: pa.Table) -> list[Shard]:
    """Writes sheets of grids; the same grids give the same files.

    Args:
        ledger: of the run that will explain them.
        grids: of `SHEET`.

    Returns:
        A shard a sheet.
    """
    shards = []
    for index, start in enumerate(range(0, grids.num_rows, ROWS)):
        part = grids.slice(start, ROWS)
        name = f"sheet-{index:04d}"
        ledger.write_table(part, STATE, FOLDER, f"{name}.parquet")
        shards.append(Shard(index, name, ledger.path(STATE, FOLDER), "parquet", rows=len(part), only=[(0, len(part))]))
    return shards


@dataclass(frozen=True)
class GridSteps(Steps):
    """Steps of a run whose images are grids; what follows the decoding is as for any other job."""

    @property
    def row_bytes(self) -> int:
        """Pixels of one grid."""
        return CELLS * super().row_bytes

    def decoded(self, work: Work) -> Iterator[pa.Table]:
        """Reads a sheet and composes what is missing of it; see `Steps.decoded`.

        Args:
            work: a sheet and its gaps.

        Yields:
            One table, see `composed_schema`.
        """
        yield self._table(work, [row for row in range(work.shard.rows or 0) if work.wants(row)], None)

    def refused(self, work: Work, error: RowError) -> pa.Table | None:
        """See `Steps.refused`."""
        row = work.gaps[0].first
        return self._table(work, [row], error) if row < (work.shard.rows or 0) else None

    def _table(self, work: Work, rows: list[int], error: RowError | None) -> pa.Table:
        """Composed grids, or the reason why one is none."""
        path = self.ledger.path(STATE, FOLDER, f"{work.shard.name}.parquet")
        sheet = pq.read_table(io.BytesIO(self.ledger.filesystem.cat_file(path)), schema=SHEET)
        decoder = Decoder(self.preprocessing, max_pixels=self.max_pixels, scaled=self.scaled_decoding)
        grids = [
            _composed(row, values, decoder, error)
            for row, values in zip(rows, sheet.take(rows).to_pylist(), strict=True)
        ]
        return _table([sample for sample, _ in grids], [pixels for _, pixels in grids], work.shard, decoder)


def composed_schema(shape: tuple[int, int, int]) -> pa.Schema:
    """Schema of composed grids.

    Args:
        shape: (H, W, C) of one cell.

    Returns:
        That of a decoded batch of images of twice the height and width.
    """
    height, width, channels = shape
    return decoded_schema((SIDE * height, SIDE * width, channels), CARRIED)


def _composed(
    row: int, values: dict[str, Any], decoder: Decoder, error: RowError | None
) -> tuple[Sample, NDArray[np.uint8] | None]:
    """A grid and its pixels; without them where an image of a cell cannot be had."""
    texts = {
        SETTING: values["setting"],
        CLASSES: json.dumps(values["classes"]),
        IMAGES: json.dumps(values["sample_ids"]),
    }
    sample = Sample(row, values["name"], "", b"", attributes=texts)
    try:
        if error is not None:
            raise error
        cells = [_cell(*one, decoder) for one in zip(values["images"], values["errors"], strict=True)]
    except RowError as reason:
        return sample._replace(error=reason), None
    top, bottom = (np.concatenate(cells[start : start + SIDE], axis=1) for start in (0, SIDE))
    return sample, np.concatenate([top, bottom])


def _cell(data: bytes | None, error: dict[str, str] | None, decoder: Decoder) -> NDArray[np.uint8]:
    if error is not None:
        raise RowError(error["code"], error["message"], stage="read")
    assert data is not None
    return decoder.decode(data).pixels


def _table(samples: list[Sample], pixels: list[NDArray[np.uint8] | None], shard: Shard, decoder: Decoder) -> pa.Table:
    schema = composed_schema(decoder.preprocessing.shape)
    size = schema.field("pixels").type.byte_width
    rows = [
        {
            "sample_id": sample.sample_id,
            "uri": sample.uri,
            "shard": shard.name,
            "row": sample.row,
            "pixels": bytes(size) if found is None else found.tobytes(),
            "stage": sample.error and sample.error.stage,
            "code": sample.error and sample.error.code,
            "message": sample.error and str(sample.error),
            **sample.attributes,
        }
        for sample, found in zip(samples, pixels, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schema)
