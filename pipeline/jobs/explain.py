"""The main job: explain every image of a data set, exactly once."""

from typing import Any

from pipeline.errors import OutputError, RejectLimitError
from pipeline.jobs.cluster import cluster
from pipeline.jobs.progress import Display, display
from pipeline.logs import named_run
from pipeline.stream.ledger import STATE, Ledger
from schemas.job import JobSpec
from schemas.run import RunRecord


def explain(spec: JobSpec) -> RunRecord:
    """Runs a job, or what is missing of it.

    Args:
        spec: what to do.

    Returns:
        The record that was written to `run.json`.

    Raises:
        RaylensError: see `pipeline.errors`; what is committed stays, and the same call goes on from there.
    """
    with named_run():
        return _explained(spec, display(spec.progress))


def _explained(spec: JobSpec, shown: Display) -> RunRecord:
    try:
        ledger = Ledger(spec.output, spec.storage)
        if spec.overwrite:
            clear(ledger)
        record = finished(ledger, spec)
        if record is not None:
            ledger.forget()  # for a driver that was killed before it did
            shown.say("nothing to do", output=spec.output, images=record.images, finished=record.finished)
        else:
            with cluster(spec) as ready:
                from pipeline.jobs.run import run  # loads torch, while the cluster starts

                record = run(spec, ledger, shown, ready)
        return judged(record, spec)
    finally:
        shown.close()


def finished(ledger: Ledger, spec: JobSpec) -> RunRecord | None:
    """The record of a job that is complete, or None.

    Args:
        ledger: of the output.
        spec: must agree with the one that the output was made by.

    Returns:
        The record of `run.json`.

    Raises:
        OutputError: the output belongs to another job; the message shows the difference.
    """
    saved = ledger.read_json(STATE, "job.json")
    if saved is not None:
        _same_job(saved["identity"], spec)
    record = ledger.read_json("run.json")
    if record is None:
        return None
    if saved is None:
        raise OutputError(
            f"{spec.output} has a run.json but no {STATE}/job.json; choose another --output or --overwrite"
        )
    return RunRecord(**record)


def _same_job(saved: dict[str, Any], spec: JobSpec) -> None:
    now = spec.identity()
    differences = [
        f"  {name}: {saved.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if differences:
        raise OutputError(
            f"{spec.output} was made by another job:\n" + "\n".join(differences) + "\n"
            "choose another --output, or remove what is there with --overwrite"
        )


def clear(ledger: Ledger) -> None:
    """Removes what an earlier job wrote; the record first, so that no half-removed output looks complete."""
    for name in ("run.json", "explanations", "rejects"):
        ledger.remove(name)
    ledger.forget()
    ledger.remove(STATE)


def judged(record: RunRecord, spec: JobSpec) -> RunRecord:
    """The record, unless too many images were rejected.

    Args:
        record: of a complete job.
        spec: holds the limit.

    Returns:
        The record.

    Raises:
        RejectLimitError: the share of rejects is over the limit; the output is complete all the same.
    """
    share = record.rejected / max(1, record.images)
    if share > spec.max_reject_share:
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(record.rejects_by_code.items()))
        raise RejectLimitError(
            f"{record.rejected} of {record.images} images were rejected ({share:.2%}, limit "
            f"{spec.max_reject_share:.2%}): {reasons}. See {spec.output}/rejects; if that is expected, raise "
            "--max-reject-share"
        )
    return record
