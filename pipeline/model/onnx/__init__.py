"""Third-party ONNX files as torch modules: every operator that has a rule is converted, the rest runs in ONNX Runtime.

The converter is our own since methods hook modules by layer and by type; the converters that were tried either stop at
operators of current opsets or give a graph of functions without modules.
"""

from pipeline.model.onnx.model import OnnxModel, read_model

__all__ = ["OnnxModel", "read_model"]
