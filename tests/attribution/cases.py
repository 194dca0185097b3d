"""For every method of METHODS: a network that it fits, parameters that keep tests short, and its reference."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import MappingProxyType

from attribution.networks import relu_cnn, smooth_cnn, tiny_vit

from pipeline.attribution import METHODS
from pipeline.model import LoadedModel

REFERENCE_FOLDER = Path(__file__).parents[1] / "reference"

PARAMETERS = MappingProxyType(
    {
        "ig": {"steps": 12},
        "smoothgrad": {"samples": 6},
        "vargrad": {"samples": 6},
        "smoothig": {"steps": 12, "kernel": 9},
        "smoothixg": {"kernel": 9},
        "multilayer": {"method": "layercam", "layers": ["act1", "last"], "weights": [1.0, 2.0]},
        "meta": {"rate": 0.05},
        "rise": {"masks": 24, "cells": 4},
        "occlusion": {"window": 12, "stride": 8},
        "lime": {"segments": 6, "samples": 40},
        "kernelshap": {"segments": 8, "samples": 30},
        "sobol": {"grid": 3, "design": 8},
        "vps": {"segments": 5},
    }
)
"""What a test creates a method with; references get the same. A method not named here is tested with its defaults."""


@cache
def networks() -> tuple[LoadedModel, ...]:
    """Networks to choose from, simplest first."""
    return relu_cnn(), tiny_vit(), smooth_cnn()


@cache
def model_for(name: str) -> LoadedModel:
    """The first network that the method fits."""
    fitting = [model for model in networks() if METHODS[name].misfit(model) is None]
    assert fitting, f"no test network fits method {name}; add one to tests/attribution/cases.py"
    return fitting[0]


def parameters(name: str) -> dict:
    """Parameters of the method in tests."""
    return dict(PARAMETERS.get(name, {}))


@cache
def references() -> dict:
    """REFERENCES of every module in tests/reference that has them."""
    merged: dict = {}
    for module in pkgutil.iter_modules([str(REFERENCE_FOLDER)]):
        merged |= getattr(importlib.import_module(f"reference.{module.name}"), "REFERENCES", {})
    return merged
