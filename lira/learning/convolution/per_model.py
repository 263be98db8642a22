"""One convolution for each model of a stack, where `vmap` would make a grouped one."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["of_each_model"]

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]  # of arrays of any shapes


# --- One convolution for each model ---------------------------------------------------------------------------------


def of_each_model(function: Bilinear, a: jax.Array, b: jax.Array) -> jax.Array:
    """A bilinear function that `vmap` calls for one model after the other, and so the functions of its derivatives."""
    return _each_model.bind(a, b, function=function)


def _one_after_the_other(
    arguments: Sequence[jax.Array], axes: Sequence[int | None], *, function: Bilinear
) -> tuple[jax.Array, int]:
    """What the function gives of each model's two arguments, `[models, ...]`, and 0, the axis of models in it."""
    pairs = list(zip(arguments, axes, strict=True))
    models = next(a.shape[axis] for a, axis in pairs if axis is not None)
    results = []
    for i in range(models):
        one = (a if axis is None else lax.index_in_dim(a, i, axis, keepdims=False) for a, axis in pairs)
        results.append(of_each_model(function, *one))
    return jnp.stack(results), 0


def _transposed(function: Bilinear, aval: ShapedArray, gradient: jax.Array, other: jax.Array) -> jax.Array:
    """The gradient of one operand from that of the result: bilinear as well. `aval` is its shape."""
    return jax.linear_transpose(lambda operand: function(operand, other), aval)(gradient)[0]


def _shape_of(a: ShapedArray, b: ShapedArray, *, function: Bilinear) -> ShapedArray:
    """Shape and type of the result."""
    result = jax.eval_shape(function, a, b)
    return ShapedArray(result.shape, result.dtype)


# No `custom_vmap`: it has no backward pass, and within a `custom_vjp` there would be no forward derivatives.
_each_model = Primitive("convolution_of_each_model")
_each_model.def_impl(lambda a, b, *, function: function(a, b))
_each_model.def_abstract_eval(_shape_of)
mlir.register_lowering(
    _each_model, mlir.lower_fun(lambda a, b, *, function: function(a, b), multiple_results=False)
)
batching.primitive_batchers[_each_model] = _one_after_the_other
ad.defbilinear(
    _each_model,
    lambda gradient, a, b, *, function: of_each_model(partial(_transposed, function, a.aval), gradient, b),
    lambda gradient, a, b, *, function: of_each_model(
        partial(_transposed, lambda second, first: function(first, second), b.aval), gradient, a
    ),
)
