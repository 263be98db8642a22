"""The likelihood ratio where the truth is known: closed forms of Gaussians, and chance where there is no signal."""

from functools import partial

import numpy as np
import pytest
import scipy.stats
from chance import check_chance
from scipy.stats import norm
from shadow_pools import gaussian_pool

from lira import attacks
from lira.membership import keep_mask
from lira.metrics import roc

LIRA = ("lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed")
ALL = (*LIRA, "global_threshold")

pytestmark = pytest.mark.filterwarnings(
    "ignore::lira.attacks.FewModelsWarning", "ignore::lira.attacks.FlooredVarianceWarning"
)


def pooled_tpr(scores, keep, fpr):
    return roc(scores, keep).tpr_at(fpr)


@pytest.mark.parametrize("name", LIRA)
def test_known_gaussians_meet_the_closed_form(name):
    """IN N(d, 1), OUT N(0, 1): the best attack has TPR = Phi(Phi^-1(FPR) + d).

    Outside targets against 2,048 models, whose estimation error costs less than the interval's width.
    """
    d = 2.0
    phi, keep, target, keep_target = gaussian_pool(2048, 16, 4000, d)
    scores = getattr(attacks, name)(phi, keep, target=target)
    for fpr in (0.001, 0.01, 0.1):
        point = pooled_tpr(scores, keep_target, fpr)
        assert point.low <= norm.cdf(norm.ppf(fpr) + d) <= point.high, fpr


def test_per_example_variances_attain_the_neyman_pearson_curve():
    """Examples of differing strength d_n: one likelihood-ratio threshold for all is best, by quadrature over d."""
    rng = np.random.default_rng(2)
    M, T, N = 2048, 16, 4000
    strength = rng.uniform(0.2, 4, N)
    spread = rng.uniform(0.5, 2, (1, N, 1))
    keep, keep_target = keep_mask(0, M, N), keep_mask(1, T, N)

    def draw(members):
        noise = rng.standard_normal((*members.shape, 1), dtype=np.float32)
        return ((noise + (strength * members)[..., None]) * spread).astype(np.float32)

    phi, target = draw(keep), draw(keep_target)

    # log LR of example n is N(-d^2/2, d^2) for non-members and N(d^2/2, d^2) for members.
    def rate(threshold, sign):
        return norm.sf((threshold - sign * strength**2 / 2) / strength).mean()

    scores = attacks.lira_online(phi, keep, target=target)
    for fpr in (0.001, 0.01, 0.1):
        threshold = scipy.optimize.brentq(lambda t, fpr=fpr: rate(t, -1) - fpr, -20, 40)
        point = pooled_tpr(scores, keep_target, fpr)
        assert point.low <= rate(threshold, 1) <= point.high, fpr


def signalless(M):
    """Models of M that carry no signal where the others do, in pairs."""
    return max(2, M // 8)


def null_statistics(attack, M, N, pools, signal):
    """Pooled AUC and TPR at 0.1 % over several pools in which the attacked pairs carry no signal: all, or a few of many."""
    aucs, tprs = [], []
    for seed in range(pools):
        rng = np.random.default_rng([seed, M])
        keep = keep_mask(seed, M, N)
        phi = rng.normal(size=(M, N, 1)) + signal * keep[..., None]
        rows = slice(0, M)
        if signal:
            rows = slice(0, signalless(M))
            phi[rows] = rng.normal(size=phi[rows].shape) + signal / 2
        curve = roc(attack(phi.astype(np.float32), keep)[rows], keep[rows])
        aucs.append(curve.auc)
        tprs.append(curve.realised_tpr(0.001))
    return np.array(aucs), np.array(tprs)


@pytest.mark.parametrize("M", [4, 8, 16, 64])
@pytest.mark.parametrize("name", ALL)
def test_pure_noise_is_at_chance(name, M):
    if M == 4 and name in ("lira_online", "lira_offline"):
        with pytest.raises(ValueError, match=f"{name} needs 2 .* models.*has 1: use {name}_fixed"):
            null_statistics(getattr(attacks, name), M, 100, 1, 0)
        return
    N = 40_000 // M
    for convention in ("paper", "original") if name in LIRA else (None,):
        attack = partial(getattr(attacks, name), **({"convention": convention} if convention else {}))
        check_chance(*null_statistics(attack, M, N, 6, 0.0), M * N / 2)


@pytest.mark.parametrize("M", [4, 8, 16, 64])
@pytest.mark.parametrize("name", LIRA)
def test_signal_in_the_shadow_models_but_not_in_the_target_is_at_chance(name, M):
    if M == 4 and name in ("lira_online", "lira_offline"):
        return
    attacked = signalless(M)
    N = 8000 // attacked
    check_chance(*null_statistics(getattr(attacks, name), M, N, 6, 2.0), attacked * N / 2)
