"""How the convolutions of any flax module are computed: three lowerings with one value and one gradient.

`xla` is XLA's own convolution, grouped under `vmap` over models. `patches` lays the pixels that a kernel sees side by
side and multiplies matrices. `winograd` needs 2.25 times fewer multiplications for 3x3 kernels of stride 1 (Lavin &
Gray 2016, arXiv 1509.09308, F(2x2, 3x3)) and takes patches for the others. Neither of the last two scatters in its
backward pass, and both are as fast inside a loop as outside, which XLA's convolution is not on CPU.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["LOWERINGS", "convolve", "lowering"]

LOWERINGS = ("xla", "patches", "winograd")

# On CPU images are convolved a few at a time, so that what is made of them stays in the cache: 2 MB is best of 0.5 to 16.
CACHE_BYTES = 2 << 20
# Fewer channels than this are left to patches.
WINOGRAD_CHANNELS = 16


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Within it, every plain `nn.Conv` of any module is computed by lowering `name`, its parameters unchanged.

    Enter it inside the function that is traced.
    """
    if name not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}; got {name!r}")
    if name == "xla":
        yield
        return
    with nn.intercept_methods(partial(_replaced, partial(convolve, by=name))):
        yield


def _replaced(convolution: Callable[..., jax.Array], call, args, kwargs, context):
    module = context.module
    plain = (
        isinstance(module, nn.Conv)
        and context.method_name == "__call__"
        and module.conv_general_dilated is None
    )
    if not plain or module.is_initializing():
        return call(*args, **kwargs)
    other = module.clone(conv_general_dilated=convolution, parent=None)
    return other.apply(module.variables, *args, **kwargs)


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

    Under `vmap` over models it is a batched matrix product instead of a grouped convolution. Other layouts, groups and
    dilations fall back to XLA.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    handled = (
        by != "xla"
        and lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    )
    if not handled:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count, precision, preferred_element_type, **kwargs,
        )  # fmt: skip
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(by, strides, pads, precision, lhs, rhs)


# --- A batch, a few images at a time ------------------------------------------------------------------------------


class _Method(NamedTuple):
    """How a part of the batch is convolved. What depends on the kernel alone is made once for all parts."""

    prepare: Callable[..., Any]  # kernel -> what forward takes
    forward: Callable[..., Any]  # (x, prepared) -> y
    prepare_back: Callable[..., Any]  # kernel -> what backward takes
    backward: Callable[
        ..., Any
    ]  # (x, prepared back, gradient of y) -> gradient of x, that of the kernel, raw
    finish: Callable[..., Any]  # sum of raw kernel gradients -> the kernel's gradient


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _conv(by, strides, pads, precision, x, kernel):
    method = _method(by, strides, pads, precision, kernel.shape)
    prepared, images = method.prepare(kernel), _images_at_once(by, strides, x, kernel)
    if images == len(x):
        return method.forward(x, prepared)
    return _joined(lax.map(lambda part: method.forward(part, prepared), _split(x, images)))


def _conv_forward(by, strides, pads, precision, x, kernel):
    return _conv(by, strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(by, strides, pads, precision, saved, gradient):
    x, kernel = saved
    method = _method(by, strides, pads, precision, kernel.shape)
    prepared, images = method.prepare_back(kernel), _images_at_once(by, strides, x, kernel)
    # What is convolved is made anew from x: cheaper than the memory of keeping it.
    if images == len(x):
        x_gradient, raw = method.backward(x, prepared, gradient)
        return x_gradient, method.finish(raw)

    def one_part(total, part):
        x_gradient, raw = method.backward(part[0], prepared, part[1])
        return jax.tree.map(jnp.add, total, raw), x_gradient

    parts = _split(x, images), _split(gradient, images)
    _, shapes = jax.eval_shape(method.backward, parts[0][0], prepared, parts[1][0])
    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    raw, x_gradient = lax.scan(one_part, zeros, parts)
    return _joined(x_gradient), method.finish(raw)


_conv.defvjp(_conv_forward, _conv_backward)


def _method(by, strides, pads, precision, shape) -> _Method:
    if _is_winograd(by, strides, shape):
        return _Method(
            _transformed_kernel,
            partial(_winograd, pads, precision),
            lambda kernel: _transformed_kernel(_flipped(kernel)),
            partial(_winograd_backward, shape, pads, precision),
            _untransformed_gradient,
        )
    return _Method(
        lambda kernel: kernel,
        partial(_patched, strides, pads, precision),
        lambda kernel: kernel,
        partial(_patched_backward, strides, pads, precision),
        lambda raw: raw,
    )


def _is_winograd(by, strides, shape) -> bool:
    # With few channels the tiles cost more than the products that they save.
    return (
        by == "winograd" and strides == (1, 1) and shape[:2] == (3, 3) and min(shape[2:]) >= WINOGRAD_CHANNELS
    )


def _images_at_once(by, strides, x, kernel) -> int:
    """Images whose patches or tiles fit in the cache, a divisor of the batch; on accelerators all of them."""
    if jax.default_backend() != "cpu":
        return len(x)
    outputs = x.shape[1] * x.shape[2] // (strides[0] * strides[1])
    if _is_winograd(by, strides, kernel.shape):
        numbers = 4 * outputs * (kernel.shape[2] + kernel.shape[3])
    else:
        numbers = outputs * kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    most = max(1, CACHE_BYTES // (numbers * x.dtype.itemsize))
    return next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)


def _split(x, images):
    return x.reshape(-1, images, *x.shape[1:])


def _joined(parts):
    return parts.reshape(-1, *parts.shape[2:])


# --- Patches times a matrix ---------------------------------------------------------------------------------------


def _patched(strides, pads, precision, x, kernel):
    height, width, _, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    return jnp.matmul(patches, kernel.reshape(-1, features), precision=precision)


def _patched_backward(strides, pads, precision, x, kernel, gradient):
    height, width, channels, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    kernel_gradient = _over_pixels(patches, gradient, precision).reshape(kernel.shape)
    if strides == (1, 1):
        return _patched(
            (1, 1), _pads_back(kernel.shape, pads), precision, gradient, _flipped(kernel)
        ), kernel_gradient
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    return _gathered(shares, strides, pads, x.shape), kernel_gradient


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
                total += _padded(shares[:, :, :, *tap], shifts)
        phases.append(total)
    side_by_side = (
        jnp.stack(phases, axis=3).reshape(shape[0], *sizes, *strides, shape[3]).transpose(0, 1, 3, 2, 4, 5)
    )
    whole = side_by_side.reshape(shape[0], sizes[0] * strides[0], sizes[1] * strides[1], shape[3])
    return whole[:, : shape[1], : shape[2]]


def _over_pixels(left, right, precision):
    """Sum over images and pixels of the products of two arrays' channels."""
    left, right = (a.reshape(-1, a.shape[-1]) for a in (left, right))
    return lax.dot_general(left, right, (((0,), (0,)), ((), ())), precision=precision)


def _pads_back(shape, pads):
    """Padding of the output's gradient whose convolution with the flipped kernel is the input's gradient."""
    return tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(shape[:2], pads, strict=True))


def _flipped(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _patches(x: jax.Array, size: tuple[int, int], strides: tuple[int, int], pads) -> jax.Array:
    """`[n, H, W, C]` to `[n, H', W', size * C]`: shifted, strided slices of the padded images side by side."""
    x = _padded(x, pads)
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
    return jnp.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]


def _padded(x, pads):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))


# --- Winograd's F(2x2, 3x3): each tile of 4x4 pixels gives 2x2 outputs from 16 products instead of 36 ---------------


# The transforms A and B are written out as sums. The 16 numbers of a tile are 16 arrays and never one: to lay them side
# by side would take as long as the products.


def _winograd(pads, precision, x, kernels):
    tiles = _input_tiles(x, pads)
    products = [
        [jnp.matmul(tiles[i][j], kernels[4 * i + j], precision=precision) for j in range(4)] for i in range(4)
    ]
    return _outputs(products, *_output_size(x, pads))


def _winograd_backward(shape, pads, precision, x, flipped_kernels, gradient):
    tiles, gradients = _input_tiles(x, pads), _gradient_tiles(gradient)
    products = [[_over_pixels(tiles[i][j], gradients[i][j], precision) for j in range(4)] for i in range(4)]
    return _winograd(_pads_back(shape, pads), precision, gradient, flipped_kernels), products


def _output_size(x, pads) -> tuple[int, int]:
    rows, columns = (x.shape[1 + i] + sum(pads[i]) - 2 for i in (0, 1))
    return rows, columns


def _transformed_kernel(kernel):
    """G k G', `[16, C, O]`."""
    transformed = jnp.matmul(_transform(kernel.dtype), kernel.reshape(9, -1), precision="highest")
    return transformed.reshape(16, *kernel.shape[2:])


def _untransformed_gradient(products):
    """G' p G of the 16 matrices p that `_transformed_kernel` would have led to: `[3, 3, C, O]`."""
    p = jnp.stack([matrix for row in products for matrix in row])
    gradient = jnp.matmul(_transform(p.dtype).T, p.reshape(16, -1), precision="highest")
    return gradient.reshape(3, 3, *p.shape[1:])


def _transform(dtype):
    """G along both axes at once, `[16, 9]`."""
    G = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    return jnp.asarray(np.kron(G, G), dtype)


def _input_tiles(x, pads):
    """B' d B of each 4x4 tile d, two pixels apart: 4 x 4 arrays `[n, rows, columns, C]`."""
    odd = [size % 2 for size in _output_size(x, pads)]
    x = _padded(x, [(low, high + more) for (low, high), more in zip(pads, odd, strict=True)])
    return [_differences(row, 2) for row in _differences(x, 1)]


def _differences(x, axis):
    """B' along one axis: pixels d0 to d3 of each tile to d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
    count = x.shape[axis] // 2 - 1
    d = [lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4)]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _outputs(products, rows: int, columns: int):
    """A' m A of each tile's products m, 4 x 4 arrays `[n, r, c, O]`, put side by side: `[n, rows, columns, O]`."""

    def sums(m0, m1, m2, m3):
        return m0 + m1 + m2, m1 - m2 - m3

    by_column = [sums(*(products[i][j] for i in range(4))) for j in range(4)]
    pixels = [jnp.stack(sums(*(by_column[j][row] for j in range(4))), axis=3) for row in range(2)]
    y = jnp.stack(pixels, axis=2)  # [n, r, 2, c, 2, O]
    return y.reshape(len(y), 2 * y.shape[1], 2 * y.shape[3], -1)[:, :rows, :columns]


def _gradient_tiles(gradient):
    """A g A' of the gradient g of each tile's 2x2 outputs: 4 x 4 arrays `[n, r, c, O]`."""
    g = _padded(gradient, [(0, size % 2) for size in gradient.shape[1:3]])

    def spread(first, second):
        return first, first + second, first - second, -second

    rows = [spread(g[:, ::2, column::2], g[:, 1::2, column::2]) for column in (0, 1)]
    return [spread(rows[0][i], rows[1][i]) for i in range(4)]
