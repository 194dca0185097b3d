"""Class activation maps. A = activations (N, C, h, w) of the target layer, g = d logit / dA."""

import warnings

import torch
from torch import Tensor

from pipeline.attribution.base import ActivationCAM, GradientCAM, Needs, Traits, forward_to_layer, probe
from pipeline.attribution.eigen import leading_eigenpair
from pipeline.model import LoadedModel
from pipeline.model.layers import NAMED, find_layer


class CAM(GradientCAM):
    """CAM: Σ_k w_k^c A_k, with w^c the row of class c in the linear head behind global average pooling.

    The row is read off the gradient, which for such a head is w^c / hw at every cell and for every image; so no name
    of a head has to be known. Signed, without the head's bias: the mean of the map plus that bias is the logit.
    Departure: none; the paper's sum pooling differs from averaging by the factor hw, which is undone.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Zhou et al. 2016, eq. 2")

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a model whose score is not linear in the average of the layer's cells."""
        if uniform_gradient(model, across_images=True):
            return None
        return f"between layer {model.layer.name!r} and the logits is more than average pooling and a linear head"

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), signed."""
        return weighted_sum(g.sum(dim=(2, 3)), A)


class GradCAM(GradientCAM):
    """Grad-CAM: ReLU(Σ_k mean_u(g_k) A_k).

    Meaningful at the last convolutional layer only, where the gradient is close to constant over the map; a layer
    before it that is named explicitly brings a warning.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Selvaraju et al. 2017, eq. 1 and 2")

    def __init__(self, model: LoadedModel, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        if model.layer.why == NAMED:
            _warn_if_early(model)

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        weights = g.mean(dim=(2, 3))
        return weighted_sum(weights, A).relu()


class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++: ReLU(Σ_k w_k A_k) with w_k = Σ_u α_u ReLU(g_u), α_u = g² / (2 g² + g³ Σ_v A_v).

    g² is cancelled, α ReLU(g) = ReLU(g) / (2 + g Σ_v A_v), so that small gradients do not underflow and no ε is
    needed. Departure: the paper's score is exp(logit); its factor exp(logit) scales a whole map and is left out, since
    it overflows. A denominator of zero, possible where A is negative, gives weight zero.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Chattopadhay et al. 2018, eq. 10 and 19")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        denominator = 2 + g * A.sum(dim=(2, 3), keepdim=True)
        alpha = torch.where(denominator == 0, 0, 1 / denominator)
        weights = (alpha * g.relu()).sum(dim=(2, 3))
        return weighted_sum(weights, A).relu()


class XGradCAM(GradientCAM):
    """XGrad-CAM: ReLU(Σ_k w_k A_k) with w_k = Σ_u g_u A_u / Σ_v A_v.

    A channel whose activations sum to zero gets weight zero. The ReLU is the official code's.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Fu et al. 2020, eq. 8")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        mass = A.sum(dim=(2, 3))
        weights = torch.where(mass == 0, 0, (g * A).sum(dim=(2, 3)) / mass)
        return weighted_sum(weights, A).relu()


class HiResCAM(GradientCAM):
    """HiResCAM: Σ_k g_k ⊙ A_k, signed as in the paper, which has no ReLU."""

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Draelos & Carin 2020, eq. 6")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), signed."""
        return torch.einsum("nchw,nchw->nhw", g, A)


class LayerCAM(GradientCAM):
    """LayerCAM: ReLU(Σ_k ReLU(g_k) ⊙ A_k)."""

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Jiang et al. 2021, eq. 6 to 8")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        return torch.einsum("nchw,nchw->nhw", g.relu(), A).relu()


class EigenCAM(ActivationCAM):
    """Eigen-CAM: A as (hw, C), columns centred, projected on the first right singular vector.

    The singular vector comes from the smaller Gram matrix, batched. Its sign is arbitrary; it is fixed so that the
    largest magnitude of the map is positive, which makes backends agree.
    """

    traits = Traits(Needs.ACTIVATIONS, "1", False, "layer", "", "Muhammad & Yeasin 2020, eq. 4")

    def project(self, A: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) to (N, h, w), signed."""
        return leading_component(A)


class EigenGradCAM(GradientCAM):
    """Eigen-Grad-CAM: Eigen-CAM of g ⊙ A.

    The source is pytorch-grad-cam, where the method was proposed; the sign is fixed as in Eigen-CAM.
    """

    traits = Traits(Needs.LAYER_GRADIENTS, "1", True, "layer", "", "Gildenblat 2021, pytorch-grad-cam")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), signed."""
        return leading_component(g * A)


def weighted_sum(weights: Tensor, A: Tensor) -> Tensor:  # noqa: N803
    """Σ_k w_k A_k: (N, C) and (N, C, h, w) to (N, h, w)."""
    found: Tensor = torch.einsum("nc,nchw->nhw", weights, A)
    return found


def leading_component(A: Tensor) -> Tensor:  # noqa: N803
    """Projection of each cell's centred channel vector on their first principal axis.

    Args:
        A: (N, C, h, w).

    Returns:
        (N, h, w); max |map| is positive. Zeros where all cells are equal, NaN where A has a value that is not finite:
        the eigensolver would refuse the whole batch for one such image.
    """
    finite = A.isfinite().flatten(1).all(dim=1)
    scale = A.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = torch.where(finite[:, None, None, None] & (scale > 0), A / scale, 0)  # squares must not underflow
    cells = scaled.flatten(2).transpose(1, 2)  # (N, hw, C)
    projection = _project(cells - cells.mean(dim=1, keepdim=True)) * scale[:, 0, 0]
    flip = projection.amin(dim=1).abs() > projection.amax(dim=1).abs()
    projection = torch.where(flip[:, None], -projection, projection).reshape(A.shape[0], *A.shape[2:])
    return torch.where(finite[:, None, None], projection, torch.nan)


def _project(cells: Tensor) -> Tensor:
    """(N, hw, C) centred rows to their (N, hw) coordinates on the first right singular vector, by the smaller Gram."""
    if cells.shape[1] <= cells.shape[2]:
        value, vector = leading_eigenpair(cells @ cells.transpose(1, 2))  # of (N, hw, hw)
        return torch.mul(vector, value[:, None].clamp_min(0).sqrt())
    _, vector = leading_eigenpair(cells.transpose(1, 2) @ cells)  # of (N, C, C)
    return torch.einsum("nmc,nc->nm", cells, vector)


def uniform_gradient(model: LoadedModel, *, across_images: bool) -> bool:
    """Whether the gradient at the target layer is the same in every cell, as it is right before average pooling.

    Args:
        model: left as it was.
        across_images: also demand that it does not depend on the image, as with a linear head.

    Returns:
        The finding, on four images of noise and one class.
    """
    capture = forward_to_layer(model, probe(model, 4), gradients=True)
    first = torch.zeros(4, 1, dtype=torch.int64, device=capture.logits.device)
    g = next(capture.gradients(first))
    mean = g.mean(dim=(0, 2, 3) if across_images else (2, 3), keepdim=True)
    tolerance = torch.finfo(capture.output.dtype).eps ** 0.5
    return bool((g - mean).abs().max() <= tolerance * g.abs().max())


def _warn_if_early(model: LoadedModel) -> None:
    size = model.preprocessing.size
    last = find_layer(model.module, size, model.preprocessing.channels)
    if last.layout.grid != model.layer.layout.grid:
        warnings.warn(
            f"Grad-CAM is meaningful at the last convolutional layer only ({last.name!r} here), found layer "
            f"{model.layer.name!r}; hirescam, layercam and normgrad are made for earlier layers",
            stacklevel=3,
        )
