"""Networks for fault tests, importable by workers."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from pipeline.bias.tinycnn import tiny_cnn


class Crashing(nn.Module):
    """Ends its process whenever a batch holds an almost white image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_cnn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x.mean(dim=(1, 2, 3)) > 0.95).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.network(x)


class Slow(nn.Module):
    """Takes 20 ms an image, so that faults find the job at work."""

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.network = tiny_cnn(4)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        return self.network(x)


class Gated(nn.Module):
    """Waits while the file `shut` is in its folder, and notes there every image that it begins with and has done.

    Args:
        folder: of the files.
        seconds: of one image.
    """

    def __init__(self, folder: str, seconds: float) -> None:
        super().__init__()
        self.network = tiny_cnn(4)
        self.folder = Path(folder)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._note("begun", len(x))
        while (self.folder / "shut").exists():
            time.sleep(0.01)
        time.sleep(self.seconds * len(x))
        found: torch.Tensor = self.network(x)
        self._note("done", len(x))
        return found

    def _note(self, name: str, images: int) -> None:
        with (self.folder / name).open("a") as file:
            file.write("." * images)
