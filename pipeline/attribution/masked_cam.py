"""CAMs without gradients: a channel's weight is what the score does when only it is left, or when it is taken away."""

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import (
    Attribution,
    Capture,
    Choose,
    Method,
    Needs,
    Traits,
    forward_to_layer,
    generator,
    probe,
)
from pipeline.attribution.folding import Scorer
from pipeline.attribution.gradient import at_least_one, channels_last
from pipeline.attribution.perturbation import chunks, passes_at_once
from pipeline.attribution.tape import UpperPart
from pipeline.model import LoadedModel


class MaskedCAM(Method):
    """ReLU(Σ_k w_k A_k) with weights from scores alone; images one after the other, channels in chunks.

    Args:
        model: see `Method`.
        seed: unused.
        chunk: forward passes of 224 px images at a time, fewer of larger ones; memory grows with it and not with the
            number of channels.
    """

    def __init__(self, model: LoadedModel, *, seed: int = 0, chunk: int = 16) -> None:
        super().__init__(model, seed=seed)
        self.chunk = at_least_one("chunk", chunk)

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forward passes."""
        capture = forward_to_layer(self.model, x, gradients=False)
        targets = choose(capture.logits)
        features = capture.features
        with torch.no_grad():
            weights = torch.stack([self.weights(x, capture, targets, n) for n in range(len(x))])  # (N, k, C)
        maps = torch.einsum("nkc,nchw->nkhw", weights, features).relu()
        return Attribution(capture.logits, targets, maps)

    @abstractmethod
    def weights(self, x: Tensor, capture: Capture, targets: Tensor, n: int) -> Tensor:
        """Weights of the channels for one image.

        Args:
            x: (N, C, H, W) the batch.
            capture: of the batch.
            targets: (N, k).
            n: which image.

        Returns:
            (k, C) float32.
        """


class ScoreCAM(MaskedCAM):
    """Score-CAM: ReLU(Σ_k w_k A_k), w = softmax over channels of the logit of x ⊙ s(up(A_k)), s scaling to 0..1.

    The baseline's score, which the paper subtracts, cancels in the softmax. Channels with a constant map mask nothing
    and get weight zero, as in the official code, which only scales a map; they cost no pass.

    Args:
        model: see `Method`.
        seed: unused.
        chunk: see `MaskedCAM`.
        channels: only this many, those with the highest mean |A|; None for all, as in the paper.
    """

    traits = Traits(Needs.ACTIVATIONS, "channels + 1", True, "layer", "", "Wang et al. 2020, algorithm 1")

    def __init__(self, model: LoadedModel, *, seed: int = 0, chunk: int = 16, channels: int | None = None) -> None:
        super().__init__(model, seed=seed, chunk=chunk)
        self.channels = None if channels is None else at_least_one("channels", channels)

    def weights(self, x: Tensor, capture: Capture, targets: Tensor, n: int) -> Tensor:
        """See `MaskedCAM.weights`."""
        features = capture.features[n]
        chosen = self._chosen(features)
        scores = features.new_full((targets.shape[1], len(features)), -torch.inf)
        for part in chunks(len(chosen), passes_at_once(self.chunk, x)):
            masks = masks_of(features[chosen[part]], (x.shape[2], x.shape[3]))
            logits = self.scorer(channels_last(x[n] * masks.to(x.dtype))).float()
            scores[:, chosen[part]] = logits[:, targets[n]].T
        return scores.softmax(dim=1) if len(chosen) else torch.zeros_like(scores)

    @cached_property
    def scorer(self) -> Scorer:
        """What runs the masked images; made at the first use."""
        return Scorer(self.model)

    def _chosen(self, features: Tensor) -> Tensor:
        """Indices of the channels that are tried; features are (C, h, w)."""
        flat = features.flatten(1)
        varied = (flat.amax(dim=1) > flat.amin(dim=1)).nonzero()[:, 0]
        if self.channels is None or self.channels >= len(varied):
            return varied
        return varied[flat[varied].abs().mean(dim=1).topk(self.channels).indices]


def masks_of(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, h, w) feature maps to (M, 1, H, W) masks: enlarged bilinearly, then scaled to 0..1."""
    large = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
    low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (large - low) / (high - low), 0)


class AblationCAM(MaskedCAM):
    """Ablation-CAM: ReLU(Σ_k w_k A_k), w_k = (y − y_k) / |y|, with y_k the logit when channel k is set to zero.

    Only the part of the network above the layer runs for each channel (see `pipeline.attribution.tape`). Channels that
    are zero already get weight zero without a pass. Departure: |y| for the paper's y, since with a negative logit the
    sign of every weight would turn.

    Args:
        model: see `Method`.
        seed: unused.
        chunk: see `MaskedCAM`; here, passes of the upper part.
    """

    traits = Traits(
        Needs.ACTIVATIONS, "2 + channels above the layer", True, "layer", "", "Desai & Ramaswamy 2020, eq. 3 and 4"
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a network whose score does not follow what is put in place of the layer's output."""
        x = probe(model)
        capture = forward_to_layer(model, x, gradients=False)
        other = torch.randn(capture.output.shape, generator=generator(0, 0)).to(capture.output)
        upper = UpperPart(model, x, capture.logits[0])
        upper.whole = True
        if torch.allclose(*upper(torch.cat([capture.output, other]))):
            return f"its score does not follow what is put in place of the output of its layer {model.layer.name!r}"
        return None

    def __init__(self, model: LoadedModel, *, seed: int = 0, chunk: int = 64) -> None:
        super().__init__(model, seed=seed, chunk=chunk)

    def weights(self, x: Tensor, capture: Capture, targets: Tensor, n: int) -> Tensor:
        """See `MaskedCAM.weights`."""
        upper = UpperPart(self.model, x[n : n + 1], capture.logits[n])
        y = capture.logits[n][targets[n]]  # (k,)
        weights = capture.features.new_zeros(len(y), capture.features.shape[1])
        for channels, ablated in self._ablations(capture.output[n : n + 1], passes_at_once(self.chunk, x)):
            without = upper(ablated)[1 : len(channels) + 1, targets[n]].T  # (k, M)
            weights[:, channels] = y[:, None] - without
        return weights / y[:, None].abs().clamp_min(torch.finfo(weights.dtype).tiny)

    def _ablations(self, output: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(1, ...) layer output to (M,) channels and (at_once + 1, ...) outputs: the true one, then each zeroed.

        All batches have one size; the last is filled up with true outputs.
        """
        layout = self.model.layer.layout
        maps = layout.to_maps(output)
        live = maps.flatten(2).any(dim=2)[0].nonzero()[:, 0]
        size = min(at_once, max(1, len(live)))
        for part in chunks(len(live), size):
            channels = live[part]
            ablated = maps.repeat(size + 1, 1, 1, 1)
            ablated[torch.arange(1, len(channels) + 1, device=live.device), channels] = 0
            yield channels, layout.from_maps(ablated, output.expand(size + 1, *output.shape[1:]))
