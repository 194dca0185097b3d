"""The whole `raylens` command: that of the pipeline, and `raylens serve`.

The pipeline does not know the service, so the two meet here; this is the entry point of the installed command.
"""

import math
import os
import socket
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from pipeline.cli import app, main
from pipeline.errors import SpecError
from pipeline.flags import pairs, parsed, with_flags
from schemas.job import MODEL_FIELDS, JobSpec
from schemas.online import OF_THE_JOB, ServedModel, ServeSpec

SERVICE = ("host", "port", "grpc_port", "ray_address", "storage")
GRPC_ANSWER_BYTES = 64 * 2**20
"""An answer is larger than its request only where it has many maps at the resolution of the input."""
LOST = "conn-failure empty-response\n    option http-buffer-request"
"""HAProxy asks again where a process was lost, but only if it has the whole request. Ray 2.60 has no setting for the
second line, and writes the first as it is; to be split when it has one."""
ASKED_AGAIN_BYTES = 2**19
"""HAProxy repeats requests that fit into its buffer, of which each request in progress has two. Larger ones do not
stay in its cache, and each request waits 1 ms for new ones."""
PANELS = {
    "Service": ("config", "ray_address"),
    "Model": (*MODEL_FIELDS, "storage"),
    "Explanation": ("method", "method_args", "seed", "runtime", "device", "precision", "batch_size"),
}


def _serve(values: dict[str, Any]) -> None:
    """Answer requests with predictions and where in the image they come from, on Ray Serve.

    [bold]raylens serve --model timm:resnet50 --method gradcam[/]

    [bold]raylens serve --config serve.yaml[/] for several models and methods, limits and keys.
    """
    spec = specification(values)  # before torch and Ray are loaded, so that a wrong flag is told at once
    _environment(spec)
    from serve.run import run

    run(spec)


def _environment(spec: ServeSpec) -> None:
    """What Ray reads when it is imported; a cluster that we join has its own environment."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if spec.ray_address or os.environ.get("RAY_ADDRESS"):
        return
    if os.environ.get("OTEL_TRACES_EXPORTER", "none") != "none":
        os.environ.setdefault("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", "serve.tracing:processors")
        os.environ.setdefault("RAY_SERVE_TRACING_SAMPLING_RATIO", os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(max(spec.limits.body_bytes, GRPC_ANSWER_BYTES)))
    for name in ("USER_CODE_IN_SEPARATE_THREAD", "ROUTER_IN_SEPARATE_LOOP"):  # nothing blocks our event loop
        os.environ.setdefault(f"RAY_SERVE_RUN_{name}", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")  # on a busy machine it takes over Ray's 5 s
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.proxy.middlewares")
    os.environ.setdefault("RAYLENS_PROXY_REQUESTS", str(spec.replicas.max_replicas * spec.replicas.ongoing))
    os.environ.setdefault("RAYLENS_PROXY_BEGUN_S", str(spec.limits.queue_s + 1))  # first the process has a say
    if not spec.with_haproxy():
        return
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", LOST)
    os.environ.setdefault("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", str(ASKED_AGAIN_BYTES))
    os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", str(math.ceil(spec.longest_s())))
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    for name in ("METRICS", "STATS"):  # their usual ports are those of every other such service on this machine
        os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}_PORT", str(_free_port()))
    for name in ("HTTP", "GRPC"):
        os.environ.setdefault(f"RAY_SERVE_FALLBACK_PROXY_{name}_PORT", str(_free_port()))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def specification(values: dict[str, Any]) -> ServeSpec:
    """The specification that flags or a file describe.

    Args:
        values: as `pipeline.flags.with_flags` gives them.

    Returns:
        The specification.

    Raises:
        SpecError: a field is wrong, or flags of a model stand beside a file.
    """
    service = {name: value for name, value in values.items() if name in SERVICE}
    model = {name: value for name, value in values.items() if name not in (*SERVICE, "config")}
    if "config" in values:
        if model:
            raise SpecError(f"--{min(model).replace('_', '-')} stands beside --config: write it into the file")
        return parsed(ServeSpec, {"config": values["config"], **service})
    job = parsed(JobSpec, {"input": ["-"], "output": "-", **model})
    fields = {name: getattr(job, name) for name in OF_THE_JOB if name in job.model_fields_set}
    name = job.model.rpartition(":")[2].rpartition("/")[2].partition(".")[0] or "model"
    if "storage" in service:
        service["storage"] = pairs("storage", service["storage"])
    try:
        return ServeSpec(models={name: ServedModel(**fields, methods={job.method: job.method_args})}, **service)
    except ValidationError as error:
        raise SpecError("; ".join(found["msg"].removeprefix("Value error, ") for found in error.errors())) from error


app.command("serve")(
    with_flags(
        JobSpec,
        PANELS,
        _serve,
        host=Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")],
        port=Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")],
        grpc_port=Annotated[int | None, typer.Option(help="Port of Open Inference over gRPC. [default: none]")],
    )
)

if __name__ == "__main__":
    main()
