"""The study: every method on every model, measured on the same images of one data set, and compared."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_jsonable_python

from pipeline.attribution import method_class
from pipeline.errors import MethodError
from pipeline.evaluation.comparison import (
    CHANCE,
    Agreement,
    Entrant,
    Measure,
    Score,
    Values,
    agreements,
    measures,
    scores,
)
from pipeline.evaluation.metrics import create
from pipeline.evaluation.readings import LEVELS, chance_levels, control_values, curves, grid_values, own_values
from pipeline.evaluation.weak_localisation import MEASURES, weak_localisation
from pipeline.jobs.again import begun, completed
from pipeline.jobs.bench import Bench, Shape, Trial, bench, device_of, folder
from pipeline.jobs.cluster import cluster
from pipeline.jobs.explain import explain
from pipeline.jobs.grids import Gridded, gridded, usual_grids
from pipeline.jobs.progress import Display, display
from pipeline.jobs.run import Selection
from pipeline.jobs.sample import Sample, draw
from pipeline.logs import named_run
from pipeline.stream.finished import FinishedRun, open_run
from pipeline.stream.ledger import Ledger
from pipeline.stream.shards import Shard
from schemas.graph import Device
from schemas.grids import SETTINGS, GridsSpec
from schemas.measures import CENTRE, CONTROLS, MeasureSpec, Metrics
from schemas.study import MethodSpec, StudySpec

RESULT = "study.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Study:
    """Everything that a study found; the report is made of it.

    Attributes:
        spec: of the study.
        predictions: of each model over the whole data set.
        measured: the sample with its maps and metrics, by model and method.
        entrants: methods, then controls, model by model.
        measures: metrics.
        scores: of the entrants.
        agreements: of the metrics.
        device: that the seconds were measured on.
        statements: what a reader must know of these numbers.
    """

    spec: StudySpec
    predictions: dict[str, FinishedRun]
    measured: dict[tuple[str, str], FinishedRun]
    entrants: tuple[Entrant, ...]
    measures: tuple[Measure, ...]
    scores: tuple[Score, ...]
    agreements: tuple[Agreement, ...]
    device: Device
    statements: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Content of `study.json`."""
        misfits = [{"model": one.model, "method": one.method, "why": one.misfit} for one in self.entrants if one.misfit]
        plain: dict[str, Any] = to_jsonable_python(
            {
                "digest": self.spec.digest(),
                "models": {name: found.record.model_dump(mode="json") for name, found in self.predictions.items()},
                "measures": [vars(one) for one in self.measures],
                "scores": [vars(one) for one in self.scores],
                "agreements": [vars(one) for one in self.agreements],
                "misfits": misfits,
                "statements": self.statements,
                "spec": self.spec.public(),
            }
        )
        return plain


@dataclass(frozen=True)
class Round:
    """The images that every method of a study explains, and what is at hand to do so.

    Attributes:
        spec: of the study.
        shards: of the data set.
        sample: of its images.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.
    """

    spec: StudySpec
    shards: list[Shard]
    sample: Sample
    shown: Display
    ready: Callable[[], None]

    def measured(self, model: str, name: str, method: MethodSpec, metrics: Metrics) -> FinishedRun | str:
        """Explains and measures the images, or what is missing of them.

        Args:
            model: name of it.
            name: of the run's folder.
            method: that explains.
            metrics: to measure.

        Returns:
            The run, or why none of its images could be explained.

        Raises:
            MethodError: the method or a metric does not fit the model.
        """
        spec = self.spec
        job = spec.job(model, method, folder(spec, model, name)).model_copy(update={"max_reject_share": 1.0})
        ranks, asked = self.sample.ranks(metrics), spec.measure
        measure = MeasureSpec(metrics=metrics, ranks=ranks, boxes=asked.boxes, masks=asked.masks, seed=asked.seed)
        selection = Selection(self.sample.plan(self.shards), measure)
        ledger = Ledger(job.output, spec.storage)
        begun(job, selection, ledger)
        if ledger.read_json("run.json") is None:
            self.shown.say("trial", model=model, method=name, images=len(self.sample.rows))
        record = completed(job, selection, ledger, self.shown, self.ready)
        if record.explained == 0:
            return f"no image could be explained: {record.rejects_by_code}"
        return open_run(job.output, spec.storage)

    def gridded(self, model: str, method: MethodSpec, predictions: FinishedRun) -> Gridded:
        """Explains grids of the model's confident images, or what is missing of them.

        Args:
            model: name of it.
            method: that explains.
            predictions: of the model, over the whole data set.

        Returns:
            The run, and what must be known of it; no run where no grids are asked for.
        """
        asked = self.spec.measure
        count = usual_grids(method.method)[0] if asked.grids is None else asked.grids
        if count == 0:
            return Gridded(None, ())
        job = self.spec.job(model, method, folder(self.spec, model, f"{method.name}/grids"))
        job = job.model_copy(update={"max_reject_share": 1.0})
        wanted = GridsSpec(grids=count, settings=asked.grid_settings, shards=asked.shards, seed=asked.seed)
        return gridded(job, predictions, wanted, self.shown, self.ready)


@dataclass(frozen=True)
class Found:
    """What one trial gave.

    Attributes:
        trial: of the method.
        entrant: its row; where it could not be measured, it says why.
        measured: the sample with its maps; None where there are none.
        grids: the grids with their maps; None where there are none.
        statements: what must be known of the grids.
    """

    trial: Trial
    entrant: Entrant
    measured: FinishedRun | None = None
    grids: FinishedRun | None = None
    statements: tuple[str, ...] = ()


def study(spec: StudySpec) -> dict[str, Any]:
    """Runs a study, or what is missing of it.

    Args:
        spec: what to compare.

    Returns:
        Content of `study.json`, which is written last, after tables and report.

    Raises:
        RaylensError: see `pipeline.errors`; the same call goes on from where it stopped.
    """
    with named_run():
        return _studied(spec, display(spec.progress))


def _studied(spec: StudySpec, shown: Display) -> dict[str, Any]:
    try:
        ledger = Ledger(spec.output, spec.storage)
        if spec.overwrite:
            for name in (RESULT, REPORT, "tables", "runs"):
                ledger.remove(name)
        saved: dict[str, Any] | None = ledger.read_json(RESULT)
        if saved is not None and saved["digest"] == spec.digest():
            shown.say("nothing to do", report=f"{spec.output}/{REPORT}")
            return saved
        _require_known(spec)
        with cluster(spec) as ready:
            found = conduct(spec, shown, ready)
        return _written(found, ledger, shown)
    finally:
        shown.close()


def _require_known(spec: StudySpec) -> None:
    """Refuses wrong names before any work."""
    for method in spec.methods:
        method_class(method.method)
    for metric in spec.measure.metrics:
        create(metric.name, **metric.parameters)


def conduct(spec: StudySpec, shown: Display, ready: Callable[[], None]) -> Study:
    """Does what is missing of a study's runs, and compares them.

    Args:
        spec: what to compare.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.

    Returns:
        What was found; nothing but runs is written.

    Raises:
        RaylensError: see `pipeline.errors`.
    """
    benches = [bench(spec, name, shown) for name in spec.models]
    ready()
    predictions = {one.name: _predicted(spec, one) for one in benches}
    one_round = _round(spec, predictions[benches[0].name], shown, ready)
    entrants: list[Entrant] = []
    found: dict[tuple[str, str], Found] = {}
    for one in benches:
        tried = [_tried(one_round, one, trial, predictions[one.name]) for trial in one.trials]
        found |= {(one.name, each.entrant.method): each for each in tried}
        entrants += [*(each.entrant for each in tried), *_controls(one_round, one, tried)]
    others = [name for name in (*SETTINGS, *LEVELS, *MEASURES) if any(name in one.values for one in entrants)]
    compared = measures(spec.measure.metrics, others)
    found_scores = scores(entrants, compared)
    told = (one_round.sample.statement, *(text for each in found.values() for text in each.statements))
    return Study(
        spec=spec,
        predictions=predictions,
        measured={key: each.measured for key, each in found.items() if each.measured},
        entrants=tuple(entrants),
        measures=compared,
        scores=found_scores,
        agreements=tuple(agreements(found_scores, compared)),
        device=device_of(spec),
        statements=tuple(dict.fromkeys(told)),
    )


def _predicted(spec: StudySpec, one: Bench) -> FinishedRun:
    """The whole data set, by the model's cheapest method: which images there are, and how often the model is right."""
    job = spec.job(one.name, one.predicts, folder(spec, one.name, "predictions"))
    explain(job)
    return open_run(job.output, spec.storage)


def _round(spec: StudySpec, found: FinishedRun, shown: Display, ready: Callable[[], None]) -> Round:
    """Draws the images by their ids; the first model's run says which there are."""
    shards, asked = Ledger(found.address, spec.storage).plan() or [], spec.measure
    sample = draw(found, shards, images=asked.images, most_shards=asked.shards, seed=asked.seed)
    return Round(spec, shards, sample, shown, ready)


def _tried(one_round: Round, one: Bench, trial: Trial, predictions: FinishedRun) -> Found:
    """Measures a method on a model."""
    name = trial.method.name
    entrant = Entrant(one.name, name, seconds=trial.seconds, misfit=trial.misfit)
    if trial.shape is None:
        return Found(trial, entrant)
    metrics = tuple(metric.model_copy(update={"controls": False}) for metric in one_round.spec.measure.metrics)
    try:
        measured = one_round.measured(one.name, name, trial.method, metrics)
        grids = one_round.gridded(one.name, trial.method, predictions)
    except MethodError as error:
        return Found(trial, replace(entrant, misfit=str(error)))
    if isinstance(measured, str):
        return Found(trial, replace(entrant, misfit=measured))
    values = {**own_values(measured, metrics), **(grid_values(grids.run, "score") if grids.run else {})}
    row = replace(entrant, values=values, curves=curves(measured, metrics), control=_random(trial.shape))
    return Found(trial, row, measured, grids.run, tuple(f"{one.name}: {text}" for text in grids.statements))


def _controls(one_round: Round, one: Bench, tried: Sequence[Found]) -> Iterator[Entrant]:
    """Rows of maps that know nothing: noise for each shape of maps, edges, the chance level, and centred maps."""
    metrics = tuple(metric for metric in one_round.spec.measure.metrics if metric.controls)
    grids = {each.trial.shape: each.grids for each in tried if each.grids}
    edges: Values = {}
    for shape, method in sorted(one.carriers.items()):
        folder_name = f"controls-{shape[0]}x{shape[1]}"
        found = one_round.measured(one.name, folder_name, method, metrics) if metrics else ""
        run_of_grids = grids.get(shape)
        random, edges = (
            {
                **(control_values(found, metrics, name) if isinstance(found, FinishedRun) else {}),
                **(grid_values(run_of_grids, f"score_{name}") if run_of_grids else {}),
            }
            for name in CONTROLS
        )
        yield Entrant(one.name, _random(shape), random)
    yield Entrant(one.name, "edges", edges)
    measured = next((each.measured for each in tried if each.measured), None)
    yield Entrant(one.name, CHANCE, chance_levels(measured) if measured else {})
    yield Entrant(one.name, CENTRE, weak_localisation(measured, CENTRE) if measured else {})


def _random(shape: Shape) -> str:
    """Name of the row of noise of a shape."""
    return f"random, {shape[0]} x {shape[1]}"


def _written(found: Study, ledger: Ledger, shown: Display) -> dict[str, Any]:
    """The result last: a study that has one is whole."""
    from pipeline.report.study.page import page
    from pipeline.report.study.tables import tables

    ledger.write_text(page(found), REPORT)
    for name, table in tables(found).items():
        ledger.write_table(table, "tables", f"{name}.parquet")
    result = found.to_json()
    ledger.write_json(result, RESULT)
    for one in found.entrants:
        if one.misfit:
            shown.say("not measured", model=one.model, method=one.method, why=one.misfit)
    shown.say("studied", models=len(found.predictions), report=f"{found.spec.output}/{REPORT}")
    return result
