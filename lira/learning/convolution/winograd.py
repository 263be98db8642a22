"""Winograd's tiles: 2x2 outputs from 16 products instead of 36 with stride 1, from 25 with stride 2."""

import jax.numpy as jnp
from jax import lax

from lira.learning.convolution.products import channel_product, custom_backward, padded

__all__ = ["transformed_kernel", "winograd"]


# --- Winograd's tiles: 2x2 outputs from 16 products instead of 36 with stride 1, from 25 with stride 2 ---------------


# The transforms A, B and G are written out as sums, along one axis after the other, by that axis's stride. With stride 2
# the even pixels meet the kernel's first and last number, F(2, 2), and the odd ones its middle number. The numbers of a
# tile are as many arrays and never one: to lay them side by side would take as long as the products. JAX derives the
# backward pass; for it not to scatter, pixels are told apart by `_parted` and `_interleaved`, each the other's adjoint.


def winograd(strides, pads, precision, x, kernels):
    """A' [(B' d B) (G k G')] A of the tiles d of x, each of which gives 2x2 outputs."""
    sizes = [(x.shape[1 + axis] + sum(pads[axis]) - 3) // strides[axis] + 1 for axis in (0, 1)]
    # The last tile reaches into the pixels of one more.
    ends = [2 * strides[axis] * (-(-sizes[axis] // 2) + 1) for axis in (0, 1)]
    x = padded(x, [(pads[axis][0], ends[axis] - x.shape[1 + axis] - pads[axis][0]) for axis in (0, 1)])
    tiles = [_input_transform(strides[1], row, 2) for row in _input_transform(strides[0], x, 1)]
    products = [
        [channel_product(precision, tile, matrix) for tile, matrix in zip(*row, strict=True)]
        for row in zip(tiles, kernels, strict=True)
    ]
    y = _output_transform(strides[0], [_output_transform(strides[1], row, 2) for row in products], 1)
    return y[:, : sizes[0], : sizes[1]]


def transformed_kernel(strides, kernel):
    """G k G', 4 x 4 arrays `[C, O]`, or 5 along an axis of stride 2."""
    return [_kernel_transform(strides[1], row) for row in _kernel_transform(strides[0], kernel)]


def _kernel_transform(stride, kernel):
    """G along the first axis."""
    k0, k1, k2 = kernel
    if stride == 2:
        return k0, k0 + k2, k2, k1, k1
    return k0, 0.5 * (k0 + k1 + k2), 0.5 * (k0 - k1 + k2), k2


def _input_transform(stride, x, axis):
    """B' along one axis, of each tile's pixels d0, d1 ..."""
    parts = _parted((axis, 2 * stride), x)
    tiles = parts[0].shape[axis] - 1
    d = [lax.slice_in_dim(part, at, at + tiles, axis=axis) for at in (0, 1) for part in parts]
    if stride == 2:
        return d[0] - d[2], d[2], d[4] - d[2], d[1], d[3]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _output_transform(stride, products, axis):
    """A' along one axis, each tile's two outputs side by side."""
    m = products
    if stride == 2:
        pair = m[0] + m[1] + m[3], m[1] + m[2] + m[4]
    else:
        pair = m[0] + m[1] + m[2], m[1] - m[2] - m[3]
    return _interleaved((axis, 2), pair)


@custom_backward
def _parted(how, x):
    """Every n-th row (axis 1) or column (2) of a multiple of n, from each of the first n on; how is `(axis, n)`."""
    axis, n = how
    count = x.shape[axis] // n
    if axis == 1:
        # Rows more, which nobody reads: for their sake XLA lays x out once, instead of cutting it out of the batch
        # anew for each number of a tile.
        x = padded(x, ((0, n), (0, 0)))
    x = x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :])
    parts = (lax.index_in_dim(x, at, axis + 1, keepdims=False) for at in range(n))
    return tuple(lax.slice_in_dim(part, 0, count, axis=axis) for part in parts)


@custom_backward
def _interleaved(how, parts):
    """What `_parted` takes from what it gives."""
    axis, shape = how[0], parts[0].shape
    return jnp.stack(parts, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])


_parted.defvjp(lambda how, x: (_parted(how, x), None), lambda how, _, parts: (_interleaved(how, parts),))
_interleaved.defvjp(lambda how, parts: (_interleaved(how, parts), None), lambda how, _, x: (_parted(how, x),))
