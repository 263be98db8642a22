import weakref
from functools import partial

import numpy as np
import pytest
from scipy import stats

from lira.attacks import global_threshold, lira_online, lira_online_fixed
from lira.membership import keep_mask
from lira.metrics import (
    Estimate,
    LearningPoint,
    comparison,
    difference,
    enough_models,
    information_bound,
    learning_curve,
    rescored_intervals,
    roc,
    stability,
    stability_between_pools,
    subpool_scores,
    subpools,
    youden,
)
from lira.metrics.comparison import Difference
from lira.metrics.curve import OperatingPoint
from lira.store.zarr import StoredSignal, create_array


def pool(seed, M=16, N=200):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N)
    phi = rng.normal(size=(M, N)) + keep * np.random.default_rng(0).exponential(1.5, N)
    return phi[..., None].astype(np.float32), keep


def gap(phi, keep):
    """A small attack in NumPy: distance to the mean of others' OUT values less that to their IN values."""
    phi = np.asarray(phi[:, :])[..., 0].astype(np.float64)
    scores = np.empty(phi.shape)
    for t in range(len(phi)):
        others = np.arange(len(phi)) // 2 != t // 2
        inside = np.where(keep[others], phi[others], 0).sum(axis=0) / keep[others].sum(axis=0)
        outside = np.where(keep[others], 0, phi[others]).sum(axis=0) / (~keep[others]).sum(axis=0)
        scores[t] = np.abs(phi[t] - outside) - np.abs(phi[t] - inside)
    return scores.astype(np.float32)


class Lazy:
    """Slices along examples only, and remembers how much was asked for at once."""

    def __init__(self, array):
        self.array, self.shape, self.widest = array, array.shape, 0

    def __getitem__(self, index):
        models, examples = index
        assert models == slice(None), "models are selected after reading"
        self.widest = max(self.widest, len(range(*examples.indices(self.shape[1]))))
        return self.array[:, examples]


# --- Sub-pools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [lira_online_fixed, gap])
def test_subpools_are_attacked_within_themselves(attack):
    phi, keep = pool(0, M=14)
    scores = subpool_scores(attack, phi, keep, 6)
    assert scores.shape == (12, 200), "two models do not fill a sub-pool"
    for start in (0, 6):
        rows = slice(start, start + 6)
        np.testing.assert_array_equal(scores[rows], attack(phi[rows], keep[rows]))
    # Nothing of another sub-pool is used.
    phi[6:] += 100
    np.testing.assert_array_equal(subpool_scores(attack, phi, keep, 6)[:6], scores[:6])


def test_lazy_signals_are_read_in_blocks():
    phi, keep = pool(0, M=16, N=20_000)
    lazy = Lazy(phi)
    np.testing.assert_array_equal(
        subpool_scores(lira_online_fixed, lazy, keep, 8), subpool_scores(lira_online_fixed, phi, keep, 8)
    )
    assert lazy.widest <= 8192


@pytest.mark.parametrize("size", [2, 5, 18, 0])
def test_a_subpools_size_must_fit(size):
    with pytest.raises(ValueError, match=f"even and from 4 to the pool's 16 models.*got {size}"):
        subpool_scores(gap, *pool(0), size)


def test_pools_must_be_paired_and_shapes_agree():
    phi, keep = pool(0)
    with pytest.raises(ValueError, match="the rows of keep are not paired"):
        learning_curve(gap, phi, np.roll(keep, 1, axis=0), [4])
    with pytest.raises(ValueError, match=r"keep must be bool \[models, examples\] like phi.*\(16, 200, 1\)"):
        rescored_intervals(gap, phi, keep[:, :100])


def test_of_stored_signals_every_model_is_read_once(tmp_path):
    phi, keep = pool(0, M=16)
    store = create_array(tmp_path / "phi", phi.shape, "float32", (1, *phi.shape[1:]), {})
    store.write(phi).result()
    read = []

    class Counted(StoredSignal):
        def take_models(self, rows):
            read.extend(self.rows[rows])
            return super().take_models(rows)

        def _read(self, start, stop):
            raise AssertionError("all models were read")

    stored = Counted(store, np.arange(16), "phi")
    expected = subpool_scores(lira_online_fixed, phi, keep, 4)
    np.testing.assert_array_equal(subpool_scores(lira_online_fixed, stored, keep, 4), expected)
    assert read == list(range(16))


@pytest.mark.parametrize("measure", [difference, learning_curve])
def test_one_curve_is_held_at_a_time(monkeypatch, measure):
    alive, most = weakref.WeakSet(), []

    def counted(*args, **kwargs):
        alive.add(curve := roc(*args, **kwargs))
        most.append(len(alive))
        return curve

    for module in (subpools, comparison):
        monkeypatch.setattr(module, "roc", counted)
    phi, keep = pool(0, M=20)
    if measure is learning_curve:
        learning_curve(gap, phi, keep, [4, 8, 20])
    else:
        difference(gap(phi, keep), phi[..., 0], keep)
    assert len(most) > 1
    assert max(most) == 1


def test_an_attack_that_needs_more_models_says_so():
    with pytest.raises(ValueError, match="use lira_online_fixed, which needs one, or more models"):
        subpool_scores(lira_online, *pool(0), 4)


# --- Learning curve -------------------------------------------------------------------------------------------------


def test_learning_curve_pools_the_subpools():
    phi, keep = pool(1, M=36)
    points = learning_curve(gap, phi, keep, [32, 4, 8, 8], fpr=0.05)
    assert [(p.num_models, p.num_subpools) for p in points] == [(4, 9), (8, 4), (32, 1)]
    best = subpool_scores(gap, phi, keep, 32)
    for point in points:
        scores = subpool_scores(gap, phi, keep, point.num_models)
        # Sub-pools are the clusters where there are four, else pairs.
        size = point.num_models if point.num_subpools >= 4 else 2
        clusters = np.arange(len(scores)) // size
        expected = roc(scores, keep[: len(scores)], clusters=clusters)
        assert point.tpr == expected.tpr_at(0.05)
        assert point.auc == expected.auc_interval()
        shortfall = difference(best, scores[:32], keep[:32], fpr=0.05, clusters=clusters[:32])
        assert point.shortfall == shortfall
    assert points[-1].shortfall.tpr == Estimate(0, 0, 0)


def test_learning_curve_of_gaussians_rises_and_that_of_no_reference_is_flat():
    phi, keep = pool(2, M=64, N=400)
    rising = learning_curve(lira_online_fixed, phi, keep, [4, 16, 64], fpr=0.01)
    aucs = [point.auc.value for point in rising]
    assert aucs[0] < aucs[1] < aucs[2]
    assert rising[0].shortfall.tpr.low > 0
    flat = learning_curve(global_threshold, phi, keep, [4, 16, 64], fpr=0.01)
    assert len({point.tpr.tpr for point in flat}) == 1
    assert all(point.shortfall.auc == Estimate(0, 0, 0) for point in flat)
    assert enough_models(flat) == 4
    # A generous tolerance is met by fewer models.
    assert enough_models(rising, tolerance=1.0) == 4
    assert enough_models(rising, tolerance=0.0) is None


def point(size, tpr, low, high):
    shortfall = Difference(0.01, Estimate(0.2 - tpr, low, high), Estimate(0, 0, 0))
    operating = OperatingPoint(0.01, "ok", tpr, 0, 1, 0, 10, 10, 0.01, 5, 1000, 0.0)
    return LearningPoint(size, 64 // size, operating, Estimate(0.6, 0.5, 0.7), shortfall)


def test_enough_is_the_smallest_size_whose_shortfall_is_surely_small():
    largest = point(64, 0.2, 0, 0)
    sure, unsure = point(32, 0.198, 0.0, 0.009), point(16, 0.197, 0.0, 0.012)
    assert enough_models([sure, unsure, largest]) == 32
    assert enough_models([largest, unsure, sure], tolerance=0.06) == 16, "order does not matter"
    assert enough_models([point(8, 0.2, 0, 0.001), unsure, sure, largest]) == 32, (
        "nothing between may fall short"
    )
    assert enough_models([unsure, largest]) is None
    assert enough_models([largest]) is None
    nan = float("nan")
    assert enough_models([point(32, 0.2, nan, nan), largest]) is None, "no interval, no claim"


def test_learning_curve_needs_sizes():
    with pytest.raises(ValueError, match="sizes must name at least one number of models"):
        learning_curve(gap, *pool(0), [])
    with pytest.raises(ValueError, match="fpr is a fraction"):
        learning_curve(gap, *pool(0), [4], fpr=1.5)


# --- Jackknife with rescoring ---------------------------------------------------------------------------------------


def test_rescored_interval_is_the_jackknifes():
    phi, keep = pool(3, M=12)
    found = rescored_intervals(gap, phi, keep, fpr=0.05)
    values = []
    for pair in range(6):
        rest = np.arange(12) // 2 != pair
        curve = roc(gap(phi[rest], keep[rest]), keep[rest])
        held_out = youden(gap(phi[rest], keep[rest]), keep[rest]).j.value
        values.append((curve.tpr_at(0.05).tpr, curve.auc, curve.balanced_accuracy, held_out))
    whole = roc(gap(phi, keep), keep)
    error = np.sqrt(5 / 6 * np.sum((values - np.mean(values, axis=0)) ** 2, axis=0))
    margins = stats.t.ppf(0.975, 5) * error
    assert found.tpr.value == whole.tpr_at(0.05).tpr
    assert found.auc.value == whole.auc
    assert found.tpr.high == pytest.approx(found.tpr.value + margins[0], abs=1e-12)
    assert found.auc.low == pytest.approx(found.auc.value - margins[1], abs=1e-12)
    assert found.balanced_accuracy.value == whole.balanced_accuracy
    assert found.balanced_accuracy.low == pytest.approx(whole.balanced_accuracy - margins[2], abs=1e-12)
    j = youden(gap(phi, keep), keep).j
    assert found.j.value == j.value
    assert found.j.low == pytest.approx(j.value - margins[3], abs=1e-12)


def test_groups_of_pairs_are_left_out_whole():
    calls = []

    def remember(phi, keep):
        calls.append((phi.shape, len(keep)))
        return gap(phi, keep)

    phi, keep = pool(4, M=20)
    rescored_intervals(remember, phi, keep, fpr=0.05, groups=5)
    assert calls == [((20, 200, 1), 20)] + [((16, 200, 1), 16)] * 5


def test_rescored_intervals_cover_where_fixed_scores_do_not():
    """AUC, balanced accuracy and the information bound at M = 8, 100 pools, examples fixed.

    Three binomial standard errors of 100 runs are 6.5 %.
    """
    strength = np.random.default_rng(0).exponential(1.0, 300)
    found, fixed = [], []
    for run in range(100):
        rng = np.random.default_rng(run)
        keep = keep_mask(run, 8, 300)
        phi = (rng.normal(size=keep.shape) + keep * strength + rng.normal(0, 0.5, (8, 1)))[..., None]
        rescored, scores = rescored_intervals(gap, phi, keep), gap(phi, keep)
        curve, j = roc(scores, keep), youden(scores, keep).j
        found.append((rescored.auc, rescored.balanced_accuracy, information_bound(rescored.j)))
        fixed.append((curve.auc_interval(), curve.balanced_accuracy_interval(), information_bound(j)))
    truths = np.mean([[e.value for e in each] for each in found], axis=0)

    def covered(intervals):
        held = [[e.low <= t <= e.high for e, t in zip(each, truths, strict=True)] for each in intervals]
        return np.mean(held, axis=0)

    assert (covered(found) >= 0.885).all()
    assert (covered(fixed) < covered(found) - 0.05)[[0, 2]].all()


def test_rescoring_needs_four_groups():
    with pytest.raises(ValueError, match=r"at least 4 groups of pairs; got 3 \(3 pairs\)"):
        rescored_intervals(gap, *pool(0, M=6))
    with pytest.raises(ValueError, match=r"at least 4 groups of pairs; got 2 \(8 pairs\)"):
        rescored_intervals(gap, *pool(0), groups=2)


# --- Stability between pools ----------------------------------------------------------------------------------------


def test_halves_share_no_models():
    phi, keep = pool(5, M=18)
    found = stability_between_pools(gap, phi, keep, fpr=0.05)
    # Two pools of eight; the last pair fits in neither.
    scores = np.concatenate([gap(phi[:8], keep[:8]), gap(phi[8:16], keep[8:16])])
    expected = stability(scores, keep[:16], fpr=0.05)
    np.testing.assert_array_equal(found.vulnerability, expected.vulnerability)
    assert found.spearman == expected.spearman
    assert found.pearson.low > 0, "the same examples stand out"


def test_sharing_shadow_models_flatters_stability():
    """Examples that do not differ: pools apart find nothing in common, halves of one pool's scores do."""
    rng = np.random.default_rng(7)
    keep = keep_mask(7, 16, 2000)
    phi = (rng.normal(size=keep.shape) + 1.5 * keep)[..., None].astype(np.float32)
    apart = stability_between_pools(gap, phi, keep, fpr=0.05).pearson
    assert apart.low < 0 < apart.high
    assert stability(gap(phi, keep), keep, fpr=0.05).pearson.low > apart.high


def test_held_out_j_of_pools_apart_is_zero_for_noise():
    """300 pools of pure noise: no share of the optimism stays where the halves share no models."""
    found = []
    for run in range(300):
        keep = keep_mask(run, 8, 150)
        phi = np.random.default_rng(run).normal(size=keep.shape)[..., None]
        found.append(youden(subpool_scores(gap, phi, keep, 4), keep))
    values = [each.j.value for each in found]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert error < 0.1 * np.mean([each.optimistic for each in found])


def test_options_are_bound_by_partial():
    phi, keep = pool(6, M=16)
    original = partial(lira_online_fixed, convention="original")
    scores = subpool_scores(original, phi, keep, 8)
    np.testing.assert_array_equal(scores[:8], lira_online_fixed(phi[:8], keep[:8], convention="original"))
    with pytest.raises(ValueError, match=r"even and from 4 to the pool's 6 models.*got 2"):
        stability_between_pools(gap, phi[:6], keep[:6])
