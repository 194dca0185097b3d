"""A run against an earlier one: every comparison, what must be said of it, and what raises an alert."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from pipeline.drift.classes import ClassMaps, explanations, paired_classes
from pipeline.drift.finding import Finding, corrected
from pipeline.drift.grid import common
from pipeline.drift.pairs import Pairs, pair_findings, paired
from pipeline.drift.population import embeddings, population
from pipeline.drift.profile import NAME, Profile, profile, told_by
from pipeline.stream.finished import Each, FinishedRun, in_turn
from schemas.audit import DriftSpec
from schemas.run import RunRecord

LEAST_EMBEDDINGS = 8
ALIKE = (
    "method",
    "method_args",
    "target",
    "layer",
    "seed",
    "size",
    "resize",
    "resize_mode",
    "interpolation",
    "precision",
)
"""Fields of a job that decide what a map shows; weights and versions are told by the record."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two runs.

    Attributes:
        run: as it was opened.
        profile: of all its files, on the grid that both runs share.
    """

    run: FinishedRun
    profile: Profile

    @property
    def record(self) -> RunRecord:
        """Content of `run.json`."""
        return self.run.record


@dataclass(frozen=True)
class ClassDrift:
    """Maps of one class in both runs.

    Attributes:
        index: of the class that the maps explain.
        name: of the class.
        before: maps of the earlier run.
        after: maps of the later run.
        moved: share of the later maps farther from the earlier mean than 95 % of the earlier ones; 0.05 is no drift.
        mean_before: (rows, columns) share of the evidence by cell.
        mean_after: the same of the later run.
    """

    index: int
    name: str
    before: int
    after: int
    moved: float
    mean_before: list[list[float]]
    mean_after: list[list[float]]


@dataclass(frozen=True)
class Drift:
    """What differs between two runs.

    Attributes:
        before: address of the earlier run.
        after: address of the later run.
        same_graph: whether both have one graph digest.
        grid: rows and columns on which maps were compared.
        findings: every comparison, alerts first.
        classes: of which both runs have maps enough.
        pairs: images that both samples hold.
        spec: of the comparison.
        statements: what a reader must know of these numbers.
    """

    before: str
    after: str
    same_graph: bool
    grid: tuple[int, int]
    findings: tuple[Finding, ...]
    classes: tuple[ClassDrift, ...]
    pairs: int
    spec: DriftSpec
    statements: tuple[str, ...]

    @property
    def alerts(self) -> tuple[Finding, ...]:
        """The findings whose effect and corrected p-value are both beyond their thresholds."""
        return tuple(one for one in self.findings if one.alert)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, for `audit.json`."""
        plain: dict[str, Any] = to_jsonable_python(vars(self))
        return {**plain, "alerts": to_jsonable_python(self.alerts)}


def compare(before: FinishedRun, after: FinishedRun, spec: DriftSpec, *, each: Each = in_turn) -> Drift:
    """Reads two runs and compares them; `profile` and `drift` are the two halves of this, for many workers.

    Args:
        before: the earlier run.
        after: the later run.
        spec: of the comparison.
        each: reads the files of the runs.

    Returns:
        What differs.

    Raises:
        InputError: a file cannot be read.
    """
    grid, column = common(before.grid, after.grid, spec.grid), told_by(before, after)
    left, right = (Side(run, profile(run, spec, grid, told_by=column, each=each)) for run in (before, after))
    return drift(left, right, spec)


def drift(before: Side, after: Side, spec: DriftSpec) -> Drift:
    """Compares two runs by their profiles.

    Args:
        before: the earlier run.
        after: the later run, profiled by the same specification on the same grid.
        spec: of the comparison.

    Returns:
        What differs.
    """
    left, right = before.profile, after.profile
    classes = paired_classes(left.maps, right.maps, left.names | right.names, spec.class_least)
    pairs = paired(left.sample, right.sample)
    findings = list(population(left, right, (before.record, after.record)))
    if _comparable(before, after):
        findings += embeddings(left.embeddings, right.embeddings, spec, len(findings) + 2)
    findings += explanations(classes, spec)
    if len(pairs):
        findings += pair_findings(pairs, spec.thresholds)
    return Drift(
        before=before.run.address,
        after=after.run.address,
        same_graph=before.record.graph_digest == after.record.graph_digest,
        grid=right.grid,
        findings=corrected(findings, spec.thresholds.alpha),
        classes=tuple(_class_drift(one, right.grid) for one in classes),
        pairs=len(pairs),
        spec=spec,
        statements=tuple(_statements(before, after, spec, classes, pairs)),
    )


def _comparable(before: Side, after: Side) -> bool:
    """Embeddings are compared within one network: the axes of another mean something else."""
    return _no_embeddings(before, after) is None


def _no_embeddings(before: Side, after: Side) -> str | None:
    samples = before.profile.embeddings, after.profile.embeddings
    widths = [sample["embedding"].shape[1] for sample in samples]
    if 0 in widths:
        return "Embeddings are not compared: explain both runs with --embedding to have them."
    if before.record.model["weights_sha256"] != after.record.model["weights_sha256"] or widths[0] != widths[1]:
        return "Embeddings are not compared: the weights differ, and with them what each axis means."
    if min(len(sample) for sample in samples) < LEAST_EMBEDDINGS:
        return f"Embeddings are not compared: a run has fewer than {LEAST_EMBEDDINGS}."
    return None


def _class_drift(one: ClassMaps, grid: tuple[int, int]) -> ClassDrift:
    means = [np.asarray(mean).reshape(grid).tolist() for mean in one.mean_maps]
    return ClassDrift(one.index, one.name, *one.images, one.moved(), *means)


def _statements(before: Side, after: Side, spec: DriftSpec, classes: list[ClassMaps], pairs: Pairs) -> Iterator[str]:
    yield from _about_graphs(before, after)
    yield from _about_grids(before, after)
    yield from _about_runs(before, after)
    yield from _about_classes(before.profile, after.profile, classes)
    yield from _about_pairs(pairs, before.profile.told_by)
    for name in spec.slices:
        if name not in before.profile.slices.keys() & after.profile.slices.keys():
            yield f"Slice {name} is not compared: explain both runs with --attribute {name} to have it."
    if reason := _no_embeddings(before, after):
        yield reason


def _about_graphs(before: Side, after: Side) -> Iterator[str]:
    left, right = before.record, after.record
    if left.graph_digest == right.graph_digest:
        return
    differences = [*_different(left.spec, right.spec), *_different_models(left, right)]
    versions = [
        f"{name} {version}, now {right.versions.get(name)}"
        for name, version in left.versions.items()
        if right.versions.get(name) != version
    ]
    told = "; ".join([*differences, *versions]) or "nothing that run.json tells"
    yield f"The graphs differ, so what changed may be the model and not the images: {told}."


def _different(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        f"{name} {before.get(name)!r}, now {after.get(name)!r}" for name in ALIKE if before.get(name) != after.get(name)
    ]


def _different_models(before: RunRecord, after: RunRecord) -> list[str]:
    values = [
        (record.model["source"], str(record.model["weights_sha256"])[:12], record.model["layer"]["name"])
        for record in (before, after)
    ]
    names = ("model", "weights", "layer of the map")
    return [f"{name} {old}, now {new}" for name, old, new in zip(names, *values, strict=True) if old != new]


def _about_grids(before: Side, after: Side) -> Iterator[str]:
    grids, grid = (before.run.grid, after.run.grid), after.profile.grid
    if set(grids) != {grid}:
        told = " and ".join(dict.fromkeys(f"{height} x {width}" for height, width in grids))
        yield f"Maps of {told} are compared on a grid of {grid[0]} x {grid[1]}, by area."


def _about_runs(before: Side, after: Side) -> Iterator[str]:
    for name, side in (("earlier", before), ("later", after)):
        one = side.profile
        if side.record.status != "complete":
            yield f"The {name} run rejected more images than it allows: {side.record.rejected} of {side.record.images}."
        if one.labelled == 0:
            yield f"The {name} run has no labels: accuracy, calibration and labels are not compared."
        if len(one.sample) < one.images:
            yield f"Of the {name} run's {one.images} images, a random sample of {len(one.sample)} is compared."


def _about_classes(before: Profile, after: Profile, classes: list[ClassMaps]) -> Iterator[str]:
    renamed = [index for index, name in before.names.items() if after.names.get(index, name) != name]
    if renamed:
        index = renamed[0]
        yield (
            f"{len(renamed)} classes have other names, for example {index}: {before.names[index]}, now "
            f"{after.names[index]}. Classes are compared by their index."
        )
    explained = len(np.union1d(before.maps["class"], after.maps["class"]))
    if len(classes) < explained:
        yield (
            f"Maps of {len(classes)} of {explained} classes are compared: the others have fewer than "
            f"{after.spec.class_least} images with evidence in one of the runs."
        )


def _about_pairs(pairs: Pairs, column: str) -> Iterator[str]:
    by_name = column == NAME
    how = "by sample_id and size, since one of them holds no content_digest" if by_name else "by their bytes"
    if len(pairs) == 0:
        yield "No image is in both runs, so none is compared with itself."
    else:
        renamed = f"; {pairs.renamed} of them have another sample_id now" if pairs.renamed else ""
        yield f"{len(pairs)} images are in both runs, {how}{renamed}."
    if pairs.replaced:
        yield f"{pairs.replaced} images have the sample_id of an earlier one of {_other(by_name)}; they are no pairs."
    if pairs.repeated:
        yield f"{pairs.repeated} images share their {_same(by_name)} with another of their run; they are no pairs."


def _other(by_name: bool) -> str:
    return "another size" if by_name else "other bytes"


def _same(by_name: bool) -> str:
    return "sample_id" if by_name else "bytes"
