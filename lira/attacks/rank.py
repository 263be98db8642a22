"""Attack-P and Attack-R (Ye et al. 2022, arXiv 2111.09679): the rank of a target's loss, without any model of it.

Both scores are step functions and ties stay ties, as published: a ROC curve takes a group of ties in one step, and no
operating point lies inside it. The number of distinct scores is what these attacks can tell apart.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._averages import count, losses
from lira.attacks._opponents import opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import (
    Array,
    Leave,
    SignalArray,
    UnfitPoolError,
    check_pool,
    check_population,
    each_block,
    read_block,
)
from lira.numbers import as_array
from lira.parallel import side_by_side

__all__ = ["attack_p", "attack_r", "share_above"]


def attack_p(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
) -> np.ndarray:
    """Attack-P: the share of the population whose loss in the target is strictly above that of x.

    One minus the empirical distribution function of the target's losses: every false-positive rate below one over
    the number of points is the same step. No reference model is consulted, so `keep` and `leave` are only checked.
    Queries: the mean of the loss is ranked.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool.
        keep: bool `[M, N]`.
        target: float32 `[T, N, Q]`, outside targets; None attacks every model of the pool.
        leave: as for every attack.
        population: float32 `[M, Z, Q]`, the pool's models on points that none was trained on. None takes the pool
            less x itself, whose members the attacker does not know: they make the score of every x smaller.
        target_population: float32 `[T, Z, Q]`, outside targets on the population; then only this one is read.

    Returns:
        float32 `[T, N]` in [0, 1], higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: outside targets come with `population` only, or there is neither population nor a second example.
    """
    M, N, Q = check_pool(phi, as_array(keep), target, leave)
    check_population(population, target_population, (M, N, Q), target)
    if target is not None and population is not None and target_population is None:
        raise UnfitPoolError("attack_p ranks outside targets among target_population: pass it, or neither")
    attacked = _losses(phi, "phi") if target is None else _losses(target, "target")
    points = population if target is None else target_population
    name = "population" if target is None else "target_population"
    compared = attacked if points is None else _losses(points, name)
    size = compared.shape[1]
    # x itself, where it is part of its own population, is not above itself.
    others = size - (compared is attacked)
    scores = np.empty(attacked.shape, np.float32)

    def share(row: int) -> None:
        below = np.searchsorted(np.sort(compared[row]), attacked[row], "right")
        scores[row] = (size - below) / others

    side_by_side(share, range(len(scores)))
    return scores


def _losses(signal: SignalArray, name: str) -> np.ndarray:
    """Mean loss over queries, float64 `[rows, examples]`."""
    result = np.empty(signal.shape[:2])

    def fill(examples: slice) -> None:
        result[:, examples] = losses(read_block(signal, examples, name))[..., 0]

    M, N, Q = signal.shape
    each_block(fill, M, N, Q)
    return result


def attack_r(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Attack-R: the share of the OUT models of x whose loss for x is strictly above the target's.

    With K OUT models there are K + 1 scores, and the lowest false-positive rate is about 1 / K.
    Queries: the mean of the loss is ranked.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example. One OUT model is enough.
        target: float32 `[T, N, Q]`, models outside the pool; all M models then serve against them. None attacks
            every model of the pool.
        leave: what is left out of the pool when one of its own models is attacked: "pair", the model and its
            complementary mate; for pools of other designs "one", the model, and random others until all examples have
            equal counts, or "independent", the model alone, where memberships are independent coins.

    Returns:
        float32 `[T, N]` in [0, 1], higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example is left without an OUT model.
    """
    opponents = opponents_of(phi, keep, target, leave)
    opponents.require("attack_r", "OUT", 1, "attack_p or global_threshold, which need no reference models")
    return opponents.score(lambda _: share_above, losses)


def share_above(block: Block) -> jax.Array:
    """Share of the OUT side above what is attacked, `[T, n]`."""
    # Models of the other side go below every loss.
    return _rank(block, np.sort(np.where(block.outside.mask, block.values[..., 0], -np.inf).T, axis=1))


@jax.jit
def _rank(block: Block, ordered: Array) -> jax.Array:
    """Share of a side above what is attacked, `[T, n]`; `ordered` [n, M] are the losses of its whole pool, sorted."""
    find = jax.vmap(partial(jnp.searchsorted, side="right", method="scan_unrolled"))
    above = ordered.shape[1] - find(ordered, block.attacked[..., 0].T).T
    removed = block.outside.removes & (block.outside.removed > block.attacked)[..., 0]
    return (above - removed) / count(block.outside)[..., 0]
