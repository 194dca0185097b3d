"""A disk that is full: a small tmpfs in a mount namespace of its own, which no root is needed for.

`unshare --user --map-root-user --mount python -m chaos.disk SPEC_JSON SEED KEPT` runs a job on it, makes room when
the job says that there is none, runs it again, and keeps the output in a folder that stays.
"""

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path

from chaos.output import check
from chaos.scene import Outcome, Scene, importable

from pipeline.jobs.explain import explain
from pipeline.stream import steps
from schemas.job import JobSpec

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]
FIRST_KIB = (16, 480)
"""The job needs some 520 KiB."""
MORE_KIB = (8, 200)


def unavailable() -> str | None:
    """Why no disk can be filled here; None where it can."""
    mounted = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        done = subprocess.run(mounted, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


def full(scene: Scene, seed: int) -> Outcome:
    """A job whose disk is full at a seeded size, once or several times."""
    output, kept = scene.folder / f"disk-{seed}" / "out", scene.folder / f"kept-{seed}"
    output.parent.mkdir()
    command = [sys.executable, "-m", "chaos.disk", scene.job(output).model_dump_json(), str(seed), str(kept)]
    done = subprocess.run([*NAMESPACE, *command], env=importable(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check(kept, scene.undisturbed)
    times = int(done.stdout)
    assert times > 0, "the disk was never full"
    return Outcome(times, resumed=times)


def main(text: str, seed: str, kept: str) -> None:
    """Says how often the disk was full."""
    steps.BLOCK_BYTES = 1
    spec, generator, times = JobSpec.model_validate_json(text), random.Random(int(seed)), 0
    disk = Path(spec.output).parent
    size_kib = generator.randint(*FIRST_KIB)
    _mount(disk, f"size={size_kib}k")
    while True:
        try:
            explain(spec)
            break
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        times += 1
        size_kib += generator.randint(*MORE_KIB)
        _mount(disk, f"remount,size={size_kib}k")
    shutil.copytree(spec.output, kept)
    print(times)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
