"""Keywords of misclassified images against the formula, and CLIP scores by hand."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from reference import slicing as reference

from pipeline.bias.keywords import PRIOR, clip_scores, keywords
from pipeline.errors import MethodError

CAPTIONS = (
    *("a bird on bamboo leaves", "the bird in a bamboo forest", "one bird in bamboo", "a small bird and bamboo"),
    *("a bird over the sea", "a bird on the beach", "the bird and the sea", "a bird at the sea", "small bird, sea"),
)
WRONG = np.array([True] * 4 + [False] * 5)


def words(captions: Iterable[str]) -> dict[str, int]:
    """Captions with each word or pair, by hand; stop words are gone."""
    stop = {"a", "on", "the", "in", "one", "and", "over", "at"}
    counts: Counter[str] = Counter()
    for caption in captions:
        left = [word for word in caption.replace(",", "").split() if word not in stop]
        counts.update({*left, *(f"{a} {b}" for a, b in pairwise(left))})
    return counts


def test_keywords_are_what_only_the_misclassified_share() -> None:
    found = keywords(CAPTIONS, WRONG)
    assert [word.text for word in found] == ["bamboo", "bird bamboo"]
    wrong, others = words(CAPTIONS[:4]), words(CAPTIONS[4:])
    for word in found:
        assert (word.wrong, word.others) == (wrong[word.text], others.get(word.text, 0))
        assert word.z == pytest.approx(reference.log_odds(wrong, others, word.text, PRIOR), rel=1e-9)
    assert {word.text for word in keywords(CAPTIONS, ~WRONG, count=2)} == {"sea", "bird sea"}
    assert len(keywords(CAPTIONS, WRONG, count=1)) == 1


@pytest.mark.parametrize(
    ("captions", "wrong"),
    [
        (["a bird"] * 4, [True] * 4),
        (["a bird"] * 4, [False] * 4),
        (["the", "a"], [True, False]),
        (["", ""], [True, False]),
        ([], []),
    ],
)
def test_nothing_to_tell_apart_gives_no_keywords(captions: list[str], wrong: list[bool]) -> None:
    assert keywords(captions, np.array(wrong, dtype=bool)) == ()


def test_equal_captions_give_no_keywords_above_others() -> None:
    assert keywords(["a red bird"] * 10, np.arange(10) < 5) == ()


def test_captions_must_be_one_an_image() -> None:
    with pytest.raises(MethodError, match="expected 9 captions, one an image, found 8"):
        keywords(CAPTIONS[1:], WRONG)


def test_clip_scores_are_differences_of_mean_cosines() -> None:
    generator = np.random.default_rng(0)
    texts, images, wrong = generator.normal(size=(3, 5)), generator.normal(size=(8, 5)), np.arange(8) < 3

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    expected = [
        np.mean([cosine(text, image) for image in images[wrong]])
        - np.mean([cosine(text, image) for image in images[~wrong]])
        for text in texts
    ]
    np.testing.assert_allclose(clip_scores(texts, images, wrong), expected, rtol=1e-12)
    with pytest.raises(MethodError, match=r"one CLIP model, found widths \(4, 5\)"):
        clip_scores(texts[:, :4], images, wrong)
    with pytest.raises(MethodError, match="bring some of each"):
        clip_scores(texts, images, np.zeros(8, dtype=bool))
