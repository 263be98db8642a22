import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira.membership import (
    Membership,
    audited_half,
    canary_mask,
    disjoint_mask,
    have_independent_counts,
    imitator_mask,
    independent_mask,
    is_paired,
    keep_mask,
    pair_rows,
    related_rows,
)

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


def test_the_bits_of_pairs_are_those_of_the_random_words_from_the_lowest_on():
    """The first pools were drawn so: a run that grows must have the memberships that it began with."""
    for pair in (0, 1):
        words = np.random.Philox(key=np.array([7, pair], np.uint64)).random_raw(2).tolist()
        bits = [bool(word >> bit & 1) for word in words for bit in range(64)]
        assert keep_mask(7, 4, 100)[2 * pair].tolist() == bits[:100]


def test_no_two_masks_of_one_seed_share_a_stream():
    """Highest bits of the words that each row is drawn by: pairs, coins, canaries, and imitators of several targets."""
    seed, n = 3, 200
    drawn = [
        *keep_mask(seed, 8, 64 * n)[::2, 63::64],
        *independent_mask(seed, 4, n),
        *canary_mask(seed, 4, n),
    ]
    for target in range(4):
        drawn += [*imitator_mask(seed, target, 8, n)[::2]]
    signs = 2.0 * np.array(drawn) - 1
    alike = np.abs(signs @ signs.T) / n - np.eye(len(signs))
    assert alike.max() < 5 / np.sqrt(n), np.argwhere(alike > 0.9)


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


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_coins_have_their_probability_and_are_independent(fraction):
    """Means and correlations of 100 rows, and of neighbours, within 5 standard errors of coins of that probability."""
    keep = independent_mask(3, 100, 10_000, fraction)
    spread = np.sqrt(fraction * (1 - fraction))
    bits = (keep - fraction) / spread
    assert abs(bits.mean()) < 5 / np.sqrt(bits.size)
    between_rows = (bits @ bits.T / bits.shape[1])[np.triu_indices(100, 1)]
    assert abs(between_rows).max() < 5.5 / np.sqrt(bits.shape[1])
    assert abs((bits[:, 1:] * bits[:, :-1]).mean()) < 5 / np.sqrt(bits.size)
    assert have_independent_counts(keep)
    assert related_rows(keep) is None
    assert not is_paired(keep)


@given(seeds, st.integers(0, 9), st.integers(0, 9), st.integers(1, 99), st.integers(1, 9))
def test_rows_of_coins_and_of_disjoint_pools_do_not_depend_on_the_number_of_models(
    seed, few, more, N, targets
):
    few, more = sorted((few, more))
    for draw in (
        lambda M: independent_mask(seed, M, N, 0.3),
        lambda M: disjoint_mask(seed, M, N, targets, 0.3),
    ):
        np.testing.assert_array_equal(draw(few), draw(more)[:few])


def test_coins_are_not_those_of_pairs_and_smaller_sets_are_within_larger_ones():
    fair = independent_mask(0, 8, 5000)
    others = keep_mask(0, 16, 5000)[::2]
    assert related_rows(np.concatenate([fair, others])) is None
    assert not (independent_mask(0, 8, 5000, 0.2) & ~fair).any()
    assert not np.array_equal(fair, independent_mask(1, 8, 5000))


@given(seeds, st.integers(0, 99))
def test_the_audited_half_is_half_of_the_examples(seed, N):
    half = audited_half(seed, N)
    assert half.shape == (N,)
    assert half.sum() == N // 2


def test_no_shadow_model_of_a_disjoint_pool_sees_what_a_target_may_have_seen():
    """And targets' coins are fair over their half, and say nothing of each other or of which half it is."""
    half, keep = audited_half(4, 10_001), disjoint_mask(4, 40, 10_001, 10, 0.4)
    assert not keep[10:, half].any()
    assert not keep[:10, ~half].any()
    for coins in (keep[:10, half], keep[10:, ~half]):
        assert abs(coins.mean() - 0.4) < 5 * np.sqrt(0.24 / coins.size)
        assert have_independent_counts(coins)
        assert related_rows(coins) is None
    # Halves do not follow the order of the examples, nor the coins of the first model.
    n = len(half)
    assert abs(np.corrcoef(half, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(half, independent_mask(4, 1, n)[0])[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_fractions_that_leave_no_members_or_no_others_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction must be larger than 0 and smaller than 1; got"):
        independent_mask(0, 4, 10, fraction)


def test_coins_are_the_fractions_that_the_random_words_are_of_all_words():
    """The first 53 bits of numpy's own Philox at another counter, one word at a time in Python's exact integers."""
    seed, fraction = 7, 0.3
    keep = independent_mask(seed, 3, 40, fraction)
    for model in range(3):
        key, counter = np.array([seed, model], np.uint64), np.array([0, 0, 0, 1], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(40)
        assert keep[model].tolist() == [int(word) // 2**11 < fraction * 2**53 for word in words]


@pytest.mark.parametrize(
    ("membership", "draw", "share"),
    [
        (Membership(), keep_mask, 0.5),
        (Membership("independent", 0.3), lambda seed, M, N: independent_mask(seed, M, N, 0.3), 0.3),
        (Membership("disjoint", 0.6, 3), lambda seed, M, N: disjoint_mask(seed, M, N, 3, 0.6), 0.3),
    ],
)
def test_each_design_draws_its_masks_of_any_number_of_models(membership, draw, share):
    keep = membership.draw(5, 8, 3000)
    np.testing.assert_array_equal(keep, draw(5, 8, 3000))
    np.testing.assert_array_equal(membership.draw(5, 16, 3000)[:8], keep)
    assert membership.share == share
    assert abs(keep.mean() - share) < 5 * np.sqrt(share * (1 - share) / keep.size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"design": "disjoint"}, "num_targets must be at least 1 where.*got 0 of design"),
        ({"design": "independent", "num_targets": 2}, "left out elsewhere; got 2 of design"),
        ({"num_targets": -1}, "num_targets must be at least 1.*got -1"),
        ({"design": "stratified"}, "membership.design must be one of pairs, independent.*got 'stratified'"),
        ({"fraction": 0.3}, 'each model of a pair is trained on half.*set membership.design = "independent"'),
        (
            {"design": "independent", "fraction": 1.0},
            "membership.fraction must be larger than 0 and smaller than 1",
        ),
        ({"design": "independent", "fraction": float("nan")}, "smaller than 1; got nan"),
    ],
)
def test_designs_that_do_not_fit_their_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Membership(**fields)


def test_pools_that_are_too_small_for_their_design_are_refused():
    Membership("independent").check(5)
    Membership("disjoint", num_targets=6).check(8)
    with pytest.raises(ValueError, match=r"num_models is 8, and 7 of them are targets.*at least 2 others"):
        Membership("disjoint", num_targets=7).check(8)
    with pytest.raises(ValueError, match="num_models must be at least 4; got 3"):
        Membership("independent").check(3)
    with pytest.raises(ValueError, match=r"of 10 examples model \d+ would be trained on none: raise it"):
        Membership("independent", 0.01).draw(0, 8, 10)


def test_counts_are_of_coins_up_to_three_standard_errors():
    """By the sum over pairs of models: shares of the examples are balanced until the spread is too small."""
    rng, M, N = np.random.default_rng(0), 10, 400
    coins, balanced = (
        rng.random((M, N)) < rng.uniform(0.3, 0.7, (M, 1)),
        np.tile(np.arange(M)[:, None] % 2 == 0, N),
    )
    beyond = []
    for count in range(0, N, 5):
        keep = np.where(np.arange(N) < count, balanced, coins)
        v = keep.mean(axis=1) * (1 - keep.mean(axis=1))
        products = sum(v[i] * v[j] for i in range(M) for j in range(i))
        beyond.append((keep.sum(axis=0).var() - v.sum()) / (2 * np.sqrt(products / N)))
        assert have_independent_counts(keep) == (abs(beyond[-1]) <= 3)
    assert min(np.abs(beyond)) < 1
    assert sum(3 < abs(each) < 4 for each in beyond) > 3
