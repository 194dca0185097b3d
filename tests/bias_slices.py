"""A discovery made by a real job: a tiny network that knows nothing but a planted cue, and images where it fails."""

from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import torch

from pipeline.bias import planted, tinycnn
from pipeline.bias.finding import findings
from pipeline.bias.planted_tars import write_tars
from pipeline.jobs.bias import Discovery, bias
from schemas.bias import BiasSpec

IMAGES, SHARDS, SIDE = 240, 2, 48
TRAINING = 240
HOSTILE = (
    '<img src="https://example.org/x.png" onerror="document.title = 1">',
    "</script></style></svg><script>document.title = 2</script>",
)
"""Names of the classes, which try to be HTML."""


@dataclass(frozen=True)
class Found:
    """What the page is made of.

    Attributes:
        failing: slices that carry the other class's cue.
        calm: the same images, in random slices.
        images: their folder.
    """

    failing: Discovery
    calm: Discovery
    images: Path


def found_slices(folder: Path) -> Found:
    """Trains on a cue that is always right, and looks at images of which half carry the other class's."""
    trained = planted.PlantedSpec(n_images=TRAINING, rho=1.0, classes=("circle", "hexagon"), size=SIDE, seed=1)
    pixels, labels = planted.stack(trained, range(TRAINING))
    network = tinycnn.train(torch.from_numpy(pixels), torch.from_numpy(labels), num_classes=2, epochs=4)
    tinycnn.save(network, folder / "network.safetensors")
    (folder / "labels.txt").write_text("\n".join(HOSTILE))
    seen = replace(trained, n_images=IMAGES, rho=0.5, seed=2)
    images = folder / "images"
    write_tars(seen, fsspec.filesystem("file"), str(images), shards=SHARDS, images_per_shard=IMAGES // SHARDS)
    failing = bias(_spec(folder, images))
    return Found(failing, _calm(failing), images)


def _spec(folder: Path, images: Path) -> BiasSpec:
    return BiasSpec(
        input=(str(images),),
        output=str(folder / "bias"),
        model="module:pipeline.bias.tinycnn:tiny_cnn",
        model_args={"num_classes": 2},
        weights=str(folder / "network.safetensors"),
        labels=str(folder / "labels.txt"),
        size=(SIDE, SIDE),
        mean=tinycnn.MEAN,
        std=tinycnn.STD,
        attributes=("tag", "core_quadrant"),
        cues=("tag",),
        slicers={"domino": {"components": 4}, "random": {"slices": 3}},
        runner="local",
        progress="none",
    )


def _calm(failing: Discovery) -> Discovery:
    """The same images sliced at random, as if nothing else had been tried."""
    chance = next(one for one in failing.trials if one.slicer == "random")
    described = findings(failing.images, chance, failing.names, captions=None, seed=0, most=4)
    return replace(failing, trials=(chance,), findings=described)
