"""Words in the images' space: scores by hand, intervals that hold for all words, files that cannot be used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bias.words import Words, clip_scores, read_words, require_one_space
from pipeline.errors import InputError


def written(path: Path, texts: list[str | None], vectors: list[list[float] | None]) -> str:
    pq.write_table(pa.table({"text": texts, "embedding": pa.array(vectors, pa.list_(pa.float32()))}), path)
    return str(path)


def test_scores_are_differences_of_mean_cosines() -> None:
    generator = np.random.default_rng(0)
    wrong, right = (generator.normal(at, 1, size=(30, 5)).astype(np.float32) for at in (1, -1))
    words = Words(tuple("abc"), generator.normal(1, 1, size=(3, 5)).astype(np.float32))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.astype(float) @ b / np.sqrt((a.astype(float) @ a) * (b.astype(float) @ b)))

    expected = {
        text: np.mean([cosine(word, image) for image in wrong]) - np.mean([cosine(word, image) for image in right])
        for text, word in zip(words.texts, words.vectors, strict=True)
    }
    found = clip_scores(words, wrong, right)
    assert found
    assert [one.text for one in found] == sorted((one.text for one in found), key=lambda text: -expected[text])
    for one in found:
        assert one.score.value == pytest.approx(expected[one.text], abs=1e-6)
        assert 0 < one.score.low < one.score.value < one.score.high
    assert len(clip_scores(words, wrong, right, count=1)) == 1


def test_of_many_words_none_is_told_by_chance() -> None:
    """At 95 % for each, 25 of a thousand words would be."""
    generator = np.random.default_rng(1)
    wrong, right = generator.normal(size=(2, 200, 16)).astype(np.float32)
    words = Words(tuple(map(str, range(1000))), generator.normal(size=(1000, 16)).astype(np.float32))
    assert clip_scores(words, wrong, right) == ()


@pytest.mark.parametrize(("wrong", "right"), [(0, 9), (1, 9), (9, 1), (0, 0)])
def test_too_few_images_say_nothing(wrong: int, right: int) -> None:
    words = Words(("a",), np.ones((1, 3), np.float32))
    assert clip_scores(words, np.ones((wrong, 3), np.float32), -np.ones((right, 3), np.float32)) == ()


@pytest.mark.filterwarnings("error")
def test_images_without_spread_or_length_are_no_fault() -> None:
    words = Words(("a", "b"), np.array([[1, 0], [0, 0]], np.float32))
    assert clip_scores(words, np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)) == ()


def test_a_file_of_words(tmp_path: Path) -> None:
    found = read_words(
        written(tmp_path / "w.parquet", ["sea", None, "bamboo"], [[1, 2], [0, 0], [3, 4]]), "embedding", {}
    )
    assert found.texts == ("sea", "bamboo")
    assert found.vectors.tolist() == [[1, 2], [3, 4]]
    require_one_space(found, np.zeros((9, 2), np.float32))
    with pytest.raises(InputError, match="words have 2 numbers and those of the images 5"):
        require_one_space(found, np.zeros((9, 5), np.float32))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    with pytest.raises(InputError, match="holds lists of unequal lengths"):
        read_words(written(path, ["a", "b"], [[1], [1, 2]]), "embedding", {})
    with pytest.raises(InputError, match="has no word"):
        read_words(written(path, ["a", None], [None, [1]]), "embedding", {})
    with pytest.raises(InputError, match="has no column clip; it has text, embedding"):
        read_words(str(path), "clip", {})
    with pytest.raises(InputError, match="cannot be read"):
        read_words(str(tmp_path / "gone.parquet"), "embedding", {})
