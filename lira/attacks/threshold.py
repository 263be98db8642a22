"""Thresholds on one signal of the attacked model: the attacks that need no shadow model, and what LiRA must beat.

All examples share one threshold. No shadow model is consulted, so nothing of a target's membership can enter its
scores; `keep` and `leave` are only checked. The five agree on a single query up to what their signals see: loss,
confidence and phi are increasing functions of each other and rank alike; they differ in how queries are averaged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from lira.attacks._pool import Array, Leave, SignalArray, blocks, check_pool, read_block, scoring
from lira.numbers import as_array

__all__ = [
    "confidence_threshold",
    "entropy_threshold",
    "global_threshold",
    "loss_threshold",
    "modified_entropy_threshold",
]


def global_threshold(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Score by phi itself, averaged over queries (Yeom et al. 2018's loss threshold, in logit scale).

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`.
        target: float32 `[T, N, Q]`, outside targets; None attacks every model of the pool.
        leave: as for every attack.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
    """
    return _threshold(_mean, phi, keep, target, leave, "phi")


def loss_threshold(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Score by the cross-entropy loss, averaged over queries; lower = member (Yeom et al. 2018, section 3.2).

    The score is the phi that has this mean loss, `-log(exp(mean softplus(-phi)) - 1)`, an increasing function of
    -loss: it ranks as -loss does, but where -loss is -0 for every phi above 104 in float32, it stays apart.
    With one query it is phi. The loss itself is `softplus(-score)`. Of several queries the worst weighs most.
    Arguments, result and errors are those of `global_threshold`.
    """
    return _threshold(_phi_of_mean_loss, phi, keep, target, leave, "phi")


def confidence_threshold(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Score by the label's probability, averaged over queries (Salem et al. 2019, section V).

    The score is the phi that has this mean confidence, `logit(mean sigmoid(phi))`, an increasing function of it:
    confidences above phi = 17 are all 1 in float32 (37 in float64), and such ties fill the tail that low false-positive
    rates live on. With one query it is phi. The confidence itself is `sigmoid(score)`.
    Arguments, result and errors are those of `global_threshold`.
    """
    return _threshold(_phi_of_mean_confidence, phi, keep, target, leave, "phi")


def entropy_threshold(
    entropy: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Score by minus the entropy of the softmax, averaged over queries (Salem et al. 2019): no label is needed.

    Args:
        entropy: float32 `[M, N, Q]` in nats, the stored signal in place of phi.
        keep: bool `[M, N]`.
        target: float32 `[T, N, Q]`, the entropies of outside targets; None attacks every model of the pool.
        leave: as for every attack.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or an entropy is not finite or is negative, as phi would be.
    """
    return _threshold(_negative_mean, entropy, keep, target, leave, "entropy")


def modified_entropy_threshold(
    modified_entropy: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
) -> np.ndarray:
    """Score by minus the modified entropy, averaged over queries (Song & Mittal 2021, Eq. 8).

    `-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)`: unlike the entropy it is large where a wrong class is sure.
    The argument is that stored signal, float32 `[M, N, Q]`; the rest is as in `entropy_threshold`.
    """
    return _threshold(_negative_mean, modified_entropy, keep, target, leave, "modified_entropy")


def _threshold(
    score: Callable[[np.ndarray], Array],
    signal: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    name: str,
) -> np.ndarray:
    """Apply `score`, from float `[T, n, Q]` to `[T, n]`, to what is attacked, block by block in float64."""
    M, N, Q = check_pool(signal, as_array(keep), target, leave, name)
    attacked, called = (signal, name) if target is None else (target, "target")
    scores = np.empty((attacked.shape[0], N), np.float32)
    with scoring(signal, target):
        for examples, _ in blocks(max(M, len(scores)), N, Q):
            scores[:, examples] = score(read_block(attacked, examples, called))
    return scores


def _mean(phi: np.ndarray) -> np.ndarray:
    return phi.mean(axis=2, dtype=np.float64)


def _negative_mean(entropy: np.ndarray) -> np.ndarray:
    # A computed entropy may be a rounding error below zero.
    if entropy.min() < -1e-4:
        raise ValueError(f"an entropy is at least 0; got {entropy.min():g}: pass the stored entropy, not phi")
    return -_mean(entropy)


@jax.jit
def _phi_of_mean_loss(phi: Array) -> Array:
    """-log(expm1(L)) of the mean loss L, from log L: L itself underflows from phi = 745 on."""
    loss = jax.nn.softplus(-phi.astype(jnp.float64))
    # From phi = 40 on softplus(-phi) is exp(-phi) to float64's last digit.
    log_loss = jnp.where(phi > 40, -phi, jnp.log(jnp.where(phi > 40, 1, loss)))
    log_mean = _log_mean_exp(log_loss)
    mean = jnp.exp(log_mean)
    # expm1(L) is L to the last digit where L is tiny, exp(L) (1 - exp(-L)) elsewhere.
    tiny = mean < 1e-17
    return -jnp.where(tiny, log_mean, mean + jnp.log(-jnp.expm1(-jnp.where(tiny, 1, mean))))


@jax.jit
def _phi_of_mean_confidence(phi: Array) -> Array:
    """log(mean p) - log(mean (1 - p))."""
    phi = phi.astype(jnp.float64)
    return _log_mean_exp(jax.nn.log_sigmoid(phi)) - _log_mean_exp(jax.nn.log_sigmoid(-phi))


def _log_mean_exp(values: Array) -> Array:
    """Log of the mean of exponentials over the last axis."""
    return logsumexp(values, axis=-1) - np.log(values.shape[-1])
