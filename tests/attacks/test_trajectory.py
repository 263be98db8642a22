import numpy as np
import pytest
from chance import check_chance, figures_of
from scipy.special import log_expit
from scipy.stats import iqr, norm

from lira.attacks import (
    UnfitPoolError,
    _pool,
    lira_online_multivariate,
    lira_online_trajectory,
    lt_iqr,
    phi_trajectory,
)
from lira.attacks.suite import ATTACKS, Pool, attack_pool, call_attack, missing_signals
from lira.membership import keep_mask
from lira.metrics import roc
from lira.signals import checkpoint_fraction, checkpoints

BOTH = (lt_iqr, lira_online_trajectory)


def drawn(seed=0, M=6, N=40, S=5, Q=2):
    """A trajectory, its memberships, and its stages as signals by name."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(0, 3, size=(M, N, S, Q)).astype(np.float32)
    names = ["phi@0.1", "phi@0.25", "phi@0.5", "phi@0.9"][: S - 1]
    signals = dict(zip((*names, "phi"), np.moveaxis(phi, 2, 0), strict=True))
    return phi, keep_mask(seed, M, N), signals


@pytest.mark.parametrize(("S", "Q"), [(2, 1), (3, 2), (4, 1), (5, 2), (6, 1), (9, 3)])
def test_lt_iqr_is_scipys_range_of_the_mean_losses(S, Q):
    rng = np.random.default_rng(S)
    phi = rng.normal(0, 20, size=(4, 30, S, Q)).astype(np.float32)
    scores = lt_iqr(phi, keep_mask(0, 4, 30))
    assert scores.dtype == np.float32
    losses = -log_expit(phi.astype(np.float64)).mean(axis=3)
    np.testing.assert_allclose(scores, iqr(losses, axis=2), rtol=1e-6)
    # Their order says nothing.
    np.testing.assert_array_equal(lt_iqr(phi[:, :, ::-1], keep_mask(0, 4, 30)), scores)


def test_what_is_learnt_late_has_the_widest_range():
    """Losses over five stages: learnt at once, in the end, never, and at a steady pace: ranges known by hand."""
    losses = np.array([[2.0, 0, 0, 0, 0], [4, 4, 4, 0, 0], [3, 3, 3, 3, 3], [4, 3, 2, 1, 0]])
    phi = -np.log(np.expm1(np.maximum(losses, 1e-30)))
    scores = lt_iqr(np.broadcast_to(phi[None, :, :, None], (4, 4, 5, 1)), keep_mask(0, 4, 4))
    np.testing.assert_allclose(scores[0], [0, 4, 0, 2], atol=1e-12)


def test_extreme_confidences_neither_overflow_nor_lose_their_order():
    phi = np.array([[-3e38, 3e38], [1e4, -1e4], [800, 801], [80, 81]])
    phi = np.broadcast_to(phi[None, :, :, None], (4, 4, 2, 1)).astype(np.float32)
    scores = lt_iqr(phi, keep_mask(0, 4, 4))[0]
    np.testing.assert_allclose(scores[[0, 1]], [1.5e38, 5e3], rtol=1e-6)
    np.testing.assert_allclose(scores[3], (np.exp(-80.0) - np.exp(-81.0)) / 2, rtol=1e-6)
    assert scores[2] == 0


def test_stages_are_put_in_order_and_read_when_sliced():
    phi, _, signals = drawn()
    shuffled = {name: signals[name] for name in ("phi@0.9", "phi", "phi@0.1", "phi@0.5", "phi@0.25")}
    lazy = phi_trajectory({**shuffled, "entropy": phi[:, :, 0]})
    assert lazy.shape == phi.shape
    np.testing.assert_array_equal(lazy[1:3, 4:9], phi[1:3, 4:9])
    with pytest.raises(ValueError, match=r"phi@0.5 must be of phi's shape \(6, 40, 2\); got \(6, 40, 1\)"):
        phi_trajectory({**signals, "phi@0.5": phi[:, :, 2, :1]})
    assert checkpoints(["phi@0.5", "phi", "phi@1e-05", "logits", "phi@0.25"]) == [
        *("phi@1e-05", "phi@0.25", "phi@0.5")
    ]
    assert checkpoint_fraction("phi_test") is None


def test_stages_are_queries_of_multivariate_lira():
    phi, keep, _ = drawn(M=12)
    flat = phi.reshape(12, 40, -1)
    for shrinkage in (None, 0.5):
        expected = lira_online_multivariate(flat, keep, shrinkage=shrinkage)
        np.testing.assert_array_equal(lira_online_trajectory(phi, keep, shrinkage=shrinkage), expected)
    # Which of them is which does not matter to a Gaussian.
    turned = lira_online_trajectory(phi[:, :, ::-1, ::-1], keep)
    np.testing.assert_allclose(turned, lira_online_trajectory(phi, keep), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attack", BOTH)
def test_targets_blocks_and_lazy_signals(attack, monkeypatch):
    phi, keep, signals = drawn(M=10, N=100)
    whole = attack(phi, keep)
    np.testing.assert_array_equal(attack(phi_trajectory(signals), keep), whole)
    outside = attack(phi[:8], keep[:8], target=phi[8:])
    assert outside.shape == (2, 100)
    np.testing.assert_array_equal(attack(phi[:8], keep[:8], target=phi[8:9]), outside[:1])
    if attack is lt_iqr:
        np.testing.assert_array_equal(outside, whole[8:])
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 10 * 10 * 20)
    np.testing.assert_allclose(attack(phi, keep), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("M", [8, 64])
def test_pure_noise_is_at_chance(attack, M):
    """Stages that are correlated, models that differ by a random effect, and one outlying model: 12 pools."""
    curves = []
    for seed in range(12):
        rng = np.random.default_rng([M, seed])
        keep = keep_mask(seed, M, 16_000 // M)
        phi = rng.normal(size=(*keep.shape, 1, 1)) + rng.normal(0, 0.3, size=(*keep.shape, 4, 1))
        phi += rng.normal(size=(M, 1, 1, 1))
        phi[-1] += 8
        curves.append(roc(attack(phi.astype(np.float32), keep), keep))
    check_chance(*figures_of(curves))


def test_independent_stages_meet_the_closed_form():
    """IN N(1, 1), OUT N(0, 1) at each of four stages: AUC Phi(sqrt(4 / 2)), little less with 126 models to learn from."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 128, 2000)
    phi = rng.normal(size=(128, 2000, 4, 1)) + keep[..., None, None]
    auc = roc(lira_online_trajectory(phi.astype(np.float32), keep, shrinkage=1), keep).auc
    assert abs(auc - norm.cdf(np.sqrt(2))) < 0.006
    alone = roc(lira_online_trajectory(phi[:, :, [0, 0]].astype(np.float32), keep, shrinkage=1), keep).auc
    assert abs(alone - norm.cdf(np.sqrt(0.5))) < 0.008, "a stage told twice says no more"


@pytest.mark.parametrize("attack", BOTH)
def test_bad_arguments_are_named(attack):
    phi, keep, _ = drawn()
    with pytest.raises(ValueError, match=r"trajectory must be \[models, examples, stages, queries\]"):
        attack(phi[..., 0], keep)
    with pytest.raises(ValueError, match=r"target must be \['targets', 40, 5, 2\] like trajectory"):
        attack(phi, keep, target=phi[:1, :, :3])
    with pytest.raises(UnfitPoolError, match=r"trajectory holds 1 stages.*use lira_online"):
        attack(phi[:, :, :1], keep)
    with pytest.raises(ValueError, match=r"keep must be bool of shape \(6, 40\)"):
        attack(phi, keep[:, :5])
    broken = phi.copy()
    broken[1, 2, 3, 0] = np.nan
    with pytest.raises(ValueError, match=r"\[1, 2, 6\] is nan"):
        attack(broken, keep)


def test_the_suite_reads_what_is_stored_of_pool_and_targets():
    phi, keep, signals = drawn(M=10)
    names = ("lt_iqr", "lira_online_trajectory")
    both = {name: ATTACKS[name] for name in names}
    scores = attack_pool(Pool(signals, keep), both)
    np.testing.assert_array_equal(scores["lt_iqr"], lt_iqr(phi, keep))
    np.testing.assert_array_equal(scores["lira_online_trajectory"], lira_online_trajectory(phi, keep))
    outside = {name: values[:2] for name, values in signals.items()}
    scores = attack_pool(Pool(signals, keep, outside), both)
    np.testing.assert_array_equal(scores["lt_iqr"], lt_iqr(phi, keep)[:2])
    # Left out without a word where there is no checkpoint, or not the same ones of all.
    without = Pool({"phi": signals["phi"]}, keep)
    assert missing_signals(without, both) == dict.fromkeys(names, "checkpoints of phi")
    assert attack_pool(without, both) == {}
    fewer = {name: outside[name] for name in ("phi", "phi@0.1", "phi@0.25", "phi@0.9")}
    for pool in (Pool(signals, keep, fewer), Pool({**fewer, "phi": signals["phi"]}, keep, outside)):
        assert missing_signals(pool, both) == dict.fromkeys(names, "phi@0.5")
    with pytest.raises(
        UnfitPoolError, match="it reads checkpoints of phi, which the pool does not hold: use"
    ):
        call_attack(ATTACKS["lt_iqr"], without)
