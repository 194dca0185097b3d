"""Every command and every Python example of the README runs; its table of methods and its lists are the code's."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image
from samples import encoded
from serving import free_port, talk, wait_until_ready

from pipeline.attribution import METHODS
from pipeline.flags import parsed
from pipeline.jobs.metrics import JobMetrics
from schemas.explanations import EXPLANATION, IDENTITY, PIXELS, PREDICTION, STATISTICS
from schemas.online import Limits, ServeSpec
from schemas.rejects import REJECT_CODES
from serve.grpc_inference import STATUS as GRPC_STATUS
from serve.grpc_inference import UNAVAILABLE
from serve.metrics import Metrics
from serve.problems import STATUS
from serve.service import Service

pytestmark = pytest.mark.timeout(1200)  # the demo, while other processes of the suite take the cores
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "deploy" / "SERVING.md").read_text()
RAYLENS = Path(sys.executable).with_name("raylens")
NOT_RUN = {
    "make thorough": "runs a quarter of an hour; the suite has a part of it",
    "make chaos": "runs for more than half an hour; the suite has a part of it",
    "make fuzz": "runs for minutes; the suite has a part of it",
    "make bench": "measures for a quarter of an hour",
    "make test": "runs this test",
    "make venv": "built the environment that runs this test",
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def lines_of(language: str) -> list[str]:
    """Commands of blocks, joined at continuations, without comments."""
    lines = [line for block in blocks(language) for line in block.replace("\\\n", " ").splitlines()]
    return [found for line in lines if (found := re.sub(r"\s+#.*", "", line).strip())]


def commands() -> list[str]:
    """Lines of the shell blocks, and commands in the text."""
    inline = re.findall(
        r"`(make [a-z0-9= ]+|raylens (?:model|methods|inspect)[^`]*)`", re.sub(r"```.*?```", "", README, flags=re.S)
    )
    return list(dict.fromkeys([*lines_of("sh"), *inline, "make demo S3=1"]))


def run(command: str, folder: Path) -> None:
    if command.startswith("make"):
        command = f"make -C {ROOT} {command.removeprefix('make ')} DEMO={folder / 'demo'}"
    command = re.sub(r"^(\.venv/bin/)?raylens", str(RAYLENS), command)
    done = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def example(code: str, folder: Path) -> str:
    """What a Python example prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the demo was made in."""
    folder = tmp_path_factory.mktemp("readme")
    run("make demo", folder)
    return folder


@pytest.mark.ray
def test_every_command_and_example_runs(demo: Path) -> None:
    wanted = [command for command in commands() if command not in NOT_RUN]
    assert {"make demo", "make demo S3=1"} < set(wanted)
    assert len(wanted) >= 6
    (night,) = blocks("yaml audit")
    (demo / "audit.yaml").write_text(night)
    (compared,) = blocks("yaml study")
    (demo / "study.yaml").write_text(compared)
    (searched,) = blocks("yaml bias")
    (demo / "bias.yaml").write_text(searched)
    for command in wanted:
        if not command.startswith("make demo"):
            run(command, demo)
    assert (demo / "demo" / "contact-sheet.png").stat().st_size > 10_000
    assert "circle" in (demo / "demo" / "audit.html").read_text()
    assert (demo / "demo" / "nights" / "index.json").exists()
    for report in ("bias.html", "slices/report.html"):
        assert "circle with tag none" in (demo / "demo" / report).read_text()
    assert (demo / "demo" / "study" / "report.html").stat().st_size > 100_000
    for code in blocks("python"):
        example(code, demo)
    (code,) = blocks("python onnxruntime")
    python = without_raylens(demo / "clean")
    done = subprocess.run([python, "-c", code], cwd=demo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(2, 1000) (2, 1, 7, 7)" in done.stdout


@pytest.mark.ray
@pytest.mark.thorough
def test_the_demo_runs_through_s3(tmp_path: Path) -> None:
    run("make demo S3=1", tmp_path)
    assert (tmp_path / "demo" / "contact-sheet.png").stat().st_size > 10_000


@pytest.mark.ray
def test_the_endpoint_and_its_clients(demo: Path) -> None:
    """The commands as they stand, on ports that are free here, and with gRPC for SERVING.md."""
    [start] = lines_of("sh service")
    http, grpc = str(free_port()), str(free_port())
    command = f"{start.replace('.venv/bin/raylens', str(RAYLENS))} --port {http} --host 0.0.0.0 --grpc-port {grpc}"
    with subprocess.Popen(shlex.split(command), cwd=demo, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{http}") as client:
                wait_until_ready(client, lambda: process.poll() is None)
            if shutil.which("curl"):
                for line in lines_of("sh client"):
                    run(line.replace("8000", http), demo)
                assert (demo / "why.png").read_bytes().startswith(b"\x89PNG")
            printed = [example(code.replace("8000", http), demo) for code in blocks("python client")]
            printed += [example(code.replace("9000", grpc), demo) for code in blocks("python grpc", SERVING)]
        finally:
            process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=60)
    assert (process.returncode, "draining" in message) == (0, True), message
    assert "[12, 12]" in printed[0], printed
    assert len(printed) == 3


def test_the_file_of_the_endpoint(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (content,) = blocks("yaml service")
    (demo / "serve.yaml").write_text(content)
    monkeypatch.chdir(demo)
    service = Service(parsed(ServeSpec, {"config": Path("serve.yaml")}))
    service.start()
    photo = encoded(Image.new("RGB", (96, 96)))
    asked = {"params": {"method": "eigencam"}, "files": {"image": photo}}
    answers = [
        talk(service, lambda c, h=headers: c.post("/explain", headers=h, **asked))
        for headers in ({}, {"Authorization": "Bearer secret"})
    ]
    service.close()
    assert [answer.status_code for answer in answers] == [401, 200]
    assert answers[1].json()["model"] == "shapes"


def test_the_file_of_a_cluster_is_a_specification() -> None:
    (content,) = blocks("yaml", SERVING)
    [application] = yaml.safe_load(content)["applications"]
    assert ServeSpec(**application["args"]).replicas.gpus == 1


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


def limits_table() -> str:
    """The table of `deploy/SERVING.md`."""
    lines = ["| field | default | |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {info.default} | {info.description} |" for name, info in Limits.model_fields.items()]
    return "\n".join(lines)


def errors_table() -> str:
    """The table of `deploy/SERVING.md`; what gRPC cannot meet has no status."""
    lines = ["| code | HTTP | gRPC |", "| --- | --- | --- |"]
    for code, status in STATUS.items():
        found = GRPC_STATUS.get(status) or UNAVAILABLE.get(code)
        lines.append(f"| `{code}` | {status} | {found.name if found else '–'} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """The table of `deploy/SERVING.md`."""
    lines = ["| metric | type | |", "| --- | --- | --- |"]
    for family in Metrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        lines.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(lines)


TABLES = {"limits": limits_table, "errors": errors_table, "metrics": metrics_table}


@pytest.mark.parametrize(("name", "table"), TABLES.items())
def test_the_tables_of_the_endpoint_are_the_codes(name: str, table: Callable[[], str]) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", SERVING, re.S)
    assert found is not None
    assert found[1].strip() == table(), "run `python tests/test_readme.py`"


def test_columns_codes_and_metrics_are_all_named() -> None:
    columns = [field.name for field in (*IDENTITY, *PIXELS, *PREDICTION, *EXPLANATION, *STATISTICS)]
    metrics = [family.name for family in JobMetrics("gradcam").registry.collect()]
    for name in [*columns, "heatmap", *REJECT_CODES, *metrics]:
        assert name in README, name


def rewritten(path: Path, **tables: str) -> None:
    """Puts tables between their marks."""
    text = path.read_text()
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S
        )
    path.write_text(text)


if __name__ == "__main__":
    rewritten(ROOT / "README.md", methods=methods_table())
    rewritten(ROOT / "deploy" / "SERVING.md", **{name: table() for name, table in TABLES.items()})
