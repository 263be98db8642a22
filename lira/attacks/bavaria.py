"""BaVarIA (arXiv 2603.11799): LiRA whose Gaussians are shrunk, each example's to those of the whole pool.

Mean and variance of an example's phi carry a normal-inverse-gamma prior, centred on what all examples show, so that one
model a side is enough, or none. IN and OUT have priors of their own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from lira.attacks._averages import over_queries
from lira.attacks._moments import PooledSums, float64, moments, pooled_sums
from lira.attacks._opponents import Group, opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import Array, Leave, SignalArray

__all__ = ["bavaria_offline", "bavaria_online"]

# The prior's weight, in models, on the mean (kappa_0), and half of that on the variance (alpha_0).
KAPPA, ALPHA = 1.0, 2.0
Prior = tuple[Array, Array]  # pooled mean and total variance of a side for each target, [T]


def bavaria_online(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Online BaVarIA, Student's t form: log t(phi; IN) - log t(phi; OUT), mean over queries.

    With n models of a side, their mean m and squared deviations S, and the pooled mean mu_0 and variance v of that side:
    kappa = 1 + n, alpha = 2 + n / 2, mu = (mu_0 + n m) / kappa, beta = v + S / 2 + n (m - mu_0)^2 / (2 kappa), and the
    density is Student's t with 2 alpha degrees of freedom about mu with scale sqrt(beta (kappa + 1) / (alpha kappa)).

    mu_0 and v are taken over all examples and queries without the target's pair, and v is the *total* variance, about
    mu_0: it is there with one model a side, and did better than the within-example variance on small pools.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the shadow models. Read in blocks along N, twice.
        keep: bool `[M, N]`, true where the model was trained on the example.
        target: float32 `[T, N, Q]`, models outside the pool; all M shadow models then serve against them. None
            attacks every model of the pool.
        leave: what is left out with a target, as in `lira_online`.

    Returns:
        float32 `[T, N]`, higher = more likely a member. An example without models on a side has that side's prior;
        where all phi of a side are equal, v is 1.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: a whole side is without models.
    """
    return _attack(phi, keep, target, leave, online=True)


def bavaria_offline(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Offline BaVarIA: only OUT models are used.

    The score is z = (phi - mu) / scale of the OUT side's Student's t, mean over queries: where examples have equal
    counts it ranks as that distribution's one-sided tail probability, as `lira_offline` does for the Gaussian.
    Arguments, result and errors are those of `bavaria_online`; IN models are not needed.
    """
    return _attack(phi, keep, target, leave, online=False)


def _attack(
    phi: SignalArray, keep: np.ndarray, target: SignalArray | None, leave: Leave, *, online: bool
) -> np.ndarray:
    opponents = opponents_of(phi, keep, target, leave)
    name = f"bavaria_{'online' if online else 'offline'}"
    opponents.require_any(name, "OUT", "global_threshold, which needs none")
    if online:
        opponents.require_any(name, "IN", "bavaria_offline, which needs none")
    # The log-gamma part of Student's density at each number of models that a side can have.
    alpha = ALPHA + np.arange(len(opponents.keep) + 1) / 2
    peaks = gammaln(alpha + 0.5) - gammaln(alpha)

    def scorer(group: Group) -> Callable[[Block], jax.Array]:
        prior_in, prior_out = map(_prior, pooled_sums(opponents.blocks(group)))
        return partial(_score, prior_out=prior_out, prior_in=prior_in if online else None, peaks=peaks)

    return opponents.score(scorer)


def _prior(sums: PooledSums) -> Prior:
    """Pooled mean and total variance of a side for each target, `[T]`."""
    models = np.maximum(sums.models, 1)  # of the IN side there may be none offline
    mean = sums.total / models
    with np.errstate(over="ignore", invalid="ignore"):  # scores that come to nothing are refused as such
        variance = sums.squares / models - np.square(mean)
    return mean, np.where(variance > 0, variance, 1.0)


@jax.jit
def _score(block: Block, *, prior_out: Prior, prior_in: Prior | None, peaks: Array) -> jax.Array:
    """Scores `[T, n]` of one block; online where `prior_in` is given."""
    attacked, values, _, inside, outside = float64(block)
    out = _predictive(attacked, *moments(values, outside), *prior_out)
    if prior_in is None:
        _, deviation, variance = out
        score = deviation / jnp.sqrt(variance)
    else:
        inner = _predictive(attacked, *moments(values, inside), *prior_in)
        score = _log_density(*inner, peaks) - _log_density(*out, peaks)
    return over_queries(score).astype(jnp.float32)


def _predictive(
    attacked: Array, count: Array, mean: Array, squares: Array, prior_mean: Array, prior_variance: Array
) -> tuple[Array, Array, Array]:
    """Student's t of a side: its models' count `[T, n, 1]`, deviation and squared scale `[T, n, Q]`."""
    prior_mean, prior_variance = prior_mean[:, None, None], prior_variance[:, None, None]
    kappa, alpha = KAPPA + count, ALPHA + count / 2
    centre = (KAPPA * prior_mean + count * mean) / kappa
    beta = (
        (ALPHA - 1) * prior_variance
        + squares / 2
        + KAPPA * count * jnp.square(mean - prior_mean) / (2 * kappa)
    )
    return count, attacked - centre, beta * (kappa + 1) / (alpha * kappa)


def _log_density(count: Array, deviation: Array, variance: Array, peaks: Array) -> Array:
    """Student's t, less the constant log(pi) / 2 that both sides share."""
    alpha = ALPHA + count / 2
    spread = 2 * alpha * variance
    return peaks[count] - 0.5 * jnp.log(spread) - (alpha + 0.5) * jnp.log1p(jnp.square(deviation) / spread)
