"""Whether values, labels and members are of the same examples in the same order.

Rows in another order are the mistake that no shape shows: every figure is then plausible and wrong. Two things give
it away, and both are looked at: logits that agree with the labels no better than chance, and members that look less
like members than non-members do.
"""

import warnings

import numpy as np

from lira.metrics.counting import area, count_points

__all__ = ["FEW_EXAMPLES", "chance_accuracy", "member_z", "require_aligned"]

# Below so many, what looks like another order may be chance.
FEW_EXAMPLES = 30


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


def require_aligned(
    accuracy: np.ndarray,
    z: np.ndarray,
    keep: np.ndarray,
    labels: np.ndarray | None,
    *,
    trust_order: bool = False,
) -> None:
    """Refuse values that cannot belong to these labels, or to these members; warn where they only look so.

    Labels in another order are met as often as they are by chance, in sum over classes share^2. A model that never names
    a rare class, or one of few examples, may do no better than the most common class and be in order.

    Args:
        accuracy: float `[M]`, of each model on its members (all examples where it has none); NaN where unknown.
        z: float `[M]`, see `member_z`; NaN where unknown.
        keep: bool `[M, N]`.
        labels: int `[N]`, if known.
        trust_order: declares that the order is right: nothing is refused, and what would be is a warning.

    Raises:
        ValueError: all models, or some of otherwise good ones, agree with the labels no better than labels in another
            order do; or in every model members look less like members than the others do, beyond four standard errors
            in all. Of fewer than `FEW_EXAMPLES` examples it is a warning.

    Warns:
        UserWarning: they agree with the labels no better than always guessing the most common class; labels of one
            class, which no order contradicts.
    """
    refuses = not trust_order and keep.shape[1] >= FEW_EXAMPLES
    if labels is not None and not np.isnan(accuracy).any():
        _check_labels(accuracy, keep, labels, refuses)
    z = z[~np.isnan(z)]
    if len(z) and (z < 0).all() and z.sum() / np.sqrt(len(z)) < -4:
        _refuse_or_warn(
            "every model is less confident on its members than on the others (AUC below 0.5): membership is inverted, "
            "the values have the wrong sign, or their rows are in another order",
            refuses,
        )


def _check_labels(accuracy: np.ndarray, keep: np.ndarray, labels: np.ndarray, refuses: bool) -> None:
    """As `require_aligned`, of labels that are known."""
    chance, shuffled = chance_accuracy(labels), float(np.square(np.bincount(labels) / len(labels)).sum())
    if chance == 1:
        warnings.warn(
            f"labels hold one class only, {labels[0]}, which {100 * accuracy.mean():.1f} % of the answers name: that rows are "
            f"in the order of the labels cannot be seen",
            stacklevel=4,
        )
        return
    asked = np.where(keep.any(axis=1), keep.sum(axis=1), keep.shape[1])
    error, limit = (np.sqrt(share * (1 - share) / asked) for share in (chance, shuffled))
    # Of few examples the limit may be beyond 1, which is no other order.
    lost = (accuracy <= shuffled + 2 * limit) & (accuracy < 1)
    agreement = (
        f"the logits agree with {100 * accuracy.mean():.1f} % of the labels, and the most common class with "
        f"{100 * chance:.1f} %"
    )
    if accuracy.mean() <= min(shuffled + 2 * limit.mean(), 1 - 1e-9):
        _refuse_or_warn(
            f"{agreement}: labels or rows are in another order (a shuffling data loader?), or the models are not trained",
            refuses,
        )
    elif lost.any() and np.median(accuracy) > shuffled + 6 * limit.max():
        models = ", ".join(map(str, np.flatnonzero(lost)))
        _refuse_or_warn(
            f"the logits of model {models} agree with the labels no better than chance, those of the others with "
            f"{100 * np.median(accuracy):.1f} %: their rows are in another order, or the models are not trained",
            refuses,
        )
    elif accuracy.mean() <= min(chance + 2 * error.mean(), 1 - 1e-9):
        warnings.warn(
            f"{agreement}: where classes are as unequal as here a good model may do no better; otherwise the models are "
            f"not trained, or some rows are in another order",
            stacklevel=4,
        )


def _refuse_or_warn(sentence: str, refuses: bool) -> None:
    if refuses:
        raise ValueError(
            f"{sentence}; if all are in the same order, say so by --trust-order (trust_order=True)"
        )
    warnings.warn(f"{sentence}; or neither, and so few examples, or such data, look so", stacklevel=5)
