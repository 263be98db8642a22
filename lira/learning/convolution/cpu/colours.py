"""Convolutions of images of few channels with strides 1, several pixels of a row at a time.

Images x `[n, H, W, C]`, kernels `[h, w, C, O]`.
"""

import jax
import jax.numpy as jnp

from lira.learning.convolution.patches import side_by_side
from lira.learning.convolution.products import custom_backward, padded
from lira.learning.convolution.static import Convolution

__all__ = ["is_of_colours", "pixels_of_a_row"]
# Images of so few channels, such as colours, are convolved this many pixels of a row at a time where that divides it.
COLOURS = 4
PIXELS_AT_ONCE = (4, 2)


# --- Images of few channels, several pixels of a row at a time ----------------------------------------------------


def is_of_colours(conv: Convolution, x: jax.Array, kernel: jax.Array) -> bool:
    """Whether this is the faster way: on CPU, for few channels and rows that several pixels divide."""
    return (
        conv.on_cpu and conv.strides == (1, 1) and kernel.shape[2] <= COLOURS and _pixels(conv, x, kernel) > 1
    )


def _pixels(conv: Convolution, x: jax.Array, kernel: jax.Array) -> int:
    """Pixels of a row of the result to compute at once: they see their own block of the images and the next one."""
    outputs = x.shape[2] + sum(conv.pads[1]) - kernel.shape[1] + 1
    fitting = (n for n in PIXELS_AT_ONCE if outputs % n == 0 and n >= kernel.shape[1] - 1)
    return next(fitting, 1)


def pixels_of_a_row(conv: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution `[n, H', W', O]`: patches wide enough for p pixels times a matrix of p shifted kernels, the rest zeros.

    Patches of three channels take longer to lay side by side than to multiply: these are 18 numbers at a stretch and
    half as many in all. They are kept for the backward pass.
    """
    (height, width, channels, features), pixels = kernel.shape, _pixels(conv, x, kernel)
    left, right = conv.pads[1]
    x = padded(x, (conv.pads[0], (left, right + pixels - width + 1)))
    blocks = x.reshape(*x.shape[:2], -1, pixels * channels)
    patches = _wide_patches((height, (width - 1) * channels), blocks)
    shifted = [jnp.pad(kernel, ((0, 0), (at, pixels - 1 - at), (0, 0), (0, 0))) for at in range(pixels)]
    matrix = jnp.stack(shifted, axis=3).reshape(-1, pixels * features)
    # One axis of rows: of more than one XLA makes a slower product for the kernel's gradient.
    y = jnp.matmul(patches.reshape(-1, len(matrix)), matrix, precision=conv.precision)
    return y.reshape(*patches.shape[:2], -1, features)


@custom_backward
def _wide_patches(size: tuple[int, int], blocks: jax.Array) -> jax.Array:
    """Blocks `[n, H, B + 1, P]`, each with the first `more` numbers of the next one, `height` rows of them side by side.

    `size` is `(height, more)`; the result is `[n, H - height + 1, B, height (P + more)]`.
    """
    return side_by_side(_wide_rows(size, blocks), True)


def _wide_rows(size: tuple[int, int], blocks: jax.Array) -> list[jax.Array]:
    """What `_wide_patches` lays side by side: `height` times `[n, H - height + 1, B, P + more]`."""
    height, more = size
    wide = jnp.concatenate([blocks[:, :, :-1], blocks[:, :, 1:, :more]], axis=-1)
    rows = blocks.shape[1] - height + 1
    return [wide[:, row : row + rows] for row in range(height)]


def _wide_patches_backward(size: tuple[int, int], blocks: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """The gradient of the blocks, through a plain concatenation."""
    return jax.vjp(lambda x: jnp.concatenate(_wide_rows(size, x), axis=-1), blocks)[1](gradient)


_wide_patches.defvjp(lambda size, blocks: (_wide_patches(size, blocks), blocks), _wide_patches_backward)
