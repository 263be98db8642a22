import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lira.membership import keep_mask
from lira.metrics import UndefinedMetricWarning, fixed_threshold, ppv, roc, youden


def pool(seed, T=8, N=60, signal=1.0, ties=False):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    scores = rng.normal(size=(T, N)) + signal * keep + rng.normal(0, 0.3, (T, 1))
    return (np.round(2 * scores) if ties else scores).astype(np.float32), keep


seeds = st.integers(0, 2**31 - 1)


# --- Youden's J -----------------------------------------------------------------------------------------------------


def best_threshold(scores, keep):
    """The largest TPR - FPR and the highest score that has it, or infinity where none is positive."""
    best = (0, np.inf)
    members, nonmembers = int(keep.sum()), int((~keep).sum())
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        # Whole numbers, so that ties are ties.
        j = int((called & keep).sum()) * nonmembers - int((called & ~keep).sum()) * members
        if j > best[0]:
            best = (j, threshold)
    return best[0] / (members * nonmembers), best[1]


@given(seeds, st.booleans())
def test_youden_is_measured_at_the_other_halfs_best_threshold(seed, ties):
    scores, keep = pool(seed, ties=ties)
    found = youden(scores, keep)
    first, second = best_threshold(scores[:4], keep[:4])[1], best_threshold(scores[4:], keep[4:])[1]
    assert found.thresholds == (second, first)
    called = np.concatenate([scores[:4] >= second, scores[4:] >= first])
    j = called[keep].mean() - called[~keep].mean()
    assert found.j.value == pytest.approx(j, abs=1e-12)
    assert found.balanced_accuracy.value == pytest.approx((1 + j) / 2, abs=1e-12)
    assert found.optimistic == pytest.approx(best_threshold(scores, keep)[0], abs=1e-12)
    # Pairs have as many members as non-members, so J is the mean of theirs.
    by_pair = [
        c[k].mean() - c[~k].mean() for c, k in zip(called.reshape(4, -1), keep.reshape(4, -1), strict=True)
    ]
    margin = stats.t.ppf(0.975, 3) * np.std(by_pair, ddof=1) / 2
    assert found.j.high - found.j.value == pytest.approx(min(margin, 1 - j), abs=1e-12)
    assert found.j.low == pytest.approx(max(j - margin, -1), abs=1e-12)


def test_youden_of_gaussians_is_the_closed_form():
    d = 1.2
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 16, 4000)
    found = youden(rng.normal(size=keep.shape) + d * keep, keep)
    truth = 2 * stats.norm.cdf(d / 2) - 1
    assert found.j.low < truth < found.j.high
    assert found.j.high - found.j.low < 0.03
    assert found.optimistic >= found.j.value


def test_held_out_j_of_noise_is_zero_where_the_optimistic_one_is_not():
    """Over 200 runs: E[J_max] of noise is .627 sqrt(2 / n), n members; that of the held-out J is 0."""
    runs, n = 200, 400
    held, optimistic = [], []
    for run in range(runs):
        keep = keep_mask(run, 8, n // 4)
        found = youden(np.random.default_rng(run).normal(size=keep.shape), keep)
        held.append(found.j.value)
        optimistic.append(found.optimistic)
    error = np.std(held, ddof=1) / np.sqrt(runs)
    assert abs(np.mean(held)) < 3 * error < 0.02
    assert np.mean(optimistic) == pytest.approx(0.627 * np.sqrt(2 / n), rel=0.1)
    assert np.mean(optimistic) > 10 * error


def test_youden_halves_a_single_targets_examples():
    scores, keep = pool(0, N=400)
    scores, keep = scores[:1], keep[:1]
    found = youden(scores, keep)
    even, odd = (best_threshold(scores[:, i::2], keep[:, i::2])[1] for i in (0, 1))
    assert found.thresholds == (odd, even)
    called = scores >= np.where(np.arange(400) % 2, even, odd)
    tpr, fpr = called[keep].mean(), called[~keep].mean()
    assert found.j.value == pytest.approx(tpr - fpr, abs=1e-12)
    # Two independent proportions.
    error = np.sqrt(tpr * (1 - tpr) / keep.sum() + fpr * (1 - fpr) / (~keep).sum())
    assert (found.j.high - found.j.low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * error, rel=0.01)


def test_youden_without_an_interval_undefined_or_impossible():
    scores, keep = pool(0, T=4)
    assert np.isnan(youden(scores, keep).j.low), "two pairs"
    assert not np.isnan(youden(scores, keep).j.value)
    with pytest.warns(UndefinedMetricWarning, match="held-out J is undefined: a half has no members"):
        assert np.isnan(youden(scores, np.ones_like(keep)).j.value)
    with pytest.raises(ValueError, match="examples are halved to hold thresholds out; got one example"):
        youden(np.zeros((1, 1)), np.ones((1, 1), bool))


def test_all_scores_tied_have_no_j():
    keep = keep_mask(0, 8, 50)
    found = youden(np.zeros((8, 50)), keep)
    assert (found.j.value, found.optimistic, found.balanced_accuracy.value) == (0, 0, 0.5)


# --- Thresholds fixed on other models -------------------------------------------------------------------------------


def naive_fixed(scores, keep, fpr, clusters):
    """Each target's FPR and TPR at the lowest threshold that keeps to `fpr` on the targets of other clusters."""
    rates = []
    for t, cluster in enumerate(clusters):
        other = clusters != cluster
        nonmembers = np.sort(scores[other][~keep[other]])[::-1]
        allowed = int(np.floor(round(fpr * len(nonmembers), 9)))
        called = scores[t] > nonmembers[allowed]
        rates.append((called[~keep[t]].mean(), called[keep[t]].mean()))
    return np.array(rates).T


@given(seeds, st.booleans(), st.sampled_from([0.01, 0.05, 0.3]))
def test_fixed_threshold_realises_what_others_chose(seed, ties, fpr):
    scores, keep = pool(seed, ties=ties)
    pairs = np.arange(8) // 2
    found = fixed_threshold(scores, keep, fpr)
    target_fpr, target_tpr = naive_fixed(scores, keep, fpr, pairs)
    np.testing.assert_allclose(found.target_fpr, target_fpr, atol=1e-12)
    np.testing.assert_allclose(found.target_tpr, target_tpr, atol=1e-12)
    assert found.mean_fpr.value == pytest.approx(target_fpr.mean(), abs=1e-12)
    assert found.mean_tpr.value == pytest.approx(target_tpr.mean(), abs=1e-12)
    weights = (~keep).sum(axis=1) / (~keep).sum()
    assert found.pooled_fpr.value == pytest.approx(target_fpr @ weights, abs=1e-12)
    assert found.pooled_tpr.value == pytest.approx(target_tpr @ (keep.sum(axis=1) / keep.sum()), abs=1e-12)
    assert found.expected_fpr == pytest.approx((np.floor(180 * fpr + 1e-9) + 1) / 181)


@given(seeds)
def test_fixed_thresholds_interval_is_the_naive_jackknifes(seed):
    scores, keep = pool(seed, T=10, N=40)
    pairs = np.arange(10) // 2
    found = fixed_threshold(scores, keep, 0.1)
    without = []
    for pair in range(5):
        rest = pairs != pair
        without.append(naive_fixed(scores[rest], keep[rest], 0.1, pairs[rest]).mean(axis=1))
    error = np.sqrt(4 / 5 * np.sum((without - np.mean(without, axis=0)) ** 2, axis=0))
    for estimate, expected in zip((found.mean_fpr, found.mean_tpr), error, strict=True):
        margin = stats.t.ppf(0.975, 4) * expected
        # Among candidates a threshold lies at a score, in the naive loop just above a non-member: as good a one.
        assert estimate.low == pytest.approx(max(estimate.value - margin, 0), abs=0.02)
        assert estimate.high == pytest.approx(min(estimate.value + margin, 1), abs=0.02)


def test_a_targets_own_scores_do_not_move_its_threshold():
    scores, keep = pool(1)
    before = fixed_threshold(scores, keep, 0.05).thresholds
    scores[2:4] += 100
    after = fixed_threshold(scores, keep, 0.05).thresholds
    np.testing.assert_array_equal(before[2:4], after[2:4])
    assert (before != after)[[0, 1, 4, 5, 6, 7]].all()


def test_fixed_threshold_realises_the_expected_fpr_of_exchangeable_targets():
    """Of n, k may pass: (k + 1) / (n + 1) do on average, here 6 / 181 = .0331 where .03 was asked for."""
    found = []
    for run in range(300):
        keep = keep_mask(run, 8, 60)
        found.append(fixed_threshold(np.random.default_rng(run).normal(size=keep.shape), keep, 0.03))
    rates = [each.pooled_fpr.value for each in found]
    assert found[0].expected_fpr == pytest.approx(6 / 181)
    assert abs(np.mean(rates) - 6 / 181) < 3 * np.std(rates) / np.sqrt(300) < 0.002


def test_fixed_threshold_at_the_ends():
    keep = keep_mask(0, 8, 50)
    everyone = fixed_threshold(np.random.default_rng(0).normal(size=(8, 50)), keep, 1.0)
    assert everyone.mean_tpr.value == everyone.mean_fpr.value == 1
    nobody = fixed_threshold(np.full((8, 50), np.inf), keep, 0.1)
    assert nobody.mean_tpr.value == nobody.mean_fpr.value == 0
    assert np.isnan(nobody.thresholds).all()
    unresolvable = fixed_threshold(np.random.default_rng(0).normal(size=(8, 50)), keep, 0.001)
    assert np.isnan(unresolvable.mean_fpr.value)
    assert not np.isnan(unresolvable.target_fpr).any()
    few = fixed_threshold(*pool(0, T=4), 0.1)
    assert np.isnan(few.mean_tpr.low)
    assert not np.isnan(few.mean_tpr.value)


def test_fixed_threshold_undefined_or_impossible():
    scores, keep = pool(0)
    lonely = keep.copy()
    lonely[0] = True
    with pytest.warns(UndefinedMetricWarning, match="realised rates are undefined: a target has no"):
        found = fixed_threshold(scores, lonely, 0.1)
    assert np.isnan(found.target_fpr[0])
    assert np.isnan(found.mean_fpr.value)
    with pytest.raises(ValueError, match="chooses on other targets: give at least two pairs"):
        fixed_threshold(scores[:2], keep[:2], 0.1)
    with pytest.raises(ValueError, match="fpr is a fraction between 0 and 1; got 5"):
        fixed_threshold(scores, keep, 5)


# --- Positive predictive value --------------------------------------------------------------------------------------


def test_ppv_is_the_share_of_members_among_those_called():
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=(1, 5000)), rng.random((1, 5000)) < 0.2
    point = roc(scores + member, member).tpr_at(0.05)
    called = (scores + member) >= point.threshold
    value = ppv(point.tpr, point.false_positives / point.nonmembers, member.mean())
    assert value == pytest.approx(member[called].mean(), abs=1e-12)


def test_ppv_of_arrays_undefined_and_out_of_range():
    np.testing.assert_allclose(ppv(np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.5, 1.0]), 0.3), [1, 0.3, 0])
    with pytest.warns(UndefinedMetricWarning, match="PPV is undefined: nobody is called a member"):
        assert np.isnan(ppv(0.0, 0.0, 0.5))
    with pytest.raises(ValueError, match=r"prior is a fraction between 0 and 1; got 2"):
        ppv(0.5, 0.5, 2)
    with pytest.raises(ValueError, match=r"tpr is a fraction between 0 and 1; got 50"):
        ppv(np.array([0.1, 50]), np.array([0.1, 0.2]), 0.5)
