"""Effects of models whose use of the cue is known, and judgements of maps: true, reversed and empty ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import bias as reference
from torch import Tensor

from pipeline.bias.counterfactual import Cases, effect, judged, planted_cases, table
from pipeline.bias.planted import regime
from pipeline.evaluation.controls import CONTROLS

SIDE = 12


def cases(seed: int = 0, images: int = 90) -> Cases:
    """Cue and core of sizes that depend on the class, in random places; effects that do not."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (images,), generator=generator)
    masks = torch.zeros(3, images, SIDE, SIDE, dtype=torch.bool)
    for image, one in enumerate(classes.tolist()):
        quadrants = torch.randperm(4, generator=generator)[:3].tolist()
        for mask, quadrant, side in zip(masks, quadrants, (2 + one, 5 - one, 3), strict=True):
            top, left = 6 * (quadrant // 2), 6 * (quadrant % 2)
            mask[image, top : top + side, left : left + side] = True
    effects = torch.rand(2, images, generator=generator).double() * 4
    x = torch.rand(images, 3, SIDE, SIDE, generator=generator)
    return Cases(x, classes, classes, *effects, *masks)


def truthful(some: Cases) -> Tensor:
    """Maps whose density is the effect."""
    cue, core = (e[:, None, None].float() * m for e, m in zip(*effects_and_masks(some), strict=True))
    return cue + core + 1e-3


def effects_and_masks(some: Cases) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (some.cue_effect, some.core_effect), (some.cue_masks, some.core_masks)


def test_effect_is_the_mean_over_other_values() -> None:
    x = torch.rand(4, 3, 2, 2)
    targets = torch.tensor([0, 1, 0, 1])

    def score(images: Tensor) -> Tensor:
        return torch.stack([images.sum(dim=(1, 2, 3)), 2 * images[:, 0, 0, 0]], dim=1)

    others = [torch.rand(4, 3, 2, 2) for _ in range(3)]
    found = effect(score, x, targets, iter(others))
    for image, target in enumerate(targets.tolist()):
        mean = np.mean([float(score(other)[image, target]) for other in others])
        assert float(found[image]) == pytest.approx(float(score(x)[image, target]) - mean, abs=1e-5)
    with pytest.raises(ValueError, match="at least one alternative"):
        effect(score, x, targets, [])


def test_maps_that_say_the_truth_agree() -> None:
    found = judged("truth", truthful(cases()), cases())
    assert found.correlation.value > 0.9
    assert found.signs.value == 1.0
    assert found.pointing.value.value == 1.0
    assert found.energy.value.low > found.energy.chance
    assert found.decoy.value.high < found.decoy.chance
    assert found.images == 90
    assert json.loads(json.dumps(found.to_json()))["signs"]["hits"] == 90


def test_maps_that_say_the_reverse_disagree() -> None:
    some = cases()
    found = judged("reverse", truthful(replace(some, cue_effect=some.core_effect, core_effect=some.cue_effect)), some)
    assert found.correlation.value < -0.9
    assert found.signs.value == 0.0


def test_correlation_is_that_of_the_definition() -> None:
    some = cases()
    maps = torch.rand(90, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    found = judged("random", maps, some)

    def density(masks: Tensor) -> np.ndarray:
        return np.array([float(one[mask].mean() / one.mean()) for one, mask in zip(maps, masks, strict=True)])

    ratio = np.log(density(some.cue_masks)) - np.log(density(some.core_masks))
    difference = (some.cue_effect - some.core_effect).numpy()
    expected = reference.within_class_spearman(ratio, difference, some.classes.numpy())
    assert found.correlation.value == pytest.approx(expected, abs=1e-6)
    assert found.signs.hits == ((ratio > 0) == (difference > 0)).sum()
    larger = max((difference > 0).mean(), (difference <= 0).mean())
    assert found.signs_chance == pytest.approx(larger)
    assert found.correlation.low < expected < found.correlation.high


def test_areas_that_follow_the_class_are_no_agreement() -> None:
    """Areas follow the class. Masses of any map do then too, and agree with effects that do, but not within classes."""
    some = cases()
    by_class = replace(some, cue_effect=some.cue_effect * 0.1 + some.classes, core_effect=-some.classes.double())
    maps = torch.rand(90, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mass = [(maps * mask).sum(dim=(1, 2)) for mask in (some.cue_masks, some.core_masks)]
    difference = by_class.cue_effect - by_class.core_effect
    pooled = np.corrcoef((mass[0].log() - mass[1].log()).numpy(), difference.numpy())[0, 1]
    found = judged("random", maps, by_class).correlation
    assert pooled > 0.8
    assert found.low < 0 < found.high


def test_a_map_without_evidence_says_nothing() -> None:
    found = judged("none", -torch.ones(90, 6, 6), cases())
    assert found.correlation is None
    assert found.energy.value.value == 0.0
    small = cases(images=6)
    assert judged("truth", truthful(small), small).correlation is None


def test_images_without_a_cue_are_left_out() -> None:
    some = cases()
    masks = some.cue_masks.clone()
    masks[:10] = False
    assert judged("truth", truthful(some), replace(some, cue_masks=masks)).images == 80
    with pytest.raises(ValueError, match="no image has both"):
        judged("truth", truthful(some), replace(some, cue_masks=masks & False))


def test_cases_that_do_not_belong_together_are_refused() -> None:
    some = cases()
    with pytest.raises(ValueError, match="as many targets, classes, effects and masks"):
        replace(some, cue_effect=some.cue_effect[1:])
    with pytest.raises(ValueError, match="not finite"):
        replace(some, cue_effect=some.cue_effect / 0)


def test_controls_are_in_every_table_and_chunks_change_nothing() -> None:
    some = cases()
    explained = {float(one.sum()): at for at, one in enumerate(some.x)}

    def explain(x: Tensor, _targets: Tensor, _seeds: Tensor) -> Tensor:
        return truthful(some)[[explained[float(one.sum())] for one in x]]

    rows = table({"truth": explain}, some, chunk=7)
    assert rows[0].name == "truth"
    assert {row.name for row in rows} == {"truth", *CONTROLS}
    assert rows == table({"truth": explain}, some, chunk=90)
    assert all(row.correlation.low < 0 < row.correlation.high for row in rows if row.name.startswith("random"))


def test_effects_of_a_model_that_sees_the_tag_alone() -> None:
    """The score of class k is the share of pixels near the k-th tag's colour."""
    spec = regime("partial", n_images=12, seed=3)
    colours = torch.tensor([(255, 20, 147), (120, 230, 20), (255, 214, 0), (0, 200, 255)]) / 127.5 - 1

    def score(x: Tensor) -> Tensor:
        apart = (x[:, None] - colours[None, :, :, None, None]).abs().amax(dim=2)
        return (apart < 0.02).float().mean(dim=(2, 3))

    found = planted_cases(spec, range(12), score, chunk=5)
    assert (found.core_effect == 0).all()
    assert (found.cue_effect > 0.01).all()
    assert found.cue_is_larger.all()
    with pytest.raises(ValueError, match="has no cue"):
        planted_cases(regime("demo", n_images=12), range(12), score)
    with pytest.raises(ValueError, match="no image is asked for"):
        planted_cases(spec, [], score)
