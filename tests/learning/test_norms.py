from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.learning.norms import batch_norm, joint_sums

EPSILON = 1e-5


def exact(x, scale, bias, cotangent):
    """Value, statistics and gradients in float64, by the formulas of Ioffe & Szegedy (2015)."""
    x, scale, bias, cotangent = (np.asarray(a, np.float64) for a in (x, scale, bias, cotangent))
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    mean, variance = x.mean(axes), x.var(axes)
    deviation = np.sqrt(variance + EPSILON)
    normalised = (x - mean) / deviation
    of_normalised = cotangent * scale
    of_variance = (of_normalised * (x - mean)).sum(axes) * -0.5 * deviation**-3
    of_mean = -(of_normalised / deviation).sum(axes) - 2 * of_variance * (x - mean).mean(axes)
    of_x = of_normalised / deviation + of_variance * 2 * (x - mean) / count + of_mean / count
    gradients = of_x, (cotangent * normalised).sum(axes), cotangent.sum(axes)
    return normalised * scale + bias, mean, variance, gradients


def layer(x, scale, bias, cotangent, *, platform="gpu", momentum=0.9, **options):
    """A flax layer's value, its running averages afterwards (from 0 and 1), and its gradients."""
    module = nn.BatchNorm(use_running_average=False, momentum=momentum, epsilon=EPSILON, **options)

    def loss(x, scale, bias):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])},
        }
        with joint_sums(platform):
            y, updated = module.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.asarray(y, jnp.float32) * cotangent), (y, updated["batch_stats"])

    gradients, (y, averages) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)
    return y, averages, gradients


def arguments(shape, dtype, shift=0.5) -> tuple[Any, ...]:
    rng = np.random.default_rng(1)
    x = rng.normal(shift, 1 + np.arange(shape[-1]) % 5, shape)
    scale, bias = rng.normal(1, 0.3, shape[-1]), rng.normal(size=shape[-1])
    return *(jnp.asarray(a, dtype) for a in (x, scale, bias)), jnp.asarray(
        rng.normal(size=shape), jnp.float32
    )


def error(ours, expected):
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected)
    return np.sqrt(np.mean((ours - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("shape", [(64, 3), (16, 5, 4), (8, 7, 5, 6)])
def test_value_and_gradients_are_those_of_the_paper(shape):
    with jax.enable_x64(True):
        given = arguments(shape, jnp.float64)

        @jax.jit
        def both(x, scale, bias, cotangent):
            y, back = jax.vjp(lambda *of: batch_norm(*of, EPSILON), x, scale, bias)
            zero = jnp.zeros(shape[-1])
            return *y, *back((cotangent.astype(float), zero, zero))

        value, mean, variance, gradients = exact(*given)
        for ours, expected in zip(both(*given), (value, mean, variance, *gradients), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shift", [0.5, 30.0])
def test_a_layer_is_flaxs_own_and_no_less_exact(dtype, shift):
    """In values, running averages and gradients, of which flax adds two in bfloat16."""
    given = arguments((32, 8, 8, 64), dtype, shift)
    plain = layer(*given, platform="cpu")
    ours = layer(*given)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), plain
    )
    value, mean, variance, gradients = exact(*given)
    averages = {"mean": 0.1 * mean, "var": 0.9 + 0.1 * variance}
    for a, b, expected in zip(
        *map(jax.tree.leaves, (ours, plain, (value, averages, gradients))), strict=True
    ):
        # Both round sums in some order: over 64 channels that averages out.
        assert error(a, expected) <= 1.3 * error(b, expected) + 0.1 * float(jnp.finfo(a.dtype).eps)


def test_of_a_stack_each_model_has_its_own():
    stack = [arguments((8, 4, 4, 3), jnp.float32) for _ in range(3)]
    together = jax.jit(jax.vmap(layer))(*(np.stack(a) for a in zip(*stack, strict=True)))
    alone = jax.jit(layer)
    for i, given in enumerate(stack):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone(*given)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, True),
        ({"axis": 3}, True),
        ({"axis": 1}, False),
        ({"dtype": jnp.float32}, False),
        ({"use_scale": False}, False),
        ({"use_fast_variance": False}, False),
        ({"use_running_average": True}, False),
    ],
)
def test_only_plain_layers_in_training_are_replaced(options, ours):
    module, x = nn.BatchNorm(**{"use_running_average": False, **options}), jnp.ones((8, 4, 4, 4))
    variables = module.init(jax.random.key(0), x)

    def apply(x):
        with joint_sums("gpu"):
            return module.apply(variables, x, mutable=["batch_stats"])

    assert ("custom_vjp" in str(jax.make_jaxpr(apply)(x))) is ours


def test_flaxs_own_stays_on_cpu():
    """Where a mask is given, too."""
    given = arguments((8, 4, 4, 3), jnp.float32)
    assert "custom_vjp" not in str(jax.make_jaxpr(partial(layer, platform="cpu"))(*given))
