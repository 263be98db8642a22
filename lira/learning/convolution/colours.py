"""Convolutions of images of few channels, several pixels of a row at a time."""

import jax
import jax.numpy as jnp

from lira.learning.convolution.patches import side_by_side
from lira.learning.convolution.products import custom_backward, on_cpu, padded

__all__ = ["is_of_colours", "pixels_of_a_row"]
# Images of so few channels, such as colours, are convolved this many pixels of a row at a time where that divides it.
COLOURS = 4
PIXELS_AT_ONCE = (4, 2)


# --- Images of few channels, several pixels of a row at a time ----------------------------------------------------


def is_of_colours(strides, pads, x, kernel) -> bool:
    return on_cpu() and strides == (1, 1) and kernel.shape[2] <= COLOURS and _pixels(pads, x, kernel) > 1


def _pixels(pads, x, kernel) -> int:
    """Pixels of a row of the result to compute at once: they see their own block of the images and the next one."""
    outputs = x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1
    fitting = (n for n in PIXELS_AT_ONCE if outputs % n == 0 and n >= kernel.shape[1] - 1)
    return next(fitting, 1)


def pixels_of_a_row(pads, precision, x, kernel):
    """Patches wide enough for n pixels times a matrix of n shifted kernels, the rest of it zeros.

    Patches of three channels take longer to lay side by side than to multiply: these are 18 numbers at a stretch and
    half as many in all. They are kept for the backward pass.
    """
    (height, width, channels, features), n = kernel.shape, _pixels(pads, x, kernel)
    x = padded(x, (pads[0], (pads[1][0], pads[1][1] + n - width + 1)))
    patches = _wide_patches((height, (width - 1) * channels), x.reshape(*x.shape[:2], -1, n * channels))
    shifted = [jnp.pad(kernel, ((0, 0), (at, n - 1 - at), (0, 0), (0, 0))) for at in range(n)]
    matrix = jnp.stack(shifted, axis=3).reshape(-1, n * features)
    # One axis of rows: of more than one XLA makes a slower product for the kernel's gradient.
    y = jnp.matmul(patches.reshape(-1, len(matrix)), matrix, precision=precision)
    return y.reshape(*patches.shape[:2], -1, features)


@custom_backward
def _wide_patches(how, x):
    """Blocks `[n, H, B + 1, P]`, each with the first numbers of the next one, a few rows of them side by side."""
    return side_by_side(_wide_rows(how, x))


def _wide_rows(how, x):
    height, more = how
    wide = jnp.concatenate([x[:, :, :-1], x[:, :, 1:, :more]], axis=-1)
    rows = x.shape[1] - height + 1
    return [wide[:, row : row + rows] for row in range(height)]


def _wide_patches_backward(how, x, gradient):
    return jax.vjp(lambda x: jnp.concatenate(_wide_rows(how, x), axis=-1), x)[1](gradient)


_wide_patches.defvjp(lambda how, x: (_wide_patches(how, x), x), _wide_patches_backward)
