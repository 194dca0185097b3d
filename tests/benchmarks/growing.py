"""A Ray head whose autoscaler starts and stops nodes on this machine, with Ray's own fake provider.

`ray.cluster_utils.AutoscalingCluster` does the same, but needs a file that Ray's wheel lacks, and begins and ends with
`ray stop --force`, which ends every Ray cluster of the machine.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

PORT = 6399
ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


def address() -> str:
    """Of the head."""
    return f"{get_node_ip_address()}:{PORT}"


def configuration(nodes: int, store: int, idle_s: float) -> dict[str, Any]:
    """Of Ray's autoscaler: a head without CPUs, as in deploy/, and up to so many nodes of one CPU."""
    worker = {"CPU": 1, "object_store_memory": store}
    return {
        "cluster_name": "raylens",
        "provider": {
            "type": "external",  # by its own name it needs a file that the wheel lacks, too
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address(),
        },
        "max_workers": nodes,
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 1, "max_workers": nodes},
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@contextmanager
def growing_cluster(folder: Path, *, nodes: int, store: int, idle_s: float) -> Iterator[str]:
    """Starts the head, and ends it with all its nodes.

    Args:
        folder: for the configuration and the log.
        nodes: that the autoscaler may start.
        store: bytes of the object store of each.
        idle_s: after which a node that does nothing is stopped.

    Yields:
        The cluster's address.
    """
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(configuration(nodes, store, idle_s)))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={PORT}"]
    command += ["--num-cpus=0", f"--object-store-memory={store}", f"--autoscaling-config={config}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*command, "--include-dashboard=false"], env=os.environ | ENVIRONMENT, stdout=log, stderr=log
        )
    try:
        _wait(head, folder / "head.log")
        yield address()
    finally:
        _end(head)


def _wait(head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    if head.poll() is not None:
        return
    processes = psutil.Process(head.pid).children(recursive=True)
    processes.append(psutil.Process(head.pid))
    for process in reversed(processes):
        process.terminate()
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        process.kill()
