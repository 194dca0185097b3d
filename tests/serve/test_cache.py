"""The cache: what decides an answer is its key; bytes, entries and age bound it."""

import json
import time
from typing import Any

import numpy as np
import pytest
from samples import jpeg
from serving import started, talk

from schemas.online import CacheLimits
from serve.cache import Cache, Kept, Key
from serve.engine import Explained
from serve.service import Service


def kept(cells: int = 16, classes: int = 1000) -> Kept:
    """An answer whose arrays are rows of a batch of 64."""
    probabilities, maps = np.zeros((64, classes), np.float32), np.zeros((64, cells, cells), np.float32)
    found = Explained(probabilities[1], 0, maps[1], {}, None, 0.0, 0.0, 64)
    return Kept(found, (1, 1), (0.0, 0.0, 1.0, 1.0))


def key(n: int, **fields: Any) -> Key:
    return Key(**{"image": str(n), "graph": "g", "target": -1, "sample_id": "s", **fields})


def test_everything_that_decides_an_answer_is_in_its_key() -> None:
    cache = Cache(CacheLimits())
    cache.put(key(1), kept())
    assert cache.get(key(1)) is not None
    for other in ({"image": "2"}, {"graph": "h"}, {"target": 0}, {"sample_id": "t"}):
        assert cache.get(key(1, **other)) is None


def test_memory_is_bounded_by_bytes_the_batch_does_not_stay() -> None:
    cache = Cache(CacheLimits(bytes=200_000))
    for n in range(200):
        cache.put(key(n), kept())
    held = [entry for n in range(200) if (entry := cache.get(key(n)))]
    assert cache.get(key(199)) is not None
    assert cache.get(key(0)) is None
    real = sum(e.explained.heatmap.nbytes + e.explained.probabilities.nbytes for e in held)
    assert real <= cache.nbytes <= 200_000
    assert all(e.explained.heatmap.base is None and e.explained.probabilities.base is None for e in held)
    cache.put(key(999), kept(cells=500))
    assert cache.get(key(999)) is None


def test_entries_are_bounded_and_the_least_used_goes_first() -> None:
    cache = Cache(CacheLimits(entries=2))
    for n in (1, 2):
        cache.put(key(n), kept())
    assert cache.get(key(1))
    cache.put(key(3), kept())
    assert (len(cache), cache.get(key(2))) == (2, None)


def test_entries_end_with_their_time() -> None:
    cache = Cache(CacheLimits(ttl_s=0.05))
    cache.put(key(1), kept())
    time.sleep(0.06)
    assert cache.get(key(1)) is None
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("off", [{"bytes": 0}, {"entries": 0}])
def test_it_can_be_switched_off(off: dict[str, int]) -> None:
    service = started(cache=off)
    answers = [explained(service) for _ in range(2)]
    service.close()
    assert [answer["cached"] for answer in answers] == [False, False]
    assert len(service.cache) == 0


def explained(service: Service, **query: Any) -> Any:
    return json.loads(talk(service, lambda client: client.post("/explain", params=query, content=jpeg(0))).content)
