"""Distributions of unlearned and retrained models: epsilon, forgetting quality, KLoM, direction."""

import numpy as np
import pytest
from forgetting_worlds import World

from lira.forgetting import (
    direction,
    example_epsilons,
    forgetting_quality,
    klom,
    largest_epsilon,
)


def naive_epsilon(unlearned, fresh, delta):
    best = 0.0
    for threshold in np.unique(np.concatenate([unlearned, fresh])):
        for sign in (1, -1):
            false = np.mean(sign * fresh >= sign * threshold)
            missed = np.mean(sign * unlearned < sign * threshold)
            if false == 0 and missed == 0:
                return np.inf
            if false > 0 and missed > 0:
                for a, b in ((false, missed), (missed, false)):
                    if 1 - delta - a > 0:
                        best = max(best, np.log(1 - delta - a) - np.log(b))
    return best


@pytest.mark.parametrize("ties", [False, True])
def test_epsilons_are_the_best_of_all_thresholds(ties):
    world = World(M=16, N=60, F=20, gap=2.0)
    after, retrained = world.before, world.retrained
    if ties:
        after, retrained = np.round(after), np.round(retrained)
    found = example_epsilons(after, retrained, world.keep, world.forget, delta=1e-3)
    for epsilon, x in zip(found, np.flatnonzero(world.forget), strict=True):
        held = world.keep[:, x]
        expected = naive_epsilon(after[held, x, 0], retrained[~held, x, 0], 1e-3)
        assert epsilon == pytest.approx(expected, abs=1e-9)
    assert len(set(found)) > 3


def test_separable_ensembles_have_infinite_epsilon_on_either_side():
    world = World(M=8, N=40, F=4)
    for shift in (50, -50):
        found = example_epsilons(world.draw(world.rest, shift), world.retrained, world.keep, world.forget)
        assert np.isinf(found).all()
        assert forgetting_quality(found) == 0
    same = np.zeros_like(world.before)
    assert (example_epsilons(same, same, world.keep, world.forget) == 0).all()


def test_the_largest_finite_epsilon_is_reached_and_not_passed():
    """One error of each kind among 2 x 8 models."""
    M, keep = 16, np.tile([[True], [False]], (8, 1))
    after, retrained = np.full((M, 1, 1), 5.0), np.zeros((M, 1, 1))
    after[0], retrained[1] = -1, 6
    (found,) = example_epsilons(after, retrained, keep, np.array([True]))
    assert found == pytest.approx(np.log(7 - 8e-5)) == largest_epsilon(M)
    assert largest_epsilon(2) == 0


def test_forgetting_quality_halves_with_each_half_of_epsilon():
    assert forgetting_quality(np.array([0.0, 0.49])) == 1
    assert forgetting_quality(np.array([0.5])) == 0.5
    assert forgetting_quality(np.array([1.7])) == 2 / 2**4


def naive_klom(unlearned, fresh):
    edges = np.linspace(min(*unlearned, *fresh), max(*unlearned, *fresh), 21)
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (unlearned, fresh))
    q = np.where(p > 0, np.maximum(q, 1e-5), q)
    q = q / q.sum()
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_klom_is_the_divergence_of_histograms():
    world = World(M=32, N=60, F=20)
    found = klom(world.before, world.retrained, world.keep, world.forget)
    for value, x in zip(found, np.flatnonzero(world.forget), strict=True):
        held = world.keep[:, x]
        expected = naive_klom(
            world.before[held, x, 0].astype(float), world.retrained[~held, x, 0].astype(float)
        )
        assert value == pytest.approx(expected, abs=1e-9)


def test_klom_of_gaussians_and_its_ends():
    """Many models: D(N(d, 1) || N(0, 1)) = d^2 / 2, less what 20 bins lose."""
    M, keep = 40_000, np.tile([[True], [False]], (20_000, 1))
    rng = np.random.default_rng(0)
    fresh = rng.normal(size=(M, 1, 1))
    (found,) = klom(fresh + 1, fresh, keep, np.array([True]))
    assert found == pytest.approx(0.5, abs=0.03)
    # Margins end at 100: all of the unlearned in a bin without any retrained model.
    far, near = np.full((4, 1, 1), 5000.0), np.zeros((4, 1, 1))
    (found,) = klom(far, near, keep[:4], np.array([True]))
    assert found == pytest.approx(np.log((1 + 1e-5) / 1e-5))
    (found,) = klom(far, np.full((4, 1, 1), 200.0), keep[:4], np.array([True]))
    assert found == 0


def test_the_direction_is_the_mean_shift_of_what_was_held():
    world = World(M=16, N=100, F=20)
    after = world.draw(world.rest, shift=-0.8)
    found = direction(after, world.retrained, world.keep, world.forget)
    held = world.keep & world.forget
    assert found.shift.value == pytest.approx((after - world.retrained)[held].mean(dtype=float), rel=1e-5)
    assert found.shift.low < -0.8 < found.shift.high
    assert found.auc.value < 0.5
    assert found.over_forgotten
    assert not direction(world.before, world.retrained, world.keep, world.forget).over_forgotten
    # One outlier moves the mean, and not the AUC.
    outlier = world.draw(world.rest, shift=0.5)
    outlier[:, np.argmax(world.forget)] -= 200
    found = direction(outlier, world.retrained, world.keep, world.forget)
    assert found.shift.high < 0
    assert not found.over_forgotten
