"""Bias statistics by their definitions: loops and enumeration, float64."""

from itertools import combinations
from math import comb, sqrt

import numpy as np
from scipy.stats import binomtest, spearmanr


def p_value(right_inside: list[int], inside: list[int], right: list[int], images: list[int]) -> float:
    """Share of all slices of these sizes within the classes that have as few right ones, by enumeration."""
    totals = {0: 1.0}
    for n, r, m in zip(inside, right, images, strict=True):
        flags = [1] * r + [0] * (m - r)
        chances: dict[int, float] = {}
        for chosen in combinations(range(m), n):
            hits = sum(flags[at] for at in chosen)
            chances[hits] = chances.get(hits, 0.0) + 1 / comb(m, n)
        totals = {
            total: sum(p * chances.get(total - known, 0.0) for known, p in totals.items())
            for total in range(max(totals) + n + 1)
        }
    return sum(p for total, p in totals.items() if total <= sum(right_inside))


def newcombe(hits: int, images: int, other_hits: int, others: int) -> tuple[float, float, float]:
    """Share of the others minus share of the images: method 10 of Newcombe (1998)."""
    own, rest = hits / images, other_hits / others
    own_ci = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    rest_ci = binomtest(other_hits, others).proportion_ci(0.95, method="wilson")
    below = sqrt((rest - rest_ci.low) ** 2 + (own_ci.high - own) ** 2)
    above = sqrt((rest_ci.high - rest) ** 2 + (own - own_ci.low) ** 2)
    return rest - own, rest - own - below, rest - own + above


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """Corrected p-values by the step-up rule."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected = [0.0] * len(p_values)
    least = 1.0
    for rank in range(len(order), 0, -1):
        least = min(least, p_values[order[rank - 1]] * len(p_values) / rank)
        corrected[order[rank - 1]] = least
    return corrected


def distance(maps: np.ndarray, inside: np.ndarray, labels: np.ndarray) -> float:
    """Total variation of the slice's mean map and of the others', their classes weighted as in the slice."""
    shares = np.stack([np.maximum(one, 0) / np.maximum(one, 0).sum() for one in maps])
    other = np.zeros(maps.shape[1:])
    for label in labels[inside]:
        other += shares[~inside & (labels == label)].mean(axis=0) / inside.sum()
    return float(np.abs(shares[inside].mean(axis=0) - other).sum() / 2)


def within_class_spearman(a: np.ndarray, b: np.ndarray, classes: np.ndarray) -> float:
    """Mean of the classes' correlations, by their images."""
    values = [
        (spearmanr(a[classes == one], b[classes == one]).statistic, np.sum(classes == one)) for one in set(classes)
    ]
    return sum(rho * n for rho, n in values) / sum(n for _, n in values)


def group_dro(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, rate: float, group_rate: float, penalty: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of Sagawa et al. (2020) over all images and the mean layer, image by image."""
    classes = labels.max() + 1
    weights, bias = np.zeros((classes, x.shape[1])), np.zeros(classes)
    q = np.ones(groups.max() + 1) / (groups.max() + 1)
    sums = [np.zeros_like(weights), np.zeros_like(bias)]
    for _ in range(steps):
        losses, slopes = np.zeros(len(q)), [[penalty * weights, 0 * bias] for _ in q]
        for image, label, group in zip(x, labels, groups, strict=True):
            logits = weights @ image + bias
            p = np.exp(logits - logits.max())
            p /= p.sum()
            size = np.sum(groups == group)
            losses[group] -= np.log(p[label]) / size
            error = (p - np.eye(classes)[label]) / size
            slopes[group][0] = slopes[group][0] + np.outer(error, image)
            slopes[group][1] = slopes[group][1] + error
        q = q * np.exp(group_rate * losses)
        q /= q.sum()
        weights = weights - rate * sum(share * slope[0] for share, slope in zip(q, slopes, strict=True))
        bias = bias - rate * sum(share * slope[1] for share, slope in zip(q, slopes, strict=True))
        sums = [sums[0] + weights, sums[1] + bias]
    return sums[0] / steps, sums[1] / steps
