"""Forgetting by further training: on what is retained, against what is to be forgotten, or both."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import Args, InterceptorContext, Kwargs, NextGetter

from lira.learning.forward import as_input, fresh_variables
from lira.unlearners.problem import Batch, Problem, Valued, Variables, cross_entropy, descend, retained_loss

__all__ = ["finetune", "gradient_ascent", "last_layer", "negrad_plus", "none", "random_labels", "scrub"]


# --- The methods -----------------------------------------------------------------------------------------------------


def none(problem: Problem, key: jax.Array) -> Variables:
    """The control: the model as it is."""
    return problem.variables


def finetune(problem: Problem, key: jax.Array, *, epochs: int = 5, rate: float = 0.5) -> Variables:
    """Train on what is retained, and trust that the rest is forgotten.

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
    """
    return descend(problem, key, retained_loss(problem), over="retain", epochs=epochs, rate=rate)


def gradient_ascent(
    problem: Problem, key: jax.Array, *, epochs: int = 20, rate: float = 0.5, clip: float = 1.0
) -> Variables:
    """Climb the loss of the forgotten examples.

    Graves et al. 2021 (arXiv 2010.10981), Thudi et al. 2022 (arXiv 2109.13398). Nothing bounds that loss: more steps
    destroy the model, and unclipped they overflow.

    Args:
        problem: the model and what it is to forget.
        key: of batches.
        epochs: passes over the forgotten examples.
        rate: share of the recipe's peak learning rate.
        clip: norm to which longer gradients are shortened.
    """

    def loss(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        logits, statistics = problem.ask(variables, forget.x)
        return -cross_entropy(logits, forget.y), statistics

    return descend(problem, key, loss, over="forget", epochs=epochs, rate=rate, clip=clip)


def negrad_plus(
    problem: Problem,
    key: jax.Array,
    *,
    epochs: int = 5,
    rate: float = 0.5,
    beta: float = 0.8,
    clip: float = 1.0,
) -> Variables:
    """Descend on the retained and climb on the forgotten examples at once.

    NegGrad+ of Kurmanji et al. 2023 (arXiv 2302.09880).

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
        beta: weight of the retained loss; 1 - beta is the forgotten one's.
        clip: norm to which longer gradients are shortened.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1]; got {beta}")
    retained = retained_loss(problem)

    def loss(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        kept, statistics = retained(variables, forget, retain, step_key)
        logits, _ = problem.ask(variables, forget.x)
        return beta * kept - (1 - beta) * cross_entropy(logits, forget.y), statistics

    return descend(problem, key, loss, over="retain", epochs=epochs, rate=rate, clip=clip)


def random_labels(problem: Problem, key: jax.Array, *, epochs: int = 5, rate: float = 0.5) -> Variables:
    """Train the forgotten examples under wrong labels, drawn once, beside the retained ones.

    Graves et al. 2021 (arXiv 2010.10981).

    Args:
        problem: the model and what it is to forget.
        key: of labels, batches and dropout.
        epochs: passes over the retained examples; each step has a batch of either side.
        rate: share of the recipe's peak learning rate.
    """
    label_key, key = jax.random.split(key)
    wrong = wrong_labels(label_key, problem.y, problem.num_classes)
    retained = retained_loss(problem)
    share = problem.size / len(problem.y)  # as if all examples were trained on together

    def loss(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        kept, statistics = retained(variables, forget, retain, step_key)
        logits, _ = problem.ask(variables, forget.x)
        return (1 - share) * kept + share * cross_entropy(logits, wrong[forget.rows]), statistics

    return descend(problem, key, loss, over="retain", epochs=epochs, rate=rate)


def scrub(
    problem: Problem,
    key: jax.Array,
    *,
    epochs: int = 10,
    ascents: int = 4,
    passes: int = 6,
    rate: float = 0.5,
    alpha: float = 0.1,
    gamma: float = 1.0,
    temperature: float = 4.0,
    clip: float = 1.0,
) -> Variables:
    """A student that disobeys its teacher on the forgotten examples alone.

    Kurmanji et al. 2023 (arXiv 2302.09880), algorithm 1.

    The teacher is the trained model. Each of the first `ascents` epochs begins with `passes` over the forgotten examples
    that climb KL(teacher, student); every epoch passes over the retained ones and descends on `alpha` KL(teacher,
    student) + `gamma` cross-entropy. At the start the student is the teacher and has no slope to climb: only what
    follows the first descent forgets.

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        ascents: epochs that begin with the forgotten examples, at most `epochs`.
        passes: over the forgotten examples in such an epoch.
        rate: share of the recipe's peak learning rate.
        alpha: weight of the distillation on retained examples.
        gamma: weight of their loss.
        temperature: of the distillation.
        clip: norm to which longer gradients are shortened.
    """
    if not 1 <= ascents <= epochs:
        raise ValueError(f"ascents must be in 1..epochs, here 1..{epochs}; got {ascents}")

    def divergence(
        variables: Variables, x: jax.Array, step_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Variables]:
        taught, _ = problem.ask(problem.variables, x)
        logits, statistics = problem.ask(variables, x, step_key)
        teacher, student = (jax.nn.log_softmax(a / temperature) for a in (taught, logits))
        kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1).mean()
        return temperature**2 * kl, logits, statistics

    def climb(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        kl, _, statistics = divergence(variables, forget.x)
        return -kl, statistics

    def obey(variables: Variables, forget: Batch, retain: Batch, step_key: jax.Array) -> Valued:
        kl, logits, statistics = divergence(variables, retain.x, step_key)
        return alpha * kl + gamma * cross_entropy(logits, retain.y), statistics

    def one_epoch(variables: Variables, epoch: jax.Array) -> tuple[Variables, None]:
        climb_key, obey_key = jax.random.split(jax.random.fold_in(key, epoch))
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs))
        go_over = partial(descend, problem, rate=now, anneal=False, clip=clip)
        climbed = jax.lax.cond(
            epoch < ascents,
            lambda: go_over(climb_key, climb, over="forget", epochs=passes, variables=variables),
            lambda: variables,
        )
        return go_over(obey_key, obey, over="retain", epochs=1, variables=climbed), None

    return jax.lax.scan(one_epoch, problem.variables, jnp.arange(epochs))[0]


def last_layer(problem: Problem, key: jax.Array, *, epochs: int = 10, rate: float = 0.5) -> Variables:
    """Draw the last `nn.Dense` layer anew and fine-tune on what is retained (after Goel et al. 2022, arXiv 2201.06640).

    The whole model is fine-tuned: a new layer on frozen features would leave in them what they remember.

    Args:
        problem: the model and what it is to forget.
        key: of the new layer, of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
    """
    init_key, key = jax.random.split(key)
    example = as_input(jnp.asarray(problem.x)[:1], jnp.float32)
    layer = _last_dense(problem.module, example)
    fresh = fresh_variables(problem.module, init_key, example)["params"]
    params = _replaced(problem.variables["params"], fresh, layer)
    start = {**problem.variables, "params": params}
    return descend(
        problem, key, retained_loss(problem), over="retain", epochs=epochs, rate=rate, variables=start
    )


# --- Behind the scenes -----------------------------------------------------------------------------------------------


def wrong_labels(key: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    """A label for every example, int32 `[N]`, uniform over the classes that are not its own."""
    return (y + jax.random.randint(key, y.shape, 1, num_classes)) % num_classes


def _last_dense(module: nn.Module, example: jax.Array) -> tuple[str, ...]:
    """The path of the `nn.Dense` layer that is called last."""
    called: list[tuple[str, ...]] = []

    def watch(call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            called.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: fresh_variables(module, jax.random.key(0), example))
    if not called:
        raise ValueError(f"last_layer needs a flax nn.Dense layer, and {type(module).__name__} has none")
    return called[-1]


def _replaced(params: Any, fresh: Any, path: tuple[str, ...]) -> Any:
    """`params` with the subtree at `path` taken from `fresh`."""
    if not path:
        return jax.tree.map(lambda old, new: new.astype(old.dtype), params, fresh)
    return {**params, path[0]: _replaced(params[path[0]], fresh[path[0]], path[1:])}
