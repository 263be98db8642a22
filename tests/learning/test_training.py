from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.learning import packing
from lira.learning.augment import Queries
from lira.learning.evaluation import evaluated, query
from lira.learning.learner import Learner, model_key, seed_key
from lira.learning.losses import cross_entropy
from lira.learning.recipe import SIGNALS, Recipe, learning_rate, steps_per_epoch
from lira.learning.training import epoch_order, init_model, train_epochs, train_step
from lira.membership import keep_mask
from lira.signals import entropy, logit_scaled_confidence, modified_entropy

N = 60
rng = np.random.default_rng(0)
X: np.ndarray = rng.integers(0, 256, (N, 4, 4, 1), dtype=np.uint8)
Y = rng.integers(0, 3, N).astype(np.int32)


class Net(nn.Module):
    """A convolution, a norm and a dense layer: every kind of parameter.

    No bias before the norm: its gradient is zero, and Adam would scale up the rounding error.
    """

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def train_alone(module, recipe, index, keep, *, x=X, y=Y, epochs=None, dtype=None):
    steps = steps_per_epoch(len(y), recipe.batch_size)
    key = model_key(recipe.seed, index)
    start, train = programs(Learner(module, recipe, steps * recipe.epochs))
    state = start(key, x)
    if dtype:
        state = as_dtype(state, dtype)
    losses = []
    for epoch in range(epochs or recipe.epochs):
        state, loss = train(state, key, epoch, 1, steps, x, y, keep)
        losses.append(float(loss[0]))
    return state, losses


@cache
def programs(learner):
    """A learner's first state and its training, each compiled once."""
    return jax.jit(partial(init_model, learner)), jax.jit(partial(train_epochs, learner), static_argnums=3)


def as_dtype(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


FULL = Recipe(
    epochs=2, batch_size=6, optimizer="sgd", weight_decay=1e-3, ema=0.9, flip=True, crop_pad=1, warmup=0.2
)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_model_in_a_stack_equals_the_model_alone(optimizer):
    """Ten steps in float64, to 1e-10, with augmentation, norms, moving average and unequal row sums."""
    recipe = Recipe(
        **{**FULL.__dict__, "optimizer": optimizer, "learning_rate": 0.05 if optimizer == "sgd" else 0.003}
    )
    keep = keep_mask(0, 6, N)
    assert len(set(keep.sum(axis=1))) > 2
    module = Net()
    with jax.enable_x64(True):
        total = steps_per_epoch(N, recipe.batch_size) * recipe.epochs
        assert total == 10

        def start(index):
            return as_dtype(
                init_model(Learner(module, recipe, total), model_key(recipe.seed, index), X), jnp.float64
            )

        def ten_steps(state, index, row):
            key = model_key(recipe.seed, index)
            return train_epochs(Learner(module, recipe, total), state, key, 0, 2, 5, X, Y, row)[0]

        start_alone = jax.jit(start)

        begun = jax.jit(jax.vmap(start))(jnp.arange(6))
        stack = jax.jit(jax.vmap(ten_steps))(begun, jnp.arange(6), keep)
        for index in (0, 3, 5):
            # Initial weights are drawn in float32, where two compilations may differ in the last bit.
            for one, many in zip(jax.tree.leaves(start_alone(index)), jax.tree.leaves(begun), strict=True):
                np.testing.assert_allclose(many[index], one, rtol=1e-6)
            alone = jax.jit(ten_steps)(jax.tree.map(lambda leaf, i=index: leaf[i], begun), index, keep[index])
            assert int(alone.step) == 10
            for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(stack), strict=True):
                np.testing.assert_allclose(many[index], one, rtol=1e-10, atol=1e-10)
        different = [np.asarray(leaf) for leaf in jax.tree.leaves(stack.params)]
        assert all(abs(leaf[0] - leaf[3]).max() > 1e-4 for leaf in different)


def test_examples_outside_the_keep_row_never_touch_a_model():
    """Non-members become NaN and their labels another class: not a bit of the model changes."""
    keep = keep_mask(1, 4, N)[2]
    x = (X / 127.5 - 1).astype(np.float32)
    poisoned = np.where(keep[:, None, None, None], x, np.nan).astype(np.float32)
    recipe = Recipe(epochs=3, batch_size=10, flip=True, crop_pad=1, ema=0.5)
    clean, losses = train_alone(Net(), recipe, 2, keep, x=x)
    dirty, dirty_losses = train_alone(Net(), recipe, 2, keep, x=poisoned, y=np.where(keep, Y, (Y + 1) % 3))
    assert losses == dirty_losses
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    touched, _ = train_alone(Net(), recipe, 2, ~keep, x=poisoned)
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(touched.params)), "the poison works"


def test_every_step_of_every_epoch_has_randomness_of_its_own():
    """The same batch on the same weights, augmented by the key of a model, an epoch and a step; and orders of epochs."""
    learner = Learner(Linear(), Recipe(epochs=4, batch_size=6, crop_pad=3), 20)
    state, order = programs(learner)[0](model_key(0, 0), X), np.tile(np.arange(6, dtype=np.int32), 5)
    step = jax.jit(partial(train_step, learner))
    keys = [model_key(0, index) for index in (0, 1)]
    drawn = [
        np.asarray(step(state, key, epoch, at, order, X, Y)[0].params["Dense_0"]["kernel"])
        for key in keys
        for epoch in range(4)
        for at in range(5)
    ]
    assert len({each.tobytes() for each in drawn}) == len(drawn) == 40
    again = step(state, keys[1], 3, 4, order, X, Y)[0].params["Dense_0"]["kernel"]
    np.testing.assert_array_equal(again, drawn[-1])
    orders = [
        epoch_order(learner, key, epoch, np.ones(N, bool)).tolist() for key in keys for epoch in range(4)
    ]
    assert len({*map(tuple, orders)}) == 8


@pytest.mark.parametrize(
    ("examples", "batch", "share", "steps"),
    [
        (60, 15, 0.5, 2),
        (61, 15, 0.5, 2),
        (60, 15, 0.3, 1),
        (100, 1, 0.29, 29),
        (100, 29, 0.29, 1),
        (10, 7, 0.7, 1),
        (9, 2, 0.9, 4),
    ],
)
def test_steps_of_an_epoch_are_whole_batches_of_the_share(examples, batch, share, steps):
    assert steps_per_epoch(examples, batch, share) == steps


@pytest.mark.parametrize("members", [1, 7, 30, 41])
def test_an_epoch_is_a_permutation_of_the_members_that_wraps(members):
    rng = np.random.default_rng(1)
    keep = np.zeros(N, bool)
    keep[rng.choice(N, members, replace=False)] = True
    learner = Learner(Net(), Recipe(batch_size=15), 2)  # two steps of the 60 examples' half
    order = np.asarray(epoch_order(learner, jax.random.key(3), 0, keep))
    assert order.shape == (30,)
    assert keep[order].all()
    counts = np.bincount(order, minlength=N)[keep]
    if members <= 30:
        assert counts.min() >= 30 // members
    assert counts.max() <= -(-30 // members)
    for again in (
        epoch_order(learner, jax.random.key(4), 0, keep),
        epoch_order(learner, jax.random.key(3), 1, keep),
    ):
        assert members == 1 or not np.array_equal(order, again)


def test_sgd_with_momentum_and_decay_against_numpy():
    """Two epochs of a linear model, gradients by hand: coupled decay on the kernel only, cosine schedule."""
    rng = np.random.default_rng(1)
    recipe = Recipe(epochs=2, batch_size=30, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    keep = np.zeros(N, bool)
    keep[:30] = True  # one full batch, so that order does not matter
    with jax.enable_x64(True):
        features = rng.normal(size=(N, 16)).astype(np.float32)
        start = programs(Learner(Linear(), recipe, 2))[0](model_key(0, 0), features)
        start = as_dtype(start, jnp.float64)
        kernel, bias = (np.asarray(start.params["Dense_0"][k]) for k in ("kernel", "bias"))
        state, _ = train_alone(Linear(), recipe, 0, keep, x=features, dtype=jnp.float64)
    x, onehot = features[:30].astype(float), np.eye(3)[Y[:30]]
    velocity = [0.0, 0.0]
    for step in range(2):
        logits = x @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradients = [x.T @ (p - onehot) / 30 + 0.01 * kernel, (p - onehot).mean(axis=0)]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 2))
        kernel, bias = kernel - rate * velocity[0], bias - rate * velocity[1]
    np.testing.assert_allclose(state.params["Dense_0"]["kernel"], kernel, rtol=0, atol=1e-14)
    np.testing.assert_allclose(state.params["Dense_0"]["bias"], bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_variables_as_a_few_arrays_and_epochs_in_one_call_change_nothing(optimizer, monkeypatch):
    """As on an accelerator, to 1e-12 in float64: twice ten steps with norms, weight decay and moving averages."""
    recipe = Recipe(**{**FULL.__dict__, "optimizer": optimizer, "learning_rate": 0.01})
    keep, key, module = keep_mask(0, 4, N)[0], model_key(0, 0), Net()

    def trained(epochs, platform):
        learner = Learner(module, recipe, 10, platform)
        state = as_dtype(jax.jit(partial(init_model, learner))(key, X), jnp.float64)
        step, losses = jax.jit(partial(train_epochs, learner), static_argnums=(3, 4)), []
        for first in range(0, 2, epochs):
            state, loss = step(state, key, first, epochs, 5, X, Y, keep)
            losses.extend(loss)
        held = jax.tree.leaves((state.params, state.statistics, state.average))
        return state, [np.asarray(losses), *held]

    with jax.enable_x64(True):
        state, expected = trained(1, "cpu")
        monkeypatch.setattr(packing, "FEW_LEAVES", 0)
        packed, ours = trained(2, "gpu")
    assert len(jax.tree.leaves(packed.optimizer)) < len(jax.tree.leaves(state.optimizer))
    for a, e in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def test_loss_is_cross_entropy_and_its_gradient_does_not_scatter():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(7, 5)) * 30, np.arange(7) % 5
    with jax.enable_x64(True):
        loss, back = jax.vjp(cross_entropy, jnp.asarray(logits), jnp.asarray(labels))
        (gradient, _) = back(jnp.ones(7))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(7), labels]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient, p - np.eye(5)[labels], rtol=1e-12, atol=1e-13)
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(lambda z: cross_entropy(z, labels).sum()))(logits))


def test_schedules_and_warm_up():
    steps = np.arange(100)
    cosine = jax.vmap(learning_rate(Recipe(learning_rate=2.0), 100))(steps)
    np.testing.assert_allclose(cosine, 1 + np.cos(np.pi * steps / 100), rtol=1e-5, atol=1e-6)
    paper = jax.vmap(learning_rate(Recipe(learning_rate=0.1, schedule="cos7pi16", warmup=0.1), 100))(steps)
    expected = 0.1 * np.cos(7 * np.pi * steps / 1600) * np.minimum((steps + 1) / 10, 1)
    np.testing.assert_allclose(paper, expected, rtol=1e-5)
    constant = jax.vmap(learning_rate(Recipe(schedule="constant"), 100))(steps)
    np.testing.assert_allclose(constant, 0.1, rtol=1e-6)


def test_moving_average_is_bias_corrected():
    """After two steps the average is the weighted mean of the two weights, and the weights of a one-step run."""
    recipe = Recipe(epochs=1, batch_size=30, ema=0.9, schedule="constant")
    keep = keep_mask(0, 4, N)[0]
    module, key = Linear(), model_key(0, 0)
    learner = Learner(module, recipe, 2)
    start, train = programs(learner)
    state = start(key, X)
    history = []
    for epoch in range(2):
        state, _ = train(state, key, epoch, 1, 1, X, Y, keep)
        history.append(np.asarray(state.params["Dense_0"]["kernel"]))
    averaged = evaluated(learner, Queries(), state, key, X, keep)["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(averaged, (0.9 * history[0] + history[1]) / 1.9, rtol=1e-5, atol=1e-7)


def test_bfloat16_keeps_float32_weights_and_follows_float32():
    keep = keep_mask(0, 4, N)[0]
    losses = {}
    for precision in ("float32", "bfloat16"):
        state, history = train_alone(Net(), Recipe(epochs=3, batch_size=10, precision=precision), 0, keep)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.statistics)))
        losses[precision] = history
    assert losses["float32"] != losses["bfloat16"]
    # bfloat16 has 8 bits: a few per cent after some steps.
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.1)


def test_query_answers_every_view_in_evaluation_mode():
    recipe, queries = Recipe(epochs=1, batch_size=10), Queries(mirror=True)
    keep = keep_mask(0, 4, N)[0]
    state, _ = train_alone(Net(), recipe, 0, keep)
    variables = evaluated(Learner(Net(), recipe, 1), queries, state, model_key(0, 0), X, keep)
    ask = jax.jit(partial(query, Net(), queries, tuple(SIGNALS)))
    said, correct = ask(variables, jnp.asarray(X), jnp.asarray(Y))
    phi, apply = said["phi"], jax.jit(partial(Net().apply, train=False))
    assert {name: values.shape for name, values in said.items()} == {
        **dict.fromkeys(("phi", "entropy", "modified_entropy"), (N, 2)),
        "logits": (N, 2, 3),
    }
    assert all(values.dtype == jnp.float32 for values in said.values())
    for view, images in enumerate((X, X[:, :, ::-1])):
        inputs = images.astype(np.float32) / 127.5 - 1
        logits = np.asarray(apply({"params": state.params, **state.statistics}, inputs))
        np.testing.assert_allclose(phi[:, view], logit_scaled_confidence(logits, Y), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(said["logits"][:, view], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(said["entropy"][:, view], entropy(logits), rtol=1e-4, atol=1e-5)
        expected = modified_entropy(logits, Y)
        np.testing.assert_allclose(said["modified_entropy"][:, view], expected, rtol=1e-4, atol=1e-5)
        if view == 0:
            np.testing.assert_array_equal(correct, np.argmax(logits, axis=1) == Y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "lion"}, "recipe.optimizer must be one of sgd, adam, adamw; got 'lion'"),
        ({"schedule": "linear"}, "recipe.schedule must be one of"),
        ({"precision": "float16"}, "recipe.precision must be one of"),
        ({"epochs": 0}, "recipe.epochs must be at least 1; got 0"),
        ({"batch_size": 0}, "recipe.batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "recipe.learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "recipe.learning_rate must be positive; got nan"),
        ({"ema": 1.0}, r"recipe.ema must be in \[0, 1\); got 1.0"),
        ({"weight_decay": -1.0}, "recipe.weight_decay must not be negative"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_recipes_that_do_not_fit_the_data_are_refused():
    with pytest.raises(ValueError, match=r"recipe.batch_size is 31, but a model has only about 30 members"):
        Recipe(batch_size=31).check(60, (4, 4, 1))
    with pytest.raises(ValueError, match=r"need images"):
        Recipe(flip=True, batch_size=8).check(60, (16,))


def test_seeds_of_more_than_32_bits_are_other_seeds():
    """JAX takes the lower 32 bits of a number for a key; those of smaller seeds are its own."""
    seeds = (0, 1, 3, 1 << 32, (1 << 32) + 1, 3 << 32, (1 << 63) - 1)
    models = (0, 1, 3)
    keys = [
        jax.random.key_data(model_key(seed, m, a)).tolist() for seed in seeds for m in models for a in (0, 1)
    ]
    assert len({*map(tuple, keys)}) == len(keys)
    for seed in (0, 7, (1 << 32) - 1):
        assert seed_key(seed) == jax.random.key(seed)
