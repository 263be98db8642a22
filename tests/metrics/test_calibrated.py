import tracemalloc

import numpy as np
import pytest
from scipy.stats import t

from lira.membership import keep_mask
from lira.metrics import calibrated_tpr, named_members


def drawn(seed=0, M=12, N=400):
    keep = keep_mask(seed, M, N)
    return np.random.default_rng(seed).random(keep.shape) ** np.where(keep, 6, 1), keep


def test_rates_are_shares_and_their_intervals_students():
    """Over the six pairs, each of which holds every example once on each side."""
    p, keep = drawn()
    point = calibrated_tpr(p, keep, 0.01)
    for estimate, side in ((point.tpr, keep), (point.realised_fpr, ~keep)):
        pairs = ((p <= 0.01) & side).reshape(6, 2, -1).sum(axis=(1, 2)) / 400
        margin = t.ppf(0.975, 5) * pairs.std(ddof=1) / np.sqrt(6)
        assert estimate.value == pytest.approx(pairs.mean()) == pytest.approx(np.mean((p <= 0.01)[side]))
        assert estimate.low == pytest.approx(max(0, pairs.mean() - margin))
        assert estimate.high == pytest.approx(pairs.mean() + margin)
    assert point.status == "ok"


def test_a_p_value_equal_to_the_rate_is_called_a_member():
    p, keep = np.array([[0.01, 0.02]]), np.array([[True, False]])
    assert calibrated_tpr(p, keep, 0.01).tpr.value == 1
    assert calibrated_tpr(p, keep, 0.02).realised_fpr.value == 1


def test_unresolvable_and_undefined_are_told_apart():
    p, keep = drawn()
    point = calibrated_tpr(p, keep, 0.001, smallest=1 / 128)
    assert (point.status, point.floor) == ("unresolvable", 1 / 128)
    assert np.isnan(point.tpr.value)
    assert np.isnan(point.realised_fpr.value)
    assert calibrated_tpr(p, keep, 1 / 128, smallest=1 / 128).status == "ok"
    assert calibrated_tpr(p[:1], np.ones((1, 400), bool), 0.001).status == "undefined"


def test_named_members_are_benjamini_and_hochbergs():
    p, keep = drawn(3)
    p[0] = np.random.default_rng(0).uniform(0.5, 1, 400)  # of this one none is named
    p[1] = p[1] / 50
    found = named_members(p, keep, 0.1)
    counts, false = [], []
    for row, held in zip(p, keep, strict=True):
        order = np.argsort(row)
        passed = [k for k in range(1, 401) if row[order[k - 1]] <= 0.1 * k / 400]
        chosen = order[: max(passed, default=0)]
        counts.append(len(chosen))
        false.append(np.mean(~held[chosen]) if len(chosen) else 0.0)
    assert counts[0] == 0
    assert max(counts) > 10
    assert found.named.value == pytest.approx(np.mean(counts))
    assert found.false_share.value == pytest.approx(np.mean(false))
    assert found.targets == np.mean(np.array(counts) > 0)


def test_bad_arguments_are_named():
    p, keep = drawn()
    with pytest.raises(ValueError, match="fpr is a fraction"):
        calibrated_tpr(p, keep, 5)
    with pytest.raises(ValueError, match="keep must be bool"):
        named_members(p, keep[:2])


def test_naming_members_takes_little_beside_the_p_values():
    p_values = np.random.default_rng(0).random((64, 5000))
    keep = keep_mask(0, *p_values.shape)
    named_members(p_values, keep)
    tracemalloc.start()
    named_members(p_values, keep)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < p_values.nbytes
