"""Methods on a layer: identities that hold there, and layers that do not decide the score alone."""

import pytest
import torch
from attribution.networks import images, relu_cnn, residual_net, state, tiny_vit

from pipeline.attribution import create
from pipeline.attribution.base import forward_to_layer
from pipeline.errors import MethodError
from pipeline.evaluation.layerwise import OnLayer, above

TARGETS = torch.tensor([[1, 3], [0, 2], [4, 4]])


def on_layer(name, model, **chosen):
    method = OnLayer(model, lambda upper: create(name, upper, **chosen))
    return method(images(model).float(), lambda _: TARGETS)


def plain(name, model, **chosen):
    return create(name, model, **chosen)(images(model).float(), lambda _: TARGETS)


@pytest.mark.parametrize("model", [relu_cnn("norm1"), relu_cnn("pool"), residual_net("layer2")], ids=["a", "b", "c"])
def test_the_upper_network_gives_the_score_of_the_features(model):
    x = images(model).float()
    capture = forward_to_layer(model, x, gradients=False)
    torch.testing.assert_close(above(model).module(capture.features), model.module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["gradcam", "layercam", "normgrad", "eigencam", "ablationcam"])
def test_methods_of_layers_say_the_same(name):
    model = relu_cnn("pool")
    found, expected = on_layer(name, model), plain(name, model)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.targets, TARGETS)


@pytest.mark.parametrize("layer", ["norm1", "pool", "last"])
def test_input_times_gradient_at_a_layer_is_hirescam(layer):
    model = relu_cnn(layer)
    torch.testing.assert_close(on_layer("inputxgradient", model).maps, plain("hirescam", model).maps)


def test_what_is_linear_above_the_last_layer_is_attributed_alike():
    """Behind the last ReLU is average pooling and a linear head: all these methods give its terms."""
    model = relu_cnn("last")
    expected = plain("hirescam", model).maps
    for name, chosen in (("ig", {"steps": 4}), ("occlusion", {"window": 1, "stride": 1}), ("linear", {})):
        torch.testing.assert_close(on_layer(name, model, **chosen).maps, expected, rtol=1e-3, atol=1e-5)


def test_integrated_gradients_at_a_layer_are_complete():
    model = relu_cnn("pool")
    found = on_layer("ig", model, steps=200)
    upper = above(model)
    rise = found.logits.gather(1, TARGETS) - upper.module(torch.zeros(1, upper.layer.channels, 8, 8))[0][TARGETS]
    torch.testing.assert_close(found.maps.sum(dim=(2, 3)), rise, rtol=0, atol=1e-2)


@pytest.mark.parametrize("model", [residual_net("layer3.0.conv2"), tiny_vit()], ids=["residual", "class token"])
def test_layers_with_a_way_around_them_are_refused(model):
    with pytest.raises(MethodError, match="does not decide the score alone"):
        above(model)


def test_the_model_is_left_as_it_was():
    model = relu_cnn("pool")
    before = state(model)
    on_layer("ig", model, steps=2)
    assert all(not module._forward_hooks for module in model.module.modules())
    after = state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
