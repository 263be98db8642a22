"""What is static of one model's training, bound once: its code, its recipe and how long it takes."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from lira.data.canaries import Canaries
from lira.data.dataset import Dataset
from lira.learning.accounting import Guarantee, guarantee
from lira.learning.answers import check_answers
from lira.learning.canary_gradients import check_gradient_canaries
from lira.learning.forward import Array
from lira.learning.imitation import Imitation
from lira.learning.models import build_model
from lira.learning.recipe import Recipe, steps_per_epoch
from lira.learning.shapes import check_private, check_shapes

__all__ = ["Learner", "model_key", "model_keys", "seed_key"]

# What JAX takes of a whole number for a key; a number that no model has.
WORD = 32
OF_HIGH_WORDS = (1 << WORD) - 1


@dataclass(frozen=True)
class Learner:
    """How one shadow model is made. Equal learners make equal models of equal keys and memberships."""

    module: nn.Module  # (x, train) -> logits [batch, C]
    recipe: Recipe
    total_steps: int  # that the schedule spans: of the whole training, or of more where it stops early
    # What it runs on, as JAX names it: cpu, gpu or tpu. Here alone JAX is asked; all else is told.
    platform: str = field(default_factory=jax.default_backend)
    imitation: Imitation | None = None  # by which loss a target is imitated; None learns the labels
    share: float = 0.5  # of the examples, that a model is trained on, on average
    guarantee: Guarantee | None = None  # what is proven of it, where its recipe has privacy
    canaries: Canaries | None = None  # the last examples, where these are gradients; None of others

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset, share: float = 0.5) -> "Learner":
        """That of a recipe on a share of a data set.

        Raises:
            ValueError: there is no such model, it does not take these data, or it cannot be trained with privacy.
        """
        epochs = recipe.schedule_epochs or recipe.epochs
        steps = steps_per_epoch(dataset.num_examples, recipe.batch_size, share) * epochs
        module = build_model(recipe.model, dataset.num_classes, recipe.dropout)
        check_shapes(module, recipe.model, dataset)
        if "." in recipe.model:  # a module of one's own
            check_answers(module, recipe.model, dataset)
        check_gradient_canaries(dataset.canaries, recipe)
        if recipe.privacy is not None:
            check_private(module, recipe.model, dataset)
        proven, canaries = guarantee(recipe, dataset.num_examples, share), dataset.canaries
        if canaries is not None and canaries.kind != "gradient":
            canaries = None
        return cls(module, recipe, steps, share=share, guarantee=proven, canaries=canaries)

    @property
    def batch(self) -> int:
        """Places for examples in one step, of which private training fills as many as its coins say."""
        return self.recipe.batch_size if self.guarantee is None else self.guarantee.max_batch

    def key(self, index: Array | int) -> jax.Array:
        """That of model `index`, see `model_key`."""
        return model_key(self.recipe.seed, index)


def model_key(seed: int, index: Array | int, attempt: int = 0) -> jax.Array:
    """The key of all of model `index`'s randomness: independent of the stack that trains it.

    A model that diverged is tried once more, as attempt 1.
    """
    first = jax.random.fold_in(seed_key(seed), index)
    return jax.random.fold_in(first, attempt) if attempt else first


def seed_key(seed: int) -> jax.Array:
    """The key of a seed of up to 63 bits, `jax.random.key` of one of 32: without 64-bit numbers JAX leaves out all others.

    >>> bool((seed_key(1) == jax.random.key(1)) & (seed_key(1 << 32) != seed_key(0)))
    True
    """
    high, low = divmod(seed, 1 << WORD)
    key = jax.random.key(low)
    return jax.random.fold_in(jax.random.fold_in(key, OF_HIGH_WORDS), high) if high else key


def model_keys(seed: int, models: Iterable[int], attempts: Iterable[int] = itertools.repeat(0)) -> jax.Array:
    """Those of a stack, `[m]`: of models by number, each at its attempt."""
    return jnp.stack([model_key(seed, int(m), int(a)) for m, a in zip(models, attempts, strict=False)])
