"""Jobs that go on from a finished run: they take its fields from it, and read some of its images again."""

from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import OutputError
from pipeline.flags import built, merged
from pipeline.jobs.explain import clear
from pipeline.jobs.progress import Display
from pipeline.jobs.run import Selection, run
from pipeline.stream.finished import FinishedRun, open_run
from pipeline.stream.ledger import STATE, Ledger
from pipeline.stream.shards import Shard
from schemas.job import IDENTITY, JobSpec
from schemas.run import RunRecord

Spec = TypeVar("Spec", bound=JobSpec)
HOW = ("runner", "ray_address", "workers", "max_workers", "cache", "storage", "metrics_port", "metrics_instance")
"""Fields that say how a job is executed: a job on images of an earlier one has its own."""
UNALIKE: dict[str, Any] = {
    "runtime": "torch",
    "max_reject_share": 1.0,
    "overwrite": False,
    "metrics_file": None,
    "metrics_pushgateway": None,
    "interval_h": None,
}
"""What a job on images of an earlier one does not take from it, such as the place of its metrics."""


def specification(spec: type[Spec], values: dict[str, Any]) -> Spec:
    """The specification that flags or a file describe; of a finished run, the fields of its job are its own.

    Args:
        spec: its class, with a field `explanations`.
        values: as `pipeline.flags.with_flags` gives them.

    Returns:
        The specification.

    Raises:
        SpecError: a field is wrong.
    """
    content = merged(spec, values)
    if "explanations" in content:
        found = open_run(str(content["explanations"]), content.get("storage")).record.spec
        own = {name: found[name] for name in IDENTITY if name in found and name in spec.model_fields}
        content = own | content
    return built(spec, content)


def same_job(spec: JobSpec, explained: FinishedRun, output: str, **changes: Any) -> JobSpec:
    """The job that explained, with another output.

    Args:
        spec: says how it is executed.
        explained: the run.
        output: address.
        **changes: further fields.

    Returns:
        The job.
    """
    saved = {name: value for name, value in explained.record.spec.items() if name in JobSpec.model_fields}
    how = {name: getattr(spec, name) for name in HOW}
    return JobSpec(**{**saved, **how, **UNALIKE, "output": output, **changes})


def plan_of(explained: FinishedRun) -> list[Shard]:
    """Where a run's images are.

    Args:
        explained: the run.

    Returns:
        Its shards.

    Raises:
        OutputError: the run does not say.
    """
    shards = Ledger(explained.address, explained.storage).plan()
    if shards is None:
        raise OutputError(f"{explained.address} has no {STATE}/plan.json, which says where its images are")
    return shards


def selected(job: JobSpec, selection: Selection, shown: Display, ready: Callable[[], None]) -> FinishedRun:
    """Runs a job over a selection, or what is missing of it; an output by another specification is replaced.

    Args:
        job: with `overwrite` it begins anew.
        selection: rows, and what is wanted of them.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.

    Returns:
        The finished run.
    """
    ledger = Ledger(job.output, job.storage)
    begun(job, selection, ledger)
    completed(job, selection, ledger, shown, ready)
    return open_run(job.output, job.storage)


def begun(job: JobSpec, selection: Selection, ledger: Ledger) -> bool:
    """Whether an output holds what this job has done of a selection; what another one has done is removed.

    Args:
        job: with `overwrite`, what it has done itself is removed as well.
        selection: rows, and what is wanted of them.
        ledger: of the job's output.

    Returns:
        Whether there is anything to go on from.
    """
    saved = ledger.read_json(STATE, "job.json")
    if job.overwrite or (saved is not None and saved["identity"] != selection.identity(job)):
        clear(ledger)
        return False
    return saved is not None


def completed(
    job: JobSpec, selection: Selection, ledger: Ledger, shown: Display, ready: Callable[[], None]
) -> RunRecord:
    """Runs what is missing of a selection.

    Args:
        job: whose output holds nothing of another, see `begun`.
        selection: rows, and what is wanted of them.
        ledger: of the job's output.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.

    Returns:
        The record of the whole, which may explain no image.

    Raises:
        RaylensError: see `pipeline.errors`; the same call goes on from where it stopped.
    """
    written = ledger.read_json("run.json")
    return RunRecord(**written) if written else run(job, ledger, shown, ready, selection)
