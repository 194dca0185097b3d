"""GridPG, DiFull and DiPart of a run: grids of its own confident images, explained as its images were, exactly once."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import attribution
from pipeline.attribution.base import Needs
from pipeline.errors import InputError, MethodError, RowError
from pipeline.evaluation.grid_settings import GridScorer
from pipeline.evaluation.grids import CELLS, CONFIDENCE, Candidates, plan_grids
from pipeline.jobs.again import begun, completed, plan_of
from pipeline.jobs.progress import Display
from pipeline.jobs.run import Selection
from pipeline.measuring import rank
from pipeline.model import LoadedModel, load
from pipeline.report.html.number import plural
from pipeline.runtime.threads import one_thread
from pipeline.stream import sheets, sources
from pipeline.stream.decode import content_digest
from pipeline.stream.finished import FinishedRun, open_run
from pipeline.stream.ledger import STATE, Ledger
from pipeline.stream.shards import Sample, Shard
from pipeline.stream.sheets import GridSteps
from pipeline.stream.steps import Steps
from schemas.explanations import CONTENT
from schemas.grids import SHEET, GridsSpec
from schemas.job import JobSpec
from schemas.measures import Setting
from schemas.run import RunRecord

PLAN = "grids.json"
GRIDS = 24
"""Of each setting, where nothing is said."""
THREADS = 8  # shards read at a time: storage is what is waited for
PER_CLASS = 8  # images of a class that grids are drawn from, at least
NONE = -1
Place = tuple[str, int]
"""Shard and row of an image."""


@dataclass(frozen=True)
class Gridded:
    """What was found on grids.

    Attributes:
        run: rows of `schemas.grids.GRID`; None where no grid was explained.
        statements: what a reader must know of the grids, and why a setting was left out.
    """

    run: FinishedRun | None
    statements: tuple[str, ...]


class Candidate(NamedTuple):
    """An image that may be in a grid; in order of preference.

    Attributes:
        position: of its shard in a random order, so that grids are made of few shards.
        rank: see `pipeline.measuring.rank`.
        sample_id: of the image.
        place: of its bytes.
        content: digest of its bytes; None where the run does not hold it.
        prediction: class index.
        score: of the prediction.
    """

    position: int
    rank: int
    sample_id: str
    place: Place
    content: str | None
    prediction: int
    score: float


@dataclass(frozen=True)
class GridSelection(Selection):
    """Sheets of grids instead of the input's shards.

    Attributes:
        grids: that are wanted.
        source: of the images: what tells one run from another.
    """

    grids: GridsSpec
    source: tuple[str, ...]

    def identity(self, spec: JobSpec) -> dict[str, Any]:
        """What decides the output, by name."""
        return spec.identity() | {"grids": self.grids.model_dump(mode="json"), "source": list(self.source)}

    def steps(self, whole: Steps) -> Steps:
        """The job's steps, which read sheets."""
        return GridSteps(**{field.name: getattr(whole, field.name) for field in fields(whole)})


def usual_grids(method: str) -> tuple[int, str]:
    """How many grids of each setting are made of a method where nothing is said.

    Args:
        method: key of `METHODS`.

    Returns:
        Their number, and why there are none.
    """
    traits = attribution.METHODS[method].traits
    told = "No grids are measured: {}. Set measure.grids to have them."
    if not traits.discriminative:
        return 0, told.format(f"{method} gives one map for all their classes")
    if traits.needs is Needs.SCORES:
        return 0, told.format(f"a map of {method} takes many passes")
    return GRIDS, ""


def gridded(
    job: JobSpec, explained: FinishedRun, wanted: GridsSpec, shown: Display, ready: Callable[[], None]
) -> Gridded:
    """Explains grids of a run's confident images, or what is missing of them; a finished output is only read.

    Args:
        job: model, method and how to execute them; its `output` is where the grids go, its input is not read.
        explained: whose images are used: right by their label, or without one, and with a high score.
        wanted: how many grids, in which settings.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.

    Returns:
        The finished run and statements; a setting that the images, the model or the method does not allow is left out.

    Raises:
        RaylensError: see `pipeline.errors`; the same call goes on from where it stopped.
    """
    ledger = Ledger(job.output, job.storage)
    record = explained.record
    selection = GridSelection(None, None, wanted, (explained.address, record.job_digest, record.finished))
    resumed = begun(job, selection, ledger)
    if not resumed:
        selection = replace(selection, plan=_laid_out(job, explained, wanted, ledger))
    statements = (ledger.read_json(STATE, PLAN) or {}).get("statements", [])
    if not resumed and not selection.plan:
        return Gridded(None, tuple(statements))
    made = completed(job, selection, ledger, shown, ready)
    ledger.remove(STATE, sheets.FOLDER)
    found = open_run(job.output, job.storage) if made.explained else None
    return Gridded(found, (*statements, *_rejected(made)))


def _rejected(made: RunRecord) -> Iterator[str]:
    if made.rejected:
        codes = ", ".join(f"{count} {code}" for code, count in made.rejects_by_code.items())
        yield f"{made.rejected} of {plural(made.images, 'grid')} could not be explained: {codes}."


def _laid_out(job: JobSpec, explained: FinishedRun, wanted: GridsSpec, ledger: Ledger) -> list[Shard]:
    """Draws the grids, fetches their images and writes them as sheets."""
    shards = plan_of(explained)
    settings, statements = _fitting(job, wanted)
    found = candidates(explained, shards, wanted) if settings else []
    grids: list[tuple[Setting, int, NDArray[np.int64]]] = []
    for repeat_corner, group in _groups(settings):
        told = ", ".join(group)
        try:
            plan = plan_grids(_columns(found), count=wanted.grids, seed=wanted.seed, repeat_corner=repeat_corner)
        except InputError as error:
            statements.append(f"{told}: left out, {error}.")
            continue
        statements.append(f"{told}: {wanted.grids} {plan.statement}.")
        grids += [(setting, number, images) for setting in group for number, images in enumerate(plan.images)]
    ledger.write_json({"statements": statements}, STATE, PLAN)
    images = fetched(explained, shards, {found[i].place: found[i].content for *_, grid in grids for i in grid.tolist()})
    rows = [_sheet_row(setting, number, [found[i] for i in grid.tolist()], images) for setting, number, grid in grids]
    return sheets.write(ledger, pa.Table.from_pylist(rows, schema=SHEET))


def _fitting(job: JobSpec, wanted: GridsSpec) -> tuple[list[Setting], list[str]]:
    """The settings that model and method allow, and why the others are left out."""

    def bound(model: LoadedModel) -> attribution.Method:
        return attribution.create(job.method, model, seed=job.seed, **job.method_args)

    settings, statements = [], []
    with one_thread():
        model = load(job.model_spec(), storage=job.storage)
        for setting in wanted.settings:
            try:
                GridScorer(setting, model, bound)
                settings.append(setting)
            except MethodError as error:
                statements.append(f"{setting}: left out, {error}.")
    return settings, statements


def _groups(settings: Sequence[Setting]) -> list[tuple[bool, list[Setting]]]:
    """Settings of one kind of grids: of four classes, or with one class in two corners."""
    connected: list[Setting] = [one for one in settings if one == "gridpg"]
    corners: list[Setting] = [one for one in settings if one != "gridpg"]
    return [(repeat, group) for repeat, group in ((False, connected), (True, corners)) if group]


def candidates(explained: FinishedRun, shards: Sequence[Shard], wanted: GridsSpec) -> list[Candidate]:
    """Images that grids may be made of: of every class some confident ones, and those with the highest scores.

    Args:
        explained: read once; memory grows with its classes, not with its images.
        shards: its plan.
        wanted: the more grids and the fewer classes, the more images of each.

    Returns:
        The candidates, of few shards where these hold enough.
    """
    chosen = heapq.nsmallest(wanted.shards, (shard.name for shard in shards), key=lambda name: rank(name, wanted.seed))
    positions = {name: position for position, name in enumerate(chosen)}
    most = max(PER_CLASS, -(-2 * CELLS * wanted.grids // explained.classes))
    sure: dict[int, list[Candidate]] = defaultdict(list)
    best: dict[int, list[Candidate]] = defaultdict(list)
    told = [CONTENT] if CONTENT in explained.schema.names else []
    for batch in explained.batches(["sample_id", "shard", "row", "rank", "label", "prediction", "score", *told]):
        for one in _usable(batch, positions, wanted.seed):
            if one.score >= CONFIDENCE:
                sure[one.prediction].append(one)
            else:
                best[one.prediction].append(one)
        for index, images in sure.items():
            sure[index] = heapq.nsmallest(most, images)
        for index, images in best.items():
            best[index] = heapq.nsmallest(most, images, key=lambda one: (-one.score, one))
    return sorted(one for pool in (sure, best) for images in pool.values() for one in images)


def _usable(batch: pa.RecordBatch, positions: dict[str, int], seed: int) -> Iterable[Candidate]:
    """Images of the chosen shards that no label calls wrong."""
    label, prediction = (np.asarray(batch.column(name).fill_null(NONE)) for name in ("label", "prediction"))
    rows = np.flatnonzero((np.asarray(batch.column("rank")) == 0) & ((label == NONE) | (label == prediction)))
    for one in batch.take(pa.array(rows)).to_pylist():
        name, shard = one["sample_id"], one["shard"]
        if shard in positions:
            place, content = (shard, one["row"]), one.get(CONTENT)
            yield Candidate(positions[shard], rank(name, seed), name, place, content, one["prediction"], one["score"])


def _columns(found: Sequence[Candidate]) -> Candidates:
    return Candidates(
        [one.sample_id for one in found],
        np.array([one.prediction for one in found], np.int64),
        np.array([one.score for one in found], np.float32),
        np.full(len(found), NONE),
    )


def fetched(
    explained: FinishedRun, shards: Sequence[Shard], places: Mapping[Place, str | None]
) -> dict[Place, bytes | RowError]:
    """Encoded images, read again from where the run says that they are; each shard once.

    Args:
        explained: the run.
        shards: its plan.
        places: of the images, with the digest of the bytes that were explained, or None where it is not known.

    Returns:
        Bytes for every place, or the reason why there are none.
    """
    rows: dict[str, dict[int, str | None]] = defaultdict(dict)
    for (shard, row), content in sorted(places.items()):
        rows[shard][row] = content
    by_name = {shard.name: shard for shard in shards}
    with ThreadPoolExecutor(THREADS) as pool:
        tasks = [pool.submit(_of_shard, by_name[name], wanted, explained.storage) for name, wanted in rows.items()]
        return {place: data for task in tasks for place, data in task.result().items()}


def _of_shard(shard: Shard, rows: dict[int, str | None], storage: dict[str, Any]) -> dict[Place, bytes | RowError]:
    gone = _again("missing_object", "the shard does not hold it any more")
    found: dict[Place, bytes | RowError] = {(shard.name, row): gone for row in rows}
    part = replace(shard, only=[(row, row + 1) for row in rows])
    last = max(rows)
    for sample in sources.read(part, storage, limit=None):
        if sample.row in rows:
            found[shard.name, sample.row] = _bytes(sample, rows[sample.row])
        if sample.row >= last:
            break
    return found


def _bytes(sample: Sample, content: str | None) -> bytes | RowError:
    """The image that was explained, not what has taken its place since."""
    if sample.error:
        return _again(sample.error.code, str(sample.error))
    if content is not None and content != content_digest(sample.data):
        return _again("changed_object", f"{sample.sample_id} holds other bytes than those that were explained")
    return sample.data


def _again(code: str, why: str) -> RowError:
    return RowError(code, f"an image of a cell cannot be read again: {why}", stage="read")


def _sheet_row(
    setting: Setting, number: int, cells: list[Candidate], images: dict[Place, bytes | RowError]
) -> dict[str, Any]:
    found = [images[one.place] for one in cells]
    return {
        "name": f"{setting}-{number:04d}",
        "setting": setting,
        "classes": [one.prediction for one in cells],
        "sample_ids": [one.sample_id for one in cells],
        "images": [data if isinstance(data, bytes) else None for data in found],
        "errors": [{"code": data.code, "message": str(data)} if isinstance(data, RowError) else None for data in found],
    }
