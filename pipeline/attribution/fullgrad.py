"""FullGrad: the input's share of the score and the share of every bias, on one map."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits
from pipeline.attribution.functions import FunctionRule
from pipeline.attribution.gradient import channels_last
from pipeline.errors import MethodError
from pipeline.model import LoadedModel


class BiasGradients(FunctionRule):
    """Watches every convolution, linear map and batch norm of a forward pass, and sums b ⊙ d logit / db going back.

    The batch norm's implicit bias is β − γ μ / sqrt(σ² + ε). Gradients are taken as they arrive: none is kept.

    Args:
        size: height and width of the maps, px.

    Attributes:
        maps: (N, H, W) float32, Σ of ψ(b ⊙ gradient) over the layers with a spatial extent.
        total: (N,) float32, Σ of b · gradient over all layers.
    """

    maps: Tensor
    total: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def restart(self, x: Tensor) -> None:
        """Empties the sums, for the next target."""
        self.maps = torch.zeros(len(x), *self.size, device=x.device)
        self.total = torch.zeros(len(x), device=x.device)

    def add(self, part: Tensor) -> None:
        """Adds one layer's (N, ...) float32 shares."""
        if len(part) != len(self.total):
            raise MethodError("a layer of this network sees images in parts; fullgrad has no place for its biases")
        self.total += part.flatten(1).sum(dim=1)
        if part.ndim == 4:
            self.maps += psi(part, self.size)

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`."""
        output = func(*args, **kwargs)
        bias = _bias(name, args, kwargs)
        if bias is not None and output.requires_grad:
            shape = (1, -1, 1, 1) if output.ndim == 4 and name != "linear" else (-1,)
            # A tensor's hook sees the gradient of the value it has now, also if an in-place ReLU changes it later.
            output.register_hook(lambda g: self.add(g.float() * bias.view(shape)))
        return output


def _bias(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """(C,) float32: the bias that a call adds; None if it adds none."""
    if name == "batch_norm":
        if args[1] is None:  # statistics of the batch, as in the standardising of weights: no constant is added
            return None
        mean, variance = (statistic.float() for statistic in args[1:3])
        weight = kwargs.get("weight", args[3] if len(args) > 3 else None)
        offset = kwargs.get("bias", args[4] if len(args) > 4 else None)
        scale = (variance + kwargs.get("eps", args[7] if len(args) > 7 else 1e-5)).rsqrt() * (
            1 if weight is None else weight.float()
        )
        return torch.sub(0 if offset is None else offset.float(), mean * scale)
    if name in ("conv2d", "linear"):
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        return None if bias is None else bias.float()
    return None


def psi(part: Tensor, size: tuple[int, int]) -> Tensor:
    """ψ: magnitude, scaled to 0..1 within each sample and layer, summed over channels, enlarged bilinearly.

    Args:
        part: (N, C, h, w).
        size: H, W.

    Returns:
        (N, H, W), not negative.
    """
    magnitude = part.abs()
    low = magnitude.amin(dim=(1, 2, 3), keepdim=True)
    spread = magnitude.amax(dim=(1, 2, 3), keepdim=True) - low
    scaled = torch.where(spread == 0, 0, (magnitude - low) / spread)
    return F.interpolate(scaled.sum(dim=1, keepdim=True), size=size, mode="bilinear", align_corners=False)[:, 0]


class FullGrad(Method):
    """FullGrad: ψ(x ⊙ g) + Σ over layers and channels of ψ(b ⊙ g_b), at the input's resolution; never negative.

    Self-check: the completeness gap |f − Σ x ⊙ g − Σ b g_b| in logits. It is zero for networks of convolutions, linear
    maps, batch norms, max-pooling and ReLUs; what layer norms, GELUs and gates add is the gap, and is not on the map.
    Departures: as in the official code, ψ scales a layer's channels together, and the biases of layers without a
    spatial extent count in the check only; channels are summed before the enlarging, which is linear.
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS, "1", True, "input", "completeness gap in logits", "Srinivas & Fleuret 2019, eq. 4 and 5"
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses networks of tokens, where almost no bias has a place in the image."""
        tokens = model.layer.layout.kind == "tokens"
        return "its layers hold tokens, and the biases of such layers have no place in the image" if tokens else None

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share one forward pass."""
        height, width = x.shape[2:]
        biases = BiasGradients((height, width))
        with torch.enable_grad(), biases:
            leaf = channels_last(x.detach()).requires_grad_()
            logits = self.model.module(leaf).float()
        targets = choose(logits.detach())
        maps, gaps = [], []
        for column in range(targets.shape[1]):
            biases.restart(x)
            last = column + 1 == targets.shape[1]
            score = logits.gather(1, targets[:, column : column + 1])
            (g,) = torch.autograd.grad(score.sum(), leaf, retain_graph=not last)
            biases.add(x.float() * g.float())
            maps.append(biases.maps)
            gaps.append((score.detach()[:, 0] - biases.total).abs())
        return Attribution(logits.detach(), targets, torch.stack(maps, dim=1), torch.stack(gaps, dim=1))
