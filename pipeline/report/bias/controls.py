"""Every way to find slices beside the reported one: what random slices and other embeddings find."""

from typing import TYPE_CHECKING

from pipeline.bias.trial import Trial
from pipeline.report.bias.part import Part
from pipeline.report.html.number import percent
from pipeline.report.html.table import Cell, Column, Table, counted, share, text
from schemas.embeddings import Space

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

SHOWN: dict[Space, str] = {
    "image": "the image",
    "evidence": "its evidence alone",
    "rest": "the image without its evidence",
    "random": "random blobs of it, of the evidence's area",
}
READ = (
    "A slicer that finds nothing real confirms nothing: random slices are the row to compare with, and a slice that "
    "they confirm is a false alarm. Random blobs show the network parts of the image that no explanation chose; what "
    "is found there was found without one."
)
COLUMNS = (
    Column("Slicer", numeric=False),
    Column("What the network is shown", numeric=False),
    Column("Images", note="of both halves; those without evidence have no masked embedding"),
    Column("Tested", note="slices with enough images that can be compared with others of their class"),
    Column("Flagged", note="slices that fail on the half that they were found on"),
    Column("Confirmed", note="of these, the ones that fail on the other half too"),
    Column("Confusions", note="fail on both halves, and nothing that can be seen sets their images apart"),
    Column("Harm", note="share of the held-out errors that the confirmed slices have beyond what their classes have"),
)


def controls(found: "Discovery") -> tuple[Part, ...]:
    """The trials of a discovery.

    Args:
        found: by `raylens bias`.

    Returns:
        The part; none where nothing was tried.
    """
    if not found.images.embeddings:
        return ()
    rows = tuple(_row(one, is_main=one is found.main) for one in found.trials)
    said = (READ, *_mask(found))
    table = Table("trials", "Slicers and what they were given", COLUMNS, rows)
    return (Part("controls", "Controls", "Controls", said, tables=(table,)),)


def _row(one: Trial, *, is_main: bool) -> tuple[Cell, ...]:
    return (
        text(one.slicer, note="reported on this page" if is_main else ""),
        text(SHOWN[one.space]),
        counted(sum(len(rows) for rows in one.rows)),
        counted(len(one.verdict.slices)),
        counted(one.flagged),
        counted(len(one.verdict.confirmed)),
        counted(sum(each.status == "confusion" for each in one.verdict.slices)),
        share(one.harm if one.verdict.slices else None),
    )


def _mask(found: "Discovery") -> tuple[str, ...]:
    """Whether the explanation's mask finds more than every other space; nothing where it does not."""
    harms = {one.space: one.harm for one in found.trials if one.slicer == found.main.slicer}
    own, others = harms.get("evidence", 0.0), [harm for space, harm in harms.items() if space != "evidence"]
    if not others or own <= max(others):
        return ()
    return (
        f"Slices of the evidence cover {percent(own)} of the errors, the next best ones {percent(max(others))}. "
        "This is one run without an interval: it cannot settle whether the explanation helps.",
    )
