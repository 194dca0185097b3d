"""NormGrad: the norm of the weight gradient that a virtual identity layer behind the target layer would receive."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import GradientCAM, Needs, Traits
from pipeline.attribution.cam import uniform_gradient
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

Variant = Literal["conv1x1", "conv3x3", "scaling", "bias", "selective"]


class NormGrad(GradientCAM):
    """NormGrad: at cell u, the Frobenius norm of the share of a virtual layer's weight gradient that u contributes.

    With activations a_u and gradients g_u (vectors over channels), the virtual layer decides the formula:

    - conv1x1: ‖g_u a_uᵀ‖ = ‖a_u‖ ‖g_u‖
    - conv3x3: ‖a_{3x3 around u}‖ ‖g_u‖, zeros beyond the border
    - scaling: ‖a_u ⊙ g_u‖
    - bias: ‖g_u‖; constant right before global average pooling, and refused there
    - selective: ‖ReLU(a_u ⊙ g_u)‖, scaling with only what speaks for the class

    Never negative. Departure: the gradient is that of the target's logit, where the paper takes a training loss's; for
    a loss of the logits the paper's g is a mixture of the gradients of all logits.

    Args:
        model: see `Method`.
        seed: unused.
        variant: one of the above.

    Raises:
        MethodError: the variant is unknown, or it is `bias` right before global pooling.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Rebuffi et al. 2020, table 1")

    def __init__(self, model: LoadedModel, *, seed: int = 0, variant: Variant = "conv1x1") -> None:
        super().__init__(model, seed=seed)
        if variant not in get_args(Variant):
            raise MethodError(f"normgrad has no variant {variant!r}; it has: {', '.join(get_args(Variant))}")
        if variant == "bias" and uniform_gradient(model, across_images=False):
            raise MethodError(
                f"normgrad's variant bias is constant at layer {model.layer.name!r}, right before global pooling; "
                "name an earlier layer with --layer, or take another variant"
            )
        self.variant = variant

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        if self.variant == "scaling":
            return norm(A * g)
        if self.variant == "selective":
            return norm((A * g).relu())
        gradient = norm(g)
        if self.variant == "bias":
            return gradient
        if self.variant == "conv1x1":
            return norm(A) * gradient
        return neighbourhood_norm(A) * gradient


def neighbourhood_norm(A: Tensor) -> Tensor:  # noqa: N803
    """(N, C, h, w) to (N, h, w): the norm of each 3 x 3 neighbourhood over all channels, zeros beyond the border."""
    squares = A.square().sum(dim=1, keepdim=True)
    return (F.avg_pool2d(squares, 3, stride=1, padding=1) * 9).sqrt()[:, 0]


def norm(A: Tensor) -> Tensor:  # noqa: N803
    """(N, C, h, w) to (N, h, w): the Euclidean norm over channels."""
    found: Tensor = torch.linalg.vector_norm(A, dim=1)
    return found
