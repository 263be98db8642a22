"""Convolutions as products of patches and a matrix, whose backward pass does not scatter."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lira.learning.convolution.products import on_cpu, over_pixels, padded

__all__ = ["flipped", "pads_back", "patched", "side_by_side"]
# Rows of patches that a kernel's gradient is summed over at a time: a fifth faster than all at once.
ROWS_AT_ONCE = 512


# --- Patches times a matrix ---------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def patched(strides, pads, precision, x, kernel):
    height, width, _, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    return jnp.matmul(patches, kernel.reshape(-1, features), precision=precision)


def _patched_forward(strides, pads, precision, x, kernel):
    return patched(strides, pads, precision, x, kernel), (x, kernel)


def _patched_backward(strides, pads, precision, saved, gradient):
    x, kernel = saved
    height, width, channels, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    rows = patches.size // patches.shape[-1]
    turns = rows // ROWS_AT_ONCE if on_cpu() and rows % ROWS_AT_ONCE == 0 else 1
    kernel_gradient = over_pixels(patches, gradient, precision, turns).reshape(kernel.shape)
    if strides == (1, 1):
        return patched(
            (1, 1), pads_back(kernel.shape, pads), precision, gradient, flipped(kernel)
        ), kernel_gradient
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    return _gathered(shares, strides, pads, x.shape), kernel_gradient


patched.defvjp(_patched_forward, _patched_backward)


def _gathered(shares, strides, pads, shape):
    """Sum what each kernel tap gave to the pixels that it saw: `[n, h, w, height, width, C]` to `[n, H, W, C]`.

    With strides s the pixels fall into s x s phases, and each tap serves one of them: phase by phase nothing is
    written twice.
    """
    sizes = [-(-shape[1 + axis] // strides[axis]) for axis in (0, 1)]
    phases = []
    for phase in np.ndindex(*strides):
        total = jnp.zeros((shape[0], *sizes, shape[3]), shares.dtype)
        for tap in np.ndindex(*shares.shape[3:5]):
            # Pixel s j + phase was seen by output j + ahead.
            ahead = [divmod(phase[axis] + pads[axis][0] - tap[axis], strides[axis]) for axis in (0, 1)]
            if not any(rest for _, rest in ahead):
                shifts = [(-d, sizes[axis] + d - shares.shape[1 + axis]) for axis, (d, _) in enumerate(ahead)]
                total += padded(shares[:, :, :, *tap], shifts)
        phases.append(total)
    side_by_side = (
        jnp.stack(phases, axis=3).reshape(shape[0], *sizes, *strides, shape[3]).transpose(0, 1, 3, 2, 4, 5)
    )
    whole = side_by_side.reshape(shape[0], sizes[0] * strides[0], sizes[1] * strides[1], shape[3])
    return whole[:, : shape[1], : shape[2]]


def pads_back(shape, pads):
    """Padding of the output's gradient whose convolution with the flipped kernel is the input's gradient."""
    return tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(shape[:2], pads, strict=True))


def flipped(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _patches(x: jax.Array, size: tuple[int, int], strides: tuple[int, int], pads) -> jax.Array:
    """`[n, H, W, C]` to `[n, H', W', size * C]`: shifted, strided slices of the padded images side by side."""
    x = padded(x, pads)
    rows, columns = ((x.shape[1 + i] - size[i]) // strides[i] + 1 for i in (0, 1))
    slices = [
        x[
            :,
            row : row + (rows - 1) * strides[0] + 1 : strides[0],
            column : column + (columns - 1) * strides[1] + 1 : strides[1],
        ]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return side_by_side(slices)


@jax.custom_batching.custom_vmap
def side_by_side(slices):
    """Join along the channels."""
    if len(slices) == 1 or not on_cpu():
        return jnp.concatenate(slices, axis=-1)
    # A concatenation on CPU copies them twice; written into the matrix that is to be multiplied they are copied once.
    (*outer, channels), count = slices[0].shape, len(slices)
    matrix = jnp.zeros((math.prod(outer), count * channels), slices[0].dtype)
    for i, each in enumerate(slices):
        matrix = lax.dynamic_update_slice(matrix, each.reshape(-1, channels), (0, i * channels))
    return matrix.reshape(*outer, -1)


@side_by_side.def_vmap
def _(axis_size, batched, slices):
    return jnp.concatenate(slices, axis=-1), True  # written into a matrix, it would be a scatter under `vmap`
