"""How the convolutions of any flax module are computed: three lowerings with one value and one gradient.

`xla` is XLA's own convolution, grouped under `vmap` over models. `patches` lays the pixels that a kernel sees side by
side and multiplies matrices. `winograd` needs 2.25 times fewer multiplications for 3x3 kernels of stride 1 (Lavin &
Gray 2016, arXiv 1509.09308, F(2x2, 3x3)) and takes patches for the others. Neither of the last two scatters in its
backward pass, and both are as fast inside a loop as outside, which XLA's convolution is not on CPU.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["LOWERINGS", "convolve", "lowering"]

LOWERINGS = ("xla", "patches", "winograd")

# On CPU images are convolved a few at a time, so that what is made of them stays in the cache: 4 MB is best of 1 to 16.
CACHE_BYTES = 4 << 20
# The matrices of F(2x2, 3x3): the kernel's transform G; the input's, B, and the output's, A, are written out below.
KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _conv(by, strides, pads, precision, x, kernel):
    forward, _ = _kernels(by, strides, pads, precision, kernel.shape)
    parts = _split(x, _images_at_once(by, strides, x, kernel))
    return _joined(
        lax.map(lambda part: forward(part, kernel), parts)
        if len(parts) > 1
        else forward(parts[0], kernel)[None]
    )


def _conv_forward(by, strides, pads, precision, x, kernel):
    return _conv(by, strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(by, strides, pads, precision, saved, gradient):
    x, kernel = saved
    _, backward = _kernels(by, strides, pads, precision, kernel.shape)
    images = _images_at_once(by, strides, x, kernel)
    if images == len(x):
        return backward(x, kernel, gradient)

    def one_part(total, part):
        x_gradient, kernel_gradient = backward(part[0], kernel, part[1])
        return total + kernel_gradient, x_gradient

    total, x_gradient = lax.scan(
        one_part, jnp.zeros_like(kernel), (_split(x, images), _split(gradient, images))
    )
    return _joined(x_gradient), total


_conv.defvjp(_conv_forward, _conv_backward)


def _kernels(by, strides, pads, precision, shape):
    """Forward `(x, kernel) -> y` and backward `(x, kernel, gradient of y) -> gradients of x and kernel`."""
    if _is_winograd(by, strides, shape):
        return partial(_winograd, pads, precision), partial(_winograd_backward, pads, precision)
    return partial(_patched, strides, pads, precision), partial(_patched_backward, strides, pads, precision)


def _is_winograd(by, strides, shape) -> bool:
    return by == "winograd" and strides == (1, 1) and shape[:2] == (3, 3)


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
    # Patches are made again: cheaper than the memory of keeping them.
    patches = _patches(x, (height, width), strides, pads)
    kernel_gradient = lax.dot_general(
        patches.reshape(-1, patches.shape[-1]),
        gradient.reshape(-1, features),
        (((0,), (0,)), ((), ())),
        precision=precision,
    ).reshape(kernel.shape)
    if strides == (1, 1):
        return _patched(
            (1, 1), _pads_back(kernel, pads), precision, gradient, _flipped(kernel)
        ), kernel_gradient
    # Each kernel tap's share of the gradient, spread to the pixels that the tap saw, and added up.
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    total = jnp.zeros_like(x)
    for row in range(height):
        for column in range(width):
            spread = []
            for axis, tap in ((0, row), (1, column)):
                low = tap - pads[axis][0]
                reach = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
                spread.append((low, x.shape[1 + axis] - low - reach, strides[axis] - 1))
            total += lax.pad(
                shares[:, :, :, row, column], jnp.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0))
            )
    return total, kernel_gradient


def _pads_back(kernel, pads):
    """Padding of the output's gradient whose convolution with the flipped kernel is the input's gradient."""
    return tuple(
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape[:2], pads, strict=True)
    )


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


def _winograd(pads, precision, x, kernel):
    tiles = _input_tiles(x, pads)
    products = jnp.matmul(
        tiles.reshape(16, -1, tiles.shape[-1]), _transformed_kernel(kernel), precision=precision
    )
    return _outputs(products.reshape(*tiles.shape[:-1], -1), *_output_size(x, pads))


def _winograd_backward(pads, precision, x, kernel, gradient):
    tiles, gradients = _input_tiles(x, pads), _gradient_tiles(gradient)
    products = lax.dot_general(
        tiles.reshape(16, -1, tiles.shape[-1]),
        gradients.reshape(16, -1, gradients.shape[-1]),
        (((1,), (1,)), ((0,), (0,))),
        precision=precision,
    )
    G = KERNEL_TRANSFORM.astype(kernel.dtype)
    kernel_gradient = jnp.einsum(
        "ai,bj,abco->ijco", G, G, products.reshape(4, 4, *products.shape[1:]), precision="highest"
    )
    return _winograd(_pads_back(kernel, pads), precision, gradient, _flipped(kernel)), kernel_gradient


def _output_size(x, pads) -> tuple[int, int]:
    rows, columns = (x.shape[1 + i] + sum(pads[i]) - 2 for i in (0, 1))
    return rows, columns


def _transformed_kernel(kernel):
    """G k G', `[16, C, O]`."""
    G = KERNEL_TRANSFORM.astype(kernel.dtype)
    return jnp.einsum("ai,bj,ijco->abco", G, G, kernel, precision="highest").reshape(16, *kernel.shape[2:])


def _input_tiles(x, pads):
    """B' d B of each 4x4 tile d, two pixels apart: `[16, n, rows, columns, C]`."""
    odd = [size % 2 for size in _output_size(x, pads)]
    x = _padded(x, [(low, high + more) for (low, high), more in zip(pads, odd, strict=True)])
    return jnp.stack([tile for row in _differences(x, 1) for tile in _differences(row, 2)])


def _differences(x, axis):
    """B' along one axis: pixels d0 to d3 of each tile to d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
    count = x.shape[axis] // 2 - 1
    d = [lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4)]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _outputs(products, rows: int, columns: int):
    """A' m A of each tile's products m `[16, n, r, c, O]`, put side by side: `[n, rows, columns, O]`."""
    m = products.reshape(4, 4, *products.shape[1:])
    upper, lower = m[0] + m[1] + m[2], m[1] - m[2] - m[3]
    pixels = [jnp.stack([a[0] + a[1] + a[2], a[1] - a[2] - a[3]], axis=3) for a in (upper, lower)]
    y = jnp.stack(pixels, axis=2)  # [n, r, 2, c, 2, O]
    return y.reshape(len(y), 2 * y.shape[1], 2 * y.shape[3], -1)[:, :rows, :columns]


def _gradient_tiles(gradient):
    """A g A' of the gradient g of each tile's 2x2 outputs: `[16, n, r, c, O]`."""
    odd = [size % 2 for size in gradient.shape[1:3]]
    g = _padded(gradient, [(0, more) for more in odd])

    def sums(first, second):
        return first, first + second, first - second, -second

    upper = sums(g[:, ::2, ::2], g[:, ::2, 1::2])
    lower = sums(g[:, 1::2, ::2], g[:, 1::2, 1::2])
    columns = [sums(*pair) for pair in zip(upper, lower, strict=True)]
    return jnp.stack([columns[j][i] for i in range(4) for j in range(4)])
