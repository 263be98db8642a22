"""The counting kernel against counts of single scores and of pairs of scores."""

import doctest

import numpy as np
import pytest

from lira.metrics import counting
from lira.metrics.counting import area, count_points, count_type, largest_gap, last_within, last_within_each


@pytest.fixture(params=[7, counting.BLOCK], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(counting, "BLOCK", request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kind", ["distinct", "ties", "infinite", "signed zeros", "members alone", "others alone"]
)
def test_points_and_area_are_those_of_single_comparisons(kind, dtype):
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=60).astype(dtype), rng.uniform(size=60) < 0.4
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "infinite":
        scores[:9] = np.repeat([np.inf, -np.inf, 0], 3)
    elif kind == "signed zeros":
        scores[:20] = np.tile(np.array([0.0, -0.0], dtype), 10)
    elif kind != "distinct":
        member[:] = kind == "members alone"
    false, true = count_points(scores, member)
    reached = [scores >= threshold for threshold in np.unique(scores)[::-1]]
    np.testing.assert_array_equal(false, [0, *(np.sum(each & ~member) for each in reached)])
    np.testing.assert_array_equal(true, [0, *(np.sum(each & member) for each in reached)])
    inside, outside = scores[member][:, None], scores[~member]
    if inside.size and outside.size:
        expected = np.mean((inside > outside) + 0.5 * (inside == outside))
        assert area(false, true) == pytest.approx(expected, rel=1e-15)
        rates = np.stack([false / false[-1], true / true[-1]])
        np.testing.assert_allclose(area(*np.stack([rates, rates], 1)), expected, rtol=1e-13)
    else:
        assert np.isnan(area(false, true))


def test_the_last_point_within_what_is_allowed_is_that_of_a_search():
    false = np.array([0, 0, 1, 1, 4, 7])
    for allowed in range(9):
        assert last_within(false, allowed) == max(i for i, count in enumerate(false) if count <= allowed)


@pytest.mark.parametrize("points", [1, 2, 7, 64, 65])
def test_the_last_points_of_many_curves_are_those_of_each(points):
    """Ties, nothing within, all within, and rates that are NaN, of which none is; few and many that are allowed."""
    rng = np.random.default_rng(points)
    rates = np.sort(rng.integers(0, 9, (50, points)) / 8, axis=1)
    rates[3] = np.nan
    for allowed in (rates[5, :1], np.linspace(-0.5, 1.5, counting.FEW_POINTS), np.linspace(-0.5, 1.5, 40)):
        expected = [np.searchsorted(each, allowed, side="right") - 1 for each in rates]
        np.testing.assert_array_equal(last_within_each(rates, allowed), expected)


def test_counts_in_four_bytes_are_multiplied_in_eight():
    assert count_type(2**31 - 1) is np.int32
    assert count_type(2**31) is np.int64
    # 100,000 members and as many others, all a member above the others but one in ten.
    others = np.arange(200_000) % 20 == 19
    others[100_000:] = np.arange(100_000) % 10 != 0
    false = np.append(0, np.cumsum(others)).astype(np.int32)
    true = np.arange(200_001, dtype=np.int32) - false
    assert area(false, true) == pytest.approx(np.trapezoid(true / true[-1], false / false[-1]), rel=1e-12)
    gaps = true / true[-1] - false / false[-1]
    assert largest_gap(false, true) == np.flatnonzero(gaps > gaps.max() - 1e-9)[0]
    assert last_within(false, np.array([0.5, 3e9])).tolist() == [19, 200_000]


def test_the_largest_gap_is_the_first_of_equals():
    false, true = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 3, 4])
    assert largest_gap(false, true) == 1
    assert largest_gap(false, np.zeros(5, int)) == 0


def test_examples_in_the_documentation():
    failed, attempted = doctest.testmod(counting)
    assert attempted == 1
    assert failed == 0
