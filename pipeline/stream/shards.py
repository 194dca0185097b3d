"""A shard: what is listed, read by one task and resumed. And a sample: one image's bytes, or why there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.errors import RowError

Format = Literal["folder", "webdataset", "parquet", "manifest"]


@dataclass(frozen=True)
class Shard:
    """A tar, a run of row groups of a Parquet file, or a slice of a listing.

    Attributes:
        index: position in the plan.
        name: for people and for the `shard` column, unique in the plan.
        address: of the file that holds it.
        kind: decides the reader.
        first: number of its first row.
        rows: number of rows; None where only reading tells (tars).
        size: bytes, or 0 where it is not known; for the estimate of progress.
        options: what the reader needs besides (columns, row groups).
        only: spans [first, last) of the rows to take, sorted; None for all.
    """

    index: int
    name: str
    address: str
    kind: Literal["webdataset", "parquet", "listing"]
    first: int = 0
    rows: int | None = None
    size: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    only: Sequence[tuple[int, int]] | None = None

    def takes(self, row: int) -> bool:
        """Whether a row is asked for."""
        return self.only is None or any(first <= row < last for first, last in self.only)

    def position(self, row: int) -> int:
        """How many of the rows that are asked for come before a row."""
        spans = [(self.first, row)] if self.only is None else self.only
        return sum(min(row, last) - first for first, last in spans if first < row)


class Sample(NamedTuple):
    """One image as it was found.

    Attributes:
        row: number in the shard, from `Shard.first`.
        sample_id: from the data.
        uri: where the bytes are, for people.
        data: encoded image; empty with an error.
        label: as text, or None.
        error: why there is no image, or None.
        attributes: text by name, where the job carries columns along.
    """

    row: int
    sample_id: str
    uri: str
    data: bytes
    label: str | None = None
    error: RowError | None = None
    attributes: Mapping[str, str] = {}


def shard_error(shard: Shard, row: int, code: str, message: str) -> Sample:
    """One row for all that cannot be read of a shard.

    Args:
        shard: that is damaged, or gone.
        row: the first that is missing.
        code: key of `schemas.rejects.REJECT_CODES`.
        message: what was found.

    Returns:
        A sample without an image.
    """
    return Sample(row, f"{shard.name}#{row}", shard.address, b"", None, RowError(code, message, stage="read"))
