"""The service on Ray Serve: two deployments, made from one specification.

`Endpoint` takes requests and holds the engines of methods of one pass, in one process, since each hop between
deployments costs more than such an explanation. Methods of many passes have processes of their own, `SlowEndpoint`, so
that they cannot stand before the others.
"""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import Metric
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from pipeline.choice import choose
from pipeline.flags import parsed
from schemas.graph import GraphSpec
from schemas.online import Replicas, ServeSpec
from serve.engine import Explained, Task
from serve.grpc_inference import GrpcInference
from serve.metrics import Processes
from serve.models import engines, settled, slow
from serve.problems import RefusedError
from serve.proxy import SOON_S, Begun
from serve.service import Service, use_threads
from serve.web import create_web

NAME = "raylens"
LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)
"""What is raised where a process went away with a call in it."""
METRICS_S = 5.0
"""Time that all processes have to tell their metrics: half of what Prometheus gives a scrape by default."""


class SlowEndpoint:
    """Explains by methods of many passes.

    Args:
        spec: of the service.
    """

    def __init__(self, spec: ServeSpec) -> None:
        use_threads(spec.slow.cpus)
        self._engines = {(model, method): engine for model, method, engine in engines(spec, only_slow=True)}

    async def explain(self, model: str, method: str, task: Task) -> Explained:
        """Explains one image; cancelled before its turn, it is not computed."""
        engine = self._engines[model, method]
        with engine.gate.admitted(1) as ticket:
            return await asyncio.wrap_future(engine.submit(task, ticket))

    def check_health(self) -> None:
        """Ray replaces the process where this raises."""
        if not all(engine.is_alive() for engine in self._engines.values()):
            raise RuntimeError("an engine has failed")


class Endpoint(GrpcInference):
    """Takes requests, over HTTP and gRPC.

    Args:
        spec: of the service.
        slow_pool: handle of `SlowEndpoint`; None where no method needs it.
    """

    def __init__(self, spec: ServeSpec, slow_pool: DeploymentHandle[Any] | None = None) -> None:
        self._pool = slow_pool
        self._all: DeploymentHandle[Any] | None = None
        super().__init__(Service(spec, self._elsewhere if slow_pool is not None else None))
        self._service.metrics.everywhere = self._metrics_of_all
        self._service.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray asks for it after the constructor."""
        web = create_web(self._service)
        web.add_middleware(Begun, after_s=min(SOON_S, self._service.spec.limits.queue_s / 2))
        return web

    async def _elsewhere(self, model: str, method: str, task: Task) -> Explained:
        assert self._pool is not None  # noqa: S101
        try:
            found: Explained = await self._pool.explain.remote(model, method, task)
        except LOST as error:
            raise ConnectionError(str(error)[:200]) from error
        except BackPressureError as error:
            raise RefusedError("overloaded", "the slow methods have too much to do; try later") from error
        except TaskCancelledError as error:
            raise asyncio.CancelledError from error
        except RayTaskError as error:
            if isinstance(error.cause, RefusedError):
                raise error.cause from error
            raise
        return found

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Name and metrics of this process."""
        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.families()

    async def _metrics_of_all(self) -> Processes:
        """Those that have just died are left out; one that hangs is told, since a sum without it would be wrong."""
        if self._all is None:
            found = serve.get_replica_context()
            self._all = await asyncio.to_thread(serve.get_deployment_handle, found.deployment, found.app_name)
        asking = self._all.broadcast("metrics").results_async(timeout_s=METRICS_S, return_exceptions=True)
        try:
            told = [answer for answer in await asking if not isinstance(answer, LOST)]
        except LOST:
            told = []
        except TimeoutError as error:
            raise RefusedError("unavailable", f"a process did not tell its metrics in {METRICS_S:g} s") from error
        return dict([*told, await self.metrics()])

    def check_health(self) -> None:
        """Ray replaces the process where this raises."""
        if not self._service.is_healthy():
            raise RuntimeError("an engine has failed")


def build_app(arguments: dict[str, Any]) -> serve.Application:
    """The application of `serve run serve.app:build_app config=serve.yaml`, and of a RayService.

    Addresses, ports and proxies are Ray Serve's own there: those of the specification are for `raylens serve`.

    Args:
        arguments: fields of `schemas.online.ServeSpec`, as `args` of a RayService has them; or `config` alone, the path
            of a YAML file with these fields.

    Returns:
        What Ray Serve deploys.

    Raises:
        SpecError: the file cannot be read, or a field of it is wrong.
    """
    if arguments.keys() == {"config"}:
        return application(parsed(ServeSpec, {"config": Path(arguments["config"])}))
    return application(ServeSpec(**arguments))


def application(spec: ServeSpec) -> serve.Application:
    """The application of a specification.

    Args:
        spec: of the service; `runtime: auto` is measured here, once for all processes.

    Returns:
        What Ray Serve deploys.
    """
    spec = settled(spec, _faster)
    ingress = _deployment(serve.ingress()(Endpoint), "Endpoint", spec.replicas, spec)
    if not any(slow(method) for model in spec.models.values() for method in model.methods):
        return ingress.bind(spec)
    return ingress.bind(spec, _deployment(SlowEndpoint, "SlowEndpoint", spec.slow, spec).bind(spec))


def _faster(torch_spec: GraphSpec, onnx_spec: GraphSpec) -> str:
    return choose(torch_spec, onnx_spec).runtime


def _deployment(kind: type[Any], name: str, pool: Replicas, spec: ServeSpec) -> serve.Deployment:
    scale: dict[str, Any] = {"num_replicas": pool.min_replicas}
    if pool.max_replicas > pool.min_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": pool.min_replicas,
                "max_replicas": pool.max_replicas,
                "target_ongoing_requests": max(1, pool.ongoing // 4),
            }
        }
    configured = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
        max_ongoing_requests=pool.ongoing,
        max_queued_requests=pool.queued,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        graceful_shutdown_timeout_s=spec.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5,
        **scale,
    )
    return configured(kind)
