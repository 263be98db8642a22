"""Confidence masking: models as they answer behind an interface that scales, rounds or withholds confidences."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

__all__ = ["masked_logits"]


@jax.named_scope("masking")
def masked_logits(
    logits: jax.Array, *, temperature: float = 1.0, decimals: int = 0, top_k: int = 0
) -> jax.Array:
    """Logits whose softmax is what an attacker knows of the confidences that are released.

    Released is softmax(logits / temperature), rounded to `decimals`, of the `top_k` most likely classes alone. What is not
    released the attacker completes, so that every signal is defined and finite:

    - A confidence that is rounded to 0 counts as a quarter of the last decimal's unit, the middle of what rounds so. phi of
      a label that is rounded to 1 is then that of all others at this floor.
    - Classes that are not released share evenly what the released ones leave of 1, each at most the smallest of
      these and, where these are rounded, at least that floor. Without rounding their sum is exact: phi of a label
      among the top_k is not masked at all, and phi of any other is that of the share.

    Nothing saturates without rounding, since no probability is formed.

    Args:
        logits: float `[..., C]`.
        temperature: above 0; 1 leaves them.
        decimals: from 1 on; 0 does not round.
        top_k: from 1 on, below C; 0 releases all. Of equal logits the first are released.

    Returns:
        `[..., C]` of the same dtype. NaN where a logit is NaN.
    """
    logits, classes = logits / temperature, logits.shape[-1]
    rank = jnp.argsort(jnp.argsort(-logits, axis=-1, stable=True), axis=-1)
    released = rank < (top_k or classes)
    if not decimals:
        if not top_k:
            return logits
        rest = logsumexp(logits, axis=-1, where=~released, keepdims=True) - jnp.log(float(classes - top_k))
        return jnp.where(released, logits, rest.astype(logits.dtype))
    # In units of the last decimal, which are whole numbers: their sum does not round again.
    units = jnp.round(jax.nn.softmax(logits, axis=-1) * 10.0**decimals)
    floored = jnp.maximum(units, 0.25)
    if top_k:
        left = 10.0**decimals - jnp.sum(units, axis=-1, where=released, keepdims=True)
        smallest = jnp.min(floored, axis=-1, where=released, initial=jnp.inf, keepdims=True)
        each = jnp.clip(left / (classes - top_k), 0.25, smallest)
        floored = jnp.where(released, floored, each)
    return jnp.log(floored)
