"""Whether a difference that images show is more than luck, and the correction for how many were tested."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, wilcoxon

Floats: TypeAlias = NDArray[np.float64]
LEAST = 10
"""Images from which a difference is tested: with fewer, even one that all agree on has a p-value near 0.01."""


def signed_rank(difference: Floats, alternative: Literal["greater", "two-sided"]) -> float | None:
    """Wilcoxon's signed-rank test (1945).

    Args:
        difference: (N,) of each image.
        alternative: `greater` than 0, or `two-sided`.

    Returns:
        The p-value; 1 where no image differs, None with fewer than `LEAST` images.
    """
    if len(difference) < LEAST:
        return None
    return float(wilcoxon(difference, alternative=alternative).pvalue) if difference.any() else 1.0


def adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects for the number of tests (Benjamini & Hochberg 1995).

    Args:
        p_values: of the tests; None where there was none.

    Returns:
        Corrected p-values, None in the same places.
    """
    known = [p for p in p_values if p is not None]
    found = iter(false_discovery_control(known).tolist()) if known else iter(())
    return [None if p is None else next(found) for p in p_values]
