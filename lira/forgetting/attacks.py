"""Attacks on unlearning: who can tell a model that unlearned an example from one that never saw it?

Each gives scores and membership for `metrics.roc`, on the forget set alone, whose members are the examples that the
model held and unlearned. All attack every model by the others with its pair left out.
"""

from typing import Protocol

import numpy as np

from lira.attacks import global_threshold, lira_online_fixed
from lira.forgetting._check import as_ensembles, joined_pool

__all__ = ["FPRS", "Attack", "lira_after", "u_lira", "update_leakage"]


# At which TPRs of attacks with shadow models are given.
FPRS = (1e-3, 1e-2)


class Attack(Protocol):
    """An attack of `lira.attacks` that takes phi and keep."""

    def __call__(self, phi: np.ndarray, keep: np.ndarray, /) -> np.ndarray: ...


def u_lira(
    after: np.ndarray,
    retrained: np.ndarray,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    attack: Attack = lira_online_fixed,
) -> tuple[np.ndarray, np.ndarray]:
    """U-LiRA: unlearned against retrained models, example by example (Hayes et al. 2024, arXiv 2403.01218).

    The score is the attack's on the pool in which a model that held an example is the unlearned one, and a model that
    did not is the retrained one: for LiRA the log-likelihood ratio of phi under the unlearned shadow models against
    the retrained ones. It is two-sided by nature. A method that pushes phi far below that of retrained models is
    found as surely as one that leaves it above.

    Exact retraining scores at chance: nothing then tells the two sides apart. How far from 1/2 chance strays is what
    `retrained_values` says.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models.
        retrained: float `[M, N, Q]`, phi of model m trained from scratch on what it held, less the forget set.
        keep: bool `[M, N]`, what the original models held; complementary pairs.
        forget: bool `[N]`.
        attack: LiRA with fixed variance by default, the better one below some 64 models.

    Returns:
        Scores, float32 `[M, F]`, higher = more likely unlearned rather than never seen; and bool `[M, F]`, true where
        it was.

    Raises:
        ValueError: shapes disagree, rows are not paired, the forget set is empty, or what the attack raises.
    """
    keep, forget, after, retrained = as_ensembles(keep, forget, after=after, retrained=retrained)
    pool, held = joined_pool(after, retrained, keep, forget)
    return attack(pool, held), held


def lira_after(
    models: np.ndarray, keep: np.ndarray, forget: np.ndarray, *, attack: Attack = lira_online_fixed
) -> tuple[np.ndarray, np.ndarray]:
    """The membership attack itself, within one set of models: forgotten examples that a model held, or did not.

    Without retrained models: on the original ones it is plain LiRA on the forget set; on unlearned ones it shows what
    is left of it. A method that also moves examples of the forget set that a model never held can hide here, and not
    from `u_lira`.

    Args:
        models: float `[M, N, Q]`, phi of the original or of the unlearned models.
        keep: bool `[M, N]`.
        forget: bool `[N]`.
        attack: as in `u_lira`.

    Returns:
        Scores, float32 `[M, F]`, and bool `[M, F]`. Errors are those of `u_lira`.
    """
    keep, forget, models = as_ensembles(keep, forget, models=models)
    held = keep[:, forget]
    return attack(models[:, forget], held), held


def update_leakage(
    before: np.ndarray,
    after: np.ndarray,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    attack: Attack | None = lira_online_fixed,
) -> tuple[np.ndarray, np.ndarray]:
    """What the update gives away to one who sees the model before and after it (arXiv 2405.19211).

    The signal is `before - after`: how far phi fell. Members are the examples that were deleted from the model,
    non-members those of the same forget set that it never held. Exact retraining leaks in this way, too: to have been
    trained on an example and then not is a change. So a value above chance is a fault only beside retraining's own,
    which is that of `before` and `retrained`.

    Args:
        before: float `[M, N, Q]`, phi before this request.
        after: float `[M, N, Q]`, phi after it.
        keep: bool `[M, N]`.
        forget: bool `[N]`, what this request deletes.
        attack: on the difference; None scores by the difference itself, averaged over queries, which takes no shadow
            models.

    Returns:
        Scores, float32 `[M, F]`, higher = more likely deleted by the update, and bool `[M, F]`. Errors are those of
        `u_lira`.
    """
    keep, forget, before, after = as_ensembles(keep, forget, before=before, after=after)
    held = keep[:, forget]
    return (attack or global_threshold)(before[:, forget] - after[:, forget], held), held
