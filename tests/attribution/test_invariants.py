"""What holds for every method: independence of the batch, of other threads and of failures, and their self-checks."""

import copy
import gc
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from attribution.cases import model_for, parameters
from attribution.networks import (
    Product,
    images,
    loaded,
    randomised,
    relu_cnn,
    residual_net,
    smooth_cnn,
    state,
    tiny_vit,
)

from pipeline.attribution import METHODS, create
from pipeline.attribution.cam import leading_component
from pipeline.errors import MethodError

torch.set_num_threads(1)

every_method = pytest.mark.parametrize("name", METHODS)


def fixed(*classes: int):
    """The same classes for every image."""
    return lambda logits: torch.tensor(classes).expand(len(logits), -1)


def method_of(name: str, model=None):
    return create(name, model or model_for(name), seed=5, **parameters(name))


def close(found: torch.Tensor, expected: torch.Tensor, share: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


@every_method
def test_any_batch_split_gives_the_same_maps(name):
    model = model_for(name)
    x, seeds = images(model, 4).float(), torch.tensor([7, 11, 7, 2**62])
    targets = torch.tensor([[1], [3], [0], [2]])
    method = method_of(name)
    whole = method(x, lambda _: targets, seeds)
    for parts in ([1, 3], [1, 1, 1, 1]):
        pieces = zip(x.split(parts), targets.split(parts), seeds.split(parts), strict=True)
        found = [method(part, lambda _, t=t: t, s) for part, t, s in pieces]
        close(torch.cat([f.maps for f in found]), whole.maps)
        close(torch.cat([f.logits for f in found]), whole.logits)
    assert whole.maps.dtype == whole.logits.dtype == torch.float32
    assert whole.maps.shape == (4, 1, *method.shape)


@every_method
def test_k_targets_equal_k_calls(name):
    model = model_for(name)
    x = images(model, 2).float()
    method = method_of(name)
    both = method(x, fixed(1, 3))
    for column, target in enumerate((1, 3)):
        alone = method(x, fixed(target))
        close(both.maps[:, column], alone.maps[:, 0])
        if alone.check is not None:
            torch.testing.assert_close(both.check[:, column], alone.check[:, 0], rtol=1e-2, atol=1e-3)
    if METHODS[name].traits.discriminative:
        assert not torch.equal(both.maps[:, 0], both.maps[:, 1])
    else:
        assert torch.equal(both.maps[:, 0], both.maps[:, 1])


@every_method
@pytest.mark.parametrize("level", [0.0, 0.7])
def test_constant_image_gives_finite_maps(name, level):
    model = model_for(name)
    x = torch.full((2, 3, *model.preprocessing.size), level)
    assert method_of(name)(x, fixed(0, 2)).maps.isfinite().all()


def untouched(model, before, x, x_before) -> None:
    """No hook, mode, gradient flag or value is left changed."""
    for module in model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not module.training
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert torch.is_grad_enabled()
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0


@every_method
def test_nothing_is_left_after_success_and_failure(name):
    model = model_for(name)
    before, x = state(model), images(model, 2).float()
    kept, method = x.clone(), method_of(name)
    method(x, fixed(1))
    untouched(model, before, x, kept)
    with suppress(IndexError, RuntimeError):  # a method that ignores the class has no reason to fail
        method(x, fixed(99))
    untouched(model, before, x, kept)

    def fault(_module, _args):
        raise OSError("fault of the test")

    handle = model.module.get_submodule(model.head).register_forward_pre_hook(fault)
    try:
        with pytest.raises(OSError, match="fault of the test"):
            method(x, fixed(1))
    finally:
        handle.remove()
    untouched(model, before, x, kept)
    private = getattr(method, "_network", None)  # meta's copy goes back to its weights as well
    assert private is None or all(torch.equal(v, before[n]) for n, v in private.state_dict().items())


@contextmanager
def only_new_objects():
    """The collector looks at nothing that was there before: a process of the suite holds millions."""
    gc.freeze()
    yield
    gc.unfreeze()


def alive() -> int:
    """Tensors that somebody holds."""
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


@every_method
def test_no_tensor_outlives_its_call(name):
    model = model_for(name)
    x = images(model, 2).float()
    method_of(name, model)(x, fixed(1))
    with only_new_objects():
        before = alive()
        for _ in range(2):
            method_of(name, model)(x, fixed(1))
        assert alive() == before


@every_method
def test_two_methods_over_one_model_in_two_threads(name):
    model = model_for(name)
    x = images(model, 2).float()
    other = "gradcam" if METHODS["gradcam"].misfit(model) is None else name
    jobs = [method_of(name), create(other, model)]
    alone = [job(x, fixed(1)).maps for job in jobs]
    found, gate = [[], []], threading.Barrier(2)

    def work(index: int) -> None:
        torch.set_num_threads(1)
        gate.wait()
        for _ in range(4):
            found[index].append(jobs[index](x, fixed(1)).maps)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert len(found[index]) == 4
        for maps in found[index]:
            close(maps, alone[index])


@every_method
def test_half_precision(name):
    model = model_for(name)
    half = replace(model, module=copy.deepcopy(model.module).to(torch.bfloat16))
    x = images(model, 2)
    found = method_of(name, half)(x.to(torch.bfloat16), fixed(1))
    assert found.maps.dtype == found.logits.dtype == torch.float32
    assert found.maps.isfinite().all()
    assert found.maps.shape[2:] == method_of(name, half).shape


ALTERNATIVES = {
    "scorecam": [{"channels": 3}],
    "multilayer": [{"combine": "sum"}, {"weights": [1.0, 1.0]}, {"layers": ["norm2", "last"]}, {"method": "hirescam"}],
    "normgrad": [{"variant": "conv3x3"}],
    "gradient": [{"absolute": False}],
    "ig": [{"steps": 3}, {"baseline": 0.5}],
    "smoothgrad": [{"absolute": False}, {"noise": 0.3}, {"samples": 3}],
    "vargrad": [{"noise": 0.3}, {"samples": 3}],
    "smoothixg": [{"kernel": 5}],
    "smoothig": [{"kernel": 5}, {"steps": 3}, {"baseline": 0.5}],
    "meta": [{"rate": 0.1}, {"method": "layercam"}, {"method": "normgrad", "parameters": {"variant": "selective"}}],
}


@pytest.mark.parametrize(("name", "changed"), [(n, c) for n, changes in ALTERNATIVES.items() for c in changes])
def test_every_parameter_changes_the_map(name, changed):
    model = model_for(name)
    x = images(model, 1).float()
    usual = create(name, model, **parameters(name))(x, fixed(1)).maps
    other = create(name, model, **{**parameters(name), **changed})(x, fixed(1)).maps
    assert other.shape != usual.shape or not torch.allclose(other, usual, rtol=1e-4)


@pytest.mark.parametrize("name", ["ig", "smoothgrad", "vargrad", "smoothig", "scorecam", "ablationcam"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunks_change_nothing(name, chunk):
    model = model_for(name)
    x, seeds = images(model, 2).float(), torch.tensor([3, 4])
    usual = create(name, model, **parameters(name))(x, fixed(1), seeds)
    close(create(name, model, **parameters(name), chunk=chunk)(x, fixed(1), seeds).maps, usual.maps)


@pytest.mark.parametrize("name", ["smoothgrad", "vargrad"])
def test_noise_follows_job_and_sample_seed(name):
    model = model_for(name)
    x = images(model, 1).float().expand(2, -1, -1, -1)
    first = method_of(name)(x, fixed(1), torch.tensor([1, 2])).maps
    again = method_of(name)(x, fixed(1), torch.tensor([1, 1])).maps
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], first[1])
    close(again[0], again[1])
    assert not torch.equal(create(name, model, seed=6, **parameters(name))(x, fixed(1)).maps[0], first[0])


@pytest.mark.parametrize("model", [relu_cnn(), tiny_vit()], ids=["cnn", "vit"])
def test_integrated_gradients_are_complete(model):
    x = images(model, 2).float()
    found = create("ig", model, steps=200)(x, fixed(1, 3))
    rise = found.logits[:, [1, 3]] - model.module(torch.zeros_like(x[:1]))[0, [1, 3]]
    gap = (found.maps.sum(dim=(2, 3)) - rise).abs()
    torch.testing.assert_close(found.check, gap, rtol=1e-2, atol=1e-4)
    assert (gap < 1e-2 * rise.abs().clamp_min(1)).all()


def test_fullgrad_is_complete_for_relus():
    for model in (relu_cnn(), residual_net()):
        found = create("fullgrad", model)(images(model, 2).float(), fixed(0, 4))
        assert (found.check <= 1e-4 * found.logits.abs().max()).all()
    smooth = smooth_cnn()
    assert (create("fullgrad", smooth)(images(smooth, 1).float(), fixed(0)).check > 1e-3).all()


@pytest.mark.parametrize("model", [smooth_cnn(), tiny_vit(), residual_net()], ids=["smooth", "vit", "resnet"])
def test_linear_interpreter_reproduces_the_score(model):
    x = images(model, 2).float()
    found = create("linear", model)(x, fixed(1))
    torch.testing.assert_close(found.logits, model.module(x), rtol=1e-3, atol=1e-3)
    bias = found.logits[:, 1] - found.maps[:, 0].sum(dim=(1, 2))
    torch.testing.assert_close(found.check[:, 0], bias.abs() / found.logits[:, 1].abs())


def test_linear_interpreter_is_input_x_gradient_on_relus():
    model = residual_net()
    x = images(model, 2).float()
    close(create("linear", model)(x, fixed(1)).maps, create("inputxgradient", model)(x, fixed(1)).maps)


def test_guided_rules_see_functional_and_in_place_relus():
    model = residual_net()
    x = images(model, 1).float()
    plain = create("gradient", model, absolute=False)(x, fixed(1)).maps
    for name in ("guidedbackprop", "deconvnet"):
        assert not torch.allclose(create(name, model)(x, fixed(1)).maps, plain)


@pytest.mark.parametrize("name", ["guidedbackprop", "deconvnet", "guidedgradcam", "linear"])
def test_networks_that_do_not_fit_are_refused(name):
    model = loaded(randomised(Product()), layer="stem")
    with pytest.raises(MethodError, match=r"these can: .*gradcam"):
        create(name, model)


def test_cam_is_refused_without_a_linear_head():
    assert METHODS["cam"].misfit(relu_cnn()) is None
    assert METHODS["cam"].misfit(residual_net()) is None
    for model in (relu_cnn("norm2"), tiny_vit(), smooth_cnn()):
        assert "linear head" in METHODS["cam"].misfit(model)


def test_normgrad_is_the_weight_gradient_of_a_real_identity_layer():
    """One identity matrix for each cell behind the layer; autograd says what each would receive."""
    model = relu_cnn("norm2")
    x = images(model, 1).float()
    height, width = model.layer.layout.grid
    identity = torch.eye(model.layer.channels).repeat(height, width, 1, 1).requires_grad_()

    def insert(_module, _args, output):
        return torch.einsum("hwdc,nchw->ndhw", identity, output.detach())

    handle = model.module.get_submodule(model.layer.name).register_forward_hook(insert)
    try:
        (gradient,) = torch.autograd.grad(model.module(x)[0, 1], identity)
    finally:
        handle.remove()
    found = create("normgrad", model)(x, fixed(1)).maps[0, 0]
    close(found, gradient.flatten(2).norm(dim=2))


def test_normgrad_bias_is_refused_before_global_pooling():
    with pytest.raises(MethodError, match="constant"):
        create("normgrad", relu_cnn(), variant="bias")


@pytest.mark.parametrize("shape", [(12, 5, 5), (4, 9, 9)])
def test_leading_component_is_the_singular_vectors(shape):
    A = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    A[1] = 2.5  # equal cells
    A[2, 0, 0, 0] = torch.nan  # must not take the others with it
    found = leading_component(A)
    rows = A[0].flatten(1).T.double()
    left, values, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    expected = (left[:, 0] * values[0]).view(shape[1:])
    expected = expected * torch.sign(expected.flatten()[expected.abs().argmax()])
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert (found[1] == 0).all()
    assert found[2].isnan().all()
    torch.testing.assert_close(leading_component(-A[:1]), found[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(leading_component(A[:1] * 1e-25) * 1e25, found[:1], rtol=1e-4, atol=1e-4)


def test_gradcam_warns_at_an_early_layer():
    early = relu_cnn("norm2")
    with pytest.warns(UserWarning, match="last convolutional layer only"):
        create("gradcam", early)
