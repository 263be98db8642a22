import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit, logit, logsumexp
from scipy.stats import norm, rankdata

from lira import attacks
from lira.attacks import _pool
from lira.membership import keep_mask
from lira.metrics import roc

OF_PHI = ["global_threshold", "loss_threshold", "confidence_threshold"]
OF_ENTROPY = ["entropy_threshold", "modified_entropy_threshold"]


def losses(phi):
    """Softplus(-phi) in float64, as -log of the confidence."""
    return -log_expit(phi.astype(np.float64))


def naive_entropies(logits, label):
    """Entropy and modified entropy of one example from its probabilities, straight from the definitions."""
    p = np.exp(logits - logsumexp(logits))
    entropy = -sum(pc * np.log(pc) for pc in p)
    modified = -(1 - p[label]) * np.log(p[label])
    modified -= sum(pc * np.log(1 - pc) for c, pc in enumerate(p) if c != label)
    return entropy, modified


@given(seed=st.integers(0, 2**31 - 1), Q=st.sampled_from([2, 3, 18]), scale=st.sampled_from([0.1, 3, 10]))
def test_loss_and_confidence_are_those_of_the_mean_query(seed, Q, scale):
    """Inverting the score gives back the mean loss and the mean confidence, one example at a time."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(0, scale, (4, 9, Q)).astype(np.float32)
    keep = keep_mask(0, 4, 9)
    by_loss, by_confidence = attacks.loss_threshold(phi, keep), attacks.confidence_threshold(phi, keep)
    assert by_loss.dtype == by_confidence.dtype == np.float32
    for m in range(4):
        for n in range(9):
            loss = np.mean(losses(phi[m, n]))
            np.testing.assert_allclose(by_loss[m, n], -np.log(np.expm1(loss)), rtol=1e-6, atol=1e-6)
            confidence = np.mean(expit(phi[m, n].astype(np.float64)))
            rtol = 1e-6 if confidence < 0.999 else 1e-4  # logit itself is ill-conditioned near 1
            np.testing.assert_allclose(by_confidence[m, n], logit(confidence), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("name", OF_PHI)
def test_one_query_is_phi_itself_at_every_size(name):
    """No two phi become equal, however sure the model is: from 1e-10 to 1e30, both signs."""
    sizes = np.geomspace(1e-10, 1e30, 200, dtype=np.float32)
    phi = np.concatenate([-sizes[::-1], [0], sizes, [16.9, 17.0, 36.9, 37.0, 103.9, 745.2, 745.3, 1e4]])
    phi = np.tile(phi.astype(np.float32)[None, :, None], (4, 1, 1))
    scores = getattr(attacks, name)(phi, keep_mask(0, *phi.shape[:2]))
    np.testing.assert_allclose(scores, phi[..., 0], rtol=2e-7, atol=1e-15)
    np.testing.assert_array_equal(rankdata(scores[0]), rankdata(phi[0, :, 0]))


@pytest.mark.parametrize("name", OF_PHI)
def test_extreme_queries_neither_overflow_nor_tie(name):
    """Queries that differ by more than float64's exponents hold: each average by its own limit."""
    phi = np.array([[1e4, 1e4 + 8], [1e4, 2e4], [-1e4, 1e4], [-3e38, 3e38], [800.0, 801.0]], np.float32)
    phi = np.tile(phi[None], (4, 1, 1))
    scores = getattr(attacks, name)(phi, keep_mask(0, 4, 5))[0]
    half = np.log(2)
    expected = {
        "global_threshold": [1e4 + 4, 1.5e4, 0, 0, 800.5],
        # log of the mean of the small losses exp(-phi); half of the one large loss
        "loss_threshold": [1e4 + half, 1e4 + half, -5e3, -1.5e38, 800 + half - np.log1p(np.exp(-1))],
        "confidence_threshold": [1e4 + half, 1e4 + half, 0, 0, 800 + half - np.log1p(np.exp(-1))],
    }[name]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**31 - 1))
def test_ranks_are_those_of_mean_loss_and_mean_confidence(seed):
    phi = np.random.default_rng(seed).normal(0, 4, (4, 50, 3)).astype(np.float32)
    keep = keep_mask(0, 4, 50)
    for name, reference in (
        ("loss_threshold", -losses(phi).mean(axis=2)),
        ("confidence_threshold", expit(phi.astype(float)).mean(axis=2)),
    ):
        ranks = [rankdata(values) for values in (getattr(attacks, name)(phi, keep), reference)]
        assert np.corrcoef(ranks)[0, 1] > 1 - 1e-9


def test_entropies_are_averaged_and_turned_round():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (4, 6, 2, 5)), rng.integers(0, 5, 6)
    both = np.array(
        [[[naive_entropies(z, y) for z in zs] for zs, y in zip(zss, labels, strict=True)] for zss in logits]
    )
    for i, name in enumerate(OF_ENTROPY):
        scores = getattr(attacks, name)(both[..., i].astype(np.float32), keep_mask(0, 4, 6))
        np.testing.assert_allclose(scores, -both[..., i].mean(axis=2), rtol=1e-6)


def test_modified_entropy_tells_wrong_and_sure_from_right_and_sure():
    """Song & Mittal's reason for it: the plain entropy of the two is the same."""
    right, wrong = naive_entropies(np.array([9.0, 0, 0]), 0), naive_entropies(np.array([9.0, 0, 0]), 1)
    signals = np.tile(np.array([right, wrong], np.float32).T[:, None, :, None], (1, 4, 1, 1))
    keep = keep_mask(0, 4, 2)
    plain = attacks.entropy_threshold(signals[0], keep)
    modified = attacks.modified_entropy_threshold(signals[1], keep)
    np.testing.assert_array_equal(plain[:, 0], plain[:, 1])
    assert (modified[:, 0] > modified[:, 1]).all()


@pytest.mark.parametrize("name", OF_PHI)
def test_known_gaussians_meet_the_closed_form(name):
    """One query, IN N(2, 1), OUT N(0, 1) for all examples: phi itself is the likelihood ratio."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 16, 4000)
    phi = (rng.normal(size=(16, 4000, 1)) + 2 * keep[..., None]).astype(np.float32)
    curve = roc(getattr(attacks, name)(phi, keep), keep)
    for fpr in (0.001, 0.01, 0.1):
        point = curve.tpr_at(fpr)
        assert point.low <= norm.cdf(norm.ppf(fpr) + 2) <= point.high
    assert abs(curve.auc - norm.cdf(np.sqrt(2))) < 0.005


def test_averages_of_several_queries_meet_the_closed_form():
    """Two equal queries add nothing; the mean of two independent ones separates by sqrt(2) more."""
    rng = np.random.default_rng(1)
    keep = keep_mask(0, 16, 4000)
    phi = (rng.normal(size=(16, 4000, 2)) + keep[..., None]).astype(np.float32)
    assert abs(roc(attacks.global_threshold(phi, keep), keep).auc - norm.cdf(1)) < 0.006
    for name in ("loss_threshold", "confidence_threshold"):
        equal = getattr(attacks, name)(np.repeat(phi[..., :1], 3, axis=2), keep)
        np.testing.assert_allclose(equal, phi[..., 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_PHI + OF_ENTROPY)
@pytest.mark.parametrize("M", [4, 8, 16, 64])
def test_pure_noise_is_at_chance(name, M):
    """AUC and TPR at 0.1 % over 40,000 independent scores: within 4.5 standard errors."""
    keep = keep_mask(3, M, 40_000 // M)
    signal = np.random.default_rng(M).normal(size=(*keep.shape, 2)).astype(np.float32)
    curve = roc(getattr(attacks, name)(np.abs(signal) if name in OF_ENTROPY else signal, keep), keep)
    n = curve.num_nonmembers
    assert abs(curve.auc - 0.5) < 4.5 * np.sqrt(1 / (6 * n))
    k = curve.tpr_at(0.001).allowed
    assert abs(curve.tpr_at(0.001).tpr - k / n) < 4.5 * np.sqrt(2 * k) / n


@pytest.mark.parametrize("name", OF_PHI + OF_ENTROPY)
def test_targets_blocks_and_membership(name, monkeypatch):
    """An outside target is scored by itself, in blocks or not; nobody's membership matters."""
    rng = np.random.default_rng(0)
    attack = getattr(attacks, name)
    signal = np.abs(rng.normal(size=(6, 300, 2))).astype(np.float32)
    keep = keep_mask(0, 6, 300)
    whole = attack(signal, keep)
    np.testing.assert_array_equal(attack(signal, keep_mask(1, 6, 300)), whole)
    np.testing.assert_array_equal(attack(signal[:4], keep[:4], target=signal[4:]), whole[4:])
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 12)
    np.testing.assert_array_equal(attack(signal, keep), whole)
    many = np.tile(signal, (5, 1, 1))
    np.testing.assert_array_equal(attack(signal, keep, target=many)[-6:], whole)


@pytest.mark.parametrize("name", OF_PHI + OF_ENTROPY)
def test_bad_arguments_are_named(name):
    attack = getattr(attacks, name)
    first = next(iter(inspect.signature(attack).parameters))
    keep, signal = keep_mask(0, 4, 6), np.ones((4, 6, 1), np.float32)
    with pytest.raises(
        ValueError, match=rf"{first} must be \[models, examples, queries\]; got shape \(4, 6\)"
    ):
        attack(signal[..., 0], keep)
    with pytest.raises(ValueError, match=rf"keep must be bool of shape \(4, 6\) like {first}"):
        attack(signal, keep[:, :5])
    with pytest.raises(ValueError, match='leave="pair" needs rows in complementary pairs'):
        attack(signal, np.zeros((4, 6), bool))
    broken = signal.copy()
    broken[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match=rf"{first}\[1, 2, 0\] is inf"):
        attack(broken, keep)
    with pytest.raises(ValueError, match=r"target\[1, 2, 0\] is inf"):
        attack(signal, keep, target=broken)


@pytest.mark.parametrize("name", OF_ENTROPY)
def test_phi_in_place_of_an_entropy_is_refused(name):
    attack, keep = getattr(attacks, name), keep_mask(0, 4, 6)
    with pytest.raises(
        ValueError, match="an entropy is at least 0; got -3: pass the stored entropy, not phi"
    ):
        attack(np.full((4, 6, 1), -3, np.float32), keep)
    rounding = np.full((4, 6, 1), -1e-6, np.float32)
    np.testing.assert_array_equal(attack(rounding, keep), np.float32(1e-6))
