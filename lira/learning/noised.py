"""One step of DP-SGD, as `accounting` assumes it: members by coins, gradients clipped one by one, noise on their sum.

`jax_privacy`, which clips and noises, comes with the extra `lira[privacy]`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lira.learning.accounting import Guarantee
from lira.learning.forward import Array

__all__ = ["MICROBATCH_BYTES", "in_microbatches", "microbatch_size", "noised_sum", "poisson_batch"]

# Of gradients of single examples that are held at a time. CPUs are the slower the less of it their caches hold.
MICROBATCH_BYTES = {"cpu": 1 << 20}
ON_ACCELERATORS = 1 << 28


def poisson_batch(guarantee: Guarantee, key: jax.Array, members: Array) -> jax.Array:
    """The examples of one step, int32 `[max_batch]`: each of the mask `members [N]` by a coin of its own; N where none is left.

    Of more than `max_batch` so many are taken at random, as by `CyclicPoissonSampling` of `jax_privacy`.
    """
    members = jnp.asarray(members)
    coins = jax.random.uniform(key, members.shape, jnp.float32)
    ranks = jnp.where(members & (coins < guarantee.rate), -coins, -2.0)
    highest, examples = jax.lax.top_k(ranks, guarantee.max_batch)
    return jnp.where(highest > -2, examples, len(members)).astype(jnp.int32)


@jax.named_scope("noised")
def noised_sum(
    loss_of: Callable[..., jax.Array],
    guarantee: Guarantee,
    key: jax.Array,
    params: Any,
    examples: tuple[jax.Array, ...],
    absent: jax.Array,
    size: int,
) -> tuple[Any, jax.Array]:
    """The sum of single examples' clipped gradients with Gaussian noise on it, and the sum of their losses, which has none.

    One example more or less changes the sum of gradients by at most `clip` in L2 norm; that of losses is not private.

    Args:
        loss_of: `(params, *example) -> loss`, of one example.
        guarantee: its clip and noise.
        key: of the noise.
        params: the tree that gradients are of.
        examples: arrays `[batch, ...]`, what `loss_of` takes of each; batch is a multiple of `size`.
        absent: bool `[batch]`, of which of them there is no example.
        size: examples at a time, see `microbatch_size`; those of which all are absent cost nothing where they are last,
            see `in_microbatches`.
    """
    # Whoever has accounted for it has them: an extra.
    from jax_privacy.clipping import clipped_grad
    from jax_privacy.noise_addition import gaussian_privatizer

    clipped = clipped_grad(
        loss_of,
        l2_clip_norm=guarantee.clip,
        batch_argnums=tuple(range(1, 1 + len(examples))),
        keep_batch_dim=False,
        return_values=True,
        microbatch_size=size,
    )
    total, each = clipped(params, *examples, is_padding_example=absent)
    if guarantee.noise:
        privatizer = gaussian_privatizer(stddev=guarantee.noise * guarantee.clip, prng_key=key)
        # As one vector: a program with a draw for each leaf takes several times as long to compile.
        vector, unravel = ravel_pytree(total)
        total = unravel(privatizer.update(vector, privatizer.init(vector))[0])
    return total, jnp.where(absent, 0.0, each.values).sum()


def microbatch_size(params: Any, max_batch: int, platform: str) -> int:
    """Examples whose gradients, trees like `params`, fit into MICROBATCH_BYTES: a power of two, or all of a batch."""
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    fitting = max(1, MICROBATCH_BYTES.get(platform, ON_ACCELERATORS) // each)
    return min(max_batch, 1 << int(math.log2(fitting)))


def in_microbatches(batch: jax.Array, size: int, fill: int) -> jax.Array:
    """A batch `[batch]` as `clipped_grad` parts it, by columns, so that its first `size` are the first part, and so on.

    The last part is filled up, with `fill`.
    """
    filled = jnp.pad(batch, (0, -len(batch) % size), constant_values=fill)
    return filled.reshape(-1, size).T.ravel()
