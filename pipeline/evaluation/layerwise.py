"""ML-Att: every method on one layer, so that methods are compared and not the layers they look at.

Rao et al. 2022, section 3.3. What a method does to the input, such as integrating gradients or hiding squares, is done
to the feature map of the model's target layer instead.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attribution import Attribution, Choose, Method
from pipeline.attribution.base import forward_to_layer, hooked, probe
from pipeline.errors import MethodError
from pipeline.model import Layout, LoadedModel, Preprocessing
from pipeline.model.dry_run import tensor_of, with_tensor
from pipeline.model.faults import of_the_machine
from pipeline.model.layers import TargetLayer


class UpperNetwork(nn.Module):
    """The part of a network above its target layer, as a network whose input is the feature map.

    The part below runs on one blank image in each pass, and what it gives is replaced.

    Args:
        model: left as it was.
    """

    blank: Tensor

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.training = model.module.training
        self.network = model.module
        self.entry = nn.Identity()
        self.target = model.layer
        self.register_buffer("blank", torch.zeros_like(probe(model)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) feature maps to (N, K) logits."""
        maps = self.entry(features)

        def enter(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            tensor = tensor_of(output)
            assert tensor is not None
            onward = self.target.layout.from_maps(maps, tensor).clone()  # the network may go on in place
            return with_tensor(output, onward)

        with hooked(self.network.get_submodule(self.target.name), enter):
            return self.network(self.blank)  # type: ignore[no-any-return]


def above(model: LoadedModel) -> LoadedModel:
    """A model of feature maps: what lies above the target layer.

    Args:
        model: of images.

    Returns:
        The model; its input is (N, C, h, w), of which 0 is the baseline.

    Raises:
        MethodError: the score depends on more than the layer's feature map.
    """
    layer = model.layer
    module = UpperNetwork(model)
    if not _decides(module, model):
        raise MethodError(
            f"layer {layer.name!r} of {model.source} does not decide the score alone: class tokens or a residual path "
            "go around it; name a layer that every path passes, such as a stage's output"
        )
    why = f"{layer.name}, the input of what lies above it"
    entry = TargetLayer("entry", Layout("channels_first", layer.layout.grid), layer.channels, why)
    return replace(model, module=module, preprocessing=_features(layer), layer=entry, head=None)


class OnLayer:
    """A method that explains the feature map of the target layer, by what the network above makes of it.

    Args:
        model: of images.
        bind: makes the method for the model above, such as `lambda model: create("ig", model)`.

    Raises:
        MethodError: see `above`; or the method does not fit.
    """

    def __init__(self, model: LoadedModel, bind: Callable[[LoadedModel], Method]) -> None:
        self.model = model
        self.method = bind(above(model))

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """Predicts and explains a batch of images; see `Method.__call__`."""
        capture = forward_to_layer(self.model, x, gradients=False)
        features = self.model.layer.layout.to_maps(capture.output)
        targets = choose(capture.logits)
        return replace(self.method(features, lambda _logits: targets, seeds), logits=capture.logits)


def _decides(module: UpperNetwork, model: LoadedModel) -> bool:
    """Whether the feature map of two images of noise, put into a blank image's pass, gives their logits."""
    capture = forward_to_layer(model, probe(model, 2), gradients=False)
    try:
        with torch.no_grad():
            found = module(model.layer.layout.to_maps(capture.output)).float()
    except RuntimeError as error:
        if of_the_machine(error):
            raise
        return False  # shapes of one image and of two do not go together
    tolerance = torch.finfo(capture.output.dtype).eps ** 0.5 * float(capture.logits.abs().max())
    return found.shape == capture.logits.shape and torch.allclose(found, capture.logits, rtol=0, atol=tolerance)


def _features(layer: TargetLayer) -> Preprocessing:
    """Feature maps are not normalised."""
    grid = layer.layout.grid
    channels = layer.channels
    return Preprocessing(grid, grid, "squash", "bilinear", (0.0,) * channels, (1.0,) * channels, origin=layer.name)
