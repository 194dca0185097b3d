"""Bias-to-Text (Kim et al. 2024): words that captions of misclassified images share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import CountVectorizer

from pipeline.attribution.perturbation import require

PRIOR = 50.0
"""Words that the prior of a group weighs as much as (α₀ of Monroe et al.)."""
LEAST_CAPTIONS = 3


@dataclass(frozen=True)
class Keyword:
    """A word or a pair of words.

    Attributes:
        text: in lower case.
        wrong: captions of misclassified images with it.
        others: captions of the other images with it.
        z: log odds ratio over its standard deviation; above 0 where misclassified images have more of it.
    """

    text: str
    wrong: int
    others: int
    z: float


def keywords(captions: Sequence[str], wrong: npt.NDArray[np.bool_], *, count: int = 20) -> tuple[Keyword, ...]:
    """Words that misclassified images have more of than the other images.

    Smoothed log odds with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, equations 16, 20 and 22),
    whose pseudo-counts are the words' frequencies in all captions. A caption counts for a word once. English stop words
    are left out, and words of fewer than three captions.

    Args:
        captions: N, one an image, of a slice or a class.
        wrong: (N,) whether an image is misclassified.
        count: of keywords at most.

    Returns:
        Keywords with z above 0, falling; none where captions have no words in common, or all images are alike.

    Raises:
        MethodError: there is not a caption an image.
    """
    require(len(captions) == len(wrong), f"expected {len(wrong)} captions, one an image, found {len(captions)}")
    vectoriser = CountVectorizer(stop_words="english", ngram_range=(1, 2), binary=True)
    try:
        table = vectoriser.fit_transform(captions)
    except ValueError:  # scikit-learn's word for captions of stop words only
        return ()
    counts = np.stack([np.asarray(table[group].sum(axis=0), dtype=np.float64).ravel() for group in (wrong, ~wrong)])
    if not counts.sum(axis=1).all():
        return ()
    z = log_odds(counts)
    words = vectoriser.get_feature_names_out()
    often = counts.sum(axis=0) >= LEAST_CAPTIONS
    best = [word for word in np.argsort(-z, kind="stable") if often[word] and z[word] > 0][:count]
    return tuple(Keyword(str(words[w]), int(counts[0, w]), int(counts[1, w]), float(z[w])) for w in best)


def log_odds(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """z of the smoothed log odds ratio of each word between two groups.

    Args:
        counts: (2, W) of each word in each group.

    Returns:
        (W,) above 0 where the first group has more of the word.
    """
    totals = counts.sum(axis=1, keepdims=True)
    prior = PRIOR * counts.sum(axis=0) / counts.sum()
    smoothed = counts + prior
    odds = np.log(smoothed / (totals + PRIOR - smoothed))
    return np.asarray((odds[0] - odds[1]) / np.sqrt((1 / smoothed).sum(axis=0)))
