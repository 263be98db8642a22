"""What a trained model answers with, and what it answers: averaged weights, norm statistics, queries."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import Args, InterceptorContext, Kwargs, NextGetter

from lira.learning.augment import Queries, query_views
from lira.learning.averages import is_float, zero_average
from lira.learning.forward import (
    Array,
    Variables,
    apply_module,
    as_input,
    augmented,
    fresh_variables,
)
from lira.learning.learner import Learner
from lira.learning.masking import masked_logits
from lira.learning.recipe import SIGNALS, Recipe, steps_per_epoch
from lira.learning.training import ModelState, random_order
from lira.signals import is_correct, logit_scaled_confidence

__all__ = ["answers_by_average", "evaluated", "norm_constants", "query", "recomputed_statistics"]


# --- What a trained model answers with -------------------------------------------------------------------------------


def answers_by_average(recipe: Recipe, queries: Queries) -> bool:
    """Whether a model is asked by the moving average of its weights; else by the weights as they were trained."""
    return recipe.ema > 0 and queries.convention == "paper"


def evaluated(
    learner: Learner, queries: Queries, state: ModelState, key: jax.Array, x: Array, keep: Array
) -> Variables:
    """The variables that a trained model answers with: its weights, or their bias-corrected moving average.

    The average comes with statistics of its own: averaged as the weights are, or recomputed over the members. Those of
    the last steps are of other weights: a deep network evaluated with them is wrong.

    Args:
        learner: how it was trained.
        queries: which decide by their convention.
        state: of the model.
        key: the model's, see `Learner.key`.
        x: `[N, ...]`.
        keep: bool `[N]`, its members.
    """
    recipe = learner.recipe
    if not answers_by_average(recipe, queries):
        return {"params": state.params, **state.statistics}
    correction = 1 - recipe.ema ** state.step.astype(jnp.float32)
    params, statistics = jax.tree.map(
        lambda mean, leaf: (mean / correction).astype(leaf.dtype) if is_float(leaf) else mean,
        state.average,
        (state.params, state.statistics),
    )
    average = {"params": params, **statistics}
    if recipe.statistics == "averaged" or not state.statistics:
        return average
    return {**average, **recomputed_statistics(learner, average, key, x, keep)}


def recomputed_statistics(
    learner: Learner, variables: Variables, key: jax.Array, x: Array, keep: Array
) -> Variables:
    """The statistics of a model's norms under the weights of `variables`, over the batches of one epoch.

    Of every batch the statistics that it has by itself, and of them all the mean, in training mode and in float32 as
    models are queried. Order, augmentation and dropout are drawn from `key`, once and for all. Statistics of modules that
    are no `nn.BatchNorm` go on as the module moves them, from `variables` on, and their mean over the batches is taken.
    """
    recipe, x, keep = learner.recipe, jnp.asarray(x), jnp.asarray(keep)
    steps = steps_per_epoch(len(keep), recipe.batch_size, learner.share)
    order_key, steps_key = jax.random.split(jax.random.fold_in(key, 3))
    batches = random_order(order_key, keep, steps * recipe.batch_size).reshape(steps, recipe.batch_size)
    statistics = {name: value for name, value in variables.items() if name != "params"}

    def one_batch(carry: tuple[Variables, Variables], step: jax.Array) -> tuple[Any, None]:
        statistics, total = carry
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(steps_key, step))
        images = augmented(recipe, augment_key, x[batches[step]])
        asked = {"params": variables["params"], **statistics}
        with nn.intercept_methods(_without_memory), jax.default_matmul_precision("highest"):
            _, statistics = apply_module(learner.module, asked, as_input(images, jnp.float32), dropout_key)
        return (statistics, jax.tree.map(_added, total, statistics)), None

    zeros = jax.tree.map(zero_average, statistics)
    (last, total), _ = jax.lax.scan(one_batch, (statistics, zeros), jnp.arange(steps))
    return jax.tree.map(
        lambda t, leaf: (t / steps).astype(leaf.dtype) if is_float(leaf) else leaf, total, last
    )


def _added(total: jax.Array, leaf: jax.Array) -> jax.Array:
    return total + leaf if is_float(leaf) else leaf


def _without_memory(call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext) -> Any:
    """What a layer returns, a `nn.BatchNorm`'s running statistics becoming those of the batch alone; for flax's interceptors."""
    module = context.module
    if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__" or module.momentum == 0:
        return call(*args, **kwargs)
    return module.clone(parent=module.scope, momentum=0.0)(*args, **kwargs)


def norm_constants(module: nn.Module, x: Array) -> dict[str, dict[str, Any]]:
    """The constants of a module's norms, by path: kind, and epsilon and momentum where it has them. `x [N, ...]`."""
    norms: dict[str, dict[str, Any]] = {}

    def note(call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext) -> Any:
        layer = context.module
        fields = vars(layer)  # getattr calls a method of flax.nnx.bridge.ToLinen, which would come back here
        constants = {
            name: float(value)
            for name in ("epsilon", "momentum")
            if isinstance(value := fields.get(name), int | float)
        }
        if constants:
            norms["/".join(layer.path)] = {"kind": type(layer).__name__, **constants}
        return call(*args, **kwargs)

    def init(key: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return fresh_variables(module, key, as_input(jnp.asarray(x[:1]), jnp.float32))

    jax.eval_shape(init, jax.random.key(0))
    return dict(sorted(norms.items()))


@jax.named_scope("query")
def query(
    module: nn.Module, queries: Queries, signals: tuple[str, ...], variables: Variables, x: Array, y: Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Ask one model about a batch of examples in float32.

    In evaluation mode, so that examples have nothing to do with one another; by the convention "original" in training
    mode, in which each view of the batch is normalised by its own mean and variance.

    Args:
        module: flax module.
        queries: the Q views, and how the answers are masked, which all signals are then of.
        signals: what to return beside phi, of `SIGNALS`.
        variables: of the model, as `evaluated` gives them.
        x: `[n, ...]`.
        y: int32 `[n]`.

    Returns:
        By name phi and the other signals, float32 `[n, Q]` (logits `[n, Q, C]`); and whether the clean example is
        classified correctly, bool `[n]`.
    """
    views = query_views(jnp.asarray(x), queries)
    Q, n = views.shape[:2]
    # Where |phi| reaches 50, where low false-positive rates live, TF32 moves it by .02 and more. Three products of
    # operands split into bfloat16 move it by up to 1e-3, but XLA's bfloat16 convolutions do not return float32
    # (experiments/benchmarks/queries.py).
    with jax.default_matmul_precision("highest"):
        if queries.convention == "original":
            key = jax.random.key(0)  # of dropout, which the authors' network has not
            logits = jax.lax.map(
                lambda view: apply_module(module, variables, as_input(view, jnp.float32), key)[0], views
            )
        else:
            logits, _ = apply_module(
                module, variables, as_input(views.reshape(Q * n, *x.shape[1:]), jnp.float32), None
            )
    logits = jnp.asarray(logits, jnp.float32).reshape(Q, n, -1)
    correct = is_correct(logits[0], y)  # whatever is released: the class that it would have named
    if queries.masked:
        logits = masked_logits(
            logits, temperature=queries.temperature, decimals=queries.decimals, top_k=queries.top_k
        )
    labels = jnp.broadcast_to(y, (Q, n))
    answers = {"phi": logit_scaled_confidence(logits, labels)}
    answers |= {name: SIGNALS[name](logits, labels) for name in signals}
    return {name: jnp.swapaxes(values, 0, 1) for name, values in answers.items()}, correct
