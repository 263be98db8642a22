"""The likelihood ratio against a refit in plain loops, whatever is left out; its edges."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from shadow_pools import left_of_balanced, without_others

from lira import attacks
from lira.attacks import FewModelsWarning, FlooredVarianceWarning, _pool
from lira.membership import have_independent_counts, keep_mask
from lira.metrics import roc

LIRA = {
    "lira_online": (True, False),
    "lira_online_fixed": (True, True),
    "lira_offline": (False, False),
    "lira_offline_fixed": (False, True),
}
ALL = [*LIRA, "global_threshold"]

pytestmark = pytest.mark.filterwarnings(
    "ignore::lira.attacks.FewModelsWarning", "ignore::lira.attacks.FlooredVarianceWarning"
)


def pool(seed, M, N, Q, signal=1.5, ties=False):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N)
    phi = rng.normal(size=(M, N, Q)) * rng.uniform(0.5, 2, size=(1, N, 1)) + signal * keep[..., None]
    return (np.round(phi) if ties else phi).astype(np.float32), keep


def balanced_design(seed, M, N):
    """The original's: each example in exactly half of the models, no pairs."""
    return np.argsort(np.random.default_rng(seed).uniform(size=(M, N)), axis=0) < M // 2


def naive(values, phi, keep, convention, online, fixed):
    """Score one target's `values` [N, Q] by a refit on the given models, in float64, an example at a time."""
    values, phi = values.astype(np.float64), phi.astype(np.float64)
    centre = np.median if convention == "original" else np.mean
    N = keep.shape[1]
    sides = [[phi[mask[:, n], n] for n in range(N)] for mask in (keep, ~keep)]
    if convention == "original":
        sides = [[rows[: min(map(len, side))] for rows in side] for side in sides]
    inside, outside = sides
    mean_out = np.array([centre(rows, axis=0) for rows in outside])
    sd_out = np.array([rows.std(axis=0) for rows in outside])
    if online:
        mean_in = np.array([centre(rows, axis=0) for rows in inside])
        sd_in = np.array([rows.std(axis=0) for rows in inside])
    else:
        mean_in = sd_in = np.zeros(1)
    if fixed and convention == "original":
        sd_in, sd_out = (
            (np.std(np.concatenate(inside)),) * 2 if online else (0, np.std(np.concatenate(outside)))
        )
    elif fixed:
        # The mean of the within-example variances, weighted by models where their numbers differ.
        def pooled(side):
            squares = sum(((rows - rows.mean(axis=0)) ** 2).sum() for rows in side)
            return np.sqrt(squares / sum(rows.size for rows in side))

        sd_in, sd_out = pooled(inside) if online else 0, pooled(outside)
    if convention == "original":
        sd_in, sd_out = np.maximum(sd_in, 1e-30), np.maximum(sd_out, 1e-30)
    if online:
        terms = norm.logpdf(values, mean_in, sd_in) - norm.logpdf(values, mean_out, sd_out)
    elif convention == "original":
        terms = -norm.logpdf(values, mean_out, sd_out)
    else:
        terms = (values - mean_out) / sd_out
    return terms.mean(axis=1)


def check_close(scores, expected):
    """Equal to the rounding of float32 scores; the absolute part is for terms of some size that cancel."""
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


cases = given(
    seed=st.integers(0, 2**31 - 1),
    size=st.sampled_from([(8, 3), (12, 1)]),  # models, queries: few shapes, so that little is compiled
    name=st.sampled_from(list(LIRA)),
    convention=st.sampled_from(["paper", "original"]),
)


@settings(max_examples=60)
@cases
def test_leaving_the_pair_out_equals_a_refit(seed, size, name, convention):
    M, Q = size
    phi, keep = pool(seed, M, 25, Q)
    scores = getattr(attacks, name)(phi, keep, convention=convention)
    assert scores.shape == (M, 25)
    assert scores.dtype == np.float32
    for t in range(M):
        rest = np.arange(M) // 2 != t // 2
        check_close(scores[t], naive(phi[t], phi[rest], keep[rest], convention, *LIRA[name]))


@settings(max_examples=40)
@cases
def test_leaving_one_out_of_a_balanced_pool_equals_a_refit_at_equal_counts(seed, size, name, convention):
    M, Q = size
    phi, _ = pool(seed, M, 25, Q)
    keep = balanced_design(seed, M, 25)
    scores = getattr(attacks, name)(phi, keep, leave="one", convention=convention)
    for t in range(M):
        inside, outside = left_of_balanced(keep, t)
        if convention == "original":  # the first M/2 - 1 on each side, in model order
            others = (np.arange(M) != t)[:, None]
            inside, outside = (
                mask & (np.cumsum(mask, axis=0) <= M // 2 - 1) for mask in (keep & others, ~keep & others)
            )
        phi_left, keep_left = (without_others(array, inside | outside) for array in (phi, keep))
        check_close(scores[t], naive(phi[t], phi_left, keep_left, convention, *LIRA[name]))


@settings(max_examples=30)
@cases
def test_leaving_one_out_of_independent_masks_equals_a_refit(seed, size, name, convention):
    """Paper: the target only. Original: then cut to the smallest counts, which the naive version does itself."""
    (M, Q), rng = size, np.random.default_rng(seed)
    phi, _ = pool(seed, 2 * M, 40, Q)
    keep = rng.uniform(size=(2 * M, 40)) < 0.5
    keep[:3], keep[3:6] = True, False  # at least three on each side, so that a variance is always there
    assume(have_independent_counts(keep))
    scores = getattr(attacks, name)(phi, keep, leave="independent", convention=convention)
    for t in range(2 * M):
        rest = np.arange(2 * M) != t
        check_close(scores[t], naive(phi[t], phi[rest], keep[rest], convention, *LIRA[name]))


@settings(max_examples=30)
@cases
def test_outside_targets_are_scored_by_the_whole_pool_odd_or_even(seed, size, name, convention):
    (M, Q), rng = size, np.random.default_rng(seed)
    M += M > 8
    phi = rng.normal(size=(M, 25, Q)).astype(np.float32)
    keep = np.argsort(rng.uniform(size=(M, 25)), axis=0) < M // 2
    target = rng.normal(size=(3, 25, Q)).astype(np.float32)
    scores = getattr(attacks, name)(phi, keep, target=target, convention=convention)
    for t in range(3):
        check_close(scores[t], naive(target[t], phi, keep, convention, *LIRA[name]))


@pytest.mark.parametrize("M", [8, 10])
def test_median_survives_ties(M):
    """Whole-numbered phi: most neighbours in sorted order are equal."""
    phi, keep = pool(3, M, 400, 1, ties=True)
    scores = attacks.lira_offline_fixed(phi, keep, convention="original")
    for t in range(M):
        rest = np.arange(M) // 2 != t // 2
        check_close(scores[t], naive(phi[t], phi[rest], keep[rest], "original", False, True))


def test_offline_needs_no_in_models():
    rng = np.random.default_rng(0)
    phi, target = (
        rng.normal(size=(9, 30, 2)).astype(np.float32),
        rng.normal(size=(2, 30, 2)).astype(np.float32),
    )
    keep = np.zeros((9, 30), bool)
    for convention in ("paper", "original"):
        for name in ("lira_offline", "lira_offline_fixed"):
            scores = getattr(attacks, name)(phi, keep, target=target, convention=convention)
            check_close(scores[1], naive(target[1], phi, keep, convention, *LIRA[name]))
    with pytest.raises(ValueError, match=r"lira_online needs 2 IN models.*has 0: use lira_offline"):
        attacks.lira_online(phi, keep, target=target)


class Lazy:
    """Slices like an array and is nothing else."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __getitem__(self, index):
        return self.values[index]


@pytest.mark.parametrize("convention", ["paper", "original"])
@pytest.mark.parametrize("name", LIRA)
def test_blocks_do_not_show(name, convention, monkeypatch):
    """700 examples in blocks of 64, the last one overlapping, from something that only slices."""
    phi, keep = pool(1, 8, 700, 2)
    whole = getattr(attacks, name)(phi, keep, convention=convention)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 16)
    assert len(list(_pool.blocks(8, 700, 2))) == 11
    np.testing.assert_allclose(
        getattr(attacks, name)(Lazy(phi), keep, convention=convention), whole, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", ALL)
def test_scores_of_a_pair_do_not_depend_on_its_own_membership(name):
    """Swap who of a pair holds each example: neither its scores nor any constant used against it may change."""
    phi, keep = pool(2, 12, 200, 2)
    swapped = keep.copy()
    swapped[4:6] = ~keep[4:6]
    before, after = (getattr(attacks, name)(phi, k) for k in (keep, swapped))
    np.testing.assert_array_equal(before[4:6], after[4:6])
    if name != "global_threshold":
        assert not np.array_equal(before[0], after[0]), "the others do see it"


@pytest.mark.parametrize("name", ALL)
def test_order_of_pairs_mates_and_examples_does_not_matter(name):
    phi, keep = pool(4, 10, 60, 2)
    scores = getattr(attacks, name)(phi, keep)
    models = np.array([5, 4, 0, 1, 9, 8, 2, 3, 7, 6])
    examples = np.random.default_rng(0).permutation(60)
    moved = getattr(attacks, name)(phi[models][:, examples], keep[models][:, examples])
    np.testing.assert_allclose(moved, scores[models][:, examples], rtol=1e-5, atol=1e-5)


def test_global_threshold_is_the_mean_over_queries():
    phi, keep = pool(5, 4, 10, 3)
    np.testing.assert_allclose(attacks.global_threshold(phi, keep), phi.astype(float).mean(axis=2), rtol=1e-6)


def test_the_count_leak_would_be_seen():
    """Leaving only the target out of a balanced pool, unequal counts and all: AUC .43 at M = 8 (the reference's)."""
    M, N = 8, 5000
    phi, keep = np.random.default_rng(0).normal(size=(M, N, 1)).astype(np.float32), balanced_design(0, M, N)
    leaky = np.stack(
        [naive(phi[t], np.delete(phi, t, 0), np.delete(keep, t, 0), "paper", True, False) for t in range(M)]
    )
    assert 0.40 < roc(leaky, keep).auc < 0.46
    sound = attacks.lira_online(phi, keep, leave="one")
    assert abs(roc(sound, keep).auc - 0.5) < 0.015


def test_variances_without_spread_are_floored_counted_and_warned():
    phi, keep = pool(0, 24, 30, 1)
    phi[:, 7] = 3.25
    with pytest.warns(FlooredVarianceWarning, match=r"48 of 1,440 variances were floored"):
        scores = attacks.lira_online(phi, keep)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[:, 7], 0)


def test_block_is_refused_for_what_is_not_finite_and_not_for_a_sum_that_is_not():
    phi = np.full((4, 6, 1), 3e38, np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(np.sum(phi))
    np.testing.assert_array_equal(_pool.read_block(phi, slice(2, 5), "phi"), phi[:, 2:5])
    phi[1, 3], phi[2, 3] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"phi\[1, 3, 0\] is inf"):
        _pool.read_block(phi, slice(2, 5), "phi")


def test_outlier_does_not_leave_a_false_spread_behind():
    """All models agree but the target: what is left of its variance is rounding, not information."""
    phi, keep = pool(0, 24, 5, 1)
    phi[:, 2] = 1.0
    phi[3, 2] = 1e4
    with pytest.warns(FlooredVarianceWarning):
        scores = attacks.lira_offline(phi, keep)
    # (1e4 - 1) / floor, the floor being 2^-20 (1 + |mean|)
    np.testing.assert_allclose(scores[3, 2], 9999 / (2.0**-20 * 2), rtol=1e-3)


def test_few_models_are_warned_about():
    phi, keep = pool(0, 16, 10, 1)
    with pytest.warns(
        FewModelsWarning, match="lira_online: a variance for each example is of 7 models a side.*_fixed"
    ):
        attacks.lira_online(phi, keep)
    phi, keep = pool(0, 18, 10, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attacks.lira_online(phi, keep)
    assert not caught, "eight are enough"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"phi": np.zeros((4, 6), np.float32)},
            r"phi must be \[models, examples, queries\]; got shape \(4, 6\)",
        ),
        (
            {"keep": np.zeros((4, 5), bool)},
            r"keep must be bool of shape \(4, 6\) like phi; got bool of shape \(4, 5\)",
        ),
        ({"keep": np.zeros((4, 6), int)}, "keep must be bool.*got int64"),
        ({"keep": np.zeros((4, 6), bool)}, 'leave="pair" needs rows in complementary pairs'),
        ({"leave": "none"}, 'leave must be "pair", "one" or "independent"; got \'none\''),
        ({"target": np.zeros((1, 5, 1), np.float32)}, r"target must be \[targets, 6, 1\] like phi"),
        (
            {"phi": np.zeros((4, 0, 1), np.float32), "keep": np.zeros((4, 0), bool)},
            "no examples or no queries",
        ),
        ({"nan": True}, r"phi\[2, 5, 0\] is nan: leave that model and its mate out"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    phi, keep = pool(0, 4, 6, 1)
    arguments = {"phi": phi, "keep": keep, **change}
    if arguments.pop("nan", False):
        arguments["phi"] = phi.copy()
        arguments["phi"][2, 5] = np.nan
    name = f"{name}_fixed" if name in ("lira_online", "lira_offline") else name
    with pytest.raises(ValueError, match=message):
        getattr(attacks, name)(arguments.pop("phi"), arguments.pop("keep"), **arguments)


def test_unknown_convention_is_refused():
    with pytest.raises(ValueError, match='convention must be "paper" or "original"; got \'mine\''):
        attacks.lira_online(*pool(0, 8, 6, 1), convention="mine")  # pyright: ignore[reportArgumentType]
