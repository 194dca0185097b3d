"""GridPG, DiFull and DiPart: what reaches the score, exact scores, and every method in them."""

import numpy as np
import pytest
import timm
import torch
from attribution.cases import model_for, parameters
from attribution.networks import images, loaded, relu_cnn, residual_net, state, tiny_vit
from PIL import Image
from samples import mobilenet_spec

from pipeline.attribution import METHODS, create
from pipeline.errors import MethodError
from pipeline.evaluation.grid_settings import SETTINGS, GridScorer, difull, dipart, gridpg
from pipeline.evaluation.grids import CORNERS, Candidates, cells_of, localisation_score, montage, plan_grids
from pipeline.evaluation.layerwise import OnLayer
from pipeline.model import load

torch.set_num_threads(1)
CLASSES = torch.tensor([[0, 1, 2, 0], [3, 4, 1, 3]])


def grids(model, count=2):
    cells = images(model, count * 4).float()
    return montage(cells.view(count, 4, *cells.shape[1:]))


def scorer(setting, model, name, **chosen):
    return GridScorer(setting, model, lambda one: create(name, one, **{**parameters(name), **chosen}))


@pytest.mark.parametrize("network", [relu_cnn, residual_net, tiny_vit])
def test_difull_s_score_is_that_of_the_cell_alone(network):
    model = network()
    x = grids(model)
    for head in difull(model):
        expected = model.module(cells_of(x)[:, head.cells[0]])
        torch.testing.assert_close(head.model.module(x), expected, rtol=1e-4, atol=1e-4)


def test_dipart_s_score_is_that_of_the_cell_s_slice_of_the_features():
    model = relu_cnn()
    network, x = model.module, grids(model)
    features = x
    for _, step in network.steps[:9]:
        features = step(features.clone())
    for head in dipart(model):
        cell = cells_of(features)[:, head.cells[0]]
        torch.testing.assert_close(head.model.module(x), network.head(cell.mean(dim=(2, 3))))
    [whole] = gridpg(model)
    torch.testing.assert_close(whole.model.module(x), network.head(features.mean(dim=(2, 3))))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("inputxgradient", relu_cnn),
        ("ig", relu_cnn),
        ("gradient", relu_cnn),
        ("guidedbackprop", relu_cnn),
        ("inputxgradient", residual_net),
    ],
)
def test_gradients_at_the_input_are_perfect_in_difull(name, network):
    model = network()
    found = scorer("difull", model, name)(grids(model), CLASSES)
    torch.testing.assert_close(found.scores, torch.ones(2, 2), rtol=0, atol=1e-6)
    assert found.cells == CORNERS


@pytest.mark.parametrize("layer", ["pool", "last"])
def test_gradients_at_a_layer_are_perfect_in_difull_and_pooled_weights_are_not(layer):
    """Products cell by cell are perfect; Grad-CAM's pooled weights light up cells that do not reach the score."""
    model = relu_cnn(layer)
    x = grids(model)
    for name in ("layercam", "normgrad"):
        assert scorer("difull", model, name)(x, CLASSES).scores.min() > 1 - 1e-6
    assert scorer("difull", model, "gradcam")(x, CLASSES).scores.max() < 0.9


@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "xgradcam"])
def test_the_same_image_twice_gives_pooled_weights_half_at_most(name):
    model = relu_cnn()
    cells = images(model, 8).float().view(2, 4, 3, 32, 32)
    cells[:, 3] = cells[:, 0]
    found = scorer("difull", model, name)(montage(cells), CLASSES)
    assert 0 < found.scores.max() <= 0.5 + 1e-6
    maps = cells_of(found.maps)  # of both corners alike, whichever reaches the score
    torch.testing.assert_close(maps[:, 0], maps[:, 3])


def test_every_cell_has_its_class_and_score_in_gridpg():
    model = relu_cnn()
    x = grids(model)
    found = scorer("gridpg", model, "gradcam")(x, CLASSES)
    assert found.cells == (0, 1, 2, 3)
    assert found.maps.shape == (2, 4, 16, 16)
    [head] = gridpg(model)
    single = create("gradcam", head.model)(x, lambda _: CLASSES[:, 2:3]).maps[:, 0]
    torch.testing.assert_close(found.maps[:, 2], single)
    torch.testing.assert_close(found.scores[:, 2], localisation_score(single, torch.tensor([2, 2])))


REFUSED = {"cam", "fullgrad", "multilayer", "rollout", "chefer", "tokencut"}
"""Methods that need a head behind average pooling, or layers and attention that hold whole images."""


def refused(name, model, x):
    """By `misfit`, which `create` reports, or by the method itself."""
    [head, _] = difull(model)
    if METHODS[name].misfit(head.model) is None:
        with pytest.raises(MethodError):
            METHODS[name](head.model)(x, lambda logits: logits.argmax(dim=1, keepdim=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_in_difull_or_is_refused_with_a_reason(name):
    model = model_for(name)
    x = grids(model, 1)
    predicted = model.module(cells_of(x)[0]).argmax(dim=1)[None]
    chosen = {"side": 16} if name == "srmap" else parameters(name)

    if name in REFUSED:
        refused(name, model, x)
        return
    found = GridScorer("difull", model, lambda one: create(name, one, **chosen))(x, predicted, torch.tensor([7]))
    assert found.maps.shape[:2] == found.scores.shape == (1, 2)
    assert found.maps.isfinite().all()
    assert (found.maps != 0).any()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_is_left_as_it_was(setting):
    model = relu_cnn()
    before = state(model)
    good = scorer(setting, model, "gradcam")
    good(grids(model), CLASSES)
    with pytest.raises((IndexError, RuntimeError)):
        good(grids(model), CLASSES + 99)
    assert all(not module._forward_hooks for module in model.module.modules())
    assert not any(module.training for module in model.module.modules())
    after = state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_settings_agree_for_any_batch():
    model = relu_cnn()
    x = grids(model)
    for setting in SETTINGS:
        one = scorer(setting, model, "hirescam")
        whole = one(x, CLASSES)
        for n in range(2):
            part = one(x[n : n + 1], CLASSES[n : n + 1])
            torch.testing.assert_close(part.maps[0], whole.maps[n], rtol=1e-4, atol=1e-6)


def fixed_vit():
    torch.manual_seed(0)
    return loaded(timm.create_model("test_vit", img_size=64, num_classes=5, dynamic_img_size=False).eval(), size=64)


def test_networks_of_a_fixed_size_fit_difull_only():
    model = fixed_vit()
    for setting in ("gridpg", "dipart"):
        with pytest.raises(MethodError, match=r"cannot look at a grid.*fit difull only"):
            scorer(setting, model, "gradcam")
    assert scorer("difull", model, "layercam")(grids(model), CLASSES).scores.min() > 1 - 1e-6


def test_class_tokens_see_every_cell():
    model = tiny_vit()
    with pytest.raises(MethodError, match="comes with class tokens, which see every cell; use difull"):
        scorer("dipart", model, "gradcam")
    assert scorer("gridpg", model, "gradcam")(grids(model), CLASSES).maps.shape == (2, 4, 8, 8)


def test_an_unknown_setting_is_refused():
    with pytest.raises(MethodError, match="no setting is named 'gridpgg'; there are: gridpg, difull, dipart"):
        scorer("gridpgg", relu_cnn(), "gradcam")


def test_methods_of_the_input_may_look_at_the_layer_of_a_grid():
    model = relu_cnn()
    on_layer = GridScorer("difull", model, lambda one: OnLayer(one, lambda upper: create("inputxgradient", upper)))
    x = grids(model)
    torch.testing.assert_close(on_layer(x, CLASSES).maps, scorer("difull", model, "hirescam")(x, CLASSES).maps)


@pytest.mark.data
def test_a_trained_network_on_photographs_is_as_in_the_paper(shared_data):
    """GridPG: high at the last layer, near chance at the input. DiFull: perfect at the input, not with pooled weights.

    Same image in both corners: one photograph a class.
    """
    model = load(mobilenet_spec(shared_data))
    files = sorted((shared_data / "imagenet_sample").glob("*.JPEG"))[::60]
    pixels = np.stack([model.preprocessing.pixels(Image.open(file).convert("RGB")) for file in files])
    x = model.preprocessing.normalise(torch.tensor(pixels), torch.float32)
    with torch.no_grad():
        scores, predictions = model.module(x).softmax(dim=1).max(dim=1)
    labels = np.array([model.class_index(file.name.partition("_")[0]) for file in files])
    given = Candidates([file.name for file in files], predictions.numpy(), scores.numpy(), labels)

    def mean_score(setting, name):
        plan = plan_grids(given, count=2, repeat_corner=setting == "difull")
        found = scorer(setting, model, name)(montage(x[torch.tensor(plan.images)]), torch.tensor(plan.classes))
        return float(found.scores.mean())

    assert mean_score("gridpg", "gradcam") > 0.6
    assert 0.15 < mean_score("gridpg", "inputxgradient") < 0.5
    assert mean_score("difull", "inputxgradient") == pytest.approx(1.0, abs=1e-6)
    assert mean_score("difull", "gradcam") <= 0.5 + 1e-6
