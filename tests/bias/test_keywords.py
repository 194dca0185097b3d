"""Keywords of misclassified images against the formula."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from reference import slicing as reference

from pipeline.bias.keywords import PRIOR, keywords
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
