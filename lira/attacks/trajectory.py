"""Attacks on the way there: phi at several checkpoints of training, of which the last is the end.

They read a *trajectory* `[M, N, S, Q]`: what a model said about an example at each of S stages of its training, in their
order. It takes more of an attacker than phi does, who must have seen the models in training: it is an auditor's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from lira.attacks._pool import (
    Leave,
    SignalArray,
    UnfitPoolError,
    check_pool,
    each_block,
    read_block,
    require_arrays,
)
from lira.attacks.multivariate import lira_online_multivariate
from lira.numbers import as_array
from lira.signals import checkpoints

__all__ = ["lira_online_trajectory", "lt_iqr", "phi_trajectory"]


def phi_trajectory(signals: Mapping[str, SignalArray]) -> SignalArray:
    """Put phi and its checkpoints in the order of training, read when they are sliced.

    Args:
        signals: by name, `[M, N, Q]` each: phi, and phi@0.25 and others, see `signals.checkpoint_fraction`.

    Returns:
        A lazy `[M, N, S, Q]`: the checkpoints by their fraction, and phi at the end.

    Raises:
        ValueError: shapes disagree.

    >>> phi = np.zeros((4, 5, 2), np.float32)
    >>> phi_trajectory({"phi": phi, "phi@0.5": phi, "phi@0.25": phi}).shape
    (4, 5, 3, 2)
    """
    stages = {name: signals[name] for name in (*checkpoints(signals), "phi")}
    require_arrays(stages)
    for name, stage in stages.items():
        if tuple(stage.shape) != tuple(stages["phi"].shape):
            raise ValueError(f"{name} must be of phi's shape {stages['phi'].shape}; got {stage.shape}")
    return _Stages(tuple(stages.values()))


def lt_iqr(
    trajectory: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
) -> np.ndarray:
    """Score by the interquartile range of an example's losses over training (LT-IQR, Pollock et al., arXiv 2411.05743).

    Made to find, with a single model, those of its members that are most vulnerable to LiRA: outliers that are learnt
    late, and learnt by heart. It ranks members, and is no guess of who is one: the losses of non-members that a model is
    wrong about change more, since they rise (AUC .474 on digits, experiments/README.md).

    The loss at a stage is the mean over queries. Quartiles are interpolated linearly; the paper takes them over the losses
    of all epochs, here they are over the stages given.

    Args:
        trajectory: float32 `[M, N, S, Q]`, phi at S >= 2 stages of training, see `phi_trajectory`. Read in blocks
            along N.
        keep: bool `[M, N]`, only checked.
        target: float32 `[T, N, S, Q]`, outside targets; None attacks every model of the pool.
        leave: as for every attack.

    Returns:
        float32 `[T, N]`, the range in nats, higher = more vulnerable if it is a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: there is one stage alone.
    """
    stages, flat, outside = _flattened(trajectory, target)
    M, N, count = check_pool(flat, keep, outside, leave, "trajectory", "stages and queries")
    attacked, name = (flat, "trajectory") if outside is None else (outside, "target")
    scores = np.empty((attacked.shape[0], N), np.float32)

    def score(examples: slice) -> None:
        phi = read_block(attacked, examples, name).astype(np.float64)
        losses = np.logaddexp(0.0, -phi).reshape(*phi.shape[:2], stages, -1).mean(axis=3)
        low, high = np.quantile(losses, (0.25, 0.75), axis=-1)
        scores[:, examples] = high - low

    each_block(score, max(M, len(scores)), N, count)
    return scores


def lira_online_trajectory(
    trajectory: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    shrinkage: float | None = None,
) -> np.ndarray:
    """Online LiRA on all stages of training at once: `lira_online_multivariate`, to which stages are queries as others are.

    Stages of one training say much the same, and only a full covariance knows what is new in each.

    Args:
        trajectory: float32 `[M, N, S, Q]`, phi at S >= 2 stages of training, see `phi_trajectory`.
        keep: bool `[M, N]`, true where the model was trained on the example.
        target: float32 `[T, N, S, Q]`, the same of models outside the pool; None attacks every model of the pool.
        leave: what is left out with a target, as in `lira_online`.
        shrinkage: as in `lira_online_multivariate`, of S Q queries.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or phi is not finite.
        UnfitPoolError: there is one stage alone, or as `lira_online_multivariate`.
    """
    _, flat, outside = _flattened(trajectory, target)
    return lira_online_multivariate(flat, keep, target=outside, leave=leave, shrinkage=shrinkage)


# --- Stages as queries ------------------------------------------------------------------------------------------------


def _flattened(
    trajectory: SignalArray, target: SignalArray | None
) -> tuple[int, SignalArray, SignalArray | None]:
    """S, and pool `[M, N, S Q]` and targets `[T, N, S Q]`, a query of a stage beside the other queries of that stage."""
    require_arrays({"trajectory": trajectory, "target": target})
    shape = tuple(trajectory.shape)
    if len(shape) != 4:
        raise ValueError(f"trajectory must be [models, examples, stages, queries]; got shape {shape}")
    if target is not None and (len(target.shape) != 4 or tuple(target.shape[1:]) != shape[1:]):
        raise ValueError(
            f"target must be {['targets', *shape[1:]]} like trajectory; got shape {tuple(target.shape)}"
        )
    if shape[2] < 2:
        raise UnfitPoolError(
            f"trajectory holds {shape[2]} stages, and a way has two at least: use lira_online, or global_threshold on phi"
        )
    return shape[2], _as_queries(trajectory), None if target is None else _as_queries(target)


def _as_queries(trajectory: SignalArray) -> SignalArray:
    if isinstance(trajectory, np.ndarray | jax.Array):
        M, N, S, Q = trajectory.shape
        return trajectory.reshape(M, N, S * Q)  # where it is
    return _Queries(trajectory)


@dataclass(frozen=True, eq=False)
class _Stages:
    """Signals of one shape `[M, N, Q]` as `[M, N, S, Q]`, read slice by slice."""

    stages: tuple[SignalArray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        M, N, Q = self.stages[0].shape
        return M, N, len(self.stages), Q

    def __getitem__(self, index: tuple[slice, slice], /) -> np.ndarray:
        return np.stack([as_array(stage[index]) for stage in self.stages], axis=2)


@dataclass(frozen=True, eq=False)
class _Queries:
    """A lazy `[M, N, S, Q]` as `[M, N, S Q]`."""

    trajectory: SignalArray

    @property
    def shape(self) -> tuple[int, ...]:
        M, N, S, Q = self.trajectory.shape
        return M, N, S * Q

    def __getitem__(self, index: tuple[slice, slice], /) -> np.ndarray:
        block = as_array(self.trajectory[index])
        return block.reshape(*block.shape[:2], self.shape[2])
