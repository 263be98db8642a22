"""Bounds of one training: of its canaries, and of every target of a pool."""

import numpy as np
import pytest
from epsilon_truths import DELTA, upper
from jax_privacy import auditing

from lira.epsilon import (
    canary_epsilons,
    gaussian_epsilon,
    pool_epsilon,
    target_epsilons,
)
from lira.membership import keep_mask


def responses(rng, member, epsilon, *, clustered=False):
    """Randomised response of a known epsilon; clustered: one training in two says nothing, of all examples at once."""
    scores = (member ^ (rng.random(member.shape) < 1 / (1 + np.exp(epsilon)))).astype(float)
    return 0 * scores if clustered and rng.random() < 0.5 else scores


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("coin", [0.5, 0.7])
def test_one_run_stays_below_the_epsilon_of_randomised_response(clustered, coin):
    """Its truth is exact and no mechanism is more leaky at it; a larger version is experiments/benchmarks/bounds.py."""
    truth, above, found = np.log((1 / (1 + np.exp(-1.0)) - DELTA) * (1 + np.e)), 0, []
    for repeat in range(60):
        rng = np.random.default_rng([repeat, clustered])
        member = rng.random(300) < coin
        scores = responses(rng, member, 1.0, clustered=clustered)
        bound = canary_epsilons(scores, member, delta=DELTA, fair=coin == 0.5)["one_run"].epsilon
        found.append(bound)
        above += bound > truth
    assert above <= 7, "at 5 %: eight or more of 60 in one of 100 cases"
    if coin == 0.5:
        assert np.max(found) > 0.7 * truth


def test_the_largest_of_many_attacks_bounds_holds_by_chosen_from():
    """Twenty attacks that guess: at the whole level one of them claims something far more often than that."""
    claimed = {1: 0, 20: 0}
    for repeat in range(30):
        rng = np.random.default_rng(repeat)
        member = rng.random(256) < 0.5
        scores = rng.normal(size=(20, 256))
        for chosen_from in claimed:
            bounds = (
                canary_epsilons(each, member, delta=DELTA, fair=True, chosen_from=chosen_from)["one_run"]
                for each in scores
            )
            claimed[chosen_from] += any(bound.epsilon > 0 for bound in bounds)
    assert claimed[20] <= 4, "at 5 %: five or more of 30 in one of 60 cases"
    assert claimed[1] >= 8


def test_pool_epsilon_is_the_best_attacks_median_at_its_share_of_the_level():
    keep = keep_mask(0, 4, 300)
    noise = np.random.default_rng(0).normal(size=(2, *keep.shape))
    scores = noise + np.array([0.0, 2.0])[:, None, None] * keep
    bound = pool_epsilon(scores, keep, independent=True, delta=DELTA, confidence=0.9)
    each = target_epsilons(scores[1], keep, independent=True, delta=DELTA, confidence=1 - 0.1 / 4)
    assert bound.epsilon > 0
    assert bound.epsilon == pytest.approx(np.median(each))
    assert (bound.method, bound.confidence) == ("one_run", 0.9)
    alone = pool_epsilon(scores[1], keep, independent=True, delta=DELTA, confidence=0.9)
    assert alone.epsilon > bound.epsilon


@pytest.mark.parametrize("method", ["one_run", "one_run_fdp"])
def test_ties_are_not_told_apart_by_where_they_stand(method):
    """Members first in the file, and scores that say nothing: their order is no attack."""
    member = np.arange(1000) < 500
    assert canary_epsilons(np.zeros(1000), member, delta=DELTA, fair=True)[method].epsilon == 0
    scores = np.repeat(
        [1.0, 0.0, 1.0], [600, 300, 100]
    )  # of either side six and four in ten, and the last all
    assert canary_epsilons(scores, member, delta=DELTA, fair=True)[method].epsilon > 0


def test_all_guesses_right_is_the_most_that_canaries_can_show():
    member = np.random.default_rng(0).random(400) < 0.5
    found = canary_epsilons(member + 0.0, member, delta=1e-9, fair=True)
    # All of seven in eight: ln(p / (1 - p)) of the p whose 350th power is the level's share.
    rate = 0.01 ** (1 / 350)
    assert found["one_run"].epsilon == pytest.approx(np.log(rate / (1 - rate)), rel=0.001)
    twice = np.stack([member, member])
    several = canary_epsilons(twice + 0.0, twice, delta=1e-9, fair=True)
    assert several["one_run"].epsilon > found["one_run"].epsilon, "two trainings have twice the coins"


@pytest.mark.parametrize("coins", [[0, 1], [0, 1, 0, 0], [1] * 50 + [0]])
def test_one_canary_on_a_side_is_enough_to_claim_nothing_by(coins):
    member = np.array(coins, bool)
    found = canary_epsilons(member + 0.0, member, delta=DELTA, fair=True)
    assert found["gdp"].epsilon == 0
    assert all(np.isfinite(bound.epsilon) for bound in found.values())


@pytest.mark.parametrize(
    ("scores", "member", "message"),
    [
        (
            np.zeros(3),
            np.zeros(4, bool),
            r"member bool of the same shape; got float64 \(3,\) and bool \(4,\)",
        ),
        (np.zeros(3), np.zeros(3, bool), "none of the canaries are members"),
        (np.array([0, np.nan]), np.array([True, False]), "scores holds NaN, first of canary 1"),
        (np.zeros(2), np.array([1, 0]), "member bool of the same shape; got float64"),
    ],
)
def test_canaries_name_bad_arguments(scores, member, message):
    with pytest.raises(ValueError, match=message):
        canary_epsilons(scores, member, delta=DELTA)


@pytest.mark.parametrize("method", ["one_run", "one_run_fdp"])
def test_target_bounds_are_the_best_of_the_guesses_fixed_beforehand(method):
    """By jax_privacy of the same guesses, at their share of the level, less what the coin explains of "one_run"."""
    keep = keep_mask(0, 4, 200)
    scores = np.random.default_rng(0).normal(size=keep.shape) + 1.5 * keep
    found = target_epsilons(scores, keep, independent=True, delta=DELTA, method=method)
    assert (found > 0).all()
    for t in (0, 3):
        coin = upper(max(keep[t].sum(), (~keep[t]).sum()), 200, 0.0125)
        order, bounds = np.argsort(-scores[t]), []
        for guesses in (3, 12, 50, 100, 175):
            high, low = order[: guesses - guesses // 2], order[200 - guesses // 2 :]
            right = int(keep[t][high].sum() + (~keep[t][low]).sum())
            guessed = np.ones(right), np.repeat([1.0, 0.0], [guesses - right, 200 - guesses])
            audit = getattr(auditing.CanaryScoreAuditor(*guessed), f"epsilon_{method}")
            bounds.append(audit(0.005, DELTA, threshold_strategy=auditing.Explicit(0.5)))
        if method == "one_run":
            assert found[t] == pytest.approx(max(bounds) - np.log(coin / (1 - coin)), abs=1e-4)
        else:
            assert 0.5 * max(bounds) < found[t] < max(bounds), "the coin explains some of it"


def test_targets_of_a_gaussian_mechanism_stay_below_the_truth():
    """Every example its own trial: 64 targets of 1,000 examples, at most 5 % (and 8 % of luck) above."""
    keep = keep_mask(1, 64, 1000)
    scores = np.random.default_rng(1).normal(size=keep.shape) + keep
    found = target_epsilons(scores, keep, independent=True, delta=DELTA)
    truth = gaussian_epsilon(1.0, DELTA)
    assert np.mean(found > truth) <= 0.13
    assert np.median(found) > 0.25 * truth
    noise = np.random.default_rng(2).normal(size=keep.shape)
    assert np.mean(target_epsilons(noise, keep, independent=True, delta=DELTA) > 0) <= 0.13


@pytest.mark.parametrize("method", ["one_run", "one_run_fdp"])
@pytest.mark.parametrize("coin", [0.1, 0.5, 0.9])
def test_targets_whose_coins_are_unfair_certify_nothing_of_noise(coin, method):
    rng = np.random.default_rng(3)
    keep = rng.random((24, 500)) < coin
    scores = rng.normal(size=keep.shape)
    found = target_epsilons(scores, keep, independent=True, delta=DELTA, method=method)
    assert np.sum(found > 0) <= 4, "at 5 %: five or more of 24 in one of 200 cases"


def test_targets_claim_nothing_unless_their_coins_are_known_to_be_independent():
    keep = keep_mask(0, 8, 400)
    scores = keep + 0.0
    assert (target_epsilons(scores, keep, independent=True, delta=DELTA) > 1).all()
    np.testing.assert_array_equal(target_epsilons(scores, keep, independent=False, delta=DELTA), 0)


def test_target_bounds_name_bad_arguments():
    keep = keep_mask(0, 4, 20)
    scores = np.zeros(keep.shape)
    with pytest.raises(ValueError, match=r"method must be .one_run. or .one_run_fdp.*got .gdp."):
        target_epsilons(scores, keep, independent=True, delta=DELTA, method="gdp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="delta must be positive for one-run bounds"):
        target_epsilons(scores, keep, independent=True, delta=0)
    with pytest.raises(ValueError, match=r"chosen_from must be the number of bounds .* from 1; got 0"):
        target_epsilons(scores, keep, independent=True, delta=DELTA, chosen_from=0)
    with pytest.raises(ValueError, match="keep must be bool"):
        target_epsilons(scores, keep[:2], independent=True, delta=DELTA)
