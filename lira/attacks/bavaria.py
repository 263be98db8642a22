"""BaVarIA (arXiv 2603.11799): LiRA whose Gaussians are shrunk, each example's to those of the whole pool.

Mean and variance of an example's phi carry a normal-inverse-gamma prior, centred on what all examples show, so that one
model a side is enough, or none. IN and OUT have priors of their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from lira.attacks._moments import PooledSums, float64, moments, pooled_sums
from lira.attacks._pool import (
    Block,
    FewModelsError,
    SignalArray,
    blocks,
    check_pool,
    group_targets,
    read_sides,
    scoring,
    store,
)

__all__ = ["bavaria_offline", "bavaria_online"]

# The prior's weight, in models, on the mean (kappa_0), and half of that on the variance (alpha_0).
KAPPA, ALPHA = 1.0, 2.0


def bavaria_online(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: str = "pair"
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
        leave: "pair" leaves out the model and its complementary mate, "one" the model only, as in `lira_online`.

    Returns:
        float32 `[T, N]`, higher = more likely a member. An example without models on a side has that side's prior;
        where all phi of a side are equal, v is 1.

    Raises:
        ValueError: shapes disagree, phi is not finite, or a whole side is without models.
    """
    return _attack(phi, keep, target, leave, online=True)


def bavaria_offline(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: str = "pair"
) -> np.ndarray:
    """Offline BaVarIA: only OUT models are used.

    The score is z = (phi - mu) / scale of the OUT side's Student's t, mean over queries: where examples have equal
    counts it ranks as that distribution's one-sided tail probability, as `lira_offline` does for the Gaussian.
    Arguments, result and errors are those of `bavaria_online`; IN models are not needed.
    """
    return _attack(phi, keep, target, leave, online=False)


def _attack(phi, keep, target, leave, *, online: bool) -> np.ndarray:
    keep = np.asarray(keep)
    M, N, Q = check_pool(phi, keep, target, leave)
    scores = np.empty((M if target is None else target.shape[0], N), np.float32)
    # The log-gamma part of Student's density at each number of models that a side can have.
    alpha = ALPHA + np.arange(M + 1) / 2
    peaks = gammaln(alpha + 0.5) - gammaln(alpha)
    for group in group_targets(keep, target, leave)[0]:
        read = partial(read_sides, phi, keep, target, leave, group)
        with scoring(phi, target):
            inside, outside = pooled_sums(read, (M, N, Q))
            priors = _prior(outside, "OUT", online), _prior(inside, "IN", online) if online else None
            store(
                scores,
                (
                    (group.rows, examples, _score(read(examples), *priors, peaks))
                    for examples, _ in blocks(M, N, Q)
                ),
            )
    return scores


def _prior(sums: PooledSums, side: str, online: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pooled mean and total variance of a side for each target, `[T]`."""
    if not sums.models.all():
        raise FewModelsError(
            f"bavaria_{'online' if online else 'offline'} needs {side} models once the target's are left out, and there "
            f"are none: use {'bavaria_offline' if side == 'IN' else 'global_threshold'}, which needs none, or more models"
        )
    mean = sums.total / sums.models
    variance = sums.squares / sums.models - np.square(mean)
    return mean, np.where(variance > 0, variance, 1.0)


@jax.jit
def _score(block: Block, prior_out, prior_in, peaks):
    """Scores `[T, n]` of one block; online where `prior_in` is given."""
    attacked, values, inside, outside = float64(*block)
    out = _predictive(attacked, *moments(values, outside), *prior_out)
    if prior_in is None:
        _, deviation, variance = out
        score = deviation / jnp.sqrt(variance)
    else:
        inner = _predictive(attacked, *moments(values, inside), *prior_in)
        score = _log_density(*inner, peaks) - _log_density(*out, peaks)
    return jnp.mean(score, axis=-1).astype(jnp.float32)


def _predictive(attacked, count, mean, squares, prior_mean, prior_variance):
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


def _log_density(count, deviation, variance, peaks):
    """Student's t, less the constant log(pi) / 2 that both sides share."""
    alpha = ALPHA + count / 2
    spread = 2 * alpha * variance
    return peaks[count] - 0.5 * jnp.log(spread) - (alpha + 0.5) * jnp.log1p(jnp.square(deviation) / spread)
