import math

import jax
import numpy as np
import pytest

from lira.attacks._averages import log_confidence, log_sum, losses, total
from lira.attacks._parted import Side


def leave_one_out(function, values, mask):
    """`function` of a side [M, n, Q] of which each model in turn is removed, where it belongs to the side."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(values, Side(mask, values, mask)))


def naive(values, mask, without, combine):
    """`combine` over the side's values without one model, an entry at a time."""
    M, n, Q = values.shape
    rest = mask & (np.arange(M) != without)[:, None]
    return np.array([[combine(values[rest[:, i], i, q]) for q in range(Q)] for i in range(n)])


def log_of_sum(values):
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def adversarial_phi(kind, M, n):
    rng = np.random.default_rng(0)
    phi = rng.uniform(-60, 60, size=(M, n, 2))
    if kind == "one dominates":
        phi = rng.normal(-50, 1, size=(M, n, 2))
        phi[rng.integers(M, size=n), np.arange(n)] = 60
    elif kind == "two dominate":
        phi = rng.normal(-50, 1, size=(M, n, 2))
        phi[1:3] = 60
    elif kind == "equal":
        phi = np.broadcast_to(rng.choice([-60.0, 0.0, 60.0], size=(1, n, 1)), (M, n, 2)).copy()
    elif kind == "out of float64's range":
        phi = rng.choice([-2e3, -1.9e3, 1e3], size=(M, n, 2))
    return phi.astype(np.float32)


KINDS = ["spread", "one dominates", "two dominate", "equal", "out of float64's range"]


@pytest.mark.parametrize("kind", KINDS)
def test_log_sums_survive_removing_the_model_that_dominates(kind):
    M, n = 40, 30
    phi = adversarial_phi(kind, M, n)
    mask = np.random.default_rng(1).uniform(size=(M, n)) < 0.7
    with jax.enable_x64(True):
        values = np.asarray(log_confidence(phi))
    result = leave_one_out(log_sum, values, mask)
    for without in range(M):
        # Absolute in the logarithm is relative in the probability.
        np.testing.assert_allclose(
            result[without], naive(values, mask, without, log_of_sum), rtol=1e-15, atol=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_losses_survive_removing_the_model_that_dominates(kind):
    M, n = 40, 30
    # Turned round: the loss of -60 is 60, and those of 50 are 1e-22.
    values = losses(-adversarial_phi(kind, M, n))
    mask = np.random.default_rng(1).uniform(size=(M, n)) < 0.7
    result = leave_one_out(total, values, mask)
    for without in range(M):
        np.testing.assert_allclose(result[without], naive(values, mask, without, math.fsum), rtol=1e-12)


def test_plain_subtraction_would_not_survive():
    values = losses(-adversarial_phi("one dominates", 40, 30))
    largest = values.argmax(axis=0)[0, 0]
    everyone = np.ones((40, 30), bool)
    exact = naive(values, everyone, largest, math.fsum)[0, 0]
    assert abs(values[:, 0, 0].sum() - values[largest, 0, 0] - exact) > 0.01 * exact


def test_nothing_left_is_an_empty_sum():
    values = np.array([[[-1.0]], [[-2.0]]])
    mask = np.array([[True], [False]])
    np.testing.assert_array_equal(leave_one_out(log_sum, values, mask), [[[-np.inf]], [[-1.0]]])
    np.testing.assert_array_equal(leave_one_out(total, -values, mask), [[[0.0]], [[1.0]]])
    nobody = np.zeros_like(mask)
    np.testing.assert_array_equal(leave_one_out(log_sum, values, nobody), np.full((2, 1, 1), -np.inf))


def test_equal_phi_have_equal_losses_wherever_they_stand():
    phi = np.random.default_rng(0).normal(size=7).astype(np.float32)
    values = losses(np.resize(phi, (3, 1001, 1)))[..., 0]
    np.testing.assert_array_equal(values, np.resize(values[0, :7], (3, 1001)))


def test_log_confidence_and_loss_keep_their_tails():
    phi = np.array([-1e4, -100, -1, 0, 1, 30, 100, 700], np.float32).reshape(1, -1, 1)
    exact = [-1e4, -100, -1 - math.log1p(math.exp(-1)), -math.log(2), -math.log1p(math.exp(-1))]
    exact += [-math.exp(-30) + math.exp(-60) / 2, -math.exp(-100), -math.exp(-700)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(log_confidence(phi)[0, :, 0], exact, rtol=1e-14)
    np.testing.assert_allclose(losses(phi)[0, :, 0], np.negative(exact), rtol=1e-14)
