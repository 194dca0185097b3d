"""The golden set: labelled images that the model must get right before a job spends a night."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import GoldenError, RowError
from pipeline.model import LoadedModel
from pipeline.stream.decode import Decoder
from pipeline.stream.sources import listing, manifest
from pipeline.stream.storage import open_filesystem

BATCH = 16
MAX_IMAGES = 1000


def check(address: str, least: float, model: LoadedModel, storage: dict[str, Any], *, max_pixels: int) -> float:
    """Predicts the golden images.

    Args:
        address: manifest with labels.
        least: share of correct predictions that is required.
        model: float32, on the CPU.
        storage: fsspec options.
        max_pixels: see `JobSpec`.

    Returns:
        Share of images whose most probable class is their label.

    Raises:
        GoldenError: the share is less than required, or an image has no label or cannot be decoded.
    """
    decoder = Decoder(model.preprocessing, max_pixels=max_pixels)
    correct = count = 0
    wrong: list[str] = []
    for entries in _batches(address, storage):
        pixels = np.stack([_pixels(entry, storage, decoder) for entry in entries])
        labels = np.array([_label(entry, model) for entry in entries])
        with torch.inference_mode():
            found = (
                model.module(model.preprocessing.normalise(torch.from_numpy(pixels), torch.float32)).argmax(1).numpy()
            )
        wrong += [
            f"{entry.sample_id} is {model.labels[label]!r}, predicted {model.labels[guess]!r}"
            for entry, label, guess in zip(entries, labels, found, strict=True)
            if label != guess
        ]
        correct, count = correct + int((found == labels).sum()), count + len(entries)
    if count == 0:
        raise GoldenError(f"golden set {address} has no images")
    if correct / count < least:
        raise GoldenError(
            f"golden set: top-1 {correct / count:.3f} on {count} images, required {least:.3f}. The weights load, but "
            "the model does not predict as it should: check --mean, --std, --interpolation, --size and the "
            f"constructor's arguments (padding mode). Wrong for example: {'; '.join(wrong[:3])}"
        )
    return correct / count


def _batches(address: str, storage: dict[str, Any]) -> Iterator[list[listing.Entry]]:
    entries = islice(manifest.entries(address, storage, image_field=None, label_field=None, id_field=None), MAX_IMAGES)
    while batch := list(islice(entries, BATCH)):
        yield batch


def _pixels(entry: listing.Entry, storage: dict[str, Any], decoder: Decoder) -> NDArray[np.uint8]:
    filesystem, path = open_filesystem(entry.uri, storage)
    try:
        return decoder.decode(filesystem.cat_file(path)).pixels
    except FileNotFoundError as error:
        raise GoldenError(f"golden image {entry.uri} does not exist; mend the manifest") from error
    except RowError as error:
        raise GoldenError(
            f"golden image {entry.uri} cannot be decoded ({error}); replace it, or leave it out"
        ) from error


def _label(entry: listing.Entry, model: LoadedModel) -> int:
    if entry.label is None:
        raise GoldenError(f"golden image {entry.sample_id} has no label; add a `label` column to the manifest")
    return model.class_index(entry.label)
