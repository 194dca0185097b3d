"""How slices were found: the rules in words, and what somebody else needs to find them again."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.report.bias.controls import SHOWN
from pipeline.report.html.number import plural

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery


def rules(found: "Discovery") -> Iterator[str]:
    """When a slice fails.

    Args:
        found: by `raylens bias`.

    Yields:
        Sentences.
    """
    one = found.main.verdict.rules
    compared = "with the other images of its class" if one.unit == "class" else "with others, weighted by its classes"
    first, second = (len(rows) for rows in found.main.rows)
    yield (
        f"The images are parted by a hash of their names: slices are found on {plural(first, 'image')} and "
        f"confirmed on the {second:,} others, which had no part in finding them. Slices of errors can be "
        "found in any model; only the second half says whether they are real."
    )
    yield (
        f"A slice is compared {compared}. It fails in a half where {one.least_images} of its images or more can be, "
        f"its accuracy is lower by more than {one.least_gap:g}, and the exact one-sided test says so at q {one.q:g} "
        "after the Benjamini-Hochberg correction for all slices that were tested there."
    )
    yield (
        "The network's own features tell where it errs, whatever the images show. A slice that was found in them must "
        "also look different: a linear classifier of colours and edges, trained on the one half, must tell its images "
        f"from right ones of the class on the other, area under the curve above {one.least_separation:g} with its "
        "whole interval. Else it is a confusion: real, but without a reason that can be named."
    )
    yield (
        f"An image is of the slice of which it has most, if that is at least {one.threshold:g}. Harm is the errors "
        "that a slice has beyond what others of its classes would have, as a share of all held-out errors."
    )
    yield (
        "Images, maps, attributes and words are those of the half that did not find the slice. What its images share "
        "stands beside their errors; it need not be what causes them. That takes images in which it alone is changed."
    )


def facts(found: "Discovery") -> Iterator[tuple[str, str]]:
    """Digests, seeds and addresses.

    Args:
        found: by `raylens bias`.

    Yields:
        Names and values.
    """
    record, spec = found.run.record, found.spec
    yield "model", str(record.model["source"])
    yield "weights, SHA-256", str(record.model["weights_sha256"])
    yield "layer of the map", str(record.model["layer"]["name"])
    yield "method", _with_arguments(record.spec["method"], record.spec.get("method_args") or {})
    yield "embeddings", _embeddings(found)
    yield "slicers", "; ".join(_with_arguments(one.name, dict(one.parameters)) for one in spec.slicers)
    if found.images.embeddings:
        yield "found on", found.main.statement
    yield "graph digest", record.graph_digest
    yield "job digest", record.job_digest
    yield "seeds", f"slicers and draws {spec.seed}, halves {spec.halves_seed}"
    yield "explained", found.run.address
    yield "computed", f"{record.started} to {record.finished}, {record.seconds:.0f} s"
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))


def _with_arguments(name: str, arguments: dict[str, object]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def _embeddings(found: "Discovery") -> str:
    settings = found.spec.embeddings
    if not found.images.embeddings:
        return "none: no slice could be tested"
    if settings.file is not None:
        return f"column {settings.column} of {settings.file}"
    network = settings.model.source if settings.model else "the explained network"
    spaces = ", ".join(SHOWN[space] for space in found.images.embeddings)
    return f"last features of {network}, of {spaces}; the evidence is at most {settings.kept:.0%} of an image"


def specification(found: "Discovery") -> str:
    """The specification without credentials, as JSON."""
    return json.dumps(found.spec.public(), indent=2, sort_keys=True)
