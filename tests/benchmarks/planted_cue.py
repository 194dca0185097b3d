"""PlantedCue by the rules of honest scoring: which ways to find slices find the true ones, and nothing else.

`make bench-bias` runs it; `python tests/benchmarks/planted_cue.py --help` says what can be made smaller.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import torch

from pipeline.bias import planted, tinycnn
from pipeline.bias.description import describe
from pipeline.bias.embedder import Embedder
from pipeline.bias.gap import Ints
from pipeline.bias.gathered import Gathered
from pipeline.bias.masks import evidence_masks, smooth_masks
from pipeline.bias.trial import Trial, attempt
from pipeline.bias.truth import harmful_groups, precision_at, score
from pipeline.bias.verdict import Rules
from pipeline.errors import MethodError
from pipeline.graph import ExplanationGraph, seed_of
from schemas.bias import SlicerSpec
from schemas.graph import GraphSpec, ModelSpec

matplotlib.use("agg")
import matplotlib.pyplot as plt

REGIMES = ("partial", "full", "none", "background")
MASKED = ("evidence", "rest", "random", "truth")
TRIALS = (
    *((slicer, "image") for slicer in ("domino", "facts", "spray", "kmeans", "random")),
    *itertools.product(("domino", "kmeans"), MASKED),
)
"""Slicers on the image, and two of them on the evidence, the rest, random blobs, and the cue itself (the bound)."""
BATCH = 100
DRAWS = 2000


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        training_images: of each network.
        images: that slices are looked for in.
        training_seeds: networks of a regime.
        data_seeds: sets of images for each network.
    """

    training_images: int = 1400
    images: int = 3000
    training_seeds: int = 5
    data_seeds: int = 3


@dataclass(frozen=True)
class Planted:
    """A regime's images as bias discovery holds them, with their truth.

    Attributes:
        images: with embeddings by space; `truth` shows the cue alone.
        groups: (N,) class, and whether the cue agrees with it.
    """

    images: Gathered
    groups: Ints


def network(regime: str, seed: int, images: int, folder: Path) -> ExplanationGraph:
    """A network that was trained on the regime, explained by Grad-CAM."""
    pixels, labels = planted.stack(planted.regime(regime, n_images=images, seed=100 + seed), range(images))
    path = folder / f"{regime}-{seed}.safetensors"
    tinycnn.save(tinycnn.train(torch.from_numpy(pixels), torch.from_numpy(labels), seed=seed), path)
    model = ModelSpec(
        source="module:pipeline.bias.tinycnn:tiny_cnn",
        weights=str(path),
        size=tinycnn.IMAGE_SIZE,
        mean=tinycnn.MEAN,
        std=tinycnn.STD,
    )
    return ExplanationGraph(GraphSpec(model=model, batch_size=BATCH))


def gathered(graph: ExplanationGraph, regime: str, seed: int, count: int) -> Planted:
    """Images with predictions, maps, embeddings and descriptions."""
    spec = planted.regime(regime, n_images=count, seed=1000 + seed)
    embedder = Embedder(graph.model)
    parts = [_part(graph, embedder, spec, range(at, min(at + BATCH, count))) for at in range(0, count, BATCH)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ids = tuple(planted.image_key(spec, index) for index in range(count))
    images = Gathered(
        sample_ids=ids,
        uris=ids,
        labels=columns["label"],
        predictions=columns["probabilities"].argmax(axis=1),
        probabilities=columns["probabilities"],
        maps=columns["maps"],
        embeddings={space: columns[f"embedding {space}"] for space in ("image", *MASKED)},
        descriptions={"image": columns["description"]},
        attributes={},
        statements=(),
    )
    return Planted(images, 2 * columns["label"] + (columns["label"] == columns["cue"]))


def _part(
    graph: ExplanationGraph, embedder: Embedder, spec: planted.PlantedSpec, indices: range
) -> dict[str, np.ndarray[Any, Any]]:
    rendered = [planted.render(spec, index) for index in indices]
    names = [planted.image_key(spec, index) for index in indices]
    pixels = np.stack([one.image for one in rendered])
    found = graph.answer(pixels, names)
    maps = found.attribution.maps[:, 0]
    size = (spec.size, spec.size)
    evidence = evidence_masks(maps, size, kept=0.3)
    seeds = [seed_of(name) for name in names]
    shown = {
        "image": None,
        "evidence": evidence,
        "rest": ~evidence,
        "random": smooth_masks(evidence.sum(dim=(1, 2)).tolist(), seeds, size, cells=graph.method.shape, seed=0),
        "truth": torch.from_numpy(np.stack([one.cue_mask for one in rendered])),
    }
    known = evidence.any(dim=(1, 2)).numpy()
    x = torch.from_numpy(pixels)
    embedded = {f"embedding {space}": embedder(x, mask).numpy() for space, mask in shown.items()}
    for space in ("evidence", "rest", "random"):
        embedded[f"embedding {space}"][~known] = np.nan
    return {
        "label": np.array([one.label for one in rendered]),
        "cue": np.array([one.cue for one in rendered]),
        "probabilities": found.attribution.logits.softmax(dim=1).numpy(),
        "maps": maps.numpy(),
        "description": describe(x).numpy(),
        **embedded,
    }


def rows(regime: str, training_seed: int, scale: Scale) -> list[dict[str, Any]]:
    """Every trial on every set of images, by one network."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        graph = network(regime, training_seed, scale.training_images, Path(folder))
        found = []
        for data_seed in range(scale.data_seeds):
            data = gathered(graph, regime, data_seed, scale.images)
            place = {"regime": regime, "training_seed": training_seed, "data_seed": data_seed}
            found += [{**place, **_scored(data, slicer, space)} for slicer, space in TRIALS]
    return found


def _scored(data: Planted, slicer: str, space: Any) -> dict[str, Any]:
    images = data.images
    harmful = harmful_groups(data.groups, images.labels, images.predictions)
    named = {"slicer": slicer, "space": space, "harmful": len(harmful), "accuracy": _accuracy(images)}
    try:
        trial = attempt(images, SlicerSpec(name=slicer), space, Rules(), {}, seed=0, halves=1)
    except MethodError:
        return {**named, **dict.fromkeys(("flagged", "confirmed", "confusions", "right", "recall", "p10", "chance"))}
    return {**named, **_numbers(trial, data.groups, harmful)}


def _accuracy(images: Gathered) -> float:
    return float((images.labels == images.predictions).mean())


def _numbers(trial: Trial, groups: Ints, harmful: Sequence[int]) -> dict[str, Any]:
    held_out = groups[trial.rows[1]]
    found = score(trial.verdict, trial.held_out, held_out, harmful)
    slices = trial.held_out.memberships.shape[1]
    top = precision_at(trial.held_out, held_out, harmful, draws=20) if harmful and slices else None
    return {
        "flagged": trial.flagged,
        "confirmed": len(found.matches),
        "confusions": sum(one.status == "confusion" for one in trial.verdict.slices),
        "right": sum(match.right for match in found.matches),
        "recall": found.recall,
        "p10": top.value if top else None,
        "chance": top.chance if top else None,
    }


def measured(scale: Scale, regimes: Sequence[str], workers: int) -> pl.DataFrame:
    """All rows; networks are trained in processes of their own."""
    asked = list(itertools.product(regimes, range(scale.training_seeds)))
    with ProcessPoolExecutor(workers) as pool:
        running = [pool.submit(rows, regime, seed, scale) for regime, seed in asked]
        found: list[dict[str, Any]] = []
        for (regime, seed), one in zip(asked, running, strict=True):
            found += one.result()
            print(f"{regime}, network {seed}: done", flush=True)
    return pl.DataFrame(found, infer_schema_length=None)


def interval(values: Iterable[tuple[int, float]], *, seed: int = 0) -> tuple[float, float, float] | None:
    """Mean, and 95 % percentile interval of a bootstrap that draws networks, not images: (network, value) pairs."""
    by_network: dict[int, list[float]] = {}
    for name, value in values:
        by_network.setdefault(name, []).append(value)
    if not by_network:
        return None
    means = np.array([np.mean(one) for one in by_network.values()])
    drawn = means[np.random.default_rng(seed).integers(len(means), size=(DRAWS, len(means)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def summary(found: pl.DataFrame) -> pl.DataFrame:
    """A row for each regime, slicer and space."""
    lines = []
    for (regime, slicer, space), part in found.group_by("regime", "slicer", "space", maintain_order=True):
        known = part.drop_nulls("confirmed")
        line: dict[str, Any] = {"regime": regime, "slicer": slicer, "space": space, "runs": len(known)}
        for name in ("recall", "p10", "chance"):
            line[name] = told(interval(known.drop_nulls(name).select("training_seed", name).iter_rows()))
        confirmed = int(known["confirmed"].sum())
        line["precision"] = f"{known['right'].sum()} of {confirmed}" if confirmed else "–"
        line |= {name: int(known[name].sum()) for name in ("flagged", "confirmed", "confusions")}
        lines.append(line)
    return pl.DataFrame(lines)


def told(found: tuple[float, float, float] | None) -> str:
    """A mean with its interval, in words."""
    return "–" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def gains(found: pl.DataFrame) -> pl.DataFrame:
    """Recall on the evidence minus the best of image, rest and random blobs, run by run."""
    lines = []
    for (regime, slicer), part in found.drop_nulls("recall").group_by("regime", "slicer", maintain_order=True):
        runs = part.pivot(on="space", index=["training_seed", "data_seed"], values="recall")
        if not {"evidence", "rest", "random"} <= set(runs.columns):
            continue
        best = runs.select(pl.max_horizontal("image", "rest", "random")).to_series()
        pairs = zip(runs["training_seed"].to_list(), (runs["evidence"] - best).to_list(), strict=True)
        helped = interval(pair for pair in pairs if pair[1] is not None)
        verdict = "–" if helped is None else "yes" if helped[1] > 0 else "no" if helped[2] < 0 else "not shown"
        lines.append({"regime": regime, "slicer": slicer, "gain": told(helped), "the explanation helps": verdict})
    return pl.DataFrame(lines, schema=dict.fromkeys(("regime", "slicer", "gain", "the explanation helps"), pl.String))


def drawn(table: pl.DataFrame, path: Path) -> None:
    """Recall of every trial by regime, as bars with intervals."""
    regimes = [name for name in REGIMES if name in table["regime"] and name != "none"]
    figure, axes = plt.subplots(1, len(regimes), figsize=(4 * len(regimes), 5), sharey=True, squeeze=False)
    for axis, regime in zip(axes[0], regimes, strict=True):
        part = table.filter((pl.col("regime") == regime) & (pl.col("recall") != "–"))
        values = [
            [float(x) for x in one.replace("[", "").replace("]", "").replace(",", "").split()] for one in part["recall"]
        ]
        names = [f"{slicer}, {space}" for slicer, space in part.select("slicer", "space").iter_rows()]
        middle = np.array([one[0] for one in values])
        reach = np.abs(np.array([one[1:] for one in values]) - middle[:, None]).T
        axis.barh(names, middle, xerr=reach, color="#3b6ea5", ecolor="#222222")
        axis.set(title=regime, xlabel="recall of harmful groups", xlim=(0, 1.05))
        axis.invert_yaxis()
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the protocol, prints its tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-bias"))
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    for name in ("training_images", "images", "training_seeds", "data_seeds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Scale(), name))
    given = vars(parser.parse_args(arguments))
    output, regimes, workers = (given.pop(name) for name in ("output", "regimes", "workers"))
    found = measured(replace(Scale(), **given), regimes, workers)
    output.mkdir(parents=True, exist_ok=True)
    found.write_parquet(output / "runs.parquet")
    tables = {"slices": summary(found), "gains": gains(found)}
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=40):
        for name, table in tables.items():
            table.write_csv(output / f"{name}.csv")
            print(f"\n{name}\n{table}")
    drawn(tables["slices"], output / "recall.png")
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
