"""The loss of a model that imitates a target's logits (IMIA, Du et al. 2025, arXiv 2509.06796)."""

import jax
import jax.numpy as jnp

from lira.learning.forward import Array
from lira.learning.training import cross_entropy

__all__ = ["imitation_loss"]


@jax.named_scope("imitation")
def imitation_loss(
    logits: Array, target: Array, labels: Array, *, weight: float = 5.0, temperature: float = 2.0
) -> jax.Array:
    """1/2 mean(w (z_s - z_t)^2 / T^2) / mean(w) + 1/2 cross-entropy, of each example; means are over classes.

    w is `weight` on the label and on the target's strongest wrong class, 1 elsewhere. The authors' code differs from
    this: it multiplies the logits by w before it squares, so that squares weigh w^2, and divides by the mean of w.

    Args:
        logits: `[batch, C]`, z_s of the imitator.
        target: `[batch, C]`, z_t of the target on the same inputs. No gradient flows into it.
        labels: int `[batch]`.
        weight: w, on the two classes.
        temperature: T.

    Returns:
        `[batch]`; the loss of a batch is its mean.
    """
    logits, target = jnp.asarray(logits), jax.lax.stop_gradient(jnp.asarray(target))
    classes = jnp.arange(logits.shape[-1])
    is_label = classes == labels[:, None]
    strongest = jnp.argmax(jnp.where(is_label, -jnp.inf, target), axis=-1)
    weights = jnp.where(is_label | (classes == strongest[:, None]), weight, 1.0)
    squares = jnp.square((logits - target) / temperature)
    imitation = (weights * squares).mean(axis=-1) / weights.mean(axis=-1)
    return 0.5 * imitation + 0.5 * cross_entropy(logits, labels)
