"""How the convolutions of any flax module are computed: five lowerings with one value and one gradient.

`xla` is XLA's own convolution, grouped under `vmap` over models. `per_model` is the same one for each model of a stack:
GPU libraries are slow at groups. `patches` lays the pixels that a kernel sees side by side and multiplies matrices.
`winograd` (Lavin & Gray 2016, arXiv 1509.09308, F(2x2, 3x3)) needs 2.25 times fewer multiplications for 3x3 kernels of
stride 1, 1.44 times fewer for those of stride 2, and takes patches for the others. Neither of these two scatters in its
backward pass, and both are as fast inside a loop as outside, which XLA's convolution is not on CPU; the first two have
forward derivatives as well. `mixed` is `winograd` that leaves to XLA what its library for CPUs is fast at, within loops
as well: few channels, forward and, with stride 1, the input's gradient.

What serves CPUs alone is in `cpu`; on accelerators `winograd` and `mixed` are there to be pinned.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
from flax.linen.module import Args, InterceptorContext, Kwargs, NextGetter
from jax import lax

from lira.learning.convolution.cpu.blocks import convolved_in_blocks
from lira.learning.convolution.cpu.colours import is_of_colours, pixels_of_a_row
from lira.learning.convolution.per_model import of_each_model
from lira.learning.convolution.products import FEW_OUTPUTS, channel_product
from lira.learning.convolution.static import NUMBERS, Convolution

__all__ = ["LOWERINGS", "Lowering", "convolve", "lowering"]

Lowering = Literal["xla", "per_model", "patches", "winograd", "mixed"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
MANY_INPUTS = 1024


@contextlib.contextmanager
def lowering(name: str, platform: str) -> Iterator[None]:
    """Within it, every plain `nn.Conv` of any module is computed by lowering `name`, its parameters unchanged.

    On CPU so are, but by xla and per_model, dense layers of many inputs and few outputs, whose kernel's gradient XLA is
    slow at there. `platform` is what the function runs on, as JAX names it: cpu, gpu or tpu.

    Enter it inside the function that is traced.
    """
    if name not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}; got {name!r}")
    if name == "xla":
        yield
        return
    with nn.intercept_methods(partial(_replaced, name, platform)):
        yield


def _replaced(
    name: str, platform: str, call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext
) -> Any:
    """What a layer returns when its convolution or product is another; an interceptor of flax's."""
    module = context.module
    if context.method_name != "__call__" or module.is_initializing():
        return call(*args, **kwargs)
    if isinstance(module, nn.Conv) and module.conv_general_dilated is None:
        by_lowering = partial(convolve, lowering=name, platform=platform)
        other = module.clone(conv_general_dilated=by_lowering, parent=None)
    elif (
        platform == "cpu"
        and name != "per_model"
        and isinstance(module, nn.Dense)
        and module.dot_general is None
        and _is_narrow(module, *args, **kwargs)
    ):
        other = module.clone(dot_general=_dense, parent=None)
    else:
        return call(*args, **kwargs)
    return other.apply(module.variables, *args, **kwargs)


def _is_narrow(module: nn.Dense, inputs: jax.Array) -> bool:
    """Whether a layer on `inputs [..., C]` has many inputs and few outputs.

    The others gain nothing, and as they are they have forward derivatives as well.
    """
    return module.features <= FEW_OUTPUTS and inputs.shape[-1] >= MANY_INPUTS


def _dense(x: jax.Array, matrix: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """`lax.dot_general` as a dense layer calls it: x `[..., C]` times `[C, O]`, on CPU."""
    return channel_product(precision, True, x, matrix)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lowering: str,
    platform: str,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` by a lowering, for images `[n, H, W, C]` and kernels `[h, w, C, O]`.

    Under `vmap` over models it is a batched matrix product, or a convolution for each model, instead of a grouped
    convolution. Other layouts, groups and dilations, strides beyond the image and kernels beyond its padding fall
    back to XLA's, except for `per_model`, which takes all.
    `options` are the other arguments of `lax.conv_general_dilated`, by name.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    groups = options.get("feature_group_count", 1), options.get("batch_group_count", 1)
    dilations = [d for name in ("lhs_dilation", "rhs_dilation") for d in options.get(name) or ()]
    handled = (
        lowering in ("patches", "winograd", "mixed")
        and lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NUMBERS)
        and set(groups) | set(dilations) == {1}
        and _is_ordinary(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    )
    if not handled:
        plain = partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
        return of_each_model(plain, lhs, rhs) if lowering == "per_model" else plain(lhs, rhs)
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    rows, columns = ((int(low), int(high)) for low, high in padding)
    conv = Convolution(lowering, platform, strides, (rows, columns), options.get("precision"))
    if is_of_colours(conv, lhs, rhs):
        return pixels_of_a_row(conv, lhs, rhs)
    return convolved_in_blocks(conv, lhs, rhs)


def _is_ordinary(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> bool:
    """Whether a kernel fits into the padded image, nothing is cut off, and a step stays within the image."""
    pads = lax.padtype_to_pads(size, kernel, strides, padding) if isinstance(padding, str) else padding
    return all(
        step <= pixels and min(low, high) >= 0 and taps <= pixels + low + high
        for pixels, taps, step, (low, high) in zip(size, kernel, strides, pads, strict=True)
    )
