"""Slicers by name. A new one: one class in a file of its own, one line here."""

from pipeline.bias.slicing.chance import Random
from pipeline.bias.slicing.domino import Domino
from pipeline.bias.slicing.facts import Facts
from pipeline.bias.slicing.kmeans import KMeans
from pipeline.bias.slicing.slicer import Slicer
from pipeline.bias.slicing.spray import Spray
from pipeline.catalogue import chosen

SLICERS: dict[str, type[Slicer]] = {
    "domino": Domino,
    "facts": Facts,
    "spray": Spray,
    "kmeans": KMeans,
    "random": Random,
}


def create(name: str, **parameters: object) -> Slicer:
    """A slicer with its parameters.

    Args:
        name: key of `SLICERS`.
        **parameters: of the slicer.

    Returns:
        The slicer.

    Raises:
        MethodError: no such slicer, it has no such parameter, or a parameter is out of range.
    """
    return chosen("slicer", SLICERS, name, parameters)
