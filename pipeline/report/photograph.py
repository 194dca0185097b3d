"""The photographs of a run, read again from where its plan says they are."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from pipeline.preprocessing import Preprocessing
from pipeline.report.explanation import Place
from pipeline.stream import sources
from pipeline.stream.decode import Decoder
from pipeline.stream.ledger import Ledger
from pipeline.stream.shards import Shard

THREADS = 8  # shards read at a time: storage is what is waited for
Found: TypeAlias = Image.Image | str
"""RGB as the network saw it, or why it could not be had."""


def photographs(ledger: Ledger, run: Mapping[str, Any], places: Iterable[Place]) -> dict[Place, Found]:
    """Reads images again; each shard once, up to the last row that is asked for.

    Args:
        ledger: of the run's output.
        run: content of `run.json`.
        places: of the images.

    Returns:
        An image for every place, or the reason why there is none: nothing is raised for an image that has gone.
    """
    wanted = defaultdict(set)
    for shard, row in places:
        wanted[shard].add(row)
    shards = {shard.name: shard for shard in ledger.plan() or ()}
    decoder = Decoder(preprocessing_of(run), max_pixels=run["spec"]["max_pixels"])
    with ThreadPoolExecutor(THREADS) as pool:
        tasks = [
            pool.submit(_of_shard, name, shards.get(name), rows, decoder, ledger.storage)
            for name, rows in wanted.items()
        ]
        return {place: image for task in tasks for place, image in task.result().items()}


def preprocessing_of(run: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that `run.json` states."""
    return TypeAdapter(Preprocessing).validate_python(run["model"]["preprocessing"])


def _of_shard(
    name: str, shard: Shard | None, rows: set[int], decoder: Decoder, storage: dict[str, Any]
) -> dict[Place, Found]:
    if shard is None:
        return {(name, row): "the run's plan does not name its shard" for row in rows}
    found: dict[Place, Found] = {(name, row): "the shard does not hold it any more" for row in rows}
    try:
        for sample in sources.read(shard, storage, limit=max(rows) - shard.first + 1):
            if sample.row in rows:
                found[name, sample.row] = str(sample.error) if sample.error else _decoded(decoder, sample.data)
    except Exception as error:  # noqa: BLE001 - whatever the storage says: the page is made without the image
        reason = f"{type(error).__name__}: {error}"
        return {place: one if isinstance(one, Image.Image) else reason for place, one in found.items()}
    return found


def _decoded(decoder: Decoder, data: bytes) -> Found:
    try:
        pixels = decoder.decode(data).pixels
    except Exception as error:  # noqa: BLE001 - the file may have been replaced by anything since
        return f"{type(error).__name__}: {error}"
    return rgb(pixels)


def rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    """An RGB image of (H, W, C) uint8 pixels, grey or colour."""
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")
