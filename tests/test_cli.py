"""The command: a flag for every field, one clear message for every error, and a clean way out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from samples import jpeg, rows, state, write_tars
from typer.testing import CliRunner

from pipeline.attribution import METHODS
from pipeline.cli import PANELS, app, main
from pipeline.stream import steps
from schemas.job import JobSpec

RENAMED = {"model_args": "model-arg", "method_args": "method-arg", "attributes": "attribute"}
NETWORK = {
    "model": "module:pipeline.bias.tinycnn:tiny_cnn",
    "weights": "random",
    "size": 32,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
FLAGS = [
    "--model", NETWORK["model"], "--weights", "random", "--size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
    "--runner", "local", "--progress", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, shards=2, each=6)
    return folder


@pytest.fixture(scope="module")
def run(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("run") / "out"
    assert invoked("explain", "--input", str(tars), "--output", str(output), *FLAGS).exit_code == 0
    return output


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


@pytest.fixture
def raylens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`main`, with its exit code and what it writes to stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["raylens", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), flat(capsys.readouterr().err)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def flat(text: str) -> str:
    """Help without frames and colours."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.fixture(scope="module")
def explain_help() -> str:
    result = invoked("explain", "--help")
    assert result.exit_code == 0
    return flat(result.output)


@pytest.mark.parametrize("name", JobSpec.model_fields)
def test_every_field_is_a_flag_with_its_description(explain_help: str, name: str) -> None:
    assert f"--{RENAMED.get(name, name.replace('_', '-'))} " in explain_help + " "
    description = str(JobSpec.model_fields[name].description)
    words = [word for word in re.findall(r"\w{5,}", description) if word not in explain_help]
    assert not words, "the description is not shown"


def test_every_field_is_in_one_panel() -> None:
    named = [name for names in PANELS.values() for name in names]
    assert sorted(named) == sorted(["config", *JobSpec.model_fields])


def test_help_without_arguments_lists_the_commands() -> None:
    output = invoked().output
    for command in ("explain", "model", "inspect", "methods", "demo"):
        assert re.search(rf"\b{command}\b", output)


def test_explain_with_flags_alone(run: Path) -> None:
    assert state(run, "run.json")["images"] == 12
    assert {row["method"] for row in rows(run)} == {"gradcam"}


def test_a_flag_wins_over_the_file(tars: Path, tmp_path: Path) -> None:
    config = {
        "input": str(tars),
        "output": str(tmp_path / "file"),
        **NETWORK,
        "runner": "local",
        "method": "gradcam",
        "limit": 2,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    flags = ["--method", "eigencam", "--output", str(tmp_path / "flag"), "--progress", "none"]
    assert invoked("explain", "--config", str(tmp_path / "job.yaml"), *flags).exit_code == 0
    record = state(tmp_path / "flag", "run.json")
    assert (record["spec"]["method"], record["spec"]["limit"], record["images"]) == ("eigencam", 2, 4)
    assert not (tmp_path / "file").exists()


def test_the_summary_is_printed(tars: Path, tmp_path: Path) -> None:
    result = invoked("explain", "--input", str(tars), "--output", str(tmp_path / "out"), *FLAGS[:-1], "text")
    assert result.exit_code == 0
    assert "12 = 12 explained + 0 rejected" in flat(result.output)


def test_switches() -> None:
    given = ["--input", "/nowhere", "--output", "/b", *FLAGS]
    for flag in ("--scaled-decoding", "--no-scaled-decoding", "--embedding", "--overwrite"):
        assert "matches nothing" in str(invoked("explain", *given, flag).exception)
    assert invoked("explain", *given, "--no-embedding").exit_code == 2


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--batch-size", "none"], 2, r"batch_size: .*found 'none'"),
        (["--format", "zip"], 2, r"format: Input should be 'auto', 'folder'.*found 'zip'"),
        (["--mean", "0.5", "--std", "0.5,0.5"], 2, r"mean has 1 and std 2 values"),
        (["--storage", "anon"], 2, r"--storage 'anon': expected KEY=VALUE"),
        (["--nosuchflag"], 2, r"No such option: --nosuchflag"),
        (["--config", "/nowhere.yaml"], 2, r"--config /nowhere.yaml cannot be read"),
        (["--input", "/nowhere"], 3, r"InputError: input /nowhere matches nothing"),
        (["--model", "timm:nosuchmodel"], 4, r"ModelError: .*nosuchmodel"),
        (["--method", "nosuchmethod"], 5, r"MethodError: no method is named"),
        (["--target", "top:99"], 2, r"SpecError: target 'top:99': K must be 1..4"),
    ],
)
def test_errors_have_one_message_and_a_code(
    raylens: Any, tars: Path, tmp_path: Path, flags: list[str], code: int, message: str
) -> None:
    found, text = raylens("explain", "--input", str(tars), "--output", str(tmp_path / "out"), *FLAGS, *flags)
    assert re.search(message, text), text
    assert found == code
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_job_and_too_many_rejects_have_their_codes(
    raylens: Any, run: Path, tmp_path: Path
) -> None:
    tars = json.loads((run / "run.json").read_text())["spec"]["input"][0]
    code, text = raylens("explain", "--input", tars, "--output", str(run), *FLAGS, "--method", "eigencam")
    assert (code, "method: 'gradcam' there, 'eigencam' now" in text) == (6, True)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"broken")
    code, text = raylens("explain", "--input", str(tmp_path / "images"), "--output", str(tmp_path / "out"), *FLAGS)
    assert (code, "1 of 1 images were rejected" in text) == (9, True)


def test_model_shows_what_is_resolved(tmp_path: Path) -> None:
    result = invoked("model", *FLAGS[:10])
    shown = flat(result.output)
    assert result.exit_code == 0
    for part in ("TinyCNN", "4 classes", "3 x 32 x 32", "(0.5, 0.5, 0.5)", "why"):
        assert part in shown
    assert re.search(r"features\S*: 64 maps of 4 x 4", shown)
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({**NETWORK, "input": "/a", "output": "/b", "layer": "features.1"})
    )
    assert "features.1" in invoked("model", "--config", str(tmp_path / "job.yaml")).output


def test_methods_lists_every_method() -> None:
    output = invoked("methods").output
    assert [name for name in METHODS if name not in output] == []


def test_inspect_prints_and_draws(run: Path, tmp_path: Path) -> None:
    result = invoked("inspect", str(run), "--sheet", str(tmp_path / "sheet.png"), "--images", "5")
    assert result.exit_code == 0
    shown = flat(result.output)
    record = state(run, "run.json")
    for part in (
        "12 = 12 explained",
        f"{record['correct'] / 12:.3f} of 12 labelled",
        "most predicted",
        record["graph_digest"],
    ):
        assert part in shown
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.format == "PNG"
    assert len(set(sheet.convert("L").getdata())) > 100
    assert invoked("inspect", str(run)).exit_code == 0
    assert (run / "contact-sheet.png").exists()


def test_inspect_of_something_else(raylens: Any, tmp_path: Path) -> None:
    code, text = raylens("inspect", str(tmp_path))
    assert (code, "no run of raylens" in text) == (6, True)


def test_success_is_zero(raylens: Any, run: Path) -> None:
    tars = json.loads((run / "run.json").read_text())["spec"]["input"][0]
    assert raylens("explain", "--input", tars, "--output", str(run), *FLAGS)[0] == 0


def test_names_with_brackets_are_shown_as_they_are(tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "[bold]x[/y]"
    result = invoked("explain", "--input", str(tars), "--output", str(output), *FLAGS[:-1], "json")
    assert result.exit_code == 0, result.exception
    shown = invoked("inspect", str(output), "--sheet", str(tmp_path / "a.png")).output
    assert "[bold]x[/y]" in result.output
    assert "[bold]x[/y]" in shown


SLOW = """
import os, time
import pipeline.stream.steps as steps
from pipeline.bias.tinycnn import TinyCNN

steps.BLOCK_BYTES = 1  # a commit a batch

class Slow(TinyCNN):
    def forward(self, x):
        time.sleep(float(os.environ["DELAY"]) if len(x) == 4 else 0)
        return super().forward(x)

def factory():
    return Slow(4)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_a_rerun_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """On a network of ten batches that sleeps, found in the job's own folder."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "images").mkdir()
    for index in range(40):
        (tmp_path / "images" / f"{index:02d}.jpg").write_bytes(jpeg(index))
    flags = [*FLAGS, "--model", "module:slow:factory", "--batch-size", "4", "--input", "images", "--output", "out"]
    command = [str(Path(sys.executable).parent / "raylens"), "explain", *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "DELAY": "0.7"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/_raylens/fragments/*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, message = process.communicate(timeout=30)
    assert process.returncode == 128 + number, message
    assert "Run the same command again to go on" in message
    assert "Traceback" not in message
    assert 0 < len(list(tmp_path.glob("out/_raylens/fragments/*/*.parquet"))) < 10
    assert not (tmp_path / "out" / "run.json").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    monkeypatch.setenv("DELAY", "0")
    monkeypatch.setattr(steps, "BLOCK_BYTES", steps.BLOCK_BYTES)  # restored afterwards
    assert invoked("explain", *flags).exit_code == 0
    assert [row["sample_id"] for row in rows(tmp_path / "out")] == [f"{index:02d}.jpg" for index in range(40)]


def test_storage_that_refuses_is_one_message(s3: Any, tmp_path: Path) -> None:
    bucket = s3.bucket("refused")
    options = {**s3.storage_options(), "secret": "0" * 40}
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({"input": f"s3://{bucket}/x/*.tar", "output": str(tmp_path / "out"), "storage": options})
    )
    flags = (
        "--model module:pipeline.bias.tinycnn:tiny_cnn --weights random --size 32 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    )
    command = [sys.executable, "-m", "pipeline.cli", "explain", "--config", str(tmp_path / "job.yaml"), *flags.split()]
    done = subprocess.run([*command, "--runner", "local"], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "--storage" in done.stderr
