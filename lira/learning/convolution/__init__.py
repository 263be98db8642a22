"""How the convolutions of any flax module are computed: five lowerings with one value and one gradient.

`xla` is XLA's own convolution, grouped under `vmap` over models. `per_model` is the same one for each model of a stack:
GPU libraries are slow at groups. `patches` lays the pixels that a kernel sees side by side and multiplies matrices.
`winograd` (Lavin & Gray 2016, arXiv 1509.09308, F(2x2, 3x3)) needs 2.25 times fewer multiplications for 3x3 kernels of
stride 1, 1.44 times fewer for those of stride 2, and takes patches for the others. Neither of these two scatters in its
backward pass, and both are as fast inside a loop as outside, which XLA's convolution is not on CPU; the first two have
forward derivatives as well. `mixed` is `winograd` that leaves to XLA what its library for CPUs is fast at, within loops
as well: few channels, forward and, with stride 1, the input's gradient.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, get_args

import flax.linen as nn
import jax
from jax import lax

from lira.learning.convolution.blocks import convolved_in_blocks
from lira.learning.convolution.colours import is_of_colours, pixels_of_a_row
from lira.learning.convolution.per_model import of_each_model
from lira.learning.convolution.products import FEW_OUTPUTS, channel_product, on_cpu

__all__ = ["LOWERINGS", "Lowering", "convolve", "lowering"]

Lowering = Literal["xla", "per_model", "patches", "winograd", "mixed"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
MANY_INPUTS = 1024


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Within it, every plain `nn.Conv` of any module is computed by lowering `name`, its parameters unchanged.

    So are, by patches and winograd, dense layers of many inputs and few outputs, whose kernel's gradient XLA is slow at on CPU.

    Enter it inside the function that is traced.
    """
    if name not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}; got {name!r}")
    if name == "xla":
        yield
        return
    with nn.intercept_methods(partial(_replaced, name)):
        yield


def _replaced(by: str, call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__" or module.is_initializing():
        return call(*args, **kwargs)
    if isinstance(module, nn.Conv) and module.conv_general_dilated is None:
        other = module.clone(conv_general_dilated=partial(convolve, by=by), parent=None)
    elif (
        by != "per_model"
        and isinstance(module, nn.Dense)
        and module.dot_general is None
        and _is_narrow(module, *args, **kwargs)
    ):
        other = module.clone(dot_general=_dense, parent=None)
    else:
        return call(*args, **kwargs)
    return other.apply(module.variables, *args, **kwargs)


def _is_narrow(module: nn.Dense, inputs: jax.Array) -> bool:
    # The other dense layers gain nothing, and as they are they have forward derivatives as well.
    return on_cpu() and module.features <= FEW_OUTPUTS and inputs.shape[-1] >= MANY_INPUTS


def _dense(x, matrix, dimension_numbers, precision=None):
    """`lax.dot_general` as a dense layer calls it."""
    return channel_product(precision, x, matrix)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    *,
    by: str = "patches",
    **kwargs,
) -> jax.Array:
    """`lax.conv_general_dilated` by the lowering `by`, for images NHWC and kernels HWIO.

    Under `vmap` over models it is a batched matrix product, or a convolution for each model, instead of a grouped
    convolution. Other layouts, groups and dilations fall back to XLA's, except for `per_model`, which takes all.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    handled = (
        by in ("patches", "winograd", "mixed")
        and lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    )
    if not handled:
        plain = partial(
            lax.conv_general_dilated, window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
            batch_group_count=batch_group_count, precision=precision, preferred_element_type=preferred_element_type,
            **kwargs,
        )  # fmt: skip
        return of_each_model(plain, lhs, rhs) if by == "per_model" else plain(lhs, rhs)
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if is_of_colours(strides, pads, lhs, rhs):
        return pixels_of_a_row(pads, precision, lhs, rhs)
    return convolved_in_blocks(by, strides, pads, precision, lhs, rhs)
