"""IMIA, scores against models that imitate one target (Du et al. 2025, arXiv 2509.06796), on arrays.

The target's own answers shaped the imitators by design, so it is exempt from the rule that nothing used may depend on a
target. What must still not depend on its membership: which examples the imitators were trained on.

GLiRA (arXiv 2405.07562) needs no function of its own. It is offline LiRA whose shadow models were distilled from the target:
`lira_offline(imitators, keep, target=phi[None])`.
"""

import numpy as np

from lira.attacks._pool import UnfitPoolError
from lira.numbers import as_array, native_floats

__all__ = ["imia", "imia_nonadaptive"]


def imia(
    phi: np.ndarray,
    imitators: np.ndarray,
    imitators_keep: np.ndarray,
    shadows: np.ndarray,
    shadows_keep: np.ndarray,
) -> np.ndarray:
    """(phi - mu_out)^2 - (phi - mu_in)^2, mean over queries; the paper's adaptive form.

    mu_out is the mean of the imitators that were not trained on the example, mu_in that of the ordinary models that were.
    With equal variances this is the log-likelihood ratio of two Gaussians, but for a constant factor.

    Args:
        phi: `[N, Q]`, logit-scaled confidences of the target.
        imitators: `[K, N, Q]`, those of models that imitate it.
        imitators_keep: bool `[K, N]`, true where an imitator was trained on the example; independent of the target's.
        shadows: `[M, N, Q]`, those of ordinary models, without the target and its complementary mate.
        shadows_keep: bool `[M, N]`, their membership.

    Returns:
        float32 `[N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, a mask is not bool, or an array is not finite.
        UnfitPoolError: an example has no OUT imitator or no IN model.
    """
    phi = _checked(phi)
    outside = _mean(imitators, ~_mask(imitators_keep, "imitators_keep"), phi, "imitators", "OUT imitator")
    inside = _mean(shadows, _mask(shadows_keep, "shadows_keep"), phi, "shadows", "IN shadow model")
    return _score(phi, outside, inside)


def imia_nonadaptive(
    phi: np.ndarray,
    imitators: np.ndarray,
    imitators_keep: np.ndarray,
    pivoted: np.ndarray,
    pivoted_keep: np.ndarray,
    pivots: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """(phi - mu_out)^2 - (phi - mu_in)^2, mean over queries; the paper's non-adaptive form: no model has seen the example.

    mu_out is the median of the imitators that were not trained on x. mu_in is guessed from other examples: the median of
    what further trained models, again those that were not trained on x, say of the pivots of x's class that they were
    trained on. Both are medians as in the authors' code (zealscott/IMIA, imianonadaptive.py).

    What differs there: the attacker's own data are a third of a data set, apart from what is attacked, so that every model is
    OUT of every x and pivots are of no member; here examples are each other's, and what is OUT is told by the models'
    memberships, which are independent of the target's. A further trained model sees those of the pivots that are its own
    (a quarter of the pool) and goes on with its optimizer and schedule from the end of the warm-up, where the authors begin
    anew, for 20 epochs, and take the best accuracy's. Scores are not set to 0 where mu_in lies below mu_out.

    Args:
        phi: `[N, Q]`, logit-scaled confidences of the target.
        imitators: `[K, N, Q]`, those of models that imitate it.
        imitators_keep: bool `[K, N]`, true where an imitator was trained on the example; independent of the target's.
        pivoted: `[L, N, Q]`, those of models that were trained further on pivots.
        pivoted_keep: bool `[L, N]`, what they were trained on before; of that they have seen the pivots further.
        pivots: bool `[N]`, which examples are pivots, see `learning.imitation.pivots_of`.
        labels: int `[N]`.

    Returns:
        float32 `[N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, a mask is not bool, or an array is not finite.
        UnfitPoolError: an example has no OUT imitator, or no OUT model that has seen a pivot of its class.
    """
    phi = _checked(phi)
    keep = _mask(imitators_keep, "imitators_keep")
    imitators = _answers(imitators, keep, phi, "imitators")
    _require(~keep, "OUT imitator")
    outside = np.nanmedian(np.where(~keep[..., None], imitators, np.nan), axis=0)
    held, pivots, labels = _mask(pivoted_keep, "pivoted_keep"), _mask(pivots, "pivots"), as_array(labels)
    pivoted = _answers(pivoted, held, phi, "pivoted")
    if pivots.shape != labels.shape or labels.shape != phi.shape[:1]:
        raise ValueError(
            f"pivots and labels must be [{len(phi)}], one for each example; got {pivots.shape} and {labels.shape}"
        )
    inside = _of_pivots(pivoted, held, pivots, labels)
    _require(~np.isnan(inside[None, :, 0]), "pivot of its class in a model that has not seen it")
    return _score(phi, outside, inside)


def _of_pivots(values: np.ndarray, held: np.ndarray, pivots: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each example the median over its OUT models of the pivots of its class that they hold, `[N, Q]`; NaN without."""
    inside = np.full(values.shape[1:], np.nan)
    # Examples of one class that the same models have not seen share theirs.
    kinds, of_example = np.unique(np.vstack([labels, held]), axis=1, return_inverse=True)
    for number, (label, *seen) in enumerate(kinds.T):
        models = np.flatnonzero(np.array(seen) == 0)
        at = np.flatnonzero(pivots & (labels == label))
        known = values[np.ix_(models, at)][held[np.ix_(models, at)]]
        if len(known):
            inside[of_example.reshape(-1) == number] = np.median(known, axis=0)
    return inside


def _score(phi: np.ndarray, outside: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The difference of squares, factored: nothing cancels where phi is far from two means that are close together."""
    scores = (inside - outside) * ((phi - outside) + (phi - inside))
    return scores.mean(axis=1).astype(np.float32)


def _checked(phi: np.ndarray) -> np.ndarray:
    """Phi of a target as floats `[N, Q]`."""
    phi = native_floats(phi)
    if phi.ndim != 2:
        raise ValueError(f"phi of the target must be [N, Q], got shape {phi.shape}")
    if not np.isfinite(phi).all():
        raise ValueError("phi of the target is not finite; leave a diverged target out")
    return phi


def _mask(keep: np.ndarray, name: str) -> np.ndarray:
    keep = as_array(keep)
    if keep.dtype != bool:
        raise ValueError(f"{name} must be bool, got {keep.dtype}")
    return keep


def _answers(values: np.ndarray, mask: np.ndarray, phi: np.ndarray, name: str) -> np.ndarray:
    """What models say, float64 `[K, N, Q]`, of the shapes of their mask `[K, N]` and the target's phi `[N, Q]`."""
    values = native_floats(values)
    if values.ndim != 3 or values.shape[1:] != phi.shape or mask.shape != values.shape[:2]:
        raise ValueError(
            f"{name} must be [K, N, Q] with N, Q = {phi.shape}, the target's, and its mask [K, N]; "
            f"got shapes {values.shape} and {mask.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} are not finite; leave diverged models out")
    return values.astype(np.float64)


def _require(mask: np.ndarray, who: str) -> None:
    """Raise UnfitPoolError where a column of `mask [K, N]` is empty."""
    empty = np.flatnonzero(~mask.any(axis=0))
    if empty.size:
        raise UnfitPoolError(
            f"imia: {empty.size} examples, the first is {empty[0]}, have no {who}; "
            "give more models, or use global_threshold, which needs none"
        )


def _mean(values: np.ndarray, mask: np.ndarray, phi: np.ndarray, name: str, who: str) -> np.ndarray:
    """Mean of `values [K, N, Q]` over the models of `mask [K, N]`, float64 `[N, Q]`."""
    values = _answers(values, mask, phi, name)
    _require(mask, who)
    return values.mean(axis=0, where=mask[..., None])
