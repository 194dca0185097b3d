"""The leading eigenvector of a Gram matrix, as one operator that a compiled graph can replace by plain ones."""

import torch
from torch import Tensor


@torch.library.custom_op("raylens::leading_eigenpair", mutates_args=())
def leading_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue and its eigenvector, whose sign is arbitrary.

    Args:
        gram: (N, n, n) symmetric, positive semi-definite.

    Returns:
        (N,) eigenvalues and (N, n) unit eigenvectors.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values[:, -1].clone(), vectors[:, :, -1].clone()


@leading_eigenpair.register_fake
def _shapes(gram: Tensor) -> tuple[Tensor, Tensor]:
    return gram.new_empty(gram.shape[:1]), gram.new_empty(gram.shape[:2])
