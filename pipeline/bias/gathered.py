"""What bias discovery holds in memory of an explained run: labelled images with predictions, maps and embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bias.slicing.slicer import Evidence
from pipeline.errors import InputError
from pipeline.measuring import rank
from pipeline.stream.finished import FinishedRun
from pipeline.stream.storage import open_filesystem
from schemas.embeddings import COLUMNS, DESCRIPTIONS, Space

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MEMORY = 4 * 2**30
"""Bytes of arrays that are held; images beyond them are left out, and this is said."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """N labelled images, in the order of the run's files.

    Attributes:
        sample_ids: N identities.
        uris: N addresses of the images.
        labels: (N,) int64.
        predictions: (N,) int64.
        probabilities: (N, K) float32, see `spread`.
        maps: (N, h, w) float32, raw and signed, of the first target.
        embeddings: (N, D) float32 by space; NaN where an image has no evidence.
        descriptions: (N, D) float32 by space, of `pipeline.bias.description`; NaN where an image has no evidence.
        attributes: N texts, or None, by name.
        statements: what a reader must know of the choice.
    """

    sample_ids: tuple[str, ...]
    uris: tuple[str, ...]
    labels: Ints
    predictions: Ints
    probabilities: Floats
    maps: Floats
    embeddings: Mapping[Space, Floats]
    descriptions: Mapping[Space, Floats]
    attributes: Mapping[str, tuple[str | None, ...]]
    statements: tuple[str, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def embedded(self, space: Space) -> Bools:
        """(N,) whether an image has an embedding in a space."""
        return np.asarray(np.isfinite(self.embeddings[space][:, 0]))

    def halves(self, seed: int) -> tuple[Ints, Ints]:
        """Positions of the images that slices are found on, and of those that confirm them; drawn by their ids."""
        first = np.array([rank(sample_id, seed) % 2 == 0 for sample_id in self.sample_ids])
        return np.flatnonzero(first), np.flatnonzero(~first)

    def evidence(self, space: Space, rows: Ints) -> Evidence:
        """What slicers read of some images.

        Args:
            space: whose embeddings are taken.
            rows: positions of images that have one.

        Returns:
            The evidence, in the order of `rows`.
        """
        return Evidence(
            self.embeddings[space][rows], self.labels[rows], self.probabilities[rows], relevance=self.maps[rows]
        )


def gather(
    run: FinishedRun,
    spaces: Sequence[Space],
    *,
    attributes: Sequence[str] = (),
    images: int,
    seed: int,
    memory: int = MEMORY,
) -> Gathered:
    """Reads the labelled images of a run, or as many as are asked for and fit.

    Args:
        run: explained, with embeddings.
        spaces: whose embeddings to read.
        attributes: columns to read along.
        images: the most to hold, drawn at random by their ids.
        seed: of the draw.
        memory: bytes that the arrays may take.

    Returns:
        The images.

    Raises:
        InputError: a column is missing, or no image has a label.
    """
    most = min(images, max(2, memory // (4 * _values(run, spaces))))
    last, statements = _drawn(run, most, seed)
    columns = ["top5", "top5_scores", "heatmap", "heatmap_scale", *DESCRIPTIONS.values()]
    columns += [*(COLUMNS[space] for space in spaces), *attributes]
    batches = _batches(run, columns, last, seed)
    found = _joined([_part(batch, run.classes, run.grid, spaces, attributes) for batch in batches], statements)
    empty = int(np.isnan(found.descriptions["evidence"][:, 0]).sum())
    if empty:
        note = f"{empty} of {len(found)} images have a map without positive evidence: no masked space holds them."
        found = replace(found, statements=(*found.statements, note))
    return found


def identified(run: FinishedRun, *, attributes: Sequence[str] = (), images: int, seed: int) -> Gathered:
    """Reads what is known of the labelled images of a run before anything is embedded: labels and predictions.

    Args:
        run: explained.
        attributes: columns to read along, of those that the run has.
        images: the most to hold, drawn at random by their ids.
        seed: of the draw.

    Returns:
        The images, without probabilities, maps, descriptions and embeddings.

    Raises:
        InputError: no image has a label.
    """
    last, statements = _drawn(run, images, seed)
    carried = [name for name in attributes if name in run.schema.names]
    return _joined([_identity(batch, carried) for batch in _batches(run, carried, last, seed)], statements)


def with_embeddings(found: Gathered, address: str, column: str, storage: Mapping[str, Any]) -> Gathered:
    """Takes embeddings that were computed elsewhere.

    Args:
        found: images without embeddings.
        address: a Parquet file with `sample_id` and the column.
        column: lists of equally many numbers.
        storage: fsspec options.

    Returns:
        The images that the file knows, with the embeddings as space `image`; a statement says how many it does not.

    Raises:
        InputError: the file cannot be read, or knows none of the images.
    """
    place = {name: index for index, name in enumerate(found.sample_ids)}
    vectors: dict[int, Floats] = {}
    for batch in read_columns(address, ["sample_id", column], storage):
        for name, value in zip(batch["sample_id"].to_pylist(), batch[column], strict=True):
            if name in place and value.is_valid:
                vectors[place[name]] = np.asarray(value.values, dtype=np.float32)
    if not vectors:
        raise InputError(
            f"{address} has no `{column}` of any of the {len(found)} images; `sample_id` must be the run's"
        )
    rows = np.array(sorted(vectors))
    kept = _taken(found, rows)
    missing = len(found) - len(rows)
    note = (f"{missing} of {len(found)} images have no embedding in {address} and are left out.",) if missing else ()
    embedded = stacked([vectors[row] for row in rows], column, address)
    return replace(kept, embeddings={"image": embedded}, statements=(*kept.statements, *note))


def spread(top: Ints, scores: Floats, classes: int) -> Floats:
    """Probabilities of all classes, from those of the best ones; what is left is spread over the others evenly.

    Args:
        top: (N, k) class indices.
        scores: (N, k) their probabilities.
        classes: K.

    Returns:
        (N, K) float32; exact where K is at most k + 1.
    """
    left = np.clip(1 - scores.sum(axis=1, keepdims=True), 0, 1)
    even = left / max(1, classes - top.shape[1])
    full = np.broadcast_to(even, (len(top), classes)).astype(np.float32)
    np.put_along_axis(full, top, scores, axis=1)
    return np.asarray(full / full.sum(axis=1, keepdims=True), dtype=np.float32)


def _values(run: FinishedRun, spaces: Sequence[Space]) -> int:
    """Numbers that are held of an image."""
    vectors = [*DESCRIPTIONS.values(), *(COLUMNS[space] for space in spaces)]
    widths: list[int] = [run.schema.field(name).type.list_size for name in vectors]
    height, width = run.grid
    return sum(widths) + run.classes + height * width


def _drawn(run: FinishedRun, most: int, seed: int) -> tuple[int, tuple[str, ...]]:
    """The last rank that takes part, and what to say of it."""
    ranks = np.concatenate([np.empty(0, np.int64), *(_ranks(batch, seed) for batch in _identities(run))])
    if len(ranks) == 0:
        raise InputError(
            f"{run.address} has no label: bias discovery asks where the network errs; name the labels with "
            "--label-field and explain the images again"
        )
    if len(ranks) <= most:
        return int(ranks.max()), ()
    statement = f"{most} of the {len(ranks)} labelled images were drawn at random and are looked at."
    return int(np.partition(ranks, most - 1)[most - 1]), (statement,)


def _identities(run: FinishedRun) -> Iterator[pa.RecordBatch]:
    return run.batches(["sample_id", "label", "rank"])


def _ranks(batch: pa.RecordBatch, seed: int) -> Ints:
    names = batch["sample_id"].filter(pa.array(_labelled(batch))).to_pylist()
    return np.array([rank(name, seed) for name in names], dtype=np.int64)


def _labelled(batch: pa.RecordBatch) -> Bools:
    """(N,) first explanations of labelled images."""
    return np.asarray(np.asarray(batch["label"].is_valid()) & (np.asarray(batch["rank"]) == 0))


def _batches(run: FinishedRun, columns: Sequence[str], last: int, seed: int) -> Iterator[pa.RecordBatch]:
    """First explanations of the labelled images up to a rank: what identifies them, and some columns more."""
    for batch in run.batches(list(dict.fromkeys(["label", "prediction", "sample_id", "rank", "uri", *columns]))):
        kept = _labelled(batch) & np.array([rank(name, seed) <= last for name in batch["sample_id"].to_pylist()])
        if kept.any():
            yield batch.filter(pa.array(kept))


def _identity(batch: pa.RecordBatch, attributes: Sequence[str]) -> Gathered:
    nothing = np.zeros((batch.num_rows, 0), np.float32)
    return Gathered(
        sample_ids=tuple(batch["sample_id"].to_pylist()),
        uris=tuple(batch["uri"].to_pylist()),
        labels=np.asarray(batch["label"], dtype=np.int64),
        predictions=np.asarray(batch["prediction"], dtype=np.int64),
        probabilities=nothing,
        maps=nothing[..., None],
        embeddings={},
        descriptions={},
        attributes={name: tuple(batch[name].to_pylist()) for name in attributes},
        statements=(),
    )


def _part(
    batch: pa.RecordBatch,
    classes: int,
    grid: tuple[int, int],
    spaces: Sequence[Space],
    attributes: Sequence[str],
) -> Gathered:
    top, scores = (_matrix(batch[name]) for name in ("top5", "top5_scores"))
    maps = batch["heatmap"].storage.values.to_numpy(zero_copy_only=False).reshape(-1, *grid)
    return replace(
        _identity(batch, attributes),
        probabilities=spread(top.astype(np.int64), scores.astype(np.float32), classes),
        maps=maps.astype(np.float32) * np.asarray(batch["heatmap_scale"], dtype=np.float32)[:, None, None],
        embeddings={space: _vectors(batch[COLUMNS[space]]) for space in spaces},
        descriptions={space: _vectors(batch[name]) for space, name in DESCRIPTIONS.items()},
    )


def _matrix(column: pa.Array) -> npt.NDArray[Any]:
    """(N, n) of lists of equal length."""
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _vectors(column: pa.Array) -> Floats:
    """(N, D) of fixed-size lists; NaN where there is none."""
    full = np.full((len(column), column.type.list_size), np.nan, np.float32)
    full[np.asarray(column.is_valid())] = np.asarray(column.flatten()).reshape(-1, column.type.list_size)
    return full


def _joined(parts: Sequence[Gathered], statements: tuple[str, ...]) -> Gathered:
    first = parts[0]
    return Gathered(
        sample_ids=tuple(name for part in parts for name in part.sample_ids),
        uris=tuple(uri for part in parts for uri in part.uris),
        labels=np.concatenate([part.labels for part in parts]),
        predictions=np.concatenate([part.predictions for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        maps=np.concatenate([part.maps for part in parts]),
        embeddings={space: np.concatenate([part.embeddings[space] for part in parts]) for space in first.embeddings},
        descriptions={
            space: np.concatenate([part.descriptions[space] for part in parts]) for space in first.descriptions
        },
        attributes={
            name: tuple(value for part in parts for value in part.attributes[name]) for name in first.attributes
        },
        statements=statements,
    )


def _taken(found: Gathered, rows: Ints) -> Gathered:
    """Some of the images."""
    chosen = rows.tolist()
    return Gathered(
        sample_ids=tuple(found.sample_ids[row] for row in chosen),
        uris=tuple(found.uris[row] for row in chosen),
        labels=found.labels[rows],
        predictions=found.predictions[rows],
        probabilities=found.probabilities[rows],
        maps=found.maps[rows],
        embeddings={space: vectors[rows] for space, vectors in found.embeddings.items()},
        descriptions={space: vectors[rows] for space, vectors in found.descriptions.items()},
        attributes={name: tuple(values[row] for row in chosen) for name, values in found.attributes.items()},
        statements=found.statements,
    )


def stacked(vectors: Sequence[Floats], column: str, address: str) -> Floats:
    """N vectors as (N, D); raises InputError, with the column and file that they are of, for unequal lengths."""
    try:
        return np.stack(vectors)
    except ValueError as error:
        raise InputError(
            f"`{column}` of {address} holds lists of unequal lengths; give those of one network"
        ) from error


def read_columns(address: str, columns: list[str], storage: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """Reads some columns of a Parquet file; raises InputError where it cannot be read or lacks one."""
    filesystem, path = open_filesystem(address, storage)
    try:
        with filesystem.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if absent := set(columns) - set(names):
                raise InputError(f"{address} has no column {', '.join(sorted(absent))}; it has {', '.join(names)}")
            yield from parquet.iter_batches(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{address} cannot be read ({error}); expected Parquet with {', '.join(columns)}") from error
