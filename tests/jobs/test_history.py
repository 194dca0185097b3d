"""The index of nights: which night is before which, also when one is done again."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.jobs.history import History
from schemas.audit import NightRecord


def record(night: str, **changes: object) -> NightRecord:
    fields = {
        "night": night,
        "finished": "2026-01-01T00:00:00+00:00",
        "explained": f"{night}/explained",
        "graph_digest": "0" * 16,
        "images": 1,
        "accuracy": None,
        "against": None,
        "alerts": (),
    }
    return NightRecord.model_validate(fields | changes)


@pytest.fixture
def history(tmp_path: Path) -> History:
    found = History(str(tmp_path), {})
    for night in ("one", "two", "three"):
        found.add(record(night))
    return found


def test_a_night_is_compared_with_the_one_before_it(history: History) -> None:
    assert history.earlier("previous", "four") == "three/explained"
    assert history.earlier("previous", "one") is None
    assert [one.night for one in history.before("four")] == ["one", "two", "three"]


def test_a_night_that_is_done_again_keeps_its_place(history: History) -> None:
    assert history.earlier("previous", "two") == "one/explained"
    history.add(record("two", finished="2026-02-01T00:00:00+00:00", images=7))
    assert [(one.night, one.images) for one in history.nights()] == [("one", 1), ("two", 7), ("three", 1)]
    assert [one.night for one in history.before("two")] == ["one"]
    assert history.earlier("previous", "three") == "two/explained"


def test_nights_and_addresses_are_named(history: History) -> None:
    assert history.earlier("none", "two") is None
    assert history.earlier("three", "two") == "three/explained"
    assert history.earlier("s3://elsewhere/out", "two") == "s3://elsewhere/out"
    with pytest.raises(InputError, match=r"no such night in .*; there are: one, three; or give the address"):
        history.earlier("two", "two")
