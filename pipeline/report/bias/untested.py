"""Why no slice could be tested, and what would mend it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery


def untested(found: "Discovery") -> str:
    """Says what the images lack; for a page on which no slice was tested.

    Args:
        found: by `raylens bias`.

    Returns:
        Sentences: what the rules ask for, what the half that finds slices has, and what to bring.
    """
    rules = found.main.verdict.rules
    _, images = np.unique(found.main.discovery.labels, return_counts=True)
    if images.max() == 1:
        return (
            f"A slice is compared with other images of its class, within each half. The half that finds slices has "
            f"{len(images):,} images of as many classes, so that none has another to be compared with, whatever the "
            f"slicer and the rules. Bring more images of each class: more than {2 * rules.least_images} for slices of "
            "one class, more than two for slices of many (rules.unit: slice)."
        )
    whole = ", or whole slices instead of one class's part (rules.unit: slice)" if rules.unit == "class" else ""
    return (
        f"The rules ask for {rules.least_images} images of a slice in each half, and for others of their class beside "
        f"them. The half that finds slices has {images.max():,} images of a class at most. Look at more images, or at "
        f"larger slices: fewer components{whole}."
    )
