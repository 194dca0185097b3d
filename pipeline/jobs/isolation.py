"""Images that end their worker process: found one by one and rejected, so that none can stop a night's job."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.errors import RowError, WorkerDiedError
from pipeline.measuring import graph_of
from pipeline.stream.ledger import Span
from pipeline.stream.steps import Steps, Work

SUSPECT_BLOCKS = 16
ROUNDS = 8
MESSAGE = "the worker process died whenever this image was tried, alone too"

Run = Callable[[Sequence[Work], int], None]
"""Explains what is missing; the number of blocks that may be lost on the way, -1 for any."""


def isolate(steps: Steps, missing: Callable[[], list[Work]], run: Run) -> None:
    """Finishes a job in which workers die.

    First everything is tried again and a few blocks may be lost; then the rows of lost blocks are tried one by one;
    those that are lost even alone are committed as rejects with code `crashed`.

    Args:
        steps: of the job.
        missing: what is not committed at the moment.
        run: explains it.

    Raises:
        WorkerDiedError: more blocks are lost than single images can explain: the machines are at fault.
    """
    for _ in range(ROUNDS):
        if work := missing():
            run(work, SUSPECT_BLOCKS)
        left = missing()
        if not left:
            return
        singles = suspects(left, steps.block_rows)
        run(singles, -1)
        still = {(item.shard.name, gap.first) for item in missing() for gap in suspects_of(item, steps.block_rows)}
        for item in singles:
            if (item.shard.name, item.gaps[0].first) in still:
                _reject(steps, item)
    raise WorkerDiedError(
        f"workers still die after {ROUNDS} rounds of trying images one by one: look at the machines' memory, or run "
        "the job with --runner local"
    )


def suspects(work: Sequence[Work], block_rows: int) -> list[Work]:
    """One piece of work for each row that may have been lost.

    Args:
        work: what is missing.
        block_rows: of a gap without a known end, only so many rows are suspects.

    Returns:
        Work of one row each.
    """
    return [replace(item, gaps=(span,)) for item in work for span in suspects_of(item, block_rows)]


def suspects_of(item: Work, block_rows: int) -> list[Span]:
    """The suspect rows of one shard as spans of one row."""
    return [Span(row, row + 1) for gap in item.gaps for row in range(gap.first, min(gap.last, gap.first + block_rows))]


def _reject(steps: Steps, item: Work) -> None:
    """Commits one row as a reject; does nothing for a row past the shard's end."""
    rejected = steps.refused(item, RowError("crashed", MESSAGE, stage="graph"))
    if rejected is not None:
        steps.commit(graph_of(steps, device="cpu")(rejected))
