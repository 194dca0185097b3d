"""Answers that are kept, by the image's bytes, the graph and the class: what decides them."""

import threading
from dataclasses import dataclass, replace

from cachetools import TTLCache

from schemas.online import CacheLimits
from serve.engine import Explained


@dataclass(frozen=True)
class Key:
    """What decides an answer.

    Attributes:
        image: digest of its bytes.
        graph: digest of the graph.
        target: see `serve.targets`.
        sample_id: seeds methods that draw random numbers.
    """

    image: str
    graph: str
    target: int
    sample_id: str


@dataclass(frozen=True)
class Kept:
    """An answer, and what the image was.

    Attributes:
        explained: the graph's answer.
        size: width and height in px, as displayed.
        crop: see `serve.photo.Photo`.
    """

    explained: Explained
    size: tuple[int, int]
    crop: tuple[float, float, float, float]


class Cache:
    """Least recently used answers, bounded in bytes, entries and age.

    Args:
        limits: bounds.
    """

    def __init__(self, limits: CacheLimits) -> None:
        self._entries: TTLCache[Key, Kept] = TTLCache(limits.bytes, limits.ttl_s, getsizeof=_size)
        self._most = limits.entries
        self._lock = threading.Lock()

    def get(self, key: Key) -> Kept | None:
        """The answer, or None."""
        with self._lock:
            return self._entries.get(key)

    def put(self, key: Key, kept: Kept) -> None:
        """Keeps an answer; one that is larger than the cache is not kept."""
        if self._most == 0 or _size(kept) > self._entries.maxsize:
            return
        explained = kept.explained
        alone = replace(
            explained, probabilities=explained.probabilities.copy(), heatmap=explained.heatmap.copy()
        )  # not views, which would keep their whole batch
        with self._lock:
            while len(self._entries) >= self._most and key not in self._entries:
                self._entries.popitem()
            self._entries[key] = replace(kept, explained=alone)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory of all entries, roughly."""
        return int(self._entries.currsize)


def _size(kept: Kept) -> int:
    return kept.explained.nbytes + 1500  # the key included
