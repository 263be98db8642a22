"""IMIA, scores against models that imitate one target (Du et al. 2025, arXiv 2509.06796), on arrays.

The target's own answers shaped the imitators by design, so it is exempt from the rule that nothing used may depend on a
target. What must still not depend on its membership: which examples the imitators were trained on.

GLiRA (arXiv 2405.07562) needs no function of its own. It is offline LiRA whose shadow models were distilled from the target:
`lira_offline(imitators, keep, target=phi[None])`.
"""

import numpy as np

from lira.attacks._pool import UnfitPoolError

__all__ = ["imia"]


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
    phi = np.asarray(phi)
    if phi.ndim != 2:
        raise ValueError(f"phi of the target must be [N, Q], got shape {phi.shape}")
    if not np.isfinite(phi).all():
        raise ValueError("phi of the target is not finite; leave a diverged target out")
    outside = _mean(imitators, ~_mask(imitators_keep, "imitators_keep"), phi, "imitators", "OUT imitator")
    inside = _mean(shadows, _mask(shadows_keep, "shadows_keep"), phi, "shadows", "IN shadow model")
    # The difference of squares, factored: nothing cancels where phi is far from two means that are close together.
    scores = (inside - outside) * ((phi - outside) + (phi - inside))
    return scores.mean(axis=1).astype(np.float32)


def _mask(keep: np.ndarray, name: str) -> np.ndarray:
    keep = np.asarray(keep)
    if keep.dtype != bool:
        raise ValueError(f"{name} must be bool, got {keep.dtype}")
    return keep


def _mean(values: np.ndarray, mask: np.ndarray, phi: np.ndarray, name: str, who: str) -> np.ndarray:
    """Mean of `values [K, N, Q]` over the models of `mask [K, N]`, float64 `[N, Q]`."""
    values = np.asarray(values)
    if values.ndim != 3 or values.shape[1:] != phi.shape or mask.shape != values.shape[:2]:
        raise ValueError(
            f"{name} must be [K, N, Q] with N, Q = {phi.shape}, the target's, and its mask [K, N]; "
            f"got shapes {values.shape} and {mask.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} are not finite; leave diverged models out")
    empty = np.flatnonzero(~mask.any(axis=0))
    if empty.size:
        raise UnfitPoolError(
            f"imia: {empty.size} examples, the first is {empty[0]}, have no {who}; "
            "give more models, or use global_threshold, which needs none"
        )
    return values.mean(axis=0, where=mask[..., None], dtype=np.float64)
