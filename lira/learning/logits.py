"""What a model's logits say: phi, entropies, and whether it is right, in float64 whatever they are held in."""

from collections.abc import Iterator

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

__all__ = [
    "BoundedWarning",
    "are_probabilities",
    "blocks_of",
    "entropies_of_logits",
    "lie_in_unit_interval",
    "signals_of_logits",
    "sum_to_one",
]

# Values looked at or converted at once: 64 MiB in float64.
BLOCK_VALUES = 1 << 23


class BoundedWarning(UserWarning):
    """What should be logits lies in [0, 1], and may be what a sigmoid made of them."""


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


# --- What is no logits -----------------------------------------------------------------------------------------------


def are_probabilities(values: np.ndarray) -> bool:
    """Whether all of `[N, Q, C]` could be probabilities: in [0, 1], and summing to 1 if C > 1."""
    return lie_in_unit_interval(values) and (values.shape[-1] == 1 or sum_to_one(values))


def lie_in_unit_interval(values: np.ndarray) -> bool:
    """Whether all of `[N, ...]` is in [0, 1]."""
    return all(values[block].min() >= 0 and values[block].max() <= 1 for block in blocks_of(values))


def sum_to_one(values: np.ndarray) -> bool:
    """Whether the last axis of `[N, ..., C]` sums to 1 everywhere, within what rounding leaves."""
    return all(
        np.allclose(np.sum(values[block], axis=-1, dtype=np.float64), 1, atol=1e-3)
        for block in blocks_of(values)
    )


def blocks_of(values: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, so that a memory map is never in memory as a whole."""
    step = max(1, BLOCK_VALUES // max(1, int(np.prod(values.shape[1:]))))
    return (slice(start, start + step) for start in range(0, len(values), step))
