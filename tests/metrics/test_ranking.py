import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lira.membership import keep_mask
from lira.metrics import (
    example_rates,
    jaccard,
    rank_examples,
    rate_interval,
    roc,
    shares_reaching,
    threshold_above,
    top_examples,
    top_in_halves,
)

INF = np.inf


def tied_pool(seed, T=8, N=60, *, infinities=True):
    """Scores in whole numbers, so that sums are exact and most tie, a few of them infinite; members stand out."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    scores = np.round(rng.normal(size=(T, N)) + keep * rng.exponential(1.5, N)).astype(np.float32)
    if infinities:
        scores[rng.uniform(size=(T, N)) < 0.02] = INF
        scores[rng.uniform(size=(T, N)) < 0.02] = -INF
    return scores, keep


def naive_bar(scores, keep, fpr):
    """The lowest score of a non-member that at most a share `fpr` of all of them exceed."""
    nonmembers = sorted(float(s) for s in scores[~keep])
    return next(bar for bar in nonmembers if sum(s > bar for s in nonmembers) <= fpr * len(nonmembers) + 1e-9)


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.004, 0.01, 0.05, 0.3]), st.booleans())
def test_the_bar_is_the_lowest_that_few_enough_exceed(seed, fpr, infinities):
    scores, keep = tied_pool(seed, N=30, infinities=infinities)
    bar = threshold_above(scores, keep, fpr)
    assert bar == naive_bar(scores, keep, fpr)
    assert threshold_above(scores.astype(">f8"), keep, fpr) == bar
    if not infinities:
        np.testing.assert_array_equal(scores > bar, scores >= roc(scores, keep).tpr_at(fpr).threshold)


def test_bars_at_the_ends():
    keep = np.array([[True, False, False], [False, True, True]])
    scores = np.array([[9.0, INF, 1], [INF, 2, 3]])
    assert threshold_above(scores, keep, 0.1) == INF  # two of three non-members
    assert not example_rates(scores, keep, INF).found.any()
    assert np.isnan(threshold_above(scores, np.ones_like(keep), 0.1))
    assert np.isnan(example_rates(scores, np.ones_like(keep), np.nan).tpr).all()
    with pytest.raises(ValueError, match="fpr is a fraction between 0 and 1; got 2"):
        threshold_above(scores, keep, 2)


@given(st.integers(0, 2**31 - 1))
def test_rates_are_counted_one_by_one_with_scipys_exact_intervals(seed):
    scores, keep = tied_pool(seed, T=6, N=20)
    keep[:, 0], keep[:, 1] = False, True  # held by none, and by all
    rates = example_rates(scores, keep, 1.0)
    for n in range(20):
        held = [t for t in range(6) if keep[t, n]]
        found = sum(scores[t, n] > 1 for t in held)
        assert (rates.held[n], rates.found[n]) == (len(held), found)
        if not held:
            assert np.isnan([rates.tpr[n], rates.low[n], rates.high[n]]).all()
            continue
        interval = stats.binomtest(int(found), len(held)).proportion_ci(0.95, method="exact")
        assert rates.tpr[n] == found / len(held)
        assert (rates.low[n], rates.high[n]) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 16, 128])
def test_intervals_cover_whatever_the_share_is(n):
    """The coverage is summed exactly over all counts, at shares near the interval's ends, where it is lowest."""
    low, high = rate_interval(np.arange(n + 1), np.full(n + 1, n))
    ends = np.concatenate([low, high])
    shares = np.clip(np.concatenate([np.linspace(0, 1, 201), ends - 1e-9, ends + 1e-9]), 0, 1)[:, None]
    inside = (low <= shares) & (shares <= high)
    coverage = np.sum(stats.binom.pmf(np.arange(n + 1), n, shares) * inside, axis=1)
    assert coverage.min() >= 0.95 - 1e-12


@given(
    st.lists(st.tuples(st.sampled_from([np.nan, 0.0, 0.5, 1.0]), st.integers(-1, 1)), min_size=1, max_size=12)
)
def test_ranks_count_those_above(keys):
    first, second = (np.array(column, np.float64) for column in zip(*keys, strict=True))
    ranks = rank_examples(first, second)
    known = [key for key in keys if not np.isnan(key[0])]
    for key, rank in zip(keys, ranks, strict=True):
        assert np.isnan(rank) if np.isnan(key[0]) else rank == 1 + sum(other > key for other in known)
    for count in (1, 3):
        expected = [not np.isnan(key[0]) and sum(other >= key for other in known) <= count for key in keys]
        np.testing.assert_array_equal(top_examples(ranks, count), expected)


def test_no_one_of_ties_across_the_last_place_is_at_the_top():
    np.testing.assert_array_equal(top_examples(np.array([1.0, 2, 2, 4, np.nan]), 2), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(top_examples(np.array([1.0, 2, 2, 4, np.nan]), 3), [1, 1, 1, 0, 0])
    assert not top_examples(np.ones(5), 4).any()


@pytest.mark.parametrize("paired", [True, False])
def test_halves_are_counted_one_by_one(paired):
    scores, keep = tied_pool(3, T=14, N=40)
    if not paired:
        keep[0, 0] = ~keep[0, 0]
    times, halves = top_in_halves(scores, keep, 0.1, 5)
    rng, units = np.random.default_rng(0), 7 if paired else 14
    expected = np.zeros(40, int)
    for _ in range(5):
        order = rng.permutation(units)
        for part in (order[: units // 2], order[units // 2 : units // 2 * 2]):
            rows = sorted(np.r_[2 * part, 2 * part + 1] if paired else part)
            s, k = scores[rows], keep[rows]
            bar, keys = naive_bar(s, k, 0.1), {}
            for n in range(40):
                inside = [float(s[t, n]) for t in range(len(rows)) if k[t, n]]
                outside = [float(s[t, n]) for t in range(len(rows)) if not k[t, n]]
                if inside:
                    share = sum(value > bar for value in inside) / len(inside)
                    keys[n] = (share, naive_gap(inside, outside))
            for n, key in keys.items():
                expected[n] += sum(other >= key for other in keys.values()) <= 5
    assert halves == 10
    assert expected.max() > 3
    np.testing.assert_array_equal(times, expected)


def naive_gap(inside, outside):
    gap = sum(inside) / len(inside) - sum(outside) / len(outside) if outside else np.nan
    return 0.0 if np.isnan(gap) else max(min(gap, np.finfo(float).max), np.finfo(float).min)


def test_halves_of_examples_that_are_alike_name_all_as_often():
    """At chance one in a hundred is at the top of each half, and the ten halves hardly agree on which."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 40, 2000)
    scores = rng.normal(size=keep.shape) + keep
    times, halves = top_in_halves(scores, keep, 0.01, 20)
    assert (times.sum(), halves) == (200, 10)
    scores[:, :20] += 5 * keep[:, :20]
    times, _ = top_in_halves(scores, keep, 0.01, 20)
    assert times[:20].mean() > 9
    assert times[20:].max() < 5


def test_one_pair_has_no_halves():
    scores, keep = tied_pool(0, T=4)
    assert top_in_halves(scores[:2], keep[:2], 0.1, 3)[1] == 0
    assert top_in_halves(scores[:1], keep[:1], 0.1, 3)[1] == 0
    assert top_in_halves(scores, keep, 0.1, 3)[1] == 10


@given(st.integers(0, 2**31 - 1))
def test_shares_reaching_count_the_nonmembers(seed):
    scores, keep = tied_pool(seed, T=4, N=15)
    nonmembers = scores[0][~keep[0]]
    shares = shares_reaching(scores[0], keep[0])
    for score, share in zip(scores[0], shares, strict=True):
        assert share == sum(other >= score for other in nonmembers) / len(nonmembers)


def test_jaccard_of_sets():
    sets = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    found = jaccard(sets)
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            either = (a | b).sum()
            np.testing.assert_equal(found[i, j], (a & b).sum() / either if either else np.nan)
