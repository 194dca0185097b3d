"""Bias discovery: explain and embed, find slices, judge them on images that did not find them, describe, report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.bias.cues import CueMeasures, cue_measures
from pipeline.bias.finding import Finding, findings
from pipeline.bias.gathered import Gathered, gather, with_embeddings
from pipeline.bias.mitigation import Outcome
from pipeline.bias.remedy import remedies
from pipeline.bias.slicing import slicers
from pipeline.bias.trial import Trial, attempt
from pipeline.bias.verdict import Rules
from pipeline.errors import MethodError
from pipeline.jobs.again import plan_of, same_job, selected
from pipeline.jobs.cluster import cluster
from pipeline.jobs.progress import Display, display
from pipeline.jobs.run import Selection
from pipeline.jobs.sample import draw
from pipeline.logs import named_run
from pipeline.stream.finished import FinishedRun, open_run
from pipeline.stream.ledger import Ledger
from schemas.bias import BiasSpec
from schemas.embeddings import Space

RESULT = "bias.json"
REPORT = "report.html"
METRICS = ("metrics_file", "metrics_pushgateway", "interval_h")
"""Where the embedding job publishes, which is all that is streamed here."""
DESCRIBED = 12
"""Slices that are described."""


@dataclass(frozen=True, eq=False)
class Discovery:
    """Everything that bias discovery found; the report is made of it.

    Attributes:
        spec: of the job.
        run: explained and embedded images.
        images: the labelled ones that were looked at.
        trials: slicers and spaces; the first one's slices are reported, the others stand beside it.
        findings: slices that fail, by harm.
        cues: how far predictions follow attributes that might be shortcuts; None where none are named.
        mitigation: what a new last layer would give; empty where nothing is confirmed, or it was not asked.
        statements: what a reader must know of these numbers.
    """

    spec: BiasSpec
    run: FinishedRun
    images: Gathered
    trials: tuple[Trial, ...]
    findings: tuple[Finding, ...]
    cues: CueMeasures | None
    mitigation: tuple[Outcome, ...]
    statements: tuple[str, ...]

    @property
    def main(self) -> Trial:
        """The trial whose slices are reported."""
        return self.trials[0]

    @property
    def names(self) -> dict[int, str]:
        """Class names by index, where the run knows them."""
        return self.run.labels

    @property
    def confirmed(self) -> tuple[Finding, ...]:
        """Slices that fail in both halves."""
        return tuple(one for one in self.findings if one.slice.status == "confirmed")

    def to_json(self) -> dict[str, Any]:
        """Content of `bias.json`."""
        return {
            "images": len(self.images),
            "accuracy": float((self.images.labels == self.images.predictions).mean()),
            "tested": len(self.main.verdict.slices),
            "confirmed": len(self.confirmed),
            "findings": [one.to_json(self.images) for one in self.findings],
            "cues": None if self.cues is None else self.cues.to_json(),
            "mitigation": [one.to_json() for one in self.mitigation],
            "trials": [one.to_json() for one in self.trials],
            "statements": list(self.statements),
            "explained": self.run.address,
            "run": self.run.record.model_dump(mode="json"),
            "spec": self.spec.public(),
        }


def bias(spec: BiasSpec) -> Discovery:
    """Runs bias discovery, or what is missing of it.

    Args:
        spec: what to do.

    Returns:
        What was found; `bias.json`, the tables and the report are written.

    Raises:
        RaylensError: see `pipeline.errors`; the same call goes on from where it stopped.
    """
    with named_run():
        return _discovered(spec, display(spec.progress))


def _discovered(spec: BiasSpec, shown: Display) -> Discovery:
    try:
        for one in spec.slicers:  # a wrong name is told before any work
            slicers.create(one.name, **one.parameters)
        with cluster(spec) as ready:
            explained, statements = _embedded(spec, shown, ready)
        images = _gathered(spec, explained)
        shown.say("looking for slices", images=len(images), classes=explained.classes)
        found = _discovery(spec, explained, images, statements, shown)
        _write(found, shown)
    finally:
        shown.close()
    return found


def _embedded(spec: BiasSpec, shown: Display, ready: Callable[[], None]) -> tuple[FinishedRun, list[str]]:
    """The explained images with descriptions and the embeddings that are asked for, and what to say of the choice."""
    job, plan, statements = spec.job(f"{spec.output}/explained"), None, []
    if spec.explanations is not None:
        given = open_run(spec.explanations, spec.storage)
        own = {name: getattr(spec, name) for name in ("attributes", "overwrite", *METRICS)}
        job = same_job(spec, given, f"{spec.output}/embedded", embedding=False, **own)
        plan = _plan(spec, given)
        if given.record.explained > spec.images:
            explained = given.record.explained
            statements = [f"{spec.images} of the {explained} explained images were drawn at random and are looked at."]
    selection = Selection(plan, spec.embeddings.spec(spec.seed))
    return selected(job, selection, shown, ready), statements


def _plan(spec: BiasSpec, given: FinishedRun) -> list[Any]:
    """Where the run's images are; a random part of them where there are more than are asked for."""
    shards = plan_of(given)
    if given.record.explained <= spec.images:
        return shards
    return draw(given, shards, images=spec.images, most_shards=len(shards), seed=spec.seed).plan(shards)


def _gathered(spec: BiasSpec, explained: FinishedRun) -> Gathered:
    settings = spec.embeddings
    spaces: tuple[Space, ...] = () if settings.file else settings.spaces
    found = gather(explained, spaces, attributes=spec.attributes, images=spec.images, seed=spec.seed)
    if settings.file is None:
        return found
    return with_embeddings(found, settings.file, settings.column, spec.storage)


def _discovery(spec: BiasSpec, explained: FinishedRun, images: Gathered, drawn: list[str], shown: Display) -> Discovery:
    names = explained.labels
    trials, statements = _trials(spec, images, names, shown)
    described = findings(images, trials[0], names, captions=spec.captions, seed=spec.seed, most=DESCRIBED)
    shown.say("describing", slices=len(described))
    return Discovery(
        spec,
        explained,
        images,
        tuple(trials),
        described,
        cue_measures(images, trials[0].rows, spec.cues, seed=spec.seed) if spec.cues else None,
        remedies(images, trials[0], spec.cues) if _can_be_mended(spec) else (),
        (*drawn, *images.statements, trials[0].statement, *trials[0].verdict.statements, *statements),
    )


def _can_be_mended(spec: BiasSpec) -> bool:
    """Recipes retrain the last layer on features of the whole image by the network itself."""
    return spec.mitigation and spec.embeddings.own and spec.embeddings.spaces[0] == "image"


def _trials(
    spec: BiasSpec, images: Gathered, names: Mapping[int, str], shown: Display
) -> tuple[list[Trial], list[str]]:
    """The first slicer in every space, then the other slicers in the first one; what cannot be tried is said."""
    rules = Rules(**spec.rules.model_dump())
    main, *others = spec.slicers
    spaces = tuple(images.embeddings)
    asked = [*((main, space) for space in spaces), *((slicer, spaces[0]) for slicer in others)]
    trials, statements = [], []
    for slicer, space in asked:
        shown.say("slicing", slicer=slicer.name, space=space)
        try:
            trials.append(
                attempt(
                    images,
                    slicer,
                    space,
                    rules,
                    names,
                    seed=spec.seed,
                    halves=spec.halves_seed,
                    own=spec.embeddings.own,
                )
            )
        except MethodError as error:
            if not trials:
                raise
            statements.append(f"{slicer.name} on the {space}: {error}")
    return trials, statements


def _write(found: Discovery, shown: Display) -> None:
    """The machine form last: where it is, everything is."""
    from pipeline.report.bias.page import page
    from pipeline.report.bias.tables import tables

    spec = found.spec
    ledger = Ledger(spec.output, spec.storage)
    ledger.write_text(page(found), REPORT)
    for name, table in tables(found).items():
        ledger.write_table(table, "tables", f"{name}.parquet")
    ledger.write_json(found.to_json(), RESULT)
    for one in found.confirmed:
        shown.say("slice", finding=one.slice.sentence, shares=one.described or "unknown")
    tested = len(found.main.verdict.slices)
    shown.say("done", tested=tested, slices=len(found.confirmed), report=f"{spec.output}/{REPORT}")
