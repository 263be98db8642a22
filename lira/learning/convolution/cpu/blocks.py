"""A batch convolved a few images at a time, so that what is made of them stays in the cache.

Images x `[n, H, W, C]`, kernels `[h, w, C, O]`, results and their gradients `[n, H', W', O]`. What is prepared of a
kernel is itself, or for Winograd its transform, see `transformed_kernel`. The limits were measured on CPU cores, AMD's
with 1 MB of L2 cache and Intel's with 2 MB; accelerators convolve the whole batch at once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lira.learning.convolution.cpu.cache import tiles_bytes
from lira.learning.convolution.cpu.winograd import transformed_kernel, winograd
from lira.learning.convolution.patches import flipped, pads_back, patched
from lira.learning.convolution.products import custom_backward
from lira.learning.convolution.static import NUMBERS, Convolution

__all__ = ["convolved_in_blocks"]

# Fewer channels than this are left to patches.
WINOGRAD_CHANNELS = 16
# Fewer channels than this are left to XLA by `mixed`.
MIXED_CHANNELS = 64

Shape = tuple[int, ...]  # of a kernel
Pair = tuple[jax.Array, jax.Array]  # x and kernel, or their gradients


# --- A batch, a few images at a time ------------------------------------------------------------------------------


@custom_backward
def convolved_in_blocks(conv: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x by patches, winograd or mixed."""
    if _is_left_to_xla(conv, kernel.shape):
        return _by_xla(conv, x, kernel)
    prepare, convolved = _method(conv, kernel.shape)
    # What depends on the kernel alone is made once for all images.
    prepared, images = prepare(kernel), _images_at_once(conv, x, kernel)
    if images == len(x):
        return convolved(x, prepared)
    return _joined(lax.map(lambda part: convolved(part, prepared), _split(x, images)))


def _conv_backward(conv: Convolution, saved: Pair, gradient: jax.Array) -> Pair:
    """The gradients of x and of the kernel."""
    kernel = saved[1]
    if not _is_left_to_xla(conv, kernel.shape):
        return _backward(conv, saved, gradient)
    # What of a gradient is not taken is not computed.
    kernel_gradient = _backward(replace(conv, lowering="winograd"), saved, gradient)[1]
    if conv.strides == (1, 1):
        return _by_xla(pads_back(conv, kernel.shape), gradient, flipped(kernel)), kernel_gradient
    return _backward(replace(conv, lowering="patches"), saved, gradient)[0], kernel_gradient


def _backward(conv: Convolution, saved: Pair, gradient: jax.Array) -> Pair:
    """The gradients of x and of the kernel by patches or tiles, a few images at a time."""
    x, kernel = saved
    prepare, convolved = _method(conv, kernel.shape)
    prepared, finish = jax.vjp(prepare, kernel)
    images = _images_at_once(conv, x, kernel)

    def backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, Any]:
        # What is convolved is made anew from x: cheaper than the memory of keeping it.
        return jax.vjp(convolved, x, prepared)[1](gradient)

    def one_part(total: Any, part: Pair) -> tuple[Any, jax.Array]:
        x_gradient, more = backward(*part)
        return jax.tree.map(jnp.add, total, more), x_gradient

    if images == len(x):
        x_gradient, total = backward(x, gradient)
    else:
        zeros = jax.tree.map(jnp.zeros_like, prepared)
        total, parts = lax.scan(one_part, zeros, (_split(x, images), _split(gradient, images)))
        x_gradient = _joined(parts)
    return x_gradient, *finish(total)


convolved_in_blocks.defvjp(lambda conv, *pair: (convolved_in_blocks(conv, *pair), pair), _conv_backward)


def _method(
    conv: Convolution, shape: Shape
) -> tuple[Callable[[jax.Array], Any], Callable[[jax.Array, Any], jax.Array]]:
    """The functions `kernel -> prepared` and `(x, prepared) -> result` of a kernel of this shape."""
    if _is_winograd(conv, shape):
        return partial(transformed_kernel, conv.strides), partial(winograd, conv)
    return lambda kernel: kernel, partial(patched, conv)


def _is_winograd(conv: Convolution, shape: Shape) -> bool:
    # With few channels the tiles cost more than the products that they save.
    return (
        conv.lowering in ("winograd", "mixed")
        and max(conv.strides) <= 2
        and shape[:2] == (3, 3)
        and min(shape[2:]) >= WINOGRAD_CHANNELS
    )


def _is_left_to_xla(conv: Convolution, shape: Shape) -> bool:
    # As matrix products, 1x1 kernels are as fast, and Winograd is faster with many channels.
    return conv.lowering == "mixed" and max(shape[:2]) > 1 and min(shape[2:]) < MIXED_CHANNELS


def _by_xla(conv: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution of one model; under `vmap` over models by winograd, since a grouped one is slow."""

    @jax.custom_batching.custom_vmap
    def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, conv.strides, conv.pads, dimension_numbers=NUMBERS, precision=conv.precision
        )

    @convolved.def_vmap
    def _(axis_size: int, batched: list[bool], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        axes = tuple(0 if of_models else None for of_models in batched)
        by_winograd = partial(convolved_in_blocks, replace(conv, lowering="winograd"))
        return jax.vmap(by_winograd, axes)(x, kernel), True

    return convolved(x, kernel)


def _images_at_once(conv: Convolution, x: jax.Array, kernel: jax.Array) -> int:
    """Images whose patches or tiles fit in the cache, a divisor of n; on accelerators all of them."""
    if not conv.on_cpu:
        return len(x)
    height, width, channels, features = kernel.shape
    rows, columns = conv.strides
    outputs = x.shape[1] * x.shape[2] // (rows * columns)
    if _is_winograd(conv, kernel.shape):
        matrices = (3 + rows) * (3 + columns)
        each, room = matrices * outputs // 4 * (channels + features), tiles_bytes() // x.dtype.itemsize
        # All parts read the matrices anew and add to their gradients: the tiles of one are to outweigh them.
        room = max(room, matrices * channels * features)
    else:
        # Half as many bytes of patches as of tiles.
        each, room = outputs * height * width * channels, tiles_bytes() // 2 // x.dtype.itemsize
    most = max(1, room // each)
    return next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)


def _split(x: jax.Array, images: int) -> jax.Array:
    """`[n, ...]` to `[n // images, images, ...]`."""
    return x.reshape(-1, images, *x.shape[1:])


def _joined(parts: jax.Array) -> jax.Array:
    """What `_split` took apart."""
    return parts.reshape(-1, *parts.shape[2:])
