"""What a stack of models has learned, and what it answers about the data."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.engine.programs import Programs
from lira.store.run import Run

__all__ = ["Data", "Learned", "accuracy_over", "answers_of"]


class Data(NamedTuple):
    """A data set's arrays on the device."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array | None
    y_test: jax.Array | None


class Learned(NamedTuple):
    """A stack of the programs' width; a short one is filled up with copies, so that no program is compiled for it."""

    variables: Any  # that the models answer with
    finite: np.ndarray  # bool [width], which models stayed so
    raw: Any = None  # the variables as they were trained, where the models answer with an average of them
    loss: np.ndarray | None = None  # float [width], mean training loss of the last epoch
    canaries: np.ndarray | None = None  # float [width, count], the scores of canaries that are gradients
    # By signal, such as phi@0.25, the variables that the models would have answered with there; on the host.
    looks: Mapping[str, Any] = MappingProxyType({})


def answers_of(
    run: Run, data: Data, programs: Programs, stack: np.ndarray, learned: Learned
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a stack of models answers: arrays with a row a model, by name, and which models stayed finite, bool `[m]`."""
    keep = run.memberships(np.resize(stack, programs.width))
    # Of the pool's own examples: what models know of canaries is reported by itself.
    pool = np.arange(keep.shape[1]) < keep.shape[1] - run.config.num_canaries
    arrays: dict[str, np.ndarray] = {}

    def asked(sweep: Callable[..., Any], variables: Any, prefix: str) -> tuple[Any, np.ndarray, Any]:
        """Note the accuracies of some variables; what they answer about the pool, correct `[m, N]`, and about the test set."""
        answers, correct = jax.tree.map(np.asarray, sweep(variables, data.x, data.y))
        arrays[f"accuracy_{prefix}in"] = accuracy_over(correct, keep & pool)
        arrays[f"accuracy_{prefix}out"] = accuracy_over(correct, ~keep & pool)
        if data.x_test is None:
            return answers, correct, None
        tested, right = jax.tree.map(np.asarray, sweep(variables, data.x_test, data.y_test))
        arrays[f"accuracy_{prefix}test"] = accuracy_over(right, np.ones_like(right))
        return answers, correct, tested

    answers, correct, tested = asked(programs.sweep, learned.variables, "")
    arrays |= {**answers, "loss_in": _mean_loss(answers["phi"][:, :, 0], keep & pool), "correct": correct}
    finite = learned.finite & np.isfinite(answers["phi"]).all(axis=(1, 2))
    if tested is not None:
        arrays["phi_test"] = tested["phi"]
        finite &= np.isfinite(tested["phi"]).all(axis=(1, 2))
    for name, variables in learned.looks.items():
        arrays[name] = np.asarray(programs.sweep(variables, data.x, data.y)[0]["phi"])
        finite &= np.isfinite(arrays[name]).all(axis=(1, 2))
    if learned.loss is not None:
        arrays["loss_last_epoch"] = learned.loss
    if learned.canaries is not None:
        arrays["canary_scores"] = learned.canaries
        finite &= np.isfinite(learned.canaries).all(axis=1)
    if learned.raw is not None:
        asked(programs.clean, learned.raw, "raw_")
    if run.config.save_params:
        flat = jax.vmap(lambda v: ravel_pytree(v)[0].astype(jnp.float32))(learned.variables)
        arrays["params"] = np.asarray(flat)
    # A run of an earlier version has no array for some of them.
    return {name: array for name, array in arrays.items() if run.holds(name)}, finite


def _mean_loss(phi: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Mean cross-entropy of each model over the examples `among`, float32 `[m]`; NaN over none. `phi` is `[m, N]`."""
    count = among.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a diverged model's is NaN
        total = np.where(among, np.logaddexp(0, -phi.astype(np.float64)), 0).sum(axis=1)
    return (total / np.where(count, count, np.nan)).astype(np.float32)


def accuracy_over(correct: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Accuracy of each model over the examples `among`, float32 `[m]`; NaN over none."""
    count = among.sum(axis=1)
    return ((correct & among).sum(axis=1) / np.where(count, count, np.nan)).astype(np.float32)
