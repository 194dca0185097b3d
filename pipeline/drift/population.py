"""Population drift: scores, classes, accuracy, image sizes, embeddings and map statistics over all images."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from pipeline.drift.finding import Finding, draws_needed, finding
from pipeline.drift.profile import SCORES, SUMMARIES, UNLABELLED, Profile
from pipeline.drift.sample import Sample
from pipeline.drift.two_sample import (
    Floats,
    Shift,
    classifier,
    discrepancy,
    distribution,
    frequencies,
    means,
    proportions,
)
from schemas.audit import DriftSpec
from schemas.run import RunRecord

V = "Cramér's V"
KS = "Kolmogorov-Smirnov distance"
SUBJECTS = {
    "score": "confidence",
    "margin": "margin between the first two classes",
    "entropy": "entropy of the prediction",
    "pixels": "size of the images",
    "aspect": "aspect ratio of the images",
    "heatmap_max": "highest value of the maps",
    "heatmap_min": "lowest value of the maps",
    "mass_centre": "share of the evidence in the centre",
    "gini": "concentration of the evidence",
    "centroid_x": "horizontal place of the evidence",
    "centroid_y": "vertical place of the evidence",
    "self_check": "the method's own check",
    "distance": "distance of the maps from their earlier mean",
}
Cell = TypeVar("Cell", int, tuple[int, str])
LEAST = 2  # numbers of either run to compare them


def subject(name: str) -> str:
    """What a column is, in words."""
    return SUBJECTS.get(name, name.replace("_", " "))


def population(before: Profile, after: Profile, records: tuple[RunRecord, RunRecord]) -> Iterator[Finding]:
    """Compares all images of two runs, embeddings excepted.

    Args:
        before: the earlier run.
        after: the later run.
        records: their `run.json`.

    Yields:
        A finding for everything that both runs have.
    """
    limits = after.spec.thresholds
    images = before.images, after.images
    names = before.names | after.names
    classes = _frequencies(before.predictions, after.predictions, lambda index: _name(names, index))
    yield _finding("predictions", "predicted classes", classes, images, (V, limits.classes))
    for name in (name for name in after.slices if name in before.slices):
        shift = _frequencies(
            before.slices[name], after.slices[name], lambda cell: f"{_name(names, cell[0])} of {cell[1]}"
        )
        yield _finding(f"slice.{name}", f"predicted classes by {name}", shift, images, (V, limits.classes))
    yield from _labels(before, after)
    yield from _rejects(records, limits.rejects)
    left, right = _numbers(before.sample), _numbers(after.sample)
    for name in left:
        counts = int(np.isfinite(left[name]).sum()), int(np.isfinite(right[name]).sum())
        if min(counts) >= LEAST:
            shift = distribution(left[name], right[name])
            place = f"map.{name}" if name in SUMMARIES else name
            yield _finding(place, subject(name), shift, counts, (KS, limits.distribution))


def _labels(before: Profile, after: Profile) -> Iterator[Finding]:
    """What needs labels in both runs."""
    limits, images = after.spec.thresholds, (before.labelled, after.labelled)
    gaps = _gaps(before.sample), _gaps(after.sample)
    if min(len(gap) for gap in gaps) < LEAST:
        return
    names = before.names | after.names
    labels = _frequencies(before.labels, after.labels, lambda index: _name(names, index))
    yield _finding("labels", "labels", labels, images, (V, limits.classes))
    rates = proportions((before.correct, before.labelled), (after.correct, after.labelled))
    yield _finding("accuracy", "accuracy", rates, images, ("absolute difference", limits.accuracy))
    counts = len(gaps[0]), len(gaps[1])
    effect = "absolute difference", limits.calibration
    yield _finding("calibration", "mean confidence minus accuracy", means(*gaps), counts, effect)


def _rejects(records: tuple[RunRecord, RunRecord], threshold: float) -> Iterator[Finding]:
    before, after = records
    shift = proportions((before.rejected, before.images), (after.rejected, after.images))
    images = before.images, after.images
    yield _finding("rejects", "share of rejected images", shift, images, ("absolute difference", threshold))


def embeddings(before: Sample, after: Sample, spec: DriftSpec, comparisons: int) -> Iterator[Finding]:
    """Compares the embeddings of one network in two runs.

    Args:
        before: with `embedding` (n, D).
        after: with `embedding` (m, D).
        spec: of the comparison.
        comparisons: in the family, these two included.

    Yields:
        The maximum mean discrepancy, and what a classifier finds.
    """
    limits, images = spec.thresholds, (len(before), len(after))
    vectors = before["embedding"], after["embedding"]
    draws = draws_needed(comparisons, limits.alpha, spec.permutations)
    kernel = discrepancy(*vectors, draws, np.random.default_rng(spec.seed))
    yield _finding("embedding.mmd", "embeddings", kernel, images, ("MMD", limits.embedding_mmd))
    told = classifier(*vectors, spec.seed)
    effect = "area under the curve over 0.5", limits.embedding_auc
    yield _finding("embedding.auc", "embeddings, by a classifier", told, images, effect)


def _finding(name: str, words: str, shift: Shift, images: tuple[int, int], effect: tuple[str, float]) -> Finding:
    return finding(name, words, shift, family="population", images=images, effect_name=effect[0], threshold=effect[1])


def _frequencies(before: Counter[Cell], after: Counter[Cell], name: Callable[[Cell], str]) -> Shift:
    cells = sorted(before.keys() | after.keys())
    left, right = (np.array([counter[cell] for cell in cells], np.int64) for counter in (before, after))
    shares = left / left.sum(), right / right.sum()
    most = int(np.abs(shares[1] - shares[0]).argmax())
    example = f"{name(cells[most])} from {100 * shares[0][most]:.1f} % to {100 * shares[1][most]:.1f} %"
    return frequencies(left, right)._replace(example=example)


def _name(names: Mapping[int, str], index: int) -> str:
    return names.get(index, str(index))


def _gaps(sample: Sample) -> Floats:
    """(n,) confidence minus whether it is right, of the labelled images."""
    gaps = sample["score"] - (sample["label"] == sample["prediction"])
    return np.asarray(gaps[sample["label"] != UNLABELLED])


def _numbers(sample: Sample) -> dict[str, Floats]:
    width, height = (np.where(sample[name] > 0, sample[name], np.nan) for name in ("width", "height"))
    own = {name: sample[name] for name in (*SCORES, *SUMMARIES)}
    return {**own, "pixels": width * height, "aspect": width / height}
