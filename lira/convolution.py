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
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["LOWERINGS", "cache_bytes", "convolve", "lowering"]

LOWERINGS = ("xla", "per_model", "patches", "winograd", "mixed")

# What follows was measured on CPU cores, AMD's with 1 MB of L2 cache and Intel's with 2 MB; accelerators do without.
# Images are convolved a few at a time, so that what is made of them stays in the cache: tiles in a core's own where it
# has as much as this, otherwise in the one that cores share, where twice as much was best; patches in half of it.
OWN_CACHE_BYTES = 2 << 20
# Fewer channels than this are left to patches.
WINOGRAD_CHANNELS = 16
# Fewer channels than this are left to XLA by `mixed`.
MIXED_CHANNELS = 64
# Images of so few channels, such as colours, are convolved this many pixels of a row at a time where that divides it.
COLOURS = 4
PIXELS_AT_ONCE = (4, 2)
# Rows of patches that a kernel's gradient is summed over at a time: a fifth faster than all at once.
ROWS_AT_ONCE = 512
# Dense layers with so many outputs and inputs, such as ten logits of a whole image, go backward as 1x1 convolutions do.
FEW_OUTPUTS = 16
MANY_INPUTS = 1024

# Of a function with a backward pass of its own, whose first argument is not differentiated.
_custom_backward: Any = partial(jax.custom_vjp, nondiff_argnums=(0,))


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
    return _on_cpu() and module.features <= FEW_OUTPUTS and inputs.shape[-1] >= MANY_INPUTS


def _dense(x, matrix, dimension_numbers, precision=None):
    """`lax.dot_general` as a dense layer calls it."""
    return _product(precision, x, matrix)


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
        return _of_each_model(plain, lhs, rhs) if by == "per_model" else plain(lhs, rhs)
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if _is_of_colours(strides, pads, lhs, rhs):
        return _pixels_of_a_row(pads, precision, lhs, rhs)
    return _conv(by, strides, pads, precision, lhs, rhs)


# --- One convolution for each model ---------------------------------------------------------------------------------


def _of_each_model(function: Callable[..., jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    """A bilinear function that `vmap` calls for one model after the other, and so the functions of its derivatives."""
    return _each_model.bind(a, b, function=function)


def _one_after_the_other(arguments, axes, *, function):
    models = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    results = [
        _of_each_model(
            function,
            *(
                a if axis is None else lax.index_in_dim(a, i, axis, keepdims=False)
                for a, axis in zip(arguments, axes, strict=True)
            ),
        )
        for i in range(models)
    ]
    return jnp.stack(results), 0


def _transposed(function, aval, gradient, other):
    """The gradient of one operand from that of the result: bilinear as well."""
    return jax.linear_transpose(lambda operand: function(operand, other), aval)(gradient)[0]


def _shape_of(a, b, *, function):
    result = jax.eval_shape(function, a, b)
    return ShapedArray(result.shape, result.dtype)


# No `custom_vmap`: it has no backward pass, and within a `custom_vjp` there would be no forward derivatives.
_each_model = Primitive("convolution_of_each_model")
_each_model.def_impl(lambda a, b, *, function: function(a, b))
_each_model.def_abstract_eval(_shape_of)
mlir.register_lowering(
    _each_model, mlir.lower_fun(lambda a, b, *, function: function(a, b), multiple_results=False)
)
batching.primitive_batchers[_each_model] = _one_after_the_other
ad.defbilinear(
    _each_model,
    lambda gradient, a, b, *, function: _of_each_model(partial(_transposed, function, a.aval), gradient, b),
    lambda gradient, a, b, *, function: _of_each_model(
        partial(_transposed, lambda second, first: function(first, second), b.aval), gradient, a
    ),
)


# --- A batch, a few images at a time ------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _conv(by, strides, pads, precision, x, kernel):
    if _is_left_to_xla(by, kernel.shape):
        return _by_xla(strides, pads, precision, x, kernel)
    prepare, convolved = _method(by, strides, pads, precision, kernel.shape)
    # What depends on the kernel alone is made once for all images.
    prepared, images = prepare(kernel), _images_at_once(by, strides, x, kernel)
    if images == len(x):
        return convolved(x, prepared)
    return _joined(lax.map(lambda part: convolved(part, prepared), _split(x, images)))


def _conv_forward(by, strides, pads, precision, x, kernel):
    return _conv(by, strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(by, strides, pads, precision, saved, gradient):
    kernel = saved[1]
    if not _is_left_to_xla(by, kernel.shape):
        return _backward(by, strides, pads, precision, saved, gradient)
    # What of a gradient is not taken is not computed.
    kernel_gradient = _backward("winograd", strides, pads, precision, saved, gradient)[1]
    if strides == (1, 1):
        pads = _pads_back(kernel.shape, pads)
        return _by_xla(strides, pads, precision, gradient, _flipped(kernel)), kernel_gradient
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


_conv.defvjp(_conv_forward, _conv_backward)


def _method(by, strides, pads, precision, shape):
    """How some images are convolved: functions `kernel -> prepared` and `(images, prepared) -> result`."""
    if _is_winograd(by, strides, shape):
        return partial(_transformed_kernel, strides), partial(_winograd, strides, pads, precision)
    return lambda kernel: kernel, partial(_patched, strides, pads, precision)


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
        return jax.vmap(partial(_conv, "winograd", strides, pads, precision), axes)(x, kernel), True

    return convolved(x, kernel)


def _images_at_once(by, strides, x, kernel) -> int:
    """Images whose patches or tiles fit in the cache, a divisor of the batch; on accelerators all of them."""
    if not _on_cpu():
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


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _split(x, images):
    return x.reshape(-1, images, *x.shape[1:])


def _joined(parts):
    return parts.reshape(-1, *parts.shape[2:])


# --- Patches times a matrix ---------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _patched(strides, pads, precision, x, kernel):
    height, width, _, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    return jnp.matmul(patches, kernel.reshape(-1, features), precision=precision)


def _patched_forward(strides, pads, precision, x, kernel):
    return _patched(strides, pads, precision, x, kernel), (x, kernel)


def _patched_backward(strides, pads, precision, saved, gradient):
    x, kernel = saved
    height, width, channels, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    rows = patches.size // patches.shape[-1]
    turns = rows // ROWS_AT_ONCE if _on_cpu() and rows % ROWS_AT_ONCE == 0 else 1
    kernel_gradient = _over_pixels(patches, gradient, precision, turns).reshape(kernel.shape)
    if strides == (1, 1):
        return _patched(
            (1, 1), _pads_back(kernel.shape, pads), precision, gradient, _flipped(kernel)
        ), kernel_gradient
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    return _gathered(shares, strides, pads, x.shape), kernel_gradient


_patched.defvjp(_patched_forward, _patched_backward)


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


@_custom_backward
def _product(precision, x, matrix):
    """Channels `[..., C]` times `[C, O]`."""
    return jnp.matmul(x, matrix, precision=precision)


def _product_backward(precision, saved, gradient):
    # As JAX would, but the matrix's gradient in the order of axes that XLA has a fast product for.
    x, matrix = saved
    return jnp.matmul(gradient, matrix.T, precision=precision), _over_pixels(x, gradient, precision)


_product.defvjp(lambda precision, x, matrix: (_product(precision, x, matrix), (x, matrix)), _product_backward)


def _over_pixels(left, right, precision, turns: int = 1):
    """Sum over images and pixels of the products of two arrays' channels, in `turns` that are added up."""

    def summed(left, right):
        left, right = (a.reshape(turns, -1, a.shape[-1]) for a in (left, right))
        return lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))), precision=precision).sum(0)

    if left.shape[-1] <= right.shape[-1] or not _on_cpu():
        return summed(left, right)
    # On CPU this product is up to 1.5 times as fast with the wider operand on the right, and 10 times for few outputs.
    # Their transposition is spelled out: XLA would make one product of it, the slow one.
    rows = summed(right, left)
    return jnp.stack(list(rows), axis=-1) if len(rows) <= FEW_OUTPUTS else rows.T


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
    return _side_by_side(slices)


@jax.custom_batching.custom_vmap
def _side_by_side(slices):
    """Join along the channels."""
    if len(slices) == 1 or not _on_cpu():
        return jnp.concatenate(slices, axis=-1)
    # A concatenation on CPU copies them twice; written into the matrix that is to be multiplied they are copied once.
    (*outer, channels), count = slices[0].shape, len(slices)
    matrix = jnp.zeros((math.prod(outer), count * channels), slices[0].dtype)
    for i, each in enumerate(slices):
        matrix = lax.dynamic_update_slice(matrix, each.reshape(-1, channels), (0, i * channels))
    return matrix.reshape(*outer, -1)


@_side_by_side.def_vmap
def _(axis_size, batched, slices):
    return jnp.concatenate(slices, axis=-1), True  # written into a matrix, it would be a scatter under `vmap`


# --- Images of few channels, several pixels of a row at a time ----------------------------------------------------


def _is_of_colours(strides, pads, x, kernel) -> bool:
    return _on_cpu() and strides == (1, 1) and kernel.shape[2] <= COLOURS and _pixels(pads, x, kernel) > 1


def _pixels(pads, x, kernel) -> int:
    """Pixels of a row of the result to compute at once: they see their own block of the images and the next one."""
    outputs = x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1
    fitting = (n for n in PIXELS_AT_ONCE if outputs % n == 0 and n >= kernel.shape[1] - 1)
    return next(fitting, 1)


def _pixels_of_a_row(pads, precision, x, kernel):
    """Patches wide enough for n pixels times a matrix of n shifted kernels, the rest of it zeros.

    Patches of three channels take longer to lay side by side than to multiply: these are 18 numbers at a stretch and
    half as many in all. They are kept for the backward pass.
    """
    (height, width, channels, features), n = kernel.shape, _pixels(pads, x, kernel)
    x = _padded(x, (pads[0], (pads[1][0], pads[1][1] + n - width + 1)))
    patches = _wide_patches((height, (width - 1) * channels), x.reshape(*x.shape[:2], -1, n * channels))
    shifted = [jnp.pad(kernel, ((0, 0), (at, n - 1 - at), (0, 0), (0, 0))) for at in range(n)]
    matrix = jnp.stack(shifted, axis=3).reshape(-1, n * features)
    # One axis of rows: of more than one XLA makes a slower product for the kernel's gradient.
    y = jnp.matmul(patches.reshape(-1, len(matrix)), matrix, precision=precision)
    return y.reshape(*patches.shape[:2], -1, features)


@_custom_backward
def _wide_patches(how, x):
    """Blocks `[n, H, B + 1, P]`, each with the first numbers of the next one, a few rows of them side by side."""
    return _side_by_side(_wide_rows(how, x))


def _wide_rows(how, x):
    height, more = how
    wide = jnp.concatenate([x[:, :, :-1], x[:, :, 1:, :more]], axis=-1)
    rows = x.shape[1] - height + 1
    return [wide[:, row : row + rows] for row in range(height)]


def _wide_patches_backward(how, x, gradient):
    return jax.vjp(lambda x: jnp.concatenate(_wide_rows(how, x), axis=-1), x)[1](gradient)


_wide_patches.defvjp(lambda how, x: (_wide_patches(how, x), x), _wide_patches_backward)


def _padded(x, pads):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))


# --- Winograd's tiles: 2x2 outputs from 16 products instead of 36 with stride 1, from 25 with stride 2 ---------------


# The transforms A, B and G are written out as sums, along one axis after the other, by that axis's stride. With stride 2
# the even pixels meet the kernel's first and last number, F(2, 2), and the odd ones its middle number. The numbers of a
# tile are as many arrays and never one: to lay them side by side would take as long as the products. JAX derives the
# backward pass; for it not to scatter, pixels are told apart by `_parted` and `_interleaved`, each the other's adjoint.


def _winograd(strides, pads, precision, x, kernels):
    """A' [(B' d B) (G k G')] A of the tiles d of x, each of which gives 2x2 outputs."""
    sizes = [(x.shape[1 + axis] + sum(pads[axis]) - 3) // strides[axis] + 1 for axis in (0, 1)]
    # The last tile reaches into the pixels of one more.
    ends = [2 * strides[axis] * (-(-sizes[axis] // 2) + 1) for axis in (0, 1)]
    x = _padded(x, [(pads[axis][0], ends[axis] - x.shape[1 + axis] - pads[axis][0]) for axis in (0, 1)])
    tiles = [_input_transform(strides[1], row, 2) for row in _input_transform(strides[0], x, 1)]
    products = [
        [_product(precision, tile, matrix) for tile, matrix in zip(*row, strict=True)]
        for row in zip(tiles, kernels, strict=True)
    ]
    y = _output_transform(strides[0], [_output_transform(strides[1], row, 2) for row in products], 1)
    return y[:, : sizes[0], : sizes[1]]


def _transformed_kernel(strides, kernel):
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


@_custom_backward
def _parted(how, x):
    """Every n-th row (axis 1) or column (2) of a multiple of n, from each of the first n on; how is `(axis, n)`."""
    axis, n = how
    count = x.shape[axis] // n
    if axis == 1:
        # Rows more, which nobody reads: for their sake XLA lays x out once, instead of cutting it out of the batch
        # anew for each number of a tile.
        x = _padded(x, ((0, n), (0, 0)))
    x = x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :])
    parts = (lax.index_in_dim(x, at, axis + 1, keepdims=False) for at in range(n))
    return tuple(lax.slice_in_dim(part, 0, count, axis=axis) for part in parts)


@_custom_backward
def _interleaved(how, parts):
    """What `_parted` takes from what it gives."""
    axis, shape = how[0], parts[0].shape
    return jnp.stack(parts, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])


_parted.defvjp(lambda how, x: (_parted(how, x), None), lambda how, _, parts: (_interleaved(how, parts),))
_interleaved.defvjp(lambda how, parts: (_interleaved(how, parts), None), lambda how, _, x: (_parted(how, x),))
