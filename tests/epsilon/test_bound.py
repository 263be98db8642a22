"""Lower bounds from scores of both sides: each its formula, below the truth, and nothing of noise."""

import sys

import numpy as np
import pytest
from epsilon_truths import DELTA, METHODS, gaussian_trials, upper
from jax_privacy import auditing
from scipy import stats

from lira.epsilon import (
    coin_limit,
    epsilon_bounds,
    gaussian_epsilon,
    one_run,
)


def test_clopper_pearson_and_gdp_are_their_formulas_at_a_given_threshold():
    inside, outside = gaussian_trials(0, 1.0, 400)
    found = epsilon_bounds(inside, outside, delta=0.01, threshold=0.7, confidence=0.9)
    fnr = upper((inside < 0.7).sum(), len(inside), 0.05)
    fpr = upper((outside >= 0.7).sum(), len(outside), 0.05)
    expected = max(np.log((1 - fnr - 0.01) / fpr), np.log((1 - fpr - 0.01) / fnr), 0)
    assert found["clopper_pearson"].epsilon == pytest.approx(expected, rel=1e-9)
    mu = float(stats.norm.isf(fpr) - stats.norm.ppf(fnr))
    assert mu > 0
    assert found["gdp"].epsilon == pytest.approx(gaussian_epsilon(mu, 0.01), rel=1e-6)


def test_one_run_is_its_binomial_tail():
    """Steinke et al.'s Theorem 5.2 at the returned epsilon and the coin's limit: the tail is at half the level."""
    m, true, false = 2000, 90, 20
    inside, outside = np.repeat([1.0, 0.0], [true, 1310]), np.repeat([1.0, 0.0], [false, 580])
    bounds = epsilon_bounds(inside, outside, delta=DELTA, threshold=0.5, confidence=0.9, independent=True)
    coin = upper(1400, m, 0.025)
    odds = np.exp(bounds["one_run"].epsilon) * coin / (1 - coin)

    def tail(v):
        """Probability of at least v right guesses of `true + false`."""
        return stats.binom.sf(v - 1, true + false, odds / (1 + odds))

    added = max((tail(true - i) - tail(true)) / i for i in range(1, true + 1))
    assert tail(true) + 2 * m * DELTA * added == pytest.approx(0.05, rel=1e-3)


def test_f_dp_one_run_of_a_fair_coin_is_that_of_jax_privacy(monkeypatch):
    """Of whose counts: no coin is ever known to be fair, so it is told to be."""
    monkeypatch.setattr(one_run, "coin_limit", lambda *_: 0.5)
    for true, false in ((300, 100), (30, 1), (990, 950)):
        inside, outside = (
            np.repeat([1.0, 0.0], [true, 1000 - true]),
            np.repeat([1.0, 0.0], [false, 1000 - false]),
        )
        ours = epsilon_bounds(inside, outside, delta=DELTA, threshold=0.5, independent=True)["one_run_fdp"]
        auditor = auditing.CanaryScoreAuditor(inside, outside)
        theirs = auditor.epsilon_one_run_fdp(0.025, DELTA, threshold_strategy=auditing.Explicit(0.5))
        assert ours.epsilon == pytest.approx(theirs, abs=1e-4)


def test_the_coins_limit_is_clopper_and_pearsons_for_both_sides():
    assert coin_limit(900, 100, 0.05) == coin_limit(100, 900, 0.05) == pytest.approx(upper(900, 1000, 0.025))
    assert coin_limit(7, 0, 0.05) == 1
    draws = np.random.default_rng(0).binomial(500, 0.6, size=1000)
    assert np.mean([coin_limit(k, 500 - k, 0.1) < 0.6 for k in draws]) < 0.05 + 3 * np.sqrt(
        0.05 * 0.95 / 1000
    )


def test_bounds_are_below_the_truth_and_tight_to_the_stated_factor():
    """At mu = 1 and m = 2,000 scores, 40 repeats. Below the truth in at least 95 %; means of the bounds over the truth.

    They were .26, .34, .45 and .69, with standard errors of .01 to .02: the factors below leave three of them.
    """
    truth = gaussian_epsilon(1.0, DELTA)
    found = {method: [] for method in METHODS}
    for repeat in range(40):
        trials = gaussian_trials(repeat, 1.0, 2000)
        bounds = epsilon_bounds(*trials, delta=DELTA, seed=repeat, independent=True)
        assert list(bounds) == METHODS
        for method, bound in bounds.items():
            found[method].append(bound.epsilon)
    for method, factor in zip(METHODS, (0.21, 0.29, 0.4, 0.62), strict=True):
        values = np.array(found[method])
        assert np.mean(values <= truth) >= 0.95, method
        assert np.mean(values) >= factor * truth, method


def test_noise_claims_no_epsilon_beyond_the_nominal_share():
    """150 repeats at 95 %: at most 5 % plus three binomial standard errors, 10.3 %, may be positive."""
    positive = [
        [
            bound.epsilon > 0
            for bound in epsilon_bounds(
                *gaussian_trials(r, 0.0, 400), delta=DELTA, seed=r, independent=True
            ).values()
        ]
        for r in range(150)
    ]
    assert (np.mean(positive, axis=0) <= 0.103).all()


def test_a_threshold_chosen_on_the_same_scores_would_claim_too_much():
    """Why the threshold is chosen elsewhere: the best of all, uncorrected, against one fixed in advance."""
    best, fixed = [], []
    for repeat in range(40):
        inside, outside = gaussian_trials(repeat, 0.0, 200)
        each = [
            epsilon_bounds(inside, outside, delta=0, threshold=t)["clopper_pearson"].epsilon
            for t in np.linspace(-2.5, 2.5, 41)
        ]
        best.append(max(each))
        fixed.append(each[20])
    assert np.mean(best) > np.mean(fixed)
    assert np.mean(np.array(fixed) > 0) <= 0.05


def test_several_thresholds_share_the_level():
    inside, outside = gaussian_trials(0, 1.0, 400)
    tried = (0.2, 0.7, 1.4)
    found = epsilon_bounds(inside, outside, delta=DELTA, threshold=tried, independent=True, confidence=0.91)
    each = [
        epsilon_bounds(
            inside, outside, delta=DELTA, threshold=t, independent=True, confidence=0.91, chosen_from=3
        )
        for t in tried
    ]
    for method in ("clopper_pearson", "gdp"):
        assert found[method].epsilon == max(bounds[method].epsilon for bounds in each)
    # The coin's limit need not be shared.
    for method in ("one_run", "one_run_fdp"):
        assert found[method].epsilon > max(bounds[method].epsilon for bounds in each)


def test_perfect_separation_and_its_reverse():
    n = 200
    bounds = epsilon_bounds(np.ones(n), np.zeros(n), delta=0, threshold=0.5)
    assert list(bounds) == ["clopper_pearson"], "the others need a positive delta"
    rate = 0.025 ** (1 / n)  # of none of n, at level a / 2
    assert bounds["clopper_pearson"].epsilon == pytest.approx(np.log(rate / (1 - rate)))
    reverse = epsilon_bounds(np.zeros(n), np.ones(n), delta=DELTA, threshold=0.5, independent=True)
    assert all(bound.epsilon == 0 for bound in reverse.values())


def test_infinite_scores_and_ties():
    inside = np.repeat([np.inf, 0.0], 100)
    outside = np.repeat([0.0, -np.inf], 100)
    bounds = epsilon_bounds(inside, outside, delta=DELTA, independent=True)
    assert all(bound.epsilon > 0 for bound in bounds.values())


def test_every_bound_says_what_it_assumes():
    bounds = epsilon_bounds(*gaussian_trials(0, 1.0, 300), delta=DELTA, threshold=1.0, independent=True)
    for method, bound in bounds.items():
        assert (bound.method, bound.delta, bound.confidence) == (method, DELTA, 0.95)
        assert f"at delta 1e-05 (95 %, {method}), if every " in str(bound)
    assert "independent trials" in bounds["clopper_pearson"].assumes
    assert "a coin of its own, of one probability" in bounds["one_run"].assumes
    assert "Gaussian" in bounds["one_run_fdp"].assumes
    assert "Gaussian" in bounds["gdp"].assumes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"in_scores": np.zeros((2, 2))},
            r"in_scores must be at least two numbers \[n\].*got shape \(2, 2\)",
        ),
        ({"out_scores": np.zeros(1)}, r"out_scores must be at least two numbers"),
        ({"out_scores": np.array([0, np.nan])}, "without NaN"),
        ({"delta": 1}, r"delta must be in \[0, 1\); got 1"),
        ({"confidence": 95}, r"confidence must be between 0.5 and 1, such as 0.95; got 95"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        epsilon_bounds(**{"in_scores": np.zeros(9), "out_scores": np.zeros(9), "delta": 0.1, **arguments})


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    with pytest.raises(ImportError, match=r'need jax_privacy: pip install "lira\[privacy\]"'):
        epsilon_bounds(np.zeros(9), np.zeros(9), delta=0.1)


def test_one_run_bounds_are_not_given_unless_the_coins_are_known_to_be_independent():
    found = epsilon_bounds(*gaussian_trials(0, 1.0, 300), delta=DELTA)
    assert list(found) == ["clopper_pearson", "gdp"]


@pytest.mark.parametrize("coin", [0.1, 0.6, 0.9])
def test_an_unfair_coin_is_not_taken_for_leakage(coin):
    """Noise certifies nothing, where guesses of "member" are right in 90 % of cases; leakage stays below the truth.

    Taken for a fair one, a coin of .9 gave noise an epsilon of 2.0 by "one_run" and 3.8 by "one_run_fdp".
    """
    truth = gaussian_epsilon(1.0, DELTA)
    for mu, limit in ((0.0, 0.0), (1.0, truth)):
        above = []
        for repeat in range(25):
            trials = gaussian_trials(repeat, mu, 2000, coin)
            bounds = epsilon_bounds(*trials, delta=DELTA, threshold=1.0, independent=True)
            above.append([bounds[method].epsilon > limit for method in ("one_run", "one_run_fdp")])
        # At 5 % four or more of 25 in one of 30 cases; all are far below.
        assert (np.sum(above, axis=0) <= 3).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("threshold", [None, 0.5, np.inf])
def test_infinite_scores_bound_as_the_largest_finite_ones_do(sign, threshold):
    inside, outside = gaussian_trials(0, 1.0, 600)
    inside[:90], outside[:6] = sign * np.inf, sign * np.inf
    as_finite = [np.nan_to_num(side, posinf=99, neginf=-99) for side in (inside, outside)]
    found = epsilon_bounds(inside, outside, delta=1e-3, threshold=threshold, independent=True)
    in_its_place = 99 if threshold == np.inf else threshold
    finite = epsilon_bounds(*as_finite, delta=1e-3, threshold=in_its_place, independent=True)
    assert found == finite
    assert sign < 0 or found["clopper_pearson"].epsilon > 0.3
