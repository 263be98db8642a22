import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira.membership import is_paired, keep_mask, pair_rows

seeds = st.integers(0, 2**63 - 1)
pool_sizes = st.integers(2, 40).map(lambda pairs: 2 * pairs)


@given(seeds, pool_sizes, st.integers(0, 300))
def test_every_example_is_in_exactly_half_of_the_models(seed, num_models, num_examples):
    keep = keep_mask(seed, num_models, num_examples)
    assert keep.shape == (num_models, num_examples)
    assert keep.dtype == bool
    assert (keep.sum(axis=0) == num_models // 2).all()
    assert is_paired(keep)


@given(seeds, pool_sizes, pool_sizes, st.integers(1, 300))
def test_rows_do_not_depend_on_the_number_of_models(seed, few, more, num_examples):
    few, more = sorted((few, more))
    np.testing.assert_array_equal(
        keep_mask(seed, few, num_examples), keep_mask(seed, more, num_examples)[:few]
    )


def test_bits_are_fair_and_independent():
    """Means and pairwise correlations of 100 independent rows within 5 standard errors of a fair coin's."""
    bits = keep_mask(3, 200, 10_000)[::2].astype(float) - 0.5
    assert abs(bits.mean()) < 5 * 0.5 / np.sqrt(bits.size)
    between_rows = (bits @ bits.T / bits.shape[1])[np.triu_indices(100, 1)]
    assert abs(between_rows).max() < 5.5 * 0.25 / np.sqrt(bits.shape[1])
    neighbours = (bits[:, 1:] * bits[:, :-1]).mean()
    assert abs(neighbours) < 5 * 0.25 / np.sqrt(bits.size)
    row_sums = keep_mask(3, 200, 10_000)[::2].sum(axis=1)
    assert 35 < row_sums.std() < 65  # sqrt(N) / 2 = 50


def test_seeds_differ():
    assert not np.array_equal(keep_mask(0, 4, 100), keep_mask(1, 4, 100))


@pytest.mark.parametrize("num_models", [-2, 0, 1, 2, 3, 7])
def test_pools_that_are_odd_or_below_four_are_refused(num_models):
    with pytest.raises(ValueError, match=f"even and at least 4.*got {num_models}"):
        keep_mask(0, num_models, 10)


def test_unpaired_rows_are_seen():
    keep = keep_mask(0, 4, 50)
    keep[1, 7] ^= True
    assert not is_paired(keep)
    assert not is_paired(keep[:3])


def test_rows_are_paired_by_their_complements_only():
    keep = keep_mask(0, 6, 50)
    balanced = np.argsort(np.random.default_rng(0).uniform(size=(6, 50)), axis=0) < 3
    shuffled = keep[[3, 5, 0, 4, 2, 1]]
    order = pair_rows(shuffled)
    assert sorted(order) == list(range(6))
    assert is_paired(shuffled[order])
    assert pair_rows(keep).tolist() == list(range(6))
    assert pair_rows(keep[:5]).tolist() == [0, 1, 2, 3]
    assert pair_rows(balanced).tolist() == []
    twice = np.concatenate([keep[:2], keep[:2]])
    assert pair_rows(twice).tolist() == [0, 1, 2, 3]
    assert pair_rows(np.zeros((4, 9), bool)).tolist() == []
