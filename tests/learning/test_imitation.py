from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from lira.learning.imitation import Imitation, imitation_loss, loss_of_imitation
from lira.learning.learner import Learner, model_key
from lira.learning.recipe import Recipe
from lira.learning.training import init_model, train_step


def naive(logits, target, labels, w=5.0, T=2.0):
    """Loss of a batch and its gradient by the formula, in float64 loops."""
    batch, C = logits.shape
    loss, gradient = 0.0, np.zeros((batch, C))
    for b in range(batch):
        wrong = [c for c in range(C) if c != labels[b]]
        strongest = max(wrong, key=lambda c: target[b, c])
        weights = [w if c in (labels[b], strongest) else 1.0 for c in range(C)]
        softmax = np.exp(logits[b]) / np.exp(logits[b]).sum()
        loss -= 0.5 * np.log(softmax[labels[b]]) / batch
        for c in range(C):
            loss += 0.5 * weights[c] * (logits[b, c] - target[b, c]) ** 2 / T**2 / sum(weights) / batch
            gradient[b, c] = weights[c] * (logits[b, c] - target[b, c]) / T**2 / sum(weights) / batch
            gradient[b, c] += 0.5 * (softmax[c] - (c == labels[b])) / batch
    return loss, gradient


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    "options", [{}, {"weight": 1.0, "temperature": 1.0}, {"weight": 3.0, "temperature": 4.0}]
)
def test_loss_and_gradient_are_the_formula(classes, options):
    rng = np.random.default_rng(classes)
    logits, target = rng.normal(0, 2, (2, 16, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 16).astype(np.int32)

    def loss_of(z):
        return imitation_loss(z, jnp.asarray(target), jnp.asarray(labels), **options).mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(jnp.asarray(logits))
    truth = naive(
        logits.astype(float), target, labels, options.get("weight", 5.0), options.get("temperature", 2.0)
    )
    np.testing.assert_allclose(loss, truth[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, truth[1], rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_into_the_target():
    logits, target = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    labels = jnp.arange(4) % 3
    gradient_of = jax.jit(jax.grad(lambda z: imitation_loss(jnp.asarray(logits), z, labels).mean()))
    gradient = gradient_of(jnp.asarray(target))
    np.testing.assert_array_equal(gradient, 0)


def test_losses_of_distillation_are_the_formulas():
    logits, target = np.random.default_rng(1).normal(0, 3, (2, 9, 4))
    labels = np.arange(9) % 4
    with jax.enable_x64(True):
        divergence = loss_of_imitation(Imitation("kl"), logits, target, labels)
        squares = loss_of_imitation(Imitation("mse"), logits, target, labels)
    np.testing.assert_allclose(
        divergence, entropy(softmax(target, axis=1), softmax(logits, axis=1), axis=1), rtol=1e-10
    )
    np.testing.assert_allclose(squares, np.mean((logits - target) ** 2, axis=1), rtol=1e-12)


# By it some of six images are mirrored and some are not.
KEY = model_key(0, 4)


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("imitation", "asked"),
    [(Imitation(), False), (Imitation(weight=2.0, temperature=3.0), True), (Imitation("mse"), True)],
)
def test_a_step_goes_down_the_gradient_of_the_formula(imitation, asked):
    """A linear model by SGD in float64: logits of the target stored for each example, or asked about mirrored images."""
    rng, rate = np.random.default_rng(2), 0.05
    x, y = rng.normal(size=(30, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 30).astype(np.int32)
    order, size = rng.permutation(30)[:6].astype(np.int32), 6
    recipe = Recipe(batch_size=size, learning_rate=rate, schedule="constant", momentum=0.0, flip=asked)
    learner = Learner(Linear(), recipe, 1, imitation=imitation)
    kernel, bias = rng.normal(size=(16, 3)), rng.normal(size=3)
    stored = rng.normal(0, 2, (30, 3))
    with jax.enable_x64(True):
        start = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a,
            jax.jit(partial(init_model, learner))(KEY, x),
        )
        theirs = {"params": {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
        step = jax.jit(partial(train_step, learner))
        state, loss = step(start, KEY, 0, 0, order, x, y, theirs if asked else stored)
        before, after = (each.params["Dense_0"] for each in (start, state))

    def expected(mirrored):
        images = np.where(mirrored[:, None, None, None], x[order][:, :, ::-1], x[order]).reshape(size, 16)
        target = images @ kernel + bias if asked else stored[order]
        logits = images @ np.asarray(before["kernel"]) + np.asarray(before["bias"])
        if imitation.loss == "mse":
            loss, gradient = np.mean((logits - target) ** 2), 2 * (logits - target) / logits.size
        else:
            loss, gradient = naive(logits, target, y[order], imitation.weight, imitation.temperature)
        return loss, np.asarray(before["kernel"]) - rate * images.astype(float).T @ gradient

    # Which images are mirrored the loss says: of each the one or the other.
    mirrored = np.zeros(size, bool)
    if asked:
        moved = (np.asarray(before["kernel"]) - np.asarray(after["kernel"])) / rate
        ways = (np.array([bit == "1" for bit in f"{n:0{size}b}"]) for n in range(2**size))
        mirrored = min(ways, key=lambda way: abs(expected(way)[0] - float(loss)))
        assert np.abs(moved).max() > 0.01
        assert mirrored.any()
        assert not mirrored.all()
    truth, weights = expected(mirrored)
    np.testing.assert_allclose(loss, truth, rtol=1e-10)
    np.testing.assert_allclose(after["kernel"], weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, "imitation.loss must be one of imia, mse, kl, pivots; got 'hinge'"),
        ({"warmup": 1.0}, r"imitation.warmup must be in \[0, 1\); got 1.0"),
        ({"weight": 0.0}, "imitation.weight must be positive; got 0.0"),
        ({"temperature": float("nan")}, "imitation.temperature must be positive; got nan"),
    ],
)
def test_imitations_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Imitation(**fields)


def test_the_warm_up_is_a_quarter_and_one_epoch_imitates():
    assert [Imitation().warmup_epochs(epochs) for epochs in (1, 2, 30, 60)] == [0, 0, 8, 15]
    assert Imitation(warmup=0.9).warmup_epochs(3) == 2
