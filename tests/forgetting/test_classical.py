"""Thresholds and regressions on averages: privacy scores, plain and normalised."""

import json

import numpy as np
import pytest
from forgetting_worlds import World, ensembles
from scipy.stats import norm

from lira.forgetting import (
    called_members,
    measure,
    mia_efficacy,
    psi,
    psi_normalised,
)
from lira.reporting.document import unlearning_document
from lira.reporting.unlearning_evaluation import evaluate_unlearning


def test_thresholds_are_fitted_on_one_half_and_asked_about_the_other():
    """Plain loops, from the halves that a change of one value reveals."""
    world = World(M=4, N=60, F=12)
    rng = np.random.default_rng(5)
    phi = rng.integers(0, 6, size=(4, 60, 1)).astype(float)  # ties
    (called,) = called_members(phi, world.keep, world.forget, fprs=[0.3], seed=3)
    rates = np.zeros((3, 2))
    for pair in range(2):
        others = np.flatnonzero(~world.forget)
        fitting = np.random.default_rng([3, pair]).permutation(others)[: len(others) // 2]
        asked = np.setdiff1d(others, fitting)
        counts = np.zeros((3, 2))
        for model in (2 * pair, 2 * pair + 1):
            nonmembers = [phi[model, n, 0] for n in fitting if not world.keep[model, n]]
            # The lowest of all thresholds with at most 30 % false positives.
            threshold = min(
                t for t in np.arange(8) if np.mean([value >= t for value in nonmembers]) <= 0.3 + 1e-12
            )
            groups = (
                [n for n in np.flatnonzero(world.forget) if world.keep[model, n]],
                [n for n in asked if world.keep[model, n]],
                [n for n in asked if not world.keep[model, n]],
            )
            counts += [[sum(phi[model, group, 0] >= threshold), len(group)] for group in groups]
        rates[:, pair] = counts[:, 0] / counts[:, 1]
    np.testing.assert_allclose(np.stack(called), rates)


def test_psi_of_retrained_models_is_fpr_over_tpr():
    world = World(M=64, N=1200, F=300, gap=1.0, hardness=0.0)
    fprs = (0.1, 0.5)
    for fpr, called in zip(
        fprs, called_members(world.retrained, world.keep, world.forget, fprs=fprs), strict=True
    ):
        tpr = norm.cdf(norm.ppf(fpr) + 1)
        assert psi(called).value == pytest.approx(fpr / tpr, abs=0.02)
        assert called.retain.mean() == pytest.approx(tpr, abs=0.02)
        assert called.validation.mean() == pytest.approx(fpr, abs=0.015)
        assert mia_efficacy(called).value == pytest.approx(1 - fpr, abs=0.015)
    for called in called_members(world.before, world.keep, world.forget, fprs=fprs):
        assert psi(called).value == pytest.approx(1, abs=0.03)


def test_normalised_psi_is_1_untouched_0_retrained_and_covers():
    hits = []
    for seed in range(20):
        world = World(M=16, N=200, F=50, seed=seed)
        untouched = psi_normalised(*ensembles(world, world.before)).estimate
        if np.isnan(untouched.value):
            continue
        assert (untouched.value, untouched.low, untouched.high) == pytest.approx((1, 1, 1))
        found = psi_normalised(*ensembles(world, world.draw(world.rest)))
        # A ratio is shown where what it is divided by is known to within half of itself: then its interval says something.
        margin = found.denominator.value - found.denominator.low
        assert found.is_resolved == (margin <= found.denominator.value / 2)
        assert np.isnan(found.estimate.value) != found.is_resolved
        assert found.difference.low <= found.difference.value <= found.difference.high
        if not found.is_resolved:
            continue
        assert found.estimate.high - found.estimate.low < 2
        hits.append(found.estimate.low <= 0 <= found.estimate.high)
    assert len(hits) >= 10
    assert np.mean(hits) >= 0.8
    # Halfway: every other pair of models unlearns.
    world = World(M=16, N=200, F=50)
    kept = world.draw(np.where(np.arange(len(world.keep))[:, None] // 2 % 2, world.keep, world.rest))
    assert psi_normalised(*ensembles(world, kept)).estimate.value == pytest.approx(0.5, abs=0.25)


def test_below_zero_is_over_forgotten_and_without_a_gap_nothing_is_defined():
    world = World(M=16, N=300, F=60)
    found = psi_normalised(*ensembles(world, world.draw(world.rest, shift=-3.0 * world.forget)))
    assert found.estimate.high < 0
    assert found.over_forgotten
    blind = World(M=16, N=300, F=60, gap=0.0)
    nothing = psi_normalised(*ensembles(blind, blind.draw(blind.rest)))
    assert nothing.denominator.low < 0 < nothing.denominator.high
    assert np.isnan(nothing.estimate.value)
    assert not nothing.is_resolved
    assert nothing.difference.low < 0 < nothing.difference.high
    assert not nothing.over_forgotten


def test_several_signals_are_joined():
    """The second of two signals carries all of membership; phi alone sees nothing."""
    world = World(M=8, N=400, F=80, gap=0.0, hardness=0.0)
    signal = 1.5 * world.keep + world.rng.normal(size=world.keep.shape)
    features = np.concatenate([world.before, -100 * signal[..., None]], axis=2)
    (blind,) = called_members(world.before, world.keep, world.forget, fprs=[0.1])
    (seeing,) = called_members(features, world.keep, world.forget, fprs=[0.1])
    assert blind.forget.mean() == pytest.approx(0.1, abs=0.04)
    assert seeing.forget.mean() == pytest.approx(norm.cdf(norm.ppf(0.1) + 1.5), abs=0.06)


def test_a_model_that_holds_nothing_of_the_forget_set_is_no_obstacle():
    world = World(M=8, N=80, F=10)
    world.keep[0, world.forget], world.keep[1, world.forget] = False, True
    (called,) = called_members(world.before, world.keep, world.forget, fprs=[0.3])
    assert np.isfinite(np.stack(called)).all()
    figures = measure(world.before, world.before, world.retrained, world.keep, world.forget)
    evaluation = evaluate_unlearning({"none": [figures]}, world.keep)
    json.dumps(unlearning_document(evaluation), allow_nan=False)
