"""What an unlearning method is given, and the loops over batches that methods share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lira.learning.forward import Variables, augmented, forward
from lira.learning.recipe import Recipe, optimizer, steps_per_epoch
from lira.learning.training import random_order

__all__ = [
    "Batch",
    "Method",
    "Problem",
    "Valued",
    "Variables",
    "cross_entropy",
    "descend",
    "fold_steps",
    "retained_loss",
]


class Batch(NamedTuple):
    """Examples of one step: their rows in the pool, int32 `[n]`, images or features `[n, ...]` and labels `[n]`."""

    rows: jax.Array
    x: jax.Array
    y: jax.Array


class Problem(NamedTuple):
    """One trained model, and the request that it is to forget."""

    module: nn.Module
    recipe: Recipe
    num_classes: int
    size: int  # examples in the whole request; a model holds about half of them
    variables: Variables  # {"params": ..., **statistics}, as the trained model answers
    x: jax.Array  # [N, ...], the whole pool
    y: jax.Array  # int32 [N]
    forget: jax.Array  # bool [N], the part of the request that the model holds
    retain: jax.Array  # bool [N], what it goes on to hold

    def ask(
        self, variables: Variables, x: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Variables]:
        """Logits `[n, C]` and statistics: in training mode with a key for dropout, in evaluation mode without."""
        return forward(self.module, self.recipe, variables, x, key)

    def steps(self, side: str) -> tuple[int, int]:
        """Steps in a pass over one side, "forget" or "retain", and examples a step.

        Static, so the same for every model: a pass is over half of the request or of the rest, as in training.
        """
        batch = self.recipe.batch_size
        if side == "retain":
            return max(1, steps_per_epoch(len(self.y) - self.size, batch)), batch
        batch = min(batch, max(1, self.size // 2))
        return max(1, self.size // 2 // batch), batch


Method = Callable[..., Variables]
Valued = tuple[jax.Array, Variables]  # the loss, a scalar, and the statistics that the model goes on with
Loss = Callable[[Variables, Batch, Batch, jax.Array], Valued]  # (variables, forget, retain, step key)


def fold_steps(
    problem: Problem,
    key: jax.Array,
    visit: Callable[[Any, Batch, Batch, jax.Array], Any],
    carry: Any,
    *,
    over: str,
    epochs: int,
) -> Any:
    """Go through the batches: `carry = visit(carry, forget, retain, step_key)` at every step; return the last `carry`.

    Args:
        problem: the model and what it is to forget.
        key: decides orders, augmentation and the keys of the steps.
        visit: it is given a batch of either side at every step, augmented as the recipe augments.
        carry: any pytree.
        over: the side, "forget" or "retain", whose passes are counted. Each is gone through in a random order, drawn
            anew at every pass over the counted side, that wraps.
        epochs: passes, at least 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1; got {epochs}")
    counts = {side: problem.steps(side) for side in ("forget", "retain")}
    masks = {"forget": problem.forget, "retain": problem.retain}
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)

    def one_epoch(carry: Any, epoch: jax.Array) -> tuple[Any, None]:
        *order_keys, steps_key = jax.random.split(jax.random.fold_in(key, epoch), 3)
        orders = [
            random_order(order_key, masks[side], steps * batch).reshape(steps, batch)
            for order_key, (side, (steps, batch)) in zip(order_keys, counts.items(), strict=True)
        ]

        def one_step(carry: Any, step: jax.Array) -> tuple[Any, None]:
            *augment_keys, step_key = jax.random.split(jax.random.fold_in(steps_key, step), 3)

            def batch(augment_key: jax.Array, order: jax.Array) -> Batch:
                rows = order[step % len(order)]
                return Batch(rows, augmented(problem.recipe, augment_key, x[rows]), y[rows])

            forget, retain = map(batch, augment_keys, orders)
            return visit(carry, forget, retain, step_key), None

        return jax.lax.scan(one_step, carry, jnp.arange(counts[over][0]))[0], None

    return jax.lax.scan(one_epoch, carry, jnp.arange(epochs))[0]


def descend(
    problem: Problem,
    key: jax.Array,
    loss: Loss,
    *,
    over: str,
    epochs: int,
    rate: float | jax.Array,
    anneal: bool = True,
    clip: float = float("inf"),
    variables: Variables | None = None,
) -> Variables:
    """Follow the gradient of `loss` by the recipe's optimizer, from a fresh state of it.

    Args:
        problem: the model and what it is to forget.
        key: see `fold_steps`.
        loss: `loss(variables, forget, retain, step_key)` is the scalar and the statistics that the model goes on with.
        over: the side whose passes are counted, "forget" or "retain".
        epochs: passes.
        rate: the learning rate of the first step, as a share of the recipe's peak.
        anneal: let it fall to 0 along a cosine; else it is constant.
        clip: norm to which longer gradients are shortened.
        variables: where to start; the trained model by default.
    """
    if isinstance(rate, float) and not 0 < rate < float("inf"):
        raise ValueError(f"rate must be positive; got {rate}")
    if not clip > 0:
        raise ValueError(f"clip must be positive; got {clip}")
    start = problem.variables if variables is None else variables
    total = epochs * problem.steps(over)[0]

    def learning_rate(step: ArrayLike) -> jax.Array | float:
        shape = 0.5 * (1 + jnp.cos(jnp.pi * step / total)) if anneal else 1.0
        return rate * problem.recipe.learning_rate * shape

    steps = optax.chain(optax.clip_by_global_norm(clip), optimizer(problem.recipe, learning_rate))

    def visit(
        carry: tuple[Variables, Any], forget: Batch, retain: Batch, step_key: jax.Array
    ) -> tuple[Variables, Any]:
        variables, state = carry

        def of_params(params: Any) -> tuple[jax.Array, Variables]:
            return loss({**variables, "params": params}, forget, retain, step_key)

        gradient, statistics = jax.grad(of_params, has_aux=True)(variables["params"])
        updates, state = steps.update(gradient, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **statistics}, state

    carry = (start, steps.init(start["params"]))
    return fold_steps(problem, key, visit, carry, over=over, epochs=epochs)[0]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def retained_loss(problem: Problem) -> Loss:
    def loss(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        logits, statistics = problem.ask(variables, retain.x, step_key)
        return cross_entropy(logits, retain.y), statistics

    return loss
