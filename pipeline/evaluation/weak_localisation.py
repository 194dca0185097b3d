"""Weakly supervised localisation of a measured run: thresholds are chosen, and pixels counted, over all its images.

After Choe et al. 2020. What an image adds is known only once the run is, so that it is read twice: first the counts,
then a number for each image. Only these numbers grow with the run.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.evaluation.boxes import DELTAS, LEVELS, SCORE_BINS, found_at, found_counts, pixel_precision
from pipeline.evaluation.comparison import Values
from pipeline.stream.finished import FinishedRun
from schemas.measures import BY_THRESHOLD

VERSIONS = (("max_box_acc", (0.5,)), ("max_box_acc_v2", DELTAS))
"""Names of MaxBoxAcc and its least overlaps, in the order of the sweeps."""
HELD_OUT = "_held_out"
PXAP = "pxap"
MAX_BOX_ACC = tuple(f"{name}{suffix}" for name, _ in VERSIONS for suffix in ("", HELD_OUT))
MEASURES = (*MAX_BOX_ACC, PXAP)
"""Measures of images with boxes, better where they are higher."""
*SWEEPS, HISTOGRAM = BY_THRESHOLD


@dataclass
class Counts:
    """What thresholds are chosen by.

    Attributes:
        found: of each version, (2, δ, 255) int64: images of both halves with their box found, by level.
    """

    found: list[Tensor] = field(
        default_factory=lambda: [torch.zeros(2, len(deltas), LEVELS, dtype=torch.int64) for _, deltas in VERSIONS]
    )

    def add(self, halves: Tensor, sweeps: Sequence[Tensor]) -> None:
        """Counts some images.

        Args:
            halves: (N,) int64 of `half_of`.
            sweeps: (N, 255) of each version.
        """
        for found, sweep, (_, deltas) in zip(self.found, sweeps, VERSIONS, strict=True):
            for half in (0, 1):
                found[half] += found_counts(sweep[halves == half], deltas)

    def values(self, halves: Tensor, sweeps: Sequence[Tensor]) -> Iterator[Tensor]:
        """What some of the counted images add.

        Args:
            halves: as of `add`.
            sweeps: as of `add`.

        Yields:
            (N,) of each of `MAX_BOX_ACC`.
        """
        for found, sweep, (_, deltas) in zip(self.found, sweeps, VERSIONS, strict=True):
            yield found_at(sweep, found.sum(dim=0).argmax(dim=1), deltas)
            by_half = torch.stack([found_at(sweep, found[1 - half].argmax(dim=1), deltas) for half in (0, 1)])
            yield by_half.gather(0, halves[None])[0]


def half_of(sample_id: str) -> int:
    """The half of the images that an image belongs to, 0 or 1, whatever the others are."""
    return hashlib.blake2b(sample_id.encode(), digest_size=1).digest()[0] % 2


def weak_localisation(run: FinishedRun, maps: str = "") -> Values:
    """What each image adds to the measures, so that their means over the images are the measures.

    - `max_box_acc`: whether the image's box is found, at the threshold that is best for all images: optimistic, as the
      metric is defined; of version 2 the share of three overlaps that are reached.
    - `max_box_acc_held_out` and the same of version 2: at the threshold that is best for the images of the other half.
    - `pxap`: see `pixel_precision_within`, of all images together.

    Args:
        run: that measured images with boxes.
        maps: "" for the method's, `CENTRE` for those with a bump in the middle.

    Returns:
        By name of `MEASURES`; nothing where no image has a box. Held out only where both halves have images.
    """
    if not _has_boxes(run):
        return {}
    counts, halves_seen = Counts(), set[int]()
    for ids, sweeps in _batches(run, SWEEPS, maps):
        halves = [half_of(name) for name in ids]
        counts.add(torch.tensor(halves, dtype=torch.int64), sweeps)
        halves_seen |= set(halves)
    found: dict[str, dict[str, float]] = {name: {} for name in MAX_BOX_ACC}
    for ids, sweeps in _batches(run, SWEEPS, maps):
        halves = [half_of(name) for name in ids]
        for name, values in zip(MAX_BOX_ACC, counts.values(torch.tensor(halves), sweeps), strict=True):
            found[name] |= dict(zip(ids, values.tolist(), strict=True))
    found[PXAP] = pixel_precision_within(run, maps=maps)
    return {name: values for name, values in found.items() if values and (HELD_OUT not in name or len(halves_seen) > 1)}


def pixel_precision_within(
    run: FinishedRun, groups: Mapping[str, Hashable] | None = None, *, maps: str = ""
) -> dict[str, float]:
    """PxAP of groups of images, as a number for each image: the mean over a group is the group's PxAP.

    Its curve is one for all images of a group. The numbers are the jackknife's pseudo-values, moved so that this is
    their mean; Student's interval of them is Tukey's (1958) of PxAP. They may lie outside 0..1.

    Args:
        run: that measured images with boxes.
        groups: of every image, by its id; all images are one group where None.
        maps: see `weak_localisation`.

    Returns:
        By id of the images with boxes.
    """
    if not _has_boxes(run):
        return {}

    def of(name: str) -> Hashable:
        return groups[name] if groups else None

    empty = torch.zeros(2, SCORE_BINS + 1, dtype=torch.int64)
    whole: dict[Hashable, Tensor] = {}
    for ids, (pixels,) in _batches(run, [HISTOGRAM], maps):
        for name, counted in zip(ids, pixels.view(-1, *empty.shape), strict=True):
            whole[of(name)] = whole.get(of(name), empty) + counted
    without: dict[Hashable, dict[str, float]] = {group: {} for group in whole}
    for ids, (pixels,) in _batches(run, [HISTOGRAM], maps):
        left = [whole[of(name)] - counted for name, counted in zip(ids, pixels.view(-1, *empty.shape), strict=True)]
        for name, value in zip(ids, pixel_precision(torch.stack(left)).tolist() if left else [], strict=True):
            without[of(name)][name] = value
    pseudo = [_pseudo(values, float(pixel_precision(whole[group]))) for group, values in without.items()]
    return {name: value for values in pseudo for name, value in values.items()}


def _has_boxes(run: FinishedRun) -> bool:
    return all(name in run.schema.names for name in BY_THRESHOLD)


def _batches(run: FinishedRun, names: Sequence[str], maps: str) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Ids of images with boxes, and their columns as (N, S)."""
    columns = [f"{name}_{maps}" if maps else name for name in names]
    for batch in run.batches(["sample_id", "rank", *columns]):
        wanted = pc.and_(pc.equal(batch.column("rank"), 0), pc.is_valid(batch.column(columns[0])))
        rows = batch.filter(wanted)
        yield rows.column("sample_id").to_pylist(), [_tensor(rows.column(name)) for name in columns]


def _tensor(column: pa.FixedSizeListArray) -> Tensor:
    """(N, S) of a column without nulls."""
    return torch.tensor(np.asarray(column.flatten()).reshape(-1, column.type.list_size))


def _pseudo(without: dict[str, float], whole: float) -> dict[str, float]:
    """Pseudo-values of a measure of N images from its N values without one of them."""
    if len(without) < 2:
        return dict.fromkeys(without, whole)
    middle = float(np.mean(list(without.values())))
    return {name: whole + (len(without) - 1) * (middle - value) for name, value in without.items()}
