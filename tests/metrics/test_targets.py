import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lira.membership import keep_mask
from lira.metrics import mean_over_targets, roc


@given(st.integers(0, 2**31 - 1), st.booleans())
def test_mean_over_targets_is_the_mean_of_single_curves(seed, ties):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, 8, 80)
    scores = rng.normal(size=(8, 80)) + keep
    scores = np.round(2 * scores) if ties else scores
    mean = mean_over_targets(scores, keep, [0.05, 0.2, 1.0, 0.001])
    singles = [roc(scores[t : t + 1], keep[t : t + 1]) for t in range(8)]
    aucs = np.array([single.auc for single in singles])
    assert mean["auc"].value == pytest.approx(aucs.mean(), abs=1e-12)
    margin = stats.t.ppf(0.975, 3) * aucs.reshape(4, 2).mean(axis=1).std(ddof=1) / 2
    assert mean["auc"].high - mean["auc"].low == pytest.approx(2 * margin)
    for fpr in (0.05, 0.2, 1.0):
        tprs = [single.realised_tpr(fpr) for single in singles]
        assert mean["tpr_at_fpr"][fpr].value == pytest.approx(np.mean(tprs), abs=1e-12)
    assert np.isnan(mean["tpr_at_fpr"][0.001].value), "no target can resolve it"
