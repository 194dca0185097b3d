"""PlantedCue's effects against maps: which methods say what a network goes by, with noise and edges beside them.

`make bench-bias` runs it; `python tests/benchmarks/planted_maps.py --help` says what can be made smaller.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import torch
from planted_cue import REGIMES, interval, network, told
from torch import Tensor

from pipeline.attribution import METHODS, create
from pipeline.bias import planted
from pipeline.bias.counterfactual import Agreement, planted_cases, table
from pipeline.errors import MethodError
from pipeline.evaluation.metric import Explain
from pipeline.evaluation.metrics import explains
from pipeline.model import LoadedModel

PARAMETERS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 600},
    "lime": {"samples": 300},
    "kernelshap": {"samples": 300},
    "sobol": {"design": 8},
    "vps": {"segments": 25},
}
"""Of methods of many passes: as many as hundreds of images of 96 px can have. The others have their own defaults."""
MEASURES = ("correlation", "signs", "energy", "pointing", "decoy")


def fitting(model: LoadedModel, names: Sequence[str]) -> tuple[dict[str, Explain], dict[str, str]]:
    """Methods as functions of images, and why the others do not fit."""
    methods: dict[str, Explain] = {}
    misfits: dict[str, str] = {}
    for name in names:
        try:
            methods[name] = explains(create(name, model, **PARAMETERS.get(name, {})))
        except MethodError as error:
            misfits[name] = METHODS[name].misfit(model) or str(error)
    return methods, misfits


def judged(
    regime: str, seed: int, names: Sequence[str], *, images: int, training_images: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every method and control on images of one network, and the methods that do not fit it."""
    torch.set_num_threads(1)
    spec = planted.regime(regime, n_images=images, seed=1000 + seed)
    with tempfile.TemporaryDirectory() as folder:
        model = network(regime, seed, training_images, Path(folder)).model

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        logits: Tensor = model.module(x)
        return logits

    methods, misfits = fitting(model, names)
    rows = table(methods, planted_cases(spec, range(images), score), seed=seed)
    return [{"training_seed": seed, **_numbers(row)} for row in rows], misfits


def _numbers(row: Agreement) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "method": row.name,
        "images": row.images,
        "correlation": row.correlation.value if row.correlation else None,
        "signs": row.signs.value,
        "signs_chance": row.signs_chance,
    }
    for name, against in (("energy", row.energy), ("pointing", row.pointing), ("decoy", row.decoy)):
        assert against is not None
        numbers |= {name: against.value.value, f"{name}_chance": against.chance}
    return numbers


def summary(found: pl.DataFrame) -> pl.DataFrame:
    """A row for each method, the highest correlation first: means over networks, intervals that draw networks."""
    means = found.group_by("method", maintain_order=True).agg(pl.col("correlation").mean())
    names = means.sort("correlation", descending=True, nulls_last=True)["method"]
    return pl.DataFrame([_line(found.filter(pl.col("method") == name), name) for name in names])


def _line(part: pl.DataFrame, name: str) -> dict[str, str]:
    line = {"method": name}
    for measure in MEASURES:
        line[measure] = told(interval(part.drop_nulls(measure).select("training_seed", measure).iter_rows()))
        if (chance := f"{measure}_chance") in part.columns:
            line[measure] += f", chance {part[chance].mean():.2f}"
    return line


def measured(
    regime: str, seeds: int, names: Sequence[str], workers: int, **sizes: int
) -> tuple[pl.DataFrame, dict[str, str]]:
    """All rows, and the methods that fit no network; networks are trained in processes of their own."""
    rows: list[dict[str, Any]] = []
    misfits: dict[str, str] = {}
    with ProcessPoolExecutor(workers) as pool:
        running = [pool.submit(judged, regime, seed, names, **sizes) for seed in range(seeds)]
        for seed, one in enumerate(running):
            found, misfits = one.result()
            rows += found
            print(f"{regime}, maps of network {seed}: done", flush=True)
    return pl.DataFrame(rows, infer_schema_length=None), misfits


def main(arguments: Sequence[str] | None = None) -> None:
    """Judges the methods, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-bias"))
    parser.add_argument("--regime", choices=REGIMES, default="partial")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--training-seeds", type=int, default=5, help="networks")
    parser.add_argument("--training-images", type=int, default=1400, help="of each network")
    parser.add_argument("--images", type=int, default=60, help="that are explained, of each network")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    found, misfits = measured(
        given.regime,
        given.training_seeds,
        given.methods,
        given.workers,
        images=given.images,
        training_images=given.training_images,
    )
    given.output.mkdir(parents=True, exist_ok=True)
    found.write_parquet(given.output / "maps.parquet")
    lines = summary(found)
    lines.write_csv(given.output / "maps.csv")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=60):
        print(f"\nmaps against effects, {given.regime}\n{lines}")
    for name, reason in misfits.items():
        print(f"{name} does not fit: {reason}")
    print(f"\nwritten to {given.output}")


if __name__ == "__main__":
    main()
