"""RISE, occlusion, LIME, KernelSHAP, Sobol and VPS: references, exact cases, batch and chunk independence, peers."""

import copy
import threading

import pytest
import torch
from attribution.networks import two
from reference.perturbation import REFERENCES
from torch import nn

from pipeline.attribution.perturbation import RISE, Occlusion, enlargement, rise_masks
from pipeline.attribution.sobol import Sobol
from pipeline.attribution.superpixels import LIME, KernelSHAP, mean_colours, superpixels
from pipeline.attribution.vps import VPS, area_under, region_values
from pipeline.errors import MethodError
from pipeline.model import load
from schemas.graph import ModelSpec

torch.set_num_threads(1)

SIZE = 32
FAST = {
    RISE: {"masks": 24, "cells": 4},
    Occlusion: {"window": 12, "stride": 8},
    LIME: {"segments": 6, "samples": 40},
    KernelSHAP: {"segments": 8, "samples": 30},
    Sobol: {"grid": 3, "design": 8},
    VPS: {"segments": 5},
}
NAMES = {RISE: "rise", Occlusion: "occlusion", LIME: "lime", KernelSHAP: "kernelshap", Sobol: "sobol", VPS: "vps"}


class Linear(nn.Module):
    """f_c(x) = Σ w_c x: an additive score."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[..., None, None])
            self.features.bias.zero_()
        self.head = nn.Linear(3 * size * size, 4)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def linear():
    return Linear()


def loaded(source="module:pipeline.bias.tinycnn:tiny_cnn", **arguments):
    torch.manual_seed(3)
    spec = ModelSpec(
        source=source, arguments=arguments, weights="random", size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
    )
    model = load(spec)
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


def linear_model():
    torch.manual_seed(5)
    module = Linear().eval().requires_grad_(False)
    base = loaded()
    from dataclasses import replace

    return replace(base, module=module)


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture(scope="module")
def x():
    noise = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, size=SIZE, mode="bilinear") + 0.1 * torch.randn(
        3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)
    )


def first(logits):
    return logits.argmax(dim=1, keepdim=True)


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize(
    "extra", [{}, {"baseline": 0.2}, {"score": "logit"}, {"score": "probability"}, {"hide": "superpixel"}], ids=str
)
def test_equals_the_reference(method, extra, model, x):
    if (method is VPS and "score" in extra) or ("hide" in extra and method is not KernelSHAP):
        pytest.skip("not a parameter of this method")
    parameters = {**FAST[method], **extra}
    found = method(model, **parameters)(x[:2], first)
    expected = REFERENCES[NAMES[method]](model, x[:2].double(), found.targets[:, 0], **parameters)
    assert found.maps[:, 0].shape == expected.shape == (2, *method(model, **parameters).shape)
    scale = expected.abs().max().clamp_min(1e-6)
    assert ((found.maps[:, 0] - expected).abs().max() / scale).item() < 1e-3
    torch.testing.assert_close(found.logits, model.module(x[:2]))


def test_lime_reference_with_its_own_baseline(model, x):
    parameters = {**FAST[LIME], "hide": "baseline", "baseline": 0.9, "ridge": 0.3, "width": 0.5}
    found = LIME(model, **parameters)(x[:1], first)
    expected = REFERENCES["lime"](model, x[:1].double(), found.targets[:, 0], **parameters)
    torch.testing.assert_close(found.maps[:, 0].double(), expected, rtol=1e-3, atol=1e-6)


def test_kernelshap_enumerates_when_it_can(model, x):
    parameters = {"segments": 5, "samples": 200}
    found = KernelSHAP(model, **parameters)(x[:1], first)
    expected = REFERENCES["kernelshap"](model, x[:1].double(), found.targets[:, 0], **parameters)
    torch.testing.assert_close(found.maps[:, 0].double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", FAST)
def test_does_not_depend_on_batch_or_chunk(method, model, x):
    seeds = torch.tensor([11, 12, 13])
    whole = method(model, seed=7, chunk=64, **FAST[method])(x, two, seeds)
    for chunk in (1, 5):
        other = method(model, seed=7, chunk=chunk, **FAST[method])(x, two, seeds)
        torch.testing.assert_close(other.maps, whole.maps, rtol=1e-3, atol=2e-5)
        if whole.check is not None:
            torch.testing.assert_close(other.check, whole.check, rtol=1e-3, atol=1e-3)
    split = [method(model, seed=7, **FAST[method])(x[i : i + 1], two, seeds[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat([s.maps for s in split]), whole.maps, rtol=1e-3, atol=2e-5)
    assert whole.maps.shape[:2] == whole.targets.shape == (3, 2)
    assert whole.maps.dtype == torch.float32


@pytest.mark.parametrize("method", FAST)
def test_each_target_equals_its_own_run(method, model, x):
    both = method(model, **FAST[method])(x[:1], two)
    for column in range(2):
        alone = method(model, **FAST[method])(x[:1], lambda logits, c=column: two(logits)[:, c : c + 1])
        torch.testing.assert_close(both.maps[:, column], alone.maps[:, 0], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("method", FAST)
def test_leaves_the_model_and_works_in_threads(method, model, x):
    before = copy.deepcopy(model.module.state_dict())
    expected = method(model, **FAST[method])(x[:1], first).maps
    found = {}

    def work(name):
        found[name] = method(model, **FAST[method])(x[:1], first).maps

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(value, expected) for value in found.values())
    assert len(found) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


@pytest.mark.parametrize("method", FAST)
def test_takes_bfloat16(method, x):
    model = loaded()
    model.module.bfloat16()
    found = method(model, **FAST[method])(x[:1].bfloat16(), first)
    assert found.maps.dtype == torch.float32
    assert found.maps.isfinite().all()


@pytest.mark.parametrize("method", FAST)
def test_a_constant_score_gives_a_constant_map(method, x):
    model = linear_model()
    model.module.head.weight.zero_()
    maps = method(model, **FAST[method])(x[:1], first).maps
    if method is RISE:
        assert maps.std() / maps.mean() < 0.5  # the masks' own density
    else:
        torch.testing.assert_close(maps, maps[..., :1, :1].expand_as(maps), atol=1e-6, rtol=0)


def contributions(model, x, labels, targets, hidden=0.0):
    """Exact Shapley values of an additive score, by superpixel."""
    weight = model.module.head.weight[targets].view(3, SIZE, SIZE)
    parts = (weight * (x - hidden)).sum(dim=0).double()
    return torch.stack([parts[labels == i].sum() for i in range(int(labels.max()) + 1)])


@pytest.mark.parametrize("samples", [400, 2000])  # sampled, and all coalitions of about 8 superpixels
def test_kernelshap_is_exact_on_an_additive_score(samples, x):
    model = linear_model()
    found = KernelSHAP(model, segments=8, samples=samples)(x[:1], first)
    labels = superpixels(x[:1], model.preprocessing, count=8)[0]
    expected = contributions(model, x[0], labels, found.targets[0, 0])[labels]
    torch.testing.assert_close(found.maps[0, 0].double(), expected, rtol=1e-3, atol=1e-4)
    assert found.check.item() == pytest.approx(1, abs=1e-4)


def test_kernelshap_sums_to_the_drop(model, x):
    method = KernelSHAP(model, **FAST[KernelSHAP])
    found = method(x[:1], first)
    labels = superpixels(x[:1], model.preprocessing, count=8)[0]
    total = sum(found.maps[0, 0][labels == i].mean() for i in range(int(labels.max()) + 1))
    target = found.targets[0, 0]
    drop = found.logits[0, target] - model.module(torch.zeros_like(x[:1]))[0, target]
    torch.testing.assert_close(total, drop, rtol=1e-4, atol=1e-5)


def test_lime_without_ridge_is_exact_on_an_additive_score(x):
    model = linear_model()
    found = LIME(model, segments=8, samples=300, ridge=0.0, hide="baseline", score="logit")(x[:1], first)
    labels = superpixels(x[:1], model.preprocessing, count=8)[0]
    expected = contributions(model, x[0], labels, found.targets[0, 0])[labels]
    torch.testing.assert_close(found.maps[0, 0].double(), expected, rtol=1e-3, atol=1e-4)


def test_one_superpixel_gets_the_whole_drop(model):
    flat = torch.full((1, 3, SIZE, SIZE), 0.7)
    found = KernelSHAP(model, segments=1)(flat, first)
    target = found.targets[0, 0]
    drop = found.logits[0, target] - model.module(torch.zeros_like(flat))[0, target]
    torch.testing.assert_close(found.maps, drop.expand_as(found.maps), rtol=1e-4, atol=1e-5)


def test_sobol_of_an_additive_score_is_the_share_of_squares(x):
    """With independent masks of equal variance the total index of cell i is a_i² / Σ a²."""
    model = linear_model()
    found = Sobol(model, grid=3, design=4096, chunk=512)(x[:1], first)
    weight = model.module.head.weight[found.targets[0, 0]].view(3, SIZE, SIZE)
    parts = (weight * x[0]).sum(dim=0)
    cells = (torch.arange(SIZE) * 3 // SIZE)[:, None] * 3 + torch.arange(SIZE) * 3 // SIZE
    a = torch.stack([parts[cells == i].sum() for i in range(9)])
    torch.testing.assert_close(found.maps.flatten(), a**2 / (a**2).sum(), rtol=0.02, atol=2e-3)
    assert found.check.item() == pytest.approx(1, abs=0.02)


def test_sobol_of_a_constant_score_is_zero(x):
    model = linear_model()
    model.module.head.weight.zero_()
    found = Sobol(model, grid=2, design=8)(x[:1], first)
    assert not found.maps.any()
    assert not found.check.any()


def test_occlusion_of_an_additive_score(x):
    """With disjoint windows the value is the window's exact contribution."""
    model = linear_model()
    found = Occlusion(model, window=8, stride=8)(x[:1], first)
    weight = model.module.head.weight[found.targets[0, 0]].view(3, SIZE, SIZE)
    blocks = (weight * x[0]).sum(dim=0).unfold(0, 8, 8).unfold(1, 8, 8).sum(dim=(2, 3))
    expected = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found.maps[0, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(12, 8), (10, 10), (7, 3), (32, 32)])
def test_occlusion_equals_captum(window, stride, model, x):
    from captum.attr import Occlusion as Peer

    found = Occlusion(model, window=window, stride=stride)(x, first)
    expected = Peer(model.module).attribute(
        x, sliding_window_shapes=(3, window, window), strides=(3, stride, stride), target=found.targets[:, 0]
    )
    torch.testing.assert_close(found.maps[:, 0], expected.mean(dim=1).float(), rtol=1e-4, atol=1e-5)


def test_rise_masks_are_shared_seeded_and_of_the_right_mean():
    options = {"count": 3000, "cells": 7, "keep": 0.3, "device": torch.device("cpu")}
    draw = rise_masks((20, 33), seed=1, **options)
    masks = draw(slice(0, 3000))
    assert masks.shape == (3000, 20, 33)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert (masks.mean(dim=0) - 0.3).abs().max() < 0.03
    assert torch.equal(draw(slice(10, 12)), masks[10:12])
    assert torch.equal(rise_masks((20, 33), seed=1, **options)(slice(0, 5)), masks[:5])
    assert not torch.equal(rise_masks((20, 33), seed=2, **options)(slice(0, 5)), masks[:5])


def test_enlargement_keeps_constants():
    table = enlargement(7, 8 * 5)
    torch.testing.assert_close(table.sum(dim=1), torch.ones(40))


def test_rise_finds_the_only_pixels_that_count(x):
    model = linear_model()
    model.module.head.weight.zero_()
    weight = model.module.head.weight.view(4, 3, SIZE, SIZE)
    weight[1, :, 4:10, 20:26] = 0.01
    image = torch.ones(1, 3, SIZE, SIZE)
    found = RISE(model, masks=800, cells=5)(image, lambda logits: torch.ones(1, 1, dtype=torch.int64))
    peak = found.maps[0, 0].argmax().item()
    assert 2 <= peak // SIZE < 12
    assert 18 <= peak % SIZE < 28
    more = RISE(model, masks=4000, cells=5)(image, lambda logits: torch.ones(1, 1, dtype=torch.int64))
    assert 0.3 < found.check.item() < more.check.item() < 1


def test_seeds_decide_the_samples_of_lime(model, x):
    same = x[:1].expand(2, -1, -1, -1)
    maps = LIME(model, **FAST[LIME])(same, first, torch.tensor([1, 2])).maps
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(LIME(model, seed=1, **FAST[LIME])(same, first, torch.tensor([1, 2])).maps, maps)


def test_mean_colours():
    image, labels = torch.arange(8.0).view(2, 2, 2), torch.tensor([[0, 0], [1, 1]])
    expected = torch.tensor([[[0.5, 0.5], [2.5, 2.5]], [[4.5, 4.5], [6.5, 6.5]]])
    assert torch.equal(mean_colours(image, labels), expected)


def test_region_values_and_area():
    values = region_values(torch.tensor([2, 0, 1]), torch.tensor([1.0, 1.5, 1.4], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([1 - 0.5 / 0.6, 0, 1], dtype=torch.float64))
    labels = torch.tensor([[0, 1], [1, 1]])
    area = area_under(torch.tensor([0.0, 1.0, 1.0]).double(), torch.tensor([0, 1]), labels)
    assert area.item() == pytest.approx(0.5 * 0.25 + 0.75)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (RISE, {"masks": 1}, "masks must be 2 or more"),
        (RISE, {"keep": 1.0}, "keep must be between"),
        (RISE, {"chunk": 0}, "chunk must be 1"),
        (RISE, {"score": "loss"}, "score must be one of"),
        (Occlusion, {"window": 64}, "window must be in 1..32"),
        (Occlusion, {"stride": 9}, "stride must be in 1..4"),
        (LIME, {"width": 0.0}, "width must be positive"),
        (LIME, {"hide": "blur"}, "hide must be one of"),
        (Sobol, {"grid": 40}, "grid must be in 1..32"),
        (VPS, {"segments": 0}, "segments must be 1"),
    ],
)
def test_refuses_parameters_out_of_range(method, parameters, message, model):
    with pytest.raises(MethodError, match=message):
        method(model, **parameters)


def test_vps_is_a_batch_method():
    assert VPS.traits.batch_only
    assert not RISE.traits.batch_only
