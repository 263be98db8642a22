import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from lira.signals import is_correct, logit_scaled_confidence


def naive_phi(logits, labels):
    """The definition, in float64, one example at a time."""
    phi = []
    for z, y in zip(logits.astype(np.float64), labels, strict=True):
        phi.append(-logsumexp(np.delete(z, y) - z[y]))
    return np.array(phi)


@given(
    st.sampled_from([(7, 2), (4, 3), (5, 10)]).flatmap(
        lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))
    ),
    st.integers(0, 2**32 - 1),
)
def test_phi_is_exact_to_float32_on_extreme_logits(logits, seed):
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    phi = logit_scaled_confidence(jnp.asarray(logits), jnp.asarray(labels))
    assert phi.dtype == jnp.float32
    # z_c - z_y and the sum round once each: a few float32 ulps of phi, plus those of log(C) near phi = 0.
    np.testing.assert_allclose(phi, naive_phi(logits, labels), rtol=3e-7, atol=1e-6)


def test_large_common_offset_costs_no_accuracy():
    """Logits near 1e4 that differ by 1e-2: subtracting a logsumexp of size 1e4 would lose three digits."""
    logits = np.float32(1e4) + np.array([[0.0, 0.01, 0.02]], np.float32)
    phi = logit_scaled_confidence(jnp.asarray(logits), jnp.array([1]))
    np.testing.assert_allclose(phi, naive_phi(logits, np.array([1])), rtol=1e-6)


def test_agrees_with_the_original_formula_where_that_does_not_saturate():
    """The original's `score.py`: log(p_y + 1e-45) - log(sum of the other probabilities + 1e-45), in float64."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (1000, 10)).astype(np.float32)
    labels = rng.integers(0, 10, 1000)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    p_y = p[np.arange(1000), labels]
    p[np.arange(1000), labels] = 0
    original = np.log(p_y + 1e-45) - np.log(p.sum(axis=1) + 1e-45)
    np.testing.assert_allclose(logit_scaled_confidence(logits, labels), original, rtol=2e-6, atol=2e-6)


def test_two_classes_is_the_difference_of_logits():
    phi = logit_scaled_confidence(jnp.array([[2.0, 5.0]]), jnp.array([1]))
    np.testing.assert_allclose(phi, [3.0])


def test_nan_logits_give_nan_and_leading_axes_are_kept():
    logits = jnp.zeros((3, 2, 4)).at[1, 0, 2].set(jnp.nan)
    phi = logit_scaled_confidence(logits, jnp.zeros((3, 2), int))
    assert phi.shape == (3, 2)
    assert np.isnan(phi[1, 0])
    assert np.isnan(phi).sum() == 1


@given(st.integers(0, 2**32 - 1))
def test_confidence_and_loss_follow_from_phi(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (5, 4)).astype(np.float32), rng.integers(0, 4, 5)
    phi = logit_scaled_confidence(logits, labels)
    p = jax.nn.softmax(logits)[np.arange(5), labels]
    np.testing.assert_allclose(jax.nn.sigmoid(phi), p, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softplus(-phi), -np.log(p), rtol=1e-4, atol=1e-6)


def test_correct_takes_the_first_of_equal_logits():
    logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(is_correct(logits, jnp.array([0, 1, 1])), [True, False, True])
