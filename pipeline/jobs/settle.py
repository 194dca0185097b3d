"""The graph of a job once everything open is decided: its device, its runtime, the file that ONNX Runtime loads."""

import time

from pipeline.choice import choose
from pipeline.errors import OutputError
from pipeline.graph import ExplanationGraph, digest
from pipeline.jobs.progress import Display
from pipeline.model import LoadedModel
from pipeline.stream.ledger import STATE, Ledger
from schemas.graph import Device, GraphSpec, Runtime
from schemas.job import JobSpec


def settled(spec: JobSpec, device: Device, model: LoadedModel, ledger: Ledger, shown: Display) -> GraphSpec:
    """Decides the runtime and compiles what it needs, so that workers only load; writes nothing but the cache.

    Args:
        spec: of the job.
        device: of its runner.
        model: resolved in the driver.
        ledger: of the output; a job that is resumed keeps the runtime that it began with.
        shown: told what is chosen and why.

    Returns:
        The graph that every worker runs.

    Raises:
        MethodError: the job asks for ONNX Runtime and the graph cannot be compiled.
    """
    runtime = _runtime(spec, device, model, ledger, shown)
    graph = _pinned(spec.graph_spec(device, runtime), model)
    if runtime == "onnx":
        started = time.monotonic()
        known = model if graph.precision == "float32" else None
        path = ExplanationGraph(graph, spec.storage, cache=cache(spec), model=known).compiled()
        shown.say(
            "compiled", file=path.name, megabytes=path.stat().st_size // 10**6, s=f"{time.monotonic() - started:.0f}"
        )
    return graph


def cache(spec: JobSpec) -> str:
    """Where a job's compiled graphs are kept: beside its output unless it says otherwise."""
    return spec.cache or f"{spec.output.rstrip('/')}/{STATE}/graphs"


def _runtime(spec: JobSpec, device: Device, model: LoadedModel, ledger: Ledger, shown: Display) -> Runtime:
    if spec.runtime != "auto":
        return spec.runtime
    saved = ledger.read_json(STATE, "graph.json")
    if saved is not None:
        found: Runtime = saved["runtime"]
        return found
    specs = [_pinned(spec.graph_spec(device, runtime), model) for runtime in ("torch", "onnx")]
    choice = choose(*specs, storage=spec.storage, cache=cache(spec))
    shown.say("runtime", chosen=choice.runtime, why=choice.why)
    return choice.runtime


def _pinned(graph: GraphSpec, model: LoadedModel) -> GraphSpec:
    """Workers refuse weights other than those the driver has read."""
    if graph.model.weights in (None, "pretrained", "random"):
        return graph
    pinned = graph.model.model_copy(update={"weights_sha256": model.weights_sha256})
    return graph.model_copy(update={"model": pinned})


def begun(graph: GraphSpec, model: LoadedModel, ledger: Ledger) -> str:
    """Notes the graph in the output; refuses to go on with another one than the job began with.

    Args:
        graph: settled.
        model: resolved in the driver.
        ledger: of the output.

    Returns:
        The graph's digest.

    Raises:
        OutputError: code, weights, runtime or device differ from those the job began with.
    """
    found = digest(graph, model)
    saved = ledger.read_json(STATE, "graph.json")
    if saved is not None and saved["digest"] != found:
        raise OutputError(
            f"{ledger.output} was begun with graph {saved['digest']} on {saved['device']} ({saved['runtime']}), now it "
            f"is {found} on {graph.device} ({graph.runtime}): code, weights or precision changed; go on as it was "
            "begun, or use --overwrite"
        )
    ledger.write_json({"digest": found, "device": graph.device, "runtime": graph.runtime}, STATE, "graph.json")
    return found
