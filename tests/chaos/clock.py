"""A wall clock that jumps by up to two days several times a second, while a job runs and is killed and goes on."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

from chaos.output import check
from chaos.scene import Outcome, Scene, importable

MOST_S = 2 * 86_400
PERIOD_MS = 250
KILLED_S = (4.0, 9.0)
"""After the start of a process that has everything to load."""


def unavailable() -> str | None:
    """Why the clock cannot be made to jump here; None where it can."""
    return None if shutil.which("cc") else "there is no C compiler (cc)"


def compiled(folder: Path) -> Path:
    """The library that is preloaded."""
    library = folder / "clock.so"
    if not library.exists():
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def jumping(scene: Scene, seed: int) -> Outcome:
    """A job, which every second time is killed and resumed, under clocks that jump."""
    generator = random.Random(seed)
    output, noted = scene.folder / f"clock-{seed}", scene.folder / f"clock-{seed}.jumps"
    command = [sys.executable, "-m", "chaos.child", scene.job(output).model_dump_json(), str(noted)]
    settings = {"CLOCK_MOST_S": MOST_S, "CLOCK_PERIOD_MS": PERIOD_MS, "CLOCK_SEED": seed}
    preloaded = {"LD_PRELOAD": str(compiled(scene.folder)), **{name: str(value) for name, value in settings.items()}}
    environment = {**importable(), **preloaded}
    killed = generator.random() < 0.5 and _killed(command, environment, generator.uniform(*KILLED_S))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check(output, scene.undisturbed)
    jumps = noted.stat().st_size
    assert jumps > 0, "the clock did not jump"
    return Outcome(jumps + killed, resumed=int(killed))


def _killed(command: list[str], environment: dict[str, str], moment_s: float) -> bool:
    """Whether SIGKILL found the process at work."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False
