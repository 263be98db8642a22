"""Winograd's tiles: 2x2 outputs from 16 products instead of 36 with stride 1, from 25 with stride 2.

Images x `[n, H, W, C]`, kernels `[3, 3, C, O]`. A tile is the pixels that 2x2 outputs see, a square of 4 with stride 1
and of 5 with stride 2; neighbours overlap. The transforms A, B and G of Lavin & Gray are written out as sums, along one
axis after the other, by that axis's stride. With stride 2 the even pixels meet the kernel's first and last number,
F(2, 2), and the odd ones its middle number. Pixel (i, j) of all tiles is one array, `[n, tiles down, tiles across, C]`,
and those arrays are never joined: to lay them side by side would take as long as the products. JAX derives the backward
pass; it does not scatter, because pixels are told apart by `_parted` and `_interleaved`, each of which is the other's
backward pass.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lira.learning.convolution.products import channel_product, custom_backward, padded
from lira.learning.convolution.static import Convolution, Strides

__all__ = ["transformed_kernel", "winograd"]

Arrays = Sequence[jax.Array]


def winograd(conv: Convolution, x: jax.Array, kernels: Sequence[Arrays]) -> jax.Array:
    """A' [(B' d B) (G k G')] A of the tiles d of x, `[n, H', W', O]`; `kernels` is what `transformed_kernel` gives."""
    strides, pads = conv.strides, conv.pads
    sizes = [(x.shape[1 + axis] + sum(pads[axis]) - 3) // strides[axis] + 1 for axis in (0, 1)]
    # The last tile reaches into the pixels of one more.
    ends = [2 * strides[axis] * (-(-sizes[axis] // 2) + 1) for axis in (0, 1)]
    rows, columns = ((pads[axis][0], ends[axis] - x.shape[1 + axis] - pads[axis][0]) for axis in (0, 1))
    x = padded(x, (rows, columns))
    tiles = [_input_transform(strides[1], row, 2) for row in _input_transform(strides[0], x, 1)]
    product = partial(channel_product, conv.precision, conv.on_cpu)
    products = [list(map(product, *rows)) for rows in zip(tiles, kernels, strict=True)]
    y = _output_transform(strides[0], [_output_transform(strides[1], row, 2) for row in products], 1)
    return y[:, : sizes[0], : sizes[1]]


def transformed_kernel(strides: Strides, kernel: jax.Array) -> list[Arrays]:
    """G k G', 4 x 4 arrays `[C, O]`, or 5 along an axis of stride 2."""
    return [_kernel_transform(strides[1], row) for row in _kernel_transform(strides[0], kernel)]


def _kernel_transform(stride: int, kernel: jax.Array) -> Arrays:
    """G along the first axis: `[3, ...]` to 4 or 5 arrays `[...]`."""
    k0, k1, k2 = kernel
    if stride == 2:
        return k0, k0 + k2, k2, k1, k1
    return k0, 0.5 * (k0 + k1 + k2), 0.5 * (k0 - k1 + k2), k2


def _input_transform(stride: int, x: jax.Array, axis: int) -> Arrays:
    """B' along one axis: `[..., 2 stride (tiles + 1), ...]` to 4 or 5 arrays `[..., tiles, ...]`, of each tile's pixels d."""
    parts = _parted((axis, 2 * stride), x)
    tiles = parts[0].shape[axis] - 1
    d = [lax.slice_in_dim(part, at, at + tiles, axis=axis) for at in (0, 1) for part in parts]
    if stride == 2:
        return d[0] - d[2], d[2], d[4] - d[2], d[1], d[3]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _output_transform(stride: int, products: Arrays, axis: int) -> jax.Array:
    """A' along one axis: 4 or 5 arrays `[..., tiles, ...]` to `[..., 2 tiles, ...]`, each tile's two outputs side by side."""
    m = products
    if stride == 2:
        pair = m[0] + m[1] + m[3], m[1] + m[2] + m[4]
    else:
        pair = m[0] + m[1] + m[2], m[1] - m[2] - m[3]
    return _interleaved((axis, 2), pair)


@custom_backward
def _parted(cut: tuple[int, int], x: jax.Array) -> Arrays:
    """Rows (axis 1) or columns (axis 2) told apart by their remainder modulo n; `cut` is `(axis, n)`.

    `[..., n m, ...]` to n arrays `[..., m, ...]`, the k-th of which holds rows k, k + n, k + 2n and so on.
    """
    axis, n = cut
    count = x.shape[axis] // n
    if axis == 1:
        # n rows of zeros are added and cut off again: with them XLA writes x out once, and all n arrays are read from
        # it; without them it would cut each array out of the batch anew.
        x = padded(x, ((0, n), (0, 0)))
    x = x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :])
    parts = (lax.index_in_dim(x, at, axis + 1, keepdims=False) for at in range(n))
    return tuple(lax.slice_in_dim(part, 0, count, axis=axis) for part in parts)


@custom_backward
def _interleaved(cut: tuple[int, int], parts: Arrays) -> jax.Array:
    """The inverse of `_parted`: n arrays `[..., m, ...]` to `[..., n m, ...]`."""
    axis, shape = cut[0], parts[0].shape
    return jnp.stack(parts, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])


_parted.defvjp(lambda cut, x: (_parted(cut, x), None), lambda cut, _, parts: (_interleaved(cut, parts),))
_interleaved.defvjp(lambda cut, parts: (_interleaved(cut, parts), None), lambda cut, _, x: (_parted(cut, x),))
