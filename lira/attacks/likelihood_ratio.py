"""LiRA, the Gaussian likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570), on every model at once.

A target's scores use Gaussians fitted to the *other* shadow models. Nothing is refitted: each Gaussian of the whole
pool is computed once, and the target's pair is taken out of its mean, variance and median in closed form. All is
float64, in blocks of examples, so memory does not grow with N.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._averages import over_queries
from lira.attacks._moments import SD_FLOOR, Walk, float64, median, middle, moments, pooled_sums
from lira.attacks._opponents import Group, Opponents, opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import (
    FEW_MODELS,
    Array,
    FewModelsWarning,
    FlooredVarianceWarning,
    Leave,
    SignalArray,
    advice_on_few,
)

__all__ = [
    "lira_offline",
    "lira_offline_fixed",
    "lira_online",
    "lira_online_fixed",
]

Convention = Literal["paper", "original"]
# The original code's own floor, `std + 1e-30`.
ORIGINAL_SD_FLOOR = 1e-30


def lira_online(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    convention: Convention = "paper",
) -> np.ndarray:
    """Online LiRA with per-example variances (Algorithm 1): log N(phi; IN) - log N(phi; OUT), mean over queries.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the shadow models. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example.
        target: float32 `[T, N, Q]`, models outside the pool; all M shadow models then serve against them. None
            attacks every model of the pool.
        leave: what is left out of the pool when one of its own models is attacked. "pair": the model and its
            complementary mate, so that nothing used depends on the target's membership. For pools of other designs
            "one": the model, and random others until all examples have equal counts, which would leak it; or
            "independent": the model alone, where memberships are independent coins.
        convention: "paper" (mean and standard deviation), or "original" for the authors' code (median, np.std,
            counts cut to the smallest over all examples, to the first models of each side). In pools that are not
            complementary pairs the original's order gives memberships away: to compare with it, not for a verdict.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example has fewer than two models on a side.

    Warns:
        FewModelsWarning: fewer than eight models on a side. FlooredVarianceWarning: with the number of floored ones.
    """
    return _attack(phi, keep, target, leave, convention, online=True, fixed=False)


def lira_online_fixed(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    convention: Convention = "paper",
) -> np.ndarray:
    """Online LiRA with one global variance a side (section VI-C), the better choice below about 64 models.

    The variance is the mean of the within-example variances, IN and OUT apart, without the target's pair. With one
    model a side no spread can be seen and both sides take variance 1, which does not move the ranking.
    `convention="original"` takes `np.std` of all IN values about their grand mean for both sides.
    Arguments, result and errors are those of `lira_online`; one model a side is enough.
    """
    return _attack(phi, keep, target, leave, convention, online=True, fixed=True)


def lira_offline(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    convention: Convention = "paper",
) -> np.ndarray:
    """Offline LiRA with per-example variances (Eq. 4): only OUT models are used.

    The score is z = (phi - mean_out) / sd_out, mean over queries. The paper's probability Phi(z) ranks alike but is
    1 from z = 8.3 on, which turns the low-FPR tail into ties. `convention="original"` ranks by the two-sided
    -log N(phi; median_out, sd_out), as the authors' code does.
    Arguments, result and errors are those of `lira_online`; IN models are not needed.
    """
    return _attack(phi, keep, target, leave, convention, online=False, fixed=False)


def lira_offline_fixed(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    convention: Convention = "paper",
) -> np.ndarray:
    """Offline LiRA with one global variance: `lira_offline` with the variance of `lira_online_fixed`.

    `convention="original"` takes `np.std` of all OUT values about their grand mean.
    Arguments, result and errors are those of `lira_online`; one OUT model is enough.
    """
    return _attack(phi, keep, target, leave, convention, online=False, fixed=True)


# --- One attack: one pass over the examples, two with a fixed variance ----------------------------------------------


def _attack(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    convention: Convention,
    *,
    online: bool,
    fixed: bool,
) -> np.ndarray:
    if convention not in ("paper", "original"):
        raise ValueError(f'convention must be "paper" or "original"; got {convention!r}')
    original = convention == "original"
    # The original code cuts each side to its smallest count over all examples, once the target is left out.
    opponents = opponents_of(phi, keep, target, leave, in_row_order=original)
    _check_counts(opponents, online, fixed)
    floored = []

    def scorer(group: Group) -> Callable[[Block], jax.Array]:
        variances = _fixed_variances(opponents.blocks(group), online, original) if fixed else None

        def score(block: Block) -> jax.Array:
            sides = (block.inside, block.outside)
            middles = [middle(block.values, side.mask) for side in sides] if original else None
            values, count = _score(block, middles, variances, online=online)
            floored.append(count)
            return values

        return score

    scores = opponents.score(scorer)
    total = sum(map(int, floored))
    if total:
        warnings.warn(
            f"{total:,} of {scores.size * phi.shape[2] * (1 + online):,} variances were floored: shadow models agree on "
            f"phi to rounding; the fixed-variance attack is not affected",
            FlooredVarianceWarning,
            stacklevel=3,
        )
    return scores


def _check_counts(opponents: Opponents, online: bool, fixed: bool) -> None:
    """Raise where an example keeps too few IN or OUT models for a variance, and warn where it keeps few."""
    name = f"lira_{'online' if online else 'offline'}{'_fixed' if fixed else ''}"
    sides = ("IN", "OUT") if online else ("OUT",)
    for side in sides:
        if opponents.fewest[side] == 1:
            remedy = f"{name}_fixed, which needs one"
        elif side == "IN":
            remedy = "lira_offline or lira_offline_fixed, which need no IN models"
        else:
            remedy = "global_threshold, which needs no shadow models"
        opponents.require(name, side, 1 if fixed else 2, remedy)
    fewest = min(opponents.fewest[side] for side in sides)
    if not fixed and fewest < FEW_MODELS:
        warnings.warn(f"{name}: {advice_on_few(fewest)}", FewModelsWarning, stacklevel=4)


# --- The arithmetic, float64 under jit ------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="online")
def _score(
    block: Block,
    middles: Sequence[Array] | None,
    variances: tuple[Array, Array] | None,
    *,
    online: bool,
) -> tuple[jax.Array, jax.Array]:
    """Scores `[T, n]` of one block, and how many variances were floored among its fresh examples.

    `middles` are those of both sides by the original convention, else None.
    """
    attacked, values, fresh, inside, outside = float64(block)
    floored = jnp.zeros((), jnp.int64)
    terms = []
    for index, side in enumerate((inside, outside)):
        if side is inside and not online:
            continue
        count, mean, squares = moments(values, side)
        centre = mean if middles is None else median(side, middles[index])
        if variances is None:
            variance = squares / jnp.maximum(count, 1)
            floor = jnp.square(SD_FLOOR * (1 + jnp.abs(mean))) if middles is None else ORIGINAL_SD_FLOOR**2
            low = jnp.broadcast_to((variance < floor) & fresh[:, None], attacked.shape)
            floored += jnp.sum(low)
            variance = jnp.maximum(variance, floor)
        else:
            variance = variances[index][:, None, None]
        terms.append((attacked - centre, variance))
    (deviation_out, variance_out) = terms[-1]
    if online:
        deviation_in, variance_in = terms[0]
        score = 0.5 * (
            jnp.square(deviation_out) / variance_out
            - jnp.square(deviation_in) / variance_in
            + jnp.log(variance_out / variance_in)
        )
    elif middles is not None:
        score = 0.5 * (jnp.square(deviation_out) / variance_out + jnp.log(2 * jnp.pi * variance_out))
    else:
        score = deviation_out / jnp.sqrt(variance_out)
    return over_queries(score).astype(jnp.float32), floored


def _fixed_variances(walk: Walk, online: bool, original: bool) -> tuple[np.ndarray, np.ndarray]:
    """One variance a side for each target, `[T]` or `[1]`, from a first pass over all examples."""
    variances = []
    for count, within, total, squares in pooled_sums(walk):
        count = np.maximum(count, 1)
        variance = squares / count - np.square(total / count) if original else within / count
        variances.append(np.where(variance > 0, variance, 1.0))
    # The original code takes the IN side's for both when it is online.
    return (variances[0], variances[0 if original and online else 1])
