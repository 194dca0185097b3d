"""What a model can give is found out before the job: gradients at its input, at its layer, at neither."""

import copy
import dataclasses
import threading
from contextlib import suppress

import pytest
import torch
from attribution.cases import parameters
from attribution.networks import ReluCnn, images, loaded, randomised, relu_cnn, tiny_vit
from model.networks import Frozen
from torch import nn

from pipeline.attribution import METHODS, Needs, create
from pipeline.errors import MethodError
from pipeline.model import LoadedModel


class Foreign(nn.Module):
    """A network that another runtime runs, as torch sees it: numbers in, numbers out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.session = threading.Lock()  # like most sessions, it cannot be copied

    def forward(self, x):
        with torch.no_grad():
            return torch.from_numpy(self.network(x.detach()).numpy().copy())


class ForeignStem(ReluCnn):
    """Torch from the third convolution on; another runtime below."""

    @property
    def steps(self):
        below = Foreign(nn.Sequential(*(Step(step) for _, step in super().steps[:7])))
        return [("affine", below), *super().steps[7:]]


class Step(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ForeignScore(nn.Module):
    """A layer in torch beside a score of another runtime, which does not read it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, stride=4)
        self.score = Foreign(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)))

    def forward(self, x):
        self.features(x)
        return self.score(x)


class Broken(torch.autograd.Function):
    """Has no backward."""

    @staticmethod
    def forward(ctx, x):
        return x * 2


class HalfBroken(nn.Module):
    """A gradient that is announced and cannot be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(Broken.apply(x)).relu().mean(dim=(2, 3)))


def fits(model: LoadedModel) -> set[str]:
    """Methods that accept a model; each of them explains it, and every other one is refused."""
    accepted = {}
    for name in METHODS:
        with suppress(MethodError):
            accepted[name] = create(name, model, **parameters_for(name))
    for method in accepted.values():
        found = method(images(model, 2).float(), lambda _: torch.tensor([[1], [2]]))
        assert found.maps.shape == (2, 1, *method.shape)
        assert found.maps.isfinite().all()
    return set(accepted)


def parameters_for(name: str) -> dict:
    """Those of the other tests, less the names of layers."""
    return {key: value for key, value in parameters(name).items() if key not in ("layers", "weights")}


SCORES = {name for name, method in METHODS.items() if method.traits.needs is Needs.SCORES}
ACTIVATIONS = {name for name, method in METHODS.items() if method.traits.needs is Needs.ACTIVATIONS}
LAYER = {name for name, method in METHODS.items() if method.traits.needs is Needs.LAYER_GRADIENTS}
INPUT = {name for name, method in METHODS.items() if method.traits.needs is Needs.INPUT_GRADIENTS}


def test_every_family_is_there():
    assert {"rise", "occlusion", "vps"} <= SCORES
    assert {"eigencam", "scorecam", "ablationcam"} <= ACTIVATIONS
    assert {"gradcam", "cam", "normgrad", "meta"} <= LAYER
    assert {"inputxgradient", "ig", "smoothgrad", "guidedgradcam", "lrp", "attnlrp", "linear"} <= INPUT


def test_a_foreign_lower_part_leaves_the_cams():
    model = loaded(randomised(ForeignStem()), layer="last")
    assert fits(model) == SCORES | ACTIVATIONS | LAYER - {"multilayer"}  # it needs a second layer


def test_no_grad_inside_leaves_the_cams():
    """`forward_to_layer` turns gradients on above the layer, also where the network had turned them off."""
    model = loaded(randomised(Frozen()))
    assert fits(model) == SCORES | ACTIVATIONS | LAYER - {"multilayer", "meta"}  # weights below have no gradient


def test_a_foreign_score_leaves_scores_and_activations():
    model = loaded(randomised(ForeignScore()), layer="features")
    assert fits(model) == SCORES | ACTIVATIONS - {"ablationcam"}  # the score reads no layer that it could ablate


def test_the_reason_is_told():
    stem = loaded(randomised(ForeignStem()), layer="last")
    with pytest.raises(MethodError, match=r"no gradient at its input.*these can: cam, gradcam, "):
        create("inputxgradient", stem)
    score = loaded(randomised(ForeignScore()), layer="features")
    with pytest.raises(MethodError, match=r"no gradient at its layer 'features'.*these can: eigencam, scorecam, rise"):
        create("gradcam", score)
    with pytest.raises(MethodError, match="does not follow"):
        create("ablationcam", score)


def test_a_gradient_that_cannot_be_computed_is_told():
    model = loaded(randomised(ReluCnn()))
    broken = randomised(HalfBroken())
    model = dataclasses.replace(model, module=broken, layer=dataclasses.replace(model.layer, name="features"))
    with pytest.raises(MethodError, match=r"the gradient at its input cannot be computed"):
        create("gradient", model)
    assert METHODS["hirescam"].misfit(model) is None


def test_attention_without_gradients_is_refused():
    model = tiny_vit()
    frozen = dataclasses.replace(model, module=copy.deepcopy(model.module))
    frozen.module.forward = torch.no_grad()(frozen.module.forward)
    for name in ("rollout", "chefer", "tokencut"):
        with pytest.raises(MethodError, match="no gradient at its last attention"):
            create(name, frozen)


def test_a_model_is_asked_once():
    model, runs = relu_cnn(), []
    handle = model.module.head.register_forward_pre_hook(lambda *_: runs.append(1))
    for _ in range(3):
        for name in ("gradient", "ig", "inputxgradient", "gradcam", "layercam"):
            create(name, model)
    handle.remove()
    assert len(runs) == 2  # one for its input, one for its layer


def test_what_cannot_be_copied_is_refused_by_methods_that_copy():
    model = relu_cnn()
    model.module.lock = threading.Lock()
    for name in ("lrp", "srmap", "meta"):
        with pytest.raises(MethodError, match="cannot be copied"):
            create(name, model)
