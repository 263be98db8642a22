import numpy as np
import pytest
from scipy import stats

from lira.membership import keep_mask
from lira.metrics import UndefinedMetricWarning, difference, roc
from lira.metrics._shared import RESAMPLES


def two_attacks(seed, T=12, N=60, ties=False):
    """Scores of two attacks that share most of their noise; the first is the better one."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    shared = rng.normal(size=(T, N))
    a, b = (shared + 0.3 * rng.normal(size=(T, N)) + signal * keep for signal in (1.2, 0.8))
    return (np.round(2 * a), np.round(2 * b), keep) if ties else (a, b, keep)


def naive_figures(scores, keep, rows, fpr):
    """TPR at FPR and AUC of repeated rows, the threshold chosen anew."""
    members = np.concatenate([scores[r][keep[r]] for r in rows])
    nonmembers = np.concatenate([scores[r][~keep[r]] for r in rows])
    ordered = np.sort(nonmembers)
    bar = ordered[::-1][int(np.floor(round(fpr * len(nonmembers), 9)))]
    below = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    return np.array([np.mean(members > bar), np.mean(below) / (2 * len(nonmembers))])


@pytest.mark.parametrize("ties", [False, True])
def test_difference_is_the_naive_paired_bootstraps(ties):
    a, b, keep = two_attacks(0, ties=ties)
    found = difference(a, b, keep, fpr=0.05)
    pairs = [scores.reshape(6, -1) for scores in (a, b, keep)]
    whole = naive_figures(pairs[0], pairs[2], range(6), 0.05) - naive_figures(
        pairs[1], pairs[2], range(6), 0.05
    )
    assert (found.tpr.value, found.auc.value) == pytest.approx(tuple(whole), abs=1e-12)
    draws = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=RESAMPLES)
    resampled = []
    for counts in draws:
        rows = np.repeat(np.arange(6), counts)
        resampled.append(
            naive_figures(pairs[0], pairs[2], rows, 0.05) - naive_figures(pairs[1], pairs[2], rows, 0.05)
        )
    margin = stats.t.ppf(0.975, 5) * np.sqrt(6 / 5) * np.std(resampled, axis=0, ddof=1)
    assert found.tpr.high - found.tpr.value == pytest.approx(margin[0], abs=1e-12)
    assert found.tpr.value - found.tpr.low == pytest.approx(margin[0], abs=1e-12)
    # The curve is straight from one candidate threshold to the next, which matters to so few scores.
    assert found.auc.high - found.auc.value == pytest.approx(margin[1], rel=0.05)


@pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, True), (2, False), (3, True)])
def test_difference_changes_sign_with_its_order_and_vanishes_for_one_attack(seed, ties):
    a, b, keep = two_attacks(seed, ties=ties)
    one, other = difference(a, b, keep, fpr=0.1), difference(b, a, keep, fpr=0.1)
    for mine, theirs in ((one.tpr, other.tpr), (one.auc, other.auc)):
        assert mine.value == -theirs.value
        assert mine.low == pytest.approx(-theirs.high, abs=1e-12)
    same = difference(a, 2 * a + 1, keep, fpr=0.1, keep_b=keep.copy())
    assert (same.tpr.low, same.tpr.high, same.auc.low, same.auc.high) == (0, 0, 0, 0)


def test_pairing_is_narrower_than_two_intervals():
    a, b, keep = two_attacks(1, T=32, N=400)
    found = difference(a, b, keep, fpr=0.05)
    halves = [(c.auc_interval().high - c.auc_interval().low) / 2 for c in (roc(a, keep), roc(b, keep))]
    assert (found.auc.high - found.auc.low) / 2 < 0.6 * np.hypot(halves[0], halves[1])
    assert found.auc.low > 0
    assert found.tpr.low > 0


def test_single_targets_difference_resamples_the_same_examples():
    a, b, keep = two_attacks(2, T=4, N=800)
    a, b, keep = a[:1], b[:1], keep[:1]
    found = difference(a, b, keep, fpr=0.1)
    assert found.auc.value == pytest.approx(roc(a, keep).auc - roc(b, keep).auc)
    rng = np.random.default_rng(5)
    members, nonmembers = np.flatnonzero(keep[0]), np.flatnonzero(~keep[0])
    resampled = []
    for _ in range(600):
        rows = np.append(rng.choice(members, len(members)), rng.choice(nonmembers, len(nonmembers)))[None]
        drawn = [scores[0][rows] for scores in (a, b, keep)]
        resampled.append(
            naive_figures(drawn[0], drawn[2], [0], 0.1) - naive_figures(drawn[1], drawn[2], [0], 0.1)
        )
    # 600 resamples estimate a standard error to 2.9 %, 1,000 to 2.2 %: 15 % is four of both together.
    for estimate, expected in zip((found.tpr, found.auc), np.std(resampled, axis=0), strict=True):
        assert (estimate.high - estimate.low) / (2 * 1.96) == pytest.approx(expected, rel=0.15)


def test_single_targets_ties_and_infinities():
    rng = np.random.default_rng(0)
    keep = rng.random((1, 300)) < 0.5
    a = np.where(rng.random((1, 300)) < 0.3, np.inf, np.round(rng.normal(size=(1, 300))))
    found = difference(a, a.copy(), keep, fpr=0.1)
    assert (found.tpr.low, found.tpr.high, found.auc.low, found.auc.high) == (0, 0, 0, 0)


def test_no_interval_undefined_unresolvable():
    a, b, keep = two_attacks(0, T=4)
    few = difference(a, b, keep, fpr=0.1)
    assert np.isnan([few.tpr.low, few.auc.high]).all(), "two pairs"
    assert not np.isnan([few.tpr.value, few.auc.value]).any()
    assert np.isnan(difference(a, b, keep, fpr=1e-4).tpr.value)
    with pytest.warns(UndefinedMetricWarning, match="there are no non-members"):
        assert np.isnan(difference(a[:1], b[:1], np.ones((1, 60), bool)).auc.value)


def test_other_memberships_are_not_compared():
    a, b, keep = two_attacks(0)
    with pytest.raises(ValueError, match=r"keep_b differs from keep.*make them with one membership seed"):
        difference(a, b, keep, keep_b=~keep)
    with pytest.raises(ValueError, match=r"keep must be bool of shape \(12, 59\)"):
        difference(a, b[:, :59], keep)
    with pytest.raises(ValueError, match="fpr is a fraction"):
        difference(a, b, keep, fpr=10)
