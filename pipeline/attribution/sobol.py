"""Sobol total indices of the cells of a grid."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Needs, Traits
from pipeline.attribution.perturbation import Perturbation, Score, require
from pipeline.model import LoadedModel


class Sobol(Perturbation):
    """Total Sobol indices: the share of the score's variance that a cell has a part in, alone or with others.

    A mask is a point of [0, 1]^d, one value a cell, enlarged without smoothing. A and B are two sets of n scrambled
    Sobol points, C_i is A with cell i from B; by Jansen S_i = Σ_j (f(A_j) - f(C_ij))² / (2 n Var f(A)). Not negative,
    and without a sign: a cell that lowers the score counts as one that raises it. Zero where the score never varies.

    Departures: nearest enlargement, so that cells do not mix; the variance divides by n.

    Args:
        model: the model to explain.
        seed: of the job; decides the points, which all images share.
        grid: cells a side; d = grid².
        design: n, a power of two for balanced points.
        chunk: forwards at a time; see `Perturbation`.
        score: `logit` or `probability`.
        baseline: see `Perturbation`.
    """

    traits = Traits(
        Needs.SCORES,
        "design (grid² + 1) + 1",
        True,
        "grid",
        "sum of the total indices; 1 for an additive score, more with interactions",
        "Fel et al. 2021, eq. 3; Jansen 1999",
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        grid: int = 8,
        design: int = 32,
        chunk: int | None = None,
        score: Score = "logit",
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed, chunk=chunk, score=score, baseline=baseline)
        limit = min(*model.preprocessing.size, int((torch.quasirandom.SobolEngine.MAXDIM // 2) ** 0.5))
        require(1 <= grid <= limit, f"grid must be in 1..{limit}, found {grid}")
        require(design >= 2, f"design must be 2 or more, found {design}")
        self.grid = grid
        self.design = design

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one map."""
        return self.grid, self.grid

    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Perturbation.explain`."""
        cells = self.grid**2
        a, b = sobol_points(cells, count=self.design, seed=self.seed)
        base = self._scores(x, a, targets)  # (N, n, k)
        squares = x.new_zeros((*targets.shape, cells), dtype=torch.float64)
        for part in self.parts(cells * self.design, x):
            index = torch.arange(part.start, part.stop)
            cell, point = index // self.design, index % self.design
            mixed = a[point]
            mixed[range(len(index)), cell] = b[point, cell]  # C_i
            gap = base[:, point] - self._scores(x, mixed, targets)  # (N, B, k)
            squares.index_add_(2, cell.to(x.device), gap.square().transpose(1, 2))
        variance = base.var(dim=1, correction=0)[..., None]  # (N, k, 1)
        floor = torch.finfo(torch.float32).eps ** 2 * base.square().mean(dim=1)[..., None]
        varies = variance > floor
        total = torch.where(varies, squares / (2 * self.design * torch.where(varies, variance, 1.0)), 0.0)
        return total.view(*targets.shape, *self.shape), total.sum(dim=2)

    def _scores(self, x: Tensor, points: Tensor, targets: Tensor) -> Tensor:
        found = []
        for part in self.parts(len(points), x):
            coarse = points[part].view(-1, 1, *self.shape).to(x.device)
            masks = F.interpolate(coarse, size=x.shape[2:], mode="nearest")[:, 0]
            found.append(self.masked_scores(x, masks, targets))
        return torch.cat(found, dim=1)


def sobol_points(dimensions: int, *, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two sets of scrambled Sobol points in [0, 1]^d.

    Args:
        dimensions: d.
        count: n.
        seed: of the scrambling.

    Returns:
        A and B, (n, d) float32 each: the two halves of n points in 2 d dimensions.
    """
    engine = torch.quasirandom.SobolEngine(2 * dimensions, scramble=True, seed=seed % 2**63)  # type: ignore[no-untyped-call]
    points = engine.draw(count)
    return points[:, :dimensions].clone(), points[:, dimensions:].clone()
