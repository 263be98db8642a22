"""A batch convolved a few images at a time, so that what is made of them stays in the cache."""

import functools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from lira.learning.convolution.patches import flipped, pads_back, patched
from lira.learning.convolution.products import on_cpu
from lira.learning.convolution.winograd import transformed_kernel, winograd

__all__ = ["cache_bytes", "convolved_in_blocks"]

# What follows was measured on CPU cores, AMD's with 1 MB of L2 cache and Intel's with 2 MB; accelerators do without.
# Images are convolved a few at a time, so that what is made of them stays in the cache: tiles in a core's own where it
# has as much as this, otherwise in the one that cores share, where twice as much was best; patches in half of it.
OWN_CACHE_BYTES = 2 << 20
# Fewer channels than this are left to patches.
WINOGRAD_CHANNELS = 16
# Fewer channels than this are left to XLA by `mixed`.
MIXED_CHANNELS = 64


# --- A batch, a few images at a time ------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def convolved_in_blocks(by, strides, pads, precision, x, kernel):
    if _is_left_to_xla(by, kernel.shape):
        return _by_xla(strides, pads, precision, x, kernel)
    prepare, convolved = _method(by, strides, pads, precision, kernel.shape)
    # What depends on the kernel alone is made once for all images.
    prepared, images = prepare(kernel), _images_at_once(by, strides, x, kernel)
    if images == len(x):
        return convolved(x, prepared)
    return _joined(lax.map(lambda part: convolved(part, prepared), _split(x, images)))


def _conv_forward(by, strides, pads, precision, x, kernel):
    return convolved_in_blocks(by, strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(by, strides, pads, precision, saved, gradient):
    kernel = saved[1]
    if not _is_left_to_xla(by, kernel.shape):
        return _backward(by, strides, pads, precision, saved, gradient)
    # What of a gradient is not taken is not computed.
    kernel_gradient = _backward("winograd", strides, pads, precision, saved, gradient)[1]
    if strides == (1, 1):
        pads = pads_back(kernel.shape, pads)
        return _by_xla(strides, pads, precision, gradient, flipped(kernel)), kernel_gradient
    return _backward("patches", strides, pads, precision, saved, gradient)[0], kernel_gradient


def _backward(by, strides, pads, precision, saved, gradient):
    """Gradients of the images and of the kernel by patches or tiles, a few images at a time."""
    x, kernel = saved
    prepare, convolved = _method(by, strides, pads, precision, kernel.shape)
    prepared, finish = jax.vjp(prepare, kernel)
    images = _images_at_once(by, strides, x, kernel)

    def backward(x, gradient):
        # What is convolved is made anew from x: cheaper than the memory of keeping it.
        return jax.vjp(convolved, x, prepared)[1](gradient)

    def one_part(total, part):
        x_gradient, more = backward(*part)
        return jax.tree.map(jnp.add, total, more), x_gradient

    if images == len(x):
        x_gradient, total = backward(x, gradient)
    else:
        zeros = jax.tree.map(jnp.zeros_like, prepared)
        total, parts = lax.scan(one_part, zeros, (_split(x, images), _split(gradient, images)))
        x_gradient = _joined(parts)
    return x_gradient, *finish(total)


convolved_in_blocks.defvjp(_conv_forward, _conv_backward)


def _method(by, strides, pads, precision, shape):
    """How some images are convolved: functions `kernel -> prepared` and `(images, prepared) -> result`."""
    if _is_winograd(by, strides, shape):
        return partial(transformed_kernel, strides), partial(winograd, strides, pads, precision)
    return lambda kernel: kernel, partial(patched, strides, pads, precision)


def _is_winograd(by, strides, shape) -> bool:
    # With few channels the tiles cost more than the products that they save.
    return (
        by in ("winograd", "mixed")
        and max(strides) <= 2
        and shape[:2] == (3, 3)
        and min(shape[2:]) >= WINOGRAD_CHANNELS
    )


def _is_left_to_xla(by, shape) -> bool:
    # As matrix products, 1x1 kernels are as fast, and Winograd is faster with many channels.
    return by == "mixed" and max(shape[:2]) > 1 and min(shape[2:]) < MIXED_CHANNELS


def _by_xla(strides, pads, precision, x, kernel):
    """XLA's convolution of one model; under `vmap` over models the others, since a grouped one is slow."""

    @jax.custom_batching.custom_vmap
    def convolved(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
        )

    @convolved.def_vmap
    def _(axis_size, batched, x, kernel):
        axes = tuple(0 if of_models else None for of_models in batched)
        return jax.vmap(partial(convolved_in_blocks, "winograd", strides, pads, precision), axes)(
            x, kernel
        ), True

    return convolved(x, kernel)


def _images_at_once(by, strides, x, kernel) -> int:
    """Images whose patches or tiles fit in the cache, a divisor of the batch; on accelerators all of them."""
    if not on_cpu():
        return len(x)
    height, width, channels, features = kernel.shape
    outputs = x.shape[1] * x.shape[2] // (strides[0] * strides[1])
    if _is_winograd(by, strides, kernel.shape):
        matrices = (3 + strides[0]) * (3 + strides[1])
        each, room = matrices * outputs // 4 * (channels + features), _tiles_bytes() // x.dtype.itemsize
        # All parts read the matrices anew and add to their gradients: the tiles of one are to outweigh them.
        room = max(room, matrices * channels * features)
    else:
        each, room = outputs * height * width * channels, _tiles_bytes() // 2 // x.dtype.itemsize
    most = max(1, room // each)
    return next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)


@functools.cache
def _tiles_bytes() -> int:
    """Tiles to make at a time."""
    own = cache_bytes().get(2, 0)
    return own if own >= OWN_CACHE_BYTES else 2 * OWN_CACHE_BYTES


def cache_bytes(place: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[int, int]:
    """Bytes of a core's data caches by level, as Linux reports them (`2048K`); empty where nothing does."""
    sizes = {}
    for cache in sorted(place.glob("index*")):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[int(level)] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return sizes


def _split(x, images):
    return x.reshape(-1, images, *x.shape[1:])


def _joined(parts):
    return parts.reshape(-1, *parts.shape[2:])
