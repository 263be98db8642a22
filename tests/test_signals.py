import decimal
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_kinds import SINGLE
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from lira import signals
from lira.signals import (
    SaturatedWarning,
    is_correct,
    phi_from_binary_logits,
    phi_from_confidences,
    phi_from_losses,
    phi_from_probabilities,
    replace_saturated,
)

# As the engine runs them, and compiled once a shape and not operation by operation.
entropy, modified_entropy = jax.jit(signals.entropy), jax.jit(signals.modified_entropy)
logit_scaled_confidence = jax.jit(signals.logit_scaled_confidence)


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


# --- Entropies, against their definitions in 80-digit arithmetic ----------------------------------------------------


def exact_probabilities(logits):
    """The softmax of one vector, in decimal arithmetic."""
    powers = [Decimal(float(z)).exp() for z in logits]
    return [power / sum(powers) for power in powers]


def exact_entropies(logits, label):
    """Entropy and modified entropy of one vector, as they are defined."""
    with decimal.localcontext() as context:
        context.prec = 80
        p = exact_probabilities(logits)
        plain = -sum(q * q.ln() for q in p)
        others = sum(q * (1 - q).ln() for c, q in enumerate(p) if c != label)
        return float(plain), float(-(1 - p[label]) * p[label].ln() - others)


LOGITS = [
    *([0.0, 0.0], [0.0, 0.0, 0.0], [3.0, -1.0], [50.0, 0.0], [0.0, 80.0], [-40.0, 40.0]),
    *([1.0, 30.0, -20.0], [0.0, 1e-3, 60.0, 59.0], [-300.0, 20.0, 21.0], [7.0, 7.0, -50.0]),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logits", LOGITS)
def test_entropies_keep_relative_precision_at_both_ends(logits, dtype):
    values = np.array(logits, dtype)
    expected = np.array([exact_entropies(values, label) for label in range(len(logits))])
    with jax.enable_x64(dtype == np.float64):
        tiled = np.tile(values, (len(logits), 1))
        plain = entropy(tiled)
        modified = modified_entropy(tiled, np.arange(len(logits)))
    assert plain.dtype == modified.dtype == dtype
    # A margin of size |z| rounds by |z| ulps, and so does its exponential; below the smallest normal number is 0.
    tolerance = {"rtol": 400 * np.finfo(dtype).eps, "atol": np.finfo(dtype).tiny}
    np.testing.assert_allclose(plain, expected[:, 0], **tolerance)
    np.testing.assert_allclose(modified, expected[:, 1], **tolerance)


@given(hnp.arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32)), st.integers(0, 2**32 - 1))
def test_entropies_agree_with_their_definitions(logits, seed):
    labels = np.random.default_rng(seed).integers(0, 5, 4)
    expected = np.array([exact_entropies(z, y) for z, y in zip(logits, labels, strict=True)])
    np.testing.assert_allclose(entropy(logits), expected[:, 0], rtol=2e-5)
    np.testing.assert_allclose(modified_entropy(logits, labels), expected[:, 1], rtol=2e-5)


def test_entropies_at_their_limits():
    """Masked classes count as probability 0; certainty is 0, certainty of another class infinite; NaN stays NaN."""
    masked = jnp.array([0.0, 0.0, -jnp.inf])
    np.testing.assert_allclose(entropy(masked), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(modified_entropy(masked, jnp.array(0)), np.log(2), rtol=1e-6)
    certain = jnp.array([0.0, -jnp.inf])
    assert entropy(certain) == 0
    assert modified_entropy(certain, jnp.array(0)) == 0
    assert modified_entropy(certain, jnp.array(1)) == jnp.inf
    broken = jnp.zeros((2, 3)).at[0, 1].set(jnp.nan)
    assert np.isnan(entropy(broken)).tolist() == [True, False]
    assert np.isnan(modified_entropy(broken, jnp.array([0, 0]))).tolist() == [True, False]


def test_entropies_do_not_depend_on_a_common_offset_or_on_jit_and_keep_leading_axes():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(-8, 8, (2, 3, 4)).astype(np.float32), rng.integers(0, 4, (2, 3))
    for function in (signals.entropy, lambda z: signals.modified_entropy(z, labels)):
        assert function(logits).shape == (2, 3)
        np.testing.assert_array_equal(function(logits), function(logits + 1024))
        np.testing.assert_allclose(function(logits), jax.jit(function)(logits), rtol=1e-6)


# --- Phi from losses, confidences and probabilities -----------------------------------------------------------------


@given(hnp.arrays(np.float64, 5, elements=st.floats(1e-300, 1e4)))
def test_phi_from_losses_inverts_the_definition_at_any_size(losses):
    with decimal.localcontext() as context:
        context.prec = 400
        expected = [float(-(Decimal(float(loss)).exp() - 1).ln()) for loss in losses]
    np.testing.assert_allclose(phi_from_losses(losses), expected, rtol=1e-14, atol=1e-15)


def test_phi_from_losses_at_its_limits():
    np.testing.assert_array_equal(phi_from_losses(np.array([0.0, np.inf, np.nan])), [np.inf, -np.inf, np.nan])
    with pytest.raises(ValueError, match=r"a cross-entropy loss is not negative; got -0.5"):
        phi_from_losses(np.array([0.1, -0.5]))


@given(hnp.arrays(np.float64, 5, elements=st.floats(1e-300, 1 - 2**-53)))
def test_phi_from_confidences_is_the_logit_in_float64(confidences):
    with decimal.localcontext() as context:
        context.prec = 400
        exact = [Decimal(float(p)) for p in confidences]
        expected = [float((p / (1 - p)).ln()) for p in exact]
    # Near p = 1/2 the two logarithms cancel to rounding.
    np.testing.assert_allclose(phi_from_confidences(confidences), expected, rtol=1e-13, atol=3e-16)


def test_float32_confidences_end_where_the_documentation_says():
    below_one = np.nextafter(np.float32(1), np.float32(0))
    assert phi_from_confidences(np.array([below_one])) == pytest.approx(16.636, abs=1e-3)
    np.testing.assert_array_equal(
        phi_from_confidences(np.array([0.0, 1.0, np.nan])), [-np.inf, np.inf, np.nan]
    )
    for bad in (1.5, -0.1):
        with pytest.raises(ValueError, match=r"a probability is in \[0, 1\]; got"):
            phi_from_confidences(np.array([0.5, bad]))


def test_probability_vectors_keep_the_tail_that_the_label_alone_loses():
    """Float32 softmax of logits 60 apart: p_y is exactly 1, the other class still tells phi."""
    logits = np.array([[60.0, 0.0, 0.0], [0.0, 60.0, 1.0]], np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert probabilities[0, 0] == 1
    np.testing.assert_allclose(
        phi_from_probabilities(probabilities, np.array([0, 2])),
        naive_phi(logits, np.array([0, 2])),
        rtol=1e-6,
    )


def test_probability_vectors_at_their_limits():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.2, 0.2]])
    np.testing.assert_array_equal(phi_from_probabilities(vectors, np.array([0, 1, 0])), [np.inf, -np.inf, 0])
    with pytest.raises(ValueError, match="all zeros"):
        phi_from_probabilities(np.zeros((1, 3)), np.array([0]))
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got -2"):
        phi_from_probabilities(np.array([[-2.0, 3.0]]), np.array([0]))


def test_one_logit_agrees_with_two():
    logits = np.array([2.5, -1.0, 0.0], np.float32)
    both = np.stack([np.zeros(3, np.float32), logits], axis=1)
    for label in (0, 1):
        labels = np.full(3, label)
        np.testing.assert_allclose(
            phi_from_binary_logits(logits, labels), logit_scaled_confidence(both, labels), rtol=1e-6
        )
    with pytest.raises(ValueError, match="labels must be 0 or 1; got 2"):
        phi_from_binary_logits(logits, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("precision", "limit"), [(np.float16, 8.318), (np.float32, 17.329), (np.float64, 37.430)]
)
def test_saturated_values_become_the_smallest_phi_that_rounds_to_one(precision, limit):
    one = precision(1)
    # The definition: a phi a little larger is a confidence that rounds to 1, a little smaller one is not.
    for shift, saturates in ((0.01, True), (-0.01, False)):
        assert (precision(1 - 1 / (1 + np.exp(np.longdouble(limit + shift)))) == one) == saturates
    with pytest.warns(
        SaturatedWarning, match=r"^2 of 4 values are a confidence of 1 .* and 1 a confidence of 0"
    ):
        finite = replace_saturated(np.array([np.inf, 2.0, np.inf, -np.inf]), precision)
    np.testing.assert_allclose(finite, [limit, 2, limit, -limit], atol=1e-3)


def test_saturated_values_stay_beyond_the_finite_ones():
    with pytest.warns(SaturatedWarning):
        finite = replace_saturated(np.array([50.0, np.inf, -90.0, -np.inf, np.nan]), np.float32)
    np.testing.assert_allclose(finite, [50, 50 + np.log(2), -90, -90 - np.log(2), np.nan])
    with pytest.warns(SaturatedWarning):
        assert replace_saturated(np.array([1, np.inf], np.float32), np.float32).dtype == np.float32


def test_values_that_are_finite_are_left_alone():
    phi = np.array([1.0, -2.0])
    assert replace_saturated(phi, np.float32) is phi


@pytest.mark.parametrize("kind", SINGLE)
def test_signals_do_not_depend_on_how_logits_are_held(kind):
    rng = np.random.default_rng(0)
    logits = (np.round(16 * rng.normal(size=(6, 4))) / 16).astype(np.float32)
    labels = rng.integers(0, 4, 6)
    held = SINGLE[kind](logits)
    for function in (signals.logit_scaled_confidence, signals.modified_entropy, is_correct):
        expected = function(logits, labels)
        np.testing.assert_array_equal(function(held, labels), expected)
        np.testing.assert_array_equal(function(held, labels.astype(">i8")), expected)
    np.testing.assert_array_equal(signals.entropy(held), signals.entropy(logits))


@pytest.mark.parametrize("values", [np.array(["0.5"]), np.zeros(2, complex), np.zeros(2, [("a", "f4")])])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="real numbers"):
        signals.native_floats(values)


def test_labels_that_are_no_classes_are_refused():
    """-1 was answered with another class's confidence."""
    logits = np.zeros((2, 3), np.float32)
    for labels in ([0, 3], [-1, 0], [0.0, 1.0]):
        for ask in (signals.logit_scaled_confidence, signals.modified_entropy, signals.is_correct):
            with pytest.raises(ValueError, match="labels must be classes, whole numbers below 3; got"):
                ask(logits, np.array(labels))
