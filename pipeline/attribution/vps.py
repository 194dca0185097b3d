"""Visual Precision Search: the order in which superpixels explain the class, found greedily."""

import torch
from torch import Tensor

from pipeline.attribution.base import Needs, Traits
from pipeline.attribution.perturbation import Perturbation, require
from pipeline.attribution.superpixels import superpixels
from pipeline.model import LoadedModel

TIE = 1e-6


class VPS(Perturbation):
    """VPS: regions are added one by one, each time the one with the greatest F(S) = clue(S) + 1 - clue(V ∖ S).

    V are SLICO regions; clue(S) is the target's probability when only S is shown. The first region chosen gets the
    value 1; each later one gets the value before it less |F(S_t) - F(S_t-1)|, and the values are scaled to [0, 1]. The
    map is a ranking: only its order and its steps mean something. m (m + 1) forwards: a batch method.

    As in the official code, which begins one step earlier, at -|F(S_1) - F({})|: the scaling takes that step off again.
    Hidden regions are 0 in normalised space there as here.

    Departures: the paper's clue score is a detector's; this is its form for a classifier, which is that of Chen et al.
    2024 (Less is more) without its confidence and effectiveness scores. The first region within 1e-6 of the best wins,
    so that rounding does not decide between equals; the official code takes whichever comes out greatest.

    Args:
        model: the model to explain.
        seed: of the job; not used.
        segments: wanted number of regions, m.
        chunk: forwards at a time; see `Perturbation`.
        baseline: see `Perturbation`.
    """

    traits = Traits(
        Needs.SCORES,
        "m (m + 1) + 2 for each target",
        True,
        "input",
        "area under the target's probability over the share of the area shown, in the order found",
        "Chen et al. 2025 (Visual Precision Search) and its official code",
        batch_only=True,
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        segments: int = 100,
        chunk: int | None = None,
        baseline: float | None = None,
    ) -> None:
        super().__init__(model, seed=seed, chunk=chunk, score="probability", baseline=baseline)
        require(segments >= 1, f"segments must be 1 or more, found {segments}")
        self.segments = segments

    def explain(self, x: Tensor, logits: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Perturbation.explain`; every image and target has a search of its own."""
        labels = superpixels(x, self.model.preprocessing, count=self.segments, zero=True)
        maps = x.new_zeros((*targets.shape, *x.shape[2:]), dtype=torch.float64)
        areas = x.new_zeros(targets.shape, dtype=torch.float64)
        for i, row in enumerate(targets):
            for j in range(len(row)):
                order, clues, worth = self._search(x[i : i + 1], labels[i], row[j].view(1, 1))
                maps[i, j] = region_values(order, worth)[labels[i]]
                areas[i, j] = area_under(clues, order, labels[i])
        return maps, areas

    def _search(self, x: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Greedy search for one image and target.

        Args:
            x: (1, C, H, W).
            labels: (H, W) int64.
            target: (1, 1) int64.

        Returns:
            The order of the m regions (m,), clue of the first 0..m of them (m + 1,), and F of the first 1..m (m,).
        """
        count = int(labels.max()) + 1
        chosen = torch.zeros(count, dtype=torch.bool, device=x.device)
        clues = [self._clues(x, labels, chosen[None], target)]
        order, worth = [], []
        for _ in range(count):
            left = (~chosen).nonzero()[:, 0]
            grown = chosen.repeat(len(left), 1)
            grown[range(len(left)), left] = True
            clue = self._clues(x, labels, torch.cat([grown, ~grown]), target)
            gain = clue[: len(left)] + 1 - clue[len(left) :]
            best = (gain >= gain.max() - TIE).to(torch.uint8).argmax()  # the first
            chosen[left[best]] = True
            order.append(left[best])
            clues.append(clue[best][None])
            worth.append(gain[best])
        return torch.stack(order), torch.cat(clues), torch.stack(worth)

    def _clues(self, x: Tensor, labels: Tensor, kept: Tensor, target: Tensor) -> Tensor:
        """Probability of the target with only the kept regions shown: (S, m) bool to (S,) float64."""
        parts = self.parts(len(kept), x)
        return torch.cat([self.masked_scores(x, kept[p][:, labels].float(), target)[0, :, 0] for p in parts])


def region_values(order: Tensor, worth: Tensor) -> Tensor:
    """The value of each region: 1 for the first chosen, then less by every |F(S_t) - F(S_t-1)|, down to 0.

    Args:
        order: (m,) regions as they were chosen.
        worth: (m,) F after each choice.

    Returns:
        (m,) float64 by region, in [0, 1]; ones where F never changes.
    """
    drops = worth.diff().abs().cumsum(dim=0)
    scaled = drops / drops[-1] if len(drops) and drops[-1] > 0 else torch.zeros_like(drops)
    values = torch.ones_like(worth)
    values[order[1:]] = 1 - scaled
    return values


def area_under(clues: Tensor, order: Tensor, labels: Tensor) -> Tensor:
    """Trapezoid area under the clue over the share of pixels shown: (m + 1,), (m,), (H, W) to a scalar."""
    sizes = torch.bincount(labels.flatten(), minlength=len(order))[order].double()
    return ((clues[1:] + clues[:-1]) / 2 * sizes / sizes.sum()).sum()
