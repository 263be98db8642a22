"""phi of the query sweep against float64, up to |phi| = 50, and what products of fewer bits would make of it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sklearn.datasets import load_digits

from lira.learning.augment import Queries
from lira.learning.evaluation import query
from lira.learning.models import build_model

BOUND = 1e-3
# Bits of a fraction that a type stores.
BFLOAT16, TF32 = 7, 10
# Which part of the left operand is multiplied by which of the right; small products are summed first.
ONE, THREE = [(0, 0)], [(0, 1), (1, 0), (0, 0)]


def digits():
    images, labels = load_digits(return_X_y=True)
    return (images[:64] * 15).astype(np.uint8).reshape(-1, 8, 8, 1), labels[:64].astype(np.int32)


def phi_of(logits, y):
    """Phi by its definition, in float64."""
    others = np.where(np.eye(logits.shape[1], dtype=bool)[y], -np.inf, logits)
    return logits[np.arange(len(y)), y] - np.logaddexp.reduce(others, axis=1)


def logits64(module, variables, x):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        return np.asarray(jax.jit(partial(module.apply, train=False))(wide, jnp.asarray(x / 127.5 - 1)))


def statistics_of(module, variables, inputs):
    """The norms' statistics of a batch: moving averages from zero and from one show their momentum."""

    @jax.jit
    def updated(start):
        old = jax.tree.map(lambda leaf: jnp.full_like(leaf, start), variables["batch_stats"])
        variables_then = {**variables, "batch_stats": old}
        return module.apply(variables_then, inputs, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    return jax.tree.map(lambda zero, one: zero / (1 - (one - zero)), updated(0.0), updated(1.0))


@pytest.fixture(scope="module", params=["wrn-10-1", "cnn", "mlp"])
def network(request):
    """A module, its variables, images, labels and phi `[n]` in float64, whose largest absolute value is 50.

    The weights are random and the norms' statistics those of the images, so that features have the size that they have
    in a trained network; the last layer is scaled.
    """
    module, (x, y) = build_model(request.param, 10), digits()
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    if "batch_stats" in variables:
        inputs = jnp.asarray(x, jnp.float32) / 127.5 - 1
        variables = {**variables, "batch_stats": statistics_of(module, variables, inputs)}
    logits, factor = logits64(module, variables, x), 1.0
    for _ in range(8):  # phi is not linear in the logits
        factor *= 50 / np.abs(phi_of(factor * logits, y)).max()
    last = max(name for name in variables["params"] if name.startswith("Dense"))
    params = dict(variables["params"])
    params[last] = jax.tree.map(lambda leaf: leaf * np.float32(factor), params[last])
    variables = {**variables, "params": params}
    exact = phi_of(logits64(module, variables, x), y)
    assert np.abs(exact).max() == pytest.approx(50, abs=0.1)
    return module, variables, x, y, exact


def error(network):
    module, variables, x, y, exact = network
    # A function of its own each time: JAX does not see the interceptor that decides what is compiled.
    said, _ = jax.jit(lambda *arguments: query(module, Queries(), (), *arguments))(variables, x, y)
    return np.abs(np.asarray(said["phi"][:, 0], np.float64) - exact).max()


def multiplied(split, pairs):
    """Within it, convolutions and dense layers multiply parts of their operands, and sum in float32."""

    def product(operation, left, right, *args, **kwargs):
        lefts, rights = split(left), split(right)
        return sum(operation(lefts[i], rights[j], *args, **kwargs) for i, j in pairs)

    def replaced(call, args, kwargs, context):
        module = context.module
        for kind, field, operation in (
            (nn.Conv, "conv_general_dilated", lax.conv_general_dilated),
            (nn.Dense, "dot_general", lax.dot_general),
        ):
            if isinstance(module, kind) and getattr(module, field) is None:
                fields: Any = {field: partial(product, operation)}
                return module.clone(**fields, parent=None).apply(module.variables, *args, **kwargs)
        return call(*args, **kwargs)

    return nn.intercept_methods(replaced)


def nearest(bits, parts, x):
    """Parts of so many bits, each the nearest to what is left: the product of two is exact in float32."""
    found = []
    for _ in range(parts):
        found.append(lax.reduce_precision(x, 8, bits))
        x = x - found[-1]
    return found


def as_xla_splits(x):
    """The parts of `BF16_BF16_F32_X3`: the first is cut off towards zero."""
    kept = lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0xFFFF0000)
    first = lax.bitcast_convert_type(kept, jnp.float32)
    return [first, lax.reduce_precision(x - first, 8, BFLOAT16)]


def test_queries_hold_phi_to_float64(network):
    assert error(network) < BOUND / 10


@pytest.mark.parametrize("bits", [TF32, BFLOAT16])
def test_operands_of_fewer_bits_do_not(network, bits):
    with multiplied(partial(nearest, bits, 1), ONE):
        assert error(network) > BOUND


def test_three_products_of_split_operands_are_between(network):
    with multiplied(partial(nearest, BFLOAT16, 2), THREE):
        assert BOUND / 100 < error(network) < BOUND
    with multiplied(partial(nearest, TF32, 2), THREE):
        assert error(network) < BOUND / 10


@pytest.mark.parametrize("network", ["wrn-10-1"], indirect=True)
def test_xlas_own_three_products_are_too_coarse(network):
    with multiplied(as_xla_splits, THREE):
        assert error(network) > BOUND


def test_no_accelerator_is_let_to_round_operands():
    """A CPU would not show it: every product is asked for at the highest precision."""
    module, (x, y) = build_model("wrn-10-1", 10), digits()
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x[:1].astype(np.float32))
    program = jax.make_jaxpr(lambda *arguments: query(module, Queries(), (), *arguments))(variables, x, y)
    products = [e for e in program.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert len(products) == 11
    for each in products:
        assert each.params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
