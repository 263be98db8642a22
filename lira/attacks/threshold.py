"""The global threshold: the attack that needs no shadow model, and the line that LiRA must beat."""

import numpy as np

from lira.attacks._pool import SignalArray, blocks, check_pool, read_block

__all__ = ["global_threshold"]


def global_threshold(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: str = "pair"
) -> np.ndarray:
    """Score by phi itself, averaged over queries (Yeom et al. 2018's loss threshold, in logit scale).

    One threshold for all examples: no shadow model is consulted, so `keep` and `leave` are only checked.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool.
        keep: bool `[M, N]`.
        target: float32 `[T, N, Q]`, outside targets; None attacks every model of the pool.
        leave: as for every attack.

    Returns:
        float32 `[T, N]`, higher = more likely a member.
    """
    M, N, Q = check_pool(phi, keep, target, leave)
    attacked, name = (phi, "phi") if target is None else (target, "target")
    scores = np.empty((attacked.shape[0], N), np.float32)
    for examples, _ in blocks(M, N, Q):
        scores[:, examples] = read_block(attacked, examples, name).mean(axis=2, dtype=np.float64)
    return scores
