"""What the dry run sees of networks with habits, and that it leaves nothing behind."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import timm
import torch
from model import networks

from pipeline.errors import ModelError
from pipeline.model.dry_run import noise, observe, passed_by_all_paths, tensor_of

torch.set_num_threads(1)


def seen_of(network, size=32, count=2):
    network.eval().requires_grad_(False)
    seen, logits = observe(network, noise(network, count, 3, (size, size)))
    return {observation.name: observation for observation in seen}, logits


def connected(logits, x, without):
    """Slow reference: whether a path from the logits to x remains when one edge is not to be used."""
    stack, visited = [(logits.grad_fn, logits.output_nr)], set()
    while stack:
        edge = stack.pop()
        if edge[0] is None or edge in visited or edge == without:
            continue
        visited.add(edge)
        if getattr(edge[0], "variable", None) is x:
            return True
        stack.extend(edge[0].next_functions)
    return False


def edges_of(logits):
    edges, stack = set(), [(logits.grad_fn, logits.output_nr)]
    while stack:
        edge = stack.pop()
        if edge[0] is not None and edge not in edges:
            edges.add(edge)
            stack.extend(edge[0].next_functions)
    return edges


def gated():
    return timm.create_model("resnet10t", num_classes=5, block_args={"attn_layer": "se"})


@pytest.mark.parametrize("network", [networks.InPlace, networks.ClassToken, networks.Shared, gated])
def test_bottlenecks_are_what_disconnects_the_input_when_it_is_cut(network):
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = network().eval().requires_grad_(False)(x)
    expected = {edge for edge in edges_of(logits) if not connected(logits, x, edge)}
    assert 3 < len(expected) < len(edges_of(logits))
    assert passed_by_all_paths(logits, x) == expected


def test_parameters_that_require_gradients_are_no_input():
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    network = networks.ClassToken().eval()
    frozen = passed_by_all_paths(network.requires_grad_(False)(x), x)
    assert len(passed_by_all_paths(network.requires_grad_(True)(x), x)) == len(frozen)


def test_a_module_that_is_called_again_shows_its_last_call():
    seen, _ = seen_of(networks.Shared())
    assert seen["relu"].shape == (2, 8)
    assert seen["relu"].layout is None
    names = list(seen)
    assert names.index("stem") < names.index("block") < names.index("relu")


def test_class_token_networks_have_dead_cells_behind_the_last_attention():
    seen, _ = seen_of(networks.ClassToken())
    assert seen["blocks.2.norm1"].alive == 1
    assert seen["blocks.2"].alive == seen["norm"].alive == 0
    assert seen["blocks.2"].bottleneck
    assert not seen["blocks.2.norm1"].bottleneck
    assert not seen["blocks.1.dropout"].bottleneck  # (N, 1, T, T) attention weights


def test_a_later_sum_outdates_a_stream():
    seen, _ = seen_of(networks.OneForward())
    assert seen["patches"].bottleneck
    assert seen["patches"].outdated
    assert not seen_of(networks.ClassToken())[0]["blocks.1"].outdated


def test_an_in_place_operation_makes_another_tensor():
    seen, _ = seen_of(networks.InPlace())
    assert seen["features.1"].tensor != seen["features.2"].tensor == seen["features"].tensor


def test_other_threads_are_not_seen():
    seen, _ = seen_of(networks.Threads())
    assert seen["features"].shape == (2, 8, 8, 8)


def test_nothing_is_left_behind():
    network = networks.ClassToken()
    x = noise(network, 2, 3, (32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    observe(network, x)
    with pytest.raises(ModelError):
        observe(network, x[:, :1])
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not x.requires_grad
    assert x.grad is None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_network_without_gradients_has_no_live_cells():
    seen, logits = seen_of(networks.Frozen())
    assert logits.shape == (2, 5)
    assert not any(o.alive or o.bottleneck or o.outdated for o in seen.values())
    assert seen["features"].layout is not None


@pytest.mark.parametrize(
    ("container", "found"), [("tuple", "returns tuple"), ("dict", "returns dict"), ("map", r"returns \(2, 5, 1\)")]
)
def test_what_is_not_logits_is_refused(container, found):
    with pytest.raises(ModelError, match=f"{found} for 2 images, expected one .N, K. tensor of logits; wrap it"):
        seen_of(networks.Returns(container))


def test_a_size_that_does_not_fit_is_said():
    with pytest.raises(ModelError, match=r"batch of 2 x 3 x 31 x 31 \(RuntimeError: .*; check --size"):
        seen_of(networks.Flat(), size=31)


def test_tensor_of():
    tensor = torch.ones(1)
    assert tensor_of(tensor) is tensor_of((tensor, 1)) is tensor_of([tensor]) is tensor
    assert tensor_of(networks.Pair(tensor, tensor)) is None
    assert tensor_of({"features": tensor}) is tensor_of(()) is tensor_of(None) is None


def test_noise_follows_the_module():
    module = torch.nn.Linear(3, 3).to(torch.bfloat16)
    assert noise(module, 2, 1, (4, 6)).dtype == torch.bfloat16
    assert torch.equal(noise(module, 2, 1, (4, 6)), noise(module, 2, 1, (4, 6)))
    assert noise(torch.nn.Identity(), 2, 1, (4, 6)).shape == (2, 1, 4, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_no_output_is_kept(fails):
    kept = []

    class Watched(torch.nn.ReLU):
        def forward(self, x):
            output = super().forward(x)
            kept.append(weakref.ref(output))
            return output

    relu = Watched()
    layers = [torch.nn.Conv2d(3, 4, 3), relu, relu, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(5 if fails else 4, 2)).eval()
    with pytest.raises(ModelError) if fails else nullcontext():
        observe(network, noise(network, 2, 3, (16, 16)))
    gc.collect()
    assert [one() for one in kept] == [None, None]
