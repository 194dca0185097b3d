"""What must hold of an output whatever happened on the way to it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from samples import rows, state

from schemas.run import RunRecord

Row = dict[str, Any]


def check(output: Path, undisturbed: list[Row], *, elsewhere: bool = False) -> None:
    """Every image once, in files that plain pyarrow reads, counted right, equal bit for bit, and nothing beside them.

    Args:
        output: of a job without rejects.
        undisturbed: rows of the same job without faults.
        elsewhere: whether its input lay at another address, which its rows name.
    """
    found = RunRecord(**state(output, "run.json"))
    assert (found.status, found.images, found.explained, found.rejected) == ("complete", *[len(undisturbed)] * 2, 0)
    assert found.seconds >= 0
    files = sorted((output / "explanations").iterdir())
    assert [file.suffix for file in files] == [".parquet"] * found.parts
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == found.rows
    assert explained(output, elsewhere=elsewhere) == [without(row, "uri") if elsewhere else row for row in undisturbed]
    assert not list(output.rglob(".*")), "half a file is left"
    assert not (output / "_raylens" / "fragments").exists(), "fragments are left"


def explained(output: Path, *, elsewhere: bool = False) -> list[Row]:
    """The rows of an output, as `check` compares them."""
    return [without(row, "uri") if elsewhere else row for row in rows(output)]


def without(row: Row, name: str) -> Row:
    """A row that lacks one column."""
    return {column: value for column, value in row.items() if column != name}
