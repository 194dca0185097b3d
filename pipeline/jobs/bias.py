"""Bias discovery: explain and embed, find slices, judge them on images that did not find them, describe, report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.attribution import method_class
from pipeline.bias.cues import CueMeasures, cue_measures
from pipeline.bias.finding import Finding, findings
from pipeline.bias.gathered import Gathered, gather, identified, with_embeddings
from pipeline.bias.mitigation import Outcome
from pipeline.bias.outlook import obstacle
from pipeline.bias.remedy import remedies
from pipeline.bias.slicing import slicers
from pipeline.bias.trial import Trial, attempt, unsliced, untried
from pipeline.bias.verdict import Rules
from pipeline.bias.words import Words, read_words, require_one_space
from pipeline.errors import MethodError
from pipeline.jobs.again import plan_of, same_job, selected
from pipeline.jobs.cluster import cluster
from pipeline.jobs.progress import Display, display
from pipeline.jobs.quickest import ONCE, of_one_pass
from pipeline.jobs.run import Selection
from pipeline.jobs.sample import draw
from pipeline.logs import named_run
from pipeline.model import load
from pipeline.runtime.threads import one_thread
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
        for one in spec.slicers:  # what is wrong is told before any work
            slicers.create(one.name, **one.parameters)
        words = _words(spec)
        with cluster(spec) as ready:
            predicted = _predicted(spec, shown, ready)
            known = identified(predicted, attributes=spec.attributes, images=spec.images, seed=spec.seed)
            why = _obstacle(spec, predicted, known)
            explained = predicted if why else _embedded(spec, predicted, shown, ready)
        if why:
            shown.say("no slice can be tested", why=why)
            found = _unanswered(spec, predicted, known, why)
        else:
            images = _gathered(spec, explained)
            if words is not None:
                require_one_space(words, next(iter(images.embeddings.values())))
            shown.say("looking for slices", images=len(images), classes=explained.classes)
            found = _discovery(spec, explained, images, words, _drawn(spec, predicted), shown)
        _write(found, shown)
    finally:
        shown.close()
    return found


def _predicted(spec: BiasSpec, shown: Display, ready: Callable[[], None]) -> FinishedRun:
    """Labels and predictions of all images: those of the run that is given, or by one pass over the input.

    With them it is known whether slices can be tested at all, before anything is embedded.
    """
    if spec.explanations is not None:
        return open_run(spec.explanations, spec.storage)
    quick = {**dict.fromkeys(METRICS), **_quick(spec), "target": "predicted"}
    job = spec.job(f"{spec.output}/predictions").model_copy(update=quick)
    return selected(job, Selection(None, None), shown, ready)


def _obstacle(spec: BiasSpec, predicted: FinishedRun, known: Gathered) -> str:
    """Why no slice can be tested, and whether more images are at hand; empty where one can."""
    why = obstacle(*unsliced(known, spec.halves_seed), Rules(**spec.rules.model_dump()))
    explained = predicted.record.explained
    if why and explained > spec.images:
        return f"{why} Only {spec.images:,} of {explained:,} explained images are looked at: raise `images` first."
    return why


def _quick(spec: BiasSpec) -> dict[str, Any]:
    """A method of one pass, where the job's own takes many."""
    if method_class(spec.method).traits.forwards == ONCE:
        return {}
    with one_thread():
        model = load(spec.model_spec(), storage=spec.storage)
        return {"method": next(of_one_pass(spec, model), spec.method), "method_args": {}}


def _embedded(spec: BiasSpec, predicted: FinishedRun, shown: Display, ready: Callable[[], None]) -> FinishedRun:
    """The images with explanations, descriptions and the embeddings that are asked for."""
    job = spec.job(f"{spec.output}/explained")
    if spec.explanations is not None:
        own = {name: getattr(spec, name) for name in ("attributes", "overwrite", *METRICS)}
        job = same_job(spec, predicted, f"{spec.output}/embedded", embedding=False, **own)
    shards, drawn = plan_of(predicted), None
    if predicted.record.explained > spec.images:
        drawn = spec.images
        shards = draw(predicted, shards, images=drawn, most_shards=len(shards), seed=spec.seed).plan(shards)
    return selected(job, Selection(shards, spec.embeddings.spec(spec.seed, drawn)), shown, ready)


def _drawn(spec: BiasSpec, predicted: FinishedRun) -> list[str]:
    """What to say of the choice of images."""
    explained = predicted.record.explained
    if explained <= spec.images:
        return []
    return [f"{spec.images} of the {explained} explained images were drawn at random and are looked at."]


def _gathered(spec: BiasSpec, explained: FinishedRun) -> Gathered:
    settings = spec.embeddings
    spaces: tuple[Space, ...] = () if settings.file else settings.spaces
    found = gather(explained, spaces, attributes=spec.attributes, images=spec.images, seed=spec.seed)
    if settings.file is None:
        return found
    return with_embeddings(found, settings.file, settings.column, spec.storage)


def _words(spec: BiasSpec) -> Words | None:
    settings = spec.embeddings
    return None if settings.words is None else read_words(settings.words, settings.column, spec.storage)


def _discovery(
    spec: BiasSpec, explained: FinishedRun, images: Gathered, words: Words | None, drawn: list[str], shown: Display
) -> Discovery:
    names = explained.labels
    trials, statements = _trials(spec, images, names, shown)
    described = findings(images, trials[0], names, captions=spec.captions, words=words, seed=spec.seed, most=DESCRIBED)
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


def _unanswered(spec: BiasSpec, predicted: FinishedRun, images: Gathered, why: str) -> Discovery:
    """What is known without slices: how accurate the model is, and how far predictions follow cues."""
    trial = untried(
        images,
        spec.slicers[0],
        spec.embeddings.spaces[0],
        Rules(**spec.rules.model_dump()),
        halves=spec.halves_seed,
        why=why,
    )
    cues = [name for name in spec.cues if name in images.attributes]
    absent = [f"{name}: not measured, the run does not hold it." for name in spec.cues if name not in cues]
    return Discovery(
        spec,
        predicted,
        images,
        (trial,),
        (),
        cue_measures(images, trial.rows, cues, seed=spec.seed) if cues else None,
        (),
        (*images.statements, trial.statement, *absent),
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
