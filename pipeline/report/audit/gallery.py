"""Which images of a night are shown, and why: those that are wrong, moved, doubtful or lit at the border."""

from dataclasses import dataclass

from pipeline.report.explanation import Value

SIZE = 8


@dataclass(frozen=True)
class Kind:
    """A gallery of the page.

    Attributes:
        title: of the gallery.
        lead: which images it holds, in what order.
        empty: what is said where there are none.
        measure: what the number by which they are ranked is; empty where the score says it.
    """

    title: str
    lead: str
    empty: str
    measure: str = ""


KINDS: dict[str, Kind] = {
    "wrong": Kind(
        "Confidently wrong",
        "Wrong by their label, the highest score first: a mistake of the model, or of the label.",
        "No image is wrong by its label, or none has one.",
    ),
    "drifted": Kind(
        "Most drifted",
        "Their maps are the farthest from the earlier night's mean map of their class.",
        "Without an earlier night that explained enough images of a class, there is no map to have drifted from.",
        "distance",
    ),
    "border": Kind(
        "Most evidence at the border",
        "The largest share of the evidence in the outer tenth of each side, where frames, captions and watermarks are; "
        "an even map has 36.0 %.",
        "No map has any evidence.",
        "at the border",
    ),
    "unsure": Kind(
        "Right with a low score",
        "Right by their label, the lowest score first: what the model hardly knows.",
        "No image is right by its label, or none has one.",
    ),
}
"""In the order of the page."""
PAIRED = Kind(
    KINDS["drifted"].title,
    "Of the images that both nights hold, those whose map is the least like its earlier one. In the middle the earlier "
    "map, over the image as it was then.",
    "No image is in both nights.",
    "distance",
)
"""`drifted`, where the nights share images."""


def values(drifted: Value | None) -> dict[str, Value]:
    """By which images the galleries are filled.

    Args:
        drifted: distance of a map from what it was; None where nothing is there to compare with.

    Returns:
        By name of `KINDS`.
    """
    from pipeline.report.audit import survey

    given = {"wrong": survey.wrong_score, "border": survey.at_the_border, "unsure": survey.right_doubt}
    return given | ({"drifted": drifted} if drifted else {})
