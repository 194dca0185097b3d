"""Every operator's rule against the official test cases of ONNX, which run each operator alone."""

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.loader import load_model_tests

from pipeline.model.onnx.lowering import operation_of, read_node, to_torch
from pipeline.model.onnx.operators import RULES, NoRuleError

WRONG = {
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime rounds the size before it aligns the corners",
    "test_reduce_max_empty_set": "the maximum of nothing",
    "test_reduce_max_empty_set_bool": "the maximum of nothing",
    "test_reduce_min_empty_set": "the minimum of nothing",
}
"""Cases that a rule takes and does not pass, and why not."""


def tensor(value: Any) -> torch.Tensor | None:
    """A case's value in the types that a network computes in."""
    if isinstance(value, onnx.TensorProto):
        return to_torch(value)
    if value is None or isinstance(value, list | dict) or np.asarray(value).dtype.kind not in "iubf":
        return None
    return to_torch(onnx.numpy_helper.from_array(np.asarray(value)))


@cache
def cases() -> dict[str, list[Any]]:
    """Cases of one node by operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    one = [case for case in found if len(case.model.graph.node) == 1 and not case.model.graph.node[0].domain]
    return {name: [case for case in one if case.model.graph.node[0].op_type == name] for name in RULES}


def outcome(case: Any) -> str:
    """`no rule`, `other types`, `right`, or what was wrong."""
    (proto,), opset = case.model.graph.node, case.model.opset_import[0].version
    inputs, outputs = case.data_sets[0]
    values = {value.name: tensor(found) for value, found in zip(case.model.graph.input, inputs, strict=True)}
    if any(value is None for value in values.values()) or tensor(outputs[0]) is None:
        return "other types"
    fixed = dict(list(values.items())[1:])
    result = "no rule"
    for constants, read in ((c, r) for c in ({}, fixed, values) for r in (set(proto.output), set(proto.output[:1]))):
        node = read_node(proto, opset, constants, str, read)
        try:
            operation = operation_of(proto, node)
        except NoRuleError:
            continue
        positions = range(len(proto.input)) if operation.reads is None else operation.reads
        found = operation.module.eval()(*(values.get(proto.input[position]) for position in positions))
        expected = [tensor(value) for value in outputs]
        return compared([found] if isinstance(found, torch.Tensor) else list(found), expected, case.name)
    return result


def compared(found: list[torch.Tensor], expected: list[torch.Tensor | None], case: str) -> str:
    rtol = 1e-2 if "BFLOAT16" in case else 1e-3  # networks compute in float32
    for value, wanted in zip(found, expected, strict=False):
        if wanted is None or value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            return f"{value.dtype} of {tuple(value.shape)}"
        if not torch.allclose(value.double(), wanted.double(), rtol=rtol, atol=1e-5, equal_nan=True):
            return f"off by {(value.double() - wanted.double()).abs().max()}"
    return "right"


@pytest.mark.parametrize("operator", RULES)
def test_a_rule_gives_what_the_standard_says(operator: str) -> None:
    found = {case.name: outcome(case) for case in cases()[operator] if case.name not in WRONG}
    assert {name: result for name, result in found.items() if result not in ("right", "no rule", "other types")} == {}
    assert "right" in found.values(), f"no case of {operator} passes: {found}"


def test_the_cases_that_are_left_out_exist() -> None:
    assert WRONG.keys() <= {case.name for found in cases().values() for case in found}
