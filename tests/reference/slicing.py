"""Slicing by its definitions: loops, float64."""

import math

import numpy as np


def gaussian(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Log density with a diagonal covariance, one dimension after another."""
    return sum(-0.5 * (math.log(2 * math.pi * v) + (a - m) ** 2 / v) for a, m, v in zip(x, mean, variance, strict=True))


def maximise(r: np.ndarray, z: np.ndarray, y: np.ndarray, y_hat: np.ndarray, regularisation: float) -> dict:
    """M step of DOMINO: every sum row by row."""
    rows, components = r.shape
    found: dict = {"pi": [], "mean": [], "variance": [], "p": [], "p_hat": [], "n": []}
    for s in range(components):
        n = sum(r[i, s] for i in range(rows)) + 10 * np.finfo(float).eps
        mean = sum(r[i, s] * z[i] for i in range(rows)) / n
        found["n"].append(n)
        found["pi"].append(n / rows)
        found["mean"].append(mean)
        found["variance"].append(sum(r[i, s] * (z[i] - mean) ** 2 for i in range(rows)) / n + regularisation)
        found["p"].append(sum(r[i, s] * y[i] for i in range(rows)) / n)
        found["p_hat"].append(sum(r[i, s] * y_hat[i] for i in range(rows)) / n)
    return found


def expect(model: dict, z: np.ndarray, y: np.ndarray, y_hat: np.ndarray, weights: tuple) -> tuple[np.ndarray, float]:
    """E step of DOMINO: responsibilities, and the mean log likelihood."""
    r, bound = np.zeros((len(z), len(model["pi"]))), 0.0
    for i in range(len(z)):
        terms = []
        for s in range(len(model["pi"])):
            term = math.log(model["pi"][s]) + gaussian(z[i], model["mean"][s], model["variance"][s])
            for weight, row, p in ((weights[0], y[i], model["p"][s]), (weights[1], y_hat[i], model["p_hat"][s])):
                term += weight * math.log(max(float(row @ p), np.finfo(float).tiny)) if weight else 0.0
            terms.append(term)
        total = max(terms) + math.log(sum(math.exp(term - max(terms)) for term in terms))
        r[i] = [math.exp(term - total) for term in terms]
        bound += total / len(z)
    return r, bound


def domino(
    r: np.ndarray, z: np.ndarray, y: np.ndarray, y_hat: np.ndarray, weights: tuple, regularisation: float, steps: int
) -> tuple[dict, list[float]]:
    """So many iterations from given responsibilities: the last model and the mean log likelihood before each."""
    model, bounds = maximise(r, z, y, y_hat, regularisation), []
    for _ in range(steps):
        r, bound = expect(model, z, y, y_hat, weights)
        bounds.append(bound)
        model = maximise(r, z, y, y_hat, regularisation)
    return model, bounds


def cosi(z: np.ndarray, y_hat: np.ndarray, r: np.ndarray, alpha: float, delta: float, steps: int) -> np.ndarray:
    """Responsibilities of FACTS' mixture of one class after so many iterations."""
    rows, components = r.shape
    for _ in range(steps + 1):
        n = r.sum(axis=0) + 10 * np.finfo(float).eps
        terms = np.zeros((rows, components))
        for s in range(components):
            moments = []
            for x, regularisation in ((z, 1e-6), (y_hat, delta)):
                mean = sum(r[i, s] * x[i] for i in range(rows)) / n[s]
                moments.append((mean, sum(r[i, s] * (x[i] - mean) ** 2 for i in range(rows)) / n[s] + regularisation))
            for i in range(rows):
                terms[i, s] = (
                    math.log(n[s] / rows) + gaussian(z[i], *moments[0]) + alpha * gaussian(y_hat[i], *moments[1])
                )
        r = np.exp(terms - terms.max(axis=1, keepdims=True))
        r = r / r.sum(axis=1, keepdims=True)
    return r


def affinity(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Dense normalised affinity of the symmetrised graph of nearest neighbours."""
    n = len(x)
    a = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: float(((x[i] - x[j]) ** 2).sum()))
        for j in others[:neighbours]:
            a[i, j] = 1.0
    w = (a + a.T) / 2
    degree = w.sum(axis=1)
    return np.array([[w[i, j] / math.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])


def log_odds(wrong: dict[str, int], others: dict[str, int], word: str, strength: float) -> float:
    """z of Monroe, Colaresi and Quinn (2008), equation 22, with the pooled frequencies as the prior."""
    totals = sum(wrong.values()), sum(others.values())
    prior = strength * (wrong.get(word, 0) + others.get(word, 0)) / sum(totals)
    delta, variance = 0.0, 0.0
    for sign, group, total in ((1, wrong, totals[0]), (-1, others, totals[1])):
        count = group.get(word, 0)
        delta += sign * math.log((count + prior) / (total + strength - count - prior))
        variance += 1 / (count + prior)
    return delta / math.sqrt(variance)
