import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow_pools import MODES, SIZES, loss, make_pool, probability, targets

from lira import attacks
from lira.attacks import calibration


def naive_difficulty(target, phi):
    """Mean over OUT models of the loss - the target's loss, an example at a time."""
    result = []
    for n, own in enumerate(target.own):
        result.append(loss(phi[target.outside[:, n], n]).mean() - loss(own).mean())
    return result


def naive_difficulty_both(target, phi):
    result = []
    for n, own in enumerate(target.own):
        inside, outside = loss(phi[target.inside[:, n], n]), loss(phi[target.outside[:, n], n])
        result.append((inside.mean() + outside.mean()) / 2 - loss(own).mean())
    return result


def naive_base(target, phi):
    result = []
    for n, own in enumerate(target.own):
        reference = probability(phi[target.inside[:, n] | target.outside[:, n], n]).mean(axis=0)
        result.append(np.mean(np.log(probability(own)) - np.log(reference)))
    return result


NAIVE = {
    "difficulty_calibration": naive_difficulty,
    "difficulty_calibration_both": naive_difficulty_both,
    "base": naive_base,
}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    size=st.sampled_from(SIZES),
    ties=st.booleans(),
    name=st.sampled_from(list(NAIVE)),
)
def test_closed_form_equals_a_loop(seed, mode, size, ties, name):
    pool = make_pool(seed, mode, *size, ties=ties)
    scores = getattr(attacks, name)(pool.phi, pool.keep, **pool.options)
    assert scores.dtype == np.float32
    expected = [NAIVE[name](target, pool.phi) for target in targets(pool)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


def test_known_losses():
    """Losses 3 | IN 1, 2 | OUT 4, 8: 6 - 3, and (1.5 + 6) / 2 - 3."""
    phi = -np.log(np.expm1([[[3.0]], [[1.0]], [[2.0]], [[4.0]], [[8.0]]]))
    keep = np.array([[True], [True], [False], [False]])
    np.testing.assert_allclose(
        attacks.difficulty_calibration(phi[1:], keep, target=phi[:1]), [[3]], rtol=1e-6
    )
    np.testing.assert_allclose(
        attacks.difficulty_calibration_both(phi[1:], keep, target=phi[:1]), [[0.75]], rtol=1e-6
    )
    # log exp(-3) - log mean exp(-{1, 2, 4, 8})
    expected = -3 - np.log(np.exp([-1.0, -2, -4, -8]).mean())
    np.testing.assert_allclose(attacks.base(phi[1:], keep, target=phi[:1]), [[expected]], rtol=1e-6)


def test_base_is_the_score_of_a_shift_of_the_logarithm():
    """Where p is small it is exp(phi): a target shifted by d from its only reference scores d."""
    reference = np.linspace(-60, -40, 30, dtype=np.float32)[None, :, None]
    shift = np.array([[[0.5]], [[-2.0]]], np.float32)
    scores = attacks.base(reference, np.zeros((1, 30), bool), target=reference + shift)
    np.testing.assert_allclose(scores, np.broadcast_to(shift[..., 0], (2, 30)), rtol=1e-5)


@pytest.mark.parametrize("held", [True, False])
def test_base_takes_whatever_models_there_are(held):
    """Examples held by all of the pool, or by none."""
    pool = make_pool(0, "outside", 4, 1)
    keep = np.full_like(pool.keep, held)
    expected = [naive_base(t._replace(inside=keep, outside=~keep), pool.phi) for t in targets(pool)]
    np.testing.assert_allclose(
        attacks.base(pool.phi, keep, target=pool.target), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("difficulty_calibration", True, "difficulty_calibration needs 1 OUT model.*has 0: use attack_p"),
        ("difficulty_calibration_both", True, "difficulty_calibration_both needs 1 OUT model.*use attack_p"),
        (
            "difficulty_calibration_both",
            False,
            "needs 1 IN model.*use difficulty_calibration, which needs no IN",
        ),
    ],
)
def test_too_few_models_name_what_works(name, keep, message):
    phi = np.zeros((3, 5, 1), np.float32)
    with pytest.raises(ValueError, match=message):
        getattr(attacks, name)(phi, np.full((3, 5), keep), target=phi[:1])


def test_a_single_pair_leaves_no_reference():
    phi, keep = np.zeros((2, 5, 1), np.float32), np.array([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match=r"base needs 1 IN or OUT model .* an example has 0: use attack_p"):
        attacks.base(phi, keep)
    with pytest.raises(ValueError, match=r"base needs 1 IN or OUT model .* an example has 0"):
        attacks.base(phi[:1], keep[:1], leave="one")
    with pytest.raises(ValueError, match="difficulty_calibration needs 1 OUT model"):
        attacks.difficulty_calibration(phi, keep)


def test_examples_in_the_documentation():
    failed, attempted = doctest.testmod(calibration)
    assert attempted == 4
    assert failed == 0
