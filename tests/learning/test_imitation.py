import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.learning.imitation import imitation_loss


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

    loss, gradient = jax.value_and_grad(loss_of)(jnp.asarray(logits))
    truth = naive(
        logits.astype(float), target, labels, options.get("weight", 5.0), options.get("temperature", 2.0)
    )
    np.testing.assert_allclose(loss, truth[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, truth[1], rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_into_the_target():
    logits, target = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    labels = jnp.arange(4) % 3
    gradient = jax.grad(lambda z: imitation_loss(jnp.asarray(logits), z, labels).mean())(jnp.asarray(target))
    np.testing.assert_array_equal(gradient, 0)
