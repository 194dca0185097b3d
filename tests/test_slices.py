"""Columns by which images are sliced."""

import pytest

from pipeline.errors import InputError
from pipeline.slices import NO_VALUE, check_number, texts


def test_missing_values_are_a_slice_of_their_own() -> None:
    assert texts(["fog", None, 3]) == ["fog", NO_VALUE, "3"]


def test_columns_of_too_many_values_are_refused_with_an_example() -> None:
    check_number("weather", {"fog", "rain"}, 2)
    with pytest.raises(InputError, match=r"slice weather has more than 2 values, for example 'fog': .*slice_values"):
        check_number("weather", {"rain", "fog", "sun"}, 2)
