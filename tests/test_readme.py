"""Every command and every Python example of the README runs; its table of methods and its lists are the code's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.attribution import METHODS
from pipeline.jobs.metrics import JobMetrics
from schemas.explanations import EXPLANATION, IDENTITY, PIXELS, PREDICTION, STATISTICS
from schemas.rejects import REJECT_CODES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RAYLENS = Path(sys.executable).with_name("raylens")
NOT_RUN = {
    "make bench": "measures for a quarter of an hour",
    "make test": "runs this test",
    "make venv": "built the environment that runs this test",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands() -> list[str]:
    """Lines of the shell blocks, joined at continuations, without comments; and commands in the text."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(
        r"`(make [a-z0-9= ]+|raylens (?:model|methods|inspect)[^`]*)`", re.sub(r"```.*?```", "", README, flags=re.S)
    )
    found = [re.sub(r"\s+#.*", "", line).strip() for line in [*lines, *inline, "make demo S3=1"]]
    return list(dict.fromkeys(line for line in found if line))


def run(command: str, folder: Path) -> None:
    if command.startswith("make"):
        command = f"make -C {ROOT} {command.removeprefix('make ')} DEMO={folder / 'demo'}"
    command = re.sub(r"^(\.venv/bin/)?raylens", str(RAYLENS), command)
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.ray
def test_every_command_and_example_runs(tmp_path: Path) -> None:
    wanted = [command for command in commands() if command not in NOT_RUN]
    assert "make demo" in wanted
    assert "make demo S3=1" in wanted
    assert len(wanted) >= 6
    for command in wanted:
        run(command, tmp_path)
    assert (tmp_path / "demo" / "contact-sheet.png").stat().st_size > 10_000
    for example in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{example}\n{done.stderr[-2000:]}"
    (example,) = blocks("python onnxruntime")
    python = without_raylens(tmp_path / "clean")
    done = subprocess.run([python, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(2, 1000) (2, 1, 7, 7)" in done.stdout


def without_raylens(folder: Path) -> Path:
    """The interpreter of an environment that holds ONNX Runtime and NumPy, and not raylens."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    wanted = ["onnxruntime-gpu", "numpy", "--constraint", ROOT / "requirements.lock"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *wanted], check=True)
    for package in ("pipeline", "torch"):
        probe = [python, "-c", f"import {package}"]
        assert subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode
    return python


def test_targets_that_are_not_run_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in NOT_RUN:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def methods_table() -> str:
    """The table between the README's marks, from the code; `python tests/test_readme.py` writes it."""
    lines = [
        "| method | needs | forwards | by class | map at | own check | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, method in METHODS.items():
        t = method.traits
        by_class = "yes" if t.discriminative else "no"
        cells = [f"`{name}`", t.needs, t.forwards, by_class, t.resolution, t.check or "–", t.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def test_the_table_of_methods_is_the_codes() -> None:
    found = re.search(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README, re.S)
    assert found is not None
    assert found[1].strip() == methods_table(), "run `python tests/test_readme.py`"


def test_columns_codes_and_metrics_are_all_named() -> None:
    columns = [field.name for field in (*IDENTITY, *PIXELS, *PREDICTION, *EXPLANATION, *STATISTICS)]
    metrics = [family.name for family in JobMetrics("gradcam").registry.collect()]
    for name in [*columns, "heatmap", *REJECT_CODES, *metrics]:
        assert name in README, name


if __name__ == "__main__":
    marked = re.sub(
        r"(<!-- methods -->\n).*?(<!-- /methods -->)", lambda m: f"{m[1]}{methods_table()}\n{m[2]}", README, flags=re.S
    )
    (ROOT / "README.md").write_text(marked)
