"""What scores come to by chance, or at best: the yardsticks of the attacks' tests."""

import numpy as np
from scipy.stats import norm

from lira.metrics import Roc


def figures_of(curves: list[Roc]) -> tuple[np.ndarray, np.ndarray, int]:
    """AUC and TPR at 0.1 % of several pools' curves, `[pools]` each, and the non-members of a pool."""
    aucs = np.array([curve.auc for curve in curves])
    tprs = np.array([curve.realised_tpr(0.001) for curve in curves])
    return aucs, tprs, curves[0].num_nonmembers


def check_chance(aucs: np.ndarray, tprs: np.ndarray, nonmembers: float, *, steps: bool = False) -> None:
    """AUC and TPR at 0.1 % of several pools, `[pools]` each, within 4.5 standard errors of chance.

    Scores within a pool are not independent, pools are. Scores that are `steps` realise a smaller FPR than is allowed,
    so that their TPR has only a ceiling.
    """
    se = max(aucs.std(ddof=1), np.sqrt(1 / (12 * nonmembers))) / np.sqrt(len(aucs))
    assert abs(aucs.mean() - 0.5) < 4.5 * se
    # k = 0.001 n false positives are allowed: the TPR is (k + 1/2 +- sqrt(2k)) / n on average.
    k = np.floor(0.001 * nonmembers)
    se = max(tprs.std(ddof=1), np.sqrt(2 * k) / nonmembers) / np.sqrt(len(tprs))
    if steps:
        assert tprs.mean() < (k + 1) / nonmembers + 4.5 * se
    else:
        assert abs(tprs.mean() - (k + 0.5) / nonmembers) < 4.5 * se + 0.5 / nonmembers


def check_gaussian(curve: Roc, distance: float, fprs: tuple[float, ...] = (0.001, 0.01, 0.1)) -> None:
    """The curve of N(0, 1) against N(distance, 1), within 4.5 standard errors: TPR = Phi(Phi^-1(FPR) + distance)."""
    n = curve.num_nonmembers
    assert abs(curve.auc - norm.cdf(distance / np.sqrt(2))) < 4.5 * np.sqrt(1 / (6 * n))
    for fpr in fprs:
        truth = norm.cdf(norm.ppf(fpr) + distance)
        # The threshold is chosen on the n non-members, and moves along the curve's slope.
        slope = norm.pdf(norm.ppf(truth)) / norm.pdf(norm.ppf(fpr))
        se = np.sqrt((truth * (1 - truth) + slope**2 * fpr * (1 - fpr)) / n)
        assert abs(curve.realised_tpr(fpr) - truth) < 4.5 * se
