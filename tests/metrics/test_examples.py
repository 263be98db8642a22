import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lira.membership import keep_mask
from lira.metrics import UndefinedMetricWarning, example_tpr, roc, stability


def pool(seed, T=16, N=300, spread=2.0):
    """Scores whose members stand out by an amount of the example's own."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    return rng.normal(size=(T, N)) + keep * np.random.default_rng(0).exponential(spread, N), keep


@given(st.integers(0, 2**31 - 1))
def test_example_tpr_counts_the_models_that_hold_it(seed):
    scores, keep = pool(seed, T=6, N=20)
    for n, share in enumerate(example_tpr(scores, keep, 0.5)):
        assert share == np.mean(scores[keep[:, n], n] >= 0.5)
    assert np.isnan(example_tpr(scores, np.zeros_like(keep), 0.5)).all()


def test_stability_is_scipys_correlation_of_the_halves():
    scores, keep = pool(1)
    found = stability(scores, keep, fpr=0.05)
    halves = []
    for half in (slice(None, 8), slice(8, None)):
        threshold = roc(scores[half], keep[half]).tpr_at(0.05).threshold
        halves.append(example_tpr(scores[half], keep[half], threshold))
    np.testing.assert_array_equal(found.vulnerability, halves)
    assert found.pearson.value == pytest.approx(stats.pearsonr(*halves)[0], abs=1e-12)
    assert found.spearman.value == pytest.approx(stats.spearmanr(*halves)[0], abs=1e-12)


def test_stability_interval_covers_the_expected_correlation():
    """Truth is the mean over 100 re-drawn pools and examples; three binomial standard errors of 100 are 6.5 %."""
    found = []
    for run in range(100):
        rng = np.random.default_rng(run)
        keep = keep_mask(run, 8, 200)
        found.append(stability(rng.normal(size=keep.shape) + keep * rng.exponential(2, 200), keep, fpr=0.05))
    for figure in ("pearson", "spearman"):
        estimates = [getattr(f, figure) for f in found]
        truth = np.mean([e.value for e in estimates])
        assert 0.2 < truth < 0.9
        assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.885


def test_alike_examples_have_no_stability_but_noise():
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 16, 2000)
    found = stability(rng.normal(size=keep.shape) + keep, keep, fpr=0.05)
    assert found.pearson.low < 0 < found.pearson.high
    assert found.pearson.high - found.pearson.low < 0.12


def test_an_odd_pair_is_left_out():
    scores, keep = pool(2, T=10)
    found = stability(scores, keep, fpr=0.1)
    rest = np.r_[0:4, 6:10]
    np.testing.assert_array_equal(
        found.vulnerability, stability(scores[rest], keep[rest], fpr=0.1).vulnerability
    )


def test_stability_undefined_or_impossible():
    scores, keep = pool(0)
    with pytest.warns(UndefinedMetricWarning, match="stability is undefined: at FPR 0.1 a half"):
        found = stability(-10.0 * keep, keep, fpr=0.1)
    assert np.isnan([found.pearson.value, found.spearman.value]).all()
    assert (found.vulnerability == 0).all()
    with pytest.raises(ValueError, match="compares two halves of the pool: give at least two pairs; got 1"):
        stability(scores[:2], keep[:2])
    with pytest.raises(ValueError, match="fpr is a fraction"):
        stability(scores, keep, fpr=-1)
