"""RMIA, the relative attack (Zarifzadeh et al. 2024, arXiv 2312.03262): a target's ratio at x against a population's.

R(x) = p_target(x) / p(x) says how much better the target does on x than reference models do. The score is the share
of population points z with R(x) / R(z) >= gamma. Ratios are taken in log space, of all targets at once and in blocks
of examples; the population is compared by sorting.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from lira.attacks._averages import count, log_confidence, log_mean, total
from lira.attacks._pool import (
    Block,
    Group,
    SignalArray,
    check_pool,
    check_population,
    group_targets,
    need_models,
    scoring,
    sided_blocks,
    store,
)
from lira.parallel import side_by_side

__all__ = ["rmia_offline", "rmia_online"]

# The paper's `a` for CIFAR-10, where nothing is known to choose one by.
DEFAULT_A = 0.3
# Ratios that differ by less from gamma differ by rounding.
ROUNDING = 1e-12


def rmia_online(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: str = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
    gamma: float = 2.0,
) -> np.ndarray:
    """Online RMIA: p(x) = (mean of the IN models + mean of the OUT models) / 2, p = sigmoid(phi).

    p(z) of a held-out point, which every model is OUT for, is the mean of the whole pool without what is left out for
    the target. Without held-out points the population is the pool less x itself; then p(z) is what p(x) is, from
    reference models alone, and z counts whether or not the target holds it, which the attacker does not know.

    For one target the share is a step function of R(x), so gamma only moves its ties. They are broken by R(x): the
    score is (number of points with R(x) / R(z) >= gamma, plus t) / points, where t = (1 + s / (1 + |s|)) / 2 and s is
    the square root of |log R(x)| with the sign of log R(x). It rises with R(x) and exceeds the published share by less
    than one step. Between targets the share comes first, so pooled figures do depend on gamma: a target with a few
    more points below R(x) / gamma outranks another whatever their R(x). `base` ranks the scores of all targets by
    R(x) itself.
    Queries: mean of log R, for x and z alike, as LiRA averages its log-likelihood ratio; the score remains a step
    function of one number.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example. One IN and one OUT model are enough.
        target: float32 `[T, N, Q]`, models outside the pool; all M models then serve against them. None attacks
            every model of the pool.
        leave: what is left out of the pool when one of its own models is attacked: "pair", the model and its
            complementary mate, or "one", the model only, for pools of other designs; exactly balanced ones are cut
            to equal counts.
        population: float32 `[M, Z, Q]`, the pool's models on points that none was trained on. None takes the pool.
        target_population: float32 `[T, Z, Q]`, outside targets on the same points.
        gamma: how much larger R(x) must be than R(z), at least 1.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, phi is not finite, or an example is left without an IN or an OUT model.
    """
    keep, groups, fewest = _check(phi, keep, target, leave, population, target_population, gamma)
    need_models(
        "rmia_online",
        fewest,
        OUT="attack_p or global_threshold, which need no reference models",
        IN="rmia_offline, which needs no IN models",
    )
    ratios = _log_ratios(phi, keep, target, leave, groups, "both", None)
    others = _population_ratios(population, target_population, target, leave, None)
    return _share_beaten(ratios, others, gamma)


def rmia_offline(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: str = "pair",
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
    keep, groups, fewest = _check(phi, keep, target, leave, population, target_population, gamma)
    if a is not None and not 0 <= a <= 1:
        raise ValueError(f"a must be from 0 to 1, or None to choose it from the pool; got {a}")
    need_models("rmia_offline", fewest, OUT="attack_p or global_threshold, which need no reference models")
    targets = phi.shape[0] if target is None else target.shape[0]
    chosen = _choose_a(phi, keep, target, leave, groups) if a is None else np.full(targets, float(a))
    ratios = _log_ratios(phi, keep, target, leave, groups, "out", chosen)
    others = _population_ratios(population, target_population, target, leave, chosen)
    return _share_beaten(ratios, others, gamma)


def _check(phi, keep, target, leave, population, target_population, gamma):
    keep = np.asarray(keep)
    shape = check_pool(phi, keep, target, leave)
    check_population(population, target_population, shape, target)
    if target is not None and (population is None) != (target_population is None):
        missing = "population" if population is None else "target_population"
        raise ValueError(
            f"RMIA needs pool and targets on the same population: pass {missing} too, or neither"
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
    if not gamma >= 1:
        raise ValueError(f"gamma must be at least 1; got {gamma}")
    return keep, *group_targets(keep, target, leave)


def _log_ratios(
    phi, keep, target, leave, groups, over: str, a: np.ndarray | None, names=("phi", "target")
) -> np.ndarray:
    """The logarithm of R(x), mean over queries, float64 `[T, N]`."""
    ratios = np.empty((phi.shape[0] if target is None else target.shape[0], phi.shape[1]))
    with scoring(phi, target):
        walk = sided_blocks(phi, keep, target, leave, groups, log_confidence, names)
        store(
            ratios,
            (
                (rows, examples, _log_ratio(block, None if a is None else a[rows], over=over))
                for rows, examples, _, block in walk
            ),
        )
    return ratios


@partial(jax.jit, static_argnames="over")
def _log_ratio(block: Block, a, *, over: str) -> jax.Array:
    reference = log_mean(block, over)
    if a is not None:
        a = a[:, None, None]
        reference = jnp.logaddexp(jnp.log1p(a) + reference, jnp.log1p(-a)) - jnp.log(2.0)
    return jnp.mean(block.attacked - reference, axis=-1)


def _population_ratios(population, target_population, target, leave, a) -> np.ndarray | None:
    """The logarithms of R(z) of held-out points, float64 `[T, Z]`; None without such points."""
    if population is None:
        return None
    # No model holds them, so all stand on one side. A pair is left out one model a side: then mates stand opposite,
    # and both sides are averaged together.
    keep = np.zeros(population.shape[:2], bool)
    if target is None and leave == "pair":
        keep[::2] = True
    targets = population.shape[0] if target is None else target.shape[0]
    groups = [Group(np.arange(targets), (None, None))]
    names = ("population", "target_population")
    return _log_ratios(population, keep, target_population, leave, groups, "all", a, names)


def _share_beaten(ratios: np.ndarray, population: np.ndarray | None, gamma: float) -> np.ndarray:
    """The scores, from log R of what is attacked and of the population; None takes each row less x itself."""
    others = ratios if population is None else population
    margin = np.log(gamma) - ROUNDING
    itself = int(population is None)
    points = others.shape[1] - itself
    scores = np.empty(ratios.shape, np.float32)

    def share(row: int) -> None:
        own, theirs = ratios[row], others[row]
        beaten = np.searchsorted(np.sort(theirs), own - margin, "right")
        if margin <= 0:  # x beats itself
            beaten -= itself
        # R is next to 1 wherever all models are sure: the root is steep there, so that float32 tells scores apart.
        root = np.sqrt(np.abs(own))
        scores[row] = (beaten + 0.5 + 0.5 * np.sign(own) * root / (1 + root)) / points

    side_by_side(share, range(len(scores)))
    return scores


# --- The offline constant -------------------------------------------------------------------------------------------


def _choose_a(phi, keep, target, leave, groups) -> np.ndarray:
    """For each target, mean (1 - p_in) / mean (1 - p_out) over the pool's examples and queries, at most 1."""
    sums = np.zeros((phi.shape[0] if target is None else target.shape[0], 2))
    with scoring(phi, target):
        for rows, _, fresh, block in sided_blocks(phi, keep, target, leave, groups, _doubt):
            sums[rows] += _mean_doubts(block, fresh)
    inside, outside = sums.T
    # Without doubt p is 1 for any a.
    return np.where(outside > 0, np.minimum(inside / np.where(outside > 0, outside, 1.0), 1.0), DEFAULT_A)


def _doubt(phi: np.ndarray | jax.Array) -> np.ndarray:
    """1 - p, float64."""
    return expit(-np.asarray(phi, np.float64))


@jax.jit
def _mean_doubts(block: Block, fresh) -> jax.Array:
    """Sums over fresh examples and queries of the mean 1 - p of IN and OUT models, `[T, 2]` or `[1, 2]`."""
    counts = [count(side) for side in (block.inside, block.outside)]
    both = (counts[0] > 0) & (counts[1] > 0) & fresh[:, None]
    return jnp.stack(
        [
            jnp.sum(jnp.where(both, total(block.values, side) / jnp.maximum(left, 1), 0.0), axis=(1, 2))
            for side, left in zip((block.inside, block.outside), counts, strict=True)
        ],
        axis=1,
    )
