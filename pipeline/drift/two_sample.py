"""Two-sample tests, each with an effect that does not grow with the number of images."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats: TypeAlias = NDArray[np.floating]

COMPONENTS = 32
TREES = 200
LEAF = 5
RARE = 5.0  # least expected images of a class for the chi-squared distribution to hold (Cochran 1954)
DRAW_BYTES = 64 * 2**20


class Shift(NamedTuple):
    """What a test found.

    Attributes:
        effect: how large; 0 is none.
        p_value: chance of an effect like this one where nothing changed.
        details: other numbers to read beside it.
        example: the part that changed most, in words; empty where there are no parts.
    """

    effect: float
    p_value: float
    details: dict[str, float]
    example: str = ""


def distribution(before: Floats, after: Floats) -> Shift:
    """Kolmogorov-Smirnov distance of numbers, with the Wasserstein distance in pooled standard deviations.

    Args:
        before: (n,); NaN is left out.
        after: (m,); NaN is left out.

    Returns:
        The effect is the largest difference of the distribution functions, 0 to 1.
    """
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    found = stats.ks_2samp(before, after, method="asymp")
    scale = float(np.concatenate([before, after]).std())
    moved = float(stats.wasserstein_distance(before, after)) / scale if scale > 0 else 0.0
    medians = {"median_before": float(np.median(before)), "median_after": float(np.median(after))}
    return Shift(float(found.statistic), float(found.pvalue), {"wasserstein": moved, **medians})


def frequencies(before: NDArray[np.int64], after: NDArray[np.int64]) -> Shift:
    """Whether classes are as frequent as before: chi-squared, Cramér's V with Bergsma's correction (2013, eq. 4 to 6).

    Args:
        before: (K,) images by class.
        after: (K,) images by class.

    Returns:
        The effect is V, 0 to 1, over classes of which the rare ones are taken together; `total_variation` is the share
        of images that would have to change class, over all of them.
    """
    table = _frequent(np.stack([before, after]).astype(np.float64))
    total = table.sum()
    moved = float(np.abs(before / before.sum() - after / after.sum()).sum() / 2)
    if table.shape[1] < 2:
        return Shift(0.0, 1.0, {"total_variation": moved})
    found = stats.chi2_contingency(table, correction=False)
    columns = table.shape[1]
    phi = max(0.0, float(found.statistic) / total - (columns - 1) / (total - 1))
    rank = min(2 - 1 / (total - 1), columns - (columns - 1) ** 2 / (total - 1)) - 1
    return Shift(float(np.sqrt(phi / rank)), float(found.pvalue), {"total_variation": moved})


def _frequent(table: Floats) -> Floats:
    """(2, K') classes that are expected often enough, the others as one."""
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    rare = expected.min(axis=0) < RARE
    return np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)]) if rare.any() else table


def proportions(before: tuple[int, int], after: tuple[int, int]) -> Shift:
    """Whether a share of images changed: Fisher's exact test.

    Args:
        before: hits and images.
        after: hits and images.

    Returns:
        The effect is the absolute difference of the shares.
    """
    shares = before[0] / before[1], after[0] / after[1]
    table = [[before[0], before[1] - before[0]], [after[0], after[1] - after[0]]]
    p_value = float(stats.fisher_exact(table).pvalue)
    return Shift(abs(shares[1] - shares[0]), p_value, {"before": shares[0], "after": shares[1]})


def means(before: Floats, after: Floats) -> Shift:
    """Whether a mean changed: Welch's t-test; the effect is the absolute difference.

    Args:
        before: (n,).
        after: (m,).

    Returns:
        The effect in the unit of the numbers.
    """
    centre = float(before.mean()), float(after.mean())
    p_value = 1.0
    if before.std() + after.std() > 0:
        p_value = float(stats.ttest_ind(before, after, equal_var=False).pvalue)
    elif centre[0] != centre[1]:
        p_value = 0.0
    return Shift(abs(centre[1] - centre[0]), p_value, {"before": centre[0], "after": centre[1]})


def exceeding(hits: int, of: int, allowed: float) -> Shift:
    """Whether more than an allowed share of images did something: one-sided binomial test.

    Args:
        hits: images that did.
        of: images.
        allowed: share.

    Returns:
        The effect is the share, with its Wilson interval.
    """
    found = stats.binomtest(hits, of, allowed, alternative="greater")
    interval = stats.binomtest(hits, of).proportion_ci(method="wilson")
    return Shift(hits / of, float(found.pvalue), {"low": float(interval.low), "high": float(interval.high)})


def discrepancy(before: Floats, after: Floats, draws: int, generator: np.random.Generator) -> Shift:
    """Maximum mean discrepancy with a Gaussian kernel of the median distance (Gretton et al. 2012, eq. 3).

    Args:
        before: (n, D) vectors.
        after: (m, D) vectors.
        draws: permutations.
        generator: of the permutations.

    Returns:
        The effect is the square root of the unbiased estimate, 0 where that is negative.
    """
    squared = pdist(np.concatenate([before, after]), "sqeuclidean")
    width = float(np.median(squared))
    kernel = squareform(np.exp(-squared / width) if width > 0 else np.ones_like(squared)).astype(np.float32)
    n, m = len(before), len(after)
    degree, total = kernel.sum(axis=1), float(kernel.sum(dtype=np.float64))

    def squared_discrepancy(member: Floats) -> Floats:
        inner = np.einsum("bn,bn->b", member @ kernel, member, dtype=np.float64)
        across = (member @ degree).astype(np.float64) - inner
        rest = total - inner - 2 * across
        return np.asarray(inner / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m))

    observed, drawn = permuted(squared_discrepancy, n, m, draws, generator)
    return Shift(float(np.sqrt(max(0.0, observed))), permutation_p(observed, drawn), {})


def classifier(before: Floats, after: Floats, seed: int) -> Shift:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017): can a forest tell of which run held-out vectors are?

    Args:
        before: (n, D) vectors, half of which train.
        after: (m, D) vectors, half of which train.
        seed: of the forest and of the halves.

    Returns:
        The effect is the area under the curve over 0.5, 0 where it is below; p-value of Mann and Whitney's test.
    """
    vectors = np.concatenate([before, after])
    member = np.repeat([0, 1], [len(before), len(after)])
    order = np.random.default_rng(seed).permutation(len(member))
    train, held = order[::2], order[1::2]
    components = min(COMPONENTS, vectors.shape[1], len(train))
    forest = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, random_state=seed)
    model = make_pipeline(StandardScaler(), PCA(components, random_state=seed), forest)
    scores = model.fit(vectors[train], member[train]).predict_proba(vectors[held])[:, 1]
    area = float(roc_auc_score(member[held], scores))
    ranks = stats.mannwhitneyu(scores[member[held] == 1], scores[member[held] == 0], alternative="greater")
    return Shift(max(0.0, area - 0.5), float(ranks.pvalue), {"auc": area})


def mean_distance(before: Floats, after: Floats, draws: int, generator: np.random.Generator) -> Shift:
    """Total variation of two mean maps: the share of the evidence that lies elsewhere.

    Args:
        before: (n, cells), rows that sum to 1.
        after: (m, cells).
        draws: permutations.
        generator: of the permutations.

    Returns:
        The effect is the distance over what permutations give on average, so that it is about 0 for few images too.
    """
    maps = np.concatenate([before, after])
    n, m = len(before), len(after)
    total = maps.sum(axis=0)

    def distance(member: Floats) -> Floats:
        left = member @ maps
        return np.asarray(np.abs(left / n - (total - left) / m).sum(axis=1) / 2)

    observed, drawn = permuted(distance, n, m, draws, generator)
    effect = max(0.0, observed - float(drawn.mean()))
    return Shift(effect, permutation_p(observed, drawn), {"distance": observed})


def permuted(
    statistic: Callable[[Floats], Floats], n: int, m: int, draws: int, generator: np.random.Generator
) -> tuple[float, Floats]:
    """A statistic of two samples, and of random splits of all their rows.

    Args:
        statistic: of (B, n + m) float32, 1 where a row is of the first sample: (B,) values.
        n: rows of the first sample.
        m: rows of the second.
        draws: random splits.
        generator: of the splits.

    Returns:
        The observed value, and (draws,) others.
    """
    first = np.zeros((1, n + m), np.float32)
    first[0, :n] = 1
    sizes = draw_sizes(draws, n + m)
    drawn = [statistic(generator.permuted(first.repeat(size, axis=0), axis=1)) for size in sizes]
    return float(statistic(first)[0]), np.concatenate(drawn)


def draw_sizes(draws: int, rows: int) -> list[int]:
    """How many of the draws over so many rows are made at a time, within `DRAW_BYTES`."""
    chunk = max(1, DRAW_BYTES // (8 * rows))
    return [min(chunk, draws - start) for start in range(0, draws, chunk)]


def permutation_p(observed: float, drawn: Floats) -> float:
    """(1 + number as large) / (1 + draws) (Phipson & Smyth 2010); rounding does not make a tie an exceedance."""
    tolerance = 1e-6 * max(1e-6, float(np.abs(drawn).max()))
    return float((1 + np.count_nonzero(drawn >= observed - tolerance)) / (1 + len(drawn)))
