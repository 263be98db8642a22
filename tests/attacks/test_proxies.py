"""PMIA against loops, its independence of what it must not see, chance, and a pool in which it must win."""

import warnings

import numpy as np
import pytest
from chance import check_chance
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata
from shadow_pools import MODES, NUM_EXAMPLES, make_pool, targets

from lira import attacks
from lira.attacks import FewModelsWarning, UnfitPoolError, _pool, proxies
from lira.membership import have_independent_counts, keep_mask

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
FORMS = ["global", "class", "neighbours"]
LABELS = np.arange(NUM_EXAMPLES) % 3
LABELS[-1] = 7  # the only one of its class
FEATURES = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 2)) * [1, 100]
FLOOR = 2.0**-20


def stand_for(x, proxy, labels, features, nearest):
    """The proxies of example x, bool [N]."""
    others = np.arange(len(labels)) != x
    if proxy == "neighbours" and others.sum() >= nearest:
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        distance = cdist(scaled[x : x + 1], scaled)[0]
        distance[x] = np.inf
        return np.isin(np.arange(len(labels)), np.argsort(distance)[:nearest])
    alike = others & (labels == labels[x])
    return others if proxy == "global" or not alike.any() else alike


def within(values, masks):
    """Mean squared deviation of all values `[M, N, Q]` under `masks [M, N]` from the mean of their own example."""
    squares = [
        np.square(values[mask, n] - values[mask, n].mean(axis=0))
        for n, mask in enumerate(masks.T)
        if mask.any()
    ]
    return np.concatenate(squares)


def naive_pmia(pool, proxy, fixed, nearest, labels=LABELS, features=FEATURES):
    """None where an example has no value of a proxy."""
    phi, rows = pool.phi.astype(float), []
    for target in targets(pool):
        row = []
        for x in range(phi.shape[1]):
            P, out = stand_for(x, proxy, labels, features, nearest), np.flatnonzero(target.outside[:, x])
            values = np.array([phi[m, n] for m in out for n in np.flatnonzero(P) if pool.keep[m, n]])
            if not len(values):
                return None
            if fixed:
                # Over all examples and queries at once.
                spread_in, spread_out = (
                    np.sqrt(within(phi, masks).mean()) for masks in (target.inside, target.outside)
                )
            else:
                m_in, m_out = values.mean(axis=0), phi[out, x].mean(axis=0)
                spread_in = np.sqrt(within(phi[:, P], target.inside[:, P]).mean(axis=0))
                spread_in = np.maximum(spread_in, FLOOR * (1 + abs(m_in)))
                spread_out = np.maximum(phi[out, x].std(axis=0), FLOOR * (1 + abs(m_out)))
            inside = norm.logpdf(target.own[x], values.mean(axis=0), spread_in)
            outside = norm.logpdf(target.own[x], np.median(phi[out, x], axis=0), spread_out)
            row.append(np.mean(inside - outside))
        rows.append(row)
    return np.array(rows)


def auc_and_tpr(scores, keep):
    """AUC, and TPR above the highest 0.1 % of non-members."""
    members, nonmembers = scores[keep], np.sort(scores[~keep])
    ranks = rankdata(np.concatenate([members, nonmembers]))[: len(members)]
    auc = (ranks.mean() - (len(members) + 1) / 2) / len(nonmembers)
    return auc, np.mean(members > nonmembers[-1 - len(nonmembers) // 1000])


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    mode=st.sampled_from(MODES),
    Q=st.sampled_from([1, 2]),
    proxy=st.sampled_from(FORMS),
    fixed=st.booleans(),
    nearest=st.sampled_from([8, NUM_EXAMPLES]),
)
def test_sums_equal_loops(seed, mode, Q, proxy, fixed, nearest):
    pool = make_pool(seed, mode, 10, Q)
    if mode == "independent":  # whose models of no member have no proxies
        pool.keep[2:4] = np.random.default_rng(seed).uniform(size=(2, NUM_EXAMPLES)) < 0.3
        pool.keep[4:6, ::2], pool.keep[4:6, 1::2] = False, True
        pool.keep[6:8] = ~pool.keep[4:6]
        assume(have_independent_counts(pool.keep))  # else each side is cut, which the loops do not
        assume(fixed or (~pool.keep).sum(axis=0).min() > 2)  # else refused: a spread needs two
    given_too = {"labels": LABELS, "features": FEATURES} if proxy != "global" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxies, "NEIGHBOURS", nearest)
        expected = naive_pmia(pool, proxy, fixed, nearest)
        if expected is None:
            with pytest.raises(UnfitPoolError, match="pmia needs for every example a model that was not"):
                attacks.pmia(pool.phi, pool.keep, proxy=proxy, fixed=fixed, **pool.options, **given_too)
            return
        scores = attacks.pmia(pool.phi, pool.keep, proxy=proxy, fixed=fixed, **pool.options, **given_too)
    assert scores.dtype == np.float32
    # A spread of values that nearly agree by chance is known to float64's cancellation.
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-5)


def test_known_values():
    """OUT of x at 0 and 2, members of the only proxy at 3 and 5: log N(4; 4, 1) - log N(4; 1, 1) = 4.5 where phi is 4."""
    phi = np.array([[0, 3], [2, 5], [9, 9]], np.float32)[..., None]
    keep = np.array([[False, True], [False, True], [True, False]])
    target = np.array([[[4], [4]]], np.float32)
    # x = 1 has one OUT model, at 9, with 9 at its proxy: a fixed variance is the mean of (1 + 1 + 0) / 3 a side.
    scores = attacks.pmia(phi, keep, target=target, fixed=True)
    np.testing.assert_allclose(scores, [[(9 - 0) / (2 * 2 / 3), 0]], rtol=1e-6)
    both = np.concatenate([phi, phi + np.array([[0], [0], [1]])[..., None]])
    scores = attacks.pmia(both.astype(np.float32), np.concatenate([keep, keep]), target=target)
    np.testing.assert_allclose(scores[0, 0], 4.5, rtol=1e-6)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("proxy", FORMS)
def test_scores_of_a_pair_depend_neither_on_its_own_membership_nor_on_its_values(proxy, fixed, monkeypatch):
    monkeypatch.setattr(proxies, "NEIGHBOURS", 8)
    pool = make_pool(2, "pair", 20, 2)
    options = {"proxy": proxy, "fixed": fixed, "labels": np.minimum(LABELS, 2), "features": FEATURES}
    swapped, other = pool.keep.copy(), pool.phi.copy()
    swapped[4:6] = ~pool.keep[4:6]
    other[5] += 3
    before, after, moved = (
        attacks.pmia(phi, keep, **options)
        for phi, keep in ((pool.phi, pool.keep), (pool.phi, swapped), (other, pool.keep))
    )
    np.testing.assert_allclose(before[4:6], after[4:6], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(before[4], moved[4], rtol=1e-5, atol=1e-5)
    assert not np.allclose(before[0], after[0], rtol=1e-3)


def test_models_trained_on_x_do_not_move_the_means_at_x():
    """Shift all that such models say of the other examples, each side of it alike, so that no spread changes."""
    pool = make_pool(3, "pair", 10, 1)
    x = 4
    target = pool.phi[:1] + 1
    # Where all IN models of an example were trained on x too, they shift together and their spread stays.
    together = np.array([pool.keep[pool.keep[:, n], x].all() or n == x for n in range(NUM_EXAMPLES)])
    moved = pool.phi + 5 * (pool.keep & pool.keep[:, [x]] & together)[..., None]
    assert not np.array_equal(moved, pool.phi)
    before, after = (
        attacks.pmia(phi.astype(np.float32), pool.keep, target=target) for phi in (pool.phi, moved)
    )
    np.testing.assert_allclose(after[0, x], before[0, x], rtol=1e-5)
    assert not np.allclose(after, before, rtol=1e-3)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("proxy", FORMS)
@pytest.mark.parametrize("design", ["pairs", "balanced", "coins"])
def test_pure_noise_is_at_chance(design, proxy, fixed):
    results, N = [], 512
    M = 24 if design == "coins" else 8  # so that every example has two OUT models
    for seed in range(8):
        rng = np.random.default_rng(seed)
        keep = keep_mask(seed, M, N)
        if design == "balanced":
            keep = np.argsort(rng.uniform(size=(M, N)), axis=0) < M // 2
        elif design == "coins":
            keep = rng.uniform(size=(M, N)) < 0.5
        phi = 3 * rng.standard_normal((M, N, 1), dtype=np.float32)
        known = {"labels": np.arange(N) % 5, "features": rng.normal(size=(N, 2))}
        leave = "pair" if design == "pairs" else "one"
        scores = attacks.pmia(phi, keep, proxy=proxy, fixed=fixed, leave=leave, **known)
        results.append(auc_and_tpr(scores, keep))
    aucs, tprs = np.array(results).T
    check_chance(aucs, tprs, M * N / 2, steps=True)


def test_where_in_is_a_common_shift_of_out_it_beats_offline_lira():
    """OUT N(mu, 1), IN N(mu + 2, 1), mu of the class: Bayes' test is phi - mu, and each example's OUT moments are noise."""
    M, N = 32, 2000
    rng = np.random.default_rng(0)
    keep, labels = keep_mask(0, M, N), np.arange(N) % 10
    mean = 3 * rng.normal(size=10)[labels]
    phi = (mean + rng.normal(size=(M, N)) + 2 * keep)[..., None].astype(np.float32)
    best, offline = (
        auc_and_tpr(each, keep) for each in (phi[..., 0] - mean, attacks.lira_offline(phi, keep))
    )
    fixed = auc_and_tpr(attacks.pmia(phi, keep, proxy="class", labels=labels, fixed=True), keep)
    assert best[0] - 0.01 < fixed[0] < best[0] + 0.002
    assert fixed[0] > offline[0] + 0.005
    assert fixed[1] > 1.3 * offline[1]


def test_where_training_narrows_what_models_say_it_beats_offline_lira():
    """OUT N(0, sd^2) with a sd of its own for each example, IN N(3, 1): Bayes' test knows all of them.

    Where OUT spreads widely a member at 3 is no outlier, and a value far beyond 3 no member's.
    """
    M, N = 64, 1000
    rng = np.random.default_rng(0)
    keep, spread = keep_mask(0, M, N), rng.uniform(0.5, 4, size=N)
    noise = rng.normal(size=(M, N))
    phi = np.where(keep, 3 + noise, spread * noise)
    truth = auc_and_tpr(norm.logpdf(phi, 3, 1) - norm.logpdf(phi, 0, spread), keep)
    phi = phi[..., None].astype(np.float32)
    names = ("lira_offline", "lira_offline_fixed")
    pmia = auc_and_tpr(attacks.pmia(phi, keep), keep)
    offline = np.array([auc_and_tpr(getattr(attacks, name)(phi, keep), keep) for name in names])
    assert truth[0] - 0.02 < pmia[0] < truth[0] + 0.002
    assert (pmia[0] > offline[:, 0] + 0.03).all()
    assert (pmia[1] > offline[:, 1]).all()


def test_blocks_and_slabs_do_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    phi, keep = rng.normal(size=(8, 200, 2)).astype(np.float32), keep_mask(0, 8, 200)
    options = {"labels": np.arange(200) % 4, "features": rng.normal(size=(200, 2))}
    whole = [attacks.pmia(phi, keep, proxy=proxy, **options) for proxy in ("class", "neighbours")]
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 16)
    monkeypatch.setattr(proxies, "SLAB", 100)
    parts = [attacks.pmia(phi, keep, proxy=proxy, **options) for proxy in ("class", "neighbours")]
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"proxy": "all"}, ValueError, 'proxy must be "global", "class" or "neighbours"; got \'all\''),
        ({"proxy": "class"}, ValueError, 'proxy="class" needs labels'),
        ({"proxy": "neighbours"}, ValueError, 'proxy="neighbours" needs features'),
        (
            {"proxy": "class", "labels": np.zeros(3)},
            ValueError,
            r"labels must be \[60\], .* got shape \(3,\)",
        ),
        (
            {"proxy": "neighbours", "features": np.zeros((3, 2))},
            ValueError,
            r"features must be \[60, features\]",
        ),
        (
            {"proxy": "neighbours", "features": np.full((60, 2), np.nan)},
            ValueError,
            "features has a value that is not finite in row 0",
        ),
        ({"keep": np.zeros((6, 60), bool)}, UnfitPoolError, "example 0 has none: use lira_offline"),
        ({"keep": np.ones((6, 60), bool)}, UnfitPoolError, "pmia needs 2 OUT models .* has 0: use attack_p"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    rng = np.random.default_rng(0)
    arguments = {"keep": keep_mask(0, 6, 60), "target": np.zeros((1, 60, 1), np.float32), **change}
    with pytest.raises(error, match=message):
        attacks.pmia(rng.normal(size=(6, 60, 1)), arguments.pop("keep"), **arguments)


def test_few_models_are_a_warning():
    phi, keep = np.random.default_rng(0).normal(size=(8, 60, 1)), keep_mask(0, 8, 60)
    with pytest.warns(FewModelsWarning, match="pmia: a variance for each example is of 3 models a side"):
        attacks.pmia(phi, keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.pmia(phi, keep, fixed=True)
