import numpy as np
import pytest
from chance import check_chance, check_gaussian, figures_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm
from shadow_pools import left_of_balanced, without_others

from lira.attacks import _pool, lira_online, lira_online_fixed, lira_online_multivariate
from lira.membership import keep_mask
from lira.metrics import roc

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def pool(seed, M, N, Q, signal=1.5):
    """Correlated queries, and examples of differing spread."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N)
    phi = rng.normal(size=(M, N, Q)) + rng.normal(size=(M, N, 1))
    phi = phi * rng.uniform(0.5, 2, (1, N, 1)) + rng.normal(0, 2, (1, N, 1))
    return (phi + signal * keep[..., None]).astype(np.float32), keep


def covariance(rows):
    """Mean and scatter of `rows` [c, Q], by the definition."""
    mean = rows.mean(axis=0)
    return mean, sum(np.outer(row - mean, row - mean) for row in rows)


def log_density(x, mean, matrix):
    return multivariate_normal.logpdf(x, mean, matrix)


def naive(values, phi, keep, shrinkage):
    """Score one target's `values` [N, Q] by the given models, one example at a time, by scipy's density."""
    values, phi = values.astype(np.float64), phi.astype(np.float64)
    N, Q = values.shape
    densities = []
    for mask in (keep, ~keep):
        sides = [phi[mask[:, n], n] for n in range(N)]
        pooled = sum(covariance(rows)[1] for rows in sides) / sum(map(len, sides))
        for n, rows in enumerate(sides):
            mean, scatter = covariance(rows)
            c = len(rows)
            s = 16 * (Q + 1) / (16 * (Q + 1) + c) if shrinkage is None else shrinkage
            matrix = (1 - s) * scatter / c + s * pooled
            densities.append(log_density(values[n], mean, matrix))
    return np.array(densities[:N]) - np.array(densities[N:])


def check_close(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=2e-6)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.sampled_from([(6, 3), (10, 1)]),
    shrinkage=st.sampled_from([None, 0.3]),
)
def test_leaving_the_pair_out_equals_a_refit(seed, size, shrinkage):
    """From M = 6, which leaves two models a side and scatters of rank one."""
    M, Q = size
    phi, keep = pool(seed, M, 8, Q)
    scores = lira_online_multivariate(phi, keep, shrinkage=shrinkage)
    assert scores.shape == (M, 8)
    assert scores.dtype == np.float32
    for t in range(M):
        rest = np.arange(M) // 2 != t // 2
        check_close(scores[t], naive(phi[t], phi[rest], keep[rest], shrinkage))


def test_without_shrinkage_it_is_scipys_density_of_the_sample_covariance():
    phi, keep = pool(0, 40, 10, 3)
    scores = lira_online_multivariate(phi, keep, shrinkage=0)
    for t in (0, 7):
        rest = np.arange(40) // 2 != t // 2
        for n in range(10):
            inside, outside = (phi[rest & mask, n].astype(float) for mask in (keep[:, n], ~keep[:, n]))
            terms = [
                log_density(phi[t, n], rows.mean(axis=0), np.cov(rows.T, ddof=0))
                for rows in (inside, outside)
            ]
            check_close(scores[t, n], terms[0] - terms[1])


def test_one_query_without_or_with_nothing_but_shrinkage_is_univariate_lira():
    phi, keep = pool(1, 20, 50, 1)
    check_close(lira_online_multivariate(phi, keep, shrinkage=0), lira_online(phi, keep))
    check_close(lira_online_multivariate(phi, keep, shrinkage=1), lira_online_fixed(phi, keep))


@pytest.mark.parametrize("balanced", [True, False])
def test_other_designs_leave_the_target_out(balanced):
    rng = np.random.default_rng(0)
    phi, _ = pool(0, 14, 20, 2)
    if balanced:
        keep = np.argsort(rng.uniform(size=(14, 20)), axis=0) < 7
    else:
        keep = rng.uniform(size=(14, 20)) < 0.5
        keep[:3], keep[3:6] = True, False
    scores = lira_online_multivariate(phi, keep, leave="one" if balanced else "independent")
    for t in range(14):
        rest = np.arange(14) != t
        cut_phi, cut_keep = phi[rest], keep[rest]
        if balanced:
            used = np.logical_or(*left_of_balanced(keep, t))
            cut_phi, cut_keep = (without_others(array, used) for array in (phi, keep))
        check_close(scores[t], naive(phi[t], cut_phi, cut_keep, None))


@pytest.mark.parametrize("M", [9, 12])
def test_outside_targets_are_scored_by_the_whole_pool(M):
    rng = np.random.default_rng(M)
    phi, target = pool(0, 12, 20, 2)[0][:M], pool(1, 4, 20, 2)[0]
    keep = np.argsort(rng.uniform(size=(M, 20)), axis=0) < M // 2
    scores = lira_online_multivariate(phi, keep, target=target)
    for t in range(4):
        check_close(scores[t], naive(target[t], phi, keep, None))


# --- Correlated queries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [None, 0.5])
def test_equal_queries_say_no_more_than_one(shrinkage):
    phi, keep = pool(2, 12, 60, 1)
    strength = 16 * 4 / (16 * 4 + 5)  # what the default is for three queries and five models a side
    one = lira_online_multivariate(phi, keep, shrinkage=strength if shrinkage is None else shrinkage)
    three = lira_online_multivariate(np.repeat(phi, 3, axis=2), keep, shrinkage=shrinkage)
    np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-6)


def test_queries_equal_to_rounding_stay_finite_and_say_no_more_than_one():
    """Views that differ in float32's last digits, and one example of which the models hardly differ."""
    phi, keep = pool(2, 12, 60, 1)
    phi[:, 3] = phi[0, 3] + 1e-6 * phi[:, 4]
    rounding = np.random.default_rng(0).uniform(-1, 1, (12, 60, 3)) * np.spacing(np.abs(phi))
    one = lira_online_multivariate(phi, keep, shrinkage=0.5)
    three = lira_online_multivariate((phi + rounding).astype(np.float32), keep, shrinkage=0.5)
    np.testing.assert_allclose(three, one, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shrinkage", [None, 0.0])
def test_mixing_the_queries_changes_nothing(shrinkage):
    """A likelihood ratio does not depend on coordinates: whole numbers, so that float32 mixes them exactly."""
    phi, keep = pool(3, 16, 40, 3)
    phi = np.round(phi * 64)
    mix = np.array([[1, 2, 0], [0, 1, -1], [1, 0, 3]], np.float32)  # of determinant 1
    scores = lira_online_multivariate(phi, keep, shrinkage=shrinkage)
    mixed = lira_online_multivariate(phi @ mix + 5, keep, shrinkage=shrinkage)
    np.testing.assert_allclose(mixed, scores, rtol=1e-5, atol=1e-5)


# --- Known truth ----------------------------------------------------------------------------------------------------


def test_many_models_attain_the_neyman_pearson_curve_and_univariate_lira_does_not():
    """IN N(d, S), OUT N(0, S): TPR = Phi(Phi^-1(FPR) + D), D^2 = d' S^-1 d; the mean over queries sees less."""
    rng = np.random.default_rng(0)
    M, T, N = 512, 16, 1500
    matrix, shift = np.array([[1.0, 0.9], [0.9, 1.0]]), np.array([1.0, 0.3])
    root = np.linalg.cholesky(matrix).T.astype(np.float32)
    centre = rng.normal(0, 3, (1, N, 2)).astype(np.float32)
    keep, keep_target = keep_mask(0, M, N), keep_mask(1, T, N)

    def draw(members):
        noise = rng.standard_normal((*members.shape, 2), dtype=np.float32) @ root
        return (noise + members[..., None] * shift + centre).astype(np.float32)

    phi, target = draw(keep), draw(keep_target)
    distance = float(np.sqrt(shift @ np.linalg.solve(matrix, shift)))
    check_gaussian(roc(lira_online_multivariate(phi, keep, target=target), keep_target), distance)
    less = float(shift @ shift / np.sqrt(shift @ matrix @ shift))
    check_gaussian(roc(lira_online_fixed(phi, keep, target=target), keep_target), less)
    assert less < 0.6 * distance


def test_examples_of_differing_strength_meet_the_closed_form():
    """Log LR of example n is N(-+D_n^2 / 2, D_n^2); the AUC over all pairs of examples."""
    rng = np.random.default_rng(1)
    M, T, N = 512, 16, 1500
    strength = rng.uniform(0.2, 3, N).astype(np.float32)
    spread = rng.uniform(0.5, 2, (1, N, 1)).astype(np.float32)
    keep, keep_target = keep_mask(0, M, N), keep_mask(1, T, N)

    def draw(members):
        noise = rng.standard_normal((*members.shape, 2), dtype=np.float32)
        noise[..., 0] += members * strength
        return spread * np.stack([noise.sum(axis=-1), noise[..., 1]], axis=-1)

    curve = roc(lira_online_multivariate(draw(keep), keep, target=draw(keep_target)), keep_target)
    squares = strength.astype(float)[:, None] ** 2 + strength.astype(float) ** 2
    truth = norm.cdf(np.sqrt(squares) / 2).mean()
    assert abs(curve.auc - truth) < 4.5 * np.sqrt(1 / (6 * curve.num_nonmembers))


@pytest.mark.parametrize("signal", [0.0, 2.0])
@pytest.mark.parametrize("M", [6, 8, 16, 64])
def test_noise_and_signal_in_the_shadow_models_alone_are_at_chance(M, signal):
    """M = 4 leaves one model a side, which is refused: see below."""
    curves = []
    rows, N = (2 if signal else M), 1000  # one shape, one compilation
    for seed in range(8):
        rng = np.random.default_rng([seed, M])
        keep = keep_mask(seed, M, N)
        phi = rng.normal(size=(M, N, 2)) + rng.normal(size=(M, N, 1)) + signal * keep[..., None]
        if signal:
            phi[:2] = rng.normal(size=(2, N, 2)) + rng.normal(size=(2, N, 1)) + signal / 2
        curves.append(roc(lira_online_multivariate(phi.astype(np.float32), keep)[:rows], keep[:rows]))
    check_chance(*figures_of(curves))


def test_a_balanced_design_with_signal_in_all_models_but_the_target_is_at_chance():
    """The counts of such a pool would give the target away, were they not made equal."""
    curves = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        keep = np.argsort(rng.uniform(size=(8, 4000)), axis=0) < 4
        phi = rng.normal(size=(8, 4000, 2)) + 2 * keep[..., None]
        phi[0] = rng.normal(size=(4000, 2)) + 1
        curves.append(roc(lira_online_multivariate(phi.astype(np.float32), keep, leave="one")[:1], keep[:1]))
    check_chance(*figures_of(curves))


def test_scores_of_a_pair_do_not_depend_on_its_own_membership():
    phi, keep = pool(2, 12, 200, 2)
    swapped = keep.copy()
    swapped[4:6] = ~keep[4:6]
    before, after = (lira_online_multivariate(phi, k) for k in (keep, swapped))
    np.testing.assert_array_equal(before[4:6], after[4:6])
    assert not np.array_equal(before[0], after[0]), "the others do see it"


def test_blocks_do_not_show(monkeypatch):
    phi, keep = pool(1, 8, 700, 2)
    whole = lira_online_multivariate(phi, keep)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 32)
    assert len(list(_pool.blocks(8, 700, 4))) == 11
    np.testing.assert_allclose(lira_online_multivariate(phi, keep), whole, rtol=1e-6, atol=1e-6)


# --- Edges ----------------------------------------------------------------------------------------------------------


def test_outlier_leaves_nothing_behind():
    """A target far away, whose own share of the scatter is taken out again: the refit says the same."""
    phi, keep = pool(0, 12, 8, 2)
    phi[3, 2] = 1e4, -2e4
    scores = lira_online_multivariate(phi, keep)
    rest = np.arange(12) // 2 != 1
    np.testing.assert_allclose(scores[3], naive(phi[3], phi[rest], keep[rest], None), rtol=1e-5)


def test_no_spread_anywhere_is_finite():
    scores = lira_online_multivariate(np.full((6, 10, 2), 2.5, np.float32), keep_mask(0, 6, 10))
    np.testing.assert_array_equal(scores, 0)


@pytest.mark.parametrize(
    ("M", "arguments", "message"),
    [
        (4, {}, "needs 2 IN models for every example.*has 1: use bavaria_online or lira_online_fixed"),
        (8, {"shrinkage": 0}, "needs 4 IN models for every example.*has 3: use a shrinkage above 0"),
        (8, {"shrinkage": 1.5}, r"shrinkage must be between 0 and 1, or None; got 1\.5"),
        (8, {"shrinkage": float("nan")}, "shrinkage must be between 0 and 1, or None; got nan"),
        (8, {"leave": "none"}, 'leave must be "pair", "one" or "independent"'),
        (8, {"target": np.zeros((1, 6, 2), np.float32)}, r"target must be \[targets, 6, 3\] like phi"),
    ],
)
def test_bad_arguments_are_named(M, arguments, message):
    phi, keep = pool(0, M, 6, 3)
    with pytest.raises(ValueError, match=message):
        lira_online_multivariate(phi, keep, **arguments)


def test_nan_is_named():
    phi, keep = pool(0, 8, 6, 3)
    phi[2, 5, 1] = np.nan
    with pytest.raises(ValueError, match=r"phi\[2, 5, 1\] is nan: leave that model and its mate out"):
        lira_online_multivariate(phi, keep)
