"""A model with its weights, preprocessing, labels and target layer: the one place where weights load."""

from pipeline.model.layers import TargetLayer
from pipeline.model.layout import Layout
from pipeline.model.loaded import DTYPES, LoadedModel, load
from pipeline.preprocessing import Preprocessing

__all__ = ["DTYPES", "Layout", "LoadedModel", "Preprocessing", "TargetLayer", "load"]
