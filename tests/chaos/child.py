"""A driver in a process of its own: `python -m chaos.child SPEC_JSON`; it says what befell its clock."""

import json
import sys
import threading
import time
from pathlib import Path

from pipeline.jobs.explain import explain
from pipeline.stream import steps
from schemas.job import JobSpec

JUMP_S = 1.0


def watched(stop: threading.Event, noted: Path) -> None:
    """Adds a dot to a file whenever the time of day moved otherwise than the time that passed."""
    skew_s = time.time() - time.monotonic()
    while not stop.wait(0.02):
        before_s, skew_s = skew_s, time.time() - time.monotonic()
        if abs(skew_s - before_s) > JUMP_S:
            with noted.open("a") as file:
                file.write(".")


def main(spec: str, noted: str) -> None:
    """Runs a job, one batch a block."""
    steps.BLOCK_BYTES = 1
    stop = threading.Event()
    watching = threading.Thread(target=watched, args=(stop, Path(noted)))
    watching.start()
    try:
        explain(JobSpec(**json.loads(spec)))
    finally:
        stop.set()
        watching.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
