"""A night as Prometheus gauges; names and labels are listed in the README."""

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from pipeline.jobs.metrics import SUCCESS, outcome

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night
    from schemas.audit import AuditSpec


def gauges(night: "Night", registry: CollectorRegistry) -> None:
    """Sets the gauges of a night; what is not known is left out.

    Labels do not grow with the classes: of comparisons that are made class by class, the largest effect is told.

    Args:
        night: the audit.
        registry: to add them to.
    """
    method = night.explained.record.spec["method"]

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"raylens_audit_{name}", text, ["method", *labels], registry=registry)

    gauge("images", "Images of the night, explained or rejected").labels(method).set(night.explained.record.images)
    gauge("rejected_images", "Images rejected").labels(method).set(night.explained.record.rejected)
    gauge("alerts", "Alerts of the night").labels(method).set(len(night.alerts))
    gauge("last_timestamp_seconds", "When the night was last audited").labels(method).set_to_current_time()
    ended(night.spec, registry)
    overall, calibration = night.performance.overall, night.performance.calibration
    if overall.accuracy.value is not None:
        gauge("accuracy", "Share of the labelled images that are right").labels(method).set(overall.accuracy.value)
    if calibration is not None:
        gauge("calibration_error", "Expected calibration error, equal bins").labels(method).set(calibration.ece)
    metric = gauge("map_metric", "Mean of a metric of maps, of the method and of controls", "metric", "maps")
    for (name, maps), value in _metrics(night).items():
        metric.labels(method, name, maps).set(value)
    drift = gauge("drift_effect", "Effect of a comparison, the largest of all classes", "comparison")
    for name, effect in _effects(night).items():
        drift.labels(method, name).set(effect)


def ended(spec: "AuditSpec", registry: CollectorRegistry, error: BaseException | None = None) -> None:
    """Sets the gauges that an audit leaves however it ends.

    Args:
        spec: of the audit.
        registry: to add them to.
        error: that ended it; None where it is whole, with alerts or without.
    """
    failed = outcome(registry, "raylens_audit_failed", "Whether the last audit failed, and by what error")
    failed.labels(spec.method, SUCCESS if error is None else type(error).__name__).set(error is not None)
    if spec.interval_h is not None:
        text = "Time from one audit to the next"
        interval = Gauge("raylens_audit_interval_seconds", text, ["method"], registry=registry)
        interval.labels(spec.method).set(spec.interval_h * 3600)


def _metrics(night: "Night") -> dict[tuple[str, str], float]:
    found = {
        (row.name, maps): mean.value
        for row in night.metrics
        for maps, mean in {"method": row.method, **row.controls}.items()
    }
    return {key: value for key, value in found.items() if value is not None}


def _effects(night: "Night") -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for one in night.drift.findings if night.drift else ():
        found[one.name] = max(found[one.name], one.effect)
    return found
