"""The display of a job: lines of text, JSON, a live line, or nothing."""

import io
import json
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from pipeline.jobs import progress
from pipeline.jobs.progress import LineDisplay, RichDisplay, Silence, Tally, display


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)


def tally(**values: Any) -> Tally:
    made = Tally(**{"total": 100, "earlier": 20, **values})
    made.started = time.monotonic() - 10
    made.add(30, {"empty": 2})
    made.add(10, {"empty": 1, "corrupt": 1})
    return made


def test_a_tally_adds_receipts() -> None:
    counted = tally()
    assert (counted.images, counted.done, counted.codes) == (40, 60, {"empty": 3, "corrupt": 1})
    assert counted.rate == pytest.approx(4, rel=0.05)


def test_a_tally_without_images_has_no_rate() -> None:
    assert Tally().rate == 0


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("hurried")
def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("json")
    shown.say("model", source="timm:x", classes=4)
    shown.update(tally(), "2 cpu workers")
    shown.update(tally(total=None), "2 cpu workers")
    shown.update(tally(total=50), "2 cpu workers")
    shown.close()
    model, known, unknown, over = lines(capsys)
    assert (model["event"], model["source"], model["classes"], model["level"]) == ("model", "timm:x", 4, "info")
    assert model["timestamp"].endswith("Z")
    assert (known["event"], known["images"], known["total"], known["rejects"]) == ("progress", 60, 100, 4)
    assert known["images_per_s"] == pytest.approx(4, abs=0.2)
    assert known["eta_s"] == pytest.approx(10, abs=1)
    assert known["workers"] == "2 cpu workers"
    assert (unknown["total"], unknown["eta_s"]) == (None, None)
    assert (over["total"], over["eta_s"]) == (50, 0), "an estimate that was too low"


@pytest.mark.usefixtures("hurried")
def test_nothing_is_promised_before_the_first_image(capsys: pytest.CaptureFixture[str]) -> None:
    display("json").update(Tally(total=100), "starting")
    assert lines(capsys)[0]["eta_s"] is None


@pytest.mark.usefixtures("hurried")
def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("text")
    shown.say("input", format="webdataset", files=3)
    shown.update(tally(), "local, cpu")
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert captured.out == ""
    assert "input" in first
    assert "format=webdataset" in first
    assert "images=60" in second
    assert "\x1b" not in captured.err


def test_a_line_is_written_now_and_then_only(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("json")
    for _ in range(100):
        shown.update(tally(), "local")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [None, 100, 10, 0])
def test_the_live_line(total: int | None) -> None:
    shown = RichDisplay()
    screen = io.StringIO()
    shown.console = Console(file=screen, force_terminal=True, width=160)
    shown._progress.live.console = shown.console
    shown.update(Tally(total=total), "2 cpu workers")
    shown.say("resuming", committed=20)
    for _ in range(3):
        shown.update(tally(total=total), "2 cpu workers")
    shown.close()
    shown.close()
    text = screen.getvalue()
    assert "resuming" in text
    assert "committed 20" in text
    assert f"60/{'?' if total is None else max(total, 60)}" in text
    assert "4 rejects · 2 cpu workers" in text
    assert "images/s" in text


def test_a_live_line_that_was_never_started_closes_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    RichDisplay().close()
    assert capsys.readouterr().err.strip() == ""


def test_words_of_paths_are_not_taken_for_markup() -> None:
    shown = RichDisplay()
    screen = io.StringIO()
    shown.console = Console(file=screen, width=160)
    shown.say("input", source="/data/[bold]x[/nothing]/photos [2020]")
    assert "/data/[bold]x[/nothing]/photos [2020]" in screen.getvalue()


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display("none")
    shown.say("model", source="x")
    shown.update(tally(), "local")
    shown.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("mode", "terminal", "kind"),
    [
        ("auto", True, RichDisplay),
        ("auto", False, LineDisplay),
        ("rich", False, RichDisplay),
        ("text", True, LineDisplay),
        ("none", True, Silence),
    ],
)
def test_the_mode(monkeypatch: pytest.MonkeyPatch, mode: Any, terminal: bool, kind: type) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(display(mode)) is kind
