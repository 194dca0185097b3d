"""Whether slices of some images could fail at all: known from labels and predictions, before anything is embedded."""

import numpy as np

from pipeline.bias.verdict import Half, Rules


def obstacle(discovery: Half, held_out: Half, rules: Rules) -> str:
    """Why no slice can be found and confirmed, whatever the slicer and the embedding.

    Args:
        discovery: the half that is to find slices; its memberships are not read.
        held_out: the half that is to confirm them.
        rules: when a slice fails.

    Returns:
        Sentences: what is asked for, what the halves have, and what to bring; empty where a slice may fail.
    """
    if too_few := _too_few(discovery, held_out, rules):
        return too_few
    for verb, half in (("finds", discovery), ("confirms", held_out)):
        if half.correct.all():
            return (
                f"A slice fails where the model errs, and it errs on none of the {len(half.labels):,} images of the "
                f"half that {verb} slices. Bring images that it gets wrong: more of them, or harder ones."
            )
    return ""


def _too_few(discovery: Half, held_out: Half, rules: Rules) -> str:
    """Bounds on what any slice can have: all images of a class but one, or of every class but one each."""
    classes = 1 + max(int(half.labels.max(initial=0)) for half in (discovery, held_out))
    counts = np.stack([np.bincount(half.labels, minlength=classes) for half in (discovery, held_out)])
    of_class, of_any = int(counts.min(axis=0).max()), int((counts - 1).clip(min=0).sum(axis=1).min())
    least = rules.least_images
    if of_any == 0:
        return (
            "A slice is compared with other images of its class, within each half, and in a half no class has two "
            "images, whatever the slicer and the rules. Bring more images of each class: more than "
            f"{2 * least} for slices of one class, more than two for slices of many (rules.unit: slice)."
        )
    asked = f"The rules ask for {least} images of a slice in each half, and for others of their class beside them. "
    if rules.unit == "class" and of_class <= least:
        whole = ", or look at whole slices (rules.unit: slice)" if of_any >= least else ""
        return (
            f"{asked}No class has more than {of_class:,} in both halves. Bring more images of each class, more than "
            f"{2 * least}{whole}."
        )
    if rules.unit == "slice" and of_any < least:
        return f"{asked}In a half {of_any:,} have others at most. Bring more images of each class."
    return ""
