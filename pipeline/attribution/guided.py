"""Backward rules of the ReLU: guided backpropagation, deconvnet, and guided Grad-CAM.

`functions` sees a ReLU however it is written, with three exceptions that stay as they are: `clamp(min=0)`, and ReLUs
inside TorchScript or a compiled module.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, missing, probe
from pipeline.attribution.cam import GradCAM
from pipeline.attribution.functions import FunctionRule
from pipeline.attribution.gradient import InputGradients
from pipeline.model import LoadedModel

CEILINGS = {"relu": math.inf, "relu_": math.inf, "relu6": 6.0}


class Rectifier(torch.autograd.Function):
    """min(max(z, 0), ceiling) whose backward pass lets only positive gradients through.

    `gated` also stops them where the forward pass did.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, ceiling: float, gated: bool) -> Tensor:
        """Any shape to the same shape."""
        if gated:
            ctx.save_for_backward((z > 0) & (z < ceiling))
        return z.relu() if ceiling == math.inf else z.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The rule."""
        positive = gradients[0].clamp_min(0)
        return (positive * ctx.saved_tensors[0] if ctx.saved_tensors else positive), None, None


class ReluRule(FunctionRule):
    """Replaces every ReLU and ReLU6 that this thread calls inside the block by `Rectifier`.

    Args:
        gated: see `Rectifier`.

    Attributes:
        replaced: how many calls were replaced.
    """

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.replaced = 0

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`."""
        ceiling = _ceiling(name, args, kwargs)
        if ceiling is None:
            return func(*args, **kwargs)
        self.replaced += 1
        z = args[0] if args else kwargs["input"]
        rectified = Rectifier.apply(z, ceiling, self.gated)
        in_place = name.endswith("_") or kwargs.get("inplace") or (len(args) > 1 and args[-1] is True)
        return z.copy_(rectified) if in_place else rectified


def _ceiling(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Where the function stops rising; None if it is neither a ReLU nor a ReLU6."""
    if name not in ("hardtanh", "hardtanh_"):
        return CEILINGS.get(name)
    low = kwargs.get("min_val", args[1] if len(args) > 1 else -1.0)
    high = kwargs.get("max_val", args[2] if len(args) > 2 else 1.0)
    return float(high) if low == 0 else None


def relu_misfit(model: LoadedModel) -> str | None:
    """Why a backward rule of the ReLU cannot explain this model: it has none."""
    with torch.no_grad(), ReluRule(gated=True) as rule:
        model.module(probe(model))
    return None if rule.replaced else "it has no ReLU whose backward pass could be changed"


class GuidedBackprop(InputGradients):
    """Guided backpropagation: the gradient with g ← ReLU(g) · 1[z > 0] at every ReLU; Σ over channels, signed.

    Departure: a ReLU6 is treated alike, with 1[0 < z < 6]. Other activations (GELU, sigmoid gates) keep their gradient.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "1", True, "input", "", "Springenberg et al. 2015, section 3.4")
    gated = True

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a model without a ReLU."""
        return relu_misfit(model)

    def scores(self, leaf: Tensor) -> Tensor:
        """See `InputGradients.scores`."""
        with ReluRule(gated=self.gated):
            return super().scores(leaf)

    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N, H, W), signed."""
        return g.sum(dim=1)


class Deconvnet(GuidedBackprop):
    """Deconvnet: the gradient with g ← ReLU(g) at every ReLU, whatever its input was; Σ over channels, signed.

    Max-pooling routes gradients to its maxima, which are the paper's switches.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "1", True, "input", "", "Zeiler & Fergus 2014, section 2.1")
    gated = False


class GuidedGradCAM(Method):
    """Guided Grad-CAM: guided backpropagation ⊙ Grad-CAM, upsampled bilinearly to the input; signed.

    The product is taken after the sum over channels, which is the same since Grad-CAM has one value a pixel.
    """

    traits = Traits(Needs.INPUT_GRADIENTS, "2", True, "input", "", "Selvaraju et al. 2017, section 3.2")

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a model without a ReLU, or without a gradient at its layer."""
        return missing(Needs.LAYER_GRADIENTS, model) or relu_misfit(model)

    def __init__(self, model: LoadedModel, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self._coarse = GradCAM(model, seed=seed)
        self._fine = GuidedBackprop(model, seed=seed)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        coarse = self._coarse(x, choose)
        fine = self._fine(x, lambda _: coarse.targets)
        enlarged = F.interpolate(coarse.maps, size=x.shape[2:], mode="bilinear", align_corners=False)
        return Attribution(coarse.logits, coarse.targets, fine.maps * enlarged)
