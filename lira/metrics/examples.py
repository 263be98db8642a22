"""Which examples are at risk: per-example vulnerability."""

import numpy as np

from lira.metrics._shared import check_scores, ratio

__all__ = ["example_tpr"]


def example_tpr(scores: np.ndarray, keep: np.ndarray, threshold: float) -> np.ndarray:
    """Per-example vulnerability: the share of the models that hold an example whose score for it reaches `threshold`.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        threshold: one for all, such as that of a global FPR.

    Returns:
        float64 `[N]`, NaN for an example that no target holds.
    """
    scores, keep = check_scores(scores, keep)
    return ratio((keep & (scores >= threshold)).sum(axis=0), keep.sum(axis=0))
