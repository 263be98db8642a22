"""What exact retraining would score: the retrained models' own values, by redrawing who counts as unlearned.

Retrained models never saw the forget set. To call some of them "unlearned" by fresh coins, in complementary pairs as the
real ones fell, is to compare one retraining with another. So the figures of many redraws are those that exact retraining
would get, with their bias (no epsilon or KLoM of few models is 0) and with the spread that comes of leaning on the same
shadow models, which an AUC's own interval does not see: on pure noise that interval holds 1/2 in 82 % of pools (M = 128 and
32, F = 100; simulated), and this range the AUC of another retraining in 94 % (quality and KLoM in 87-91 %; M = 32, F = 50).
It is conditional on the retrained models, and assumes that what shifts all of a model's phi at once is small beside what
moves single examples (as large, 78 %).
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from lira.attacks import lira_online_fixed
from lira.forgetting._check import Ensemble, of_forgotten
from lira.forgetting.attacks import FPRS, Attack, u_lira
from lira.forgetting.ensembles import example_epsilons, forgetting_quality, klom
from lira.membership import keep_mask
from lira.metrics import Estimate, roc

__all__ = ["RetrainedValues", "retrained_values"]


class RetrainedValues(NamedTuple):
    """What exact retraining scores: the mean over redraws, and the range that holds 95 % of retrainings."""

    auc: Estimate  # of U-LiRA
    tpr_at_fpr: dict[float, Estimate]
    infinite: Estimate  # share of examples with an infinite epsilon
    quality: Estimate  # forgetting quality
    klom_mean: Estimate
    klom_95: Estimate  # 95th percentile over examples


def retrained_values(
    retrained: Ensemble,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    attack: Attack = lira_online_fixed,
    delta: float = 1e-5,
    redraws: int = 40,
    seed: int = 0,
) -> RetrainedValues:
    """The retrained models' own values; they do not depend on the method, so they serve all methods of a request.

    Args:
        retrained: float `[M, N, Q]`, phi of models trained from scratch without the forget set; read a model at a time.
        keep: bool `[M, N]`, what the original models held; complementary pairs. Only its shape is used.
        forget: bool `[N]`.
        attack: as in `u_lira`.
        delta: as in `example_epsilons`.
        redraws: at least 2. The ranges are Student's t for one more retraining.
        seed: of the coins.

    Raises:
        ValueError: fewer than two redraws, or what `u_lira` and `example_epsilons` raise.
    """
    if redraws < 2:
        raise ValueError(f"redraws must be at least 2, to show a spread; got {redraws}")
    _, every, models = of_forgotten(keep, forget, retrained=retrained)
    M, F, _ = models.shape
    figures = []
    for redraw in range(redraws):
        coins = keep_mask(seed * redraws + redraw, M, F)
        curve = roc(*u_lira(models, models, coins, every, attack=attack))
        epsilons = example_epsilons(models, models, coins, every, delta=delta)
        divergence = klom(models, models, coins, every)
        figures.append(
            (
                curve.auc,
                *(curve.realised_tpr(fpr) for fpr in FPRS),
                np.mean(np.isinf(epsilons)),
                forgetting_quality(epsilons),
                np.mean(divergence),
                np.quantile(divergence, 0.95),
            )
        )
    values = np.array(figures)
    spread = special.stdtrit(redraws - 1, 0.975) * np.sqrt(1 + 1 / redraws) * values.std(axis=0, ddof=1)
    highest = [1.0] * (len(FPRS) + 3) + [np.inf] * 2
    auc, *tprs, infinite, quality, klom_mean, klom_95 = (
        Estimate.around(mean, margin, 0, top)
        for mean, margin, top in zip(values.mean(axis=0), spread, highest, strict=True)
    )
    tpr_at_fpr = dict(zip(FPRS, tprs, strict=True))
    return RetrainedValues(auc, tpr_at_fpr, infinite, quality, klom_mean, klom_95)
