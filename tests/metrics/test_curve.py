import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from array_kinds import SINGLE
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from lira.epsilon import target_epsilons
from lira.membership import keep_mask
from lira.metrics import (
    UndefinedMetricWarning,
    example_tpr,
    fixed_threshold,
    mean_over_targets,
    most_and_least_vulnerable,
    mutual_information,
    roc,
    youden,
)
from lira.metrics import curve as module
from lira.metrics._shared import RESAMPLES
from lira.metrics.counting import allowed_false_positives


def pool(seed, T=8, N=50, signal=1.0, ties=False, dtype=np.float32):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    scores = rng.normal(size=(T, N)) + signal * keep
    return (np.round(2 * scores) if ties else scores).astype(dtype), keep


seeds = st.integers(0, 2**31 - 1)


# --- The curve ------------------------------------------------------------------------------------------------------


@given(seeds, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_curve_and_auc_are_scikit_learns(seed, ties, dtype):
    scores, keep = pool(seed, ties=ties, dtype=dtype)
    curve = roc(scores, keep)
    fpr, tpr, thresholds = roc_curve(keep.ravel(), scores.ravel(), drop_intermediate=False)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert curve.auc == pytest.approx(roc_auc_score(keep.ravel(), scores.ravel()), abs=1e-12)
    assert curve.balanced_accuracy == pytest.approx(np.max((tpr + 1 - fpr) / 2), abs=1e-12)


def test_gaussian_scores_give_the_closed_form():
    """Evenly spaced quantiles of N(0, 1) and N(d, 1): no noise, so only the spacing stands between."""
    d, n = 1.5, 50_000
    noise = stats.norm.ppf((np.arange(n) + 0.5) / n)
    gaussian = roc(np.concatenate([noise, noise + d])[None], np.repeat([False, True], n)[None])
    assert gaussian.auc == pytest.approx(stats.norm.cdf(d / np.sqrt(2)), abs=2e-5)
    for fpr in (0.001, 0.01, 0.1):
        # The threshold lies just above the first non-member that must be rejected.
        tpr = stats.norm.cdf(d + stats.norm.ppf(fpr + 0.5 / n))
        assert gaussian.tpr[gaussian.fpr <= fpr].max() == pytest.approx(tpr, abs=1 / n)
    assert 2 * gaussian.balanced_accuracy - 1 == pytest.approx(2 * stats.norm.cdf(d / 2) - 1, abs=2e-5)


@given(seeds, st.booleans())
def test_distinct_scores_are_counted(seed, ties):
    scores, keep = pool(seed, ties=ties)
    assert roc(scores, keep).distinct_scores == len(np.unique(scores))


@given(seeds, st.sampled_from([1, 7, 64]))
def test_float32_scores_are_sorted_as_the_same_float64_scores(seed, counted):
    """Whole numbers stand for float32 scores; ties, infinities, zeros of both signs and subnormals among them."""
    rng = np.random.default_rng(seed)
    keep = rng.uniform(size=(5, 40)) < 0.5
    kinds = [np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 1.5, -1.5]
    scores = np.where(
        rng.uniform(size=keep.shape) < 0.5, rng.choice(kinds, keep.shape), rng.normal(size=keep.shape)
    )
    scores = scores.astype(np.float32)
    group = rng.integers(0, 3, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COUNTED", counted)
        narrow, wide = (roc(values, keep, clusters=group) for values in (scores, scores.astype(np.float64)))
    for field in dataclasses.fields(narrow):
        np.testing.assert_array_equal(getattr(narrow, field.name), getattr(wide, field.name), field.name)
    # What each cluster has at or above a threshold, counted one by one.
    group = np.unique(group, return_inverse=True)[1]
    for g, candidate in enumerate(narrow.candidates):
        # The first point lets nothing through, not even infinity.
        found = (scores >= narrow.thresholds[candidate]) & (candidate > 0)
        for cluster in range(group.max() + 1):
            own = group == cluster
            false, true = narrow.cluster_counts[:, cluster, g]
            assert (false, true) == ((found & ~keep)[own].sum(), (found & keep)[own].sum())


def test_whole_numbers_are_scores_too():
    keep = keep_mask(0, 8, 50)
    assert roc(keep.astype(int), keep).auc == 1


@given(seeds)
def test_permuting_scores_changes_nothing(seed):
    scores, keep = pool(seed, ties=True)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    one, other = roc(scores, keep), roc(scores[:, order], keep[:, order])
    np.testing.assert_array_equal(one.true_positives, other.true_positives)
    assert one.auc == other.auc


def test_infinite_scores_are_ordered():
    scores = np.array([[np.inf, np.inf, 1.0, -np.inf, -np.inf]])
    keep = np.array([[True, False, True, True, False]])
    curve = roc(scores, keep)
    np.testing.assert_array_equal(curve.true_positives, [0, 1, 2, 3])
    np.testing.assert_array_equal(curve.false_positives, [0, 1, 1, 2])


def test_all_scores_tied_is_one_step():
    curve = roc(np.zeros((8, 20)), keep_mask(0, 8, 20))
    assert curve.auc == 0.5
    assert curve.fpr.tolist() == [0, 1]
    assert curve.tpr_at(0.5).tpr == 0


# --- Operating points -----------------------------------------------------------------------------------------------


@given(seeds, st.booleans(), st.sampled_from([0.005, 0.01, 0.05, 0.1, 0.5, 1.0]))
def test_operating_point_is_the_largest_realised_one(seed, ties, fpr):
    scores, keep = pool(seed, ties=ties)
    point = roc(scores, keep).tpr_at(fpr)
    n = (~keep).sum()
    best = (0.0, 0, np.inf)
    for threshold in np.unique(scores):
        false = (scores[~keep] >= threshold).sum()
        if false / n <= fpr:
            best = max(best, (np.mean(scores[keep] >= threshold), false, -threshold))
    tpr, false, _ = best
    if fpr * n < 1:
        assert point.status == "unresolvable"
        assert np.isnan(point.tpr)
        assert point.tpr_at_zero == tpr
        assert point.floor == 1 / n
        return
    assert point.status == "ok"
    assert (point.tpr, point.false_positives) == (tpr, false)
    assert point.allowed == int(np.floor(round(fpr * n, 9)))
    assert point.expected_fpr == (point.allowed + 1) / (n + 1)
    fooled = (~keep & (scores >= point.threshold)).any(axis=0).sum()
    assert point.distinct_examples == fooled


def test_zero_undefined_and_unresolvable_are_three_things():
    keep = keep_mask(0, 8, 50)
    zero = roc(np.where(keep, 0.0, 1.0), keep).tpr_at(0.1)
    assert (zero.status, zero.tpr) == ("ok", 0.0)
    assert str(zero).startswith("0.000 %")
    hidden = roc(np.where(keep, 1.0, 0.0), keep).tpr_at(0.001)
    assert hidden.status == "unresolvable"
    assert hidden.tpr_at_zero == 1
    assert "unresolvable (floor 0.005; TPR at 0 false positives 100.000 %)" in str(hidden)
    with pytest.warns(UndefinedMetricWarning, match="TPR is undefined: there are no non-members"):
        alone = roc(np.zeros((1, 5)), np.ones((1, 5), bool)).tpr_at(0.1)
    assert alone.status == "undefined"
    assert str(alone) == "undefined (one class)"
    with pytest.warns(UndefinedMetricWarning, match="AUC is undefined: there are no members"):
        assert np.isnan(roc(np.zeros((1, 5)), np.zeros((1, 5), bool)).auc)
    with pytest.warns(UndefinedMetricWarning, match="balanced accuracy is undefined"):
        assert np.isnan(roc(np.zeros((1, 5)), np.zeros((1, 5), bool)).balanced_accuracy)


def test_few_false_positives_are_said():
    scores, keep = pool(0, T=8, N=250)
    assert "(k = 9, true FPR about 0.01)" in str(roc(scores, keep).tpr_at(0.009))
    assert "k =" not in str(roc(scores, keep).tpr_at(0.01))


@pytest.mark.parametrize(
    ("fpr", "n", "k"), [(0.07, 100, 7), (0.29, 100, 29), (1e-5, 100_000, 1), (0.001, 999, 0)]
)
def test_floor_of_a_product_is_not_spoilt_by_rounding(fpr, n, k):
    assert allowed_false_positives(fpr, n) == k


# --- Intervals ------------------------------------------------------------------------------------------------------


def naive_resamples(scores, keep, fpr, draws):
    """TPR in each resample, by repeating the drawn clusters' scores and choosing the threshold anew."""
    tprs = []
    for counts in draws:
        rows = np.repeat(np.arange(len(counts)), counts)
        members = np.concatenate([scores[p][keep[p]] for p in rows])
        nonmembers = np.concatenate([scores[p][~keep[p]] for p in rows])
        fprs = (nonmembers[None] >= np.unique(scores)[:, None]).mean(axis=1)
        allowed = np.unique(scores)[fprs <= fpr]
        # Lowest threshold with FPR <= alpha; just above a non-member lies as good a one as at the next score.
        tprs.append(np.mean(members >= allowed.min()) if len(allowed) else 0.0)
    return np.array(tprs)


@pytest.mark.parametrize("fpr", [0.02, 0.1])
@pytest.mark.parametrize("ties", [False, True])
def test_interval_of_pairs_is_the_naive_bootstraps(fpr, ties):
    scores, keep = pool(1, T=12, N=40, ties=ties)
    point = roc(scores, keep).tpr_at(fpr)
    draws = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=RESAMPLES)
    by_pair = naive_resamples(scores.reshape(6, -1), keep.reshape(6, -1), fpr, draws)
    # Resampling six pairs shows 5/6 of the variance between them.
    margin = stats.t.ppf(0.975, 5) * by_pair.std(ddof=1) * np.sqrt(6 / 5)
    assert point.low == pytest.approx(max(point.tpr - margin, 0), abs=1e-12)
    assert point.high == pytest.approx(min(point.tpr + margin, 1), abs=1e-12)


def test_unpaired_targets_are_clusters_of_their_own_and_clusters_can_be_named():
    scores = np.random.default_rng(2).normal(size=(9, 60))
    keep = np.random.default_rng(0).uniform(size=(9, 60)) < 0.5
    assert roc(scores, keep).num_clusters == 9
    named = roc(scores, keep, clusters=np.array([5, 5, 5, 7, 7, 7, 1, 1, 1]))
    assert named.num_clusters == 3
    assert np.isnan(named.tpr_at(0.1).low), "no interval below four clusters"
    assert np.isnan(named.auc_interval().low)
    assert not np.isnan(roc(scores, keep).tpr_at(0.1).low)


def test_single_targets_interval_is_the_stratified_bootstraps():
    """Members and non-members resampled apart: standard errors of two independent bootstraps within their noise."""
    scores, keep = pool(3, T=4, N=600)
    scores, keep = scores[:1], keep[:1]
    curve = roc(scores, keep)
    rng = np.random.default_rng(1)
    members, nonmembers = scores[keep], scores[~keep]
    tprs = []
    for _ in range(4000):
        false = np.sort(rng.choice(nonmembers, len(nonmembers)))
        bar = false[len(false) - 1 - int(0.1 * len(false))]
        tprs.append(np.mean(rng.choice(members, len(members)) > bar))
    point = curve.tpr_at(0.1)
    # 1,000 resamples estimate a standard error to 2.2 %, 4,000 to 1.1 %: 10 % is four of them.
    assert (point.high - point.low) / (2 * 1.96) == pytest.approx(np.std(tprs), rel=0.1)


def test_thinning_the_candidates_moves_the_interval_by_little(monkeypatch):
    scores, keep = pool(4, T=32, N=2000)
    thin = roc(scores, keep)
    monkeypatch.setattr(module, "CANDIDATES", scores.size)
    full = roc(scores, keep)
    assert len(thin.candidates) <= 4096 < len(full.candidates)
    for fpr in (0.001, 0.01, 0.1):
        a, b = full.tpr_at(fpr), thin.tpr_at(fpr)
        assert a.tpr == b.tpr
        assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.05)
    assert thin.auc_interval().low == pytest.approx(full.auc_interval().low, abs=1e-4)
    assert thin.balanced_accuracy_interval().high == pytest.approx(
        full.balanced_accuracy_interval().high, abs=1e-3
    )


def test_intervals_cover_the_truth():
    """Shadow models shared between targets and a random effect per model; 100 runs at M = 16, FPR 1 %.

    Truth is the mean over the runs. Nominal 95 %, of which three binomial standard errors of 100 runs, 6.5 %, may be
    missing (experiments/benchmarks/coverage.py says more with more runs). A binomial interval, which takes all scores
    as independent, must fall well below.
    """
    M, N, runs = 16, 400, 100
    strength = np.random.default_rng(9).exponential(1.0, N)
    points, plain = [], []
    for run in range(runs):
        rng = np.random.default_rng([1, run])
        keep = keep_mask(run, M, N)
        phi = rng.normal(size=(M, N)) + keep * strength + rng.normal(0, 0.5, (M, 1))
        inside, outside = (np.where(k, phi, 0).sum(axis=0) for k in (keep, ~keep))
        mates = np.arange(M) ^ 1
        mean_in = (inside - np.where(keep, phi, phi[mates])) / (M / 2 - 1)
        mean_out = (outside - np.where(keep, phi[mates], phi)) / (M / 2 - 1)
        points.append(roc((phi - mean_out) ** 2 - (phi - mean_in) ** 2, keep).tpr_at(0.01))
        half = 1.96 * np.sqrt(points[-1].tpr * (1 - points[-1].tpr) / keep.sum())
        plain.append((points[-1].tpr - half, points[-1].tpr + half))
    truth = np.mean([p.tpr for p in points])
    assert np.mean([p.low <= truth <= p.high for p in points]) >= 0.885
    assert np.mean([low <= truth <= high for low, high in plain]) < 0.8


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "keep", "message"),
    [
        (
            np.zeros(5),
            np.zeros(5, bool),
            r"scores must be \[targets, examples\] and not empty; got shape \(5,\)",
        ),
        (np.zeros((0, 5)), np.zeros((0, 5), bool), "not empty"),
        (np.zeros((2, 5)), np.zeros((2, 4), bool), r"keep must be bool of shape \(2, 5\)"),
        (np.zeros((2, 5)), np.zeros((2, 5)), "keep must be bool.*got float64"),
        (np.array([[0.0, np.nan]]), np.array([[True, False]]), r"scores\[0, 1\] is NaN"),
    ],
)
def test_bad_arguments_are_named(scores, keep, message):
    with pytest.raises(ValueError, match=message):
        roc(scores, keep)


def test_clusters_are_one_label_a_target():
    with pytest.raises(ValueError, match=r"clusters must be one label a target, \[8\]; got shape \(3,\)"):
        roc(*pool(0), clusters=np.arange(3))


@pytest.mark.parametrize("fpr", [-0.1, 1.1, 5, float("nan")])
def test_fpr_is_a_fraction(fpr):
    with pytest.raises(ValueError, match="fpr is a fraction between 0 and 1"):
        roc(*pool(0)).tpr_at(fpr)


# --- Arrays of any kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SINGLE, "byte-swapped double", "bytes", "byte-swapped whole"])
def test_figures_do_not_depend_on_how_scores_are_held(kind):
    scores, keep = pool(0, ties=True)
    dtypes = {"byte-swapped double": ">f8", "bytes": "i1", "byte-swapped whole": ">i4"}
    held = SINGLE[kind](scores) if kind in SINGLE else scores.astype(dtypes[kind])
    as_keep: Any = jnp.asarray if kind == "jax" else np.asfortranarray

    def figures(scores, keep):
        curve = roc(scores, keep)
        yield from (curve.thresholds, curve.false_positives, curve.true_positives, curve.highest_nonmember)
        yield fixed_threshold(scores, keep, 0.1).target_tpr
        yield [youden(scores, keep).j.value, mutual_information(scores, keep).bits.value]
        yield example_tpr(scores, keep, 1.0)
        yield np.concatenate(most_and_least_vulnerable(scores, keep, 1.0))
        yield [mean_over_targets(scores, keep, [0.1])["auc"].value]
        yield target_epsilons(scores, keep, independent=True, delta=0.01)

    assert roc(held, as_keep(keep)).thresholds.dtype.isnative
    for found, expected in zip(figures(held, as_keep(keep)), figures(scores, keep), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- Infinite scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("of_members", "of_others"), [(0.2, 0.1), (0.2, 0.0), (0.0, 0.1), (1.0, 1.0)])
def test_infinite_scores_stand_for_the_largest_of_all(sign, of_members, of_others):
    # What is called a member at an operating point is what it counts, with any finite value in infinity's place.
    rng = np.random.default_rng(0)
    scores, keep = pool(0, T=16, N=200)
    infinite = rng.random(keep.shape) < np.where(keep, of_members, of_others)
    keep[:, 0] = True  # an example that no target is without
    finite, scores = (np.where(infinite, sign * value, scores).astype(np.float32) for value in (99, np.inf))
    curve, expected = roc(scores, keep), roc(finite, keep)
    for fpr in (0.001, 0.01, 0.05, 0.3, 1.0):
        point, other = curve.tpr_at(fpr), expected.tpr_at(fpr)
        assert dataclasses.replace(point, threshold=0) == dataclasses.replace(other, threshold=0)
        called = scores >= point.threshold
        assert (called & ~keep).sum() == point.false_positives
        assert point.distinct_examples == (called & ~keep).any(axis=0).sum()
        np.testing.assert_array_equal(
            example_tpr(scores, keep, point.threshold), example_tpr(finite, keep, other.threshold)
        )
        if point.status == "ok":
            assert (called & keep).sum() / curve.num_members == point.tpr
    for i in range(len(curve.thresholds)):
        assert (scores[~keep] >= curve.thresholds[i]).sum() == curve.false_positives[i]
        assert (scores[keep] >= curve.thresholds[i]).sum() == curve.true_positives[i]
    assert youden(scores, keep).j == youden(finite, keep).j
    np.testing.assert_array_equal(
        fixed_threshold(scores, keep, 0.05).target_tpr, fixed_threshold(finite, keep, 0.05).target_tpr
    )
    np.testing.assert_array_equal(
        # The first is no coin, and without it the models are pairs again.
        target_epsilons(scores[:, 1:], keep[:, 1:], independent=True, delta=0.01),
        target_epsilons(finite[:, 1:], keep[:, 1:], independent=True, delta=0.01),
    )
