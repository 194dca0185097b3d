"""The same images in both runs: whose predicted class changed, and whose map moved."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.drift.finding import Finding, finding
from pipeline.drift.profile import IDENTITY, NAME
from pipeline.drift.sample import KEY, LAST, Columns, Sample
from pipeline.drift.two_sample import Floats, Shift, exceeding
from schemas.audit import DriftThresholds

SIZE = ("width", "height")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images that both runs hold.

    They are told by the digest of their bytes where both runs have it, whatever their names; else by `sample_id`, and
    by width and height where both runs know them.

    Attributes:
        before: columns of (n,) images, and `map` (n, cells).
        after: the same images in the later run.
        replaced: names that both samples hold, of other images: by their bytes, or by their size.
        repeated: images left out, since a run holds them, or their name, more than once.
    """

    before: Columns
    after: Columns
    replaced: int
    repeated: int

    def __len__(self) -> int:
        return len(self.before[KEY])

    @property
    def renamed(self) -> int:
        """Images that have another name in the later run."""
        return int(np.not_equal(self.before[NAME], self.after[NAME]).sum())

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """(n,) whether the predicted class changed."""
        return np.not_equal(self.before["prediction"], self.after["prediction"])

    def cosine_distance(self) -> Floats:
        """(n,) 1 - cosine of the two signed maps, see `one_minus_cosine`."""
        return one_minus_cosine(self.before["map"], self.after["map"])

    def rank_distance(self) -> Floats:
        """(n,) 1 - Spearman's correlation of the two signed maps; two constant maps are equal."""
        ranks = [rankdata(side["map"], axis=1) for side in (self.before, self.after)]
        return one_minus_cosine(*(rank - rank.mean(axis=1, keepdims=True) for rank in ranks))


def one_minus_cosine(left: Floats, right: Floats) -> Floats:
    """(n,) 1 - cosine of the rows: 0 is equal up to a factor; two empty rows are equal."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    both = norms[0] * norms[1]
    cosine = np.divide((left * right).sum(axis=1), both, out=np.zeros_like(both), where=both > 0)
    return np.where((norms[0] == 0) & (norms[1] == 0), 0.0, 1 - cosine)


def paired(before: Sample, after: Sample) -> Pairs:
    """Finds the images that both samples hold.

    Below the lower of the two samples' highest keys both are complete, so these pairs are a random sample of all.

    Args:
        before: of the earlier run.
        after: of the later run, with the same seed.

    Returns:
        The pairs, by what tells them.
    """
    bound = min(before.bound, after.bound)
    left, left_repeated = _unique(before, IDENTITY, bound)
    right, right_repeated = _unique(after, IDENTITY, bound)
    _, a, b = np.intersect1d(before[IDENTITY][left], after[IDENTITY][right], return_indices=True)
    left, right = left[a], right[b]
    other = [(before[name][left] != after[name][right]) & _known(before, after, name, left, right) for name in SIZE]
    same = ~np.logical_or.reduce(other)
    return Pairs(
        {name: values[left[same]] for name, values in before.columns.items()},
        {name: values[right[same]] for name, values in after.columns.items()},
        replaced=int((~same).sum()) + _replaced(before, after),
        repeated=max(left_repeated, right_repeated),
    )


def _known(
    before: Sample, after: Sample, name: str, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.bool_]:
    return np.logical_and(before[name][left] > 0, after[name][right] > 0)


def _replaced(before: Sample, after: Sample) -> int:
    """Names that stand once in either sample, for images that are told apart."""
    left, right = (_unique(sample, NAME, LAST)[0] for sample in (before, after))
    _, a, b = np.intersect1d(before[NAME][left], after[NAME][right], return_indices=True)
    return int(np.not_equal(before[IDENTITY][left[a]], after[IDENTITY][right[b]]).sum())


def _unique(sample: Sample, column: str, bound: np.uint64) -> tuple[NDArray[np.int64], int]:
    """Rows up to the bound whose value stands once, and how many others there are."""
    rows = np.flatnonzero(sample[KEY] <= bound)
    _, first, counts = np.unique(sample[column][rows], return_index=True, return_counts=True)
    return rows[first[counts == 1]], int(counts[counts > 1].sum())


def pair_findings(pairs: Pairs, limits: DriftThresholds) -> Iterator[Finding]:
    """Compares the images that both runs hold.

    Args:
        pairs: at least one.
        limits: how many may change, and from where a map has moved.

    Yields:
        Flips and moved maps, each against the share that is allowed.
    """
    flips = exceeding(int(pairs.flipped.sum()), len(pairs), limits.flips)
    yield _finding(
        "pairs.flips", "predicted class of the same images", flips, pairs, ("share that flipped", limits.flips)
    )
    distance = pairs.cosine_distance()
    moved = exceeding(int((distance >= limits.pair_distance).sum()), len(pairs), limits.pairs_moved)
    quantiles = {
        f"{name}_{label}": float(np.quantile(values, q))
        for name, values in (("cosine", distance), ("spearman", pairs.rank_distance()))
        for label, q in (("median", 0.5), ("p95", 0.95))
    }
    moved = moved._replace(details=moved.details | quantiles)
    yield _finding("pairs.map", "maps of the same images", moved, pairs, ("share that moved", limits.pairs_moved))


def _finding(name: str, words: str, shift: Shift, pairs: Pairs, effect: tuple[str, float]) -> Finding:
    images = len(pairs), len(pairs)
    return finding(name, words, shift, family="pairs", images=images, effect_name=effect[0], threshold=effect[1])
