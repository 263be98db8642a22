"""One shadow model as a pure function of (recipe, key, data, keep row). Stacks are made outside, by `vmap`."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lira.augment import Queries, augment, check_augmentation, query_views
from lira.packing import pack, unpack
from lira.signals import entropy, is_correct, logit_scaled_confidence, modified_entropy

__all__ = [
    "SIGNALS",
    "ModelState",
    "Recipe",
    "answers_by_average",
    "augmented",
    "epoch_order",
    "evaluated",
    "forward",
    "init_model",
    "learning_rate",
    "model_key",
    "norm_constants",
    "optimizer",
    "query",
    "random_order",
    "recomputed_statistics",
    "steps_per_epoch",
    "train_epochs",
    "train_step",
]

Array = jax.Array | np.ndarray  # a trace, or what users have

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "cos7pi16", "constant")
PRECISIONS = ("float32", "bfloat16")
STATISTICS = ("recomputed", "averaged")
# What a sweep can store beside phi, from logits [..., C] and labels [...].
SIGNALS = {
    "entropy": lambda logits, labels: entropy(logits),
    "modified_entropy": modified_entropy,
    "logits": lambda logits, labels: logits,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what one shadow model becomes. How it is executed is not part of it."""

    model: str = "mlp"
    """mlp, cnn, cnn-small, cnn-fast, resnet18, wrn-DEPTH-WIDTH, or the dotted path of your own flax module."""
    epochs: int = 50
    """Passes over a model's members."""
    batch_size: int = 64
    """Examples a step."""
    optimizer: str = "sgd"
    """sgd (with momentum), adam or adamw."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: str = "cosine"
    """cosine (to 0), cos7pi16 (the LiRA paper's, to 0.2 of the peak) or constant."""
    warmup: float = 0.0
    """Share of all steps over which the learning rate rises linearly from 0."""
    momentum: float = 0.9
    """Of sgd; adam and adamw use 0.9 and 0.999."""
    weight_decay: float = 0.0
    """On weights, not on biases and norms; added to the gradient (sgd, adam) or decoupled (adamw)."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated in their place (the paper: 0.999); 0 is off."""
    statistics: str = "recomputed"
    """Of norms under averaged weights: recomputed over the members, or averaged as the weights are (the paper's code)."""
    flip: bool = False
    """Mirror training images at random."""
    crop_pad: int = 0
    """Shift training images by up to this many pixels, the border filled by reflection."""
    precision: str = "float32"
    """Of the computation: float32 or bfloat16. Weights, statistics and queries are float32 always."""
    seed: int = 0
    """Model m draws all its randomness from (seed, m). Membership has a seed of its own."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("statistics", STATISTICS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"recipe.{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"recipe.learning_rate must be positive; got {self.learning_rate}")
        for name in ("momentum", "ema", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be in [0, 1); got {getattr(self, name)}")
        for name in ("weight_decay", "crop_pad", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"recipe.{name} must not be negative; got {getattr(self, name)}")

    def check(self, num_examples: int, example_shape: tuple[int, ...]) -> None:
        """Raise ValueError if a pool of this size and shape cannot be trained by this recipe."""
        if self.batch_size > num_examples // 2:
            raise ValueError(
                f"recipe.batch_size is {self.batch_size}, but a model has only about {num_examples // 2} members: "
                f"no step would be full"
            )
        check_augmentation(self.flip, self.crop_pad, example_shape)


class ModelState(NamedTuple):
    """One model in training. A stack of m models has a leading axis [m] on every leaf."""

    params: Any
    statistics: Any  # flax's other collections, such as BatchNorm's running averages
    optimizer: optax.OptState  # of packed params
    average: Any  # moving average of {"params": params, **statistics}, from zero; or None
    step: jax.Array  # int32, steps taken


def model_key(seed: int, index: Array | int) -> jax.Array:
    """The key of all of model `index`'s randomness: independent of the stack that trains it."""
    return jax.random.fold_in(jax.random.key(seed), index)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """floor(N / 2 / batch), the same for every model although their numbers of members differ."""
    return num_examples // 2 // batch_size


def learning_rate(recipe: Recipe, total_steps: int) -> optax.Schedule:
    """The learning rate at each step, counted from 0."""
    warmup_steps = recipe.warmup * total_steps

    def schedule(step):
        step = jnp.asarray(step, float)  # float64 where that is on, as int32 would not become
        progress = step / total_steps
        if recipe.schedule == "cosine":
            shape = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif recipe.schedule == "cos7pi16":
            shape = jnp.cos(7 * jnp.pi / 16 * progress)
        else:
            shape = 1.0
        # The first step already moves: (step + 1) / warm-up steps.
        return recipe.learning_rate * shape * jnp.clip((step + 1) / max(warmup_steps, 1), 0, 1)

    return schedule


def optimizer(recipe: Recipe, rate: optax.Schedule) -> optax.GradientTransformation:
    """The recipe's optimizer at the learning rates `rate(step)`."""
    # Biases and the scales of norms are vectors; everything that is decayed has two axes or more.
    decay = optax.add_decayed_weights(recipe.weight_decay, mask=partial(jax.tree.map, lambda p: p.ndim > 1))
    adam = optax.scale_by_adam()
    parts = {
        "sgd": (decay, optax.trace(recipe.momentum)),
        "adam": (decay, adam),
        "adamw": (adam, decay),
    }[recipe.optimizer]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def init_model(module: nn.Module, recipe: Recipe, total_steps: int, key: jax.Array, x: Array) -> ModelState:
    """A fresh model. `x [N, ...]` gives the shape of an example."""
    variables = module.init(jax.random.fold_in(key, 0), as_input(x[:1], jnp.float32), train=False)
    statistics, params = dict(variables), variables["params"]
    del statistics["params"]
    return ModelState(
        params=params,
        statistics=statistics,
        optimizer=optimizer(recipe, learning_rate(recipe, total_steps)).init(pack(params, params)),
        average=jax.tree.map(_zero_average, dict(variables)) if recipe.ema else None,
        step=jnp.zeros((), jnp.int32),
    )


def train_epochs(
    module: nn.Module,
    recipe: Recipe,
    total_steps: int,
    state: ModelState,
    key: jax.Array,
    first: Array | int,
    epochs: int,
    stop: Array | int,
    x: Array,
    y: Array,
    keep: Array,
) -> tuple[ModelState, jax.Array]:
    """Train one model for the first `stop` steps of each of some epochs.

    Args:
        module: flax module, `(x, train) -> logits [batch, C]`.
        recipe: how it is trained.
        total_steps: of the whole training, which the schedule spans.
        state: of the model.
        key: the model's, see `model_key`.
        first: int, the epoch to begin with, from 0; with `key` epochs decide order, augmentation and dropout.
        epochs: how many, a constant of the program.
        stop: int, steps to take of each: `steps_per_epoch` for whole ones. Traced, one program serves any number; on a GPU
            the host then decides after each step whether another follows, which a constant spares it.
        x: `[N, ...]` uint8 or float32, shared by all models.
        y: int32 `[N]`.
        keep: bool `[N]`. No example outside it is ever touched.

    Returns:
        The new state, and the mean loss of the steps of each epoch, `[epochs]` (NaN once the model has diverged).
    """
    numbers = first + jnp.arange(epochs)
    steps = steps_per_epoch(len(keep), recipe.batch_size)
    batches = jax.vmap(lambda number: epoch_order(recipe, key, number, keep).reshape(steps, -1))(numbers)
    keys = jax.vmap(lambda number: jax.vmap(partial(_step_key, key, number))(jnp.arange(steps)))(numbers)
    zero = jnp.zeros((), jnp.promote_types(_compute_dtype(recipe, state.params), jnp.float32))

    def one_epoch(packed, drawn):
        batches, keys = drawn

        def one_step(step, carry):
            packed, total = carry
            packed, loss = _packed_step(
                module, recipe, total_steps, state, packed, keys[step], batches[step], x, y
            )
            return packed, total + loss

        packed, total = jax.lax.fori_loop(0, stop, one_step, (packed, zero))
        return packed, total / stop

    packed, losses = jax.lax.scan(one_epoch, _packed(state), (batches, keys), unroll=epochs == 1)
    return _unpacked(packed, state), losses


def epoch_order(recipe: Recipe, key: jax.Array, epoch: Array | int, keep: Array) -> jax.Array:
    """The examples of one epoch in order, int32 `[steps * batch]`: a random permutation of the members that wraps."""
    count = steps_per_epoch(len(keep), recipe.batch_size) * recipe.batch_size
    return random_order(_epoch_keys(key, epoch)[0], keep, count)


def random_order(key: jax.Array, members: Array, count: int) -> jax.Array:
    """A random permutation of the examples that the mask `members [N]` holds, as int32 `[count]`.

    It wraps where there are fewer. Random numbers are sorted with the others' at the end, so that the shape does not
    depend on how many members there are.
    """
    members = jnp.asarray(members)
    order = jnp.argsort(jnp.where(members, jax.random.uniform(key, members.shape, jnp.float32), 2.0))
    return order[jnp.arange(count) % jnp.maximum(jnp.sum(members), 1)].astype(jnp.int32)


def train_step(
    module: nn.Module,
    recipe: Recipe,
    total_steps: int,
    state: ModelState,
    key: jax.Array,
    epoch: Array | int,
    step: Array | int,
    order: Array,
    x: Array,
    y: Array,
) -> tuple[ModelState, jax.Array]:
    """Train one model for step `step` of an epoch in the order of `epoch_order`; return its new state and the loss."""
    batch = jax.lax.dynamic_slice_in_dim(jnp.asarray(order), step * recipe.batch_size, recipe.batch_size)
    step_key = _step_key(key, epoch, step)
    packed, loss = _packed_step(module, recipe, total_steps, state, _packed(state), step_key, batch, x, y)
    return _unpacked(packed, state), loss


def _packed_step(module, recipe, total_steps, like, state, key, batch, x, y):
    """Train a packed state, whose trees are those of `like`, on the examples `batch`; `key` is the step's."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    augment_key, dropout_key = jax.random.split(key)
    images, labels = augmented(recipe, augment_key, x[batch]), y[batch]
    before = unpack(state.statistics, like.statistics)

    def loss_of(params):
        logits, updated = forward(module, recipe, {"params": params, **before}, images, dropout_key)
        return _cross_entropy(logits, labels).mean(), updated

    params = unpack(state.params, like.params)
    (loss, after), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    step_of = optimizer(recipe, learning_rate(recipe, total_steps))
    updates, optimizer_state = step_of.update(pack(gradient, like.params), state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    statistics = pack(after, like.statistics)
    average = state.average
    if recipe.ema:
        # Every floating-point variable, as in the authors' code: weights of one average are not evaluated with
        # statistics of another.
        average = jax.tree.map(partial(_toward, recipe.ema), average, (params, statistics))
    return ModelState(params, statistics, optimizer_state, average, state.step + 1), loss


def _cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
    """Of each example, `[batch]`. A label's logit is a sum over classes, whose gradient does not scatter."""
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_label, logits, 0).sum(axis=-1)


# --- Packed for a program: a model's many small arrays as a few long ones --------------------------------------------


def _packed(state: ModelState) -> ModelState:
    """Params and statistics packed, and their averages as the pair of both."""
    average = state.average
    if average is not None:
        rest = {name: value for name, value in average.items() if name != "params"}
        average = pack(average["params"], state.params), pack(rest, state.statistics)
    return state._replace(
        params=pack(state.params, state.params),
        statistics=pack(state.statistics, state.statistics),
        average=average,
    )


def _unpacked(state: ModelState, like: ModelState) -> ModelState:
    average = state.average
    if average is not None:
        params, statistics = average
        average = {"params": unpack(params, like.params), **unpack(statistics, like.statistics)}
    return state._replace(
        params=unpack(state.params, like.params),
        statistics=unpack(state.statistics, like.statistics),
        average=average,
    )


# --- Averages --------------------------------------------------------------------------------------------------------


def _zero_average(leaf: jax.Array) -> jax.Array:
    wide = jnp.promote_types(leaf.dtype, jnp.float32) if _is_float(leaf) else leaf.dtype
    return jnp.zeros(leaf.shape, wide)


def _toward(decay: float, average: jax.Array, now: jax.Array) -> jax.Array:
    return decay * average + (1 - decay) * now if _is_float(now) else now


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def augmented(recipe: Recipe, key: jax.Array, images: jax.Array) -> jax.Array:
    """A batch `[batch, ...]` as training sees it: each image flipped and shifted by its own draw, as the recipe says."""
    if not (recipe.flip or recipe.crop_pad):
        return images
    one = partial(augment, flip=recipe.flip, crop_pad=recipe.crop_pad)
    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def forward(
    module: nn.Module, recipe: Recipe, variables: dict[str, Any], images: Array, dropout_key: jax.Array | None
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits `[batch, C]`, computed in the recipe's precision, and the statistics as they then are.

    In training mode, or without a key for dropout in evaluation mode, which leaves the statistics as they were.
    """
    dtype = _compute_dtype(recipe, variables["params"])
    cast = {**variables, "params": jax.tree.map(lambda p: p.astype(dtype), variables["params"])}
    logits, statistics = _applied(module, cast, as_input(images, dtype), dropout_key)
    return jnp.asarray(logits, jnp.promote_types(dtype, jnp.float32)), statistics


def _applied(
    module: nn.Module, variables: dict[str, Any], inputs: jax.Array, dropout_key: jax.Array | None
) -> tuple[jax.Array, dict[str, Any]]:
    """What the module returns, and the statistics as they then are; in training mode with a key for dropout."""
    statistics = {name: value for name, value in variables.items() if name != "params"}
    training = dropout_key is not None
    logits, updated = module.apply(
        variables,
        inputs,
        train=training,
        mutable=list(statistics) if training else [],
        rngs={"dropout": dropout_key} if training else {},
    )
    return logits, dict(updated) if training else statistics


# --- What a trained model answers with -------------------------------------------------------------------------------


def answers_by_average(recipe: Recipe, queries: Queries) -> bool:
    """Whether a model is asked by the moving average of its weights; else by the weights as they were trained."""
    return recipe.ema > 0 and queries.convention == "paper"


def evaluated(
    module: nn.Module,
    recipe: Recipe,
    queries: Queries,
    state: ModelState,
    key: jax.Array,
    x: Array,
    keep: Array,
) -> dict[str, Any]:
    """The variables that a trained model answers with: its weights, or their bias-corrected moving average.

    The average comes with statistics of its own: averaged as the weights are, or recomputed over the members. Those of
    the last steps are of other weights: a deep network evaluated with them is wrong.

    Args:
        module: flax module.
        recipe: how it was trained.
        queries: which decide by their convention.
        state: of the model.
        key: the model's, see `model_key`.
        x: `[N, ...]`.
        keep: bool `[N]`, its members.
    """
    now = {"params": state.params, **state.statistics}
    if not answers_by_average(recipe, queries):
        return now
    correction = 1 - recipe.ema ** state.step.astype(jnp.float32)
    average = jax.tree.map(
        lambda mean, leaf: (mean / correction).astype(leaf.dtype) if _is_float(leaf) else mean,
        state.average,
        now,
    )
    if recipe.statistics == "averaged" or not state.statistics:
        return average
    return {**average, **recomputed_statistics(module, recipe, average, key, x, keep)}


def recomputed_statistics(
    module: nn.Module, recipe: Recipe, variables: dict[str, Any], key: jax.Array, x: Array, keep: Array
) -> dict[str, Any]:
    """The statistics of a model's norms under other weights than they were gathered under, over one epoch's batches.

    Of every batch the statistics that it has by itself, and of them all the mean, in training mode and in float32 as
    models are queried. Order, augmentation and dropout are drawn from `key`, once and for all. Statistics of modules that
    are no `nn.BatchNorm` go on as the module moves them, from `variables` on, and their mean over the batches is taken.
    """
    x, keep = jnp.asarray(x), jnp.asarray(keep)
    steps = steps_per_epoch(len(keep), recipe.batch_size)
    order_key, steps_key = jax.random.split(jax.random.fold_in(key, 3))
    batches = random_order(order_key, keep, steps * recipe.batch_size).reshape(steps, recipe.batch_size)
    statistics = {name: value for name, value in variables.items() if name != "params"}

    def one_batch(carry, step):
        statistics, total = carry
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(steps_key, step))
        images = augmented(recipe, augment_key, x[batches[step]])
        asked = {"params": variables["params"], **statistics}
        with nn.intercept_methods(_without_memory), jax.default_matmul_precision("highest"):
            _, statistics = _applied(module, asked, as_input(images, jnp.float32), dropout_key)
        return (statistics, jax.tree.map(_added, total, statistics)), None

    zeros = jax.tree.map(_zero_average, statistics)
    (last, total), _ = jax.lax.scan(one_batch, (statistics, zeros), jnp.arange(steps))
    return jax.tree.map(
        lambda t, leaf: (t / steps).astype(leaf.dtype) if _is_float(leaf) else leaf, total, last
    )


def _added(total: jax.Array, leaf: jax.Array) -> jax.Array:
    return total + leaf if _is_float(leaf) else leaf


def _without_memory(call, args, kwargs, context):
    """A `nn.BatchNorm` whose running statistics become those of the batch alone."""
    module = context.module
    if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__" or module.momentum == 0:
        return call(*args, **kwargs)
    return module.clone(parent=module.scope, momentum=0.0)(*args, **kwargs)


def norm_constants(module: nn.Module, x: Array) -> dict[str, dict[str, Any]]:
    """The constants of a module's norms, by path: kind, and epsilon and momentum where it has them. `x [N, ...]`."""
    found: dict[str, dict[str, Any]] = {}

    def note(call, args, kwargs, context):
        layer = context.module
        constants = {
            name: float(value)
            for name in ("epsilon", "momentum")
            if isinstance(value := getattr(layer, name, None), int | float)
        }
        if constants:
            found["/".join(layer.path)] = {"kind": type(layer).__name__, **constants}
        return call(*args, **kwargs)

    def init(key):
        with nn.intercept_methods(note):
            return module.init(key, as_input(jnp.asarray(x[:1]), jnp.float32), train=False)

    jax.eval_shape(init, jax.random.key(0))
    return dict(sorted(found.items()))


def query(
    module: nn.Module,
    queries: Queries,
    signals: tuple[str, ...],
    variables: dict[str, Any],
    x: Array,
    y: Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Ask one model about a batch of examples in float32.

    In evaluation mode, so that examples have nothing to do with one another; by the convention "original" in training
    mode, in which each view of the batch is normalised by its own mean and variance.

    Args:
        module: flax module.
        queries: the Q views.
        signals: what to say beside phi, of `SIGNALS`.
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
                lambda view: _applied(module, variables, as_input(view, jnp.float32), key)[0], views
            )
        else:
            logits, _ = _applied(
                module, variables, as_input(views.reshape(Q * n, *x.shape[1:]), jnp.float32), None
            )
    logits = jnp.asarray(logits, jnp.float32).reshape(Q, n, -1)
    labels = jnp.broadcast_to(y, (Q, n))
    said = {"phi": logit_scaled_confidence(logits, labels)}
    said |= {name: SIGNALS[name](logits, labels) for name in signals}
    return {name: jnp.swapaxes(values, 0, 1) for name, values in said.items()}, is_correct(logits[0], y)


def _step_key(key: jax.Array, epoch: Array | int, step: Array | int) -> jax.Array:
    return jax.random.fold_in(_epoch_keys(key, epoch)[1], step)


def _epoch_keys(key: jax.Array, epoch: Array | int) -> tuple[jax.Array, jax.Array]:
    """The key of an epoch's order and that of its steps."""
    order_key, step_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), epoch))
    return order_key, step_key


def _compute_dtype(recipe: Recipe, params: Any) -> jnp.dtype:
    """bfloat16 where the recipe says so, else the weights' own."""
    return jnp.dtype(jnp.bfloat16) if recipe.precision == "bfloat16" else jax.tree.leaves(params)[0].dtype


def as_input(x: Array, dtype) -> jax.Array:
    """Bytes to [-1, 1] as in the paper's code; float features as they are."""
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8:
        # Not in bfloat16, which cannot tell neighbouring bytes apart near 1.
        x = x.astype(jnp.promote_types(dtype, jnp.float32)) / 127.5 - 1
    return x.astype(dtype)
