"""Explanations read back from a run, to be ranked by the batch and shown one by one."""

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.stream.finished import FinishedRun
from schemas.explanations import CONTENT

READ = (
    "sample_id", "shard", "row", "width", "height", "label", "prediction", "prediction_name", "score", "rank", "target",
    "heatmap", "heatmap_scale",
)  # fmt: skip
NONE = -1
"""Index where there is no label or no target."""

Place: TypeAlias = tuple[str, int]
"""Shard and row of an image."""
Value: TypeAlias = Callable[["Batch"], NDArray[np.floating]]
"""(N,) by which images are ranked; NaN leaves an image out."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image with its map.

    Attributes:
        sample_id: of the image.
        place: where its bytes are.
        size: width and height as displayed, px; None where the run does not know them.
        label: class index; None without one.
        prediction: class index.
        prediction_name: of the class.
        score: softmax probability of the prediction.
        target: class that the map explains; None for a class-agnostic method.
        heatmap: (h, w) float32, raw and signed.
        value: by which it was ranked.
        content: digest of its bytes; None where the run has none.
    """

    sample_id: str
    place: Place
    size: tuple[int, int] | None
    label: int | None
    prediction: int
    prediction_name: str
    score: float
    target: int | None
    heatmap: NDArray[np.float32]
    value: float
    content: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the prediction is the label; None without a label."""
        return None if self.label is None else self.label == self.prediction


@dataclass(frozen=True)
class Batch:
    """The first targets of a batch of a run's rows.

    Attributes:
        rows: with the columns of `READ`, and `content_digest` where the run has it.
    """

    rows: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def maps(self) -> NDArray[np.float32]:
        """(N, h, w) raw and signed, at their true scale."""
        column = self.rows.column("heatmap")
        if not len(self):
            return np.zeros((0, *column.type.shape), np.float32)
        scale = np.asarray(self.rows.column("heatmap_scale"))
        maps: NDArray[np.float32] = column.to_numpy_ndarray().astype(np.float32) * scale[:, None, None]
        return maps

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """(N,)."""
        return np.asarray(self.rows.column("score")).astype(np.float64)

    @cached_property
    def label(self) -> NDArray[np.int64]:
        """(N,), `NONE` without a label."""
        return self._index("label")

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """(N,)."""
        return self._index("prediction")

    @cached_property
    def of_class(self) -> NDArray[np.int64]:
        """(N,) the class that the map explains; of a class-agnostic method, the prediction."""
        target = self._index("target")
        return np.where(target == NONE, self.prediction, target)

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """(N,) whether the label says so."""
        return np.asarray((self.label != NONE) & (self.label != self.prediction))

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(N,) whether the label says so."""
        return np.asarray((self.label != NONE) & (self.label == self.prediction))

    def _index(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self.rows.column(name).fill_null(NONE)).astype(np.int64)

    def explanation(self, index: int, value: float) -> Explanation:
        """One row of the batch."""
        row: dict[str, Any] = self.rows.drop_columns(["heatmap"]).slice(index, 1).to_pylist()[0]
        known = row["width"] is not None and row["height"] is not None
        return Explanation(
            sample_id=row["sample_id"],
            place=(row["shard"], row["row"]),
            size=(row["width"], row["height"]) if known else None,
            label=row["label"],
            prediction=row["prediction"],
            prediction_name=row["prediction_name"],
            score=row["score"],
            target=row["target"],
            heatmap=self.maps[index].copy(),
            value=value,
            content=row.get(CONTENT),
        )


def batches(run: FinishedRun) -> Iterator[Batch]:
    """Reads a run; memory does not grow with its rows.

    Args:
        run: whose explanations to read.

    Yields:
        The first target of every image.

    Raises:
        InputError: a file cannot be read.
    """
    for rows in run.batches([*READ, *({CONTENT} & set(run.schema.names))]):
        yield Batch(rows.filter(pc.equal(rows.column("rank"), 0)))


def explanations(run: FinishedRun, wanted: Collection[str]) -> dict[str, Explanation]:
    """Reads some explanations; memory grows with those alone.

    Args:
        run: that holds them.
        wanted: sample ids.

    Returns:
        The first target of each by sample id, `value` 0; ids that the run does not know are left out.

    Raises:
        InputError: a file cannot be read.
    """
    names, found = pa.array(wanted, pa.string()), dict[str, Explanation]()
    for batch in batches(run):
        own = Batch(batch.rows.filter(pc.is_in(batch.rows.column("sample_id"), names)))
        found |= {one.sample_id: one for one in (own.explanation(index, 0.0) for index in range(len(own)))}
    return found


class Top:
    """The images of a stream with the highest values; of equal ones, those that came first.

    Args:
        size: images to keep.
        value: by which they are ranked.
    """

    def __init__(self, size: int, value: Value) -> None:
        self._size = size
        self._value = value
        self._seen = 0
        self._kept: list[tuple[float, int, Explanation]] = []

    def add(self, batch: Batch) -> None:
        """Ranks the images of a batch among those before."""
        values = np.asarray(self._value(batch), np.float64)
        least = self._kept[0][0] if len(self._kept) == self._size else -np.inf
        ranked = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")[: self._size]
        for index in ranked.tolist():
            value = float(values[index])
            if not np.isnan(value) and (value > least or len(self._kept) < self._size):
                self._push((value, -self._seen - index, batch.explanation(index, value)))
        self._seen += len(batch)

    def _push(self, item: tuple[float, int, Explanation]) -> None:
        (heapq.heappushpop if len(self._kept) == self._size else heapq.heappush)(self._kept, item)

    @property
    def found(self) -> list[Explanation]:
        """The highest first."""
        return [item for _, _, item in sorted(self._kept, key=lambda kept: kept[:2], reverse=True)]
