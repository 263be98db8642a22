import numpy as np
import pytest
from array_kinds import SINGLE
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from scipy.stats import mannwhitneyu

from lira.exchange.confidences import as_keep, as_labels, to_signals
from lira.learning import logits
from lira.learning.logits import BoundedWarning
from lira.metrics.alignment import member_z, require_aligned

N, Q, C = 40, 3, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (N, Q, C)).astype(np.float32)
LABELS = np.arange(N) % C


def exact(logits: np.ndarray = LOGITS, labels: np.ndarray = LABELS) -> np.ndarray:
    """Phi `[N, Q]` in longdouble, by the definition."""
    p = softmax(logits.astype(np.longdouble), axis=-1)
    p_y = np.take_along_axis(p, labels[:, None, None], axis=-1)[..., 0]
    return np.log(p_y) - np.log(p.sum(axis=-1) - p_y)


PHI = exact()
P = softmax(LOGITS.astype(np.float64), axis=-1)
P_Y = np.take_along_axis(P, LABELS[:, None, None], axis=-1)[..., 0]
CORRECT = LOGITS[:, 0].argmax(axis=-1) == LABELS


@pytest.mark.parametrize(
    ("kind", "values", "knows_class"),
    [
        ("phi", PHI.astype(np.float64), False),
        ("losses", -np.log(P_Y), False),
        ("confidences", P_Y, False),
        ("confidences", P, True),
        ("logits", LOGITS, True),
        ("logits", LOGITS.astype(np.float64), True),
    ],
)
def test_every_kind_gives_the_same_phi_with_and_without_queries(kind, values, knows_class):
    for given_values, expected in ((values, PHI), (values[:, 0], PHI[:, :1])):
        signals, correct = to_signals(kind, given_values, LABELS)
        phi = signals["phi"]
        assert phi.dtype == np.float64
        np.testing.assert_allclose(phi, expected.astype(np.float64), rtol=1e-10, atol=1e-10)
        if knows_class:
            np.testing.assert_array_equal(correct, CORRECT)
        else:
            assert correct is None


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, Q, 1)])
def test_one_logit_is_a_binary_classifier(shape):
    z = np.random.default_rng(1).normal(size=shape)
    labels = np.arange(N) % 2
    both = np.stack([np.zeros(shape), z], axis=-1).reshape(N, -1, 2)
    signals, correct = to_signals("logits", z, labels)
    phi = signals["phi"]
    np.testing.assert_allclose(phi, exact(both, labels).astype(np.float64), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(correct, (z.reshape(N, -1)[:, 0] > 0) == labels)


def test_what_a_sigmoid_gives_is_warned_of_and_what_log_softmax_gives_is_as_good():
    with pytest.warns(BoundedWarning, match="all logits of a model lie in"):
        to_signals("logits", expit(LOGITS), LABELS)
    phi = to_signals("logits", log_softmax(LOGITS.astype(np.float64), axis=-1), LABELS)[0]["phi"]
    np.testing.assert_allclose(phi, PHI.astype(np.float64), rtol=1e-10, atol=1e-10)


def test_large_arrays_go_through_in_blocks(monkeypatch):
    monkeypatch.setattr(logits, "BLOCK_VALUES", 20 * Q * C)
    np.testing.assert_allclose(
        to_signals("logits", LOGITS, LABELS)[0]["phi"], PHI.astype(np.float64), rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(
        to_signals("confidences", P, LABELS)[0]["phi"], PHI.astype(np.float64), rtol=1e-10, atol=1e-10
    )


def changed(values, index, value):
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("kind", "values", "labels", "message"),
    [
        ("logits", LOGITS, None, "logits need labels"),
        ("logits", LOGITS, LABELS[:-1], "has 40 rows, but there are 39 labels"),
        ("logits", LOGITS[..., :4], LABELS, "has 4 classes on its last axis, but labels go up to 4"),
        ("logits", LOGITS[:, 0, 0], LABELS, "has 1 classes on its last axis, but labels go up to 4"),
        (
            "logits",
            LOGITS[None],
            LABELS[:1],
            r"has a shape of \(1, 40, 3, 5\) for a model; logits are \[N\], \[N, C\]",
        ),
        ("logits", P, LABELS, "looks like probabilities .* not logits: give it as confidences"),
        ("logits", P[:, 0, 1], np.arange(N) % 2, r"looks like probabilities of class 1 .* \[1 - p, p\]"),
        ("logits", changed(LOGITS, (3, 2, 1), np.nan), LABELS, r"is NaN at example 3, query 2 \(1 in all\)"),
        ("phi", LOGITS, None, r"phi are \[N\] or \[N, Q\]"),
        ("phi", changed(PHI[:, 0], 7, np.nan), None, "is NaN at example 7, query 0"),
        ("phi", changed(PHI, (7, 2), np.inf), None, "is infinite at example 7, query 2: phi must be finite"),
        (
            "logits",
            changed(LOGITS, (3, 2, 1), -np.inf),
            LABELS,
            "is infinite at example 3, query 2: logits must",
        ),
        (
            "losses",
            changed(-np.log(P_Y), (0, 0), -1e-5),
            None,
            "a cross-entropy loss is not negative; got -1e-05",
        ),
        ("confidences", changed(P_Y, (0, 0), 1 + 1e-5), None, r"a probability is in \[0, 1\]; got 1.00001"),
        ("confidences", P[:, 0], None, "looks like whole probability vectors, .*: give labels beside them"),
        ("confidences", P_Y, LABELS % 2, r"alone, beside labels of 2 classes, are \[N, Q, 1\]"),
        ("losses", changed(-np.log(P_Y), (0, 0), -1), None, "a cross-entropy loss is not negative; got -1"),
        ("confidences", LOGITS[:, 0], None, r"a probability is in \[0, 1\]"),
        ("confidences", P, None, "probability vectors need labels and rows that sum to 1"),
        ("confidences", P * 0.5, LABELS, "probability vectors need labels and rows that sum to 1"),
        ("confidences", changed(P, (2, 1), -P[2, 1]), LABELS, "rows that sum to 1"),
    ],
)
def test_what_cannot_be_is_refused(kind, values, labels, message):
    with pytest.raises(ValueError, match=message):
        to_signals(kind, values, labels)


def test_rounding_at_the_ends_of_a_range_is_no_error():
    """A softmax that adds up to 1 + 1e-7, a log-softmax of 1e-7: what float32 is rounded by."""
    for dtype, ulps in ((np.float32, 1.2e-7), (np.float64, 1e-7), (np.float16, 1e-3)):
        ends = np.array([1 + ulps, -ulps, 0.5], dtype)
        assert to_signals("confidences", ends, None)[0]["phi"].ravel().tolist() == [np.inf, -np.inf, 0]
        phi = to_signals("losses", np.array([-ulps, np.log(2)], dtype), None)[0]["phi"].ravel()
        assert phi[0] == np.inf
        assert abs(phi[1]) < 1e-3
        if dtype != np.float16:
            vectors = np.array([[1 + ulps, -ulps], [0.25, 0.75]], dtype)
            found = to_signals("confidences", vectors, np.array([0, 1]))[0]["phi"].ravel()
            np.testing.assert_allclose(found, [np.inf, np.log(3)], rtol=1e-6)


def test_what_confidences_are_follows_from_shape_and_labels_alone():
    """Two queries whose confidences happen to add up to 1 are two queries beside labels, too."""
    halves = np.full((N, 2), 0.5)
    with pytest.raises(ValueError, match="looks like whole probability vectors"):
        to_signals("confidences", halves, None)
    alone = to_signals("confidences", halves[..., None], LABELS)[0]
    assert alone.keys() == {"phi"}
    np.testing.assert_array_equal(alone["phi"], np.zeros((N, 2)))
    np.testing.assert_allclose(
        to_signals("confidences", P_Y[..., None], LABELS)[0]["phi"],
        to_signals("confidences", P_Y, None)[0]["phi"],
    )


def test_membership_is_boolean_or_zero_and_one():
    for values in ([True, False], [1, 0], [1.0, 0.0]):
        np.testing.assert_array_equal(as_keep(np.array(values)), [True, False])
    with pytest.raises(ValueError, match=r"member must be true or false .* got 7: not indices of members"):
        as_keep(np.array([0, 7, 1]), "member")
    with pytest.raises(ValueError, match="got nan"):
        as_keep(np.array([0, np.nan]))


def test_labels_are_class_numbers_of_two_classes_at_least():
    assert as_labels(np.array([0.0, 2.0, 1.0]), 3).dtype == np.int32
    np.testing.assert_array_equal(as_labels(np.array([[0, 1, 1]]), 3), [0, 1, 1])
    for values, message in [
        ([0, 1], r"labels must be \[N\] = \[3\]"),
        (np.eye(3), "argmax one-hot rows"),
        ([0, 1, -1], r"labels\[2\] is -1, not a class number"),
        ([0, 0.5, 1], r"labels\[1\] is 0.5, not a class number"),
        ([0, np.nan, 1], r"labels\[1\] is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_labels(np.array(values), 3)


@given(st.integers(0, 2**31), st.booleans())
def test_member_z_is_the_mann_whitney_statistic(seed, ties):
    rng = np.random.default_rng(seed)
    phi, keep = rng.normal(size=30), np.arange(30) % 3 == 0
    phi = np.round(phi) if ties else phi
    statistic = mannwhitneyu(phi[keep], phi[~keep]).statistic
    mean, sd = 10 * 20 / 2, np.sqrt(10 * 20 * 31 / 12)
    assert member_z(phi, keep) == pytest.approx((statistic - mean) / sd)
    assert np.isnan(member_z(phi, np.ones(30, bool)))


def test_misaligned_models_are_refused_and_good_ones_are_not():
    """By the counts: 2 standard errors of chance on 200 members of two classes are 7.1 %."""
    keep, labels = np.tile(np.arange(400) % 2 == 0, (4, 1)), np.arange(400) // 2 % 2
    unknown, good = np.full(4, np.nan), np.array([0.9, 0.95, 0.99, 0.9])
    up, down = np.full(4, 3.0), np.full(4, -3.0)
    for accuracy, z in [
        (good, up),
        (unknown, unknown),
        (good, np.array([-9, -9, -9, 0.1])),
        (good, down / 2),
    ]:
        require_aligned(accuracy, z, keep, labels)
    require_aligned(np.full(4, 0.58), up, keep, labels)
    for accuracy, z, message in [
        (np.full(4, 0.56), up, r"agree with 56.0 % of the labels, and the most common class with 50.0 %"),
        (
            np.array([0.9, 0.9, 0.52, 0.9]),
            up,
            r"the logits of model 2 agree with the labels no better than chance",
        ),
        (good, down, r"AUC below 0.5\): membership is inverted, the values have the wrong sign"),
    ]:
        with pytest.raises(ValueError, match=message):
            require_aligned(accuracy, z, keep, labels)


def test_what_small_or_lopsided_data_may_do_is_a_warning():
    """A model that never names the rare class, five examples, one class; and the order that is declared."""
    rare = np.arange(400) % 20 == 0  # the most common class is 95 %; in another order 90.5 % agree
    keep, up, down = np.tile(np.arange(400) // 2 % 2 == 0, (4, 1)), np.full(4, 3.0), np.full(4, -3.0)
    with pytest.warns(
        UserWarning, match=r"agree with 96.0 % .* 95.0 %: where classes are as unequal as here"
    ):
        require_aligned(np.full(4, 0.96), up, keep, rare.astype(int))
    with pytest.raises(ValueError, match=r"another order .*say so by --trust-order \(trust_order=True\)"):
        require_aligned(np.full(4, 0.9), up, keep, rare.astype(int))
    with pytest.warns(UserWarning, match=r"one class only, 0, which 40.0 % of the answers name"):
        require_aligned(np.full(4, 0.4), up, keep, np.zeros(400, int))
    few, labels = keep[:, :5], np.array([0, 1, 0, 1, 0])
    for trusted, members, classes in ((False, few, labels), (True, keep, np.arange(400) % 2)):
        with pytest.warns(UserWarning, match="labels or rows are in another order"):
            require_aligned(np.full(4, 0.5), up, members, classes, trust_order=trusted)
        with pytest.warns(UserWarning, match="membership is inverted"):
            require_aligned(np.full(4, 1.0), down, members, classes, trust_order=trusted)


@pytest.mark.parametrize("kind", SINGLE)
def test_signals_do_not_depend_on_how_values_are_held(kind):
    values = (np.round(8 * LOGITS) / 8).astype(np.float32).clip(-8, 8)
    probabilities = np.broadcast_to(np.array([0.5, 0.25, 0.125, 0.125, 0], np.float32), (N, Q, C))
    for name, array in (
        ("logits", values),
        ("phi", values[..., 0]),
        ("losses", abs(values[..., 0])),
        ("confidences", probabilities),
    ):
        # The plain ones first: what is compiled for them is there when the others come.
        expected, right = to_signals(name, array, LABELS)
        signals, correct = to_signals(name, SINGLE[kind](array), LABELS.astype(">i4"))
        np.testing.assert_array_equal(correct, right)
        for each in expected:
            np.testing.assert_array_equal(signals[each], expected[each])


def test_a_few_phi_may_all_lie_between_0_and_1():
    few = np.linspace(0.1, 0.9, 5)
    np.testing.assert_array_equal(to_signals("phi", few, None)[0]["phi"].ravel(), few)
    with pytest.raises(ValueError, match="looks like confidences"):
        to_signals("phi", np.linspace(0.1, 0.9, 50), None)
