"""Runs a job on a cluster of two nodes, kills one while it works, and adds another. Arguments: input, output."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = sys.path[0]

import ray
from ray.cluster_utils import Cluster
from samples import job

from pipeline.jobs.explain import explain
from pipeline.stream import steps

STORE = 80 * 2**20


def main(source: str, output: str) -> None:
    steps.BLOCK_BYTES = 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
    doomed = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")

    spec = job(source, output, runner="ray", model="module:chaos.hostile:Slow", model_args={"seconds": 0.1})
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(explain, spec)
        fragments = Path(output) / "_raylens" / "fragments"
        while len(list(fragments.glob("*/*.parquet"))) < 4 and not record.done():
            time.sleep(0.05)
        assert not record.done(), f"the job was over before a node could be killed: {record.result()}"
        cluster.remove_node(doomed, allow_graceful=False)
        print("killed", flush=True)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        found = record.result()
    assert (found.images, found.rejected) == (120, 0), found
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
