"""A finished run read file by file: in this process, or as Ray tasks where the job runs on a cluster."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pipeline.jobs.runners import explained_failures
from pipeline.stream.finished import Each, in_turn
from schemas.job import JobSpec

Part = TypeVar("Part")
WAITING = 2
"""Tasks a CPU that are asked for before the first one's result is taken: bounds what waits in memory."""


def reader(spec: JobSpec, ready: Callable[[], None]) -> Each:
    """How the files of a run are read.

    Args:
        spec: of the job.
        ready: waits for the cluster, see `pipeline.jobs.cluster`; not called for a run of one file.

    Returns:
        What reads them; results come in the order of the files, and are equal for every runner.
    """
    if spec.runner == "local":
        return in_turn

    def each(read: Callable[[str], Part], files: Sequence[str]) -> Iterator[Part]:
        if len(files) < 2:
            return in_turn(read, files)
        ready()
        return _as_tasks(read, files)

    return each


def _as_tasks(read: Callable[[str], Part], files: Sequence[str]) -> Iterator[Part]:
    import ray

    most = WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    shared = ray.put(read)
    task: Any = ray.remote(num_cpus=1)(_read)
    pending: deque[ray.ObjectRef[Part]] = deque()
    with explained_failures():
        for name in files:
            if len(pending) == most:
                yield ray.get(pending.popleft())
            pending.append(task.remote(shared, name))
        while pending:
            yield ray.get(pending.popleft())


def _read(read: Callable[[str], Part], name: str) -> Part:
    return read(name)
