"""Features of images by a network: what its classifier reads, or its output where it has no classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ModelError
from pipeline.model import LoadedModel


class Embedder:
    """Embeds images, whole or masked.

    Args:
        model: the network; an encoder without a linear classifier, such as CLIP's image tower, gives its output.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._weights = next(model.module.parameters())
        self._head = model.module.get_submodule(model.head) if model.head is not None else None

    @property
    def width(self) -> int:
        """D."""
        return self._head.in_features if isinstance(self._head, nn.Linear) else self._model.classes

    @torch.no_grad()
    def __call__(self, pixels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Embeds a batch.

        What is masked has the mean colour of the network's own normalisation.

        Args:
            pixels: (N, H, W, C) uint8 as the explained network sees them; resized for one of another size.
            masks: (N, H, W) bool, True where the image is kept; None keeps all.

        Returns:
            (N, D) float32.
        """
        preprocessing = self._model.preprocessing
        own = _resized(_coloured(pixels, preprocessing.channels), preprocessing.size)
        x = preprocessing.normalise(own.to(self._weights.device), self._weights.dtype)
        if masks is not None:
            kept = F.interpolate(masks[:, None].to(x), preprocessing.size, mode="nearest-exact")
            x = x * kept
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        if self._head is None:
            return _flat(self._model.module(x))
        found: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _module, arguments: found.append(arguments[0]))
        try:
            self._model.module(x)
        finally:
            handle.remove()
        return _flat(found[-1])


def _flat(features: Tensor) -> Tensor:
    return features.flatten(1).float()


def _coloured(pixels: Tensor, channels: int) -> Tensor:
    """Grey pixels for a network that wants colours."""
    if pixels.shape[3] == channels:
        return pixels
    if pixels.shape[3] == 1:
        return pixels.expand(-1, -1, -1, channels)
    raise ModelError(
        f"the embedding network takes {channels} channels and the explained one {pixels.shape[3]}; choose another "
        "embedding network, or leave it out to use the explained one's features"
    )


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[1:3]) == size:
        return pixels
    planes = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
