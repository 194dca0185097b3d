"""The page of a study: one file that needs no network."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.comparison import Agreement, Entrant, Score
from pipeline.report.audit.metrics import SWEEPS
from pipeline.report.audit.plots import ACCURACY
from pipeline.report.html.plot import Plot
from pipeline.report.html.table import Table
from pipeline.report.html.template import render
from pipeline.report.study import methods, plots
from pipeline.report.study.gallery import Strip, strips
from pipeline.report.study.headline import headline

if TYPE_CHECKING:
    from pipeline.jobs.study import Study

PACKAGE = "pipeline.report.study"
DEVICES = {"cpu": "one processor core (processor time)", "cuda": "one GPU (wall time)"}


@dataclass(frozen=True)
class Section:
    """What the page shows of one model.

    Attributes:
        name: of the model.
        anchor: of its elements.
        table: methods by metrics.
        ranks: of the methods; None where nothing is ranked.
        curves: of the metrics that have one.
        costs: metrics over seconds.
        agreement: of the metrics; None with fewer than three methods.
        opposed: a sentence on the metrics that agree the least; empty without.
        strips: images by every method.
    """

    name: str
    anchor: str
    table: Table
    ranks: Plot | None
    curves: tuple[Plot, ...]
    costs: tuple[Plot, ...]
    agreement: Plot | None
    opposed: str
    strips: tuple[Strip, ...]


def page(study: "Study") -> str:
    """Makes the page.

    Args:
        study: finished.

    Returns:
        HTML.

    Raises:
        InputError: a run cannot be read; photographs that cannot leave a placeholder.
    """
    several = len(study.predictions) > 1
    values = {
        "study": study,
        "headline": headline(study),
        "models": methods.models(study.predictions),
        "sections": [_section(study, name, f"model-{place}") for place, name in enumerate(study.predictions, 1)],
        "beside": methods.beside(study.scores, study.measures, list(study.predictions)) if several else None,
        "confounded": [one.name for one in study.measures if not one.across_models],
        "device": DEVICES[study.device],
        "facts": list(_facts(study)),
        "specification": json.dumps(study.spec.public(), indent=2, sort_keys=True),
    }
    return render(PACKAGE, "study.html", values)


def _section(study: "Study", model: str, anchor: str) -> Section:
    entrants = [one for one in study.entrants if one.model == model]
    scores = [one for one in study.scores if one.model == model]
    ranked = [one for one in scores if one.rank is not None]
    agreements = [one for one in study.agreements if one.model == model]
    return Section(
        name=model,
        anchor=anchor,
        table=methods.table(entrants, scores, study.measures, name=f"{anchor}-methods"),
        ranks=plots.ranks(ranked, study.measures, name=f"{anchor}-ranks") if ranked else None,
        curves=tuple(_curves(entrants, anchor)),
        costs=tuple(_costs(study, ranked, entrants, anchor)),
        agreement=plots.agreement(agreements, name=f"{anchor}-agreement") if agreements else None,
        opposed=_opposed(agreements),
        strips=tuple(strips(study, model)),
    )


def _curves(entrants: list[Entrant], anchor: str) -> Iterator[Plot]:
    for metric in SWEEPS:
        shown = [one for one in entrants if metric in one.curves]
        if shown:
            yield plots.sweeps(shown, metric, name=f"{anchor}-curve-{metric}", of_pixels=metric not in ACCURACY)


def _costs(study: "Study", ranked: list[Score], entrants: list[Entrant], anchor: str) -> Iterator[Plot]:
    for measure in study.measures:
        own = [one for one in ranked if one.metric == measure.name]
        if len(own) > 1:
            yield plots.cost(own, entrants, measure, name=f"{anchor}-cost-{measure.name}")


def _opposed(agreements: list[Agreement]) -> str:
    if not agreements:
        return ""
    least = min(agreements, key=lambda one: one.tau)
    most = max(agreements, key=lambda one: one.tau)
    told = f"{most.first} and {most.second} order the methods most alike (τ {most.tau:.2f})"
    if least is not most:
        told += f", {least.first} and {least.second} the least (τ {least.tau:.2f})"
    return f"{told}; of {most.methods} methods.".replace("-", "−")


def _facts(study: "Study") -> Iterator[tuple[str, str]]:
    for name, run in study.predictions.items():
        yield f"{name}: weights, SHA-256", str(run.record.model["weights_sha256"])
    for (model, method), run in study.measured.items():
        yield f"{model}, {method}", f"graph {run.record.graph_digest}, {run.address}"
    yield "study digest", study.spec.digest()
    yield "seeds", f"job {study.spec.seed}, sample {study.spec.measure.seed}"
    versions = next(iter(study.predictions.values())).record.versions
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
