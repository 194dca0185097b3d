"""Where a job's steps run: Ray Data on a cluster, or this process."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from pipeline.errors import RaylensError, SpecError, WorkerDiedError, WorkerError
from pipeline.measuring import graph_of
from pipeline.runtime.threads import one_thread
from pipeline.stream.parts import Counts, Group
from pipeline.stream.steps import Steps, Work
from schemas.graph import Device
from schemas.job import JobSpec


class Runner(Protocol):
    """Runs the steps of a job."""

    device: Device

    def stream(self, steps: Steps, work: Sequence[Work], *, errors_allowed: int = 0) -> Iterator[dict[str, Any]]:
        """Explains what is missing, gives receipts as they come; -1 allows the loss of any number of blocks."""

    def seal(self, steps: Steps, groups: Iterable[Group]) -> Iterator[Counts]:
        """Seals groups of complete shards."""

    def status(self) -> str:
        """A few words on the workers, for the progress display."""


class LocalRunner:
    """This process, one step after the other: for debugging and small jobs.

    Args:
        spec: of the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        available = torch.cuda.is_available()
        if spec.device == "cuda" and not available:
            raise SpecError("device cuda: this process sees no GPU; use --device cpu or auto")
        self.device: Device = "cuda" if available and spec.device != "cpu" else "cpu"

    def stream(self, steps: Steps, work: Sequence[Work], *, errors_allowed: int = 0) -> Iterator[dict[str, Any]]:
        """See `Runner`; a process that dies here takes the job with it."""
        graph = graph_of(steps)
        with one_thread():
            for item in work:
                for table in steps.decoded(item):
                    yield from steps.commit(graph(table)).to_pylist()

    def seal(self, steps: Steps, groups: Iterable[Group]) -> Iterator[Counts]:
        """See `Runner`."""
        yield from map(steps.seal, groups)

    def status(self) -> str:
        """See `Runner`."""
        return f"local, {self.device}"


class RayRunner:
    """Ray Data on the cluster that this process is connected to.

    Args:
        spec: of the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        import ray

        self._spec = spec
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        if spec.device == "cuda" and not gpus:
            raise SpecError("device cuda: the Ray cluster has no GPU; use --device cpu or auto")
        self.device: Device = "cuda" if gpus and spec.device != "cpu" else "cpu"
        self._actors = 0

    def stream(self, steps: Steps, work: Sequence[Work], *, errors_allowed: int = 0) -> Iterator[dict[str, Any]]:
        """See `Runner`."""
        import ray

        from pipeline.stream import dataset

        # Ray Data (seen in 2.60) leaves its actors to the garbage collector, and after the loss of a node they are held
        # by cycles: those of an earlier run would keep their CPUs or GPUs. To be dropped when it ends them itself.
        gc.collect()
        dataset.configure(steps, errors_allowed=errors_allowed)
        spec = self._spec
        pool = dataset.Pool.sized(
            ray.cluster_resources(),  # type: ignore[no-untyped-call]
            workers=spec.workers,
            max_workers=spec.max_workers,
            gpus_per_worker=spec.gpus_per_worker if self.device == "cuda" else 0,
        )
        self._actors = pool.initial
        with explained_failures():
            yield from dataset.receipts(dataset.build(steps, work, pool))

    def seal(self, steps: Steps, groups: Iterable[Group]) -> Iterator[Counts]:
        """See `Runner`."""
        from pipeline.stream import dataset

        with explained_failures():
            yield from dataset.seal_all(steps, groups)

    def status(self) -> str:
        """See `Runner`."""
        return f"{self._actors} {self.device} workers"


@contextmanager
def explained_failures() -> Iterator[None]:
    """Turns Ray's exceptions into ours; an error that raylens raised in a worker comes out as it was."""
    from ray.exceptions import ActorDiedError, RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RaylensError):
            raise cause from error
        raise WorkerError(f"a step failed in a worker: {type(cause).__name__}: {_last_line(cause)}") from error
    except ActorDiedError as error:
        if "creation task" in str(error):
            raise WorkerError(f"a worker could not start: {_last_line(error)}") from error
        raise WorkerDiedError(f"a worker died again and again: {_last_line(error)}") from error
    except RayError as error:
        raise WorkerDiedError(f"a worker died again and again: {_last_line(error)}") from error


def _last_line(error: object) -> str:
    return str(error).strip().rsplit("\n", 1)[-1][:500]


def connected(spec: JobSpec, ready: Callable[[], None]) -> Runner:
    """The runner of a job.

    Args:
        spec: of the job.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.

    Returns:
        A runner.
    """
    if spec.runner == "local":
        return LocalRunner(spec)
    ready()
    return RayRunner(spec)
