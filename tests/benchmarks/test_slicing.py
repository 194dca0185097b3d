"""A million embeddings of 128 dimensions sliced on one machine. `make bench`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bias.slicing.slicers import SLICERS

ROWS = 1_000_000
LIMIT_MIB = 8 * 1024


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLICERS)
def test_a_million_embeddings_in_bounded_memory(name: str) -> None:
    """Goal: under 8 GiB with the evidence, and slices of planted rows that hold most of them."""
    script = Path(__file__).with_name("slicing_memory.py")
    done = subprocess.run([sys.executable, script, name, str(ROWS)], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    assert figures["peak_mib"] < LIMIT_MIB
    if name != "random":
        assert figures["planted_in_them"] > 0.5
