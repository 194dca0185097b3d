"""The rounds of `make chaos`: a few of the kinds that no other test has, and what is said of a round that fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import rounds
from chaos.rounds import KINDS, Kind, drawn, main
from chaos.scene import Outcome, Scene

from pipeline.stream import steps

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BLOCK_BYTES", steps.BLOCK_BYTES)  # `main` sets it
    monkeypatch.delenv(rounds.MARK, raising=False)


@pytest.mark.parametrize("kind", ["disk full", "clock jumps"])
def test_a_round(tmp_path: Path, kind: str) -> None:
    if why := KINDS[kind].unavailable():
        pytest.skip(why)
    results = tmp_path / "rounds.jsonl"
    number = next(number for number in range(100) if drawn(0, number) == kind)
    assert main(["--rounds", "1", "--first", str(number), "--results", str(results)]) == 0
    [found] = [json.loads(line) for line in results.read_text().splitlines()]
    assert (found["kind"], found["problem"]) == (kind, "")
    assert found["faults"] > 0


def test_a_hundred_rounds_have_every_kind_and_are_the_same_again() -> None:
    assert sum(kind.weight for kind in KINDS.values()) == 100
    assert {drawn(0, number) for number in range(100)} == set(KINDS)
    assert [drawn(3, number) for number in range(9)] == [drawn(3, number) for number in range(9)]


def _fails(scene: Scene, seed: int) -> Outcome:
    raise AssertionError(f"an image is lost, seed {seed}")


def test_a_round_that_fails_is_told_with_what_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "KINDS", {"broken": Kind(_fails, 1)})
    assert main(["--rounds", "2", "--first", "7"]) == 1
    printed = capsys.readouterr().out
    assert "an image is lost, seed 8" in printed
    assert "--seed 0 --first 8 --rounds 1" in printed


def test_a_process_that_is_left_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started = []

    def forgets(scene: Scene, seed: int) -> Outcome:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return Outcome(1)

    monkeypatch.setattr(rounds, "KINDS", {"forgetful": Kind(forgets, 1)})
    monkeypatch.setattr(rounds, "ENDING_S", 0.5)
    try:
        assert main(["--rounds", "1"]) == 1
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert "left: " in capsys.readouterr().out


def test_a_round_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hangs(scene: Scene, seed: int) -> Outcome:
        subprocess.run(["sleep", "60"], check=True)
        return Outcome(0)

    monkeypatch.setitem(KINDS, "hanging", Kind(hangs, 0))
    monkeypatch.setattr(rounds, "LONGEST_S", 1)
    assert "hangs: more than 1 s" in rounds.run(Scene(tmp_path), "hanging", 0, 0).problem
