"""Whether the images of a slice look different from those of its class that are predicted right."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.bias.gap import Estimate

INVERSE_PENALTY = 0.01  # scikit-learn's C: descriptions have more columns than slices have images
ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class Sides:
    """Images of a slice, and images of its class that are predicted right, in one half.

    Attributes:
        inside: (n, D) descriptions of the slice's images.
        right: (m, D) of the others.
    """

    inside: NDArray[np.float32]
    right: NDArray[np.float32]

    @property
    def both(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(n + m, D) and which are the slice's."""
        is_inside = np.repeat([True, False], [len(self.inside), len(self.right)])
        return np.concatenate([self.inside, self.right]), is_inside


def separation(discovery: Sides, held_out: Sides, level: float) -> Estimate | None:
    """Area under the ROC curve of a linear classifier that tells a slice's images from right ones by their looks.

    It is trained on the half where the slice was found and judged on the other one: .5 says that nothing which can be
    seen sets the slice apart.

    Args:
        discovery: descriptions to learn from.
        held_out: descriptions to judge.
        level: of the interval (Hanley & McNeil 1982).

    Returns:
        The area with its interval; None where a side has no image.
    """
    if min(len(part) for side in (discovery, held_out) for part in (side.inside, side.right)) == 0:
        return None
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS, class_weight="balanced")
    )
    model.fit(*discovery.both)
    values, inside = held_out.both
    area = float(roc_auc_score(inside, model.decision_function(values)))
    reach = float(norm.ppf((1 + level) / 2)) * _deviation(area, len(held_out.inside), len(held_out.right))
    return Estimate(area, max(0.0, area - reach), min(1.0, area + reach))


def _deviation(area: float, inside: int, right: int) -> float:
    """Standard deviation of an area under the curve (Hanley & McNeil 1982, eq. 1 and 2)."""
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (inside - 1) * (one - area**2) + (right - 1) * (two - area**2)
    return float(np.sqrt(max(variance, 0.0) / (inside * right)))
