import numpy as np
import pytest
from scipy import stats

from lira.metrics import mean_over_clusters, ratio_of_means


def test_a_mean_has_students_interval():
    values = np.array([0.2, 0.5, 0.4, 0.9, 0.1])
    found = mean_over_clusters(values, 0, 1)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.42, max(low, 0), high))


def test_fiellers_interval_holds_the_ratios_that_a_t_test_does_not_reject():
    rng = np.random.default_rng(0)
    below = rng.normal(3, 1, size=12)
    above = 0.7 * below + rng.normal(size=12)
    found = ratio_of_means(above, below)
    assert found.value == pytest.approx(above.mean() / below.mean())

    def p(ratio):
        apart = above - ratio * below
        return 2 * stats.t.sf(abs(apart.mean()) / stats.sem(apart), 11)

    for end in (found.low, found.high):
        assert p(end) == pytest.approx(0.05, abs=1e-9)
    assert p((found.low + found.high) / 2) > 0.05


def test_the_interval_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        shared = rng.normal(size=8)
        below, above = 2 + shared, 1 + shared + 0.3 * rng.normal(size=8)
        found = ratio_of_means(above, below)
        covered += np.isnan(found.low) or found.low <= 0.5 <= found.high
    assert 0.93 < covered / 1000 < 0.97


def test_a_denominator_that_may_be_zero_leaves_no_interval():
    below = np.array([1.0, -1, 2, -1.5, 0.5])
    found = ratio_of_means(np.ones(5), below)
    low, high = stats.ttest_1samp(below, 0).confidence_interval(0.95)
    assert low < 0 < high
    assert found.value == pytest.approx(5)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(ratio_of_means(np.ones(4), np.array([1.0, -1, 1, -1])).value)
    assert np.isnan(ratio_of_means(np.ones(3), np.ones(3)).low)  # too few clusters
