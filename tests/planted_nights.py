"""Nights of PlantedCue: a tiny network, and what it says of generated images, as a finished run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from runs import write

from pipeline.bias import tinycnn
from pipeline.bias.planted import PlantedSpec, regime, stack
from pipeline.graph import ExplanationGraph
from pipeline.stream.finished import FinishedRun, open_run
from schemas.graph import GraphSpec, ModelSpec

BATCH = 100


def planted(*, rho: float, images: int, size: int, seed: int) -> PlantedSpec:
    """The benchmark's partial regime with another strength of the cue."""
    return replace(regime("partial", n_images=images, seed=seed), rho=rho, size=size)


def network(folder: Path, *, rho: float, images: int, size: int, seed: int) -> Path:
    """Trains a network on images whose cue has this strength; returns its weights."""
    pixels, labels = stack(planted(rho=rho, images=images, size=size, seed=seed), range(images))
    model = tinycnn.train(torch.from_numpy(pixels), torch.from_numpy(labels), seed=seed)
    path = folder / "network.safetensors"
    tinycnn.save(model, path)
    return path


def night(folder: Path, weights: Path, *, rho: float, images: int, size: int, seed: int) -> FinishedRun:
    """Explains a night's images by the graph that jobs and services run."""
    pixels, labels = stack(planted(rho=rho, images=images, size=size, seed=seed), range(images))
    model = ModelSpec(
        source="module:pipeline.bias.tinycnn:tiny_cnn",
        weights=str(weights),
        size=size,
        mean=tinycnn.MEAN,
        std=tinycnn.STD,
    )
    graph = ExplanationGraph(GraphSpec(model=model, embedding=True))
    ids = [f"s{seed}-{index:06d}" for index in range(images)]
    parts = [graph.explain(pixels[i : i + BATCH], ids[i : i + BATCH]) for i in range(0, images, BATCH)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in KEPT}
    scores = columns["top_scores"]
    rows = {
        "sample_id": np.array(ids, dtype=object),
        "width": np.full(images, size),
        "height": np.full(images, size),
        "label": labels,
        "prediction": columns["prediction"],
        "score": scores[:, 0],
        "top5": columns["top"],
        "top5_scores": scores,
        "margin": scores[:, 0] - scores[:, 1],
        "entropy": columns["entropy"],
        "heatmap": columns["heatmaps"][:, 0],
        "embedding": columns["embedding"],
    }
    return open_run(write(folder, rows, graph_digest=graph.digest))


KEPT = ("prediction", "top", "top_scores", "entropy", "heatmaps", "embedding")
