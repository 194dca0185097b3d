"""Runs a job on a cluster of two nodes, kills one while it works, and adds another. Arguments: input, output."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.nodes import GONE, SLOWLY, all_gone, lost_node, two_nodes, until
from chaos.scene import SLOW
from samples import job

from pipeline.stream import steps

if __name__ == "__main__":
    steps.BLOCK_BYTES = 1
    with two_nodes() as nodes:
        lost_node(nodes, job(*sys.argv[1:], **SLOW, **SLOWLY), after=4)
        until(all_gone, GONE)
    print("killed", flush=True)
