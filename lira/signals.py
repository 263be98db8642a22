"""What a model's logits say about an example: the logit-scaled confidence that LiRA tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

Array = jax.Array | np.ndarray

__all__ = ["is_correct", "logit_scaled_confidence"]


def logit_scaled_confidence(logits: Array, labels: Array) -> jax.Array:
    """Phi = log(p_y / (1 - p_y)), from logits (Carlini et al. 2022, section IV-C).

    Computed as `-logsumexp_{c != y}(z_c - z_y)`. No probability is ever formed, so nothing saturates, and the
    label's logit is subtracted first, so the error is relative to phi and not to the logits.

    The confidence is `sigmoid(phi)` and the cross-entropy loss is `softplus(-phi)`. Higher = more likely a member.

    Args:
        logits: float32 or float64 `[..., C]`, C >= 2. Never bfloat16: it rounds away the tail that low
            false-positive rates live on.
        labels: integer `[...]`, 0 <= label < C.

    Returns:
        phi `[...]` in the dtype of `logits`. NaN where a logit is NaN.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    margins = logits - jnp.take_along_axis(logits, labels[..., None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[..., None]
    return -logsumexp(margins, axis=-1, where=others)


def is_correct(logits: Array, labels: Array) -> jax.Array:
    """Whether the label has the largest logit: bool `[...]`. The first of equal logits wins."""
    return jnp.argmax(logits, axis=-1) == labels
