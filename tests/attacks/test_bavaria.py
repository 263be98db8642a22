import numpy as np
import pytest
from chance import check_chance, check_gaussian, figures_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import gamma, norm, t
from shadow_pools import gaussian_pool, left_of_balanced, without_others

from lira.attacks import _pool, bavaria_offline, bavaria_online, lira_offline
from lira.membership import have_independent_counts, keep_mask
from lira.metrics import roc

BOTH = [bavaria_online, bavaria_offline]


def pool(seed, M, N, Q, signal=1.5):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N)
    phi = rng.normal(size=(M, N, Q)) * rng.uniform(0.5, 2, (1, N, 1)) + rng.normal(0, 2, (1, N, 1)) + 3
    return (phi + signal * keep[..., None]).astype(np.float32), keep


def naive_side(values, everything):
    """Degrees of freedom, centre and scale of one example and query, from the paper's updates one by one."""
    mu0, kappa0, alpha0 = everything.mean(), 1.0, 2.0
    beta0 = everything.var() * (alpha0 - 1)
    n = len(values)
    mean = values.mean() if n else 0.0
    kappa, alpha = kappa0 + n, alpha0 + n / 2
    mu = (kappa0 * mu0 + n * mean) / kappa
    beta = beta0 + ((values - mean) ** 2).sum() / 2 + kappa0 * n * (mean - mu0) ** 2 / (2 * kappa)
    return 2 * alpha, mu, np.sqrt(beta * (kappa + 1) / (alpha * kappa))


def naive(values, phi, keep, attack):
    """Score one target's `values` [N, Q] by the given models, in float64."""
    values, phi = values.astype(np.float64), phi.astype(np.float64)
    everything = [phi[keep], phi[~keep]]
    scores = np.empty(values.shape)
    for n in range(values.shape[0]):
        for q in range(values.shape[1]):
            x = values[n, q]
            out = naive_side(phi[~keep[:, n], n, q], everything[1])
            if attack is bavaria_offline:
                scores[n, q] = (x - out[1]) / out[2]
            else:
                inside = naive_side(phi[keep[:, n], n, q], everything[0])
                scores[n, q] = t.logpdf(x, *inside) - t.logpdf(x, *out)
    return scores.mean(axis=1)


def check_close(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attack", BOTH)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31 - 1), size=st.sampled_from([(4, 3), (8, 1)]))
def test_leaving_the_pair_out_equals_the_updates_on_the_rest(attack, seed, size):
    """From M = 4, which leaves one model a side."""
    M, Q = size
    phi, keep = pool(seed, M, 12, Q)
    scores = attack(phi, keep)
    assert scores.shape == (M, 12)
    assert scores.dtype == np.float32
    for target in range(M):
        rest = np.arange(M) // 2 != target // 2
        check_close(scores[target], naive(phi[target], phi[rest], keep[rest], attack))


@pytest.mark.parametrize("attack", BOTH)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31 - 1), M=st.sampled_from([5, 8]))
def test_other_designs_and_outside_targets(attack, seed, M):
    """Independent masks, in which many examples have no model on a side: those fall back on the prior."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(M, 12, 2)).astype(np.float32)
    keep = rng.uniform(size=(M, 12)) < (0.2 if seed % 2 else 0.8)
    assume(have_independent_counts(keep))
    scores, outside = attack(phi, keep, leave="independent"), attack(phi, keep, target=phi[:2] + 1)
    for target in range(M):
        rest = np.arange(M) != target
        check_close(scores[target], naive(phi[target], phi[rest], keep[rest], attack))
    for target in range(2):
        check_close(outside[target], naive(phi[target] + 1, phi, keep, attack))


@pytest.mark.parametrize("attack", BOTH)
def test_balanced_designs_are_cut_to_equal_counts(attack):
    phi, _ = pool(0, 8, 30, 1)
    keep = np.argsort(np.random.default_rng(0).uniform(size=(8, 30)), axis=0) < 4
    scores = attack(phi, keep, leave="one")
    for target in range(8):
        used = np.logical_or(*left_of_balanced(keep, target))
        cut_phi, cut_keep = (without_others(array, used) for array in (phi, keep))
        check_close(scores[target], naive(phi[target], cut_phi, cut_keep, attack))


def test_predictive_is_the_posterior_integrated_over_mean_and_variance():
    """Student's t against quadrature over the gamma posterior of the precision: the paper's own derivation."""
    phi, keep = pool(3, 8, 6, 1)
    rest = np.arange(8) >= 2
    sides = []
    for mask in (keep[rest], ~keep[rest]):
        everything, values = phi[rest][mask], phi[rest][mask[:, 0], 0, 0].astype(float)
        mu0, n, mean = everything.mean(dtype=float), len(values), values.mean()
        rate = everything.var(dtype=float) + values.var() * n / 2 + n * (mean - mu0) ** 2 / (2 * (n + 1))
        centre, shape = (mu0 + n * mean) / (n + 1), 2 + n / 2

        def density(precision, centre=centre, shape=shape, rate=rate, n=n):
            spread = np.sqrt((1 + 1 / (n + 1)) / precision)
            return norm.pdf(phi[0, 0, 0], centre, spread) * gamma.pdf(precision, a=shape, scale=1 / rate)

        sides.append(quad(density, 0, np.inf)[0])
    np.testing.assert_allclose(bavaria_online(phi, keep)[0, 0], np.log(sides[0] / sides[1]), rtol=1e-5)


def test_many_models_attain_the_neyman_pearson_auc():
    """Examples of differing strength d_n, by quadrature over d: log LR is N(-+d^2/2, d^2)."""
    rng = np.random.default_rng(2)
    M, T, N = 1024, 16, 1000
    strength, spread = rng.uniform(0.2, 4, N), rng.uniform(0.5, 2, (1, N, 1))
    centre = rng.normal(0, 2, (1, N, 1))
    keep, keep_target = keep_mask(0, M, N), keep_mask(1, T, N)

    def draw(members):
        noise = rng.standard_normal((*members.shape, 1), dtype=np.float32)
        return ((noise + (strength * members)[..., None]) * spread + centre).astype(np.float32)

    curve = roc(bavaria_online(draw(keep), keep, target=draw(keep_target)), keep_target)
    # P(member's score > non-member's), each from an example of its own: averaged over all pairs of examples.
    first, second = strength[:, None], strength[None, :]
    difference = (first**2 + second**2) / 2
    truth = norm.cdf(difference / np.sqrt(first**2 + second**2)).mean()
    assert abs(curve.auc - truth) < 4.5 * np.sqrt(1 / (6 * curve.num_nonmembers))


def test_one_strength_for_all_meets_the_closed_form():
    """IN N(2, 1), OUT N(0, 1) about each example's own centre: AUC and TPR of online and offline alike."""
    d = 2.0
    phi, keep, target, keep_target = gaussian_pool(1024, 16, 1500, d)
    for attack in BOTH:
        check_gaussian(roc(attack(phi, keep, target=target), keep_target), d)


def test_shrinks_to_lira_with_many_models():
    phi, keep = pool(0, 2048, 20, 1)
    np.testing.assert_allclose(bavaria_offline(phi, keep), lira_offline(phi, keep), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("signal", [0.0, 2.0])
@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("M", [4, 8, 16, 64])
def test_noise_and_signal_in_the_shadow_models_alone_are_at_chance(M, attack, signal):
    curves = []
    rows, N = (2 if signal else M), 1000  # one shape, one compilation
    for seed in range(8):
        rng = np.random.default_rng([seed, M])
        keep = keep_mask(seed, M, N)
        phi = rng.normal(size=(M, N, 1)) + signal * keep[..., None]
        if signal:
            phi[:2] = rng.normal(size=(2, N, 1)) + signal / 2
        curves.append(roc(attack(phi.astype(np.float32), keep)[:rows], keep[:rows]))
    check_chance(*figures_of(curves))


@pytest.mark.parametrize("attack", BOTH)
def test_a_balanced_design_with_signal_in_all_models_but_the_target_is_at_chance(attack):
    """The counts of such a pool would give the target away, were they not made equal."""
    curves = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        keep = np.argsort(rng.uniform(size=(8, 4000)), axis=0) < 4
        phi = rng.normal(size=(8, 4000, 1)) + 2 * keep[..., None]
        phi[0] = rng.normal(size=(4000, 1)) + 1
        curves.append(roc(attack(phi.astype(np.float32), keep, leave="one")[:1], keep[:1]))
    check_chance(*figures_of(curves))


@pytest.mark.parametrize("attack", BOTH)
def test_scores_of_a_pair_do_not_depend_on_its_own_membership(attack):
    phi, keep = pool(2, 12, 200, 2)
    swapped = keep.copy()
    swapped[4:6] = ~keep[4:6]
    before, after = attack(phi, keep), attack(phi, swapped)
    np.testing.assert_array_equal(before[4:6], after[4:6])
    assert not np.array_equal(before[0], after[0]), "the others do see it"


@pytest.mark.parametrize("attack", BOTH)
def test_blocks_do_not_show(attack, monkeypatch):
    phi, keep = pool(1, 8, 700, 2)
    whole = attack(phi, keep)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 16)
    np.testing.assert_allclose(attack(phi, keep), whole, rtol=1e-6, atol=1e-6)


# --- Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", BOTH)
def test_no_spread_anywhere_is_finite(attack):
    """All phi equal: the prior's variance is 1 and nobody looks like a member."""
    keep = keep_mask(0, 4, 10)
    scores = attack(np.full((4, 10, 1), 2.5, np.float32), keep)
    np.testing.assert_array_equal(scores, 0)


def test_offline_needs_no_in_models_and_online_says_so():
    phi, target = pool(0, 6, 10, 1)[0], pool(1, 6, 10, 1)[0][:1]
    keep = np.zeros((6, 10), bool)
    scores = bavaria_offline(phi, keep, target=target)
    check_close(scores[0], naive(target[0], phi, keep, bavaria_offline))
    with pytest.raises(
        ValueError, match=r"bavaria_online needs IN models.*there are none: use bavaria_offline"
    ):
        bavaria_online(phi, keep, target=target)
    with pytest.raises(ValueError, match=r"bavaria_offline needs OUT models.*none: use global_threshold"):
        bavaria_offline(phi, ~keep, target=target)


@pytest.mark.parametrize("attack", BOTH)
def test_bad_arguments_are_named(attack):
    phi, keep = pool(0, 4, 6, 1)
    with pytest.raises(ValueError, match=r"keep must be bool of shape \(4, 6\) like phi"):
        attack(phi, keep[:, :5])
    with pytest.raises(ValueError, match='leave="pair" needs rows in complementary pairs'):
        attack(phi, ~keep[[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="OUT models once the target's are left out, and there are none"):
        attack(phi[:2], keep[:2])
    phi[2, 5] = np.nan
    with pytest.raises(ValueError, match=r"phi\[2, 5, 0\] is nan"):
        attack(phi, keep)
