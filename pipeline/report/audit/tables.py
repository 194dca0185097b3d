"""What a night found as tables for programs: one Parquet file each beside the page."""

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import chain
from operator import or_
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.drift.compare import ClassDrift
from pipeline.drift.finding import Finding
from pipeline.evaluation.breakdown import MapGroup
from pipeline.evaluation.table import Mean, MetricRow
from pipeline.performance.result import ClassRow, Group, Share
from schemas.measures import CENTRE, CONTROLS

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night

KNOWN = (*CONTROLS, "chance", CENTRE)
"""Controls of the metrics; a metric has some of them."""


def _fields(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


def _shared(name: str) -> list[pa.Field]:
    """A share and the bounds of its interval."""
    return _fields(pa.float64(), name, f"{name}_low", f"{name}_high")


GROUP = [
    *_fields(pa.int64(), "images", "labelled"),
    *_shared("accuracy"),
    *_shared("top5"),
    *_fields(pa.float64(), "ece", "confidence", "confidence_right", "confidence_wrong", "margin", "entropy"),
]

SCHEMAS: dict[str, pa.Schema] = {
    "classes": pa.schema(
        [
            pa.field("class", pa.int32(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            *GROUP,
            pa.field("predicted", pa.int64(), metadata={"unit": "labelled images that were predicted to be of it"}),
            *_shared("precision"),
            *_fields(pa.float64(), "f1"),
            *_fields(pa.int64(), "maps_before", "maps_now"),
            pa.field("maps_moved", pa.float64(), metadata={"unit": "share of the maps; 0.05 is no drift"}),
        ]
    ),
    "slices": pa.schema([*_fields(pa.string(), "slice", "value"), *GROUP]),
    "metrics": pa.schema(
        [
            pa.field("metric", pa.string(), nullable=False),
            *_fields(pa.bool_(), "higher_is_better", "across_models"),
            *_fields(pa.float64(), "value", "value_error"),
            *_fields(pa.int64(), "images"),
            *[field for name in KNOWN for field in _fields(pa.float64(), name, f"{name}_error")],
            pa.field("p_value", pa.float64(), metadata={"unit": "against random maps, corrected"}),
            pa.field("curve", pa.list_(pa.float64())),
            pa.field("source", pa.string()),
        ]
    ),
    "breakdown": pa.schema(
        [
            pa.field("by", pa.string(), nullable=False, metadata={"unit": "all, class or slice"}),
            pa.field("slice", pa.string(), metadata={"unit": "its column; null for others"}),
            pa.field("name", pa.string(), nullable=False, metadata={"unit": "of the class, or the slice's value"}),
            pa.field("class", pa.int32(), metadata={"unit": "that the map explains; null for others"}),
            pa.field("measure", pa.string(), nullable=False),
            pa.field("value", pa.float64(), metadata={"unit": "mean; null for too few images"}),
            *_fields(pa.float64(), "value_low", "value_high"),
            *_fields(pa.int64(), "images"),
            pa.field("control", pa.float64(), metadata={"unit": "mean of maps that know nothing"}),
            pa.field("is_worse", pa.bool_(), metadata={"unit": "than all other groups; null if not compared"}),
        ]
    ),
    "findings": pa.schema(
        [
            *_fields(pa.string(), "name", "family", "subject", "class_name"),
            *_fields(pa.int64(), "before", "after"),
            pa.field("effect", pa.float64()),
            pa.field("effect_name", pa.string()),
            *_fields(pa.float64(), "threshold", "p_value", "corrected"),
            pa.field("alert", pa.bool_()),
            pa.field("sentence", pa.string()),
            pa.field("details", pa.map_(pa.string(), pa.float64())),
        ]
    ),
}
"""By the name of the table."""


def tables(night: "Night") -> dict[str, pa.Table]:
    """The tables of a night; one without data has no rows.

    Args:
        night: the audit.

    Returns:
        By name of `SCHEMAS`.
    """
    found = night.performance
    return {
        "classes": _table("classes", _classes(night)),
        "slices": _table("slices", (_slice(name, one) for name, groups in found.slices.items() for one in groups)),
        "metrics": _table("metrics", map(_metric, night.metrics)),
        "breakdown": _table("breakdown", chain.from_iterable(map(_means, night.breakdown))),
        "findings": _table("findings", map(_finding, night.drift.findings if night.drift else ())),
    }


def _table(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])


def _classes(night: "Night") -> Iterator[dict[str, Any]]:
    """Classes with a label or a prediction, and those whose maps were compared, which need no label."""
    labelled = {one.index: _class(one) for one in night.performance.classes}
    compared = {one.index: _compared(one) for one in night.drift.classes} if night.drift else {}
    for index in sorted(labelled.keys() | compared.keys()):
        yield compared.get(index, {}) | labelled.get(index, {})


def _compared(one: ClassDrift) -> dict[str, Any]:
    maps = {"maps_before": one.before, "maps_now": one.after, "maps_moved": one.moved}
    return {"class": one.index, "name": one.name, **maps}


def _slice(name: str, one: Group) -> dict[str, Any]:
    return {"slice": name, "value": one.name, **_group(one)}


def _class(one: ClassRow) -> dict[str, Any]:
    return {
        "class": one.index,
        "name": one.images.name,
        **_group(one.images),
        "predicted": one.predicted,
        **_share("precision", one.precision),
        "f1": one.f1,
    }


def _group(one: Group) -> dict[str, Any]:
    plain = {name: value for name, value in vars(one).items() if name not in ("name", "accuracy", "top5")}
    return plain | _share("accuracy", one.accuracy) | _share("top5", one.top5)


def _share(name: str, one: Share) -> dict[str, Any]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}


def _metric(row: MetricRow) -> dict[str, Any]:
    controls = [_mean(name, row.controls.get(name)) for name in KNOWN]
    return {
        "metric": row.name,
        "higher_is_better": row.higher_is_better,
        "across_models": row.across_models,
        **_mean("value", row.method),
        "images": row.method.images,
        **reduce(or_, controls),
        "p_value": row.p_value,
        "curve": list(row.curve) or None,
        "source": row.source,
    }


def _mean(name: str, one: Mean | None) -> dict[str, Any]:
    return {name: one.value, f"{name}_error": one.error} if one else {}


def _means(group: MapGroup) -> Iterator[dict[str, Any]]:
    for measure, one in group.means.items():
        yield {
            "by": group.by,
            "slice": group.column or None,
            "name": group.name,
            "class": group.index,
            "measure": measure,
            "value": one.value,
            "value_low": one.low,
            "value_high": one.high,
            "images": one.images,
            "control": one.control,
            "is_worse": one.is_worse,
        }


def _finding(one: Finding) -> dict[str, Any]:
    return vars(one) | {"details": list(one.details.items())}
