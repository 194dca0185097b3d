"""Bias discovery as Parquet tables: candidates by trial, and of every image its slice."""

import numpy as np
import pyarrow as pa

from pipeline.bias.trial import Trial
from pipeline.bias.verdict import NO_SLICE, SliceVerdict, assigned
from pipeline.jobs.bias import Discovery

HALVES = ("discovery", "held_out")


def tables(found: Discovery) -> dict[str, pa.Table]:
    """The tables beside the report.

    Args:
        found: by `raylens bias`.

    Returns:
        `slices`: a candidate of a trial a row; `images`: an image of the first trial a row, with its slice, null for
        none, and whether that slice is confirmed for its class.
    """
    return {"slices": _slices(found), "images": _images(found)}


def _slices(found: Discovery) -> pa.Table:
    rows = [
        {"slicer": trial.slicer, "space": trial.space, **_numbers(one, found.names)}
        for trial in found.trials
        for one in trial.verdict.slices
    ]
    return pa.Table.from_pylist(rows, schema=SLICES)


def _numbers(one: SliceVerdict, names: dict[int, str]) -> dict[str, object]:
    held, harm = one.held_out, one.harm
    gap = held.gap if held else None
    return {
        "slice": one.slice,
        "label": one.label,
        "label_name": None if one.label is None else names.get(one.label),
        "status": one.status,
        "images": one.discovery.images.hits,
        "gap": one.discovery.gap.value if one.discovery.gap else None,
        "held_out_images": held.images.hits if held else None,
        "held_out_accuracy": held.accuracy.value if held else None,
        "held_out_expected": held.expected if held else None,
        "held_out_gap": gap.value if gap else None,
        "held_out_gap_low": gap.low if gap else None,
        "held_out_gap_high": gap.high if gap else None,
        "held_out_p": held.corrected if held else None,
        "harm": harm.value if harm else None,
        "sentence": one.sentence,
    }


SLICES = pa.schema(
    [
        pa.field("slicer", pa.string(), nullable=False),
        pa.field("space", pa.string(), nullable=False),
        pa.field("slice", pa.int32(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("label_name", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False, metadata={"unit": "of the discovery half"}),
        pa.field("gap", pa.float64(), metadata={"unit": "accuracy of the others minus its own, discovery half"}),
        pa.field("held_out_images", pa.int64()),
        pa.field("held_out_accuracy", pa.float64()),
        pa.field("held_out_expected", pa.float64(), metadata={"unit": "accuracy of the others of its classes"}),
        pa.field("held_out_gap", pa.float64()),
        pa.field("held_out_gap_low", pa.float64()),
        pa.field("held_out_gap_high", pa.float64()),
        pa.field("held_out_p", pa.float64(), metadata={"unit": "one-sided, corrected (Benjamini-Hochberg)"}),
        pa.field("harm", pa.float64(), metadata={"unit": "share of all held-out errors"}),
        pa.field("sentence", pa.string(), nullable=False),
    ]
)


def _images(found: Discovery) -> pa.Table:
    parts = [_half(found, found.main, half) for half in range(len(HALVES))]
    return pa.concat_tables(parts)


def _half(found: Discovery, trial: Trial, half: int) -> pa.Table:
    rows, side = trial.rows[half], (trial.discovery, trial.held_out)[half]
    own = assigned(side.memberships, trial.verdict.rules.threshold)
    greatest = side.memberships.max(axis=1, initial=0.0)
    failing = {(one.slice, one.label) for one in trial.verdict.confirmed}
    confirmed = [
        (slice_, label) in failing or (slice_, None) in failing
        for slice_, label in zip(own.tolist(), side.labels.tolist(), strict=True)
    ]
    images = found.images
    return pa.table(
        {
            "sample_id": [images.sample_ids[row] for row in rows.tolist()],
            "uri": [images.uris[row] for row in rows.tolist()],
            "half": [HALVES[half]] * len(rows),
            "label": pa.array(side.labels, pa.int32()),
            "prediction": pa.array(side.predictions, pa.int32()),
            "slice": pa.array(own, pa.int32(), mask=own == NO_SLICE),
            "membership": pa.array(np.asarray(greatest, np.float32), mask=own == NO_SLICE),
            "confirmed": confirmed,
        }
    )
