"""LRP, SR map and AttnLRP: references, conservation, zennit itself, refusals, threads."""

import copy
import pickle
import threading
from typing import get_args

import pytest
import timm
import torch
import torchvision
from attribution.networks import double, images, loaded, randomised, relu_cnn, second, state, two, vit
from reference.relevance import REFERENCES
from torch import nn
from torch.nn import functional as F

from pipeline.attribution.attnlrp import AttnLRP, RelevanceGradient, layer_norm, rms_norm
from pipeline.attribution.base import probe
from pipeline.attribution.folding import followers
from pipeline.attribution.relevance import LRP, CompositeName, merged
from pipeline.attribution.srmap import SRMap, context_saliency, distinctness
from pipeline.errors import MethodError

torch.set_num_threads(1)


class BiasFree(nn.Module):
    """ReLU, max-pooling and sums of branches; nothing that could keep relevance."""

    def __init__(self, *, branches=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.left = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.right = nn.Conv2d(8, 8, 1, bias=False)
        self.branches = branches
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.stem(x)), 2)
        if self.branches:
            y = self.left(x)
            y += self.right(x)
            x = self.act(y)
        return self.head(x.mean(dim=(2, 3)))


class TorchvisionResNet(torchvision.models.ResNet):
    def __init__(self):
        super().__init__(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


class Bare(nn.Module):
    """Functions that a rule may lack."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.conv(x)).mean(dim=(2, 3)))


class Shared(nn.Module):
    """A convolution whose output is read by a batch norm and by something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((self.norm(x) + x).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def model():
    return relu_cnn()


@pytest.fixture(scope="module")
def x(model):
    return images(model, 3)


@pytest.mark.parametrize("composite", get_args(CompositeName))
def test_lrp_equals_the_reference(composite, model, x):
    found = LRP(model, composite=composite)(x[:1].float(), second)
    expected = REFERENCES["lrp"](model, x[:1], found.targets[:, 0], composite=composite)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.maps[:, 0].double(), expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(found.logits, model.module(x[:1].float()))


@pytest.mark.parametrize("side", [8, 20])
def test_srmap_equals_the_reference(side, model, x):
    found = SRMap(model, side=side)(x[:1].float(), second)
    expected = REFERENCES["srmap"](model, x[:1], found.targets[:, 0], side=side)
    torch.testing.assert_close(found.maps[:, 0].double(), expected, rtol=0, atol=1e-4)
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 2}, {"qkv_bias": False}, {"init_values": 0.5}], ids=str)
def test_attnlrp_equals_the_reference(changes):
    model = vit(**changes)
    x = images(model, 2)
    found = AttnLRP(double(model))(x, second)
    expected = REFERENCES["attnlrp"](model, x, found.targets[:, 0])
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.maps[:, 0].double(), expected, rtol=0, atol=1e-4 * scale)
    single = AttnLRP(model)(x.float(), second)
    torch.testing.assert_close(single.maps[:, 0].double(), expected, rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize(
    "composite", ["epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"]
)
def test_relevance_is_kept_without_biases(composite):
    """Zero biases, sums of branches included: ΣR = f_c."""
    model = loaded(randomised(BiasFree()))
    bounded = (images(model, 2) / 10).clamp(-1, 1).float()
    found = LRP(model, composite=composite)(bounded, two)
    assert found.check.max() < (2e-2 if composite == "epsilon_alpha2_beta1" else 1e-3)
    total = found.maps.sum(dim=(2, 3))
    torch.testing.assert_close(total, found.logits.gather(1, found.targets), rtol=2e-2, atol=1e-4)


def test_lrp_0_is_input_times_gradient_on_a_bias_free_relu_network():
    """The ε rule in every layer with a vanishing ε; here through zennit's hooks on the private copy."""
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon, Pass
    from zennit.types import Activation, Convolution, Linear

    model = loaded(randomised(BiasFree().double()).float())
    x = images(model, 2).float()
    method = LRP(model)
    rules = [(Activation, Pass()), (Convolution, Epsilon(1e-9)), (Linear, Epsilon(1e-9))]
    method._composite = LayerMapComposite(rules)
    found = method(x, second)
    leaf = x.clone().requires_grad_()
    model.module(leaf).gather(1, found.targets).sum().backward()
    expected = (leaf * leaf.grad).sum(dim=1).detach()
    torch.testing.assert_close(found.maps[:, 0], expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("composite", get_args(CompositeName))
def test_equals_zennit_on_a_residual_network(composite):
    """zennit with its own canonizer for torchvision's ResNet."""
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    model = loaded(randomised(TorchvisionResNet()))
    x = images(model, 2).float()
    method = LRP(model, composite=composite)
    found = method(x, second)
    theirs = method._composite
    theirs.canonizers = [ResNetCanonizer()]
    network = copy.deepcopy(model.module)
    chosen = F.one_hot(found.targets[:, 0], 5).float()
    with Gradient(model=network, composite=theirs) as attributor:
        _, expected = attributor(x, lambda out: out.detach() * chosen)
    expected = expected.sum(dim=1)
    torch.testing.assert_close(found.maps[:, 0], expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout"])
def test_timm_networks_fit_or_say_why(name):
    torch.manual_seed(0)
    model = loaded(randomised(timm.create_model(name, num_classes=5)), size=64)
    reason = LRP.misfit(model)
    if name == "test_mambaout":
        assert "no rule for" in reason
        return
    assert reason is None
    found = LRP(model)(images(model, 2).float(), two)
    assert found.maps.shape == (2, 2, 64, 64)
    assert found.maps.isfinite().all()
    assert found.maps.std() > 0


def test_batch_norms_are_merged_exactly(model, x):
    module = merged(model)
    torch.testing.assert_close(module(x.float()), model.module(x.float()), rtol=1e-4, atol=1e-5)
    assert torch.equal(module.norm1(torch.ones(1, 6, 2, 2)), torch.ones(1, 6, 2, 2))
    assert not torch.equal(module.conv1.weight, model.module.conv1.weight)


def test_a_batch_norm_is_merged_only_where_it_follows_a_layer():
    norm_first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    pairs = followers(norm_first.eval(), torch.zeros(1, 3, 8, 8))
    assert pairs == [(norm_first[3], norm_first[4])]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in norm_first.modules())


def test_a_merge_that_would_change_the_network_is_refused():
    assert "changes its logits" in LRP.misfit(loaded(randomised(Shared()), layer="conv"))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda t: F.layer_norm(t, t.shape[1:]), "layer_norm"),
        (lambda t: t * t.exp(), "exp, mul"),
        (lambda t: F.conv2d(t, torch.ones(8, 8, 1, 1)), "conv2d outside of torch.nn's layers"),
        (lambda t: t.softmax(dim=1), "softmax"),
    ],
)
def test_networks_with_other_functions_are_refused(function, reason):
    assert LRP.misfit(loaded(randomised(Bare(function)), layer="conv")) == f"LRP has no rule for {reason}"
    assert SRMap.misfit(loaded(randomised(Bare(function)), layer="conv")) is not None


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        F.silu,
        lambda t: t * t.mean(dim=(2, 3), keepdim=True).sigmoid(),
        lambda t: F.avg_pool2d(t, 2),
        lambda t: torch.cat([t[:, :4], t[:, 4:]], dim=1),
        lambda t: t + 1,
    ],
)
def test_functions_with_a_rule_keep_relevance(function):
    network = randomised(Bare(function))
    network.conv.bias.zero_()
    network.head.bias.zero_()
    model = loaded(network, layer="conv")
    assert LRP.misfit(model) is None
    found = LRP(model)(images(model, 2).float(), second)
    assert found.maps.isfinite().all()
    if "+ 1" not in str(function):
        assert found.check.max() < 0.3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_attnlrp_fits_transformers(name):
    model = vit(name)
    assert AttnLRP.misfit(model) is None
    found = AttnLRP(model)(probe(model, 2), two)
    assert found.maps.shape == (2, 2, 32, 32)
    assert found.maps.isfinite().all()
    assert LRP.misfit(model) is not None


def test_attnlrp_is_refused_elsewhere(model):
    assert "no attention" in AttnLRP.misfit(model)
    odd = vit()
    odd.module.norm = nn.Tanh()
    assert AttnLRP.misfit(odd) == "it has no rule for tanh"


def test_attnlrp_keeps_relevance_without_biases_norms_and_softmax():
    """Linear layers, activations, sums and gates: x ⊙ ∇f sums to f."""
    random = torch.Generator().manual_seed(0)
    x, up, gate, down = (torch.randn(6, 6, generator=random, dtype=torch.float64) for _ in range(4))
    x.requires_grad_()
    with RelevanceGradient():
        hidden = x + F.linear(F.gelu(F.linear(x, up)) * F.silu(F.linear(x, gate)), down)
        out = (hidden @ hidden.T).sum()
    torch.testing.assert_close((x * torch.autograd.grad(out, x)[0]).sum(), out)


def test_attnlrps_gradients_of_attention():
    """Q and K a quarter, V a half of their gradients; the activation passes relevance; norms hold their scale."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 3, generator=random).requires_grad_() for _ in range(3))
    expected = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).square().sum(), (q, k, v))
    with RelevanceGradient():
        out = F.scaled_dot_product_attention(q, k, v)
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    for g, e, share in zip(found, expected, (0.25, 0.25, 0.5), strict=True):
        torch.testing.assert_close(g, e * share)
    z = torch.randn(6, generator=random).requires_grad_()
    with RelevanceGradient():
        a = F.gelu(z)
    torch.testing.assert_close(z * torch.autograd.grad(a.sum(), z)[0], a.detach(), rtol=1e-4, atol=1e-6)
    rows = torch.randn(2, 6, generator=random)
    torch.testing.assert_close(layer_norm(rows, (6,), z, z), F.layer_norm(rows, (6,), z, z))
    torch.testing.assert_close(rms_norm(rows, (6,), z, 1e-5), F.rms_norm(rows, (6,), z, 1e-5))


METHODS = [(LRP, {}), (LRP, {"composite": "epsilon_gamma_box"}), (SRMap, {"side": 12}), (AttnLRP, {})]


def subject(method):
    return vit() if method is AttnLRP else relu_cnn()


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_does_not_depend_on_the_batch(method, chosen):
    model = subject(method)
    x = images(model, 3).float()
    explain = method(model, **chosen)
    whole = explain(x, two)
    parts = [explain(x[i : i + 1], two) for i in range(3)]
    scale = float(whole.maps.abs().max())
    torch.testing.assert_close(torch.cat([p.maps for p in parts]), whole.maps, rtol=0, atol=1e-3 * scale)
    torch.testing.assert_close(torch.cat([p.check for p in parts]), whole.check, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(explain(x, second).maps[:, 0], whole.maps[:, 1], rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_leaves_the_model_and_works_in_threads(method, chosen):
    model = subject(method)
    x = images(model, 2).float()
    before, plain = state(model), model.module(x)
    explain = method(model, **chosen)
    expected = explain(x, two).maps
    found, logits = {}, {}

    def own(i):
        found["own", i] = method(model, **chosen)(x, two).maps

    def shared(i):
        found["shared", i] = explain(x, two).maps

    def predict(i):
        logits[i] = model.module(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2) for work in (own, shared, predict)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scale = float(expected.abs().max())
    assert len(found) == 4
    assert all((maps - expected).abs().max() <= 1e-4 * scale for maps in found.values())
    assert all(torch.equal(value, plain) for value in logits.values())
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_nothing_remains_after_an_error(method, chosen):
    model = subject(method)
    explain = method(model, **chosen)
    x = images(model, 2).float()
    with pytest.raises(RuntimeError):
        explain(x, lambda logits: torch.full((2, 1), 99))
    if method is not AttnLRP:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in explain._module.modules())
    assert torch.overrides._get_current_function_mode() is None
    assert explain(x, second).maps.isfinite().all()


@pytest.mark.parametrize(("method", "chosen"), METHODS)
def test_takes_bfloat16(method, chosen):
    model = subject(method)
    x = images(model, 2)
    model.module.bfloat16()
    assert method.misfit(model) is None
    found = method(model, **chosen)(x.bfloat16(), second)
    assert found.maps.dtype == torch.float32
    assert found.maps.isfinite().all()


def test_epsilon_and_composite_change_the_map(model, x):
    plain = LRP(model)(x.float(), second).maps
    assert not torch.allclose(LRP(model, epsilon=1.0)(x.float(), second).maps, plain)
    for other in get_args(CompositeName)[1:]:
        assert not torch.allclose(LRP(model, composite=other)(x.float(), second).maps, plain)


def test_refuses_parameters_out_of_range(model):
    with pytest.raises(MethodError, match="composite must be one of"):
        LRP(model, composite="zplus")
    with pytest.raises(MethodError, match="epsilon must be positive"):
        LRP(model, epsilon=0.0)
    with pytest.raises(MethodError, match="side must be 8"):
        SRMap(model, side=4)


def test_saliency_finds_the_odd_cell():
    image = torch.zeros(24, 24)
    image[5:8, 15:18] = 1
    S = context_saliency(image, side=24)
    assert S[6, 16] > 0.8
    assert S[20, 3] < 0.3
    assert S.max() <= 1
    assert not context_saliency(torch.ones(16, 16), side=16).any()
    assert not distinctness(torch.ones(6, 6)).any()


def test_traits_say_what_the_check_is():
    for method in (LRP, SRMap, AttnLRP):
        assert "ΣR" in method.traits.check
        pickle.dumps(method.traits)
