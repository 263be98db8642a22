import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ecdf
from shadow_pools import MODES, NUM_EXAMPLES, SIZES, loss, make_pool, targets

from lira import attacks
from lira.membership import keep_mask
from lira.metrics import roc


def mean_loss(phi):
    return loss(phi).mean(axis=-1)


def above(values, own):
    """How many values are strictly above, by more than rounding."""
    return int(np.sum(values > own * (1 + 1e-12)))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    size=st.sampled_from(SIZES),
    ties=st.booleans(),
    held_out=st.booleans(),
)
def test_attack_p_counts_the_population_above(seed, mode, size, ties, held_out):
    pool = make_pool(seed, mode, *size, ties=ties)
    populations = pool.populations if held_out else {}
    scores = attacks.attack_p(pool.phi, pool.keep, **pool.options, **populations)
    assert scores.dtype == np.float32
    for row, target in zip(scores, targets(pool), strict=True):
        own = mean_loss(target.own)
        for n in range(NUM_EXAMPLES):
            population = mean_loss(target.own_population) if held_out else np.delete(own, n)
            assert row[n] == np.float32(above(population, own[n]) / len(population))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    size=st.sampled_from(SIZES),
    ties=st.booleans(),
)
def test_attack_r_counts_the_out_models_above(seed, mode, size, ties):
    pool = make_pool(seed, mode, *size, ties=ties)
    scores = attacks.attack_r(pool.phi, pool.keep, **pool.options)
    assert scores.dtype == np.float32
    for row, target in zip(scores, targets(pool), strict=True):
        for n in range(NUM_EXAMPLES):
            references = mean_loss(pool.phi[target.outside[:, n], n])
            assert row[n] == np.float32(above(references, mean_loss(target.own[n])) / len(references))


def test_attack_p_is_one_minus_the_distribution_function_of_the_population():
    rng = np.random.default_rng(0)
    target, population = rng.normal(size=(1, 300, 1)), rng.normal(size=(1, 1000, 1))
    scores = attacks.attack_p(
        np.zeros((1, 300, 1)), np.zeros((1, 300), bool), target=target, target_population=population
    )
    expected = ecdf(loss(population[0, :, 0])).sf.evaluate(loss(target[0, :, 0]))
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)


def test_attack_r_of_a_target_below_at_and_above_known_models():
    references = np.array([-3, -1, 0, 2, 2], np.float32)[:, None, None]
    target = np.array([-5, -1, 2, 9], np.float32)[:, None, None]
    # A higher phi is a lower loss; the target's equals are not above it.
    scores = attacks.attack_r(references, np.zeros((5, 1), bool), target=target)
    np.testing.assert_allclose(scores[:, 0], [0, 1 / 5, 3 / 5, 1], rtol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_attack_r_of_clear_members_has_the_closed_form(count):
    """Members are below every OUT loss, non-members uniform over K + 1 ranks: AUC = 1 - 1 / (2 (K + 1))."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 2 * count + 2, 4000)
    phi = rng.normal(size=(*keep.shape, 1)).astype(np.float32) + 20 * keep[..., None]
    assert abs(roc(attacks.attack_r(phi, keep), keep).auc - (1 - 0.5 / (count + 1))) < 0.01


def test_attack_r_has_one_score_more_than_out_models():
    pool = make_pool(0, "pair", 10, 2)
    assert set(np.unique(attacks.attack_r(pool.phi, pool.keep))) == {0, 0.25, 0.5, 0.75, 1}


def test_in_models_do_not_matter_to_attack_r():
    pool = make_pool(0, "pair", 10, 2)
    loud = np.where(pool.keep[..., None], np.float32(50), pool.phi)
    before, after = (attacks.attack_r(phi, pool.keep) for phi in (pool.phi, loud))
    np.testing.assert_array_equal(before[~pool.keep], after[~pool.keep])
    np.testing.assert_array_equal(after[pool.keep], 1)


def test_outside_targets_need_their_own_population():
    pool = make_pool(0, "outside", 4, 1)
    with pytest.raises(ValueError, match="attack_p ranks outside targets among target_population: pass it"):
        attacks.attack_p(pool.phi, pool.keep, target=pool.target, population=pool.population)
    both = attacks.attack_p(pool.phi, pool.keep, target=pool.target, **pool.populations)
    alone = attacks.attack_p(
        pool.phi, pool.keep, target=pool.target, target_population=pool.target_population
    )
    np.testing.assert_array_equal(both, alone)


def test_attack_r_without_out_models_names_what_works():
    phi = np.zeros((3, 5, 1), np.float32)
    with pytest.raises(
        ValueError, match=r"attack_r needs 1 OUT model.*has 0: use attack_p or global_threshold"
    ):
        attacks.attack_r(phi, np.ones((3, 5), bool), target=phi[:1])
