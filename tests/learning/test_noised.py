"""The step of DP-SGD against what accounting assumes: its sampling, its sensitivity, its noise. Tests of the tests, too."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lira.data.dataset import Dataset
from lira.learning import noised
from lira.learning.accounting import Guarantee, guarantee
from lira.learning.learner import Learner, model_keys
from lira.learning.noised import in_microbatches, microbatch_size, noised_sum, poisson_batch
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe, learning_rate
from lira.learning.shapes import ModelError
from lira.learning.training import epoch_order, init_model, random_order, train_epochs, train_step

# Of a right implementation one test in a million fails.
LEVEL = 1e-6
rng = np.random.default_rng(0)


def proven(**fields):
    return Guarantee(
        **{
            "epsilon": 1.0,
            "delta": 1e-5,
            "noise": 0.0,
            "clip": 0.5,
            "steps": 1,
            "rate": 0.25,
            "max_batch": 100,
            **fields,
        }
    )


# --- Sampling --------------------------------------------------------------------------------------------------------

N, STEPS = 400, 600
MEMBERS = rng.random(N) < 0.4  # fewer than half


def sampler_p(batches, members, rate):
    """The smallest p-value of what coins of `rate` give: int `[steps, size]`, N where none.

    Of the mean, of the spread over steps, and of the spread over members, whose counts are binomial if steps are independent.
    """
    taken = np.stack([np.isin(np.flatnonzero(members), batch) for batch in batches])
    steps, n = taken.shape
    assert taken.sum() == (batches < N).sum()  # each once in a step, and none but members
    total = stats.binomtest(int(taken.sum()), steps * n, rate).pvalue
    spreads = []
    for counts, trials in ((taken.sum(axis=1), n), (taken.sum(axis=0), steps)):
        statistic = np.sum((counts - counts.mean()) ** 2) / (trials * rate * (1 - rate))
        low = stats.chi2.cdf(statistic, len(counts) - 1)
        spreads.append(2 * min(low, 1 - low))
    return min(total, *spreads)


@partial(jax.jit, static_argnums=0)
def sampled(guarantee, keys, members):
    return jax.vmap(lambda key: poisson_batch(guarantee, key, members))(keys)


def test_each_step_takes_each_member_by_a_coin_of_its_own():
    keys = jax.random.split(jax.random.key(0), STEPS)
    batches = np.asarray(sampled(proven(max_batch=150), keys, MEMBERS))
    assert sampler_p(batches, MEMBERS, 0.25) > LEVEL
    # Those that are there come first.
    assert (np.diff(np.asarray(batches == N, int), axis=1) >= 0).all()


def test_wrong_samplers_are_noticed():
    keys, n = jax.random.split(jax.random.key(1), STEPS), int(MEMBERS.sum())
    # The wrapping permutation of plain training, whose mean is right.
    order = np.asarray(random_order(keys[0], MEMBERS, n // 4 * STEPS)).reshape(STEPS, -1)
    assert sampler_p(order, MEMBERS, n // 4 / n) < LEVEL
    # A rate by the model's own number of members.
    wrong = sampled(proven(rate=0.25 * N / 2 / n, max_batch=150), keys, MEMBERS)
    assert sampler_p(np.asarray(wrong), MEMBERS, 0.25) < LEVEL
    # Coins that one step shares with the next.
    right = np.asarray(sampled(proven(max_batch=150), keys, MEMBERS))
    assert sampler_p(np.repeat(right[: STEPS // 2], 2, axis=0), MEMBERS, 0.25) < LEVEL


def test_of_too_many_a_random_part_is_taken():
    keys = jax.random.split(jax.random.key(2), STEPS)
    batches = np.asarray(sampled(proven(max_batch=20), keys, MEMBERS))
    assert (batches < N).all()  # some 40 would have been taken
    counts = np.bincount(batches.ravel(), minlength=N)
    assert not counts[~MEMBERS].any()
    expected = STEPS * 20 / MEMBERS.sum()
    statistic = np.sum((counts[MEMBERS] - expected) ** 2) / (expected * (1 - 20 / MEMBERS.sum()))
    assert stats.chi2.sf(statistic, MEMBERS.sum() - 1) > LEVEL


def test_a_coin_that_is_the_rate_itself_is_not_taken():
    """Of 2^23 numbers from 0 on those below the rate are as many as it says."""
    key = jax.random.key(5)
    coins = np.asarray(jax.random.uniform(key, (N,), jnp.float32))
    order = np.argsort(coins)
    taken = np.asarray(
        poisson_batch(proven(rate=float(coins[order[100]]), max_batch=N), key, np.ones(N, bool))
    )
    assert sorted(taken[taken < N].tolist()) == sorted(order[:100].tolist())


def test_all_are_taken_at_rate_one():
    batch = np.asarray(sampled(proven(rate=1.0, max_batch=N), jax.random.key(3)[None], MEMBERS))[0]
    assert sorted(batch[batch < N]) == list(np.flatnonzero(MEMBERS))


# --- Sensitivity -----------------------------------------------------------------------------------------------------

B, F, C = 12, 5, 3
PARAMS = {"w": jnp.asarray(rng.normal(size=(F, C)), jnp.float32), "b": jnp.zeros(C)}
# From gradients far below the clip to far above it, and some that are no numbers.
X = jnp.asarray(rng.normal(size=(B, F)) * np.geomspace(1e-3, 1e3, B)[:, None], jnp.float32)
Y = jnp.asarray(rng.integers(0, C, B))


def loss_of(params, x, y):
    return -jax.nn.log_softmax(x @ params["w"] + params["b"])[y]


def per_example(guarantee, key, x, absent):
    return noised_sum(loss_of, guarantee, key, PARAMS, (x, Y), absent, 4)[0]


def per_batch(guarantee, key, x, absent):
    """Broken: the gradient of the batch is clipped."""
    grads = jax.vmap(jax.grad(loss_of), (None, 0, 0))(PARAMS, x, Y)
    total = jax.tree.map(lambda g: jnp.where(absent.reshape(-1, *[1] * (g.ndim - 1)), 0, g).sum(0), grads)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(total)))
    return jax.tree.map(lambda g: g * jnp.minimum(1, guarantee.clip / norm), total)


def largest_change(clipped_sum, x):
    """Of the sum, in L2 norm, over batches with and without one example."""
    draws = np.random.default_rng(1)
    absent = draws.random((200, B)) < 0.5
    one = draws.integers(0, B, 200)
    with_it, without = absent.copy(), absent.copy()
    with_it[np.arange(200), one], without[np.arange(200), one] = False, True
    sums = jax.jit(jax.vmap(lambda absent: clipped_sum(proven(), jax.random.key(0), x, absent)))
    change = jax.tree.map(lambda a, b: np.asarray(a - b).reshape(200, -1), sums(with_it), sums(without))
    return np.sqrt(sum((each**2).sum(axis=1) for each in jax.tree.leaves(change))).max()


def test_one_example_moves_the_sum_by_the_clip_at_most():
    assert largest_change(per_example, X) == pytest.approx(0.5, rel=1e-5)
    assert largest_change(per_example, X.at[3].set(jnp.nan).at[4, 0].set(jnp.inf)) <= 0.5 * (1 + 1e-5)
    assert largest_change(per_batch, X) > 0.6


def test_the_sum_is_of_clipped_gradients():
    absent = np.arange(B) % 3 == 0
    total, loss = jax.jit(
        lambda: noised_sum(loss_of, proven(), jax.random.key(0), PARAMS, (X, Y), absent, 4)
    )()
    expected = {"w": np.zeros((F, C)), "b": np.zeros(C)}
    losses = 0.0
    for x, y, out in zip(np.asarray(X, np.float64), np.asarray(Y), absent, strict=True):
        logits = x @ np.asarray(PARAMS["w"], np.float64)
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        d = p - np.eye(C)[y]
        norm = np.sqrt((np.outer(x, d) ** 2).sum() + (d**2).sum())
        if not out:
            losses += logits.max() + np.log(np.exp(logits - logits.max()).sum()) - logits[y]
            scale = min(1, 0.5 / norm) if norm else 0.0
            expected["w"] += scale * np.outer(x, d)
            expected["b"] += scale * d
    for name, value in expected.items():
        np.testing.assert_allclose(total[name], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)
    # A step may take nobody.
    empty, loss = noised_sum(loss_of, proven(), jax.random.key(0), PARAMS, (X, Y), jnp.ones(B, bool), 4)
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(empty))


# --- Noise -----------------------------------------------------------------------------------------------------------


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@partial(jax.jit, static_argnums=0)
def noises(guarantee, keys):
    """What is added to the sum, by key: `[keys, P]`."""
    absent = jnp.zeros(B, bool)
    plain = flat(per_example(dataclasses.replace(guarantee, noise=0.0), keys[0], X, absent))
    return jax.vmap(lambda key: flat(per_example(guarantee, key, X, absent)) - plain)(keys)


def noise_p(drawn, deviation):
    """The smaller p-value of two that hold of independent normal numbers `[keys, P]` of this deviation: sum of squares, and shape."""
    scaled = np.asarray(drawn, np.float64) / deviation
    low = stats.chi2.cdf((scaled**2).sum(), scaled.size)
    return min(2 * min(low, 1 - low), stats.kstest(scaled.ravel(), "norm").pvalue)


def test_the_noise_has_the_deviation_that_accounting_assumes():
    assumed = proven(noise=3.0)
    drawn = noises(assumed, jax.random.split(jax.random.key(5), 500))
    assert noise_p(drawn, assumed.noise * assumed.clip) > LEVEL
    # Steps are independent, and so are parameters.
    for a, b in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
        correlation = stats.pearsonr(np.ravel(a), np.ravel(b))
        assert correlation.pvalue > LEVEL  # pyright: ignore[reportAttributeAccessIssue]
    # Half, twice, a tenth, none, and noise that is not in units of the clip.
    for factor in (0.5, 2.0, 0.1, 0.0, 1 / assumed.clip):
        assert noise_p(factor * drawn, assumed.noise * assumed.clip) < LEVEL


# --- Training --------------------------------------------------------------------------------------------------------

POOL = 60
IMAGES = rng.integers(0, 256, (POOL, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(POOL, dtype=np.int32) % 3
DATA = Dataset.from_arrays(IMAGES, LABELS)


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def learner_of(epochs=2, batch_size=10, *, multiplicity=1, **fields):
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=0.5)
    recipe = dataclasses.replace(recipe, privacy=Privacy(multiplicity=multiplicity, **fields))
    steps = epochs * (POOL // 2 // batch_size)
    return Learner(Linear(), recipe, steps, guarantee=guarantee(recipe, POOL))


KEEP = rng.random((3, POOL)) < 0.5


def trained(learner, keys, keep):
    """A stack `[m]` after all epochs, and its losses `[m, epochs]`."""

    def one(key, keep):
        state = init_model(learner, key, IMAGES)
        steps = learner.total_steps // learner.recipe.epochs
        return train_epochs(learner, state, key, 0, learner.recipe.epochs, steps, IMAGES, LABELS, keep)

    return jax.jit(jax.vmap(one))(keys, keep)


@pytest.fixture(scope="module")
def without_noise():
    learner = learner_of(epsilon=np.inf, clip=0.3)
    return learner, *trained(learner, model_keys(0, range(3)), KEEP)


def test_training_is_dp_sgd_written_out(without_noise):
    learner, state, losses = without_noise
    key, keep = model_keys(0, [1])[0], KEEP[1]
    first = init_model(learner, key, IMAGES).params["Dense_0"]
    w, b = (np.asarray(first[name], np.float64) for name in ("kernel", "bias"))
    velocity_w, velocity_b, at = 0.0, 0.0, 0
    rate: Any = learning_rate(learner.recipe, learner.total_steps)
    for epoch in range(2):
        order = np.asarray(epoch_order(learner, key, epoch, keep)).reshape(3, -1)
        total_loss = 0.0
        for batch in order:
            members = batch[batch < POOL]
            assert keep[members].all()
            gradient_w, gradient_b = np.zeros_like(w), np.zeros_like(b)
            for i in members:
                x = IMAGES[i].ravel() / 127.5 - 1
                logits = x @ w + b
                p = np.exp(logits) / np.exp(logits).sum()
                total_loss -= np.log(p[LABELS[i]])
                d = p - np.eye(3)[LABELS[i]]
                scale = min(1, 0.3 / np.sqrt((np.outer(x, d) ** 2).sum() + (d**2).sum()))
                gradient_w += scale * np.outer(x, d)
                gradient_b += scale * d
            # By the size that a batch has on average, whatever it has.
            velocity_w = 0.9 * velocity_w + gradient_w / 10
            velocity_b = 0.9 * velocity_b + gradient_b / 10
            w, b, at = w - float(rate(at)) * velocity_w, b - float(rate(at)) * velocity_b, at + 1
        np.testing.assert_allclose(losses[1, epoch], total_loss / 10 / 3, rtol=1e-4)
    np.testing.assert_allclose(state.params["Dense_0"]["kernel"][1], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["Dense_0"]["bias"][1], b, rtol=1e-4, atol=1e-5)


def test_every_step_of_every_epoch_and_model_has_noise_of_its_own():
    """Steps from one state without any example: what the weights move by is noise alone."""
    learner = learner_of(noise=1.0, clip=0.1)
    state = init_model(learner, model_keys(0, [0])[0], IMAGES)
    order = np.full(3 * learner.batch, POOL, np.int32)  # none
    step = jax.jit(partial(train_step, learner))
    moves = [
        flat(step(state, key, epoch, at, order, IMAGES, LABELS)[0].params) - flat(state.params)
        for key in model_keys(0, range(3))
        for epoch in range(2)
        for at in range(3)
    ]
    moves = np.stack(moves)
    assert np.std(moves) == pytest.approx(0.5 * 0.1 / 10, rel=0.1)
    alike = np.abs(np.corrcoef(moves) - np.eye(len(moves)))
    assert alike.max() < 6 / np.sqrt(moves.shape[1])


def test_a_model_is_the_same_alone_in_small_microbatches_and_of_several_equal_copies(
    without_noise, monkeypatch
):
    _, state, losses = without_noise
    monkeypatch.setattr(noised, "MICROBATCH_BYTES", {"cpu": 600})  # two examples' gradients
    same = learner_of(epsilon=np.inf, clip=0.3, multiplicity=3)
    assert microbatch_size(state.params["Dense_0"]["kernel"][0], 30, "cpu") == 2
    alone, loss = trained(same, model_keys(0, [2]), KEEP[2:])
    np.testing.assert_allclose(loss[0], losses[2], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a[0], b[2], rtol=1e-3, atol=1e-5)


def test_microbatches_are_filled_one_after_the_other():
    parts = np.asarray(in_microbatches(jnp.arange(10), 4, fill=99)).reshape(-1, 4, order="F")
    assert parts.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 99, 99]]


# --- What is refused -------------------------------------------------------------------------------------------------


def test_batchnorm_is_refused_by_name_and_groupnorm_is_not():
    data = Dataset.from_arrays(
        np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 2
    )
    recipe = Recipe(model="wrn-10-1", batch_size=5, privacy=Privacy(noise=1.0))
    for model in ("wrn-10-1", "resnet18", "cnn-fast"):
        with pytest.raises(
            ModelError, match=rf"model '{model}': has BatchNorm .*batch_stats.* take GroupNorm"
        ):
            Learner.of(dataclasses.replace(recipe, model=model), data)
    for model in ("wrn-10-1-gn", "cnn"):
        assert Learner.of(dataclasses.replace(recipe, model=model), data).guarantee is not None
