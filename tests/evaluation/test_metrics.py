"""Every metric of METRICS: its reference, its parameters, batches and chunks, and what it leaves of the model."""

import dataclasses

import pytest
import torch
from attribution.networks import relu_cnn
from evaluation.judged import FEW, METRICS, double_model, few, judged, slice_of
from reference.faithfulness import METRIC_REFERENCES

from pipeline.errors import MethodError
from pipeline.evaluation.metric import Explained
from pipeline.evaluation.metrics import create

torch.set_num_threads(1)

CHANGED = {
    "insertion": [{"step": 100}, {"kernel": 5}, {"sigma": 1.0}],
    "deletion": [{"step": 100}],
    "mufidelity": [{"grid": 4}, {"subset": 0.4}, {"samples": 9}, {"seed": 5}],
    "infidelity": [{"side": 0.5}, {"samples": 9}, {"normalise": False}, {"seed": 5}],
    "maxsensitivity": [{"radius": 0.2}, {"samples": 1}, {"seed": 5}],
    "mprt": [{"points": None}, {"points": 100}, {"seed": 5}],
    "randomlogit": [{"seed": 5}],
}
"""Parameters of each metric away from those of `FEW`."""
CASES = [(name, {}) for name in METRICS] + [(name, change) for name in CHANGED for change in CHANGED[name]]


@pytest.fixture(scope="module")
def model():
    return double_model()


def same(found, expected, tolerance=0.0):
    torch.testing.assert_close(found.value, expected.value, rtol=0, atol=tolerance)
    assert found.axis == expected.axis
    assert found.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        torch.testing.assert_close(found.parts[name], part, rtol=0, atol=tolerance)


def compare(name, change, model, subject, batch):
    """Ours beside the reference, image by image and part by part."""
    found = few(name, **change)(subject, batch)
    parameters = {**FEW.get(name, {}), **change}
    rows = zip(batch.x, batch.maps.double(), batch.targets.tolist(), batch.seeds.tolist(), strict=True)
    for n, row in enumerate(rows):
        value, parts = METRIC_REFERENCES[name](model.module, *row, **parameters)
        assert found.value[n].item() == pytest.approx(value, abs=2e-5)  # methods give float32
        assert found.parts.keys() == parts.keys()
        for key, part in parts.items():
            torch.testing.assert_close(found.parts[key][n].cpu(), torch.tensor(part).double(), rtol=0, atol=2e-5)
            assert found.parts[key].ndim == 1 or found.parts[key].shape == (2, len(found.axis))


@pytest.mark.parametrize(("name", "change"), CASES, ids=str)
def test_metric_equals_its_reference(name, change, model):
    assert name in METRIC_REFERENCES, f"metric {name} has no reference; add one to tests/reference"
    compare(name, change, model, *judged(model, count=2))


@pytest.mark.parametrize("name", ["insertion", "deletion", "morf", "lerf", "mufidelity", "infidelity"])
def test_maps_of_a_layer_equal_the_reference(name, model):
    """Fewer cells than pixels, and many of them equal: what a CAM gives."""
    subject, batch = judged(model, count=2)
    maps = torch.nn.functional.avg_pool2d(batch.maps[:, None], 5)[:, 0].relu()
    compare(name, {}, model, subject, dataclasses.replace(batch, maps=maps))


@pytest.mark.parametrize(("name", "change"), [(n, c) for n in CHANGED for c in CHANGED[n]], ids=str)
def test_every_parameter_changes_something(name, change, model):
    subject, batch = judged(model)
    assert few(name, **change)(subject, batch).value.tolist() != few(name)(subject, batch).value.tolist()


@pytest.mark.parametrize("name", ["insertion", "deletion", "morf", "lerf"])
def test_the_seed_decides_the_order_of_equal_pixels(name, model):
    subject, batch = judged(model)
    flat = dataclasses.replace(batch, maps=torch.zeros(3, 4, 4))
    values = {seed: few(name, seed=seed)(subject, flat).parts for seed in (0, 5)}
    assert any(not torch.equal(values[0][part], values[5][part]) for part in values[0])


@pytest.mark.parametrize("name", METRICS)
def test_values_do_not_depend_on_batch_or_chunk(name, model):
    subject, batch = judged(model)
    whole = few(name)(subject, batch)
    for chunk in (1, 5, 64):
        same(few(name, chunk=chunk)(subject, batch), whole, 1e-6)
    alone = [few(name)(subject, slice_of(batch, slice(n, n + 1))) for n in range(3)]
    torch.testing.assert_close(torch.cat([one.value for one in alone]), whole.value, rtol=0, atol=1e-6)
    turned = few(name)(subject, slice_of(batch, torch.tensor([2, 0, 1])))
    torch.testing.assert_close(turned.value, whole.value[[2, 0, 1]], rtol=0, atol=1e-6)
    assert whole.value.shape == (3,)
    assert whole.value.dtype == torch.float64


@pytest.mark.parametrize("name", METRICS)
def test_float32_agrees_with_float64(name, model):
    """With batch norms folded and weights in single precision, as in a job."""
    single, expected = few(name)(*judged(relu_cnn())), few(name)(*judged(model))
    torch.testing.assert_close(single.value, expected.value, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", METRICS)
def test_the_model_is_left_as_it_was(name, model):
    subject, batch = judged(model)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    random = torch.get_rng_state()
    few(name)(subject, batch)
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", METRICS)
def test_a_pass_never_holds_more_than_a_chunk(name, model):
    subject, batch = judged(model)
    seen = []

    def counting(x):
        seen.append(len(x))
        return subject.logits(x)

    def explain(x, targets, seeds):
        seen.append(len(x))
        return subject.explain(x, targets, seeds)

    few(name, chunk=2)(dataclasses.replace(subject, logits=counting, explain=explain), batch)
    assert all(count <= 2 for count in seen)
    assert seen or name == "mprt"


def test_a_pass_of_larger_images_holds_fewer():
    parts = [list(few("deletion").parts_of(16, torch.empty(1, 3, side, side))) for side in (224, 448)]
    assert [len(one) for one in parts] == [1, 4]


@pytest.mark.parametrize("name", METRICS)
def test_traits_say_what_the_metric_is(name):
    traits = METRICS[name].traits
    assert traits.reads in {"probability", "logit", "prediction", "map"}
    assert traits.source
    assert traits.forwards


def test_insertion_and_deletion_do_not_compare_models():
    assert not METRICS["insertion"].traits.across_models
    assert not METRICS["deletion"].traits.across_models


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("insertion", {"chunk": 0}, "chunk"),
        ("insertion", {"step": 0}, "step"),
        ("insertion", {"kernel": 4}, "odd"),
        ("insertion", {"sigma": 0}, "sigma"),
        ("mufidelity", {"grid": 1}, "grid"),
        ("mufidelity", {"samples": 1}, "samples"),
        ("mufidelity", {"subset": 0.001}, "subset"),
        ("mufidelity", {"subset": 1.0}, "subset"),
        ("infidelity", {"side": 0}, "side"),
        ("infidelity", {"samples": 0}, "samples"),
        ("maxsensitivity", {"radius": 0}, "radius"),
        ("maxsensitivity", {"samples": 0}, "samples"),
        ("mprt", {"points": 0}, "points"),
        ("morf", {"steps": 3}, "no parameter steps; it has: chunk, seed"),
        ("faith", {}, "no metric is named 'faith'; there are: insertion"),
    ],
)
def test_wrong_parameters_are_refused(name, wrong, message):
    with pytest.raises(MethodError, match=message):
        create(name, **wrong)


def test_a_batch_that_does_not_fit_together_is_refused():
    x, ones = torch.zeros(2, 3, 4, 4), torch.ones(2, dtype=torch.int64)
    with pytest.raises(MethodError, match="as many maps, targets and seeds"):
        Explained(x, torch.zeros(3, 2, 2), ones, ones)
    with pytest.raises(MethodError, match="not finite"):
        Explained(x, torch.full((2, 2, 2), torch.nan), ones, ones)
