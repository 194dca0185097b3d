"""A model of a study, looked at before anything runs: which methods fit, what they cost, what stands beside them."""

from dataclasses import dataclass

import torch

from pipeline import attribution
from pipeline.attribution import METHODS
from pipeline.errors import MethodError
from pipeline.evaluation.cost import seconds_per_image
from pipeline.graph import ExplanationGraph
from pipeline.jobs.progress import Display
from pipeline.jobs.quickest import of_one_pass
from pipeline.jobs.run import check_fit
from pipeline.model import LoadedModel, load
from pipeline.stream.ledger import Ledger
from schemas.graph import Device
from schemas.job import JobSpec
from schemas.study import MethodSpec, StudySpec

Shape = tuple[int, int]
"""Rows and columns of a map."""


@dataclass(frozen=True)
class Trial:
    """One method on one model, before anything is measured.

    Attributes:
        method: that is tried.
        shape: of its maps; None where it does not fit.
        seconds: an image; None where it does not fit.
        misfit: why it does not fit the model; empty where it does.
    """

    method: MethodSpec
    shape: Shape | None
    seconds: float | None
    misfit: str


@dataclass(frozen=True)
class Bench:
    """A model with the methods that are tried on it.

    Attributes:
        name: of the model.
        trials: of every method.
        carriers: for each shape of maps the cheapest method that gives it: beside it the controls are measured.
        predicts: the cheapest method of all: it explains the whole data set, for the predictions.
    """

    name: str
    trials: tuple[Trial, ...]
    carriers: dict[Shape, MethodSpec]
    predicts: MethodSpec


def device_of(spec: StudySpec) -> Device:
    """Where methods are timed: this process stands for the workers."""
    return "cuda" if torch.cuda.is_available() and spec.device != "cpu" else "cpu"


def folder(spec: StudySpec, model: str, name: str) -> str:
    """Address of a run of the study."""
    return f"{spec.output.rstrip('/')}/runs/{model}/{name}"


def bench(spec: StudySpec, name: str, shown: Display) -> Bench:
    """Tries every method on a model, on images of noise.

    Args:
        spec: of the study.
        name: of the model.
        shown: told which model it is.

    Returns:
        What fits, and what does not with the reason.

    Raises:
        MethodError: no method fits.
        ModelError: the model cannot be loaded.
    """
    device = device_of(spec)
    graph = spec.job(name, spec.methods[0], spec.output).graph_spec(device)
    model = load(graph.model, device=device, precision=graph.precision, storage=spec.storage)
    shown.say("bench", model=name, source=model.source, classes=model.classes, layer=model.layer.name)
    trials = tuple(_trial(spec, name, method, model) for method in spec.methods)
    fitting = [(one.method, one.shape) for one in trials if one.shape is not None]
    if not fitting:
        raise MethodError(f"no method of the study fits model {name}: {trials[0].misfit}")
    carriers: dict[Shape, MethodSpec] = {}
    for method, shape in fitting:
        carriers.setdefault(shape, _cheapest(spec, name, model, shape) or method)
    return Bench(name, trials, carriers, _cheapest(spec, name, model) or fitting[0][0])


def _trial(spec: StudySpec, name: str, method: MethodSpec, model: LoadedModel) -> Trial:
    if reason := METHODS[method.method].misfit(model):
        return Trial(method, None, None, reason)
    job = spec.job(name, method, folder(spec, name, method.name))
    try:
        check_fit(job, model)
    except MethodError as error:
        return Trial(method, None, None, str(error))
    graph = ExplanationGraph(job.graph_spec(device_of(spec)), spec.storage, model=model)
    return Trial(method, graph.method.shape, _seconds(job, graph), "")


def _seconds(job: JobSpec, graph: ExplanationGraph) -> float:
    """An image's, measured once."""
    ledger = Ledger(job.output, job.storage)
    key = {"graph": graph.digest, "device": graph.spec.device}
    saved = ledger.read_json("cost.json")
    if saved is None or {name: saved[name] for name in key} != key:
        saved = {**key, "seconds_per_image": seconds_per_image(graph)}
        ledger.write_json(saved, "cost.json")
    return float(saved["seconds_per_image"])


def _cheapest(spec: StudySpec, name: str, model: LoadedModel, shape: Shape | None = None) -> MethodSpec | None:
    """The first method of one pass that fits, with maps of a shape; the same whatever the study compares."""
    for method in of_one_pass(spec.job(name, spec.methods[0], spec.output), model):
        if shape in (None, attribution.create(method, model).shape):
            return MethodSpec(name=method, method=method)
    return None
