"""Attacks that hold a target's loss against what reference models say of the same example: its difficulty.

All are in closed form for every target at once, in float64 and in blocks of examples.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._averages import count, log_confidence, log_mean, losses, over_queries, total
from lira.attacks._opponents import opponents_of
from lira.attacks._parted import Block
from lira.attacks._pool import Leave, SignalArray

__all__ = ["base", "difficulty_calibration", "difficulty_calibration_both"]


def difficulty_calibration(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Difficulty calibration (Watson et al. 2022, arXiv 2111.08440): mean loss of the OUT models - target's loss.

    The loss is softplus(-phi). Queries: their mean, which is the same before and after the difference.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`, true where the model was trained on the example. One OUT model is enough.
        target: float32 `[T, N, Q]`, models outside the pool; all M models then serve against them. None attacks
            every model of the pool.
        leave: what is left out of the pool when one of its own models is attacked: "pair", the model and its
            complementary mate; for pools of other designs "one", the model, and random others until all examples have
            equal counts, or "independent", the model alone, where memberships are independent coins.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: an example is left without an OUT model.

    A target at confidence 0.9 against OUT models at 0.5 and 0.75, log 0.9 - (log 0.5 + log 0.75) / 2:

    >>> phi = np.log([[[9.0]], [[1.0]], [[3.0]]])
    >>> difficulty_calibration(phi[1:], np.zeros((2, 1), bool), target=phi[:1]).round(3)
    array([[0.385]], dtype=float32)
    """
    return _calibrate("difficulty_calibration", phi, keep, target, leave)


def difficulty_calibration_both(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """Difficulty calibration by IN and OUT models (Sablayrolles et al. 2019, arXiv 1908.11229): MALT's threshold.

    The score is (mean loss IN + mean loss OUT) / 2 - target's loss.
    Arguments, result and errors are those of `difficulty_calibration`; one IN and one OUT model are enough.
    """
    return _calibrate("difficulty_calibration_both", phi, keep, target, leave)


def base(
    phi: SignalArray, keep: np.ndarray, *, target: SignalArray | None = None, leave: Leave = "pair"
) -> np.ndarray:
    """BASE (Lassila et al. 2025, arXiv 2505.24089): log p_target - log of the mean p of all reference models.

    IN and OUT models are averaged alike, p = sigmoid(phi), in log space. With complementary pairs that is the
    logarithm of RMIA's R(x), online: the two differ in what is compared between targets. Queries: mean of the score.
    Arguments, result and errors are those of `difficulty_calibration`; one model of either kind is enough.

    >>> phi = np.log([[[9.0]], [[1.0]], [[3.0]]])  # confidences 0.9, 0.5 and 0.75
    >>> base(phi[1:], np.zeros((2, 1), bool), target=phi[:1]).round(3)  # log (0.9 / 0.625)
    array([[0.365]], dtype=float32)
    """
    opponents = opponents_of(phi, keep, target, leave)
    opponents.require("base", "IN or OUT", 1, "attack_p or global_threshold, which need none")
    return opponents.score(lambda _: _base, log_confidence)


@jax.jit
def _base(block: Block) -> jax.Array:
    return over_queries(block.attacked - log_mean(block, "all"))


def _calibrate(
    name: str, phi: SignalArray, keep: np.ndarray, target: SignalArray | None, leave: Leave
) -> np.ndarray:
    opponents = opponents_of(phi, keep, target, leave)
    opponents.require(name, "OUT", 1, "attack_p or global_threshold, which need no reference models")
    both = name == "difficulty_calibration_both"
    if both:
        opponents.require(name, "IN", 1, "difficulty_calibration, which needs no IN models")
    return opponents.score(lambda _: partial(_difference, both=both), losses)


@partial(jax.jit, static_argnames="both")
def _difference(block: Block, *, both: bool) -> jax.Array:
    sides = (block.inside, block.outside) if both else (block.outside,)
    means = [total(block.values, side) / count(side) for side in sides]
    return (jnp.mean(jnp.stack(means), axis=0) - block.attacked)[..., 0]
