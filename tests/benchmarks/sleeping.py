"""A network that sleeps for what another one costs, and notes when; importable by workers."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import nn

SLOWDOWN = "SLEEPING_SLOWDOWN"
"""Variable of a node's environment: how many times as long its networks sleep."""


class Sleeping(nn.Module):
    """Computes almost nothing and takes as long as it is told.

    Args:
        folder: where each process notes when it slept.
        seconds: of one image.
    """

    def __init__(self, folder: str, seconds: float) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.AvgPool2d(16),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 4),
        )
        self.folder = Path(folder)
        self.seconds = seconds * float(os.environ.get(SLOWDOWN, "1"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        started = time.time()
        time.sleep(self.seconds * len(x))
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{started} {time.time()} {len(x)}\n")
        return self.network(x)


class Nap(NamedTuple):
    """One call of the network.

    Attributes:
        start: time of day in seconds.
        end: likewise.
        images: in the batch.
    """

    start: float
    end: float
    images: int


@dataclass(frozen=True)
class Notes:
    """What the workers of one job did.

    Attributes:
        workers: the calls of each, in order.
    """

    workers: Sequence[Sequence[Nap]]

    @classmethod
    def read(cls, folder: Path, batch: int) -> Self:
        """Reads what was noted, without the calls by which a model is probed when it loads.

        Args:
            folder: of the notes, a file a process.
            batch: images of every call of the job.

        Returns:
            The notes of processes that had work.
        """
        files = [[line.split() for line in path.read_text().splitlines()] for path in sorted(folder.iterdir())]
        naps = [[Nap(float(start), float(end), int(images)) for start, end, images in file] for file in files]
        full = [[nap for nap in worker if nap.images == batch] for worker in naps]
        return cls([worker for worker in full if worker])

    @property
    def first(self) -> float:
        """When the first worker began."""
        return min(worker[0].start for worker in self.workers)

    @property
    def last(self) -> float:
        """When the last worker ended."""
        return max(worker[-1].end for worker in self.workers)

    @property
    def full(self) -> tuple[float, float]:
        """From when to when every worker had work."""
        return max(worker[0].start for worker in self.workers), min(worker[-1].end for worker in self.workers)

    @property
    def rate(self) -> float:
        """Images/s while every worker had work: each one's, from its first to its last call in that time."""
        start, end = self.full
        inside = [[nap for nap in worker if start <= nap.start < end] for worker in self.workers]
        assert all(len(naps) > 1 for naps in inside), "the job is too short: some worker ended before another began"
        return sum(sum(nap.images for nap in naps[:-1]) / (naps[-1].start - naps[0].start) for naps in inside)
