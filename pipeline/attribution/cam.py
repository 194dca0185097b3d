"""Class activation maps. A = activations (N, C, h, w) of the target layer, g = d logit / dA."""

import torch
from torch import Tensor

from pipeline.attribution.base import ActivationCAM, GradientCAM, Needs, Traits


class GradCAM(GradientCAM):
    """Grad-CAM: ReLU(Σ_k mean_u(g_k) A_k).

    Meaningful at the last convolutional layer only, where the gradient is close to constant over the map.
    """

    traits = Traits(Needs.GRADIENTS, "1", True, "layer", "", "Selvaraju et al. 2017, eq. 1 and 2")

    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) twice to (N, h, w), not negative."""
        weights = g.mean(dim=(2, 3))
        return torch.einsum("nc,nchw->nhw", weights, A).relu()


class EigenCAM(ActivationCAM):
    """Eigen-CAM: A as (hw, C), columns centred, projected on the first right singular vector.

    The singular vector comes from the smaller Gram matrix, batched. Its sign is arbitrary; it is fixed so that the
    largest magnitude of the map is positive, which makes backends agree.
    """

    traits = Traits(Needs.ACTIVATIONS, "1", False, "layer", "", "Muhammad & Yeasin 2020, eq. 4")

    def project(self, A: Tensor) -> Tensor:  # noqa: N803
        """(N, C, h, w) to (N, h, w), signed."""
        return leading_component(A)


def leading_component(A: Tensor) -> Tensor:  # noqa: N803
    """Projection of each cell's centred channel vector on their first principal axis.

    Args:
        A: (N, C, h, w).

    Returns:
        (N, h, w); max |map| is positive. Zeros where all cells are equal.
    """
    cells = A.flatten(2).transpose(1, 2)  # (N, hw, C)
    cells = cells - cells.mean(dim=1, keepdim=True)
    n, count, channels = cells.shape
    if count <= channels:
        values, vectors = torch.linalg.eigh(cells @ cells.transpose(1, 2))  # (N, hw, hw)
        projection = vectors[:, :, -1] * values[:, -1:].clamp_min(0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(cells.transpose(1, 2) @ cells)  # (N, C, C)
        projection = torch.einsum("npc,nc->np", cells, vectors[:, :, -1])
    flip = projection.amin(dim=1).abs() > projection.amax(dim=1).abs()
    return torch.where(flip[:, None], -projection, projection).reshape(n, *A.shape[2:])
