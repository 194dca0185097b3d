"""How a running job is shown: a live display on a terminal, lines of text elsewhere, JSON lines for machines."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.logs import lines

LINE_INTERVAL_S = 10.0
Mode = Literal["auto", "rich", "text", "json", "none"]


@dataclass
class Tally:
    """What has been done so far.

    Attributes:
        total: images of the job as far as known, or an estimate.
        earlier: images that earlier runs had committed.
        images: committed by this run, explained or rejected.
        codes: rejects of this run by code.
        started: when the first commit was awaited, by `time.monotonic()`, s.
    """

    total: int | None = None
    earlier: int = 0
    images: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Images committed by all runs."""
        return self.earlier + self.images

    @property
    def rate(self) -> float:
        """Images a second since the first commit was awaited."""
        return self.images / max(1e-9, time.monotonic() - self.started)

    def add(self, images: int, codes: dict[str, int]) -> None:
        """Counts one receipt."""
        self.images += images
        self.codes.update(codes)


class Display(Protocol):
    """Shows a job."""

    def say(self, event: str, **values: Any) -> None:
        """A step of the job, for people or for a log."""

    def update(self, tally: Tally, workers: str) -> None:
        """The counts have changed."""

    def close(self) -> None:
        """The job has ended, well or not."""


class RichDisplay:
    """A live line: bar, images/s, time left, rejects, workers."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]explain"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rejects]} rejects · {task.fields[workers]}"),
            console=self.console,
        )
        self._task: Any = None

    def say(self, event: str, **values: Any) -> None:
        """See `Display`."""
        self.console.print(f"[bold cyan]{event}[/] {escape(_sentence(values))}", highlight=False, soft_wrap=True)

    def update(self, tally: Tally, workers: str) -> None:
        """See `Display`."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("explain", total=None, rate=0.0, rejects=0, workers=workers)
        total = max(tally.total, tally.done) if tally.total is not None else None
        self._progress.update(
            self._task,
            total=total,
            completed=tally.done,
            rate=tally.rate,
            rejects=tally.codes.total(),
            workers=workers,
        )

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()


class LineDisplay:
    """A log line a step, and one every ten seconds while images run."""

    def __init__(self, *, json: bool) -> None:
        self._log = lines(json=json)
        self._last = time.monotonic()

    def say(self, event: str, **values: Any) -> None:
        """See `Display`."""
        self._log.info(event, **values)

    def update(self, tally: Tally, workers: str) -> None:
        """See `Display`."""
        if time.monotonic() - self._last < LINE_INTERVAL_S:
            return
        self._last = time.monotonic()
        left = None if tally.total is None else max(0, tally.total - tally.done)
        eta = None if left is None or not tally.images else round(left / tally.rate)
        self._log.info(
            "progress",
            images=tally.done,
            total=tally.total,
            images_per_s=round(tally.rate, 1),
            eta_s=eta,
            rejects=tally.codes.total(),
            workers=workers,
        )

    def close(self) -> None:
        """See `Display`."""


class Silence:
    """Shows nothing."""

    def say(self, event: str, **values: Any) -> None:
        """See `Display`."""

    def update(self, tally: Tally, workers: str) -> None:
        """See `Display`."""

    def close(self) -> None:
        """See `Display`."""


def display(mode: Mode) -> Display:
    """The display of a mode; auto is rich on a terminal and text elsewhere."""
    if mode == "auto":
        mode = "rich" if sys.stderr.isatty() else "text"
    if mode == "rich":
        return RichDisplay()
    return Silence() if mode == "none" else LineDisplay(json=mode == "json")


def _sentence(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
