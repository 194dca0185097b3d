"""Ray Data wiring: where the steps run. Nothing here knows what they do."""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.annotations import RayDeprecationWarning
from ray.util.metrics import Counter, Histogram

from pipeline.stream.parts import Counts, Group
from pipeline.stream.steps import Steps, Work

TASK_CPUS = 0.25  # reading, decoding and writing wait for storage half of the time
ACTOR_CPUS = 0.7  # the rest of an actor's core is for decoding
TASK_RETRIES = 4  # Ray Data's default is to repeat an image that kills its process for ever
NEVER = -1.0
"""A share that no utilisation falls to: a pool that waits for blocks for a moment keeps its loaded models."""
SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]


@dataclass(frozen=True)
class Pool:
    """Size of the pool of graph actors.

    Attributes:
        minimum: actors without which the job waits; few, so that it goes on when a node is lost.
        initial: actors at the start.
        maximum: actors that the pool may grow to.
        cpus: of one actor.
        gpus: of one actor; 0 on a CPU.
    """

    minimum: int
    initial: int
    maximum: int
    cpus: float
    gpus: float

    @classmethod
    def sized(
        cls,
        resources: Mapping[str, float],
        *,
        workers: int | None,
        max_workers: int | None,
        gpus_per_worker: float,
    ) -> "Pool":
        """Sizes the pool by the cluster: one actor a GPU share, or one a CPU with room left for decoding.

        On a CPU every actor is given 0.7 of a core, and the rest goes to decoding: 2 cores hold 2 actors and 2 tasks.
        Ray Data asks an autoscaler for the CPUs of the actors that a pool may have. Where the cluster is to grow to a
        core for each, the pool may have so many more; they find no room on those cores.

        Args:
            resources: of the cluster as it is now, by Ray's names.
            workers: least number of actors, or None for as many as fit, and one at least.
            max_workers: most actors, and the CPUs that the cluster may grow to; or None for the number at the start.
            gpus_per_worker: of one actor; 0 on a CPU.

        Returns:
            The pool.
        """
        cpus = resources.get("CPU", 1)
        fitting = int(resources.get("GPU", 0) / gpus_per_worker) if gpus_per_worker else int(cpus)
        initial = max(1, workers or min(fitting, max_workers or fitting))
        most = max_workers or initial
        if gpus_per_worker:
            return cls(workers or 1, initial, most, 0.0, gpus_per_worker)
        share = min(ACTOR_CPUS, max(0.1, (cpus - 2 * TASK_CPUS) / initial))
        return cls(workers or 1, initial, ceil(most / ACTOR_CPUS) if most > max(cpus, initial) else most, share, 0.0)


class Explainer:
    """The graph as an actor: loads when the actor starts, counts what it does.

    Only actors import torch: it would cost every process that reads, decodes or writes seconds at its start.

    Args:
        steps: of the job.
    """

    def __init__(self, steps: Steps) -> None:
        import torch

        from pipeline.measuring import graph_of

        spec = steps.graph
        if spec.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor a core; and one thread gives the same bits everywhere
        self._graph = graph_of(steps)
        _ = self._graph.runtime  # loads: an actor that has started is ready
        tags = {"method": spec.method, "device": spec.device}
        self._images = Counter("raylens_graph_images", "Images that the graph was given", ("method", "device"))
        self._seconds = Histogram("raylens_graph_block_seconds", "Time of one block", SECONDS, ("method", "device"))
        self._images.set_default_tags(tags)
        self._seconds.set_default_tags(tags)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """See `ExplanationGraph.__call__`."""
        started = time.perf_counter()
        result = self._graph(batch)
        self._seconds.observe(time.perf_counter() - started)
        self._images.inc(max(1, batch.num_rows))
        return result


class ShardDatasource(Datasource):
    """Shards with gaps, one read task each; decoding runs in the same task.

    Args:
        steps: of the job.
        work: what is missing.
    """

    def __init__(self, steps: Steps, work: Sequence[Work]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps = steps
        self._work = work

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all decoded rows, where the number of rows is known."""
        rows = [work.shard.rows for work in self._work]
        return None if None in rows else sum(row or 0 for row in rows) * self._steps.row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a shard."""
        return [self._task(work) for work in self._work]

    def _task(self, work: Work) -> ReadTask:
        size = None if work.shard.rows is None else work.shard.rows * self._steps.row_bytes
        metadata = BlockMetadata(work.shard.rows, size, None, input_files=(work.shard.address,))
        return ReadTask(partial(self._steps.decoded, work), metadata)


def build(steps: Steps, work: Sequence[Work], pool: Pool) -> Dataset:
    """The whole job on one screen: read and decode, explain, commit. Runs when its receipts are consumed.

    Args:
        steps: of the job.
        work: what is missing.
        pool: of graph actors.

    Returns:
        A data set of receipts.
    """
    task = {"num_cpus": TASK_CPUS, "runtime_env": _without_gpu(pool)}
    decoded = ray.data.read_datasource(ShardDatasource(steps, work), override_num_blocks=len(work), **task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # until retries have a named parameter (before Ray 2.64)
        explained = decoded.map_batches(
            Explainer,
            fn_constructor_args=(steps,),
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(
                min_size=pool.minimum, max_size=pool.maximum, initial_size=pool.initial, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            max_task_retries=TASK_RETRIES,
        )
    committed: Dataset = explained.map_batches(steps.commit, batch_format="pyarrow", batch_size=None, **task)
    return committed


def _without_gpu(pool: Pool) -> dict[str, Any] | None:
    """Tasks beside GPU actors would see every GPU (and decoding would create contexts on them)."""
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if pool.gpus else None


def configure(steps: Steps, *, errors_allowed: int) -> None:
    """Settings of Ray Data for this job, in the driver's context.

    Args:
        steps: of the job.
        errors_allowed: blocks that may be lost to a dying worker; -1 for any number.
    """
    context = DataContext.get_current()
    context.target_max_block_size = int(steps.block_rows * steps.row_bytes / 1.2)  # so that a table stays one block
    context.max_errored_blocks = errors_allowed
    context.autoscaling_config.actor_pool_util_downscaling_threshold = NEVER  # actors leave when the input is used up
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.verbose_stats_logs = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is wrong comes as an exception


def receipts(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Runs the data set and yields its receipts as they come.

    Args:
        dataset: of small rows.

    Yields:
        Receipts as dictionaries.
    """
    for batch in dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
        assert isinstance(batch, pa.Table)
        yield from batch.to_pylist()


def seal_all(steps: Steps, groups: Iterable[Group]) -> Iterator[Counts]:
    """Seals groups as Ray tasks.

    Args:
        steps: of the job.
        groups: of complete shards.

    Yields:
        Counts, one a group.
    """
    pending = list(groups)
    tasks = _GroupDatasource(steps.seal, pending)
    dataset = ray.data.read_datasource(tasks, override_num_blocks=len(pending), num_cpus=TASK_CPUS)
    for row in receipts(dataset):
        yield Counts.from_json(row["counts"])


class _GroupDatasource(Datasource):
    """Groups, one read task each."""

    def __init__(self, seal: Callable[[Group], Counts], groups: Sequence[Group]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seal = seal
        self._groups = groups

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [ReadTask(partial(_sealed, self._seal, group), BlockMetadata(1, 256, None)) for group in self._groups]


def _sealed(seal: Callable[[Group], Counts], group: Group) -> list[pa.Table]:
    """One row; no method of the source, so that a task carries its own group and not those of all."""
    return [pa.table({"counts": [seal(group).to_json()]})]
