from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from shadow_pools import MODES, NUM_EXAMPLES, SIZES, make_pool, probability, targets

from lira import attacks
from lira.attacks._pool import Leave
from lira.attacks.relative import _odds_beaten
from lira.membership import keep_mask
from lira.metrics import roc


def geometric_mean(ratios):
    """Over queries, the last axis."""
    return np.exp(np.log(ratios).mean(axis=-1))


def naive_a(target, phi):
    """Mean 1 - p of IN over that of OUT models, each example with both having the same weight."""
    inside, outside = [], []
    for n in range(phi.shape[1]):
        if target.inside[:, n].any() and target.outside[:, n].any():
            inside.append(1 - probability(phi[target.inside[:, n], n]).mean(axis=0))
            outside.append(1 - probability(phi[target.outside[:, n], n]).mean(axis=0))
    return min(np.mean(inside) / np.mean(outside), 1) if outside else 0.3


def naive_ratio(target, phi, online, a):
    """R(x), `[N]`."""
    p = probability(phi)
    ratios = []
    for n, own in enumerate(target.own):
        reference = p[target.outside[:, n], n].mean(axis=0)
        if online:
            reference = (p[target.inside[:, n], n].mean(axis=0) + reference) / 2
        else:
            reference = ((1 + a) * reference + (1 - a)) / 2
        ratios.append(geometric_mean(probability(own) / reference))
    return np.array(ratios)


def naive_population_ratio(target, population, online, a):
    reference = probability(population)[target.others].mean(axis=0)
    if not online:
        reference = ((1 + a) * reference + (1 - a)) / 2
    return geometric_mean(probability(target.own_population) / reference)


def tie(ratio):
    """What breaks ties: from 0 to 1 as R goes from 0 to infinity, 1/2 at 1."""
    root = np.sign(ratio - 1) * np.sqrt(abs(np.log(ratio)))
    return (1 + root / (1 + abs(root))) / 2


def odds(beaten, points):
    """Of so many points beaten, the part of a step included."""
    return beaten / (points + 1 - beaten)


def share(score):
    return np.asarray(score, float) / (1 + np.asarray(score, float))


def naive_rmia(pool, online, held_out, gamma, a=None):
    """Count pair by pair, in linear space; ratios within rounding of gamma reach it."""
    rows = []
    for target in targets(pool):
        chosen = naive_a(target, pool.phi) if a is None else a
        ratios = naive_ratio(target, pool.phi, online, chosen)
        row = []
        for n, ratio in enumerate(ratios):
            if held_out:
                others = naive_population_ratio(target, pool.population, online, chosen)
            else:
                others = np.delete(ratios, n)
            beaten = sum(ratio / other >= gamma * (1 - 1e-12) for other in others)
            row.append(odds(beaten + tie(ratio), len(others)))
        rows.append(row)
    return np.array(rows)


def naive_informia(pool, online, held_out, a=None):
    """Log R(x) less the mean of log R(z), z by z."""
    rows = []
    for target in targets(pool):
        chosen = naive_a(target, pool.phi) if a is None else a
        ratios = naive_ratio(target, pool.phi, online, chosen)
        if held_out:
            others = naive_population_ratio(target, pool.population, online, chosen)
        else:  # p(z) is of OUT models alone, uncorrected (a = 1) online
            others = naive_ratio(target, pool.phi, False, 1 if online else chosen)
        row = []
        for n, ratio in enumerate(ratios):
            z = others if held_out else np.delete(others, n)
            row.append(np.log(ratio) - np.mean([np.log(other) for other in z]))
        rows.append(row)
    return np.array(rows)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    size=st.sampled_from(SIZES),
    held_out=st.booleans(),
    online=st.booleans(),
    a=st.sampled_from([None, 0, 0.3, 1]),
)
def test_informia_equals_going_through_the_population(seed, mode, size, held_out, online, a):
    pool = make_pool(seed, mode, *size)
    populations = pool.populations if held_out else {}
    if online:
        scores = attacks.informia_online(pool.phi, pool.keep, **pool.options, **populations)
    else:
        scores = attacks.informia_offline(pool.phi, pool.keep, **pool.options, **populations, a=a)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive_informia(pool, online, held_out, a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("held_out", [True, False])
def test_informia_ranks_like_base_within_a_target_of_equal_counts(held_out):
    """Exactly so with held-out points; else what is subtracted from x is a mean that lacks x itself."""
    pool = make_pool(5, "pair", 10, 2)
    scores = attacks.informia_online(pool.phi, pool.keep, population=pool.population if held_out else None)
    base = attacks.base(pool.phi, pool.keep)
    if held_out:
        np.testing.assert_array_equal(np.argsort(scores), np.argsort(base))
        np.testing.assert_allclose(np.ptp(scores - base, axis=1), 0, atol=1e-5)
    else:
        for target, row, ratio in zip(targets(pool), scores, base, strict=True):
            lacking = np.log(naive_ratio(target, pool.phi, False, 1)) / (NUM_EXAMPLES - 1)
            np.testing.assert_allclose(np.ptp(row - ratio - lacking), 0, atol=1e-5)


def auc_and_tpr(scores, keep):
    """AUC, and TPR above the highest 1 % of non-members."""
    members, nonmembers = scores[keep], np.sort(scores[~keep])
    ranks = rankdata(np.concatenate([members, nonmembers]))[: len(members)]
    auc = (ranks.mean() - (len(members) + 1) / 2) / len(nonmembers)
    return auc, np.mean(members > nonmembers[-1 - len(nonmembers) // 100])


@pytest.mark.parametrize("side", ["online", "offline"])
def test_informia_repairs_the_pooling_of_targets_of_different_temper(side):
    """Models that are more or less sure of everything: RMIA's shares are ranks within one of them.

    Of the AUC that targets have one by one, pooling RMIA's scores loses much and InfoRMIA's less than 0.4 of that; of their
    TPR at 1 %, BASE's lose more than InfoRMIA's, since R is smaller everywhere in a model that is unsure.
    """
    lost: dict[str, list[np.ndarray]] = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        M, N = 16, 2000
        keep = keep_mask(seed, M, N)
        phi = 4 + 2 * rng.normal(size=(1, N)) + rng.normal(size=(M, N)) + 1.5 * keep
        phi = (phi - rng.uniform(0, 3, size=(M, 1)))[..., None].astype(np.float32)
        for name in (f"rmia_{side}", f"informia_{side}", "base"):
            scores = getattr(attacks, name)(phi, keep)
            alone = np.array([auc_and_tpr(*row) for row in zip(scores, keep, strict=True)]).mean(axis=0)
            lost.setdefault(name, []).append(1 - np.array(auc_and_tpr(scores, keep)) / alone)
    informia, rmia, base = (np.array(lost[name]) for name in (f"informia_{side}", f"rmia_{side}", "base"))
    assert (informia[:, 0] < 0.4 * rmia[:, 0]).all()
    assert (informia[:, 1] < base[:, 1] - 0.05).all()


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    size=st.sampled_from(SIZES),
    ties=st.booleans(),
    held_out=st.booleans(),
    gamma=st.sampled_from([1, 1.25, 2.0]),
    online=st.booleans(),
    a=st.sampled_from([None, 0, 0.3, 1]),
)
def test_sorting_equals_counting_pairs(seed, mode, size, ties, held_out, gamma, online, a):
    pool = make_pool(seed, mode, *size, ties=ties)
    populations = pool.populations if held_out else {}
    if online:
        scores = attacks.rmia_online(pool.phi, pool.keep, **pool.options, **populations, gamma=gamma)
    else:
        scores = attacks.rmia_offline(pool.phi, pool.keep, **pool.options, **populations, gamma=gamma, a=a)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive_rmia(pool, online, held_out, gamma, a), rtol=2e-6)


def test_a_ratio_of_exactly_gamma_counts():
    """References at 1/2: R(x) = 2 where the target is certain, R(z) = 1 where it is undecided."""
    phi = np.zeros((2, 2, 1), np.float32)
    keep = np.array([[True, True], [False, False]])
    target = np.array([[[100], [0]]], np.float32)
    options = {"target": target, "population": np.zeros((2, 1, 1)), "target_population": np.zeros((1, 1, 1))}
    scores = attacks.rmia_online(phi, keep, **options)
    # One point beaten and a part of a step more; none, and 1/2.
    np.testing.assert_allclose(scores, [[odds(1 + tie(2), 1), odds(1 / 2, 1)]], rtol=1e-6)
    scores = attacks.rmia_online(phi, keep, **options, gamma=2 + 1e-9)
    np.testing.assert_allclose(scores, [[odds(tie(2), 1), odds(1 / 2, 1)]], rtol=1e-6)
    # The pool less x: x = 1 beats x = 2 and not the other way.
    np.testing.assert_allclose(
        attacks.rmia_online(phi, keep, target=target), [[odds(1 + tie(2), 1), odds(1 / 2, 1)]], rtol=1e-6
    )


def test_offline_on_known_values():
    """OUT at 1/2, a = 0.4: p = (1.4 / 2 + 0.6) / 2 = 0.65. Target at 0.91 and 0.39: R = 1.4 and 0.6."""
    phi, keep = np.zeros((1, 2, 1)), np.zeros((1, 2), bool)
    target = np.log(np.array([0.91 / 0.09, 0.39 / 0.61])).reshape(1, 2, 1)
    scores = attacks.rmia_offline(phi, keep, target=target, a=0.4)
    np.testing.assert_allclose(scores, [[odds(1 + tie(1.4), 1), odds(tie(0.6), 1)]], rtol=1e-6)
    scores = attacks.rmia_offline(phi, keep, target=target, a=0.4, gamma=2.5)
    np.testing.assert_allclose(scores, [[odds(tie(1.4), 1), odds(tie(0.6), 1)]], rtol=1e-6)


def test_a_is_the_line_that_leads_from_out_to_in():
    """IN at 0.9 and OUT at 0.6 everywhere: 1 - 0.9 = a (1 - 0.6) for a = 1/4; without IN models it is 0.3."""
    rng = np.random.default_rng(0)
    pairs, balanced = keep_mask(0, 6, 40), np.argsort(rng.uniform(size=(6, 40)), axis=0) < 3
    target = rng.normal(size=(2, 40, 1))
    ways: tuple[tuple[np.ndarray, Leave, Any], ...] = (
        (pairs, "pair", None),
        (balanced, "one", None),
        (pairs, "pair", target),
    )
    for keep, leave, attacked in ways:
        phi = np.where(keep, np.log(9), np.log(1.5))[..., None]
        given_a, chosen = (
            attacks.rmia_offline(phi, keep, leave=leave, target=attacked, a=a) for a in (0.25, None)
        )
        np.testing.assert_allclose(chosen, given_a, rtol=1e-6)
    nobody, phi = np.zeros_like(pairs), np.where(pairs, np.log(9), np.log(1.5))[..., None]
    given_a, chosen = (attacks.rmia_offline(phi, nobody, target=target, a=a) for a in (0.3, None))
    np.testing.assert_array_equal(chosen, given_a)


def test_a_stays_within_its_range():
    """Models that do worse on members, and models without any doubt."""
    keep = keep_mask(0, 6, 40)
    phi = np.where(keep, -1.0, 1.0)[..., None]
    worse, at_one = (attacks.rmia_offline(phi, keep, a=a) for a in (None, 1))
    np.testing.assert_array_equal(worse, at_one)
    certain = np.full((6, 40, 1), 1000.0)
    # R is 1 everywhere: nothing reaches twice that, and 1/2 of a step remains.
    np.testing.assert_allclose(attacks.rmia_offline(certain, keep), odds(0.5, 39), rtol=1e-6)


@pytest.mark.parametrize("name", ["rmia_online", "rmia_offline"])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 8.0])
def test_with_one_population_for_all_the_ranking_is_that_of_the_ratio(name, gamma):
    pool = make_pool(1, "pair", 10, 2)
    scores = getattr(attacks, name)(pool.phi, pool.keep, population=pool.population, gamma=gamma)
    for row, target in zip(scores, targets(pool), strict=True):
        a = naive_a(target, pool.phi)
        order = np.argsort(naive_ratio(target, pool.phi, name == "rmia_online", a))
        assert (np.diff(row[order]) > 0).all()


def test_the_score_gives_the_published_share_within_a_step():
    pool = make_pool(2, "pair", 10, 2)
    scores = attacks.rmia_online(pool.phi, pool.keep, population=pool.population)
    points = pool.population.shape[1]
    for row, target in zip(scores, targets(pool), strict=True):
        ratios = naive_ratio(target, pool.phi, True, None)
        others = naive_population_ratio(target, pool.population, True, None)
        published = np.mean(ratios[:, None] >= 2 * others, axis=1)
        assert (abs(share(row) - published) < 1 / points).all()
        # Exactly: the part of a step is left out.
        np.testing.assert_array_equal(np.floor(share(row) * (points + 1)), published * points)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_float32_undoes_no_order_of_a_target(gamma):
    """The numbers of a large run: 20,000 examples of which 6,000 beat every point, and others are the same to 1e-9."""
    rng = np.random.default_rng(0)
    population = rng.normal(0, 0.2, (2, 5000))
    ratios = np.where(
        rng.random((2, 20_000)) < 0.3, rng.normal(4, 0.2, (2, 20_000)), rng.normal(0, 1, (2, 20_000))
    )
    ratios[:, :1000] = 2 + 1e-9 * np.arange(1000)
    ratios[:, 1000:2000] = ratios[:, 2000:3000]  # true ties
    for row, ratio, others in zip(_odds_beaten(ratios, population, gamma), ratios, population, strict=True):
        order = np.argsort(ratio)
        np.testing.assert_array_equal(np.diff(row[order]) > 0, np.diff(ratio[order]) > 0)
        published = np.searchsorted(np.sort(others), ratio - np.log(gamma) + 1e-12, "right") / 5000
        assert (published == 1).sum() > 5000
        assert (abs(share(row) - published) < 1 / 5000).all()


def test_saturated_models_are_at_chance():
    """Where all confidences are 1 but for rounding, what ranks examples is noise that knows nothing of memberships."""
    aucs = []
    for seed in range(4):
        keep = keep_mask(seed, 8, 3000)
        phi = np.random.default_rng(seed).normal(38, 1, (8, 3000, 1)).astype(np.float32)
        aucs += [
            roc(getattr(attacks, name)(phi, keep), keep).auc
            for name in ("rmia_online", "rmia_offline", "base")
        ]
    # 12,000 members and as many others in a pool: 0.0037 standard errors.
    assert abs(np.reshape(aucs, (4, 3)).mean(axis=0) - 0.5).max() < 4.5 * 0.0037 / 2


def test_float32_tells_sure_models_apart():
    """Confidences of 1 - 6e-6 in every model: log R is of the size of 1e-6, and the score must still rank by it."""
    rng = np.random.default_rng(0)
    phi = (12 + rng.normal(size=(6, 3000, 1))).astype(np.float32)
    scores = attacks.rmia_online(phi, keep_mask(0, 6, 3000))
    assert all(len(np.unique(row)) > 2990 for row in scores)  # some phi are equal


def test_pairs_make_base_the_logarithm_of_the_online_ratio():
    pool = make_pool(3, "pair", 10, 2)
    expected = [np.log(naive_ratio(target, pool.phi, True, None)) for target in targets(pool)]
    np.testing.assert_allclose(attacks.base(pool.phi, pool.keep), expected, rtol=1e-5, atol=1e-6)


def test_extreme_confidences_stay_ordered():
    """Probabilities below float64's range: all in log space."""
    keep = keep_mask(0, 4, 3)
    phi = np.broadcast_to(np.array([-2000, -1000, 1000], np.float32)[None, :, None], (4, 3, 1)).copy()
    phi[0] += np.array([[10], [-10], [0]], np.float32)
    for name in ("rmia_online", "rmia_offline", "informia_online", "informia_offline"):
        scores = getattr(attacks, name)(phi, keep)
        assert np.isfinite(scores).all()
    online = attacks.rmia_online(phi, keep)
    # R = exp(10), exp(-10) and 1: one beats both others, one none, one the second.
    expected = [odds(2 + tie(np.exp(10)), 2), odds(tie(np.exp(-10)), 2), odds(1.5, 2)]
    np.testing.assert_allclose(online[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"population": np.zeros((4, 5, 1))},
            r"population must be \[10 models, points, 2 queries\].*\(4, 5, 1\)",
        ),
        ({"population": np.zeros((10, 0, 2))}, r"population must be .* got shape \(10, 0, 2\)"),
        ({"population": np.full((10, 3, 2), np.nan)}, r"population\[0, 0, 0\] is nan"),
        (
            {"target_population": np.zeros((1, 5, 2))},
            "target_population is for outside targets: pass target too",
        ),
        (
            {"target": np.zeros((1, NUM_EXAMPLES, 2)), "population": np.zeros((10, 5, 2))},
            "pass target_population",
        ),
        (
            {"target": np.zeros((1, NUM_EXAMPLES, 2)), "target_population": np.zeros((1, 5, 2))},
            "[a-z_]+ needs pool and targets on the same population: pass population too",
        ),
        (
            {
                "target": np.zeros((1, NUM_EXAMPLES, 2)),
                "population": np.zeros((10, 6, 2)),
                "target_population": np.zeros((1, 5, 2)),
            },
            "must hold the same points; got 6 and 5",
        ),
        (
            {
                "target": np.zeros((1, NUM_EXAMPLES, 2)),
                "population": np.zeros((10, 5, 2)),
                "target_population": np.zeros((2, 5, 2)),
            },
            r"target_population must be \[1 targets, points, 2 queries\]",
        ),
        ({"gamma": 0.5}, "gamma must be at least 1; got 0.5"),
        ({"gamma": np.nan}, "gamma must be at least 1; got nan"),
    ],
)
@pytest.mark.parametrize("name", ["rmia_online", "rmia_offline", "informia_online", "informia_offline"])
def test_bad_arguments_are_named(name, change, message):
    if "gamma" in change and "informia" in name:
        pytest.skip("it has no gamma")
    pool = make_pool(0, "pair", 10, 2)
    with pytest.raises(ValueError, match=message):
        getattr(attacks, name)(pool.phi, pool.keep, **change)


@pytest.mark.parametrize("family", ["rmia", "informia"])
def test_bad_a_and_too_small_pools_are_named(family):
    online, offline = (getattr(attacks, f"{family}_{side}") for side in ("online", "offline"))
    pool = make_pool(0, "pair", 10, 2)
    for a in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=f"a must be from 0 to 1, or None.*got {a}"):
            offline(pool.phi, pool.keep, a=a)
    with pytest.raises(ValueError, match="the pool has one example: pass population"):
        online(pool.phi[:, :1], pool.keep[:, :1])
    needs_in = rf"{family}_online needs 1 IN model.*has 0: use {family}_offline, which needs no IN"
    with pytest.raises(ValueError, match=needs_in):
        online(pool.phi, np.zeros_like(pool.keep), target=pool.phi[:1])
    with pytest.raises(ValueError, match=rf"{family}_offline needs 1 OUT model.*has 0: use attack_p"):
        offline(pool.phi, np.ones_like(pool.keep), target=pool.phi[:1])
