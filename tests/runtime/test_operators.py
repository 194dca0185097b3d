"""Backward operators written in forward ones, against torch's own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attribution.eigen import leading_eigenpair as exact_eigenpair
from pipeline.runtime import operators
from pipeline.runtime.trace import trace

aten = torch.ops.aten


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": [2, 2], "padding": [1, 1]},
    {"stride": [2, 3], "padding": [2, 0], "dilation": [1, 2]},
    {"groups": 2, "stride": [3, 3]},
    {"transposed": True, "stride": [2, 2], "output_padding": [1, 1]},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution(options: dict[str, Any]) -> None:
    form = {
        "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "transposed": False, "output_padding": [0, 0],
        "groups": 1, **options,
    }  # fmt: skip
    x, weight = noise(2, 4, 11, 12), noise(4, 4 // form["groups"], 3, 3)
    output = aten.convolution(x, weight, None, *form.values())
    grad = noise(*output.shape)
    mask = [True, False, False]
    expected = aten.convolution_backward(grad, x, weight, None, *form.values(), mask)[0]
    found, *rest = operators.convolution_backward(grad, x, weight, None, *form.values(), mask)
    assert rest == [None, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_max_pooling(kernel: int, stride: int, padding: int) -> None:
    x = noise(2, 3, 9, 10)
    form = ([kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False)
    output, indices = aten.max_pool2d_with_indices(x, *form)
    grad = noise(*output.shape)
    expected = aten.max_pool2d_with_indices_backward(grad, x, *form, indices)
    torch.testing.assert_close(operators.max_pool2d_backward(grad, x, *form, indices), expected)


AVERAGES = [
    ([2, 2], [], [0, 0], False, True, None),
    ([3, 3], [2, 2], [1, 1], False, True, None),
    ([3, 3], [2, 2], [1, 1], False, False, None),
    ([3, 2], [2, 2], [1, 0], True, False, None),
    ([3, 3], [2, 2], [0, 0], False, True, 5),
]


@pytest.mark.parametrize("form", AVERAGES, ids=str)
def test_average_pooling(form: Any) -> None:
    x = noise(2, 3, 9, 10)
    grad = noise(*aten.avg_pool2d(x, *form).shape)
    expected = aten.avg_pool2d_backward(grad, x, *form)
    torch.testing.assert_close(operators.avg_pool2d_backward(grad, x, *form), expected)


@pytest.mark.parametrize("size", [(4, 3), (1, 1), (5, 7), (9, 12)], ids=str)
def test_adaptive_pooling(size: tuple[int, int]) -> None:
    x, grad = noise(2, 3, 8, 12), noise(2, 3, *size)
    expected = aten._adaptive_avg_pool2d_backward(grad, x)
    torch.testing.assert_close(operators.adaptive_avg_pool2d_backward(grad, x), expected)


def test_the_leading_eigenpair_up_to_sign() -> None:
    factors = noise(6, 9, 30)
    gram = factors @ factors.transpose(1, 2)
    value, vector = operators.leading_eigenpair(gram)
    expected, axis = exact_eigenpair(gram)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close((vector * axis).sum(dim=1).abs(), torch.ones(6, dtype=torch.float64))


def test_a_matrix_of_zeros_has_an_eigenpair_of_zeros() -> None:
    value, vector = operators.leading_eigenpair(torch.zeros(1, 4, 4))
    assert not value.any()
    assert not vector.any()


@pytest.mark.parametrize("sizes", [(0, 0), (1, 2), (0, 0, 3, 0), (2, 1, 0, 1, 1, 0), (-1, 2), ()], ids=str)
def test_padding(sizes: tuple[int, ...]) -> None:
    x = noise(2, 3, 4)
    torch.testing.assert_close(operators.pad(x, sizes), torch.nn.functional.pad(x, sizes))
    torch.testing.assert_close(operators.pad(x, sizes, value=2.5), torch.nn.functional.pad(x, sizes, value=2.5))


def test_other_padding_is_left_to_torch() -> None:
    assert operators.pad(noise(2, 3, 4), (1, 1), mode="reflect") is NotImplemented


class Padded(torch.nn.Module):
    """Pads, unfolds, resizes and pools in ways that torch's own operators trace for one size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(x, (1, 1, 1, 1), mode="reflect"), (1, -1, 0, 2))
        x = F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)
        return F.avg_pool2d(F.interpolate(x, size=(12, 12), mode="bilinear"), 3, 2, 1)


def test_a_trace_takes_any_number_of_images() -> None:
    module = Padded()

    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module(leaf).square().sum(), leaf)

    x = noise(5, 2, 8, 8)
    torch.testing.assert_close(trace(gradient, [x[:3]]).module()(x), gradient(x))


@pytest.mark.parametrize(
    ("mode", "align_corners"), [("bilinear", True), ("bilinear", False), ("bicubic", False), ("nearest", None)]
)
def test_resizing(mode: str, align_corners: bool | None) -> None:
    x = noise(2, 3, 4, 5)
    expected = F.interpolate(x, size=(7, 3), mode=mode, align_corners=align_corners)
    found = operators.resize(x, (7, 3), mode=mode, align_corners=align_corners)
    torch.testing.assert_close(found, expected)
