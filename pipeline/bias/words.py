"""Words in the space of the images' embeddings, as CLIP has both: which ones the errors of a slice are like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_ind

from pipeline.bias.gap import Estimate
from pipeline.bias.gathered import Floats, read_columns, stacked
from pipeline.errors import InputError

TEXT = "text"
LEAST_IMAGES = 2
"""Wrong ones, and right ones: of one alone nothing is known of how they vary."""


@dataclass(frozen=True, eq=False)
class Words:
    """Candidates that the user supplies.

    Attributes:
        texts: W words or phrases.
        vectors: (W, D) float32, their embeddings.
    """

    texts: tuple[str, ...]
    vectors: Floats


@dataclass(frozen=True)
class Word:
    """A word that errors are like.

    Attributes:
        text: of it.
        score: CLIP score: mean cosine with wrong images less that with right ones, -2 to 2; its interval holds for all
            words together.
    """

    text: str
    score: Estimate


def read_words(address: str, column: str, storage: Mapping[str, Any]) -> Words:
    """Reads candidates.

    Args:
        address: a Parquet file with `text` and the column.
        column: lists of equally many numbers.
        storage: fsspec options.

    Returns:
        The words, in the order of the file.

    Raises:
        InputError: the file cannot be read, or holds no word.
    """
    texts: list[str] = []
    vectors: list[Floats] = []
    for batch in read_columns(address, [TEXT, column], storage):
        for text, value in zip(batch[TEXT].to_pylist(), batch[column], strict=True):
            if text is not None and value.is_valid:
                texts.append(str(text))
                vectors.append(np.asarray(value.values, dtype=np.float32))
    if not texts:
        raise InputError(f"{address} has no word: expected a `{TEXT}` and its `{column}` in each row")
    return Words(tuple(texts), stacked(vectors, column, address))


def require_one_space(words: Words, images: Floats) -> None:
    """Refuses words that are not in the space of the images.

    Args:
        words: candidates.
        images: (N, D) embeddings.

    Raises:
        InputError: their embeddings are of another width.
    """
    widths = words.vectors.shape[1], images.shape[1]
    if widths[0] != widths[1]:
        raise InputError(
            f"embeddings of words have {widths[0]} numbers and those of the images {widths[1]}: both must come from "
            "one model, such as the towers of a CLIP; name that of the images with embeddings.model or embeddings.file"
        )


def clip_scores(
    words: Words, wrong: Floats, right: Floats, *, level: float = 0.95, count: int = 10
) -> tuple[Word, ...]:
    """Words that wrong images are more like than right ones (Kim et al. 2024, "Bias-to-Text", eq. 1).

    Departure: the score has an interval, Welch's, at a level that holds for all words (Bonferroni): of many words some
    are always nearer by chance.

    Args:
        words: candidates.
        wrong: (N, D) embeddings of misclassified images.
        right: (M, D) of others of their classes.
        level: of the intervals.
        count: of words at most.

    Returns:
        Words whose whole interval is above 0, the greatest score first; none where there are too few images.
    """
    if min(len(wrong), len(right)) < LEAST_IMAGES:
        return ()
    near, far = (_unit(images) @ _unit(words.vectors).T for images in (wrong, right))
    scores = near.mean(axis=0) - far.mean(axis=0)
    each = 1 - (1 - level) / len(words.texts)
    with np.errstate(invalid="ignore", divide="ignore"):  # images that are all alike
        bounds = ttest_ind(near, far, equal_var=False).confidence_interval(each)
    best = [index for index in np.argsort(-scores, kind="stable").tolist() if bounds.low[index] > 0][:count]
    return tuple(
        Word(words.texts[i], Estimate(float(scores[i]), float(bounds.low[i]), float(bounds.high[i]))) for i in best
    )


def _unit(vectors: Floats) -> npt.NDArray[np.float64]:
    """Rows of length 1."""
    full = vectors.astype(np.float64)
    return np.asarray(full / np.linalg.norm(full, axis=1, keepdims=True).clip(np.finfo(np.float64).tiny))
