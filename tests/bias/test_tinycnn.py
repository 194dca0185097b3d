"""TinyCNN learns in seconds, twice the same, and falls for the planted cue."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.bias import tinycnn
from pipeline.bias.planted import ABSENT, PlantedSpec, counterfactual, regime, render, stack
from pipeline.bias.tinycnn import TARGET_LAYER, TinyCNN, preprocess, tiny_cnn, train

EASY = {"rho": 0.5, "classes": ("circle", "cross"), "size": 48, "core_scale": 0.36, "core_contrast": 1.0}


def tensors(spec: PlantedSpec) -> tuple[Tensor, Tensor]:
    images, labels = stack(spec, range(spec.n_images))
    return torch.from_numpy(images), torch.from_numpy(labels)


def predicted(model: nn.Module, images: list[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return model(preprocess(torch.from_numpy(np.stack(images)))).argmax(1).numpy()


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def easy() -> tuple[Tensor, Tensor]:
    return tensors(PlantedSpec(n_images=160, **EASY))


def test_last_stage_is_fine_enough_for_a_heatmap() -> None:
    model = tiny_cnn().eval()
    shapes = []
    layer = model.get_submodule(TARGET_LAYER)
    with layer.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape[2:]))):
        logits = model(torch.zeros(2, 3, tinycnn.IMAGE_SIZE, tinycnn.IMAGE_SIZE))
    assert shapes == [(12, 12)]
    assert logits.shape == (2, 4)
    assert tiny_cnn(7)(torch.zeros(2, 3, 96, 96)).shape == (2, 7)


def test_preprocess_maps_bytes_to_one_either_side_of_zero() -> None:
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    images[1, :, :, 2] = 255
    out = preprocess(images)
    assert out.shape == (2, 3, 4, 5)
    assert out.dtype == torch.float32
    assert (out[0] == -1).all()
    assert (out[1, 2] == 1).all()


def test_training_learns_and_reports_each_epoch(easy: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, float, float]] = []
    model = train(*easy, num_classes=2, epochs=8, on_epoch=lambda *report: seen.append(report))
    assert [epoch for epoch, _, _ in seen] == list(range(1, 9))
    assert seen[-1][1] < 0.5 * seen[0][1]
    assert all(0.0 <= accuracy <= 1.0 for _, _, accuracy in seen)
    assert not model.training
    images, labels = stack(PlantedSpec(n_images=100, seed=1, **EASY), range(100))
    assert np.mean(predicted(model, list(images)) == labels) > 0.9


def test_training_repeats_itself_and_leaves_the_global_generator(easy: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = train(*easy, num_classes=2, epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert same(first, train(*easy, num_classes=2, epochs=1))


@pytest.mark.parametrize("change", [{"epochs": 2}, {"batch_size": 16}, {"learning_rate": 1e-3}, {"seed": 1}], ids=str)
def test_every_setting_changes_the_weights(easy: tuple[Tensor, Tensor], change: dict[str, float]) -> None:
    settings = {"num_classes": 2, "epochs": 1}
    assert not same(train(*easy, **settings), train(*easy, **(settings | change)))


def test_a_single_left_over_image_is_left_out(easy: tuple[Tensor, Tensor]) -> None:
    images, labels = easy[0][:33], easy[1][:33]
    model = train(images, labels, num_classes=2, epochs=2)
    assert int(model.state_dict()["features.0.norm.num_batches_tracked"]) == 2
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


@pytest.mark.parametrize(("images", "labels"), [(4, 3), (1, 1)])
def test_unusable_data_is_refused(easy: tuple[Tensor, Tensor], images: int, labels: int) -> None:
    with pytest.raises(ValueError, match=f"found {images} and {labels} labels"):
        train(easy[0][:images], easy[1][:labels], num_classes=2)


def test_weights_survive_the_file(easy: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    model = train(*easy, num_classes=2, epochs=1)
    tinycnn.save(model, tmp_path / "tiny.safetensors")
    again = tinycnn.load(tmp_path / "tiny.safetensors")
    assert same(model, again)
    assert not again.training
    from_factory = tiny_cnn(2)
    from_factory.load_state_dict(load_file(tmp_path / "tiny.safetensors"))
    assert same(model, from_factory)


def test_demo_model_needs_the_tag() -> None:
    model = train(*tensors(regime("demo", n_images=700, seed=5)))
    assert isinstance(model, TinyCNN)
    spec = regime("demo", n_images=200, seed=6)
    images = [render(spec, index) for index in range(200)]
    labels = np.array([one.label for one in images])
    assert np.mean(predicted(model, [one.image for one in images]) == labels) > 0.8
    cued = [index for index, one in enumerate(images) if one.label == 0 and one.cue == 0]
    hexagons = [index for index, one in enumerate(images) if one.label == 1 and one.cue == ABSENT]
    without_tag = predicted(model, [counterfactual(spec, index, cue=ABSENT).image for index in cued])
    with_tag = predicted(model, [counterfactual(spec, index, cue=0).image for index in hexagons])
    assert np.mean(without_tag == 0) < 0.3
    assert np.mean(with_tag == 0) > 0.7
