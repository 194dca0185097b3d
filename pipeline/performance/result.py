"""What a run's predictions are worth, in numbers with their intervals."""

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from scipy.stats import binomtest

from pipeline.performance.calibration import Calibration, expected_error
from pipeline.performance.confusion import Confusion
from pipeline.performance.tally import Tally

DENSE_CLASSES = 50  # up to so many, the confusion matrix is written whole
LARGEST = 100
PLAIN = ("overall", "classes", "slices", "calibration", "statements")


@dataclass(frozen=True)
class Share:
    """Some of a number of images.

    Attributes:
        hits: of them.
        of: all.
        value: hits / of; None of no image.
        low: bound of the Wilson score interval.
        high: bound of the Wilson score interval.
    """

    hits: int
    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Group:
    """Performance on some images.

    Attributes:
        name: of the group.
        images: explained.
        labelled: of these, with a label.
        accuracy: of the labelled.
        top5: share of the labelled whose label is among the five best classes.
        ece: expected calibration error over equal bins; None without labels.
        confidence: mean score.
        confidence_right: mean score of the images that are right; None without one.
        confidence_wrong: mean score of the labelled images that are wrong; None without one.
        margin: mean probability of the first minus the second class.
        entropy: mean, nat.
    """

    name: str
    images: int
    labelled: int
    accuracy: Share
    top5: Share
    ece: float | None
    confidence: float | None
    confidence_right: float | None
    confidence_wrong: float | None
    margin: float | None
    entropy: float | None


@dataclass(frozen=True)
class ClassRow:
    """Performance on the images of one label.

    Attributes:
        index: of the class.
        images: performance on them; its accuracy is the class's recall.
        predicted: labelled images that were predicted to be of this class.
        precision: share of these that are.
        f1: harmonic mean of precision and recall; None where neither is known.
    """

    index: int
    images: Group
    predicted: int
    precision: Share
    f1: float | None


@dataclass(frozen=True)
class Performance:
    """Performance of a run.

    Attributes:
        overall: all images.
        classes: by label, where there is an image with the label or a prediction of it.
        slices: by column and value.
        calibration: of the labelled images; None without one.
        confusion: labelled images by label and prediction.
        statements: what a reader must know of these numbers.
    """

    overall: Group
    classes: tuple[ClassRow, ...]
    slices: dict[str, tuple[Group, ...]]
    calibration: Calibration | None
    confusion: Confusion
    statements: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; of many classes it holds the most frequent mistakes and not the whole matrix."""
        classes = 1 + int(self.confusion.cells.max(initial=-1))
        whole = classes <= DENSE_CLASSES
        plain: dict[str, Any] = to_jsonable_python({name: getattr(self, name) for name in PLAIN})
        return {
            **plain,
            "confusion": self.confusion.matrix(classes).tolist() if whole else None,
            "mistakes": [list(cell) for cell in self.confusion.largest(LARGEST)],
        }


def share(hits: int, of: int, level: float) -> Share:
    """A share with its Wilson score interval (Wilson 1927)."""
    if of == 0:
        return Share(0, 0, None, None, None)
    interval = binomtest(hits, of).proportion_ci(level, method="wilson")
    return Share(hits, of, hits / of, float(interval.low), float(interval.high))


def group(name: str, tally: Tally, level: float) -> Group:
    """Performance from sums.

    Args:
        name: of the group.
        tally: its sums.
        level: of the intervals.

    Returns:
        Rates and means.
    """
    images, labelled, right, in_top5 = (int(count) for count in tally.counts)
    score, margin, entropy, score_right = (float(total) for total in tally.sums)
    return Group(
        name=name,
        images=images,
        labelled=labelled,
        accuracy=share(right, labelled, level),
        top5=share(in_top5, labelled, level),
        ece=expected_error(tally.bins) if labelled else None,
        confidence=_mean(score, images),
        confidence_right=_mean(score_right, right),
        confidence_wrong=_mean(float(tally.bins[1].sum()) - score_right, labelled - right),
        margin=_mean(margin, images),
        entropy=_mean(entropy, images),
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def class_row(index: int, name: str, tally: Tally, predicted: int, level: float) -> ClassRow:
    """Performance of one label.

    Args:
        index: of the class.
        name: of the class.
        tally: of the images with the label.
        predicted: labelled images that were predicted to be of this class.
        level: of the intervals.

    Returns:
        With precision and F1.
    """
    images = group(name, tally, level)
    hits = images.accuracy.hits
    f1 = _mean(2.0 * hits, predicted + images.labelled)
    return ClassRow(index, images, predicted, share(hits, predicted, level), f1)
