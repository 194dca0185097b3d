"""The page of bias discovery: one file that needs no network."""

from typing import TYPE_CHECKING

from pipeline.report.bias import provenance
from pipeline.report.bias.controls import controls
from pipeline.report.bias.performance import performance
from pipeline.report.html.number import plural
from pipeline.report.html.template import render

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

PACKAGE = "pipeline.report.bias"


def page(found: "Discovery") -> str:
    """Makes the page.

    Args:
        found: by `raylens bias`.

    Returns:
        HTML.
    """
    values = {
        "found": found,
        "verdict": _verdict(found),
        "parts": [controls(found), performance(found)],
        "rules": list(provenance.rules(found)),
        "facts": list(provenance.facts(found)),
        "specification": provenance.specification(found),
    }
    return render(PACKAGE, "bias.html", values)


def _verdict(found: "Discovery") -> str:
    count = len(found.confirmed)
    return f"{plural(count, 'slice')} {'fails' if count == 1 else 'fail'}" if count else "No slice fails beyond chance"
