"""Losses of a model that imitates a target's logits (IMIA, arXiv 2509.06796; GLiRA, arXiv 2405.07562), and IMIA's pivots."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lira.fields import check_fields
from lira.learning.forward import Array, forward
from lira.learning.losses import cross_entropy, divergence
from lira.learning.recipe import Recipe

__all__ = ["Imitation", "answers_to_imitate", "imitation_loss", "loss_of_imitation", "pivots_of"]


@dataclass(frozen=True)
class Imitation:
    """How a model imitates a target: by which loss, after how long a warm-up on the labels alone."""

    loss: Literal["imia", "mse", "kl", "pivots"] = "imia"
    """imia (`imitation_loss`), mse (of logits, mean over classes) or kl (of the target's probabilities from the model's);
    pivots goes on with the labels, of the examples of `pivots_of` alone"""
    warmup: float = 0.25
    """Share of the epochs that are trained on labels alone, by cross-entropy."""
    weight: float = 5.0
    """Of imia: on the label and on the target's strongest wrong class; 1 on the others."""
    temperature: float = 2.0
    """Of imia: what logits are divided by before they are compared."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "imitation.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"imitation.warmup must be in [0, 1); got {self.warmup}")
        for name in ("weight", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"imitation.{name} must be positive; got {getattr(self, name)}")

    def warmup_epochs(self, epochs: int) -> int:
        """Of so many epochs those of the warm-up, the nearest whole number; one at least imitates."""
        return min(round(self.warmup * epochs), epochs - 1)


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


def pivots_of(phi: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """IMIA's pivot examples: of each class the half that the target has the lowest cross-entropy at, and one at least.

    Args:
        phi: `[N]`, logit-scaled confidences of the target, which fall as the cross-entropy rises and do not saturate.
        labels: int `[N]`.

    Returns:
        bool `[N]`. Of equal phi the first example's counts as higher.

    >>> pivots_of(np.array([1.0, 2.0, -3.0]), np.array([0, 0, 1]))
    array([False,  True,  True])
    """
    labels = np.asarray(labels)
    order = np.lexsort((-np.asarray(phi), labels))  # by class, the surest first
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    chosen = np.zeros(len(order), bool)
    chosen[order] = rank < np.repeat(np.maximum(counts // 2, 1), counts)
    return chosen


def loss_of_imitation(imitation: Imitation, logits: Array, target: Array, labels: Array) -> jax.Array:
    """The loss that `imitation` names, after its warm-up: `[batch]`, of arguments as of `imitation_loss`."""
    logits, target = jnp.asarray(logits), jax.lax.stop_gradient(jnp.asarray(target))
    if imitation.loss == "mse":
        return jnp.square(logits - target).mean(axis=-1)
    if imitation.loss == "kl":
        return divergence(logits, target)
    return imitation_loss(logits, target, labels, weight=imitation.weight, temperature=imitation.temperature)


def answers_to_imitate(
    module: nn.Module, recipe: Recipe, taught: Any, batch: jax.Array, images: jax.Array
) -> jax.Array:
    """A target's logits about a batch in training, `[batch, C]`.

    Args:
        module: of the target, as of its imitators.
        recipe: theirs.
        taught: logits `[N, C]` about the examples as they are; or the target's variables, which are asked in evaluation
            mode about the images as they were augmented.
        batch: int `[batch]`, which examples.
        images: `[batch, ...]`, as the imitator sees them.
    """
    if isinstance(taught, dict):
        return forward(module, recipe, taught, images, None)[0]
    return jnp.asarray(taught)[batch]
