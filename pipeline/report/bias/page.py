"""The page of bias discovery: one file that needs no network."""

from typing import TYPE_CHECKING

from pipeline.report.bias import provenance
from pipeline.report.bias.controls import controls
from pipeline.report.bias.cues import cues
from pipeline.report.bias.exhibit import exhibition
from pipeline.report.bias.headline import headline
from pipeline.report.bias.landscape import landscape
from pipeline.report.bias.performance import performance
from pipeline.report.bias.remedies import remedies
from pipeline.report.bias.untested import untested
from pipeline.report.html.template import render

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

PACKAGE = "pipeline.report.bias"


def page(found: "Discovery") -> str:
    """Makes the page.

    Args:
        found: by `raylens bias`.

    Returns:
        HTML, a few MiB at most.

    Raises:
        InputError: the explanations cannot be read; photographs that cannot leave a placeholder.
    """
    values = {
        "found": found,
        "headline": headline(found),
        "shown": exhibition(found),
        "untested": untested(found),
        "parts": [*landscape(found), *cues(found), *remedies(found), *controls(found), performance(found)],
        "rules": list(provenance.rules(found)),
        "facts": list(provenance.facts(found)),
        "specification": provenance.specification(found),
    }
    return render(PACKAGE, "bias.html", values)
