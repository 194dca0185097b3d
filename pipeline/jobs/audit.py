"""The nightly audit: explain, measure the maps, compare with an earlier night, report. Each stage is done once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.drift.compare import Drift, compare
from pipeline.errors import AlertError
from pipeline.evaluation.breakdown import MapGroup, breakdown, breakdown_json
from pipeline.evaluation.grid_table import grid_rows
from pipeline.evaluation.metrics import create
from pipeline.evaluation.table import MetricRow, metric_rows
from pipeline.jobs.again import plan_of, same_job, selected
from pipeline.jobs.cluster import cluster
from pipeline.jobs.explain import explain
from pipeline.jobs.grids import Gridded, gridded, usual_grids
from pipeline.jobs.history import History, today
from pipeline.jobs.metrics import hand_over
from pipeline.jobs.progress import Display, display
from pipeline.jobs.reading import reader
from pipeline.jobs.run import Selection
from pipeline.jobs.sample import draw
from pipeline.logs import named_run
from pipeline.performance.measure import measure
from pipeline.performance.result import Performance
from pipeline.stream.finished import Each, FinishedRun, open_run
from schemas.audit import AuditSpec, NightRecord
from schemas.grids import GridsSpec
from schemas.measures import MeasureSpec

JOB = "raylens_audit"
RESULT = "audit.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Night:
    """Everything that an audit found; the report is made of it.

    Attributes:
        spec: of the audit.
        name: of the night.
        explained: the run that is audited.
        measured: its chosen images with their metrics; None where none were asked for.
        grids: of its confident images; None where there are none.
        before: the earlier run; None without one.
        performance: predictions against labels.
        metrics: of the maps.
        breakdown: of the maps by class and by slice.
        drift: against the earlier run.
        history: of the nights before this one, the earliest first.
        statements: what a reader must know of these numbers.
    """

    spec: AuditSpec
    name: str
    explained: FinishedRun
    measured: FinishedRun | None
    grids: FinishedRun | None
    before: FinishedRun | None
    performance: Performance
    metrics: tuple[MetricRow, ...]
    breakdown: tuple[MapGroup, ...]
    drift: Drift | None
    history: tuple[NightRecord, ...]
    statements: tuple[str, ...]

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the classes that are known."""
        return class_names(self.performance, self.explained)

    @property
    def alerts(self) -> tuple[str, ...]:
        """What is wrong, the gravest first."""
        moved = [one.sentence for one in self.drift.alerts] if self.drift else []
        return (*self._broken_limits(), *moved)

    def _broken_limits(self) -> list[str]:
        limits, overall, calibration = self.spec.limits, self.performance.overall, self.performance.calibration
        found = []
        record = self.explained.record
        if record.rejected > self.spec.max_reject_share * record.images:
            most = f"{self.spec.max_reject_share:.2%}"
            found.append(f"{record.rejected} of {record.images} images were rejected; the limit is {most}.")
        if limits.accuracy is not None and (overall.accuracy.value or 0.0) < limits.accuracy:
            told = "unknown, without labels" if overall.accuracy.value is None else f"{overall.accuracy.value:.3f}"
            found.append(f"Accuracy is {told}; the limit is {limits.accuracy:g}.")
        error = overall.ece if calibration else None
        if limits.calibration_error is not None and error is not None and error > limits.calibration_error:
            found.append(f"Expected calibration error is {error:.3f}; the limit is {limits.calibration_error:g}.")
        if limits.better_than_random:
            found += [
                f"By {row.name}, the maps are no better than random ones: {row.method.value:.3f} against "
                f"{row.controls['random'].value:.3f}."
                for row in self.metrics
                if row.beats_random(limits.alpha) is False
            ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Content of `audit.json`."""
        return {
            "night": self.name,
            "alerts": list(self.alerts),
            "statements": list(self.statements),
            "explained": self.explained.address,
            "run": self.explained.record.model_dump(mode="json"),
            "performance": self.performance.to_json(),
            "metrics": [row.to_json() for row in self.metrics],
            "breakdown": breakdown_json(self.breakdown),
            "drift": self.drift.to_json() if self.drift else None,
            "spec": self.spec.public(),
        }


def class_names(performance: Performance, explained: FinishedRun) -> dict[int, str]:
    """Names of the classes that predictions or the model's labels know."""
    return {row.index: row.images.name for row in performance.classes} | explained.labels


def audit(spec: AuditSpec) -> Night:
    """Runs an audit, or what is missing of it.

    Args:
        spec: what to do.

    Returns:
        What was found; `audit.json`, the report and the index are written.

    Raises:
        AlertError: there is an alert; everything is written all the same.
        RaylensError: see `pipeline.errors`; the same call goes on from where it stopped.
    """
    with named_run():
        night, folder = _audited(spec, display(spec.progress))
    if night.alerts:
        raise AlertError(_told(night, folder))
    return night


def _audited(spec: AuditSpec, shown: Display) -> tuple[Night, str]:
    history = History(spec.output, spec.storage)
    name = spec.night or today()
    try:
        for metric in spec.measure.metrics:  # a wrong name is told before the work
            create(metric.name, **metric.parameters)
        before = history.earlier(spec.against, name)
        with cluster(spec) as ready:
            explained = _explained(spec, history.folder(name), ready)
            each = reader(spec, ready)
            performance = _performance(spec, explained, each)  # a wrong slice is told before maps are measured
            measured, statements = _measured(spec, explained, history.folder(name), shown, ready)
            grids = _gridded(spec, explained, history.folder(name), shown, ready)
            statements += grids.statements
            found = explained, measured, grids.run
            night = _judged(spec, name, found, before, history, performance, statements, shown, each)
        _write(night, history, shown)
    except BaseException as error:
        _failed(spec, error, shown)
        raise
    finally:
        shown.close()
    return night, history.folder(name)


def _explained(spec: AuditSpec, folder: str, ready: Callable[[], None]) -> FinishedRun:
    if spec.explanations is not None:
        return open_run(spec.explanations, spec.storage)
    ready()
    job = spec.job(f"{folder}/explained")
    explain(job.model_copy(update={"max_reject_share": 1.0}))  # too many rejects are an alert, not the end
    return open_run(job.output, spec.storage)


def _measured(
    spec: AuditSpec, explained: FinishedRun, folder: str, shown: Display, ready: Callable[[], None]
) -> tuple[FinishedRun | None, list[str]]:
    settings = spec.measure
    if settings.is_empty:
        return None, ["No map was measured: measure asks for no images, or for no metrics."]
    shards = plan_of(explained)
    sample = draw(explained, shards, images=settings.images, most_shards=settings.shards, seed=settings.seed)
    measures = MeasureSpec(
        metrics=settings.metrics,
        ranks=sample.ranks(settings.metrics),
        boxes=settings.boxes,
        masks=settings.masks,
        seed=settings.seed,
    )
    job = same_job(spec, explained, f"{folder}/measured")
    return selected(job, Selection(sample.plan(shards), measures), shown, ready), [sample.statement]


def _gridded(
    spec: AuditSpec, explained: FinishedRun, folder: str, shown: Display, ready: Callable[[], None]
) -> Gridded:
    settings = spec.measure
    job = same_job(spec, explained, f"{folder}/grids")
    count, why = (settings.grids, "") if settings.grids is not None else usual_grids(job.method)
    if count == 0:
        return Gridded(None, (why,) if why else ())
    wanted = GridsSpec(grids=count, settings=settings.grid_settings, shards=settings.shards, seed=settings.seed)
    return gridded(job, explained, wanted, shown, ready)


def _performance(spec: AuditSpec, explained: FinishedRun, each: Each) -> Performance:
    return measure(explained, spec.performance, each=each).result(explained.labels)


def _judged(
    spec: AuditSpec,
    name: str,
    found: tuple[FinishedRun, FinishedRun | None, FinishedRun | None],
    before: str | None,
    history: History,
    performance: Performance,
    statements: list[str],
    shown: Display,
    each: Each,
) -> Night:
    explained, measured, grids = found
    earlier = open_run(before, spec.storage) if before else None
    if earlier is None:
        statements = [*statements, "There is no earlier run to compare with."]
    shown.say("comparing", against=before or "nothing")
    drift = compare(earlier, explained, spec.drift, each=each) if earlier else None
    names = class_names(performance, explained)
    return Night(
        spec,
        name,
        explained,
        measured,
        grids,
        earlier,
        performance,
        metric_rows(measured, spec.measure.metrics, grid_rows(grids) if grids else ()),
        breakdown(explained, measured, spec.measure.metrics, spec.performance, names, each=each),
        drift,
        tuple(history.before(name)),
        (*statements, *performance.statements, *(drift.statements if drift else ())),
    )


def _write(night: Night, history: History, shown: Display) -> None:
    """The index last: a night that is in it is whole."""
    from pipeline.report.audit.gauges import gauges
    from pipeline.report.audit.page import page
    from pipeline.report.audit.tables import tables

    history.ledger.write_text(page(night), night.name, REPORT)
    for name, table in tables(night).items():
        history.ledger.write_table(table, night.name, "tables", f"{name}.parquet")
    history.ledger.write_json(night.to_json(), night.name, RESULT)
    history.add(
        NightRecord(
            night=night.name,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            explained=night.explained.address,
            graph_digest=night.explained.record.graph_digest,
            images=night.explained.record.images,
            accuracy=night.performance.overall.accuracy.value,
            against=night.before.address if night.before else None,
            alerts=night.alerts,
        )
    )
    registry = CollectorRegistry()
    gauges(night, registry)
    hand_over(night.spec, registry, shown, job=JOB)
    shown.say("audited", alerts=len(night.alerts), report=f"{history.folder(night.name)}/{REPORT}")


def _failed(spec: AuditSpec, error: BaseException, shown: Display) -> None:
    from pipeline.report.audit.gauges import ended

    registry = CollectorRegistry()
    ended(spec, registry, error)
    hand_over(spec, registry, shown, job=JOB)


def _told(night: Night, folder: str) -> str:
    shown = "\n".join(f"  {sentence}" for sentence in night.alerts[:5])
    more = f"\n  and {len(night.alerts) - 5} more" if len(night.alerts) > 5 else ""
    return f"night {night.name} raises {len(night.alerts)} alerts:\n{shown}{more}\nLook at {folder}/{REPORT}"
