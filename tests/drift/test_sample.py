"""Samples of the lowest hashes: uniform, additive, the same in both runs."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from pipeline.drift.sample import KEY, LAST, TIE, Columns, Sample, keys

ROWS = 300


def columns(rows: int, seed: int = 0) -> Columns:
    ids = np.array([f"{seed}/{i}" for i in range(rows)], dtype=object)
    group = np.random.default_rng(seed).choice([2, 5, 9], rows, p=[0.7, 0.25, 0.05])
    return {KEY: keys(ids, 0), TIE: np.arange(rows), "group": group, "value": np.arange(rows) * 1.0}


@given(
    cuts=st.lists(st.integers(0, ROWS), max_size=5),
    limit=st.integers(1, ROWS + 10),
    by=st.sampled_from([None, "group"]),
)
@settings(deadline=None, max_examples=60)
def test_any_split_gives_the_lowest_keys(cuts: list[int], limit: int, by: str | None) -> None:
    whole = columns(ROWS)
    order = np.random.default_rng(len(cuts)).permutation(ROWS)
    parts = [{name: values[part] for name, values in whole.items()} for part in np.split(order, sorted(cuts))]
    found = reduce(Sample.__add__, [Sample.of(part, limit, by=by) for part in parts])
    groups = [np.arange(ROWS)] if by is None else [np.flatnonzero(whole["group"] == name) for name in (2, 5, 9)]
    expected = np.concatenate([rows[np.argsort(whole[KEY][rows])][:limit] for rows in groups])
    assert np.array_equal(found["value"], whole["value"][expected])


@pytest.mark.parametrize("by", [None, "group"])
def test_what_is_not_admitted_is_not_in_the_sum(by: str | None) -> None:
    first, second = columns(ROWS), columns(ROWS, 1)
    sample = Sample.of(first, 12, by=by)
    admitted = sample.admits(second[KEY], second["group"])
    assert 0 < admitted.sum() < ROWS
    kept = {name: values[admitted] for name, values in second.items()}
    all_of_it, some_of_it = (sample + Sample.of(part, 12, by=by) for part in (second, kept))
    assert np.array_equal(all_of_it[KEY], some_of_it[KEY])
    assert sample.admits(np.array([LAST]), np.array([77]))[0] == (by is not None), "a new group is admitted"


def test_an_empty_sample_admits_everything() -> None:
    nothing = {name: values[:0] for name, values in columns(3).items()}
    for by in (None, "group"):
        assert Sample.of(nothing, 5, by=by).admits(np.array([LAST]), np.array([1])).all()


def test_hashes_are_uniform_and_follow_from_identity_and_seed() -> None:
    ids = np.array([f"shard-{i % 7}.tar/{i:09d}" for i in range(5000)], dtype=object)
    found = keys(ids, 3)
    assert kstest(found / 2.0**64, "uniform").pvalue > 1e-3
    assert np.array_equal(keys(ids[::-1].copy(), 3)[::-1], found)
    assert abs(np.corrcoef(np.argsort(found), np.argsort(keys(ids, 4)))[0, 1]) < 0.1


def test_hashes_are_the_same_in_every_release() -> None:
    """Runs of two nights are paired by them, and a stored profile outlives the process."""
    assert keys(np.array(["shard-000.tar/00000"], dtype=object), 0)[0] == np.uint64(7984248191681986554)
