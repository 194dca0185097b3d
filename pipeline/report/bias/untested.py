"""Why no slice could be tested, and what would mend it."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bias.outlook import obstacle

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery


def untested(found: "Discovery") -> str:
    """Says what the images lack; for a page on which no slice was tested.

    Args:
        found: by `raylens bias`.

    Returns:
        Sentences: what the rules ask for, what the half that finds slices has, and what to bring.
    """
    rules, main = found.main.verdict.rules, found.main
    if why := obstacle(main.discovery, main.held_out, rules):
        return why
    _, images = np.unique(main.discovery.labels, return_counts=True)
    whole = ", or whole slices instead of one class's part (rules.unit: slice)" if rules.unit == "class" else ""
    return (
        f"The rules ask for {rules.least_images} images of a slice in each half, and for others of their class beside "
        f"them. The half that finds slices has {images.max():,} images of a class at most. Look at more images, or at "
        f"larger slices: fewer components{whole}."
    )
