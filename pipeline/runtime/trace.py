"""A function with gradients inside becomes one graph of plain forward operators.

`make_fx` follows the operators that run, those of a backward pass too, so that hooks and `autograd.grad` leave no trace
but their arithmetic. What is not needed for the outputs (gradients nobody reads) is removed.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.runtime.operators import PLAIN, PlainFunctions


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> ExportedProgram:
    """Traces a function of batches; the size of the batch stays free.

    Args:
        function: of tensors whose first axis is the batch; may differentiate.
        inputs: an example of two or more images; its values do not matter.

    Returns:
        The program; its parameters are constants.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    shapes = [_batch_of_any_size(mode, number, value) for number, value in enumerate(inputs)]
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), PlainFunctions():
        warnings.simplefilter("ignore")
        with mode:
            graph: GraphModule = make_fx(function, decomposition_table=PLAIN)(*shapes)
        free = tuple({0: Dim.DYNAMIC} for _ in inputs)
        with torch.no_grad():
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=free, strict=False)
            functional: ExportedProgram = program.run_decompositions({})
    return functional


def _batch_of_any_size(mode: FakeTensorMode, number: int, value: Tensor) -> Tensor:
    """The input without its values; only the first axis is a symbol, which keeps the algebra short."""
    axes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (value.ndim - 1)
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=axes)
    return mode.from_tensor(value, symbolic_context=context, source=ConstantSource(f"input{number}"))
