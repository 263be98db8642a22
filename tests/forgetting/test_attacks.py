"""The likelihood ratio of unlearned against retrained models, and what updates leak."""

import numpy as np
import pytest
from forgetting_worlds import World
from scipy.stats import norm

from lira.attacks import lira_offline, lira_online_fixed
from lira.forgetting import (
    lira_after,
    retrained_values,
    u_lira,
    update_leakage,
)
from lira.metrics import roc


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


def test_one_redraw_shows_no_spread():
    world = World(M=8, N=40, F=6)
    with pytest.raises(ValueError, match="redraws must be at least 2, to show a spread; got 1"):
        retrained_values(world.retrained, world.keep, world.forget, redraws=1)
