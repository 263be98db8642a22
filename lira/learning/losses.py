"""The losses of a batch, an example each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lira.learning.forward import Array

__all__ = ["cross_entropy", "divergence", "of_mixture"]


@jax.named_scope("loss")
def cross_entropy(logits: jax.Array, labels: Array, smoothing: float = 0.0) -> jax.Array:
    """Of each example, `[batch]`. A label's logit is a sum over classes, whose gradient does not scatter.

    With smoothing the target is 1 - smoothing on the label, and smoothing spread evenly over all classes, the label too
    (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    expected = jnp.where(is_label, logits, 0).sum(axis=-1)
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * logits.mean(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


@jax.named_scope("loss")
def divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Kullback and Leibler's of the target's probabilities from the model's, of each example: `[batch]`, in nats."""
    theirs = jax.nn.log_softmax(target, axis=-1)
    return jnp.sum(jnp.exp(theirs) * (theirs - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def of_mixture(
    losses: Callable[..., jax.Array],
    partners: jax.Array,
    share: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """`losses(logits, labels)` of a batch that mixup has mixed, see `augment.Mixed`: `[batch]`."""
    return share * losses(logits, labels) + (1 - share) * losses(logits, labels[partners])
