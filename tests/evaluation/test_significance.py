"""Tests of paired differences, and their correction."""

import numpy as np
import pytest
from reference.bias import benjamini_hochberg

from pipeline.evaluation.significance import LEAST, adjusted, signed_rank


def test_too_few_images_are_not_tested_and_equal_ones_do_not_differ() -> None:
    assert signed_rank(np.ones(LEAST - 1), "greater") is None
    assert signed_rank(np.zeros(LEAST), "two-sided") == 1.0


def test_all_images_of_one_sign_have_the_exact_chance_of_that() -> None:
    difference = np.arange(1.0, LEAST + 1)
    assert signed_rank(difference, "greater") == pytest.approx(2.0**-LEAST)
    assert signed_rank(-difference, "greater") == pytest.approx(1.0)
    assert signed_rank(difference, "two-sided") == pytest.approx(2.0 ** (1 - LEAST))


def test_the_correction_counts_the_tests_that_were_made() -> None:
    found = adjusted([None, 0.04, 0.01, None, 0.03])
    assert found[0] is found[3] is None
    assert [found[1], found[2], found[4]] == pytest.approx(benjamini_hochberg([0.04, 0.01, 0.03]))
    assert adjusted([None]) == [None]
