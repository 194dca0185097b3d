"""A night as tables and gauges: the numbers of the night, by the declared schema."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from audit_nights import HOSTILE, Nights, unlabelled
from prometheus_client import CollectorRegistry

from pipeline.report.audit.gauges import gauges
from pipeline.report.audit.tables import SCHEMAS, tables
from schemas.grids import SETTINGS


def test_tables_hold_what_the_night_holds(found: Nights, tmp_path: Path) -> None:
    night = found.alarmed
    made = tables(night)
    assert {name: table.schema for name, table in made.items()} == SCHEMAS
    assert night.drift is not None
    findings = made["findings"].to_pylist()
    assert [row["effect"] for row in findings] == [one.effect for one in night.drift.findings]
    assert sum(row["alert"] for row in findings) == len(night.drift.alerts) > 0
    assert dict(findings[0]["details"]) == night.drift.findings[0].details
    classes = made["classes"].to_pylist()
    assert {row["name"] for row in classes} == set(HOSTILE)
    assert sum(row["labelled"] for row in classes) == night.performance.overall.labelled
    assert [row["metric"] for row in made["metrics"].to_pylist()] == ["insertion", "mprt", *SETTINGS]
    assert {row["slice"] for row in made["slices"].to_pylist()} == {"prediction_name"}
    broken_down = made["breakdown"].to_pylist()
    assert len(broken_down) == sum(len(one.means) for one in night.breakdown)
    assert {row["class"] for row in broken_down if row["by"] == "class"} == set(range(len(HOSTILE)))
    assert {row["value"] for row in broken_down if row["measure"] == "insertion"} == {None}  # of 8 images
    images = {row["images"] for row in broken_down if row["by"] == "all" and row["measure"] == "gini"}
    assert images == {night.performance.overall.images}
    for name, table in made.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        assert pq.read_table(tmp_path / f"{name}.parquet").equals(table)


def test_a_class_without_labels_keeps_its_maps(found: Nights, tmp_path: Path) -> None:
    night = replace(unlabelled(tmp_path / "run", found.first), drift=found.alarmed.drift)
    assert night.drift is not None
    classes = tables(night)["classes"].to_pylist()
    assert [row["maps_moved"] for row in classes] == [one.moved for one in night.drift.classes]
    assert {row["accuracy"] for row in classes} == {None}


def test_gauges(found: Nights, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    night = found.alarmed
    gauges(night, registry)
    method = {"method": "gradcam"}
    assert registry.get_sample_value("raylens_audit_alerts", method) == len(night.alerts)
    assert registry.get_sample_value("raylens_audit_accuracy", method) == night.performance.overall.accuracy.value
    for maps, mean in {"method": night.metrics[0].method, **night.metrics[0].controls}.items():
        labels = {**method, "metric": "insertion", "maps": maps}
        assert registry.get_sample_value("raylens_audit_map_metric", labels) == mean.value
    assert night.drift is not None
    largest = max(one.effect for one in night.drift.findings if one.name == "class.map")
    labels = {**method, "comparison": "class.map"}
    assert registry.get_sample_value("raylens_audit_drift_effect", labels) == largest


def test_what_is_not_known_has_no_gauge(found: Nights, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    gauges(unlabelled(tmp_path / "run", found.first), registry)
    names = {metric.name for metric in registry.collect() if metric.samples}
    assert {"raylens_audit_images", "raylens_audit_alerts"} <= names
    assert not names & {"raylens_audit_accuracy", "raylens_audit_calibration_error", "raylens_audit_map_metric"}
