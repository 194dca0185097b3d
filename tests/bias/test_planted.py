"""The planted benchmark keeps its promises: associations, exact masks, exact counterfactuals, equal bytes."""

import io
import json
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency

from pipeline.bias.planted import (
    ABSENT,
    CORE_JITTER,
    CUE_COLOURS,
    DECOY_COLOURS,
    REGIMES,
    SHAPES,
    PlantedImage,
    PlantedSpec,
    counterfactual,
    image_key,
    regime,
    render,
    stack,
)
from pipeline.bias.planted_tars import write_tars

CLASSES = 4
MANY = 1500
CHANGES = [{"cue": 2}, {"cue": ABSENT}, {"core": 3}, {"core": ABSENT}, {"cue": 1, "core": 2}]


def small(name: str, **changes: object) -> PlantedSpec:
    """A regime at 32 px, where statistics over many images are cheap."""
    return replace(regime(name, n_images=MANY), size=32, **changes)


def rendered(spec: PlantedSpec, count: int | None = None) -> list[PlantedImage]:
    return [render(spec, index) for index in range(spec.n_images if count is None else count)]


def columns(images: list[PlantedImage]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    labels, cues, decoys = (np.array([getattr(one, name) for one in images]) for name in ("label", "cue", "decoy"))
    return labels, cues, decoys, np.array([one.quadrants for one in images])


def near(share: float, probability: float, count: int) -> bool:
    """Whether a share of `count` draws is within four standard errors of its probability."""
    return abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / count)


def independent(a: np.ndarray, b: np.ndarray) -> bool:
    table = np.array([[np.sum((a == x) & (b == y)) for y in np.unique(b)] for x in np.unique(a)])
    return bool(chi2_contingency(table).pvalue > 1e-3)


def equal(a: PlantedImage, b: PlantedImage) -> bool:
    return all(np.array_equal(getattr(a, one.name), getattr(b, one.name)) for one in fields(PlantedImage))


def touched(one: PlantedImage, change: dict[str, int]) -> np.ndarray:
    """The union of the masks of what a change names."""
    return np.logical_or.reduce([getattr(one, f"{name}_mask") for name in change])


@pytest.mark.parametrize("name", [name for name, spec in REGIMES.items() if spec.cue_classes is None])
def test_cue_agrees_with_the_label_as_often_as_rho_and_is_uniform_otherwise(name: str) -> None:
    spec = small(name)
    labels, cues, _, _ = columns(rendered(spec))
    assert near(float(np.mean(cues == labels)), spec.rho, MANY)
    wrong = (cues - labels)[cues != labels] % CLASSES
    for offset in range(1, CLASSES):
        assert near(float(np.mean(wrong == offset)), 1 / (CLASSES - 1), len(wrong))
    assert independent(labels, cues) == (name == "none")


def test_cued_class_alone_carries_its_tag_and_others_rarely() -> None:
    spec = small("demo", rho=0.7, cue_classes=(2,))
    labels, cues, _, _ = columns(rendered(spec))
    cued = labels == 2
    assert set(cues) == {ABSENT, 2}
    assert near(float(np.mean(cues[cued] == 2)), 0.7, int(cued.sum()))
    assert near(float(np.mean(cues[~cued] == 2)), 0.1, int((~cued).sum()))


@pytest.mark.parametrize("name", REGIMES)
def test_decoy_and_places_carry_no_label(name: str) -> None:
    labels, cues, decoys, quadrants = columns(rendered(small(name)))
    for values in (labels, decoys):
        assert all(near(float(np.mean(values == value)), 1 / CLASSES, MANY) for value in range(CLASSES))
    assert independent(labels, decoys)
    assert independent(cues, decoys)
    for element in range(3):
        assert independent(labels, quadrants[:, element])
    assert all(len(set(row)) == 3 for row in quadrants.tolist())


@pytest.mark.parametrize("name", REGIMES)
def test_masks_have_their_areas_lie_in_their_quadrants_and_are_disjoint(name: str) -> None:
    spec = regime(name, n_images=40)
    half = spec.size // 2
    for one in rendered(spec):
        local = {"core": one.core_mask, "decoy": one.decoy_mask}
        if spec.cue_kind == "tag":
            local["cue"] = one.cue_mask
            assert one.cue_mask.sum() == (0 if one.cue == ABSENT else spec.tag_px**2)
        assert one.decoy_mask.sum() == spec.tag_px**2
        assert np.sum(list(local.values()), axis=0).max() == 1
        for element, quadrant in zip(("core", "cue", "decoy"), one.quadrants, strict=True):
            top, left = divmod(quadrant, 2)
            ours = np.zeros((spec.size, spec.size), dtype=bool)
            ours[top * half : (top + 1) * half, left * half : (left + 1) * half] = True
            assert not (local.get(element, ours) & ~ours).any()


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("name", REGIMES)
def test_counterfactual_differs_within_the_changed_masks_alone(name: str, change: dict[str, int]) -> None:
    spec = regime(name, n_images=25)
    differing = 0
    for index in range(spec.n_images):
        before, after = render(spec, index), counterfactual(spec, index, **change)
        allowed = touched(before, change) | touched(after, change)
        different = (before.image != after.image).any(axis=2)
        assert not (different & ~allowed).any()
        assert np.array_equal(before.decoy_mask, after.decoy_mask)
        assert after.cue == change.get("cue", before.cue)
        assert after.label == change.get("core", before.label)
        differing += bool(different.any())
    assert differing >= sum(_changes(render(spec, index), change) for index in range(spec.n_images)) > 0


def _changes(one: PlantedImage, change: dict[str, int]) -> bool:
    return any({"cue": one.cue, "core": one.label}[name] != value for name, value in change.items())


@pytest.mark.parametrize("element", ["cue", "core"])
def test_masks_are_tight(element: str) -> None:
    spec = regime("full", n_images=20)
    for index in range(spec.n_images):
        before = render(spec, index)
        after = counterfactual(spec, index, **{element: ABSENT})
        mask = getattr(before, f"{element}_mask")
        assert not getattr(after, f"{element}_mask").any()
        assert (before.image != after.image).any(axis=2)[mask].mean() > 0.95


def test_background_cue_is_seen_wherever_nothing_covers_it() -> None:
    spec = regime("background", n_images=10)
    for index in range(spec.n_images):
        one, plain = render(spec, index), counterfactual(spec, index, cue=ABSENT)
        opaque = ~one.cue_mask
        assert opaque.sum() > one.decoy_mask.sum()
        assert (opaque <= (one.core_mask | one.decoy_mask)).all()
        assert (one.image != plain.image).any(axis=2)[one.cue_mask].mean() > 0.9
        assert not plain.cue_mask.any()


def test_counterfactual_without_a_change_is_the_image_and_a_missing_tag_can_be_pasted() -> None:
    spec = regime("demo", n_images=30)
    for index in range(spec.n_images):
        one = render(spec, index)
        assert equal(one, counterfactual(spec, index))
        assert equal(one, counterfactual(spec, index, cue=one.cue, core=one.label))
        assert counterfactual(spec, index, cue=3).cue_mask.sum() == spec.tag_px**2


def test_images_depend_on_neither_order_nor_number() -> None:
    spec = regime("partial", n_images=12)
    forward = rendered(spec)
    backward = [render(spec, index) for index in reversed(range(12))][::-1]
    among_more = rendered(replace(spec, n_images=500), 12)
    for one, again, other in zip(forward, backward, among_more, strict=True):
        assert equal(one, again)
        assert equal(one, other)
    images, labels = stack(spec, [7, 2])
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(images, np.stack([forward[7].image, forward[2].image]))
    assert labels.tolist() == [forward[7].label, forward[2].label]


def test_regimes_of_one_seed_share_their_scenes() -> None:
    for index in range(20):
        strong, weak = (render(regime(name, n_images=20, seed=5), index) for name in ("full", "none"))
        assert np.array_equal(strong.core_mask, weak.core_mask)
        assert not ((strong.image != weak.image).any(axis=2) & ~(strong.cue_mask | weak.cue_mask)).any()


@pytest.mark.parametrize(
    "change",
    [
        {"rho": 0.2},
        {"cue_kind": "background"},
        {"cue_classes": (1,)},
        {"decoy": False},
        {"classes": ("ring", "hexagon", "square", "triangle")},
        {"size": 64},
        {"core_scale": 0.3},
        {"core_contrast": 0.2},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_images(change: dict[str, object]) -> None:
    spec = regime("full", n_images=30)
    assert not np.array_equal(stack(spec, range(30))[0], stack(replace(spec, **change), range(30))[0])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_its_own_and_fits_its_quadrant_at_the_largest_size(name: str) -> None:
    other = next(shape for shape in SHAPES if shape != name)
    spec = PlantedSpec(n_images=60, rho=0.5, classes=(name, other), size=64, core_scale=0.38)
    for index in range(spec.n_images):
        one = counterfactual(spec, index, core=0)
        quadrants = one.core_mask.reshape(2, 32, 2, 32).any(axis=(1, 3)).ravel()
        assert quadrants.nonzero()[0].tolist() == [one.quadrants[0]]
        box = np.argwhere(one.core_mask)
        assert np.ptp(box, axis=0).max() > 0.7 * spec.core_scale * (1 - CORE_JITTER) * spec.size
        assert not np.array_equal(one.core_mask, counterfactual(spec, index, core=1).core_mask)


def test_palettes_are_disjoint_and_long_enough() -> None:
    assert not set(CUE_COLOURS.values()) & set(DECOY_COLOURS.values())
    assert min(len(CUE_COLOURS), len(DECOY_COLOURS)) >= len(SHAPES)
    spec = PlantedSpec(n_images=1, rho=1.0, classes=tuple(SHAPES))
    shown = {tuple(_middle(counterfactual(spec, 0, cue=value))) for value in range(len(SHAPES))}
    assert shown == set(CUE_COLOURS.values())


def _middle(one: PlantedImage) -> list[int]:
    y, x = np.argwhere(one.cue_mask).mean(axis=0).astype(int)
    return one.image[y, x].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_images": 0}, "n_images"),
        ({"rho": 1.2}, "rho"),
        ({"cue_kind": "smell"}, "cue_kind"),
        ({"classes": ("circle", "circle")}, "distinct"),
        ({"classes": ("circle", "sphere")}, "must come from"),
        ({"cue_classes": (4,)}, "cue_classes"),
        ({"cue_classes": ()}, "cue_classes"),
        ({"size": 33}, "size"),
        ({"core_scale": 0.0}, "core_scale"),
        ({"core_scale": 0.6}, "does not fit"),
        ({"core_contrast": 0.0}, "core_contrast"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_specification_that_cannot_hold_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(REGIMES["full"], **change)


def test_wrong_arguments_are_refused() -> None:
    spec = regime("full", n_images=3)
    with pytest.raises(ValueError, match="regime must be one of"):
        regime("fullest", n_images=3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"\[0, 3\)"):
            render(spec, index)
    with pytest.raises(ValueError, match="core must be"):
        counterfactual(spec, 0, core=4)
    with pytest.raises(ValueError, match="2 shards x 2 images"):
        write_tars(spec, fsspec.filesystem("memory"), "/planted", shards=2, images_per_shard=2)


def test_tars_hold_the_images_and_their_truth(tmp_path: Path) -> None:
    spec = regime("demo", n_images=7, seed=3)
    paths = write_tars(spec, fsspec.filesystem("file"), str(tmp_path / "a" / "b"), shards=2, images_per_shard=3)
    assert [Path(path).name for path in paths] == ["planted-00000.tar", "planted-00001.tar"]
    for shard, path in enumerate(paths):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
            assert all(member.mtime == member.uid == member.gid == 0 for member in tar.getmembers())
        assert len(members) == 9
        for index in range(3 * shard, 3 * shard + 3):
            key, one = image_key(spec, index), render(spec, index)
            pixels = np.asarray(Image.open(io.BytesIO(members[f"{key}.jpg"])), dtype=float)
            assert abs(pixels - one.image).mean() < 4
            assert int(members[f"{key}.cls"]) == one.label
            truth = json.loads(members[f"{key}.json"])
            assert (truth["label"], truth["cue"], truth["decoy"]) == (one.label, one.cue, one.decoy)
            assert (truth["index"], truth["seed"]) == (index, 3)
            assert truth["label_name"] == spec.classes[one.label]
            assert truth["tag"] == ("none" if one.cue == ABSENT else list(CUE_COLOURS)[one.cue])


@pytest.mark.parametrize("name", REGIMES)
def test_tars_are_equal_on_a_rerun(name: str, tmp_path: Path) -> None:
    spec, fs = regime(name, n_images=6), fsspec.filesystem("file")
    first, second = (
        [Path(path).read_bytes() for path in write_tars(spec, fs, str(tmp_path / run), shards=2, images_per_shard=3)]
        for run in ("one", "two")
    )
    assert first == second
    assert first[0] != first[1]
