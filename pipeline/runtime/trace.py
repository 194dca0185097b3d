"""A function with gradients inside becomes one graph of plain forward operators.

`make_fx` follows the operators that run, those of a backward pass too, so that hooks and `autograd.grad` leave no trace
but their arithmetic. What is not needed for the outputs (gradients nobody reads) is removed.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
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
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), PlainFunctions():
        warnings.simplefilter("ignore")
        graph: GraphModule = make_fx(
            function, tracing_mode="symbolic", decomposition_table=PLAIN, _allow_non_fake_inputs=True
        )(*inputs)
        free = tuple({0: Dim.DYNAMIC} for _ in inputs)
        with torch.no_grad():
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=free, strict=False)
            functional: ExportedProgram = program.run_decompositions({})
    return functional
