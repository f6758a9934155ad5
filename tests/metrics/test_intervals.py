"""Means with intervals."""

import math

import pytest
from scipy import stats

from unbraid.metrics.intervals import over


def test_as_scipy_has_it():
    values = [1.0, 2.0, 4.0, 4.5]
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, ends = over(values)
    assert mean == pytest.approx(2.875)
    assert ends == pytest.approx((known.low, known.high))


def test_too_few_for_an_interval():
    assert over([2.0]) == (2.0, None)
    assert math.isnan(over([])[0])
