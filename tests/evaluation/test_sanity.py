"""The cascade of re-initialised layers, and what the sanity metrics say of methods whose answer is known."""

import copy
import dataclasses

import pytest
import torch
from attribution.networks import images, loaded, randomised, relu_cnn, residual_net, tiny_vit
from evaluation.judged import SEEDS, TARGETS, bind, double_model, few, judged
from torch import nn

from pipeline.attribution import create
from pipeline.errors import MethodError
from pipeline.evaluation.controls import CONTROLS
from pipeline.evaluation.metric import Explained
from pipeline.evaluation.metrics import explains, subject
from pipeline.evaluation.randomisation import ORIGINAL, cascade, owners
from pipeline.evaluation.sanity import ClassSensitivity, Randomisation, RandomLogit

torch.set_num_threads(1)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def equal(module, before):
    return changed(module, before) == set()


def test_the_cascade_goes_from_the_head_to_the_first_layer():
    model = relu_cnn()
    before, names, touched = weights(model.module), [], []
    for name, network in cascade(model, seed=0):
        names.append(name)
        touched.append({weight.split(".")[0] for weight in changed(network.module, before)})
    assert names == [ORIGINAL, "head", "conv3", "norm2", "conv2", "norm1", "conv1"]
    assert touched == [set(names[1 : n + 1]) for n in range(7)]
    assert equal(model.module, before)


@pytest.mark.parametrize(("points", "expected"), [(1, ["conv1"]), (2, ["norm2", "conv1"]), (99, 6)])
def test_points_are_spread_evenly_and_end_at_the_first_layer(points, expected):
    names = [name for name, _ in cascade(relu_cnn(), seed=0, points=points)][1:]
    assert names == expected or len(names) == expected
    assert names[-1] == "conv1"


@pytest.mark.parametrize("make", [relu_cnn, residual_net, tiny_vit])
def test_every_weight_is_forgotten(make):
    """Class tokens and position embeddings too; no weight of a block is overlooked."""
    model = make()
    before, network = weights(model.module), None
    with torch.no_grad():
        *_, (_, network) = cascade(model, seed=0)
    parameters = dict(network.module.named_parameters())
    left = set(parameters) - changed(network.module, before)
    assert all(parameters[name].unique().numel() == 1 for name in left), "biases that start at 0, scales at 1"
    assert len(left) < len(parameters) / 2
    assert equal(model.module, before)


def test_layers_of_one_shape_differ_and_seeds_decide():
    model = loaded(randomised(nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4),
    )))  # fmt: skip
    *_, (_, one) = cascade(model, seed=0)
    *_, (_, again) = cascade(model, seed=0)
    *_, (_, other) = cascade(model, seed=1)
    first = one.module[0].weight
    assert not torch.equal(first, one.module[2].weight)
    assert torch.equal(first, again.module[0].weight)
    assert not torch.equal(first, other.module[0].weight)


class Own(nn.Module):
    """Weights that no layer owns: a bare parameter, and a child that is read and not called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.read = nn.Linear(3, 4)
        self.idle = nn.Linear(3, 4)
        self.steps = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x):
        x = self.conv(x * self.scale).relu()
        return nn.functional.linear(x.mean(dim=(2, 3)), self.read.weight, self.read.bias)


def test_weights_without_a_layer_belong_to_the_module_that_reads_them():
    network = Own()
    found = {name: len(parameters) for name, parameters in owners(network, torch.zeros(1, 3, 8, 8))}
    assert list(found) == ["", "conv"]
    assert found == {"": 5, "conv": 2}


def test_weights_without_a_reset_keep_their_mean_and_deviation():
    model = loaded(randomised(Own()))
    with torch.no_grad():
        model.module.read.weight.copy_(torch.randn(4, 3) * 3 + 8)
    before = weights(model.module)
    *_, (name, network) = cascade(model, seed=0)
    after = network.module.read.weight
    assert name == ""
    assert not torch.equal(after, before["read.weight"])
    assert abs(after.mean() - before["read.weight"].mean()) < before["read.weight"].std()
    assert torch.equal(network.module.steps, before["steps"])


def test_the_shared_model_is_safe_from_a_failing_method():
    model = double_model()
    before, random = weights(model.module), torch.get_rng_state()
    sound, batch = judged(model)
    calls = []

    def failing(network):
        def explain(x, targets, seeds):
            calls.append(changed(network.module, before))
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return bind(network)(x, targets, seeds)

        return explain

    with pytest.raises(RuntimeError, match="out of memory"):
        Randomisation()(subject(model, failing), batch)
    assert calls[2] > calls[1] >= calls[0] == set(), "weights had changed when it failed"
    assert equal(model.module, before)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(sound.explain(batch.x, batch.targets, batch.seeds), batch.maps)


def test_a_cascade_that_is_given_up_changes_nothing():
    model = relu_cnn()
    before = weights(model.module)
    networks = cascade(model, seed=0)
    next(networks), next(networks)
    networks.close()
    assert equal(model.module, before)


def test_a_network_without_weights_is_refused():
    model = dataclasses.replace(relu_cnn(), module=nn.Sequential(nn.Flatten()))
    with pytest.raises(MethodError, match="no weights"):
        next(cascade(model, seed=0))


def test_the_first_column_compares_with_the_untouched_network():
    found = few("mprt")(*judged(double_model()))
    assert found.axis[0] == ORIGINAL
    for part in found.parts.values():
        torch.testing.assert_close(part[:, 0], torch.ones(3, dtype=torch.float64))
        assert (part[:, 1:] < 0.99).all()


def test_maps_of_another_class_are_found_out():
    subject_, batch = judged(double_model())
    wrong = dataclasses.replace(batch, targets=(batch.targets + 1) % 5)
    assert (few("mprt")(subject_, wrong).parts["spearman"][:, 0] < 0.99).all()


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_do_not_notice_that_the_model_forgot(name):
    model = relu_cnn()
    x = images(model, 3).float()
    batch = Explained(x, CONTROLS[name](x, TARGETS, SEEDS), TARGETS, SEEDS)
    judge = subject(model, lambda _: CONTROLS[name])
    assert Randomisation()(judge, batch).value.tolist() == pytest.approx([1, 1, 1])
    assert RandomLogit()(judge, batch).value.tolist() == pytest.approx([1, 1, 1])
    assert ClassSensitivity()(judge, batch).value.tolist() == pytest.approx([1, 1, 1])


def test_a_method_that_ignores_the_class_is_found_out():
    model = relu_cnn()
    judge = subject(model, lambda network: explains(create("eigencam", network)))
    x = images(model, 3).float()
    batch = Explained(x, judge.explain(x, TARGETS, SEEDS), TARGETS, SEEDS)
    assert RandomLogit()(judge, batch).value.tolist() == pytest.approx([1, 1, 1])
    assert ClassSensitivity()(judge, batch).value.tolist() == pytest.approx([1, 1, 1])
    assert (Randomisation()(judge, batch).value < 0.99).all()


def test_two_opposite_classes_have_opposite_maps():
    """A head whose second row is minus the first: the maps of the two classes are each other's negatives."""
    model = relu_cnn()
    with torch.no_grad():
        model.module.head.weight[1:] = -model.module.head.weight[:1]
        model.module.head.bias.zero_()
    found = ClassSensitivity()(*judged(model))
    assert found.value.tolist() == pytest.approx([-1, -1, -1])
    assert found.parts["spearman_absolute"].tolist() == pytest.approx([1, 1, 1])


def test_the_other_class_is_any_but_the_target():
    metric = RandomLogit()
    drawn = [metric.other(sample, 2, 4) for sample in range(300)]
    assert {0, 1, 3} == set(drawn)
    assert all(60 < drawn.count(other) < 140 for other in (0, 1, 3))


def test_one_class_has_no_other():
    model = loaded(
        randomised(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)))
    )
    judge, batch = judged(double_model())
    with pytest.raises(MethodError, match="two classes"):
        RandomLogit()(dataclasses.replace(judge, logits=model.module.double()), batch)


def test_models_in_half_precision_are_judged():
    """The cascade's copies are in single precision; the images are not."""
    model = copy.copy(relu_cnn())
    model.module.bfloat16()
    x = images(model, 2).bfloat16()
    maps = bind(model)(x, TARGETS[:2], SEEDS[:2])
    found = Randomisation(points=2)(subject(model, bind), Explained(x, maps, TARGETS[:2], SEEDS[:2]))
    assert (found.parts["spearman"][:, 0] > 0.95).all()
    assert found.value.isfinite().all()
