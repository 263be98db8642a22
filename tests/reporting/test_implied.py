import importlib.util

import numpy as np
import pytest
from scipy.stats import norm

from lira.epsilon import gaussian_epsilon, target_epsilons
from lira.learning.accounting import guarantee
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.metrics import roc
from lira.reporting.implied import leakage

T, N, D = 32, 2000, 2.0
KEEP = keep_mask(0, T, N)
SCORES = np.random.default_rng(0).normal(size=(T, N)) + D * KEEP


def test_gaussians_imply_what_theory_says():
    """N(0, 1) against N(2, 1) in every target."""
    found = leakage(SCORES, KEEP, independent=True)
    j = 2 * norm.cdf(D / 2) - 1
    tpr = norm.cdf(norm.ppf(0.001) + D)
    assert found.youden.j.low < j < found.youden.j.high
    assert found.youden.optimistic >= found.youden.j.value
    error = found.bayes_error
    assert error.low < norm.cdf(-D / 2) < error.high
    assert found.information.value <= found.mutual_information.value, "a bound is below what it bounds"
    assert found.ppv[0.01] == pytest.approx(0.01 * tpr / (0.01 * tpr + 0.99 * 0.001), rel=0.05)
    assert found.ppv[0.5] > found.ppv[0.1] > found.ppv[0.01]
    fixed = found.fixed
    assert fixed is not None
    assert fixed.mean_tpr.low < tpr < fixed.mean_tpr.high
    assert fixed.mean_fpr.low < 0.001 < fixed.mean_fpr.high < fixed.target_fpr.max()
    # No example is more vulnerable than another.
    assert found.stability is not None
    assert found.stability.pearson.low < 0 < found.stability.pearson.high
    epsilons = target_epsilons(SCORES, KEEP, independent=True, delta=1e-5, confidence=0.975)
    assert found.epsilon is not None
    assert found.no_epsilon is None
    assert 0 < found.epsilon == pytest.approx(np.median(epsilons))
    assert found.epsilon < gaussian_epsilon(D, 1e-5)


def test_noise_implies_nothing():
    found = leakage(np.random.default_rng(1).normal(size=(T, N)), KEEP, independent=True)
    assert found.youden.j.low < 0 < found.youden.j.high
    assert found.information.low == 0
    assert found.epsilon == 0
    assert found.ppv[0.01] == pytest.approx(0.01, abs=0.005)


def test_a_single_target_has_what_it_can_have():
    found = leakage(SCORES[:1], KEEP[:1], independent=True)
    assert found.fixed is found.stability is found.epsilon is None
    j = found.youden.j.value
    assert abs(j - (2 * norm.cdf(D / 2) - 1)) < 0.1
    assert found.information.value > 0


def test_too_few_nonmembers_leave_out_the_operating_point():
    found = leakage(SCORES[:4, :100], KEEP[:4, :100])
    assert roc(SCORES[:4, :100], KEEP[:4, :100]).tpr_at(0.001).status == "unresolvable"
    assert found.ppv == {}
    assert found.fixed is None


def test_epsilon_is_none_without_jax_privacy(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax_privacy" else real(name)
    )
    found = leakage(SCORES, KEEP, independent=True)
    assert found.epsilon is None
    assert "need jax_privacy" in str(found.no_epsilon)


def test_no_epsilon_is_claimed_where_the_coins_may_be_of_another_design():
    """As of imported pools, unless the user declares it."""
    found = leakage(SCORES, KEEP)
    assert found.epsilon is None
    assert "neither known nor was declared" in str(found.no_epsilon)


def test_the_bound_is_at_the_delta_of_the_proof():
    proven = guarantee(Recipe(batch_size=20, epochs=1, privacy=Privacy(noise=2.0, delta=1e-3)), N)
    found = leakage(SCORES, KEEP, independent=True, proven=proven)
    epsilons = target_epsilons(SCORES, KEEP, independent=True, delta=1e-3, confidence=0.975)
    assert found.epsilon == pytest.approx(np.median(epsilons))
    assert found.delta == 1e-3
    assert found.proven == proven
