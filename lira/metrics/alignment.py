"""Whether values, labels and members are of the same examples in the same order.

Rows in another order are the mistake that no shape shows: every figure is then plausible and wrong. Two things give
it away, and both are looked at: logits that agree with the labels no better than chance, and members that look less
like members than non-members do.
"""

import numpy as np

from lira.metrics.counting import area, count_points

__all__ = ["chance_accuracy", "member_z", "require_aligned"]


# --- Order ----------------------------------------------------------------------------------------------------------


def chance_accuracy(labels: np.ndarray) -> float:
    """The share of the most common class: the accuracy that needs no model."""
    return float(np.bincount(labels).max() / len(labels))


def member_z(phi: np.ndarray, keep: np.ndarray) -> float:
    """How many standard errors above 1/2 a model's own AUC is: the Mann-Whitney statistic.

    Args:
        phi: float `[N]` or `[N, Q]`, of one model; queries are averaged.
        keep: bool `[N]`.

    Returns:
        z, positive where members have the larger phi; NaN without members or non-members, or where a phi is NaN. Ties count one half.
    """
    values = phi if phi.ndim == 1 else phi.mean(axis=1, dtype=np.float64)
    if np.isnan(values).any():
        return float("nan")
    false, true = count_points(values, keep)
    return float((area(false, true) - 0.5) * np.sqrt(12 * true[-1] * false[-1] / (len(keep) + 1)))


def require_aligned(accuracy: np.ndarray, z: np.ndarray, keep: np.ndarray, labels: np.ndarray | None) -> None:
    """Refuse values that cannot belong to these labels, or to these members.

    Args:
        accuracy: float `[M]`, of each model on its members (all examples where it has none); NaN where unknown.
        z: float `[M]`, see `member_z`; NaN where unknown.
        keep: bool `[M, N]`.
        labels: int `[N]`, if known.

    Raises:
        ValueError: all models, or some of otherwise good ones, agree with the labels no better than always guessing
            the most common class; or in every model members look less like members than the others do, beyond four
            standard errors in all.
    """
    if labels is not None and not np.isnan(accuracy).any():
        chance = chance_accuracy(labels)
        asked = np.where(keep.any(axis=1), keep.sum(axis=1), keep.shape[1])
        error = np.sqrt(chance * (1 - chance) / asked)
        lost = accuracy <= chance + 2 * error
        if accuracy.mean() <= chance + 2 * error.mean():
            raise ValueError(
                f"the logits agree with {100 * accuracy.mean():.1f} % of the labels, and the most common class with {100 * chance:.1f} %: "
                f"labels or rows are in another order (a shuffling data loader?), or the models are not trained"
            )
        if lost.any() and np.median(accuracy) > chance + 6 * error.max():
            models = ", ".join(map(str, np.flatnonzero(lost)))
            raise ValueError(
                f"the logits of model {models} agree with the labels no better than chance, those of the others with "
                f"{100 * np.median(accuracy):.1f} %: their rows are in another order, or the models are not trained"
            )
    z = z[~np.isnan(z)]
    if len(z) and (z < 0).all() and z.sum() / np.sqrt(len(z)) < -4:
        raise ValueError(
            "every model is less confident on its members than on the others (AUC below 0.5): membership is inverted, "
            "the values have the wrong sign, or their rows are in another order"
        )
