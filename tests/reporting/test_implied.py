import importlib.util

import numpy as np
import pytest
from scipy.stats import norm

from lira.epsilon import gaussian_epsilon, target_epsilons
from lira.membership import keep_mask
from lira.metrics import roc
from lira.reporting.implied import leakage

T, N, D = 32, 2000, 2.0
KEEP = keep_mask(0, T, N)
SCORES = np.random.default_rng(0).normal(size=(T, N)) + D * KEEP


def test_gaussians_imply_what_theory_says():
    """N(0, 1) against N(2, 1) in every target."""
    found = leakage(SCORES, KEEP)
    j = 2 * norm.cdf(D / 2) - 1
    tpr = norm.cdf(norm.ppf(0.001) + D)
    assert found["youden_j"]["low"] < j < found["youden_j"]["high"]
    assert found["youden_j"]["optimistic"] >= found["youden_j"]["j"]
    error = found["bayes_error_at_most"]
    assert error["low"] < norm.cdf(-D / 2) < error["high"]
    bits = found["information_at_least"]
    assert bits["bits"] <= found["mutual_information"]["bits"], "a bound is below what it bounds"
    assert found["ppv"]["0.01"] == pytest.approx(0.01 * tpr / (0.01 * tpr + 0.99 * 0.001), rel=0.05)
    assert found["ppv"]["0.5"] > found["ppv"]["0.1"] > found["ppv"]["0.01"]
    fixed = found["fixed_threshold"]
    assert fixed["tpr_low"] < tpr < fixed["tpr_high"]
    assert fixed["fpr_low"] < 0.001 < fixed["fpr_high"] < fixed["largest_fpr"]
    # No example is more vulnerable than another.
    assert found["stability"]["pearson_low"] < 0 < found["stability"]["pearson_high"]
    epsilons = target_epsilons(SCORES, KEEP, delta=1e-5, confidence=0.975)
    assert 0 < found["epsilon"]["at_least"] == pytest.approx(np.median(epsilons))
    assert found["epsilon"]["at_least"] < gaussian_epsilon(D, 1e-5)


def test_noise_implies_nothing():
    found = leakage(np.random.default_rng(1).normal(size=(T, N)), KEEP)
    assert found["youden_j"]["low"] < 0 < found["youden_j"]["high"]
    assert found["information_at_least"]["low"] == 0
    assert found["epsilon"]["at_least"] == 0
    assert found["ppv"]["0.01"] == pytest.approx(0.01, abs=0.005)


def test_a_single_target_has_what_it_can_have():
    found = leakage(SCORES[:1], KEEP[:1])
    assert found["fixed_threshold"] is found["stability"] is found["epsilon"] is None
    j = found["youden_j"]["j"]
    assert abs(j - (2 * norm.cdf(D / 2) - 1)) < 0.1
    assert found["information_at_least"]["bits"] > 0


def test_too_few_nonmembers_leave_out_the_operating_point():
    found = leakage(SCORES[:4, :100], KEEP[:4, :100])
    assert roc(SCORES[:4, :100], KEEP[:4, :100]).tpr_at(0.001).status == "unresolvable"
    assert found["ppv"] == {}
    assert found["fixed_threshold"] is None


def test_epsilon_is_null_without_jax_privacy(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax_privacy" else real(name)
    )
    assert leakage(SCORES, KEEP)["epsilon"] is None
