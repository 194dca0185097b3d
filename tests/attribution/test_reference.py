"""Every method against a slow float64 version written from its paper. A method without one fails here.

A reference is a function in a dict REFERENCES of a module of tests/reference: (model, x (N, C, H, W) float64,
targets (N,), **parameters) to (N, h, w) float64, for job seed 0 and sample seeds 0.
"""

import pytest
import torch
from attribution.cases import model_for, parameters, references
from attribution.networks import images, relu_cnn, residual_net, tiny_vit

from pipeline.attribution import METHODS, create

TOLERANCE = 2e-4


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal up to a share of the largest value."""
    assert found.shape == expected.shape
    assert expected.abs().max() > 0, "a reference that is zero everywhere proves nothing"
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def compare(name: str, model, *, count: int = 2, tolerance: float = TOLERANCE, **chosen) -> None:
    x = images(model, count)
    targets = torch.tensor([1, 3, 0][:count])
    found = create(name, model, **chosen)(x.float(), lambda _: targets[:, None])
    agree(found.maps[:, 0], references()[name](model, x, targets, **chosen), tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_method_equals_its_reference(name):
    assert name in references(), f"method {name} has no reference; add one to tests/reference"
    compare(name, model_for(name), **parameters(name))


@pytest.mark.parametrize("variant", ["conv3x3", "scaling", "bias", "selective"])
def test_normgrad_variants(variant):
    compare("normgrad", relu_cnn("norm2"), variant=variant)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "layercam", "eigengradcam", "ablationcam", "normgrad"])
def test_layers_with_tokens(name):
    compare(name, tiny_vit(), tolerance=2e-3)  # logits of tokens are large; ablationcam subtracts them in float32


@pytest.mark.parametrize("name", ["gradcam++", "xgradcam", "layercam", "eigencam", "ablationcam"])
@pytest.mark.parametrize("layer", ["layer2", "layer3.0.conv2"])
def test_layers_inside_a_residual_network(name, layer):
    compare(name, residual_net(layer), count=1)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("gradient", {"absolute": False}),
        ("smoothgrad", {"absolute": False, "samples": 3, "noise": 0.3}),
        ("ig", {"steps": 5, "baseline": 0.0}),
        ("scorecam", {"channels": 4}),
        ("multilayer", {"layers": ["act1", "pool", "last"], "combine": "sum", "method": "layercam"}),
    ],
)
def test_other_parameters(name, chosen):
    compare(name, relu_cnn(), **chosen)
