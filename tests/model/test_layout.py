"""Layouts read off shapes, and the way to feature maps and back."""

import pytest
import torch

from pipeline.model.layout import Layout, layout_of

SQUARE, WIDE = (224, 224), (64, 96)
SHAPES = [
    ((2, 512, 7, 7), SQUARE, [], Layout("channels_first", (7, 7))),
    ((2, 7, 7, 512), SQUARE, [], Layout("channels_last", (7, 7))),
    ((2, 8, 8, 8), SQUARE, [], Layout("channels_first", (8, 8))),
    ((2, 16, 4, 6), WIDE, [], Layout("channels_first", (4, 6))),
    ((2, 4, 6, 16), WIDE, [], Layout("channels_last", (4, 6))),
    ((2, 96, 1, 2), (32, 64), [], Layout("channels_first", (1, 2))),
    ((2, 1536, 8, 11), (299, 400), [], Layout("channels_first", (8, 11))),  # convolutions without padding
    ((2, 512, 1, 1), SQUARE, [], None),
    ((2, 12, 1, 197), SQUARE, [], None),  # the class token's attention
    ((2, 512, 7, 1), SQUARE, [], None),
    ((2, 197, 192), SQUARE, [], Layout("tokens", (14, 14), 1)),
    ((2, 201, 384), SQUARE, [], Layout("tokens", (14, 14), 5)),
    ((2, 49, 768), SQUARE, [], Layout("tokens", (7, 7))),
    ((2, 25, 8), WIDE, [], Layout("tokens", (4, 6), 1)),
    ((2, 9, 16), (32, 32), [], Layout("tokens", (3, 3))),
    ((2, 9, 16), (32, 32), [(2, 2)], Layout("tokens", (2, 2), 5)),
    ((2, 197, 64), SQUARE, [(56, 56)], Layout("tokens", (14, 14), 1)),
    ((2, 1024, 49), SQUARE, [(7, 7)], None),  # (N, C, tokens)
    ((2, 256, 1), SQUARE, [(16, 16)], None),  # pooled
    ((2, 2, 768), SQUARE, [(14, 14)], None),  # class and distillation token
    ((2, 1000), SQUARE, [], None),
    ((2, 3, 8, 28, 28), SQUARE, [], None),
]


@pytest.mark.parametrize(("shape", "size", "known", "expected"), SHAPES)
def test_layout_of_a_shape(shape, size, known, expected):
    assert layout_of(shape, size, known) == expected


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout("channels_first", (4, 6)), (2, 3, 4, 6)),
        (Layout("channels_last", (4, 6)), (2, 4, 6, 3)),
        (Layout("tokens", (4, 6), 2), (2, 26, 3)),
    ],
)
def test_maps_and_back(layout, shape):
    output = torch.randn(shape)
    maps = layout.to_maps(output)
    assert maps.shape == (2, 3, 4, 6)
    assert layout.channels(shape) == 3
    assert maps.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    assert torch.equal(layout.from_maps(maps, output), output)


def test_tokens_before_the_grid_are_kept():
    layout, output = Layout("tokens", (2, 2), 1), torch.zeros(1, 5, 3)
    replaced = layout.from_maps(torch.ones(1, 3, 2, 2), output)
    assert replaced[0, :, 0].tolist() == [0, 1, 1, 1, 1]
