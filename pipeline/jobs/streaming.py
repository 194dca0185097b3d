"""Streaming a plan through a runner: what is missing, its progress, the sealing, and the count that must add up."""

import json
import time
from collections.abc import Sequence
from typing import Any

from pipeline.errors import InputError, IntegrityError, WorkerDiedError
from pipeline.jobs.isolation import isolate
from pipeline.jobs.metrics import JobMetrics
from pipeline.jobs.progress import Display, Tally
from pipeline.jobs.runners import Runner
from pipeline.stream import parts, sources
from pipeline.stream.ledger import Coverage
from pipeline.stream.shards import Shard
from pipeline.stream.steps import Steps, Work


def streamed(steps: Steps, plan: list[Shard], runner: Runner, shown: Display, metrics: JobMetrics) -> parts.Counts:
    """Does what is missing of a plan, and seals it.

    Args:
        steps: of the job.
        plan: every shard.
        runner: does the steps.
        shown: told how far it is.
        metrics: counted in.

    Returns:
        What the final files hold.

    Raises:
        RaylensError: see `pipeline.errors`; what is committed stays.
    """
    coverage = _stream(steps, plan, runner, shown, metrics)
    return _sealed(steps, plan, coverage, runner, shown)


def _stream(steps: Steps, plan: list[Shard], runner: Runner, shown: Display, metrics: JobMetrics) -> list[Coverage]:
    """Explains what is missing, then looks again."""
    coverage = steps.ledger.survey(plan)
    tally = _tally(plan, coverage, steps)

    def run(work: Sequence[Work], errors_allowed: int) -> None:
        for receipt in runner.stream(steps, work, errors_allowed=errors_allowed):
            _count(receipt, tally, metrics)
            shown.update(tally, runner.status())

    if work := missing(plan, coverage):
        if tally.earlier:
            shown.say("resuming", committed=tally.earlier, shards_left=len(work))
        shown.update(tally, runner.status())
        tally.started = time.monotonic()
        try:
            run(work, 0)
        except WorkerDiedError as error:
            shown.say("a worker died", reason=str(error), next="trying again, then image by image")
            isolate(steps, lambda: missing(plan, steps.ledger.survey(plan)), run)
        coverage = steps.ledger.survey(plan)
    _require_complete(plan, coverage)
    return coverage


def _require_complete(plan: list[Shard], coverage: list[Coverage]) -> None:
    left = missing(plan, coverage)
    if left:
        gaps = "; ".join(f"{item.shard.name} rows {', '.join(f'{g.first}..' for g in item.gaps)}" for item in left[:5])
        raise IntegrityError(
            f"{len(left)} shards are not complete ({gaps}) though every step ended well; nothing is lost: run the same "
            "command again, and report this"
        )


def missing(plan: list[Shard], coverage: list[Coverage]) -> list[Work]:
    """Shards that are not complete, with their gaps."""
    gaps = [(shard, tuple(covered.missing(shard.first))) for shard, covered in zip(plan, coverage, strict=True)]
    return [Work(shard, spans) for shard, spans in gaps if spans]


def _tally(plan: list[Shard], coverage: list[Coverage], steps: Steps) -> Tally:
    earlier = sum(span.last - span.first for covered in coverage for span in covered.spans)
    known = [
        covered.rows(shard.first) if covered.is_counted else _capped(shard.rows, steps.limit)
        for shard, covered in zip(plan, coverage, strict=True)
    ]
    if None not in known:
        return Tally(total=sum(rows or 0 for rows in known), earlier=earlier)
    per_image = sources.bytes_per_image(
        next(s for s, rows in zip(plan, known, strict=True) if rows is None), steps.storage
    )
    if per_image is None:
        return Tally(earlier=earlier)
    guess = [
        rows if rows is not None else _capped(int(shard.size / per_image), steps.limit) or 0
        for shard, rows in zip(plan, known, strict=True)
    ]
    return Tally(total=sum(guess), earlier=earlier)


def _capped(rows: int | None, limit: int | None) -> int | None:
    return rows if rows is None or limit is None else min(rows, limit)


def _count(receipt: dict[str, Any], tally: Tally, metrics: JobMetrics) -> None:
    codes = json.loads(receipt["codes"])
    tally.add(receipt["images"], codes)
    metrics.add(tally, receipt["images"], codes)


def _sealed(steps: Steps, plan: list[Shard], coverage: list[Coverage], runner: Runner, shown: Display) -> parts.Counts:
    """Writes the final files and checks that they hold every image once."""
    images = sum(covered.rows(shard.first) for shard, covered in zip(plan, coverage, strict=True))
    if images == 0:
        raise InputError("the input holds no images")
    shown.say("sealing", images=images)
    for name in ("explanations", "rejects"):
        steps.ledger.remove(name)  # of a sealing that was interrupted
    counts = parts.Counts()
    for sealed in runner.seal(steps, parts.groups(plan, coverage, steps.part_rows)):
        counts += sealed
    if counts.images != images or counts.explained + counts.rejected != images:
        raise IntegrityError(
            f"{images} images went in, {counts.explained} were explained and {counts.rejected} rejected; "
            "do not use the output, and report this"
        )
    return counts
