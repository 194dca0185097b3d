"""The smallest gap that would show is the rules' own, by trying every number of right images."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from pipeline.bias.trial import Trial
from pipeline.bias.verdict import Half, Rules, verdict
from pipeline.report.bias.smallest_gap import reach, smallest_gap


def tried(images: int, others: int, accuracy: float, rules: Rules, tests: int) -> float | None:
    others_right = round(accuracy * others)
    found = []
    for right in range(images + 1):
        gap = others_right / others - right / images
        table = [[right, images - right], [others_right, others - others_right]]
        if gap > rules.least_gap and fisher_exact(table, alternative="less").pvalue <= rules.q / tests:
            found.append(gap)
    return min(found, default=None)


@pytest.mark.parametrize("images", [4, 15, 60])
@pytest.mark.parametrize("accuracy", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("tests", [1, 30])
def test_as_if_every_slice_had_been_tried(images: int, accuracy: float, tests: int) -> None:
    expected = tried(images, 120, accuracy, Rules(), tests)
    assert smallest_gap(images, 120, accuracy, Rules(), tests=tests) == pytest.approx(expected)


def test_more_images_show_smaller_gaps() -> None:
    gaps = [smallest_gap(images, 10 * images, 0.9, Rules(least_gap=0.0), tests=20) for images in (20, 80, 320)]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_of_a_whole_slice_only_classes_that_have_others_count() -> None:
    """20 images of a class with 40 others; 100 classes more have an image in the slice and none beside it."""
    labels = np.concatenate([np.zeros(60, np.int64), np.arange(1, 101)])
    own = (labels > 0) | (np.arange(160) < 20)
    half = Half(own[:, None].astype(np.float32), labels, np.where(np.arange(160) % 3, labels, labels + 1))
    rules = Rules(unit="slice")
    trial = Trial("none", "image", "", (np.arange(160), np.arange(160)), half, half, verdict(half, half, rules))
    found = reach(trial)
    assert found is not None
    assert found.images == 20
    assert found.gap == pytest.approx(tried(20, 40, 40 / 60, rules, 1))


def test_few_images_show_nothing() -> None:
    assert smallest_gap(2, 40, 0.5, Rules(), tests=10) is None
    assert smallest_gap(20, 0, 0.5, Rules(), tests=10) is None
