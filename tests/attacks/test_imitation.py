import numpy as np
import pytest
from chance import check_chance, check_gaussian, figures_of
from scipy.stats import norm

from lira.attacks import lira_offline
from lira.attacks._pool import UnfitPoolError
from lira.attacks.imitation import imia, imia_nonadaptive
from lira.learning.imitation import pivots_of
from lira.metrics import roc


def noise(seed, K=6, M=8, N=30, Q=3):
    """Answers and memberships; every example has models on both sides."""
    rng = np.random.default_rng(seed)
    keeps = [rng.permuted(np.arange(models)[:, None] % 2 * np.ones((1, N)), axis=0) == 1 for models in (K, M)]
    answers = [rng.normal(0, 3, shape).astype(np.float32) for shape in ((N, Q), (K, N, Q), (M, N, Q))]
    return answers[0], answers[1], keeps[0], answers[2], keeps[1]


@pytest.mark.parametrize("seed", range(3))
def test_imia_is_the_formula(seed):
    phi, imitators, out, shadows, inside = (a.tolist() for a in noise(seed))
    scores = imia(*noise(seed))
    assert scores.dtype == np.float32
    for n in range(len(phi)):
        parts = []
        for q in range(len(phi[n])):
            outs = [imitators[k][n][q] for k in range(len(out)) if not out[k][n]]
            ins = [shadows[m][n][q] for m in range(len(inside)) if inside[m][n]]
            mu_out, mu_in = sum(outs) / len(outs), sum(ins) / len(ins)
            parts.append((phi[n][q] - mu_out) ** 2 - (phi[n][q] - mu_in) ** 2)
        np.testing.assert_allclose(scores[n], sum(parts) / len(parts), rtol=1e-6, atol=1e-5)


def test_imia_of_one_query_is_the_likelihood_ratio_of_equal_variances():
    phi, *_ = noise(4, Q=1)
    sides = np.full((1, 30), False), np.full((1, 30), True)
    scores = imia(phi, np.full((1, 30, 1), -1.0), sides[0], np.full((1, 30, 1), 2.0), sides[1])
    ratio = norm.logpdf(phi[:, 0], 2.0, 3.0) - norm.logpdf(phi[:, 0], -1.0, 3.0)
    np.testing.assert_allclose(scores, 2 * 3.0**2 * ratio, rtol=1e-5, atol=1e-5)


def test_imia_reaches_the_gaussian_curve_where_the_means_are_known():
    rng, N, distance = np.random.default_rng(5), 40_000, 1.5
    member = rng.random(N) < 0.5
    phi = (rng.normal(size=N) + distance * member)[:, None]
    zeros = np.zeros((1, N, 1))
    scores = imia(phi, zeros, np.zeros((1, N), bool), zeros + distance, np.ones((1, N), bool))
    check_gaussian(roc(scores[None], member[None]), distance)


def test_imia_of_noise_is_chance():
    curves = []
    for seed in range(12):
        member = np.random.default_rng(100 + seed).random(4000) < 0.5
        curves.append(roc(imia(*noise(seed, N=4000, Q=1))[None], member[None]))
    check_chance(*figures_of(curves))


def test_imia_does_not_lose_close_means_far_from_phi():
    # In float64, (1e8 - 0)^2 - (1e8 - 1e-3)^2 by itself has an error of about 1.
    one, no = np.ones((1, 1, 1)), np.zeros((1, 1), bool)
    score = imia(np.full((1, 1), 1e8), 0 * one, no, 1e-3 * one, ~no)
    np.testing.assert_allclose(score, 1e-3 * (2e8 - 1e-3), rtol=1e-7)


def test_imia_refuses_by_name():
    phi, imitators, out, shadows, inside = noise(6)
    with pytest.raises(UnfitPoolError, match="30 examples, the first is 0, have no OUT imitator"):
        imia(phi, imitators, np.ones_like(out), shadows, inside)
    with pytest.raises(UnfitPoolError, match="no IN shadow model"):
        imia(phi, imitators, out, shadows, np.zeros_like(inside))
    with pytest.raises(ValueError, match="shadows must be"):
        imia(phi, imitators, out, shadows[:, :-1], inside)
    with pytest.raises(ValueError, match="imitators_keep must be bool"):
        imia(phi, imitators, out.astype(int), shadows, inside)
    with pytest.raises(ValueError, match="imitators are not finite"):
        imia(phi, np.full_like(imitators, np.nan), out, shadows, inside)
    with pytest.raises(ValueError, match="phi of the target is not finite"):
        imia(np.full_like(phi, np.inf), imitators, out, shadows, inside)
    with pytest.raises(ValueError, match=r"must be \[N, Q\]"):
        imia(phi[0], imitators, out, shadows, inside)


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
def test_glira_is_offline_lira_against_imitators():
    phi, imitators, out, _, _ = noise(2, K=20)
    scores = lira_offline(imitators, out, target=phi[None])
    expected = []
    for n in range(len(phi)):
        others = imitators[~out[:, n], n].astype(float)
        expected.append(np.mean((phi[n] - others.mean(axis=0)) / others.std(axis=0)))
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4, atol=1e-5)


# --- Without having seen the example ---------------------------------------------------------------------------------


def pivoted(seed, N=60, **sizes):
    """What `noise` gives, memberships of imitators being pairs, and pivots: of three classes about half."""
    phi, imitators, out, further, seen = noise(seed, N=N, **sizes)
    rng = np.random.default_rng([seed, 1])
    for mask in (out, seen):
        mask[::2] = rng.random(mask[::2].shape) < 0.5
        mask[1::2] = ~mask[::2]
    return phi, imitators, out, further, seen, rng.random(N) < 0.5, rng.integers(0, 3, N)


@pytest.mark.parametrize("seed", range(3))
def test_the_nonadaptive_form_is_medians_of_models_that_have_not_seen_the_example(seed):
    arguments = pivoted(seed)
    phi, imitators, out, further, seen, pivots, labels = (a.tolist() for a in arguments)
    scores = imia_nonadaptive(*arguments)
    assert scores.dtype == np.float32
    for n in range(len(phi)):
        parts = []
        for q in range(len(phi[n])):
            outs = [imitators[k][n][q] for k in range(len(out)) if not out[k][n]]
            ins = [
                further[k][i][q]
                for k in range(len(seen))
                for i in range(len(phi))
                if not seen[k][n] and seen[k][i] and pivots[i] and labels[i] == labels[n]
            ]
            mu_out, mu_in = np.median(outs), np.median(ins)
            parts.append((phi[n][q] - mu_out) ** 2 - (phi[n][q] - mu_in) ** 2)
        np.testing.assert_allclose(scores[n], sum(parts) / len(parts), rtol=1e-6, atol=1e-5)


def test_the_nonadaptive_form_reaches_the_gaussian_curve_where_the_means_are_known():
    """What was seen further answers 1.5 at its pivots, and at the others what would spoil it."""
    rng, N, distance = np.random.default_rng(6), 40_000, 1.5
    member = rng.random(N) < 0.5
    phi = (rng.normal(size=N) + distance * member)[:, None]
    keep = np.stack([np.arange(N) % 2 == 0, np.arange(N) % 2 == 1])
    pivots = np.arange(N) % 4 < 2
    further = np.where(keep & pivots, distance, 9.0)[..., None]
    scores = imia_nonadaptive(phi, np.zeros((2, N, 1)), keep, further, keep, pivots, np.zeros(N, int))
    check_gaussian(roc(scores[None], member[None]), distance)


def test_the_nonadaptive_form_of_noise_is_chance():
    """Pivots are those that the target is surest of, as they are taken: they tell nothing of what it was trained on."""
    curves = []
    for seed in range(12):
        member = np.random.default_rng(100 + seed).random(4000) < 0.5
        phi, imitators, out, further, seen, _, labels = pivoted(seed, N=4000, Q=1)
        pivots = pivots_of(phi[:, 0], labels)
        scores = imia_nonadaptive(phi, imitators, out, further, seen, pivots, labels)
        curves.append(roc(scores[None], member[None]))
    check_chance(*figures_of(curves))


def test_the_nonadaptive_form_says_what_is_missing():
    phi, imitators, out, further, seen, pivots, labels = pivoted(0)
    with pytest.raises(UnfitPoolError, match="have no pivot of its class in a model that has not seen it"):
        imia_nonadaptive(phi, imitators, out, further, seen, pivots & (labels != 1), labels)
    with pytest.raises(UnfitPoolError, match="have no OUT imitator"):
        imia_nonadaptive(phi, imitators, np.ones_like(out), further, seen, pivots, labels)
    with pytest.raises(ValueError, match=r"pivots and labels must be \[60\]"):
        imia_nonadaptive(phi, imitators, out, further, seen, pivots[1:], labels)
    with pytest.raises(ValueError, match="pivoted are not finite"):
        imia_nonadaptive(phi, imitators, out, further * np.nan, seen, pivots, labels)
    with pytest.raises(ValueError, match="pivots must be bool"):
        imia_nonadaptive(phi, imitators, out, further, seen, pivots.astype(int), labels)


def test_pivots_are_the_surer_half_of_each_class():
    rng = np.random.default_rng(0)
    phi, labels = rng.integers(-9, 9, 41).astype(float), rng.integers(0, 5, 41)
    labels[0], labels[labels == 4] = 4, 3  # a class of one
    labels[0] = 4
    chosen = pivots_of(phi, labels)
    for label in range(5):
        at = np.flatnonzero(labels == label)
        surest = sorted(at, key=lambda n: (-phi[n], n))[: max(len(at) // 2, 1)]
        assert set(np.flatnonzero(chosen & (labels == label))) == set(surest)


@pytest.mark.parametrize("kind", [np.float16, ">f8", "list"])
def test_imia_takes_any_kind_of_floats(kind):
    phi, imitators, out, shadows, inside = noise(0)
    phi, imitators, shadows = (np.round(a, 1).astype(np.float16) for a in (phi, imitators, shadows))
    plain = imia(*(a.astype(float) for a in (phi, imitators)), out, shadows.astype(float), inside)

    def odd(array):
        return array.tolist() if kind == "list" else array.astype(kind)

    np.testing.assert_array_equal(imia(odd(phi), odd(imitators), out, odd(shadows), inside), plain)
