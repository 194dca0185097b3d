"""The models of a service, loaded: each with its decoder and the methods it offers."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.attribution import METHODS, Method, method_class
from pipeline.graph import digest
from pipeline.model import LoadedModel, load
from pipeline.runtime.onnx_file import compilable
from pipeline.stream.decode import Decoder
from schemas.graph import Device, GraphSpec
from schemas.online import Replicas, ServedModel, ServeSpec
from serve.backends import Backend, Elsewhere, Here
from serve.engine import Engine, Explained, Task
from serve.graphs import OnlineGraph
from serve.problems import RefusedError

Call = Callable[[str, str, Task], Awaitable[Explained]]
"""Explains a task of a model and method in another process."""


@dataclass(frozen=True)
class Offer:
    """One method of a model.

    Attributes:
        name: key of `METHODS`.
        graph: what is computed.
        digest: of the graph.
        backend: computes it.
    """

    name: str
    graph: GraphSpec
    digest: str
    backend: Backend

    @property
    def method(self) -> type[Method]:
        """The method's class."""
        return METHODS[self.name]

    @property
    def is_slow(self) -> bool:
        """Whether it has a pool of its own."""
        return slow(self.name)


@dataclass(frozen=True)
class Served:
    """One model.

    Attributes:
        name: that requests use.
        model: loaded.
        decoder: of its images.
        offers: its methods, by name; the first is the default.
    """

    name: str
    model: LoadedModel
    decoder: Decoder
    offers: Mapping[str, Offer]

    def offer(self, method: str | None) -> Offer:
        """A method.

        Args:
            method: its name; None for the default.

        Returns:
            The offer.

        Raises:
            RefusedError: `unknown_method`, with what there is.
        """
        name = next(iter(self.offers)) if method is None else method
        if name not in self.offers:
            raise RefusedError(
                "unknown_method", f"model {self.name} has no method {name[:100]!r}; it has {', '.join(self.offers)}"
            )
        return self.offers[name]


def slow(method: str) -> bool:
    """Whether a method takes many passes, so that it must not stand before one that takes one.

    Args:
        method: its name.

    Returns:
        True for a method that has a pool of its own.

    Raises:
        MethodError: there is no such method.
    """
    found = method_class(method)
    return found.traits.batch_only or not compilable(found)


def device(model: ServedModel, pool: Replicas) -> Device:
    """The device of a model's graphs in a pool: what the specification alone says, equal in every process."""
    if model.device == "auto":
        return "cuda" if pool.gpus > 0 else "cpu"
    return model.device


def graph_spec(spec: ServeSpec, name: str, method: str) -> GraphSpec:
    """The graph of a model and a method.

    Args:
        spec: of the service; its runtimes are settled.
        name: of the model.
        method: of the model.

    Returns:
        What is computed.

    Raises:
        MethodError: there is no such method.
    """
    model, pool = spec.models[name], spec.slow if slow(method) else spec.replicas
    if slow(method):  # what is not compiled runs in torch, beside compiled ones
        return model.graph_spec(method, device(model, pool), "torch")
    return model.graph_spec(method, device(model, pool))


class Weights:
    """Models that are loaded once for all graphs on the same device and in the same precision.

    Args:
        storage: fsspec options.
    """

    def __init__(self, storage: Mapping[str, Any]) -> None:
        self._storage = storage
        self._loaded: dict[tuple[str, Device, str], LoadedModel] = {}

    def of(self, graph: GraphSpec) -> LoadedModel:
        """The model of a graph."""
        where: Device = graph.device if graph.runtime == "torch" else "cpu"
        key = (graph.model.model_dump_json(), where, graph.precision)
        if key not in self._loaded:
            self._loaded[key] = load(graph.model, device=where, precision=graph.precision, storage=self._storage)
        return self._loaded[key]


def engine(spec: ServeSpec, name: str, graph: GraphSpec, weights: Weights) -> Engine:
    """An engine that is not started.

    Args:
        spec: of the service.
        name: of the model.
        graph: what to compute.
        weights: of the process.

    Returns:
        It loads when it is started.
    """
    online = OnlineGraph(graph, spec.storage, cache=spec.graphs, model=weights.of(graph))
    return Engine(online, wait_s=spec.models[name].batch_wait_ms / 1000, queue=spec.limits.queue)


def engines(spec: ServeSpec, *, only_slow: bool) -> Iterator[tuple[str, str, Engine]]:
    """Started engines of one kind of methods.

    Args:
        spec: of the service.
        only_slow: those of many passes.

    Yields:
        Model, method and engine.
    """
    weights = Weights(spec.storage)
    for name, model in spec.models.items():
        for method in model.methods:
            if slow(method) == only_slow:
                found = engine(spec, name, graph_spec(spec, name, method), weights)
                found.start()
                yield name, method, found


def opened(spec: ServeSpec, call: Call | None) -> dict[str, Served]:
    """Loads every model, and starts the engines of this process.

    Args:
        spec: of the service.
        call: explains by slow methods elsewhere; None for engines of this process.

    Returns:
        Models by name.
    """
    weights = Weights(spec.storage)
    return {name: _served(spec, name, weights, call) for name in spec.models}


def _served(spec: ServeSpec, name: str, weights: Weights, call: Call | None) -> Served:
    offers = {method: _offer(spec, name, method, weights, call) for method in spec.models[name].methods}
    model = _known(next(iter(offers.values())).graph, weights, call)
    return Served(name, model, Decoder(model.preprocessing, max_pixels=spec.limits.pixels), offers)


def _offer(spec: ServeSpec, name: str, method: str, weights: Weights, call: Call | None) -> Offer:
    graph = graph_spec(spec, name, method)
    if slow(method) and call is not None:

        async def explain(task: Task) -> Explained:
            return await call(name, method, task)

        known = digest(graph, _known(graph, weights, call))
        return Offer(method, graph, known, Elsewhere(explain, queue=spec.limits.queue))
    started = engine(spec, name, graph, weights)
    started.start()
    return Offer(method, graph, started.graph.digest, Here(started))


def _known(graph: GraphSpec, weights: Weights, call: Call | None) -> LoadedModel:
    """The model of a graph; on the CPU where another process has the graph, since it is only asked for names."""
    if slow(graph.method) and call is not None:
        return weights.of(graph.model_copy(update={"device": "cpu", "precision": "float32"}))
    return weights.of(graph)


def settled(spec: ServeSpec, choose: Callable[[GraphSpec, GraphSpec], str]) -> ServeSpec:
    """The specification with `runtime: auto` decided, so that every process computes the same graph.

    Args:
        spec: of the service.
        choose: the faster of a torch and an ONNX graph.

    Returns:
        The specification that is deployed.
    """
    decided = {}
    for name, model in spec.models.items():
        fast = [method for method in model.methods if not slow(method)]
        if model.runtime == "auto":
            where = device(model, spec.replicas)
            runtime = choose(*(model.graph_spec(fast[0], where, r) for r in ("torch", "onnx"))) if fast else "torch"
            decided[name] = model.model_copy(update={"runtime": runtime})
    return spec.model_copy(update={"models": {**spec.models, **decided}})
