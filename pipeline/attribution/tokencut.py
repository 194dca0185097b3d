"""TokenCut: the object is one side of a normalised cut through the graph of token similarities."""

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.attention import TokenMethod
from pipeline.attribution.attention_capture import AttentionCapture
from pipeline.attribution.base import Attribution, Choose, Needs, Traits
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

ROUNDING = 1e-9


class TokenCut(TokenMethod):
    """TokenCut: the second smallest generalised eigenvector of (D - W, D) over the keys of the last attention.

    W_ij = 1 where the keys' cosine exceeds τ, else 1e-5. The seed is the token with the greatest |v|, the object its
    side of the mean of v, and of that the connected component that holds the seed. The map is v minus its mean, signed
    so that the seed is positive: positive cells are the object, negative ones the background, and cells on the seed's
    side but apart from it are 0. The same for every class.

    Departures: batched, in float64.

    Args:
        model: the model to explain.
        seed: of the job; not used.
        tau: τ, least cosine of similar tokens.
    """

    traits = Traits(Needs.ATTENTION, "1", False, "grid", "", "Wang et al. 2022, eq. 3 and section 3.2")

    def __init__(self, model: LoadedModel, *, seed: int = 0, tau: float = 0.2) -> None:
        super().__init__(model, seed=seed)
        if not -1 <= tau < 1:
            raise MethodError(f"tau must be in [-1, 1), found {tau}")
        self.tau = tau

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        with torch.no_grad(), AttentionCapture(keep=lambda a: a[:0]) as capture:
            logits = self.model.module(x).float()
        targets = choose(logits)
        assert capture.keys is not None
        keys = capture.keys.transpose(1, 2).flatten(2)[:, self.tokens.layout.prefix :]  # (N, hw, heads d)
        vectors, tokens = cut(keys, self.tau)
        maps = connected(vectors.view(len(x), *self.shape), tokens).to(x.device)
        return Attribution(logits, targets, maps[:, None].float().expand(-1, targets.shape[1], -1, -1))


def cut(keys: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Second smallest generalised eigenvector of (D - W, D), minus its mean, positive at the seed.

    Args:
        keys: (N, P, C), one a token of the grid.
        tau: least cosine of similar tokens.

    Returns:
        (N, P) float64, and the seeds (N,): the first token of greatest magnitude, up to rounding.
    """
    unit = F.normalize(keys.double(), dim=-1)
    W = torch.where(unit @ unit.transpose(1, 2) > tau, 1.0, 1e-5).to(torch.float64)
    root = W.sum(dim=-1).rsqrt()  # D^(-1/2)
    symmetric = torch.eye(W.shape[-1], device=W.device) - root[:, :, None] * W * root[:, None, :]
    v = root * torch.linalg.eigh(symmetric).eigenvectors[:, :, 1]
    centred = v - v.mean(dim=1, keepdim=True)
    greatest = v.abs() >= v.abs().amax(dim=1, keepdim=True) * (1 - ROUNDING)
    seed = greatest.to(torch.uint8).argmax(dim=1, keepdim=True)
    return torch.where(centred.gather(1, seed) < 0, -centred, centred), seed[:, 0]


def connected(vectors: Tensor, seeds: Tensor) -> Tensor:
    """Sets to 0 the positive cells that are not joined to the seed by edges.

    Args:
        vectors: (N, h, w).
        seeds: (N,) index of a positive cell.

    Returns:
        (N, h, w) on the CPU.
    """
    out = vectors.cpu().clone()
    for cells, seed in zip(out, seeds.tolist(), strict=True):
        labels = torch.from_numpy(ndimage.label((cells > 0).numpy())[0])
        cells[(labels > 0) & (labels != labels.flatten()[seed])] = 0
    return out
