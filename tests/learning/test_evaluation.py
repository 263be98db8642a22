"""What a trained model answers with: averaged weights, with norms' statistics that are theirs."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.data.sources import load_dataset
from lira.engine.stacked import stacked
from lira.learning.augment import Queries
from lira.learning.evaluation import evaluated, norm_constants, query, recomputed_statistics
from lira.learning.learner import Learner, model_key
from lira.learning.models import build_model
from lira.learning.recipe import Recipe, steps_per_epoch
from lira.learning.training import init_model, random_order, train_epochs
from lira.membership import keep_mask

N = 60
rng = np.random.default_rng(0)
X: np.ndarray = rng.normal(size=(N, 5)).astype(np.float32)
Y = rng.integers(0, 3, N).astype(np.int32)
KEEP = keep_mask(0, 4, N)[0]
RECIPE = Recipe(epochs=2, batch_size=6, ema=0.9)


class Normalised(nn.Module):
    """A norm on the input, a counter and a running statistic of its own kind."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        largest = self.variable("batch_stats", "largest", lambda: jnp.zeros(()))
        steps = self.variable("batch_stats", "steps", lambda: jnp.zeros((), jnp.int32))
        if train:
            largest.value = 0.5 * largest.value + 0.5 * jnp.max(jnp.abs(x))
            steps.value = steps.value + 1
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm(epsilon=1e-3)(x))


LEARNER = Learner(Normalised(), RECIPE, 20)


def trained(module=None, recipe=RECIPE, keep=KEEP, steps=4):
    """A model's state after each of some steps."""
    module = module or Normalised()
    key, states, learner = model_key(0, 0), [], Learner(module, recipe, 20)
    state = jax.jit(partial(init_model, learner))(key, X)
    train = jax.jit(partial(train_epochs, learner), static_argnums=3)
    for epoch in range(steps):
        state, _ = train(state, key, epoch, 1, 1, X, Y, keep)
        states.append(state)
    return states


def weighted(leaves, decay):
    """The bias-corrected moving average from zero, written out in float64."""
    weights = decay ** np.arange(len(leaves))[::-1]
    return np.tensordot(weights / weights.sum(), np.stack(leaves).astype(np.float64), 1)


def test_every_floating_point_variable_is_averaged_alike():
    states = trained()
    recipe = dataclasses.replace(RECIPE, statistics="averaged")
    found = evaluated(Learner(Normalised(), recipe, 20), Queries(), states[-1], model_key(0, 0), X, KEEP)
    history = [{"params": s.params, **s.statistics} for s in states]
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        each = [dict(jax.tree_util.tree_leaves_with_path(variables))[path] for variables in history]
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            assert leaf == each[-1] == 4, "a counter is no average"
        else:
            np.testing.assert_allclose(leaf, weighted(each, 0.9), rtol=1e-5, atol=1e-7)
    old = states[-1].statistics["batch_stats"]["norm"]["mean"]
    assert np.abs(found["batch_stats"]["norm"]["mean"] - old).max() > 1e-3, "nor those of the last steps"


def test_the_weights_as_they_were_trained_where_nothing_is_averaged():
    for recipe, queries in (
        (dataclasses.replace(RECIPE, ema=0.0), Queries()),
        (RECIPE, Queries(convention="original")),
    ):
        state = trained(recipe=recipe)[-1]
        found = evaluated(Learner(Normalised(), recipe, 20), queries, state, model_key(0, 0), X, KEEP)
        jax.tree.map(np.testing.assert_array_equal, found, {"params": state.params, **state.statistics})


def test_recomputed_statistics_are_the_mean_of_the_members_batches():
    """Against float64 in a loop over the same batches."""
    averaged = Learner(Normalised(), dataclasses.replace(RECIPE, statistics="averaged"), 20)
    variables = evaluated(averaged, Queries(), trained()[-1], model_key(0, 0), X, KEEP)
    found = recomputed_statistics(LEARNER, variables, model_key(0, 0), X, KEEP)["batch_stats"]
    order_key, _ = jax.random.split(jax.random.fold_in(model_key(0, 0), 3))
    batches = X.astype(np.float64)[np.asarray(random_order(order_key, KEEP, 30))].reshape(5, 6, 5)
    np.testing.assert_allclose(found["norm"]["mean"], batches.mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["norm"]["var"], batches.var(axis=1).mean(axis=0), rtol=1e-5)
    assert found["steps"] == 9, "four steps of training and five batches"
    largest, held = float(variables["batch_stats"]["largest"]), []
    for batch in batches:
        largest = 0.5 * largest + 0.5 * np.abs(batch).max()
        held.append(largest)
    np.testing.assert_allclose(found["largest"], np.mean(held), rtol=1e-5)


def test_no_example_outside_the_members_is_touched():
    state = trained()[-1]
    poisoned = np.where(KEEP[:, None], X, np.nan).astype(np.float32)
    clean, other = (evaluated(LEARNER, Queries(), state, model_key(0, 0), x, KEEP) for x in (X, poisoned))
    jax.tree.map(np.testing.assert_array_equal, clean, other)


def test_constants_of_norms():
    assert norm_constants(Normalised(), X) == {
        "LayerNorm_0": {"kind": "LayerNorm", "epsilon": pytest.approx(1e-3)},
        "norm": {"kind": "BatchNorm", "epsilon": pytest.approx(1e-5), "momentum": pytest.approx(0.8)},
    }
    wide = norm_constants(build_model("wrn-10-1", 10), np.zeros((1, 8, 8, 3), np.uint8))
    assert len(wide) == 7
    assert {(each["momentum"], each["epsilon"]) for each in wide.values()} == {(0.9, 1e-5)}, "the paper's"


def test_original_queries_normalise_each_view_by_its_own_batch():
    """Against NumPy in float64; order within a batch changes nothing, company does."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(x)
            return x.reshape(len(x), -1)[:, :3] * jnp.array([1.0, 2.0, 3.0])

    queries = Queries(mirror=True, convention="original")
    variables = {"params": {}, **Net().init(jax.random.key(0), images / 127.5 - 1, train=False)}
    labels = np.arange(20) % 3

    ask = jax.jit(partial(query, Net(), queries, ("logits",)))

    def asked(rows):
        return np.asarray(ask(variables, images[rows], labels[rows])[0]["logits"])

    answered = asked(np.arange(20))
    for view, seen in enumerate((images, images[:, :, ::-1])):
        inputs = seen.astype(np.float64) / 127.5 - 1
        expected = (inputs - inputs.mean()) / np.sqrt(inputs.var() + 1e-5)
        expected = expected.reshape(20, -1)[:, :3] * [1, 2, 3]
        np.testing.assert_allclose(answered[:, view], expected, rtol=1e-4, atol=1e-5)
    order = rng.permutation(20)
    np.testing.assert_allclose(asked(order), answered[order], rtol=1e-4, atol=1e-5)
    assert np.abs(asked(np.arange(10)) - answered[:10]).max() > 1e-2


# --- The models that are asked are those that were trained -----------------------------------------------------------


class Deep(nn.Module):
    """Ten residual dense layers, each behind a norm that remembers a hundred steps."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.99)
        x = nn.Dense(32)(x.reshape(len(x), -1))
        for _ in range(10):
            x = x + nn.Dense(32)(nn.relu(norm()(x)))
        return nn.Dense(self.num_classes)(nn.relu(norm()(x)))


def accuracies(module, recipe, examples, models):
    """Accuracy on non-members, `[models]`, by the variables that are asked, of a stack trained to its end."""
    digits = load_dataset("digits", num_examples=examples)
    noise = np.random.default_rng(0)
    y = np.where(noise.random(examples) < 0.2, noise.integers(0, 10, examples), digits.y).astype(np.int32)
    x, keep = jnp.asarray(digits.x), jnp.asarray(keep_mask(0, 8, examples)[:models])
    steps = steps_per_epoch(examples, recipe.batch_size)
    total = steps * recipe.epochs
    assert total >= 5 / (1 - recipe.ema)

    learner = Learner(module, recipe, total)

    def asked(statistics):
        return dataclasses.replace(learner, recipe=dataclasses.replace(recipe, statistics=statistics))

    def run(index, keep):
        key = model_key(0, index)

        def one_epoch(epoch, state):
            return train_epochs(learner, state, key, epoch, 1, steps, x, y, keep)[0]

        state = init_model(learner, key, x)
        state = jax.lax.fori_loop(0, recipe.epochs, one_epoch, state)
        by = {
            statistics: evaluated(asked(statistics), Queries(), state, key, x, keep)
            for statistics in ("averaged", "recomputed")
        }
        raw = {"params": state.params, **state.statistics}
        by |= {"raw": raw, "mixed": {**by["averaged"], **state.statistics}}

        def accuracy(variables):
            return jnp.sum(query(module, Queries(), (), variables, x, y)[1] & ~keep) / jnp.sum(~keep)

        each = jax.lax.map(accuracy, jax.tree.map(lambda *leaves: jnp.stack(leaves), *by.values()))
        return dict(zip(by, each, strict=True))

    # Patches, whose gradients are as fast within loops as outside.
    return jax.tree.map(np.asarray, stacked("patches", "cpu", run, 0, 0)(jnp.arange(models), keep))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluated_models_are_no_worse_than_the_raw_ones_dense(precision):
    """And those of averaged weights with statistics of others are: what was asked until this was found."""
    recipe = Recipe(
        epochs=150, batch_size=64, schedule="cos7pi16", warmup=0.01, weight_decay=2e-3, ema=0.9976, precision=precision
    )  # fmt: skip
    models = 6 if precision == "float32" else 4  # bfloat16 is emulated on CPUs: 3 s a model
    found = accuracies(Deep(10), recipe, 1797, models)
    for statistics in ("averaged", "recomputed"):
        gain = found[statistics] - found["raw"]
        assert gain.mean() > -2 * gain.std(ddof=1) / np.sqrt(models), found
    loss = found["averaged"] - found["mixed"]
    assert loss.mean() > max(0.02, 4 * loss.std(ddof=1) / np.sqrt(6)), found
    assert found["mixed"].mean() < found["raw"].mean(), found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluated_models_are_no_worse_than_the_raw_ones_convolutional(precision):
    recipe = Recipe(
        epochs=32, batch_size=32, schedule="cos7pi16", warmup=0.01, weight_decay=2e-3, ema=0.96, precision=precision
    )  # fmt: skip
    found = accuracies(build_model("wrn-10-1", 10), recipe, 300, 2)
    for statistics in ("averaged", "recomputed"):
        gain = found[statistics] - found["raw"]
        assert gain.mean() > -2 * np.sqrt(2 * 0.3 * 0.7 / 300), found
        assert found[statistics].mean() > 0.5, found
