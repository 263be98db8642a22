"""No design of memberships gives them away: pools that know nothing, in any design and of any models, are at chance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata
from shadow_pools import draw_drops

from lira.attacks import UnfitPoolError, lira_offline_fixed, lira_online, shadow_classifier
from lira.attacks._opponents import opponents_of
from lira.attacks._parted import _orders, drop_lots
from lira.attacks._pool import ThinPoolError
from lira.attacks.suite import ATTACKS, Pool, attack_pool, call_attack, call_where_enough
from lira.attacks.thin import Columns
from lira.membership import have_independent_counts, keep_mask, pair_rows, related_rows
from lira.metrics import scored_part

EXAMPLES, POINTS = 700, 40
# What is wrong with the models of a pool: nothing; a random effect of each; one outlying row.
TEMPERS = ("alike", "effects", "first", "middle", "last")
DESIGNS = [("balanced", M) for M in (8, 16, 64)] + [("one lost", M) for M in (7, 15)]
DESIGNS += [("independent", M) for M in (7, 8, 15, 16, 64)] + [("undeclared", 64)]

pytestmark = pytest.mark.filterwarnings("ignore")


def balanced(rng: np.random.Generator, M: int, N: int) -> np.ndarray:
    """Each example in exactly half of the models, no pairs."""
    return np.argsort(rng.uniform(size=(M, N)), axis=0) < M // 2


def draw_keep(rng: np.random.Generator, design: str, M: int, N: int) -> np.ndarray:
    """Of M models, or of M + 1 of which one is lost."""
    if design in ("balanced", "one lost"):
        return balanced(rng, M + (design == "one lost"), N)[:M]
    return rng.uniform(size=(M, N)) < 0.5


def effect(rng: np.random.Generator, temper: str, M: int) -> np.ndarray:
    """What is added to all confidences of a model, float64 `[M, 1, 1]`."""
    shift = np.zeros((M, 1, 1))
    if temper == "effects":
        shift = rng.normal(size=(M, 1, 1))
    elif temper != "alike":
        shift[{"first": 0, "middle": M // 2, "last": M - 1}[temper]] = 8
    return shift


def noise(design: str, M: int, seed: int) -> tuple[Pool, list[slice]]:
    """A pool that knows nothing of its memberships, and the examples of each temper."""
    rng = np.random.default_rng([seed, M])
    N = EXAMPLES * len(TEMPERS)

    def draw(columns: int) -> np.ndarray:
        return rng.normal(size=(M, columns, 1))

    parts = [slice(EXAMPLES * i, EXAMPLES * (i + 1)) for i in range(len(TEMPERS))]
    signals = {}
    for name in ("phi", "entropy", "modified_entropy", "phi@0.5"):
        values = draw(N)
        for part, temper in zip(parts, TEMPERS, strict=True):
            values[:, part] += effect(rng, temper, M)
        signals[name] = (np.exp(values) if "entropy" in name else values).astype(np.float32)
    pool = Pool(
        signals,
        draw_keep(rng, design, M, N),
        population=draw(POINTS).astype(np.float32),
        features=rng.normal(size=(N, 2)),
        population_features=rng.normal(size=(POINTS, 2)),
        independent=design == "independent",
    )
    return pool, parts


def check_chance_of_targets(scores: np.ndarray, keep: np.ndarray, what: object) -> None:
    """The mean AUC of targets by themselves, within 4.5 standard errors of pure noise's."""
    ranks = np.where(keep, rankdata(scores, axis=1), 0).sum(
        axis=1
    )  # ties in the middle: Mann and Whitney's count
    members = keep.sum(axis=1)
    aucs = (ranks / members - (members + 1) / 2) / (keep.shape[1] - members)
    error = np.sqrt(1 / (3 * keep.shape[1]) / len(keep))
    assert abs(np.mean(aucs) - 0.5) < 4.5 * error, (what, np.mean(aucs))


@pytest.mark.parametrize(("design", "M"), DESIGNS)
def test_noise_is_at_chance_in_every_design(design, M):
    pool, parts = noise(design, M, 0)
    scored = 0
    for name, attack in ATTACKS.items():
        if not attack.uses_shadows:
            continue
        try:
            scores = call_attack(attack, pool)
        except UnfitPoolError:
            continue
        scored += 1
        for temper, part in zip(TEMPERS, parts, strict=True):
            check_chance_of_targets(scores[:, part], pool.keep[:, part], (name, temper))
    assert scored >= (4 if design == "independent" and M < 64 else 10)


def test_noise_is_at_chance_where_thin_examples_are_left_out():
    """By every attack that independent coins are too thin for; 8 models leave out three of ten examples."""
    M = 8
    pool, parts = noise("independent", M, 1)
    names, count = [], pool.keep.sum(axis=0)
    for name, attack in ATTACKS.items():
        try:
            call_attack(attack, pool)
        except ThinPoolError:
            names.append(name)
        except UnfitPoolError:
            continue
    assert "lira_online" in names
    for name in names:
        scores = call_where_enough(ATTACKS[name], pool)
        scored = ~np.isnan(scores)
        assert (scored == scored[0]).all(), "left out for all targets alike"
        assert not {*count[scored[0]]} & {*count[~scored[0]]}, "by the counts of the whole pool alone"
        if name == "lira_online":
            np.testing.assert_array_equal(scored[0], np.minimum(count, M - count) - 1 >= 2)
        for temper, part in zip(TEMPERS, parts, strict=True):
            theirs, held, _ = scored_part(scores[:, part], pool.keep[:, part])
            check_chance_of_targets(theirs, held, (name, temper))


@pytest.mark.parametrize("name", ["lira_online_fixed", "lira_offline_fixed", "bavaria_online", "attack_r"])
def test_an_outside_target_that_was_one_of_a_balanced_design_is_at_chance(name):
    """Seven of eight balanced models against the eighth, one of the seven outlying: 40 pools of 2,000 examples."""
    scores, keeps = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        keep = balanced(rng, 8, 2000)
        phi = rng.normal(size=(8, 2000, 1)).astype(np.float32)
        phi[6] += 8
        scores.append(ATTACKS[name].function(phi[:7], keep[:7], target=phi[7:])[0])
        keeps.append(keep[7])
    check_chance_of_targets(np.stack(scores), np.stack(keeps), name)


def test_which_model_is_dropped_is_drawn_evenly():
    """6 candidates, 20,000 examples: each within 5 standard errors of a sixth for every target; sides apart; ranks in turn."""
    draws = draw_drops(np.arange(12), np.arange(20_000)) % 6
    assert draws.shape == (12, 20_000, 2)
    error = np.sqrt(1 / 6 * 5 / 6 / 20_000)
    for target in draws:
        for side in (0, 1):
            assert abs(np.bincount(target[:, side]) / 20_000 - 1 / 6).max() < 5 * error
        assert abs((target[:, 0] == target[:, 1]).mean() - 1 / 6) < 5 * error
    assert (np.sort(draws, axis=0) == np.repeat(np.arange(6), 2)[:, None, None]).all()


def test_draws_are_those_of_the_generator_of_jax():
    """Which stored scores are of: NumPy draws the same numbers, here of the second turn of 7 models and of the next."""
    examples, M = np.arange(10, 20, dtype=np.uint32), 7

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def drawn(keys, example):
        order = jnp.argsort(jax.random.bits(jax.random.fold_in(keys[0], example // M), (M,), jnp.uint32))
        lots = jax.random.bits(jax.random.fold_in(keys[1], example), (2,), jnp.uint32) >> 1
        return (order + example) % M, lots

    orders, lots = drawn(jax.random.split(jax.random.key(0)), examples)
    np.testing.assert_array_equal(_orders(M, examples), np.asarray(orders).T)
    np.testing.assert_array_equal(drop_lots(examples), lots)


@pytest.mark.parametrize("counts", ["balanced", "uneven"])
def test_all_examples_are_left_equal_counts_without_the_target(counts):
    """By the blocks that attacks see: each side's mask less what is removed, for each target."""
    rng = np.random.default_rng(0)
    keep = balanced(rng, 8, 50) if counts == "balanced" else rng.uniform(size=(24, 50)) < 0.5
    M = len(keep)
    # The value says which model it is.
    phi = np.broadcast_to(np.arange(M, dtype=np.float32)[:, None, None], (M, 50, 1)).copy()
    opponents = opponents_of(phi, keep, None, "one")
    (group,) = opponents.groups
    ((_, block),) = list(opponents.blocks(group))
    for side, mask, cut in ((block.inside, keep, group.cuts[0]), (block.outside, ~keep, group.cuts[1])):
        kept, removed = np.asarray(side.mask), np.asarray(side.removed)[..., 0].astype(int)
        assert not (kept & ~mask).any()
        for t in range(M):
            left = kept.copy()
            left[removed[t], np.arange(50)] &= ~np.asarray(side.removes)[t]
            assert (left.sum(axis=0) == cut).all()
            assert not left[t].any()


def test_mates_and_twins_in_the_pool_are_refused():
    keep, rng = keep_mask(0, 8, 400), np.random.default_rng(0)
    phi = rng.normal(size=(8, 400, 1)).astype(np.float32)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    for rows in (np.arange(8), order):
        for leave in ("one", "independent"):
            with pytest.raises(ValueError, match=r"rows are complementary pairs; order those.*pair_rows"):
                lira_online(phi[rows], keep[rows], leave=leave)
    assert len(pair_rows(keep[order])) == 8
    for rows in (order[:5], np.array([0, 2, 2, 4, 6])):  # a mate among others; a twin
        assert related_rows(keep[rows]) is not None
        for attack in (lira_offline_fixed, shadow_classifier):
            with pytest.raises(UnfitPoolError, match="give each other's memberships away"):
                attack(phi[rows], keep[rows], leave="one")


@pytest.mark.parametrize("seed", range(20))
def test_designs_are_told_apart(seed):
    rng = np.random.default_rng(seed)
    N = 1000
    rates = rng.uniform(0.2, 0.8, size=(12, 1))
    for coins in (
        rng.uniform(size=(12, N)) < 0.5,
        rng.uniform(size=(12, N)) < rates,
        keep_mask(seed, 24, N)[::2],
    ):
        assert have_independent_counts(coins)
        assert related_rows(coins) is None
    popular = rng.uniform(0.2, 0.8, size=N)
    folds = np.arange(12)[:, None] != rng.integers(12, size=N)
    for other in (
        balanced(rng, 12, N),
        balanced(rng, 12, N)[:11],
        rng.uniform(size=(12, N)) < popular,
        folds,
    ):
        assert not have_independent_counts(other)
        assert related_rows(other) is None
    neighbours = folds & np.roll(folds, 1, axis=0)  # each example is left out by two models in a row
    assert related_rows(neighbours) is not None
    member = keep_mask(seed, 4, N)
    assert related_rows(keep_mask(seed + 1, 12, N), member) is None
    assert related_rows(keep_mask(seed, 12, N)[::2], member) is not None


def test_counts_that_are_not_those_of_coins_are_cut_although_independence_is_declared():
    rng = np.random.default_rng(0)
    keep = balanced(rng, 8, 300)
    phi = rng.normal(size=(8, 300, 1)).astype(np.float32)
    with pytest.warns(UserWarning, match="counts of IN models do not spread as those of independent coins"):
        scores = lira_offline_fixed(phi, keep, leave="independent")
    np.testing.assert_array_equal(scores, lira_offline_fixed(phi, keep, leave="one"))


def test_independent_pools_are_refused_by_their_design_and_not_by_their_counts():
    """12 models and 20 examples: a third of the pools happen to have two others everywhere, and these were off (AUC .484)."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(12, 20, 1)).astype(np.float32)
    while True:
        keep = rng.uniform(size=(12, 20)) < 0.5
        if keep.sum(axis=0).min() > 2 and (~keep).sum(axis=0).min() > 2:
            break
    with pytest.raises(
        UnfitPoolError, match=r"lira_online needs 2 IN models.* of 20 examples have fewer on average"
    ):
        lira_online(phi, keep, leave="independent")
    assert np.isfinite(lira_offline_fixed(phi, keep, leave="independent")).all()


def test_thin_examples_are_left_out_counted_and_named():
    """Two of 40 examples without enough IN models: the others are scored as the pool without them is."""
    rng = np.random.default_rng(0)
    keep = balanced(rng, 12, 40)
    keep[:, 7], keep[:, 31] = np.arange(12) < 2, np.arange(12) >= 10
    phi = (rng.normal(size=(12, 40, 1)) + 2 * keep[..., None]).astype(np.float32)
    pool = Pool({"phi": phi}, keep, labels=np.zeros(40, int))
    attacks = {
        name: ATTACKS[name] for name in ("lira_online", "lira_online_multivariate", "lira_offline", "base")
    }
    with pytest.warns(UserWarning, match=r"too few models are IN or OUT") as said:
        scores = attack_pool(pool, attacks)
    others = np.setdiff1d(np.arange(40), [7, 31])
    assert np.flatnonzero(np.isnan(scores["lira_online"]).any(axis=0)).tolist() == [7, 31]
    assert [str(each.message) for each in said if "are left out" in str(each.message)] == [
        "lira_online, lira_online_multivariate: 2 of 40 examples are left out, of which too few models are IN or OUT (number "
        "7, 31)"
    ]
    assert not np.isnan(scores["lira_offline"]).any()
    alone = lira_online(phi[:, others], keep[:, others], leave="one")
    np.testing.assert_allclose(scores["lira_online"][:, others], alone, rtol=1e-5)


def test_an_attack_that_could_score_less_than_half_of_the_examples_is_refused():
    rng = np.random.default_rng(0)
    keep = np.arange(8)[:, None] < rng.permutation(np.repeat([1, 4], [25, 15]))
    keep = rng.permuted(keep, axis=0)
    phi = rng.normal(size=(8, 40, 1)).astype(np.float32)
    with pytest.raises(UnfitPoolError, match="lira_online needs 2 IN models for every example"):
        call_where_enough(ATTACKS["lira_online"], Pool({"phi": phi}, keep))


def test_outside_targets_count_nothing_off():
    """Two IN models are enough against a target that is none of them."""
    rng = np.random.default_rng(0)
    keep = rng.permuted(np.arange(8)[:, None] < np.repeat([1, 2, 4], [2, 3, 35]), axis=0)
    phi = rng.normal(size=(8, 40, 1)).astype(np.float32)
    pool = Pool({"phi": phi}, keep, {"phi": rng.normal(size=(3, 40, 1)).astype(np.float32)})
    scores = call_where_enough(ATTACKS["lira_online"], pool)
    assert scores.shape == (3, 40)
    assert np.flatnonzero(np.isnan(scores).all(axis=0)).tolist() == [0, 1]
    assert np.isnan(scores).sum() == 6


@pytest.mark.parametrize("examples", [[0], [1, 2], [0, 5, 6, 9], list(range(10))])
def test_columns_are_read_in_slices_as_the_whole_is(examples):
    phi = np.arange(3 * 10 * 2).reshape(3, 10, 2)
    columns = Columns(phi, np.array(examples))
    assert columns.shape == (3, len(examples), 2)
    np.testing.assert_array_equal(np.asarray(columns), phi[:, examples])
    for start in range(len(examples) + 1):
        for stop in range(start, len(examples) + 1):
            np.testing.assert_array_equal(columns[:, start:stop], phi[:, examples][:, start:stop])
            np.testing.assert_array_equal(columns[1:2, start:stop], phi[1:2, examples][:, start:stop])
