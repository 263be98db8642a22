import json

import jax.numpy as jnp
import numpy as np
import pytest
from array_kinds import SINGLE
from scipy.stats import norm

from lira.attacks import lira_offline, lira_online_fixed
from lira.forgetting import (
    called_members,
    direction,
    example_epsilons,
    exposure_threshold,
    forgetting_quality,
    klom,
    largest_epsilon,
    lira_after,
    measure,
    mia_efficacy,
    psi,
    psi_normalised,
    retrained_values,
    u_lira,
    update_leakage,
)
from lira.membership import keep_mask
from lira.metrics import roc
from lira.reporting.document import unlearning_document
from lira.reporting.unlearning_evaluation import evaluate_unlearning


class World:
    """Models whose phi is Gaussian: `gap` higher, by example, where the model was trained on it."""

    def __init__(self, M=32, N=400, F=60, gap: float | np.ndarray = 1.0, hardness=2.0, seed=0):
        self.rng = np.random.default_rng(seed)
        self.keep = keep_mask(seed, M, N)
        self.forget = np.arange(N) % (N // F) == 0
        self.forget &= np.cumsum(self.forget) <= F
        self.level = hardness * self.rng.normal(size=N)
        self.gap = np.broadcast_to(gap, N)
        self.before, self.retrained = self.draw(self.keep), self.draw(self.keep & ~self.forget)

    def draw(self, held, shift=0.0):
        noise = self.rng.normal(size=self.keep.shape)
        return (self.level + self.gap * held + shift + noise)[..., None].astype(np.float32)

    @property
    def rest(self):
        return self.keep & ~self.forget


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


# --- Attacks --------------------------------------------------------------------------------------------------------


def naive_u_lira(after, retrained, keep, forget):
    """Log-likelihood ratio with one variance a side, the pair left out, in plain loops."""
    M, examples = len(keep), np.flatnonzero(forget)
    scores = np.empty((M, len(examples)))
    for t in range(M):
        others = [m for m in range(M) if m // 2 != t // 2]
        sides = [
            (
                [after[m, x, 0] for m in others if keep[m, x]],
                [retrained[m, x, 0] for m in others if not keep[m, x]],
            )
            for x in examples
        ]
        spread = [np.mean([np.var(side[i]) for side in sides]) for i in (0, 1)]
        for i, x in enumerate(examples):
            own = after[t, x, 0] if keep[t, x] else retrained[t, x, 0]
            unlearned, fresh = sides[i]
            scores[t, i] = norm.logpdf(own, np.mean(unlearned), spread[0] ** 0.5) - norm.logpdf(
                own, np.mean(fresh), spread[1] ** 0.5
            )
    return scores


def test_u_lira_is_the_likelihood_ratio_of_unlearned_against_retrained():
    world = World(M=8, N=30, F=6)
    after = world.draw(world.rest, shift=0.5)
    scores, held = u_lira(after, world.retrained, world.keep, world.forget)
    np.testing.assert_array_equal(held, world.keep[:, world.forget])
    expected = naive_u_lira(after.astype(float), world.retrained.astype(float), world.keep, world.forget)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_u_lira_sees_only_what_was_held_then_and_never_held_now():
    world = World(M=8, N=30, F=6)
    after = world.draw(world.rest)
    scores, _ = u_lira(after, world.retrained, world.keep, world.forget)
    held = (world.keep & world.forget)[..., None]
    changed, _ = u_lira(
        np.where(held, after, 99), np.where(held, -99, world.retrained), world.keep, world.forget
    )
    np.testing.assert_array_equal(scores, changed)


@pytest.mark.parametrize("distance", [0.7, -1.5])
def test_u_lira_of_gaussians_reaches_the_optimum_on_either_side(distance):
    """AUC Phi(d / sqrt 2) for phi that unlearning left d above, or pushed d below, that of retrained models."""
    world = World(M=128, N=600, F=200, gap=0.0)
    after = world.draw(world.rest, shift=distance)
    auc = roc(*u_lira(after, world.retrained, world.keep, world.forget)).auc
    assert auc == pytest.approx(norm.cdf(abs(distance) / np.sqrt(2)), abs=0.015)


def test_exact_retraining_is_at_chance_and_within_its_own_range():
    world = World(M=32, N=300, F=60)
    aucs, tprs = [], []
    own = retrained_values(world.retrained, world.keep, world.forget, redraws=12)
    for _ in range(12):
        curve = roc(*u_lira(world.draw(world.rest), world.retrained, world.keep, world.forget))
        aucs.append(curve.auc)
        tprs.append(curve.realised_tpr(0.01))
    for values, chance, estimate in ((aucs, 0.5, own.auc), (tprs, 0.01, own.tpr_at_fpr[0.01])):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - chance) < 4 * error + 1e-3
        assert estimate.value == pytest.approx(np.mean(values), abs=6 * error)
        assert np.mean([estimate.low <= value <= estimate.high for value in values]) >= 0.75


def test_no_unlearning_is_found_as_by_plain_lira():
    world = World(M=32, N=400, F=100, gap=1.5)
    plain = roc(*lira_after(world.before, world.keep, world.forget))
    none = roc(*u_lira(world.before, world.retrained, world.keep, world.forget))
    interval = plain.auc_interval()
    assert interval.low - 0.01 < none.auc < interval.high + 0.01
    assert plain.auc == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.03)


def test_another_attack_can_be_passed():
    world = World(M=24, N=60, F=10)
    scores, _ = u_lira(world.before, world.retrained, world.keep, world.forget, attack=lira_offline)
    pool = np.where(world.keep[..., None], world.before, world.retrained)[:, world.forget]
    np.testing.assert_array_equal(scores, lira_offline(pool, world.keep[:, world.forget]))


def test_updates_leak_what_was_deleted_even_by_retraining():
    """The difference has the gap in it for deleted examples alone: AUC Phi(gap / (sqrt 2 * sqrt 2))."""
    world = World(M=64, N=400, F=100, gap=2.0)
    for attack in (None, lira_online_fixed):
        curve = roc(*update_leakage(world.before, world.retrained, world.keep, world.forget, attack=attack))
        assert curve.auc == pytest.approx(norm.cdf(1.0), abs=0.03)
        idle = roc(
            *update_leakage(world.before, world.draw(world.keep), world.keep, world.forget, attack=attack)
        )
        assert idle.auc == pytest.approx(0.5, abs=0.03)
    scores, held = update_leakage(world.before, world.retrained, world.keep, world.forget, attack=None)
    np.testing.assert_allclose(scores, (world.before - world.retrained)[:, world.forget, 0], rtol=1e-6)
    np.testing.assert_array_equal(held, world.keep[:, world.forget])


# --- Classical attacks ----------------------------------------------------------------------------------------------


def test_thresholds_are_fitted_on_one_half_and_asked_about_the_other():
    """Plain loops, from the halves that a change of one value reveals."""
    world = World(M=4, N=60, F=12)
    rng = np.random.default_rng(5)
    phi = rng.integers(0, 6, size=(4, 60, 1)).astype(float)  # ties
    (called,) = called_members(phi, world.keep, world.forget, fprs=[0.3], seed=3)
    rates = np.zeros((3, 2))
    for pair in range(2):
        others = np.flatnonzero(~world.forget)
        fitting = np.random.default_rng([3, pair]).permutation(others)[: len(others) // 2]
        asked = np.setdiff1d(others, fitting)
        counts = np.zeros((3, 2))
        for model in (2 * pair, 2 * pair + 1):
            nonmembers = [phi[model, n, 0] for n in fitting if not world.keep[model, n]]
            # The lowest of all thresholds with at most 30 % false positives.
            threshold = min(
                t for t in np.arange(8) if np.mean([value >= t for value in nonmembers]) <= 0.3 + 1e-12
            )
            groups = (
                [n for n in np.flatnonzero(world.forget) if world.keep[model, n]],
                [n for n in asked if world.keep[model, n]],
                [n for n in asked if not world.keep[model, n]],
            )
            counts += [[sum(phi[model, group, 0] >= threshold), len(group)] for group in groups]
        rates[:, pair] = counts[:, 0] / counts[:, 1]
    np.testing.assert_allclose(np.stack(called), rates)


def test_psi_of_retrained_models_is_fpr_over_tpr():
    world = World(M=64, N=1200, F=300, gap=1.0, hardness=0.0)
    fprs = (0.1, 0.5)
    for fpr, called in zip(
        fprs, called_members(world.retrained, world.keep, world.forget, fprs=fprs), strict=True
    ):
        tpr = norm.cdf(norm.ppf(fpr) + 1)
        assert psi(called).value == pytest.approx(fpr / tpr, abs=0.02)
        assert called.retain.mean() == pytest.approx(tpr, abs=0.02)
        assert called.validation.mean() == pytest.approx(fpr, abs=0.015)
        assert mia_efficacy(called).value == pytest.approx(1 - fpr, abs=0.015)
    for called in called_members(world.before, world.keep, world.forget, fprs=fprs):
        assert psi(called).value == pytest.approx(1, abs=0.03)


def ensembles(world, after, fprs=(0.5,)):
    return (
        called_members(phi, world.keep, world.forget, fprs=fprs)[0]
        for phi in (world.before, after, world.retrained)
    )


def test_normalised_psi_is_1_untouched_0_retrained_and_covers():
    hits = []
    for seed in range(20):
        world = World(M=16, N=200, F=50, seed=seed)
        untouched = psi_normalised(*ensembles(world, world.before)).estimate
        if np.isnan(untouched.value):
            continue
        assert (untouched.value, untouched.low, untouched.high) == pytest.approx((1, 1, 1))
        found = psi_normalised(*ensembles(world, world.draw(world.rest)))
        # A ratio is shown where what it is divided by is known to within half of itself: then its interval says something.
        margin = found.denominator.value - found.denominator.low
        assert found.is_resolved == (margin <= found.denominator.value / 2)
        assert np.isnan(found.estimate.value) != found.is_resolved
        assert found.difference.low <= found.difference.value <= found.difference.high
        if not found.is_resolved:
            continue
        assert found.estimate.high - found.estimate.low < 2
        hits.append(found.estimate.low <= 0 <= found.estimate.high)
    assert len(hits) >= 10
    assert np.mean(hits) >= 0.8
    # Halfway: every other pair of models unlearns.
    world = World(M=16, N=200, F=50)
    kept = world.draw(np.where(np.arange(len(world.keep))[:, None] // 2 % 2, world.keep, world.rest))
    assert psi_normalised(*ensembles(world, kept)).estimate.value == pytest.approx(0.5, abs=0.25)


def test_below_zero_is_over_forgotten_and_without_a_gap_nothing_is_defined():
    world = World(M=16, N=300, F=60)
    found = psi_normalised(*ensembles(world, world.draw(world.rest, shift=-3.0 * world.forget)))
    assert found.estimate.high < 0
    assert found.over_forgotten
    blind = World(M=16, N=300, F=60, gap=0.0)
    nothing = psi_normalised(*ensembles(blind, blind.draw(blind.rest)))
    assert nothing.denominator.low < 0 < nothing.denominator.high
    assert np.isnan(nothing.estimate.value)
    assert not nothing.is_resolved
    assert nothing.difference.low < 0 < nothing.difference.high
    assert not nothing.over_forgotten


def test_several_signals_are_joined():
    """The second of two signals carries all of membership; phi alone sees nothing."""
    world = World(M=8, N=400, F=80, gap=0.0, hardness=0.0)
    signal = 1.5 * world.keep + world.rng.normal(size=world.keep.shape)
    features = np.concatenate([world.before, -100 * signal[..., None]], axis=2)
    (blind,) = called_members(world.before, world.keep, world.forget, fprs=[0.1])
    (seeing,) = called_members(features, world.keep, world.forget, fprs=[0.1])
    assert blind.forget.mean() == pytest.approx(0.1, abs=0.04)
    assert seeing.forget.mean() == pytest.approx(norm.cdf(norm.ppf(0.1) + 1.5), abs=0.06)


def test_a_model_that_holds_nothing_of_the_forget_set_is_no_obstacle():
    world = World(M=8, N=80, F=10)
    world.keep[0, world.forget], world.keep[1, world.forget] = False, True
    (called,) = called_members(world.before, world.keep, world.forget, fprs=[0.3])
    assert np.isfinite(np.stack(called)).all()
    figures = measure(world.before, world.before, world.retrained, world.keep, world.forget)
    evaluation = evaluate_unlearning({"none": [figures]}, world.keep)
    json.dumps(unlearning_document(evaluation), allow_nan=False)


# --- Ensembles ------------------------------------------------------------------------------------------------------


def naive_epsilon(unlearned, fresh, delta):
    best = 0.0
    for threshold in np.unique(np.concatenate([unlearned, fresh])):
        for sign in (1, -1):
            false = np.mean(sign * fresh >= sign * threshold)
            missed = np.mean(sign * unlearned < sign * threshold)
            if false == 0 and missed == 0:
                return np.inf
            if false > 0 and missed > 0:
                for a, b in ((false, missed), (missed, false)):
                    if 1 - delta - a > 0:
                        best = max(best, np.log(1 - delta - a) - np.log(b))
    return best


@pytest.mark.parametrize("ties", [False, True])
def test_epsilons_are_the_best_of_all_thresholds(ties):
    world = World(M=16, N=60, F=20, gap=2.0)
    after, retrained = world.before, world.retrained
    if ties:
        after, retrained = np.round(after), np.round(retrained)
    found = example_epsilons(after, retrained, world.keep, world.forget, delta=1e-3)
    for epsilon, x in zip(found, np.flatnonzero(world.forget), strict=True):
        held = world.keep[:, x]
        expected = naive_epsilon(after[held, x, 0], retrained[~held, x, 0], 1e-3)
        assert epsilon == pytest.approx(expected, abs=1e-9)
    assert len(set(found)) > 3


def test_separable_ensembles_have_infinite_epsilon_on_either_side():
    world = World(M=8, N=40, F=4)
    for shift in (50, -50):
        found = example_epsilons(world.draw(world.rest, shift), world.retrained, world.keep, world.forget)
        assert np.isinf(found).all()
        assert forgetting_quality(found) == 0
    same = np.zeros_like(world.before)
    assert (example_epsilons(same, same, world.keep, world.forget) == 0).all()


def test_the_largest_finite_epsilon_is_reached_and_not_passed():
    """One error of each kind among 2 x 8 models."""
    M, keep = 16, np.tile([[True], [False]], (8, 1))
    after, retrained = np.full((M, 1, 1), 5.0), np.zeros((M, 1, 1))
    after[0], retrained[1] = -1, 6
    (found,) = example_epsilons(after, retrained, keep, np.array([True]))
    assert found == pytest.approx(np.log(7 - 8e-5)) == largest_epsilon(M)
    assert largest_epsilon(2) == 0


def test_forgetting_quality_halves_with_each_half_of_epsilon():
    assert forgetting_quality(np.array([0.0, 0.49])) == 1
    assert forgetting_quality(np.array([0.5])) == 0.5
    assert forgetting_quality(np.array([1.7])) == 2 / 2**4


def naive_klom(unlearned, fresh):
    edges = np.linspace(min(*unlearned, *fresh), max(*unlearned, *fresh), 21)
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (unlearned, fresh))
    q = np.where(p > 0, np.maximum(q, 1e-5), q)
    q = q / q.sum()
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_klom_is_the_divergence_of_histograms():
    world = World(M=32, N=60, F=20)
    found = klom(world.before, world.retrained, world.keep, world.forget)
    for value, x in zip(found, np.flatnonzero(world.forget), strict=True):
        held = world.keep[:, x]
        expected = naive_klom(
            world.before[held, x, 0].astype(float), world.retrained[~held, x, 0].astype(float)
        )
        assert value == pytest.approx(expected, abs=1e-9)


def test_klom_of_gaussians_and_its_ends():
    """Many models: D(N(d, 1) || N(0, 1)) = d^2 / 2, less what 20 bins lose."""
    M, keep = 40_000, np.tile([[True], [False]], (20_000, 1))
    rng = np.random.default_rng(0)
    fresh = rng.normal(size=(M, 1, 1))
    (found,) = klom(fresh + 1, fresh, keep, np.array([True]))
    assert found == pytest.approx(0.5, abs=0.03)
    # Margins end at 100: all of the unlearned in a bin without any retrained model.
    far, near = np.full((4, 1, 1), 5000.0), np.zeros((4, 1, 1))
    (found,) = klom(far, near, keep[:4], np.array([True]))
    assert found == pytest.approx(np.log((1 + 1e-5) / 1e-5))
    (found,) = klom(far, np.full((4, 1, 1), 200.0), keep[:4], np.array([True]))
    assert found == 0


# --- Direction and the whole ----------------------------------------------------------------------------------------


def test_the_direction_is_the_mean_shift_of_what_was_held():
    world = World(M=16, N=100, F=20)
    after = world.draw(world.rest, shift=-0.8)
    found = direction(after, world.retrained, world.keep, world.forget)
    held = world.keep & world.forget
    assert found.shift.value == pytest.approx((after - world.retrained)[held].mean(dtype=float), rel=1e-5)
    assert found.shift.low < -0.8 < found.shift.high
    assert found.auc.value < 0.5
    assert found.over_forgotten
    assert not direction(world.before, world.retrained, world.keep, world.forget).over_forgotten
    # One outlier moves the mean, and not the AUC.
    outlier = world.draw(world.rest, shift=0.5)
    outlier[:, np.argmax(world.forget)] -= 200
    found = direction(outlier, world.retrained, world.keep, world.forget)
    assert found.shift.high < 0
    assert not found.over_forgotten


@pytest.fixture(scope="module")
def exposed():
    """A few examples stay far out; lowering all confidences on the forget set makes its averages look retrained."""
    N, F = 500, 100
    rng = np.random.default_rng(0)
    gap = np.full(N, 0.7)
    gap[rng.permutation(N)[: N // 10]] = 7
    world = World(M=32, N=N, F=F, gap=gap, hardness=1.0)
    low, high, after = -10.0, 0.0, world.before
    for _ in range(20):
        shift = (low + high) / 2
        after = world.before + np.float32(shift) * world.forget[:, None]
        found = psi_normalised(*ensembles(world, after))
        low, high = (low, shift) if found.estimate.value > 0 else (shift, high)
    return world, after, measure(world.before, after, world.retrained, world.keep, world.forget)


def test_lowered_confidence_fools_the_averages_and_not_u_lira(exposed):
    world, _, figures = exposed
    averages = figures.classical["threshold"][0.5]
    normalised = averages.psi_normalised.estimate
    assert normalised.low < 0 < normalised.high
    efficacy = averages.mia_efficacy
    assert efficacy["after"].value == pytest.approx(efficacy["retrained"].value, abs=0.02)
    for fpr in (0.001, 0.01):
        point, chance = figures.u_lira.tpr_at_fpr[fpr], figures.retrained.tpr_at_fpr[fpr]
        assert point.status == "ok"
        assert point.tpr > 10 * fpr
        assert point.low > chance.high
    # The examples it names are those whose gap was large.
    named = [each.example for each in figures.worst[:5]]
    assert (world.gap[named] == 7).all()
    assert world.forget[named].all()


def test_the_figures_are_what_the_functions_say(exposed):
    world, after, figures = exposed
    keep, forget = world.keep, world.forget
    scores, held = u_lira(after, world.retrained, keep, forget)
    curve = roc(scores, held)
    assert figures.u_lira.auc.value == curve.auc
    assert figures.u_lira.tpr_at_fpr[0.01].tpr == curve.tpr_at(0.01).tpr
    own = retrained_values(world.retrained, keep, forget)
    assert figures.retrained == own
    assert figures.lira["before"].auc.value == roc(*lira_after(world.before, keep, forget)).auc
    leak = figures.update_leakage["difference"]
    for name, models in (("after", after), ("retrained", world.retrained)):
        expected = roc(*update_leakage(world.before, models, keep, forget, attack=None)).auc
        assert leak[name].auc.value == expected
    epsilons = example_epsilons(after, world.retrained, keep, forget)
    assert figures.quality == forgetting_quality(epsilons)
    assert figures.infinite == np.isinf(epsilons).mean()
    assert figures.klom_mean == klom(after, world.retrained, keep, forget).mean()
    assert figures.direction == direction(after, world.retrained, keep, forget)
    fpr, threshold = exposure_threshold(curve)
    assert figures.worst_fpr == fpr == 0.001
    worst = figures.worst[0]
    i = np.flatnonzero(np.flatnonzero(forget) == worst.example)[0]
    assert worst.share == np.mean(scores[held[:, i], i] >= threshold)
    assert worst.phi["after"] == pytest.approx(after[held[:, i], worst.example].mean(dtype=float))
    assert [each.share for each in figures.worst] == sorted(
        (each.share for each in figures.worst), reverse=True
    )
    assert np.isnan(figures.score)
    assert figures.accuracy == {}


def test_the_document_holds_the_figures(exposed):
    world, _, figures = exposed
    evaluation = evaluate_unlearning({"lowered": [figures]}, world.keep, costs={"lowered": 0.1})
    document = json.loads(json.dumps(unlearning_document(evaluation), allow_nan=False))
    assert document["methods"]["lowered"]["cost"] == 0.1
    (document,) = document["methods"]["lowered"]["requests"]
    own = figures.retrained
    assert document["verdict"] == figures.verdict
    assert document["u_lira"]["after"]["auc"]["value"] == figures.u_lira.auc.value
    assert document["u_lira"]["after"]["tpr_at_fpr"]["0.01"]["tpr"] == figures.u_lira.tpr_at_fpr[0.01].tpr
    assert document["u_lira"]["retrained"]["auc"]["high"] == own.auc.high
    assert document["u_lira"]["retrained"]["tpr_at_fpr"]["0.01"]["tpr"] == own.tpr_at_fpr[0.01].value
    assert document["epsilon"]["forgetting_quality"]["retrained"]["low"] == own.quality.low
    assert document["epsilon"]["forgetting_quality"]["after"] == figures.quality
    assert document["epsilon"]["infinite"]["after"] == figures.infinite
    assert document["klom"]["mean"]["after"] == figures.klom_mean
    assert document["direction"]["shift"]["value"] == figures.direction.shift.value
    assert document["lira"]["before"]["auc"]["value"] == figures.lira["before"].auc.value
    leak = document["update_leakage"]["difference"]["retrained"]["auc"]["value"]
    assert leak == figures.update_leakage["difference"]["retrained"].auc.value
    averages = document["classical"]["threshold"]["0.5"]
    assert averages["psi_normalised"]["low"] < 0 < averages["psi_normalised"]["high"]
    assert averages["mia_efficacy"]["after"]["value"] == pytest.approx(
        averages["mia_efficacy"]["retrained"]["value"], abs=0.02
    )
    assert document["worst_fpr"] == 0.001
    assert document["worst"][0]["example"] == figures.worst[0].example
    assert (document["epsilon"]["score"], document["accuracy"]) == (None, {})


def test_accuracies_earlier_requests_and_several_queries():
    world = World(M=8, N=120, F=24)
    forget = world.forget
    latest = forget & (np.cumsum(forget) > 12)
    two = [
        np.concatenate([phi, phi + 0.1], axis=2)
        for phi in (world.before, world.draw(world.rest), world.retrained)
    ]
    accuracy = {
        "retain": (np.full(8, 0.9), np.full(8, 1.0)),
        "test": (np.full(8, 0.8), np.full(8, 0.9)),
        "forget": (np.linspace(0, 1, 8), np.full(8, np.nan)),
    }
    own = retrained_values(two[2], world.keep, forget, redraws=3)
    figures = measure(
        two[0],
        two[1],
        two[2],
        world.keep,
        forget,
        previous=two[2],
        latest=latest,
        accuracy=accuracy,
        fprs=(0.25,),
        worst=3,
        reference=own,
    )
    document = unlearning_document(evaluate_unlearning({"a": [figures]}, world.keep))["methods"]["a"]
    json.dumps(document, allow_nan=False)
    assert document["requests"][0]["accuracy"]["forget"]["retrained"]["value"] is None
    assert figures.score == pytest.approx(figures.quality * 0.9 * 0.8 / 0.9)
    assert figures.accuracy["forget"]["after"].value == pytest.approx(0.5)
    assert np.isnan(figures.accuracy["forget"]["retrained"].value)
    assert list(figures.classical) == ["threshold", "logistic"]
    assert list(figures.classical["threshold"]) == [0.25]
    assert len(figures.worst) == 3
    leak = roc(*update_leakage(two[2], two[1], world.keep, latest, attack=None)).auc
    assert figures.update_leakage["difference"]["after"].auc.value == leak
    # 96 non-members: 0.1 % cannot be resolved, 1 % neither.
    assert figures.u_lira.tpr_at_fpr[0.001].status == "unresolvable"
    assert figures.worst_fpr == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": np.ones((8, 40), bool)}, "the rows of keep are not paired"),
        ({"keep": np.ones((8, 40))}, r"keep must be bool \[models, examples\]"),
        ({"forget": np.zeros(40, bool)}, "forget holds no example"),
        ({"forget": np.zeros(39, bool)}, r"forget must be bool of shape \(40,\)"),
        ({"forget": np.array([3])}, "got int64"),
        ({"forget": np.ones(40, bool)}, "model 0 has no retain examples in the half"),
        (
            {"after": np.zeros((8, 40))},
            r"after must be \[8 models, 40 examples, values\] like keep and before",
        ),
        ({"after": np.zeros((8, 40, 2))}, r"got shape \(8, 40, 2\)"),
        (
            {"after": np.full((8, 40, 1), np.nan)},
            r"after\[0, 0, 0\] is nan: leave that model and its mate out",
        ),
        ({"fprs": (0.1, 1.0)}, "fprs are fractions between 0 and 1; got 1"),
        ({"delta": 1.0}, r"delta must be in \[0, 1\); got 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(change, message):
    world = World(M=8, N=40, F=6)
    arguments = {
        "before": world.before,
        "after": world.before,
        "retrained": world.retrained,
        "keep": world.keep,
        "forget": world.forget,
    }
    with pytest.raises(ValueError, match=message) as error:
        measure(**{**arguments, **change})
    assert "\n" not in str(error.value)


def test_one_redraw_shows_no_spread():
    world = World(M=8, N=40, F=6)
    with pytest.raises(ValueError, match="redraws must be at least 2, to show a spread; got 1"):
        retrained_values(world.retrained, world.keep, world.forget, redraws=1)


# --- Arrays of any kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SINGLE, "bytes"])
def test_measures_do_not_depend_on_how_arrays_are_held(kind):
    rng = np.random.default_rng(0)
    keep, forget = keep_mask(0, 8, 60), np.arange(60) % 3 == 0
    before, after, retrained = rng.integers(0, 60, (3, 8, 60, 2)).astype(np.float32)
    hold = SINGLE.get(kind, lambda values: values.astype(np.uint8))
    as_bool = jnp.asarray if kind == "jax" else np.asfortranarray

    def figures(hold, as_bool):
        b, a, r = map(hold, (before, after, retrained))
        k, f = as_bool(keep), as_bool(forget)
        yield update_leakage(b, a, k, f, attack=None)[0]
        yield u_lira(a, r, k, f)[0]
        yield lira_after(a, k, f)[0]
        yield example_epsilons(a, r, k, f)
        yield klom(a, r, k, f)
        yield from called_members(a, k, f, fprs=(0.1,))
        yield [direction(a, r, k, f).auc.value]

    for found, expected in zip(figures(hold, as_bool), figures(np.asarray, np.asarray), strict=True):
        np.testing.assert_array_equal(found, expected)
