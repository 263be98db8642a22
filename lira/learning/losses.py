"""The losses of a batch, an example each."""

import jax
import jax.numpy as jnp

from lira.learning.forward import Array

__all__ = ["cross_entropy", "divergence"]


@jax.named_scope("loss")
def cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
    """Of each example, `[batch]`. A label's logit is a sum over classes, whose gradient does not scatter."""
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_label, logits, 0).sum(axis=-1)


@jax.named_scope("loss")
def divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Kullback and Leibler's of the target's probabilities from the model's, of each example: `[batch]`, in nats."""
    theirs = jax.nn.log_softmax(target, axis=-1)
    return jnp.sum(jnp.exp(theirs) * (theirs - jax.nn.log_softmax(logits, axis=-1)), axis=-1)
