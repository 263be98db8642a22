"""What completing an unlearning costs, before anything is spent."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lira.data.dataset import Dataset
from lira.engine.plan import plan
from lira.engine.progress import duration
from lira.learning.learner import Learner
from lira.learning.recipe import steps_per_epoch
from lira.learning.training import init_model, train_step
from lira.store.places import Place
from lira.store.run import Run
from lira.unlearners import RETRAIN
from lira.unlearning.config import UnlearnConfig, first_memberships, run_config
from lira.unlearning.directory import Unlearning
from lira.unlearning.methods import traced
from lira.unlearning.requests import draw_requests

__all__ = ["UnlearningPlan", "plan_unlearning"]


# --- What it costs ---------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Models of one kind in a plan."""

    name: str
    models: int  # to be made
    of: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class UnlearningPlan:
    """What completing an unlearning costs, before anything is spent."""

    kinds: list[Kind]
    device: str  # in words, with widths and lowering

    def __str__(self) -> str:
        """A line a kind of models."""
        lines = [
            f"{kind.name:>20}: {kind.models} of {kind.of} models, about {duration(kind.seconds)}"
            for kind in self.kinds
        ]
        total = f"{'together':>20}: about {duration(sum(kind.seconds for kind in self.kinds))} {self.device}"
        return "\n".join([*lines, total])


def plan_unlearning(
    config: UnlearnConfig, dataset: Dataset, unlearning: Unlearning | None = None
) -> UnlearningPlan:
    """Estimate the cost of `config` (`resolved`), or of what `unlearning` still lacks.

    A few steps of training are timed; a method costs as many of them as its multiplications come to.
    """
    requests = draw_requests(config, dataset, first_memberships(config, dataset))
    M, K = config.pool.num_models, len(requests)
    training = plan(run_config(config, models=M, save_params=True), dataset)
    recipe = config.pool.recipe
    steps = steps_per_epoch(dataset.num_examples, recipe.batch_size) * recipe.epochs
    # As in `plan`, a query costs a third of what an image costs in training.
    views = (dataset.num_examples + dataset.num_test) * len(config.pool.queries.views)
    asked = views / recipe.batch_size / 3
    seconds_per_step = training.seconds / M / (steps + asked)
    one_step = _step_operations(Learner.of(recipe, dataset), dataset)

    def kind(name: str, path: Place | None, of: int, its_steps: float) -> Kind:
        missing = of
        if path is not None and (path / "config.toml").exists():
            missing = int((Run.open(path).done == 0).sum())
        return Kind(name, missing, of, missing * (its_steps + asked) * seconds_per_step)

    root = unlearning.path if unlearning else None
    kinds = []
    if not config.run:
        kinds.append(kind("original", root and root / "before", M, steps))
    kinds.append(kind("retrained", root and root / "retrained", K * M, steps))
    for name in config.methods:
        its_steps = steps
        if name != RETRAIN:
            its_steps = operations(traced(name, config, dataset, requests).jaxpr) / one_step
        kinds.append(kind(name, root and root / "methods" / name, K * M, its_steps))
    return UnlearningPlan(
        kinds,
        f"on {training.device} ({training.workers} x {training.width} side by side, convolutions by "
        f"{training.lowering})",
    )


def _step_operations(learner: Learner, dataset: Dataset) -> int:
    """Multiplications of one training step of one model."""
    key = learner.key(0)
    state = jax.eval_shape(partial(init_model, learner), key, dataset.x[:1])
    order = jax.ShapeDtypeStruct((learner.batch,), jnp.int32)
    step = partial(train_step, learner)
    return operations(jax.make_jaxpr(step)(state, key, 0, 0, order, dataset.x, dataset.y).jaxpr)


def operations(jaxpr: Any) -> int:
    """Multiplications in the matrix products and convolutions of a program, those in a loop as often as it turns.

    Loops whose number of turns is not known beforehand count once.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += int(np.prod(equation.outvars[0].aval.shape)) * int(
                np.prod([shape[axis] for axis in contracted])
            )
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += int(np.prod(equation.outvars[0].aval.shape)) * int(np.prod(kernel)) // features
        else:
            inner = [
                operations(getattr(each, "jaxpr", each))
                for value in equation.params.values()
                for each in (value if isinstance(value, tuple | list) else [value])
                if hasattr(each, "eqns")
            ]
            # Of the branches of a condition one is taken.
            once = max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
            total += once * equation.params.get("length", 1)
    return total
