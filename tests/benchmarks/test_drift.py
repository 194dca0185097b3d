"""A million explanations against a million, false alarms over many nights, and a planted shortcut. `make bench`."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planted_nights
import pyarrow.parquet as pq
import pytest
import runs
from scipy.stats import binom

from pipeline.drift.compare import compare
from pipeline.stream.finished import open_run
from schemas.audit import DriftSpec, DriftThresholds

FILE_ROWS = 25_000
CLASSES = 1000
NIGHTS = 100
SEEDS = 5
SLACK = 1.25, 64.0
"""A share and MiB by which the memory for five times the rows may be larger."""


def write_large(folder: Path, files: int, seed: int) -> str:
    """A run of many files, which differ in their ids, predictions and embeddings only."""
    columns = runs.columns(FILE_ROWS, seed, classes=10, grid=(7, 7))
    for index in range(files):
        generator = np.random.default_rng((seed, index))
        columns["sample_id"] = np.array([f"s{seed}/{index}/{i}" for i in range(FILE_ROWS)], dtype=object)
        columns["prediction"] = columns["label"] = generator.integers(CLASSES, size=FILE_ROWS)
        columns["embedding"] = generator.normal(size=(FILE_ROWS, 64)).astype(np.float32)
        part = runs.table(columns)
        (folder / "explanations").mkdir(parents=True, exist_ok=True)
        path = folder / "explanations" / f"{index:05d}-000.parquet"
        pq.write_table(part.replace_schema_metadata({"graph_digest": runs.GRAPH}), path)
    record = runs.record(part, files).model_dump(mode="json")
    record["model"]["labels"] = CLASSES
    rows = files * FILE_ROWS
    (folder / "run.json").write_text(json.dumps({**record, "images": rows, "explained": rows, "rows": rows}))
    return str(folder)


def test_rows_a_second_and_memory(tmp_path: Path) -> None:
    """Goal: memory does not grow with the rows. Two runs of 200,000, then of 1,000,000 explanations of 1000 classes."""
    memory: dict[int, list[float]] = {}
    for files in (8, 40):
        addresses = [write_large(tmp_path / f"{files}-{seed}", files, seed) for seed in (0, 1)]
        script = Path(__file__).with_name("comparison_memory.py")
        done = subprocess.run([sys.executable, script, *addresses], capture_output=True, text=True, check=True)
        print(f"\n{files * FILE_ROWS} rows a run (rows/s of one core, s, MiB over the start): {done.stdout.strip()}")
        words = done.stdout.split()
        memory[files] = [float(word) for word in words[words.index("memory") + 1 :][:3]]
    for few, many in zip(memory[8], memory[40], strict=True):
        assert many <= few * SLACK[0] + SLACK[1]


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_over_many_nights(tmp_path: Path, alpha: float) -> None:
    """A night of 400 images against a re-seeded one: any significant finding, and any alert at the default effects."""
    spec = DriftSpec(embedding_sample=100, thresholds=DriftThresholds(alpha=alpha))
    nights = [open_run(runs.write(tmp_path / str(seed), runs.columns(400, 500 + seed))) for seed in range(NIGHTS + 1)]
    found = [compare(before, after, spec) for before, after in pairwise(nights)]
    significant = sum(any(one.corrected <= alpha for one in night.findings) for night in found)
    alerts = sum(bool(night.alerts) for night in found)
    print(f"\nalpha {alpha}: {significant} of {NIGHTS} nights with a significant finding, {alerts} with an alert")
    assert significant <= binom.ppf(0.999, NIGHTS, alpha)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_planted_cue_night_over_night(tmp_path: Path, seed: int) -> None:
    """BIAS.md's sixth rule, at full size: a network that fell for the cue, and nights of which one strengthens it."""
    network = planted_nights.network(tmp_path, rho=0.8, images=1500, size=96, seed=10 * seed)
    nights: dict[str, Any] = {
        name: planted_nights.night(tmp_path / name, network, rho=rho, images=800, size=96, seed=10 * seed + 1 + index)
        for index, (name, rho) in enumerate([("first", 0.25), ("reseeded", 0.25), ("shortcut", 0.8)])
    }
    quiet, loud = (compare(nights["first"], nights[name], DriftSpec()) for name in ("reseeded", "shortcut"))
    print(f"\nseed {seed}: re-seeded {[one.name for one in quiet.alerts]}, shortcut {len(loud.alerts)} alerts:")
    print("  " + "\n  ".join(one.sentence for one in loud.alerts[:4]))
    assert not quiet.alerts
    assert {"accuracy", "calibration"} <= {one.name for one in loud.alerts}
