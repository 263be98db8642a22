"""Relative attacks: a target's ratio at x against a population's, by RMIA and by InfoRMIA.

R(x) = p_target(x) / p(x) says how much better the target does on x than reference models do. The score of RMIA
(Zarifzadeh et al. 2024, arXiv 2312.03262) is the share of population points z with R(x) / R(z) >= gamma, here stored as
odds; that of InfoRMIA (Tao & Shokri 2025, arXiv 2510.05582) log R(x) less the mean of log R(z). Ratios are taken in log
space, of all targets at once and in blocks of examples; RMIA's population is compared by sorting.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from lira.attacks._averages import count, log_confidence, log_mean, over_queries, total
from lira.attacks._opponents import Group, Opponents, opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import (
    Array,
    Leave,
    SignalArray,
    UnfitPoolError,
    check_population,
    require_numbers,
    scoring,
)
from lira.parallel import side_by_side

__all__ = ["informia_offline", "informia_online", "rmia_offline", "rmia_online"]

# The paper's `a` for CIFAR-10, where nothing is known to choose one by.
DEFAULT_A = 0.3
# Ratios that differ by less from gamma differ by rounding.
ROUNDING = 1e-12
# The number before 1, for ratios whose part of a step float64 rounds to a whole one.
LARGEST_PART = 1 - 2.0**-53


def rmia_online(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
    gamma: float = 2.0,
) -> np.ndarray:
    """Online RMIA: p(x) = (mean of the IN models + mean of the OUT models) / 2, p = sigmoid(phi).

    p(z) of a held-out point, which every model is OUT for, is the mean of the whole pool without what is left out for
    the target. Without held-out points the population is the pool less x itself; then p(z) is what p(x) is, from
    reference models alone, and z counts whether or not the target holds it, which the attacker does not know.

    For one target the share is a step function of R(x), so gamma only moves its ties. They are broken by R(x): the
    score is (number of points with R(x) / R(z) >= gamma, plus t) / (number of the others, plus 1 - t), where
    t = (1 + s / (1 + |s|)) / 2 and s is the square root of |log R(x)| with the sign of log R(x). It rises with R(x), and
    score / (1 + score) is the published share to within one step. float32 has no more than some hundred numbers for a
    step of a share near 1 among 50,000 points, where the examples that give most away are; of odds it has plenty. What
    it cannot tell apart even so is ranked by R(x) in float64, each score the next number above the one before, so that
    two examples of a target tie only where their R(x) do. (That takes a share further than one step where more than
    some 1e7 / points of a target's examples have the same one and it is near neither end: by ten steps of 50,000 where
    16,000 have.)
    Between targets the share comes first, so pooled figures do depend on gamma: a target with a few more points below
    R(x) / gamma outranks another whatever their R(x). `base` ranks the scores of all targets by R(x) itself.
    Queries: mean of log R, for x and z alike, as LiRA averages its log-likelihood ratio; the score remains a step
    function of one number.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example. One IN and one OUT model are enough.
        target: float32 `[T, N, Q]`, models outside the pool; all M models then serve against them. None attacks
            every model of the pool.
        leave: what is left out of the pool when one of its own models is attacked: "pair", the model and its
            complementary mate; for pools of other designs "one", the model, and random others until all examples have
            equal counts, or "independent", the model alone, where memberships are independent coins.
        population: float32 `[M, Z, Q]`, the pool's models on points that none was trained on. None takes the pool.
        target_population: float32 `[T, Z, Q]`, outside targets on the same points.
        gamma: how much larger R(x) must be than R(z), at least 1.

    Returns:
        float32 `[T, N]`, positive, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example is left without an IN or an OUT model, outside targets come with one of the two
            populations only, or there is neither population nor a second example.
    """
    _check_gamma(gamma)
    opponents = _opponents("rmia_online", phi, keep, target, leave, population, target_population)
    opponents.require("rmia_online", "IN", 1, "rmia_offline, which needs no IN models")
    ratios = _log_ratios(opponents, "both", None)
    others = _population_ratios(opponents, population, target_population, None)
    return _odds_beaten(ratios, others, gamma)


def rmia_offline(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
    gamma: float = 2.0,
    a: float | None = None,
) -> np.ndarray:
    """Offline RMIA: p = ((1 + a) mean of the OUT models + (1 - a)) / 2, for x and for z.

    `a` stands for the IN models that an offline attacker lacks at x: p_in is taken to be a p_out + (1 - a). By
    default it is what makes this true on average over the pool, a = mean (1 - p_in) / mean (1 - p_out), from the same
    models that serve against the target: in a pool its whole pair is left out, mate and all. (The paper tries values
    on one reference model as if it were the target.) Examples without an IN model do not count in `a`; where none
    has one, `a` is 0.3, the paper's for CIFAR-10. A number from 0 to 1 is taken for all targets; the paper has 0.6 for
    CIFAR-100 and 0.2 for Purchase-100.

    Score, population, queries, arguments and errors are otherwise those of `rmia_online`; one OUT model is enough.
    """
    _check_gamma(gamma)
    opponents = _opponents("rmia_offline", phi, keep, target, leave, population, target_population)
    chosen = _chosen_a(opponents, a)
    ratios = _log_ratios(opponents, "out", chosen)
    others = _population_ratios(opponents, population, target_population, chosen)
    return _odds_beaten(ratios, others, gamma)


def informia_online(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
) -> np.ndarray:
    """Online InfoRMIA: log R(x) less the mean of log R(z) over the population, both means over queries of logarithms.

    R(x) = p_target(x) / p(x) with p(x) = (mean of the IN models + mean of the OUT models) / 2, as in `rmia_online`;
    p(z) is the mean of the OUT models of z: of a held-out point all that are left against the target. Without held-out
    points the population is the pool less x itself, whichever of it the target holds.

    What is subtracted is one number for all examples of a target, but for x itself in a pool without held-out points,
    so within a target it ranks like `base` where IN and OUT models are equally many. Between targets it takes out how
    sure each is of everything: scores are in nats, and lose less by pooling than RMIA's, which are ranks in a target.

    Arguments, result and errors are those of `rmia_online`, which has `gamma` besides.
    """
    opponents = _opponents("informia_online", phi, keep, target, leave, population, target_population)
    opponents.require("informia_online", "IN", 1, "informia_offline, which needs no IN models")
    ratios = _log_ratios(opponents, "both", None)
    others = _population_ratios(opponents, population, target_population, None)
    if others is None:
        return _above_the_others(ratios, _log_ratios(opponents, "out", None))
    return _above_points(ratios, others)


def informia_offline(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
    a: float | None = None,
) -> np.ndarray:
    """Offline InfoRMIA: that of `informia_online` with p = ((1 + a) mean of the OUT models + (1 - a)) / 2, at x and z.

    Arguments, `a` among them, result and errors are those of `rmia_offline`, which has `gamma` besides.

    OUT at 1/2 everywhere, a = 0.4: p = 0.65, and R = 1.4 and 0.6; each example's population is the other one:

    >>> target = np.log(np.array([0.91 / 0.09, 0.39 / 0.61])).reshape(1, 2, 1)
    >>> informia_offline(np.zeros((1, 2, 1)), np.zeros((1, 2), bool), target=target, a=0.4).round(3)  # log (1.4 / 0.6)
    array([[ 0.847, -0.847]], dtype=float32)
    """
    opponents = _opponents("informia_offline", phi, keep, target, leave, population, target_population)
    chosen = _chosen_a(opponents, a)
    ratios = _log_ratios(opponents, "out", chosen)
    others = _population_ratios(opponents, population, target_population, chosen)
    return _above_the_others(ratios, ratios) if others is None else _above_points(ratios, others)


def _opponents(
    name: str,
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    population: SignalArray | None,
    target_population: SignalArray | None,
) -> Opponents:
    """Check what the attack `name` is told; its opponents have an OUT model of every example left."""
    opponents = opponents_of(phi, keep, target, leave)
    check_population(population, target_population, opponents.shape, target)
    if target is not None and (population is None) != (target_population is None):
        missing = "population" if population is None else "target_population"
        raise UnfitPoolError(
            f"{name} needs pool and targets on the same population: pass {missing} too, or neither"
        )
    if (
        population is not None
        and target_population is not None
        and population.shape[1] != target_population.shape[1]
    ):
        raise ValueError(
            f"population and target_population must hold the same points; got {population.shape[1]} and "
            f"{target_population.shape[1]}"
        )
    opponents.require(name, "OUT", 1, "attack_p or global_threshold, which need no reference models")
    return opponents


def _check_gamma(gamma: float) -> None:
    if not gamma >= 1:
        raise ValueError(f"gamma must be at least 1; got {gamma}")


def _log_ratios(opponents: Opponents, over: str, a: np.ndarray | None) -> np.ndarray:
    """The logarithm of R(x), mean over queries, float64 `[T, N]`; `a` [T] is that of each target."""
    return opponents.score(
        lambda group: partial(_log_ratio, a=None if a is None else a[group.rows], over=over),
        log_confidence,
        dtype=np.float64,
    )


@partial(jax.jit, static_argnames="over")
def _log_ratio(block: Block, *, a: Array | None, over: str) -> jax.Array:
    reference = log_mean(block, over)
    if a is not None:
        a = a[:, None, None]
        reference = jnp.logaddexp(jnp.log1p(a) + reference, jnp.log1p(-a)) - jnp.log(2.0)
    return over_queries(block.attacked - reference)


def _population_ratios(
    opponents: Opponents,
    population: SignalArray | None,
    target_population: SignalArray | None,
    a: np.ndarray | None,
) -> np.ndarray | None:
    """The logarithms of R(z) of held-out points, float64 `[T, Z]`; None without such points."""
    if population is None:
        return None
    # No model holds them, so all stand on one side. A pair is left out one model a side: then mates stand opposite,
    # and both sides are averaged together.
    keep = np.zeros(population.shape[:2], bool)
    if opponents.target is None and opponents.leave == "pair":
        keep[::2] = True
    names = ("population", "target_population")
    groups = [Group(np.arange(opponents.num_targets))]
    at_points = dataclasses.replace(
        opponents, phi=population, keep=keep, target=target_population, groups=groups, names=names
    )
    return _log_ratios(at_points, "all", a)


def _odds_beaten(ratios: np.ndarray, population: np.ndarray | None, gamma: float) -> np.ndarray:
    """The scores, from log R of what is attacked and of the population; None takes each row less x itself."""
    others = ratios if population is None else population
    margin = np.log(gamma) - ROUNDING
    itself = int(population is None)
    points = others.shape[1] - itself
    scores = np.empty(ratios.shape, np.float32)

    def odds(row: int) -> None:
        order = np.argsort(ratios[row])
        ratio = ratios[row, order]
        compared = ratio if population is None else np.sort(population[row])
        beaten = np.searchsorted(compared, ratio - margin, "right")
        if margin <= 0:  # x beats itself
            beaten -= itself
        # R is next to 1 wherever all models are sure: the root is steep there.
        root = np.sign(ratio) * np.sqrt(np.abs(ratio))
        part = np.sign(root) * (1 - 1 / (1 + np.abs(root)))  # short of 1, so that nothing is divided by 0
        part = np.clip(part, -LARGEST_PART, LARGEST_PART)
        scores[row, order] = _increasing(
            (beaten + 0.5 + 0.5 * part) / (points - beaten + 0.5 - 0.5 * part), ratio
        )

    side_by_side(odds, range(len(scores)))
    return scores


def _increasing(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Positive `values [N]` as float32 that rises wherever the ascending `by [N]` does, if only to the next number."""
    rank = np.append(0, np.cumsum(by[1:] > by[:-1]))
    # The bits of positive numbers are ordered as they are.
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    return (np.maximum.accumulate(bits - rank) + rank).astype(np.int32).view(np.float32)


def _above_points(ratios: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The scores of InfoRMIA, from log R(x) `[T, N]` and log R(z) `[T, Z]` of held-out points."""
    scores = np.empty(ratios.shape, np.float32)
    return require_numbers(np.subtract(ratios, points.mean(axis=1, keepdims=True), out=scores))


def _above_the_others(ratios: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The scores of InfoRMIA where the population is the pool less x itself, whose log R(z) `[T, N]` are `others`."""
    scores = np.empty(ratios.shape, np.float32)
    # Target by target: of all at once each step would be another array of the size of phi.
    for score, ratio, other in zip(scores, ratios, others, strict=True):
        score[:] = ratio - (other.sum() - other) / (len(other) - 1)
    return require_numbers(scores)


# --- The offline constant -------------------------------------------------------------------------------------------


def _chosen_a(opponents: Opponents, a: float | None) -> np.ndarray:
    """The constant of each target, float64 `[T]`: the given one, or for None what fits the pool."""
    if a is None:
        return _choose_a(opponents)
    if not 0 <= a <= 1:
        raise ValueError(f"a must be from 0 to 1, or None to choose it from the pool; got {a}")
    return np.full(opponents.num_targets, float(a))


def _choose_a(opponents: Opponents) -> np.ndarray:
    """For each target, mean (1 - p_in) / mean (1 - p_out) over the pool's examples and queries, at most 1."""
    sums = np.zeros((opponents.num_targets, 2))
    with scoring(opponents.phi, opponents.target):
        for group in opponents.groups:
            sums[group.rows] = sum(_mean_doubts(block) for _, block in opponents.blocks(group, _doubt))
    inside, outside = sums.T
    # Without doubt p is 1 for any a.
    return np.where(outside > 0, np.minimum(inside / np.where(outside > 0, outside, 1.0), 1.0), DEFAULT_A)


def _doubt(phi: Array) -> np.ndarray:
    """1 - p, float64."""
    return expit(-np.asarray(phi, np.float64))


@jax.jit
def _mean_doubts(block: Block) -> jax.Array:
    """Sums over fresh examples and queries of the mean 1 - p of IN and OUT models, `[T, 2]` or `[1, 2]`."""
    counts = [count(side) for side in (block.inside, block.outside)]
    both = (counts[0] > 0) & (counts[1] > 0) & block.fresh[:, None]
    return jnp.stack(
        [
            jnp.sum(jnp.where(both, total(block.values, side) / jnp.maximum(left, 1), 0.0), axis=(1, 2))
            for side, left in zip((block.inside, block.outside), counts, strict=True)
        ],
        axis=1,
    )
