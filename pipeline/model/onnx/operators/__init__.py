"""The torch counterpart of every ONNX operator that has one. A new operator: one line in its family's file."""

from pipeline.model.onnx.operators import elementwise, linear, pooling, reduction, shape
from pipeline.model.onnx.operators.operation import Function, Node, NoRuleError, Operation, Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **pooling.RULES,
    **reduction.RULES,
    **shape.RULES,
}
"""Of ONNX's own domain, by operator."""

__all__ = ["RULES", "Function", "NoRuleError", "Node", "Operation", "Rule"]
