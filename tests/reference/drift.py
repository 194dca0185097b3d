"""Two-sample statistics by their definitions: loops, float64."""

from itertools import pairwise

import numpy as np


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the empirical distribution functions."""
    return max(abs(np.mean(a <= x) - np.mean(b <= x)) for x in np.concatenate([a, b]))


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Area between the empirical distribution functions."""
    points = np.sort(np.concatenate([a, b]))
    return sum((y - x) * abs(np.mean(a <= x) - np.mean(b <= x)) for x, y in pairwise(points))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate with a Gaussian kernel of the median squared distance of all pairs."""
    rows = [*a.astype(float), *b.astype(float)]
    n, m = len(a), len(b)
    distance = {(i, j): float(((rows[i] - rows[j]) ** 2).sum()) for i in range(n + m) for j in range(n + m)}
    width = float(np.median([d for (i, j), d in distance.items() if i < j]))
    kernel = {pair: np.exp(-d / width) for pair, d in distance.items()}
    within_a = sum(kernel[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel[i, j] for i in range(n, n + m) for j in range(n, n + m) if i != j) / (m * (m - 1))
    across = sum(kernel[i, j] for i in range(n) for j in range(n, n + m)) / (n * m)
    return within_a + within_b - 2 * across


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the absolute difference of two mean maps, cell by cell."""
    return sum(abs(a[:, cell].mean() - b[:, cell].mean()) for cell in range(a.shape[1])) / 2


def cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Of two rows of counts, with Bergsma's correction; no rare classes."""
    n, columns = a.sum() + b.sum(), len(a)
    chi2 = sum(
        (row[k] - row.sum() * (a[k] + b[k]) / n) ** 2 / (row.sum() * (a[k] + b[k]) / n)
        for row in (a, b)
        for k in range(columns)
    )
    phi2 = max(0.0, chi2 / n - (columns - 1) / (n - 1))
    return float(np.sqrt(phi2 / min(2 - 1 / (n - 1) - 1, columns - (columns - 1) ** 2 / (n - 1) - 1)))


def resampled(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean over each new cell of the map as a function of the plane, by a fine grid that both divide."""
    height, width = image.shape
    fine = np.kron(image, np.ones((rows, columns)))
    return fine.reshape(rows, height, columns, width).mean(axis=(1, 3))
