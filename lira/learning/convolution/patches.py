"""Convolutions as products of patches and a matrix, whose backward pass does not scatter.

Images x `[n, H, W, C]`, kernels `[h, w, C, O]`, results and their gradients `[n, H', W', O]`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lira.learning.convolution.products import custom_backward, over_pixels, padded
from lira.learning.convolution.static import Convolution, Pads, Strides

__all__ = ["flipped", "pads_back", "patched", "side_by_side"]
# Rows of patches that a kernel's gradient is summed over at a time on CPU: a fifth faster than all at once.
ROWS_AT_ONCE = 512


# --- Patches times a matrix ---------------------------------------------------------------------------------------


@custom_backward
def patched(conv: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x, as one product."""
    patches = _patches(conv, x, kernel.shape)
    return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[3]), precision=conv.precision)


def _patched_backward(
    conv: Convolution, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and of the kernel, for which patches are made anew."""
    x, kernel = saved
    height, width, channels, features = kernel.shape
    patches = _patches(conv, x, kernel.shape)
    rows = patches.size // patches.shape[-1]
    turns = rows // ROWS_AT_ONCE if conv.on_cpu and rows % ROWS_AT_ONCE == 0 else 1
    kernel_gradient = over_pixels(patches, gradient, conv.precision, conv.on_cpu, turns).reshape(kernel.shape)
    if conv.strides == (1, 1):
        return patched(pads_back(conv, kernel.shape), gradient, flipped(kernel)), kernel_gradient
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=conv.precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    return _gathered(shares, conv.strides, conv.pads, x.shape), kernel_gradient


patched.defvjp(lambda conv, *pair: (patched(conv, *pair), pair), _patched_backward)


def _gathered(shares: jax.Array, strides: Strides, pads: Pads, shape: tuple[int, ...]) -> jax.Array:
    """Sum what each kernel tap gave to the pixels that it saw: `[n, H', W', h, w, C]` to `shape`, `[n, H, W, C]`.

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
                rows, columns = (
                    (-d, sizes[axis] + d - shares.shape[1 + axis]) for axis, (d, _) in enumerate(ahead)
                )
                total += padded(shares[:, :, :, *tap], (rows, columns))
        phases.append(total)
    whole = jnp.stack(phases, axis=3).reshape(shape[0], *sizes, *strides, shape[3])
    whole = whole.transpose(0, 1, 3, 2, 4, 5)
    whole = whole.reshape(shape[0], sizes[0] * strides[0], sizes[1] * strides[1], shape[3])
    return whole[:, : shape[1], : shape[2]]


def pads_back(conv: Convolution, shape: tuple[int, ...]) -> Convolution:
    """The convolution of the gradient `[n, H', W', O]` with the flipped kernel that is the gradient of x, for strides 1.

    `shape` is the kernel's.
    """
    rows, columns = (
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(shape[:2], conv.pads, strict=True)
    )
    return dataclasses.replace(conv, pads=(rows, columns))


def flipped(kernel: jax.Array) -> jax.Array:
    """`[h, w, C, O]` upside down and right to left: `[h, w, O, C]`."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _patches(conv: Convolution, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[n, H', W', h * w * C]` of a kernel of this shape: shifted, strided slices of the padded images side by side."""
    x = padded(x, conv.pads)
    strides = conv.strides
    rows, columns = ((x.shape[1 + i] - shape[i]) // strides[i] + 1 for i in (0, 1))
    slices = [
        x[
            :,
            row : row + (rows - 1) * strides[0] + 1 : strides[0],
            column : column + (columns - 1) * strides[1] + 1 : strides[1],
        ]
        for row, column in np.ndindex(*shape[:2])
    ]
    return side_by_side(slices, conv.on_cpu)


def side_by_side(slices: list[jax.Array], on_cpu: bool) -> jax.Array:
    """Several `[n, H', W', C]` joined along the channels."""
    if len(slices) == 1 or not on_cpu:
        return jnp.concatenate(slices, axis=-1)
    return _written_side_by_side(slices)


@jax.custom_batching.custom_vmap
def _written_side_by_side(slices: list[jax.Array]) -> jax.Array:
    """As `side_by_side`: a concatenation on CPU copies them twice; written into the matrix to be multiplied, once."""
    (*outer, channels), count = slices[0].shape, len(slices)
    matrix = jnp.zeros((math.prod(outer), count * channels), slices[0].dtype)
    for i, each in enumerate(slices):
        matrix = lax.dynamic_update_slice(matrix, each.reshape(-1, channels), (0, i * channels))
    return matrix.reshape(*outer, -1)


@_written_side_by_side.def_vmap
def _(axis_size: int, batched: list[bool], slices: list[jax.Array]) -> tuple[jax.Array, bool]:
    """`[models, n, H', W', C]` each; written into a matrix, it would be a scatter under `vmap`."""
    return jnp.concatenate(slices, axis=-1), True
