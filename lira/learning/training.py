"""One shadow model in training: a pure function of (recipe, key, data, keep row). Stacks are made outside, by `vmap`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lira.learning.augment import mixed
from lira.learning.averages import moved_toward, zero_average
from lira.learning.canary_gradients import linear_loss, read_along, weights_of
from lira.learning.forward import Array, as_input, augmented, compute_dtype, forward, fresh_variables
from lira.learning.imitation import answers_to_imitate, loss_of_imitation
from lira.learning.learner import Learner
from lira.learning.losses import cross_entropy, of_mixture
from lira.learning.noised import in_microbatches, microbatch_size, noised_sum, poisson_batch
from lira.learning.packing import pack, unpack
from lira.learning.recipe import learning_rate, optimizer, steps_per_epoch

__all__ = [
    "ModelState",
    "epoch_order",
    "init_model",
    "random_order",
    "train_epochs",
    "train_step",
    "variable_shapes",
]


class ModelState(NamedTuple):
    """One model in training. A stack of m models has a leading axis [m] on every leaf."""

    params: Any
    statistics: Any  # flax's other collections, such as BatchNorm's running averages
    optimizer: optax.OptState  # of packed params
    average: Any  # moving averages of (params, statistics), from zero; or None
    step: jax.Array  # int32, steps taken
    # What all steps' noised sums have along each canary that is a gradient, in units of clip: float32 [count]; or None.
    canaries: jax.Array | None = None


def init_model(learner: Learner, key: jax.Array, x: Array) -> ModelState:
    """A fresh model. `x [N, ...]` gives the shape of an example."""
    statistics = fresh_variables(learner.module, jax.random.fold_in(key, 0), as_input(x[:1], jnp.float32))
    params = statistics.pop("params")
    return ModelState(
        params=params,
        statistics=statistics,
        optimizer=_optimizer_of(learner).init(pack(params, params, learner.platform)),
        average=jax.tree.map(zero_average, (params, statistics)) if learner.recipe.ema else None,
        step=jnp.zeros((), jnp.int32),
        canaries=jnp.zeros(learner.canaries.count) if learner.canaries else None,
    )


def variable_shapes(learner: Learner, x: Array) -> dict[str, Any]:
    """Shapes and types of the variables that a model answers with, without making one. `x [N, ...]`."""
    state = jax.eval_shape(partial(init_model, learner), learner.key(0), x[:1])
    return {"params": state.params, **state.statistics}


def _optimizer_of(learner: Learner) -> optax.GradientTransformation:
    return optimizer(learner.recipe, learning_rate(learner.recipe, learner.total_steps))


def train_epochs(
    learner: Learner,
    state: ModelState,
    key: jax.Array,
    first: Array | int,
    epochs: int,
    stop: Array | int,
    x: Array,
    y: Array,
    keep: Array,
    taught: Any = None,
) -> tuple[ModelState, jax.Array]:
    """Train one model for the first `stop` steps of each of some epochs.

    Args:
        learner: how it is trained.
        state: of the model.
        key: the model's, see `Learner.key`.
        first: int, the epoch to begin with, from 0; with `key` epochs decide order, augmentation and dropout.
        epochs: how many, a constant of the program.
        stop: int, steps to take of each: `steps_per_epoch` for whole ones. Traced, one program serves any number; on a GPU
            the host then decides after each step whether another follows, which a constant spares it.
        x: `[N, ...]` uint8 or float32, shared by all models.
        y: int32 `[N]`.
        keep: bool `[N]`. No example outside it is ever touched.
        taught: what a learner that imitates a target knows of it, see `answers_to_imitate`.

    Returns:
        The new state, and the mean loss of the steps of each epoch, `[epochs]` (NaN once the model has diverged).
    """
    numbers, recipe = first + jnp.arange(epochs), learner.recipe
    steps = steps_per_epoch(len(keep), recipe.batch_size, learner.share)
    batches = jax.vmap(lambda number: epoch_order(learner, key, number, keep).reshape(steps, -1))(numbers)
    keys = jax.vmap(lambda number: jax.vmap(partial(_step_key, key, number))(jnp.arange(steps)))(numbers)
    zero = jnp.zeros((), jnp.promote_types(compute_dtype(recipe, state.params), jnp.float32))

    def one_epoch(packed: ModelState, drawn: tuple[jax.Array, jax.Array]) -> tuple[ModelState, jax.Array]:
        batches, keys = drawn

        def one_step(step: jax.Array, carry: tuple[ModelState, jax.Array]) -> tuple[ModelState, jax.Array]:
            packed, total = carry
            packed, loss = _packed_step(learner, state, packed, keys[step], batches[step], x, y, taught)
            return packed, total + loss

        packed, total = jax.lax.fori_loop(0, stop, one_step, (packed, zero))
        return packed, total / stop

    packed, losses = jax.lax.scan(one_epoch, _packed(learner, state), (batches, keys), unroll=epochs == 1)
    return _converted(unpack, packed, state), losses


def epoch_order(learner: Learner, key: jax.Array, epoch: Array | int, keep: Array) -> jax.Array:
    """The examples of one epoch in order, int32 `[steps * batch]`: a random permutation of the members that wraps.

    In private training each step takes members by coins: `[steps * max_batch]`, see `poisson_batch`.
    """
    size = learner.recipe.batch_size
    steps = steps_per_epoch(len(keep), size, learner.share)
    order_key = _epoch_keys(key, epoch)[0]
    if learner.recipe.privacy is None:
        return random_order(order_key, keep, steps * size)
    assert learner.guarantee is not None
    step_keys = jax.random.split(order_key, steps)
    # One after the other, for each looks at all of the pool.
    return jax.lax.map(partial(poisson_batch, learner.guarantee, members=keep), step_keys).ravel()


def random_order(key: jax.Array, members: Array, count: int) -> jax.Array:
    """A random permutation of the examples that the mask `members [N]` holds, as int32 `[count]`.

    It wraps where there are fewer. Random numbers are sorted with the others' at the end, so that the shape does not
    depend on how many members there are.
    """
    members = jnp.asarray(members)
    order = jnp.argsort(jnp.where(members, jax.random.uniform(key, members.shape, jnp.float32), 2.0))
    return order[jnp.arange(count) % jnp.maximum(jnp.sum(members), 1)].astype(jnp.int32)


def train_step(
    learner: Learner,
    state: ModelState,
    key: jax.Array,
    epoch: Array | int,
    step: Array | int,
    order: Array,
    x: Array,
    y: Array,
    taught: Any = None,
) -> tuple[ModelState, jax.Array]:
    """Train one model for step `step` of an epoch in the order of `epoch_order`; return its new state and the loss."""
    batch = jax.lax.dynamic_slice_in_dim(jnp.asarray(order), step * learner.batch, learner.batch)
    step_key = _step_key(key, epoch, step)
    packed, loss = _packed_step(learner, state, _packed(learner, state), step_key, batch, x, y, taught)
    return _converted(unpack, packed, state), loss


def _packed_step(
    learner: Learner,
    like: ModelState,
    state: ModelState,
    key: jax.Array,
    batch: jax.Array,
    x: Array,
    y: Array,
    taught: Any,
) -> tuple[ModelState, jax.Array]:
    """Train a packed state, whose trees are those of `like`, on the examples `batch [batch]`; `key` is the step's."""
    recipe, x, y = learner.recipe, jnp.asarray(x), jnp.asarray(y)
    params, before = unpack(state.params, like.params), unpack(state.statistics, like.statistics)
    if recipe.privacy is None:
        (loss, after), gradient = _gradient(learner, params, before, key, batch, x, y, taught)
    else:
        (loss, gradient), after = _private_gradient(learner, params, key, batch, x, y), before
    packed_gradient = pack(gradient, like.params, learner.platform)
    with jax.named_scope("optimizer"):
        update = _optimizer_of(learner).update
        updates, optimizer_state = update(packed_gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
    statistics = pack(after, like.statistics, learner.platform)
    average = state.average
    if recipe.ema:
        # Every floating-point variable, as in the authors' code: weights of one average are not evaluated with
        # statistics of another.
        with jax.named_scope("averages"):
            average = jax.tree.map(partial(moved_toward, recipe.ema), average, (params, statistics))
    canaries = state.canaries
    if learner.canaries is not None and canaries is not None:
        assert recipe.privacy is not None
        in_clips = recipe.batch_size / recipe.privacy.clip
        canaries = canaries + in_clips * read_along(learner.canaries, gradient)
    return ModelState(params, statistics, optimizer_state, average, state.step + 1, canaries), loss


def _gradient(
    learner: Learner,
    params: Any,
    before: Any,
    key: jax.Array,
    batch: jax.Array,
    x: jax.Array,
    y: jax.Array,
    taught: Any,
) -> tuple[tuple[jax.Array, Any], Any]:
    """The mean loss of the examples `batch [batch]`, the statistics after them, and the gradient."""
    recipe = learner.recipe
    augment_key, dropout_key = jax.random.split(key)
    images, labels = augmented(recipe, augment_key, x[batch]), y[batch]
    losses = partial(cross_entropy, smoothing=recipe.label_smoothing)
    if recipe.mixup:
        mixup_key, dropout_key = jax.random.split(dropout_key)
        images, *mixture = mixed(mixup_key, as_input(images, jnp.float32), recipe.mixup)
        losses = partial(of_mixture, losses, *mixture)
    if learner.imitation is not None:
        target = answers_to_imitate(learner.module, recipe, taught, batch, images)
        losses = partial(loss_of_imitation, learner.imitation, target=target)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = forward(learner.module, recipe, {"params": params, **before}, images, dropout_key)
        return losses(logits, labels=labels).mean(), updated

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def _private_gradient(
    learner: Learner, params: Any, key: jax.Array, batch: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, Any]:
    """The loss and the noised gradient of the examples `batch [max_batch]`, N where none is.

    Both are divided by the size that a batch has on average, for the number of examples in one is not to be known.
    """
    recipe, guarantee = learner.recipe, learner.guarantee
    assert recipe.privacy is not None
    assert guarantee is not None
    copies = recipe.privacy.multiplicity
    size = microbatch_size(params, guarantee.max_batch, learner.platform)
    batch = in_microbatches(batch, size, fill=len(y))

    def loss_of(
        params: Any, image: jax.Array, label: jax.Array, key: jax.Array, weight: jax.Array | None = None
    ) -> jax.Array:
        """Over so many augmentations of one example as its gradient is averaged over; canaries have a weight from 0."""
        augment_key, dropout_key = jax.random.split(key)
        images = augmented(recipe, augment_key, jnp.broadcast_to(image, (copies, *image.shape)))
        logits, _ = forward(learner.module, recipe, {"params": params}, images, dropout_key)
        loss = cross_entropy(logits, jnp.broadcast_to(label, copies), recipe.label_smoothing).mean()
        if weight is None:
            return loss
        return jnp.where(weight < 0, loss, linear_loss(params, weight, guarantee.clip).astype(loss.dtype))

    noise_key, example_key = jax.random.split(key)
    # Where none is, the last of all.
    examples = x[batch], y[batch], jax.random.split(example_key, len(batch))
    if learner.canaries is not None:
        weights = np.full(len(y), -1, np.int32)
        num_weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        weights[-learner.canaries.count :] = weights_of(learner.canaries, num_weights)
        examples += (jnp.asarray(weights)[batch],)
    total, loss = noised_sum(loss_of, guarantee, noise_key, params, examples, batch == len(y), size)
    examples_in_batch = recipe.batch_size
    if learner.canaries is not None:  # whose losses are 0
        examples_in_batch *= 1 - learner.canaries.count / 2 / (len(y) * learner.share)
    return loss / examples_in_batch, jax.tree.map(lambda leaf: leaf / recipe.batch_size, total)


# --- Packed for a program: a model's many small arrays as a few long ones --------------------------------------------


def _packed(learner: Learner, state: ModelState) -> ModelState:
    """A state as its platform trains it, see `pack`."""
    return _converted(partial(pack, platform=learner.platform), state, state)


def _converted(convert: Callable[[Any, Any], Any], state: ModelState, like: ModelState) -> ModelState:
    """A state with `convert(tree, tree of like)` in place of params, statistics and their averages: packed or unpacked."""
    shapes = like.params, like.statistics
    params, statistics = map(convert, (state.params, state.statistics), shapes)
    average = state.average and tuple(map(convert, state.average, shapes))
    return state._replace(params=params, statistics=statistics, average=average)


def _step_key(key: jax.Array, epoch: Array | int, step: Array | int) -> jax.Array:
    return jax.random.fold_in(_epoch_keys(key, epoch)[1], step)


def _epoch_keys(key: jax.Array, epoch: Array | int) -> tuple[jax.Array, jax.Array]:
    """The key of an epoch's order and that of its steps."""
    order_key, step_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), epoch))
    return order_key, step_key
