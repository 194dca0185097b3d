"""Planted images as WebDataset tars, each beside its truth and what can be said of it in words."""

import io
import json
import tarfile
from typing import Protocol

from PIL import Image

from pipeline.bias.planted import ABSENT, CUE_COLOURS, DECOY_COLOURS, PlantedImage, PlantedSpec, image_key, render

JPEG_QUALITY = 92


class FileSystem(Protocol):
    """What is used of an fsspec file system, which itself is not typed."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Creates a folder (a bucket, on S3) and its parents."""

    def pipe_file(self, path: str, value: bytes) -> object:
        """Writes a whole file: on S3, one PUT."""


def write_tars(
    spec: PlantedSpec, fs: FileSystem, folder: str, *, shards: int, images_per_shard: int
) -> tuple[str, ...]:
    """Writes the first shards x images_per_shard images as WebDataset tars `planted-00000.tar` and so on.

    Each image has the members `<key>.jpg`, `<key>.cls` (class index) and `<key>.json` (label, cue,
    decoy, and in words what slices can be named by).
    Retry-safe: a rerun overwrites each shard, built in memory, with the same bytes.

    Args:
        spec: the data set.
        fs: an fsspec file system, local or remote.
        folder: where to write; created where it is absent.
        shards: number of tars.
        images_per_shard: images in each.

    Returns:
        The paths written, in order.

    Raises:
        ValueError: no image is asked for, or more than the specification has.
    """
    if min(shards, images_per_shard) < 1 or shards * images_per_shard > spec.n_images:
        raise ValueError(f"{shards} shards x {images_per_shard} images must be in [1, n_images={spec.n_images}]")
    fs.makedirs(folder, exist_ok=True)
    paths = tuple(f"{folder.rstrip('/')}/planted-{shard:05d}.tar" for shard in range(shards))
    for shard, path in enumerate(paths):
        fs.pipe_file(path, _tar(spec, range(shard * images_per_shard, (shard + 1) * images_per_shard)))
    return paths


def _tar(spec: PlantedSpec, indices: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            for suffix, payload in _members(spec, index).items():
                info = tarfile.TarInfo(f"{image_key(spec, index)}.{suffix}")  # mtime, uid and gid are 0: equal bytes
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def _members(spec: PlantedSpec, index: int) -> dict[str, bytes]:
    one = render(spec, index)
    jpeg = io.BytesIO()
    Image.fromarray(one.image).save(jpeg, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    truth = {
        "index": index,
        "seed": spec.seed,
        "label": one.label,
        "label_name": spec.classes[one.label],
        "cue": one.cue,
        "decoy": one.decoy,
        **_attributes(spec, one),
    }
    return {
        "jpg": jpeg.getvalue(),
        "cls": str(one.label).encode(),
        "json": json.dumps(truth, sort_keys=True).encode(),
    }


def _attributes(spec: PlantedSpec, one: PlantedImage) -> dict[str, str]:
    """What can be said of an image in words, for slices to be named by."""
    quadrant_names = ("upper left", "upper right", "lower left", "lower right")
    angle = f"{180 * one.cue // len(spec.classes)} degrees"
    cue = angle if spec.cue_kind == "background" else list(CUE_COLOURS)[one.cue]
    return {
        spec.cue_kind: "none" if one.cue == ABSENT else cue,
        "decoy_name": "none" if one.decoy == ABSENT else list(DECOY_COLOURS)[one.decoy],
        "core_quadrant": quadrant_names[one.quadrants[0]],
    }
