"""Evidence with a planted slice, for slicers."""

import numpy as np

from pipeline.bias.slicing.slicer import Evidence


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def planted(rows: int = 400, seed: int = 0, *, dimensions: int = 6) -> tuple[Evidence, np.ndarray]:
    """Two classes; a blob of the first, apart from the rest of it, is mostly taken for the second. With its members."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=rows)
    member = (labels == 0) & (generator.random(rows) < 0.25)
    embeddings = generator.normal(size=(rows, dimensions)).astype(np.float32)
    embeddings[:, 0] += 6 * labels
    embeddings[member, 1] += 6
    wrong = generator.random(rows) < np.where(member, 0.85, 0.08)
    logits = generator.normal(size=(rows, 2))
    logits[np.arange(rows), np.where(wrong, 1 - labels, labels)] += 4 + np.abs(logits).max()
    maps = generator.normal(scale=0.1, size=(rows, 8, 8)).astype(np.float32)
    maps[member, :4] += 1
    maps[~member, 4:] += 1
    leaning = np.where(member, 0.2, 0.8) + generator.normal(scale=0.03, size=rows)
    amplified = np.where(labels[:, None] == (0, 1), leaning[:, None], 1 - leaning[:, None]).astype(np.float32)
    return Evidence(embeddings, labels, softmax(logits), relevance=maps, amplified=amplified), member
