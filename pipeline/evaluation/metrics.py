"""Metrics of explanations by name, and what they judge. A new metric: one class in its family's file, one line here."""

from collections.abc import Callable, Iterator

from torch import Tensor

from pipeline.attribution import Method
from pipeline.attribution.folding import Scorer
from pipeline.catalogue import chosen
from pipeline.evaluation.fidelity import Infidelity, MuFidelity
from pipeline.evaluation.metric import Explain, Metric, Subject
from pipeline.evaluation.randomisation import cascade
from pipeline.evaluation.removal import Deletion, Insertion, LeRF, MoRF
from pipeline.evaluation.sanity import ClassSensitivity, Randomisation, RandomLogit
from pipeline.evaluation.stability import MaxSensitivity
from pipeline.model import LoadedModel

METRICS: dict[str, type[Metric]] = {
    "insertion": Insertion,
    "deletion": Deletion,
    "morf": MoRF,
    "lerf": LeRF,
    "mufidelity": MuFidelity,
    "infidelity": Infidelity,
    "maxsensitivity": MaxSensitivity,
    "mprt": Randomisation,
    "randomlogit": RandomLogit,
    "classsensitivity": ClassSensitivity,
}

Bind = Callable[[LoadedModel], Explain]
"""Makes the explanations of a model: `lambda model: explains(attribution.create("gradcam", model))`, or a control."""


def create(name: str, **parameters: object) -> Metric:
    """A metric with its parameters.

    Args:
        name: key of `METRICS`.
        **parameters: of the metric.

    Returns:
        The metric.

    Raises:
        MethodError: no such metric, it has no such parameter, or a parameter is out of range.
    """
    return chosen("metric", METRICS, name, parameters)


def explains(method: Method) -> Explain:
    """A bound method as metrics call it, one target an image.

    Args:
        method: of `pipeline.attribution.METHODS`.

    Returns:
        A function of images, targets and sample seeds to maps.
    """
    weights = next((p for p in method.model.module.parameters() if p.is_floating_point()), None)

    def explain(x: Tensor, targets: Tensor, seeds: Tensor) -> Tensor:
        images = x if weights is None else x.to(weights.dtype)  # the cascade's copies are never in half precision
        return method(images, lambda _logits: targets[:, None], seeds).maps[:, 0]

    return explain


def subject(model: LoadedModel, bind: Bind) -> Subject:
    """A model and a way to explain it, ready to be judged.

    Args:
        model: left as it was.
        bind: makes the explanations; called anew for every network of a cascade.

    Returns:
        What metrics call.
    """

    def networks(seed: int, points: int | None) -> Iterator[tuple[str, Explain]]:
        for layer, network in cascade(model, seed=seed, points=points):
            yield layer, bind(network)

    return Subject(Scorer(model), bind(model), networks)
