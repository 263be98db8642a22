"""P-values of membership: how often a model that was not trained on x would say as much for membership as the target does.

A pooled threshold lets some examples raise far more false alarms than others; the same p-value as every example's
threshold does not (arXiv 2605.25819). Nothing that the p-value of a target rests on depends on what that target was
trained on: only on the other models, its pair left out, as for scores.

The first four are exact where the values of the OUT models are Gaussian, example by example, each with its own mean and
variance, and the target's value is one more of the same: the shadow models' moments are estimates, and the tails allow for
that. They hold on average over pools: the few models of one pool may still be unlucky at one example. Queries are averaged
before anything else, because one number a model has a distribution that is known, and the mean of several z has not.
`rank_p_values` assumes no distribution, but is at least 1 / (OUT models + 1): 0.1 % takes some 2,000 models.
`conformal_p_values` compares any attack's scores with those of known non-members, of all examples together: right on
average over examples, and not for each of them.

All share the attacks' signature and return `PValues`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from lira.attacks._moments import Walk, float64, moments, pooled_sums
from lira.attacks._opponents import Group, opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import Array, Leave, SignalArray, UnfitPoolError
from lira.attacks.likelihood_ratio import SD_FLOOR
from lira.attacks.rank import share_above
from lira.membership import is_paired
from lira.numbers import as_array
from lira.signals import ModelRows

__all__ = [
    "PValues",
    "conformal_p_values",
    "offline_fixed_p_values",
    "offline_p_values",
    "online_fixed_p_values",
    "online_p_values",
    "rank_p_values",
]


class PValues(NamedTuple):
    """P-values, lower = more likely a member, and how low they can be."""

    values: np.ndarray  # float64 [T, N], in (0, 1]
    smallest: float  # that every example can have; 0 where there is no such limit


class _Moments(NamedTuple):
    """What a block holds of one side, without what each target leaves out; float64 `[T, n]` or `[1, n]`."""

    models: np.ndarray
    mean: np.ndarray
    squares: np.ndarray  # sum of squared deviations


class _Spread(NamedTuple):
    """One variance for all examples of each target, `[T, 1]` or `[1, 1]`, unbiased, and its degrees of freedom."""

    variance: np.ndarray
    freedom: np.ndarray


def offline_p_values(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> PValues:
    """Offline LiRA with a variance for each example: Student's t.

    `t = (phi - mean_out) / (sd_out sqrt(1 + 1 / n))` has n - 1 degrees of freedom, n the OUT models and sd_out with
    n - 1 in its denominator; phi is averaged over queries.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example. Two OUT models are enough.
        target: float32 `[T, N, Q]`, models outside the pool; None attacks every model of the pool.
        leave: as for every attack.

    Returns:
        Values `[T, N]`, `[M, N]` without outside targets.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example has too few models.
    """
    return _p_values("offline_p_values", phi, keep, target, leave, online=False, fixed=False)


def offline_fixed_p_values(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> PValues:
    """Offline LiRA with one variance for all examples: as `offline_p_values`, with all examples' degrees of freedom.

    Exact only where all examples have one variance: where these differ, those of a larger one raise more false alarms.
    Arguments, result and errors are those of `offline_p_values`; one OUT model is enough.
    """
    return _p_values("offline_fixed_p_values", phi, keep, target, leave, online=False, fixed=True)


def online_p_values(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> PValues:
    """Online LiRA with variances for each example: the tail of the likelihood ratio, a quadratic in phi, under OUT.

    The OUT Gaussian is fitted to the OUT models *and* the target, as if it were one of them. Given that mean and
    variance, the target's studentized deviation from them has a known distribution, whatever the true ones are (Basu
    1955), so that the probability of a likelihood ratio at least as large, two tails, one or what lies between two
    values, is exact. The IN models, which the null says nothing of, only shape the ratio. A value far out widens its own
    OUT Gaussian, so with some ten models a side `offline_p_values` finds more.
    Arguments, result and errors are those of `offline_p_values`; two models a side are enough.
    """
    return _p_values("online_p_values", phi, keep, target, leave, online=True, fixed=False)


def online_fixed_p_values(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> PValues:
    """Online LiRA with one variance a side for all examples: as `online_p_values`, and as exact as `offline_fixed_p_values`.

    Arguments, result and errors are those of `offline_p_values`; one model a side is enough.
    """
    return _p_values("online_fixed_p_values", phi, keep, target, leave, online=True, fixed=True)


def rank_p_values(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> PValues:
    """The target's rank among the OUT models: (1 + how many say at least as much) / (OUT models + 1).

    Valid for any distribution, and never below 1 / (OUT models + 1). Phi is averaged over queries.
    Arguments, result and errors are those of `offline_p_values`; one OUT model is enough.
    """
    opponents = opponents_of(phi, keep, target, leave)
    opponents.require(
        "rank_p_values", "OUT", 1, "global_threshold, whose scores need no shadow models to compare with"
    )

    def ranks(block: Block) -> np.ndarray:
        count, _, _ = _of_side(block, "outside")
        # Of the negated values: the OUT models that say less.
        less = np.rint(np.asarray(share_above(block)) * count)
        return (1 + count - less) / (count + 1)

    def negated(values: Array) -> np.ndarray:
        return -_mean_over_queries(values)

    values = opponents.score(lambda _: ranks, negated, dtype=np.float64)
    return PValues(values, 1 / (opponents.fewest["OUT"] + 1))


def conformal_p_values(
    attack: Callable[..., np.ndarray],
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
) -> PValues:
    """The rank of a score among those of known non-members, of all examples: (1 + how many are as high) / (R + 1).

    Scores of other targets of the pool depend on a target's memberships, because it was one of their shadow models. So
    the pool is halved, each half is attacked within itself, and the targets of one half are ranked among the R
    non-member scores of the other. (With an odd number of pairs the last one is attacked by part of the first half.)
    Outside targets are attacked by the whole pool and ranked among its own models' scores.

    The R scores are of few models: where whole models differ, all of a target's scores may lie above those. Of non-members
    5.8 % have a p-value of 1 % or less with 8 models (1.6 %) whose confidences differ by an effect of standard deviation 3 (1),
    that of an example's being 1; 1.3 % (1.1 %) with 16 and 1.1 % with 64, 1.0 % where models do not differ (simulated noise).

    Args:
        attack: of the attacks' signature, on phi.
        phi: float32 `[M, N, Q]`.
        keep: bool `[M, N]`.
        target: float32 `[T, N, Q]`, outside targets.
        leave: as for every attack.

    Raises:
        UnfitPoolError: half of the pool is too few models for the attack, or leaves no non-members.
        ValueError: as the attack.
    """
    keep = as_array(keep)
    if target is not None:
        own = attack(phi, keep, leave="one" if leave == "pair" and not is_paired(keep) else leave)
        others = _of_nonmembers(own, keep)
        del own
        return PValues(_ranks(attack(phi, keep, target=target, leave=leave), others), 1 / (len(others) + 1))
    unit = 2 if leave == "pair" else 1
    half = len(keep) // (2 * unit) * unit
    rows = np.arange(len(keep))
    first, second, last = rows[:half], rows[half : 2 * half], rows[2 * half :]
    if not half:
        raise UnfitPoolError("conformal_p_values halves the pool: give it more models, or outside targets")

    def scored(models: np.ndarray) -> np.ndarray:
        return attack(ModelRows(phi, models), keep[models], leave=leave)

    scores = [scored(first), scored(second)]
    others = [
        _of_nonmembers(each, keep[models]) for each, models in zip(scores, (first, second), strict=True)
    ]
    values = np.empty(keep.shape)  # filled in place: of a large pool each array is a tenth of a gigabyte
    _ranks(scores[0], others[1], values[:half])
    _ranks(scores[1], others[0], values[half : 2 * half])
    del scores
    if len(last):
        of_last = scored(np.concatenate([last, first[len(last) :]]))[: len(last)]
        _ranks(of_last, others[1], values[2 * half :])
    return PValues(values, 1 / (min(map(len, others)) + 1))


def _of_nonmembers(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Scores of non-members, ascending `[R]`."""
    others = scores[~keep]
    if not len(others):
        raise UnfitPoolError("conformal_p_values ranks scores among those of non-members, and there are none")
    others.sort()
    return others


def _ranks(scores: np.ndarray, others: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(1 + how many of the ascending `others [R]` are as high) / (R + 1), float64 like `scores`, written to `out`."""
    found = np.searchsorted(others, scores, side="left")
    np.subtract(len(others) + 1, found, out=found)
    return np.divide(found, len(others) + 1, out=out)


# --- Gaussian ones: moments on the device, tails by SciPy -----------------------------------------------------------


def _p_values(
    name: str,
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    *,
    online: bool,
    fixed: bool,
) -> PValues:
    opponents = opponents_of(phi, keep, target, leave)
    for side in ("IN", "OUT") if online else ("OUT",):
        opponents.require(name, side, 1 if fixed else 2, "rank_p_values, which needs one OUT model")

    def scorer(group: Group) -> Callable[[Block], np.ndarray]:
        inside = outside = None
        if fixed:
            walk = opponents.blocks(group, _mean_over_queries)
            inside, outside = _spreads(name, walk, keep.shape[1], online)

        def values(block: Block) -> np.ndarray:
            attacked = np.asarray(block.attacked, np.float64)[..., 0]
            null = _null(attacked, _of_side(block, "outside"), outside)
            return (
                _ratio_tail(null, _of_side(block, "inside"), inside)
                if online
                else _above(null.at, null.freedom)
            )

        return values

    return PValues(opponents.score(scorer, _mean_over_queries, dtype=np.float64), 0.0)


def _mean_over_queries(phi: Array) -> np.ndarray:
    """Float64 `[M, n, 1]`."""
    return np.asarray(phi, np.float64).mean(axis=2, keepdims=True)


def _of_side(block: Block, side: str) -> _Moments:
    return _Moments(*(np.asarray(each)[..., 0] for each in _moments(block, side=side)))


@partial(jax.jit, static_argnames="side")
def _moments(block: Block, *, side: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    values, chosen = float64((block.values, getattr(block, side)))
    return moments(values, chosen)


def _spreads(name: str, walk: Walk, num_examples: int, online: bool) -> tuple[_Spread | None, _Spread]:
    """The mean of the within-example variances of each side, IN only where it is needed."""
    spreads = []
    for sums in pooled_sums(walk)[0 if online else 1 :]:
        freedom = (sums.models - num_examples)[:, None]
        if not (freedom > 0).all() or not (sums.within > 0).all():
            raise UnfitPoolError(
                f"{name} needs a spread, and no example has two models of a side that differ once the target's are "
                f"left out: use rank_p_values, which needs none, or more models"
            )
        spreads.append(_Spread(sums.within[:, None] / freedom, freedom))
    return (spreads[0] if online else None), spreads[-1]


class _Null(NamedTuple):
    """A target as one more OUT model: `centre + scale * u` is its value, `at` its place on Student's t; all `[T, n]`."""

    centre: np.ndarray  # mean of the OUT models and the target
    scale: np.ndarray
    u: np.ndarray
    at: np.ndarray
    freedom: np.ndarray  # of t
    variance: np.ndarray  # of the OUT Gaussian in the likelihood ratio
    bound: np.ndarray | None  # u squared is below it; None with one variance for all, where u is `at`


def _null(attacked: np.ndarray, side: _Moments, spread: _Spread | None) -> _Null:
    n, mean, squares = side
    deviation = attacked - mean
    centre = mean + deviation / (n + 1)
    if spread is not None:
        scale = np.sqrt(spread.variance * n / (n + 1))
        u = deviation * n / (n + 1) / scale
        return _Null(centre, scale, u, u, spread.freedom, spread.variance, None)
    # Below it a spread is the rounding of float32 phi, see `lira_offline`.
    squares = np.maximum(squares, (n - 1) * np.square(SD_FLOOR * (1 + np.abs(mean))))
    at = deviation / np.sqrt(squares / (n - 1) * (1 + 1 / n))
    variance = (squares + np.square(deviation) * n / (n + 1)) / (n + 1)
    scale = np.sqrt(variance)
    return _Null(centre, scale, deviation * n / (n + 1) / scale, at, n - 1, variance, np.asarray(n))


def _ratio_tail(null: _Null, side: _Moments, spread: _Spread | None) -> np.ndarray:
    """The probability of a likelihood ratio at least as large as the target's.

    As a function of u the log-ratio is `a u^2 + b u` and a constant: as large as at u on both sides of u and the other
    root where a > 0, between them where a < 0.
    """
    if spread is None:
        floor = np.square(SD_FLOOR * (1 + np.abs(side.mean)))
        variance = np.maximum(side.squares / side.models, floor)
    else:
        variance = spread.variance
    a = np.square(null.scale) * (1 / null.variance - 1 / variance) / 2
    b = null.scale * (side.mean - null.centre) / variance
    with np.errstate(divide="ignore", invalid="ignore"):
        other = np.where(a == 0, -np.copysign(np.inf, b), -b / a - null.u)
        other_at = other
        if null.bound is not None:
            room = null.bound - np.square(other)
            stretched = other * np.sqrt(null.freedom / room)
            other_at = np.where(room > 0, stretched, np.copysign(np.inf, other))
    low, high = np.minimum(null.at, other_at), np.maximum(null.at, other_at)
    tails = _above(high, null.freedom), _above(-low, null.freedom)  # beyond both
    # Between them, as a difference of the smaller tails.
    right = low > 0
    between = _above(np.where(right, low, -high), null.freedom) - np.where(right, tails[0], tails[1])
    outside = tails[0] + tails[1]
    nothing = (a == 0) & (b == 0)  # the ratio is the same for every value
    return np.where(nothing, 1.0, np.clip(np.where(a < 0, between, outside), np.finfo(float).tiny, 1.0))


def _above(t: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """The upper tail of Student's t, never 0."""
    return np.maximum(special.stdtr(freedom, -t), np.finfo(float).tiny)
