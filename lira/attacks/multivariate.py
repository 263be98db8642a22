"""LiRA's multivariate form: one Gaussian over all queries of an example at once, with their full covariance.

Queries of one example say much the same, and the univariate attack, which averages over them, cannot tell what is new
in each (Carlini et al. 2022, arXiv 2112.03570, section VI-B). A covariance of few models has to be shrunk.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._moments import Walk, float64, side_sums
from lira.attacks._opponents import Group, opponents_of
from lira.attacks._parted import Block, Side
from lira.attacks._pool import Array, Leave, SignalArray

__all__ = ["lira_online_multivariate"]

# The least variance of a query given those before it, relative to the mean variance of the pool: queries that agree
# to float32's rounding say nothing more.
VARIANCE_FLOOR = 2.0**-30
# The default weight of the pooled covariance, in multiples of the Q + 1 models that have a full one.
SHRINKAGE = 16


def lira_online_multivariate(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    shrinkage: float | None = None,
) -> np.ndarray:
    """Online LiRA with one Q-variate Gaussian a side for each example: log N(phi; IN) - log N(phi; OUT).

    The covariance of a side with c models is (1 - s) S / c + s W: S is the scatter about the example's mean, W the mean
    within-example covariance of that side over all examples, both without the target's pair. By default
    s = k / (k + c), k = 16 (Q + 1): W weighs as much as 16 times the models that the smallest full covariance needs,
    which did best, or nearly so, on digits for Q = 1, 2, 9 and 8 to 256 models. s depends on counts alone, so neither
    it nor W says anything about the target's membership.

    With one query, s = 0 is `lira_online`, and s = 1 `lira_online_fixed`. The score is the whole log-likelihood ratio,
    not its mean over queries. Queries may be perfectly correlated: the variance of a query given those before it is
    at least 2^-30 of the pool's mean variance, on both sides alike.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the shadow models. Read in blocks along N, twice.
        keep: bool `[M, N]`, true where the model was trained on the example.
        target: float32 `[T, N, Q]`, models outside the pool; all M shadow models then serve against them. None
            attacks every model of the pool.
        leave: what is left out with a target, as in `lira_online`.
        shrinkage: s in [0, 1], the weight of W, for all examples; None for the default.

    Returns:
        float32 `[T, N]`, higher = more likely a member. Where no example shows any spread, W is the identity.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example has fewer than two models on a side (Q + 1 where `shrinkage` is 0).
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be between 0 and 1, or None; got {shrinkage}")
    opponents = opponents_of(phi, keep, target, leave)
    M, N, Q = opponents.shape
    for side in ("IN", "OUT"):
        if opponents.fewest[side] >= 2:
            remedy = "a shrinkage above 0, which needs two"
        else:
            remedy = "bavaria_online or lira_online_fixed, which need fewer"
        opponents.require("lira_online_multivariate", side, Q + 1 if shrinkage == 0 else 2, remedy)
    # A block holds Q^2 numbers for each target and example.
    shape = (max(M, opponents.num_targets), N, Q * Q)

    def scorer(group: Group) -> Callable[[Block], jax.Array]:
        pooled = _pooled_covariances(opponents.blocks(group, shape=shape))
        return partial(_score, pooled=pooled, shrinkage=shrinkage)

    return opponents.score(scorer, shape=shape)


# --- The arithmetic, float64 under jit, with Q x Q matrices before the targets and examples that share them ---------


def _scatter(values: Array, side: Side) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Count `[T, n]`, mean `[Q, T, n]` and scatter `[Q, Q, T, n]` of a side without what each target removes."""
    values = jnp.moveaxis(values, -1, 0)  # [Q, M, n]
    count = jnp.sum(side.mask, axis=0)
    mean = jnp.sum(jnp.where(side.mask, values, 0.0), axis=1) / jnp.maximum(count, 1)
    deviation = jnp.where(side.mask, values - mean[:, None], 0.0)
    scatter = jnp.einsum("qmn,rmn->qrn", deviation, deviation)
    rest = count - side.removes
    away = jnp.where(side.removes, jnp.moveaxis(side.removed, -1, 0) - mean[:, None], 0.0)
    # mean' = mean - d / (c - 1),  scatter' = scatter - d d^T c / (c - 1)
    lost = away[:, None] * away * (count / jnp.maximum(rest, 1))
    return rest, mean[:, None] - away / jnp.maximum(rest, 1), scatter[:, :, None] - lost


def _pooled_covariances(walk: Walk) -> np.ndarray:
    """Mean within-example covariance of each side for each target, `[2, Q, Q, T]`, from a pass over all examples."""
    pooled = np.stack([scatter / np.maximum(count, 1) for count, scatter in side_sums(walk, _sums)])
    spread = np.trace(pooled, axis1=1, axis2=2)[:, None, None] > 0
    return np.where(spread, pooled, np.eye(pooled.shape[1])[..., None])


@jax.jit
def _sums(block: Block, side: Side) -> tuple[jax.Array, jax.Array]:
    """Over a block's fresh examples, for each target: count `[T]` and scatter `[Q, Q, T]`."""
    count, _, scatter = _scatter(*float64((block.values, side)))
    return (
        jnp.sum(jnp.where(block.fresh, count, 0), axis=-1),
        jnp.sum(jnp.where(block.fresh, scatter, 0.0), axis=-1),
    )


@jax.jit
def _score(block: Block, *, pooled: Array, shrinkage: float | None) -> jax.Array:
    """Scores `[T, n]` of one block."""
    attacked, values, _, inside, outside = float64(block)
    Q = pooled.shape[1]
    floor = VARIANCE_FLOOR * jnp.mean(jnp.trace(pooled, axis1=1, axis2=2) / Q, axis=0)[:, None]
    densities = []
    for side, covariance in zip((inside, outside), pooled, strict=True):
        count, mean, scatter = _scatter(values, side)
        strength = SHRINKAGE * (Q + 1)
        weight = strength / (strength + count) if shrinkage is None else shrinkage
        matrix = (1 - weight) * scatter / count + weight * covariance[..., None]
        densities.append(_log_density(matrix, jnp.moveaxis(attacked, -1, 0) - mean, floor))
    return (densities[0] - densities[1]).astype(jnp.float32)


def _log_density(matrix: Array, deviation: Array, floor: Array) -> Array:
    """Log of the Gaussian density, less its constant, by elimination: `[T, n]` lanes of a `[Q, Q]` and a `[Q]`.

    The q-th pivot is the variance of query q given those before it, and what is then left of its deviation is the
    error of predicting it from them.
    """
    total = jnp.zeros(())
    for _ in range(len(deviation)):
        pivot = jnp.maximum(matrix[0, 0], floor)
        total -= 0.5 * (jnp.square(deviation[0]) / pivot + jnp.log(pivot))
        slopes = matrix[1:, 0] / pivot
        deviation = deviation[1:] - slopes * deviation[0]
        matrix = matrix[1:, 1:] - slopes[:, None] * matrix[0, 1:]
    return total
