"""What a study found as tables for programs: one Parquet file each beside the page."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.jobs.study import Study


def _fields(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


WHO = [pa.field(name, pa.string(), nullable=False) for name in ("model", "method")]
SCHEMAS: dict[str, pa.Schema] = {
    "scores": pa.schema(
        [
            *WHO,
            pa.field("is_control", pa.bool_(), nullable=False),
            pa.field("metric", pa.string(), nullable=False),
            *_fields(pa.bool_(), "higher_is_better", "across_models"),
            *_fields(pa.float64(), "value", "low", "high"),
            pa.field("images", pa.int64(), metadata={"unit": "images, or grids of images"}),
            pa.field("rank", pa.int32(), metadata={"unit": "among the methods of the model; 1 is the best"}),
            pa.field("p_control", pa.float64(), metadata={"unit": "against maps that know nothing, corrected"}),
            pa.field("p_best", pa.float64(), metadata={"unit": "against the best method of the model, corrected"}),
            pa.field("seconds_per_image", pa.float64(), metadata={"unit": "s, to predict and explain"}),
        ]
    ),
    "values": pa.schema(
        [
            *WHO,
            pa.field("metric", pa.string(), nullable=False),
            pa.field("image", pa.string(), nullable=False, metadata={"unit": "sample_id, or name of a grid"}),
            pa.field("value", pa.float64(), nullable=False, metadata={"unit": "of pxap, the jackknife's pseudo-value"}),
        ]
    ),
    "curves": pa.schema(
        [
            *WHO,
            pa.field("metric", pa.string(), nullable=False),
            pa.field("point", pa.int32(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
        ]
    ),
    "agreements": pa.schema(
        [
            *_fields(pa.string(), "model", "first", "second"),
            pa.field("tau", pa.float64(), metadata={"unit": "Kendall's tau-b of the methods' means"}),
            pa.field("methods", pa.int32()),
        ]
    ),
    "misfits": pa.schema([*WHO, pa.field("why", pa.string(), nullable=False)]),
}
"""By the name of the table."""


def tables(study: "Study") -> dict[str, pa.Table]:
    """The tables of a study; one without data has no rows.

    Args:
        study: finished.

    Returns:
        By name of `SCHEMAS`.
    """
    return {
        "scores": _table("scores", _scores(study)),
        "values": _table("values", _values(study)),
        "curves": _table("curves", _curves(study)),
        "agreements": _table("agreements", map(vars, study.agreements)),
        "misfits": _table("misfits", ({**_who(one), "why": one.misfit} for one in study.entrants if one.misfit)),
    }


def _table(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])


def _who(one: Any) -> dict[str, str]:
    return {"model": one.model, "method": one.method}


def _scores(study: "Study") -> Iterator[dict[str, Any]]:
    traits = {one.name: one for one in study.measures}
    seconds = {(one.model, one.method): one.seconds for one in study.entrants}
    for score in study.scores:
        measure = traits[score.metric]
        yield vars(score) | {
            "higher_is_better": measure.higher_is_better,
            "across_models": measure.across_models,
            "seconds_per_image": seconds[score.model, score.method],
        }


def _values(study: "Study") -> Iterator[dict[str, Any]]:
    for one in study.entrants:
        for metric, values in one.values.items():
            for image, value in values.items():
                yield _who(one) | {"metric": metric, "image": image, "value": value}


def _curves(study: "Study") -> Iterator[dict[str, Any]]:
    for one in study.entrants:
        for metric, curve in one.curves.items():
            for point, value in enumerate(curve):
                yield _who(one) | {"metric": metric, "point": point, "value": value}
