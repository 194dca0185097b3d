"""Attention capture, rollout, Chefer's relevance and TokenCut: references, invariants, architectures, threads."""

import threading

import pytest
import timm
import torch
import torchvision
from attribution import networks
from attribution.networks import double, images, loaded, relu_cnn, second, state, two
from reference.attention import REFERENCES, Trace, attention_relevance, plain
from torch import nn
from torch.nn import functional as F

from pipeline.attribution.attention import Chefer, Rollout, positive_mean
from pipeline.attribution.attention_capture import AttentionCapture, tokens_of
from pipeline.attribution.attention_relevance import RelevanceCapture, follow, product, total, z_plus
from pipeline.attribution.base import probe
from pipeline.attribution.tokencut import TokenCut, connected, cut
from pipeline.errors import MethodError
from pipeline.model.huggingface import HuggingFaceClassifier

torch.set_num_threads(1)

METHODS = {"rollout": Rollout, "chefer": Chefer, "tokencut": TokenCut}


def vit(name="vit_tiny_patch16_224", **changes):
    return networks.vit(name, **{"depth": 3, **changes})


def torchvision_vit():
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    return loaded(network.eval().requires_grad_(False))


def transformers_vit(implementation):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        attn_implementation=implementation,
        num_labels=5,
    )
    network = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return loaded(HuggingFaceClassifier(network).eval().requires_grad_(False))


ARCHITECTURES = {
    "class token": vit,
    "registers": lambda: vit(reg_tokens=4),
    "average": lambda: vit(global_pool="avg"),
    "distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    "beit": lambda: vit("beit_base_patch16_224"),
    "eva02": lambda: vit("eva02_tiny_patch14_224"),
    "dinov3": lambda: vit("vit_small_patch16_dinov3"),
    "torchvision": torchvision_vit,
    "transformers eager": lambda: transformers_vit("eager"),
    "transformers sdpa": lambda: transformers_vit("sdpa"),
}


@pytest.fixture(scope="module")
def model():
    return vit()


@pytest.fixture(scope="module")
def x(model):
    return images(model, 3)


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 2}, {"global_pool": "avg"}, {"init_values": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("name", "chosen"),
    [("rollout", {}), ("chefer", {}), ("chefer", {"form": "lrp"}), ("tokencut", {"tau": 0.1})],
    ids=str,
)
def test_equals_the_reference(name, chosen, changes):
    if chosen == {"form": "lrp"} and "global_pool" in changes:
        pytest.skip("the reference reads the class token")
    model = vit(**changes)
    x = images(model, 2)
    if chosen == {"form": "lrp"}:  # shares of sums near 0 cost digits: the rules are compared in float64
        model = double(model)
    found = METHODS[name](model, **chosen)(x.to(model.module.pos_embed.dtype), second)
    expected = REFERENCES[name](model, x, found.targets[:, 0], **chosen)
    tolerance = 1e-4
    torch.testing.assert_close(
        found.maps[:, 0].double(), expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )
    assert expected.abs().max() > 0
    logits = model.module(x.to(model.module.pos_embed.dtype)).float()
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_is_right_in_every_architecture(architecture):
    """Rows sum to 1, values multiplied with it give the network's own logits, and the grid is found."""
    model = ARCHITECTURES[architecture]()
    noise = probe(model, 2)
    with torch.no_grad(), AttentionCapture() as capture:
        logits = model.module(noise)
    torch.testing.assert_close(logits, model.module(noise), rtol=1e-4, atol=1e-5)
    tokens = tokens_of(model)
    assert len(capture.attention) == len([s for s in capture.shapes if s == (2, s[1], tokens.count, tokens.count)])
    for A in capture.attention:
        torch.testing.assert_close(A.sum(dim=-1), torch.ones(A.shape[:-1]))
    assert tokens.layout.grid == (4, 4)
    readouts = {"average": range(1, 17), "beit": range(1, 17), "eva02": range(1, 17), "dinov3": range(5, 21)}
    readouts["distilled"] = range(2)
    assert tokens.readout == tuple(readouts.get(architecture, (0,)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_runs_on_every_architecture(name, architecture):
    model = ARCHITECTURES[architecture]()
    assert METHODS[name].misfit(model) is None
    method = METHODS[name](model)
    found = method(probe(model, 2), two)
    assert found.maps.shape == (2, 2, *method.shape) == (2, 2, 4, 4)
    assert found.maps.isfinite().all()
    assert found.maps.std() > 0


def test_fused_and_plain_attention_agree(x):
    fused, manual = vit(), vit()
    for block in manual.module.blocks:
        block.attn.fused_attn = False
    for method in METHODS.values():
        torch.testing.assert_close(
            method(fused)(x.float(), two).maps, method(manual)(x.float(), two).maps, rtol=1e-4, atol=1e-6
        )


def test_torchvision_attention_equals_its_own_weights():
    model = torchvision_vit()
    with torch.no_grad(), AttentionCapture() as capture:
        model.module(probe(model, 2))
    block = model.module.encoder.layers[0]
    tokens = torch.cat(
        [model.module.class_token.expand(2, -1, -1), model.module._process_input(probe(model, 2))], dim=1
    )
    normed = block.ln_1(tokens + model.module.encoder.pos_embedding)
    _, weights = block.self_attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(capture.attention[0], weights)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (relu_cnn, "no attention of the form"),
        (
            lambda: loaded(
                timm.create_model(
                    "swin_tiny_patch4_window7_224",
                    img_size=64,
                    depths=(1, 1),
                    embed_dim=8,
                    num_heads=(2, 2),
                    window_size=4,
                ).eval(),
                64,
            ),
            "attends within windows",
        ),
        (lambda: vit("cait_xxs24_224"), "changes attention between the softmax and the values"),
        (lambda: vit("vit_base_patch16_siglip_224"), "queries equal to keys"),
        (
            lambda: loaded(timm.create_model("xcit_nano_12_p16_224", img_size=64, depth=1, embed_dim=32).eval(), 64),
            "queries equal to keys",
        ),
    ],
)
def test_other_networks_are_refused_with_a_reason(build, reason):
    model = build()
    for method in METHODS.values():
        assert reason in method.misfit(model)


def test_rollout_rows_sum_to_one_and_chefer_rows_do_not(model, x):
    """Over all tokens; the map leaves out the class token, whose share is what is missing."""
    method = Rollout(model)
    rows = []
    for start in torch.eye(method.tokens.count)[:, None]:
        with torch.no_grad(), AttentionCapture(keep=lambda a: a.float().mean(dim=1)) as capture:
            model.module(x[:1].float())
        row = start
        for A in reversed(capture.attention):
            mixed = A[0] + torch.eye(A.shape[-1])
            row = row @ (mixed / mixed.sum(dim=-1, keepdim=True))
        rows.append(row[0])
    rows = torch.stack(rows)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(rows)))
    torch.testing.assert_close(method(x[:1].float(), second).maps[0, 0].flatten(), rows[0, 1:], rtol=1e-4, atol=1e-6)
    assert Rollout(model)(x.float(), second).maps.sum(dim=(2, 3)).max() < 1
    gain = Chefer(model)(x.float(), second).maps
    assert gain.min() >= 0
    assert gain.sum() > 0  # on top of the 1 that the class token keeps


@pytest.mark.parametrize(
    ("name", "chosen"), [("rollout", {}), ("chefer", {}), ("chefer", {"form": "lrp"}), ("tokencut", {})]
)
def test_does_not_depend_on_the_batch(name, chosen, model, x):
    method = METHODS[name](model, **chosen)
    whole = method(x.float(), two)
    parts = [method(x[i : i + 1].float(), two) for i in range(3)]
    torch.testing.assert_close(torch.cat([p.maps for p in parts]), whole.maps, rtol=1e-3, atol=1e-6)
    alone = method(x.float(), second)
    torch.testing.assert_close(alone.maps[:, 0], whole.maps[:, 1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["rollout", "tokencut"])
def test_class_agnostic_maps_are_the_same_for_every_target(name, model, x):
    maps = METHODS[name](model)(x.float(), two).maps
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert not METHODS[name].traits.discriminative


def test_chefer_depends_on_the_target(model, x):
    for form in ("gradient", "lrp"):
        maps = Chefer(model, form=form)(x.float(), two).maps
        assert not torch.allclose(maps[:, 0], maps[:, 1], rtol=0.01)


def test_the_two_forms_differ(model, x):
    gradient, lrp = (Chefer(model, form=form)(x.float(), second).maps for form in ("gradient", "lrp"))
    assert not torch.allclose(gradient / gradient.sum(), lrp / lrp.sum(), rtol=0.01)


def test_lrp_form_is_refused_where_a_function_has_no_rule():
    with pytest.raises(MethodError, match="no rule for mul"):
        Chefer(vit("eva02_tiny_patch14_224"), form="lrp")
    with pytest.raises(MethodError, match="form must be one of"):
        Chefer(vit(), form="rules")


def test_relevance_of_attention_equals_the_reference(model, x):
    with torch.enable_grad(), RelevanceCapture() as capture:
        capture.logits = double(model).module(x[:1].clone().requires_grad_())
    found = follow(capture, F.one_hot(torch.tensor([2]), 5).double())
    expected = attention_relevance(plain(model), x[0], 2)
    for R, e in zip(found, expected, strict=True):
        torch.testing.assert_close(R[0], e, rtol=1e-4, atol=1e-6 * float(e.abs().max()))


def test_rules_keep_relevance():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 4, 4, generator=random, dtype=torch.float64) + 0.1 for _ in range(2))
    R = torch.randn(2, 4, 4, generator=random, dtype=torch.float64)
    for rule in (product, total):
        shares = rule(R, a, b)
        torch.testing.assert_close((shares[0] + shares[1]).sum(dim=(1, 2)), R.sum(dim=(1, 2)))
    weight = torch.randn(4, 4, generator=random, dtype=torch.float64)
    torch.testing.assert_close(z_plus(R, a, weight).sum(), R.sum())


def test_gradients_of_attention_equal_the_references(model, x):
    with torch.enable_grad(), AttentionCapture(gradients=True) as capture:
        logits = model.module(x[:1].float())
    found = torch.autograd.grad(logits[0, 1], capture.attention)
    with torch.enable_grad():
        trace = Trace(plain(model), x[0])
    expected = torch.autograd.grad(trace.logits[1], trace.attention)
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g[0].double(), e, rtol=1e-3, atol=1e-6)


def test_positive_mean():
    g, r = torch.tensor([[[[1.0, -1.0]], [[2.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0]], [[0.5, -1.0]]]])
    assert torch.equal(positive_mean(g, r), torch.tensor([[[1.0, 0.0]]]))


def test_tokencut_returns_the_seeds_block():
    """Two groups of keys that are alike within and unlike between."""
    keys = torch.zeros(1, 16, 2)
    block = torch.zeros(4, 4, dtype=torch.bool)
    block[1:3, 2:4] = True
    keys[0, block.flatten(), 0] = 1
    keys[0, ~block.flatten(), 1] = 1
    vectors, seeds = cut(keys, 0.2)
    assert block.flatten()[seeds[0]]
    assert torch.equal(vectors.view(4, 4) > 0, block)


def test_tokencut_leaves_out_what_is_not_joined_to_the_seed():
    cells = torch.tensor([[[2.0, -1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]])
    found = connected(cells, torch.tensor([0]))
    assert torch.equal(found > 0, torch.tensor([[[True, False, False], [True, False, False], [False, False, False]]]))
    assert found[0, 0, 2] == 0


def test_tau_changes_the_cut(model, x):
    maps = [TokenCut(model, tau=tau)(x.float(), second).maps for tau in (0.0, 0.6)]
    assert not torch.allclose(*maps)
    with pytest.raises(MethodError, match="tau must be in"):
        TokenCut(model, tau=1.0)


@pytest.mark.parametrize(
    ("name", "chosen"), [("rollout", {}), ("chefer", {}), ("chefer", {"form": "lrp"}), ("tokencut", {})]
)
def test_leaves_the_model_and_works_in_threads(name, chosen, model, x):
    before = state(model)
    expected = METHODS[name](model, **chosen)(x.float(), two).maps
    plain_logits = model.module(x.float())
    found, logits = {}, {}

    def explain(i):
        found[i] = METHODS[name](model, **chosen)(x.float(), two).maps

    def predict(i):
        logits[i] = model.module(x.float())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3) for work in (explain, predict)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(logits) == 3
    assert all(torch.allclose(maps, expected, atol=1e-6) for maps in found.values())
    assert all(torch.equal(value, plain_logits) for value in logits.values())
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_nothing_stays_active_after_an_error(model, x):
    with pytest.raises(ZeroDivisionError), AttentionCapture():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError):
        Chefer(model)(x.float()[:, :2], second)
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize(
    ("name", "chosen"), [("rollout", {}), ("chefer", {}), ("chefer", {"form": "lrp"}), ("tokencut", {})]
)
def test_takes_bfloat16(name, chosen, x):
    model = vit()
    model.module.bfloat16()
    found = METHODS[name](model, **chosen)(x.bfloat16(), second)
    assert found.maps.dtype == torch.float32
    assert found.maps.isfinite().all()


def test_masked_and_causal_attention():
    """The plain form of fused attention equals it, masks included."""
    from pipeline.attribution.attention_capture import plain_attention

    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=random) for _ in range(3))
    mask = torch.rand(5, 5, generator=random) > 0.3
    mask[:, 0] = True
    grouped = {"enable_gqa": True}
    for options in ({}, {"attn_mask": mask}, {"attn_mask": mask.float()}, {"is_causal": True}, {"scale": 0.3}):
        torch.testing.assert_close(
            plain_attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options)
        )
    expected = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], **grouped)
    torch.testing.assert_close(plain_attention(q, k[:, :1], v[:, :1], **grouped), expected)
