"""What a model's logits say: phi, entropies, and whether it is right, in float64 whatever they are held in."""

import jax
import jax.numpy as jnp
import numpy as np

from lira.signals import (
    entropy,
    is_correct,
    logit_scaled_confidence,
    modified_entropy,
    phi_from_binary_logits,
)

__all__ = ["entropies_of_logits", "signals_of_logits"]


def signals_of_logits(logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Phi and both entropies of a model, float64 `[n, Q]` by name, and whether its first query is right, bool `[n]`.

    Args:
        logits: float32 or float64 `[n, Q, C]`; with C = 1 that of class 1 of two.
        labels: int `[n, Q]`.
    """
    if logits.shape[-1] == 1:
        phi = phi_from_binary_logits(logits[..., 0], labels)
        both = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        return {"phi": phi, **entropies_of_logits(both, labels)}, phi[:, 0] > 0
    with jax.enable_x64(True):
        phi, right = _of_logits(logits, labels)
    return {"phi": np.asarray(phi), **entropies_of_logits(logits, labels)}, np.asarray(right)


def entropies_of_logits(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Both entropies, float64 `[n, Q]` by name, of logits `[n, Q, C]`."""
    with jax.enable_x64(True):
        plain, modified = _entropies(logits.astype(np.float64), labels)
    return {"entropy": np.asarray(plain), "modified_entropy": np.asarray(modified)}


@jax.jit
def _of_logits(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Phi `[n, Q]` in float64, and whether the first query is right."""
    return (
        logit_scaled_confidence(logits.astype(jnp.float64), labels),
        is_correct(logits[:, 0], labels[:, 0]),
    )


@jax.jit
def _entropies(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return entropy(logits), modified_entropy(logits, labels)
