"""Passes hold as many pixels, not as many images: memory does not grow with the size of the images."""

from collections.abc import Callable

import pytest
import torch
from attribution.networks import loaded
from torch import nn

from pipeline.attribution import create
from pipeline.attribution.perturbation import passes_at_once
from pipeline.model import LoadedModel

CHUNKED = {
    "ig": {"steps": 16},
    "smoothig": {"steps": 16},
    "smoothgrad": {"samples": 16},
    "vargrad": {"samples": 16},
    "meta": {"method": "ig", "parameters": {"steps": 16}},
    "scorecam": {},
    "ablationcam": {"chunk": 16},
    "rise": {"masks": 16},
    "occlusion": {"window": 56, "stride": 56},
    "sobol": {"grid": 2, "design": 4},
}
"""By method, what takes 16 passes or more."""


class Noted(nn.Module):
    """Tells how many images come along; a copy of it tells the same listener."""

    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self.notes = (note,)

    def __deepcopy__(self, memo: object) -> "Noted":
        return Noted(*self.notes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.notes[0](len(x))
        return x


def noting(size: int, note: Callable[[int], None]) -> LoadedModel:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 24, 32, stride=32), nn.AdaptiveAvgPool2d(1), Noted(note), nn.Flatten(), nn.Linear(24, 5)
    return loaded(nn.Sequential(*layers).eval().requires_grad_(False), size=size)


def largest_pass(name: str, size: int) -> int:
    """Images that the network sees at once, at most, while one image is explained."""
    seen: list[int] = []
    method = create(name, noting(size, seen.append), **CHUNKED[name])
    seen.clear()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    method(x, lambda logits: logits.argmax(dim=1, keepdim=True), torch.tensor([3]))
    return max(seen)


@pytest.mark.parametrize("name", CHUNKED)
def test_images_of_four_times_the_pixels_go_by_a_quarter(name: str) -> None:
    beside = 1 if name == "ablationcam" else 0  # the true output is in every pass
    assert [largest_pass(name, size) - beside for size in (224, 448)] == [16, 4]


def test_small_images_do_not_fill_a_pass_and_the_largest_go_one_by_one() -> None:
    assert [passes_at_once(16, torch.empty(1, 3, side, side)) for side in (32, 224, 225, 320, 2000)] == [
        16,
        16,
        15,
        7,
        1,
    ]
    assert passes_at_once(None, torch.empty(1, 3, 448, 448)) == 4
