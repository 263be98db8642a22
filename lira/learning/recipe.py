"""What one shadow model becomes: the recipe, its schedule and its optimizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lira.fields import check_fields
from lira.learning.augment import check_augmentation
from lira.learning.privacy import Privacy
from lira.signals import checkpoint_fraction, checkpoints, entropy, modified_entropy

__all__ = [
    "SIGNALS",
    "Recipe",
    "check_signals",
    "checkpoint_epochs",
    "learning_rate",
    "optimizer",
    "steps_per_epoch",
]

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "cos7pi16", "constant"]
Precision = Literal["float32", "bfloat16"]
Statistics = Literal["recomputed", "averaged"]
# What a sweep can store beside phi, from logits [..., C] and labels [...]; phi at checkpoints comes of sweeps of their own.
SIGNALS = {
    "entropy": lambda logits, labels: entropy(logits),
    "modified_entropy": modified_entropy,
    "logits": lambda logits, labels: logits,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what one shadow model becomes. How it is executed is not part of it."""

    model: str = "mlp"
    """mlp, cnn, cnn-small, cnn-fast, resnet18, wrn-DEPTH-WIDTH (-gn: with GroupNorm), or the dotted path of your own flax module."""
    epochs: int = 50
    """Passes over a model's members."""
    schedule_epochs: int = 0
    """Epochs that the schedule spans where training stops before its end, after `epochs` of them; 0 is `epochs`."""
    batch_size: int = 64
    """Examples a step."""
    optimizer: Optimizer = "sgd"
    """sgd (with momentum), adam or adamw."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """cosine (to 0), cos7pi16 (the LiRA paper's, to 0.2 of the peak) or constant."""
    warmup: float = 0.0
    """Share of the schedule's steps over which the learning rate rises linearly from 0."""
    momentum: float = 0.9
    """Of sgd; adam and adamw use 0.9 and 0.999."""
    weight_decay: float = 0.0
    """On weights, not on biases and norms; added to the gradient (sgd, adam) or decoupled (adamw)."""
    dropout: float = 0.0
    """Share of units dropped in training: mlp's after each hidden layer, cnn's and cnn-small's before the last one."""
    label_smoothing: float = 0.0
    """Share of a label that training spreads evenly over all classes (Szegedy et al. 2016)."""
    mixup: float = 0.0
    """Alpha of Beta(alpha, alpha), by which each step mixes a batch with itself in another order (Zhang et al. 2018); 0 is off."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated in their place (the paper: 0.999); 0 is off."""
    statistics: Statistics = "recomputed"
    """Of norms under averaged weights: recomputed over the members, or averaged as the weights are (the paper's code)."""
    flip: bool = False
    """Mirror training images at random."""
    crop_pad: int = 0
    """Shift training images by up to this many pixels, the border filled by reflection."""
    precision: Precision = "float32"
    """Of the computation: float32 (NVIDIA GPUs take its products in TF32) or bfloat16. Weights, statistics and queries: float32."""
    seed: int = 0
    """Model m draws all its randomness from (seed, m). Membership has a seed of its own."""
    privacy: Privacy | None = None
    """Private training, in a table of its own; none by default."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "recipe.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"recipe.learning_rate must be positive; got {self.learning_rate}")
        if self.schedule_epochs and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"recipe.schedule_epochs must be 0 (as recipe.epochs) or at least recipe.epochs, {self.epochs}, after which "
                f"training stops; got {self.schedule_epochs}"
            )
        for name in ("momentum", "ema", "warmup", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be in [0, 1); got {getattr(self, name)}")
        if self.mixup and self.privacy is not None:
            raise ValueError(
                "recipe.mixup mixes examples, and recipe.privacy bounds what a single one adds to a gradient: leave one out"
            )
        for name in ("weight_decay", "mixup", "crop_pad", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"recipe.{name} must not be negative; got {getattr(self, name)}")

    def check(self, num_examples: int, example_shape: tuple[int, ...], share: float = 0.5) -> None:
        """Raise ValueError if models of this share of a pool of this size and shape cannot be trained by this recipe."""
        if not steps_per_epoch(num_examples, self.batch_size, share):
            raise ValueError(
                f"recipe.batch_size is {self.batch_size}, but a model has only about {int(num_examples * share)} members: "
                f"no step would be full"
            )
        check_augmentation(self.flip, self.crop_pad, example_shape)


def check_signals(signals: Sequence[str], epochs: int) -> None:
    """Raise ValueError where these are not signals that a run of so many epochs can store beside phi."""
    for name in signals:
        if name not in SIGNALS and checkpoint_fraction(name) is None:
            raise ValueError(f"signals must be among {', '.join(SIGNALS)}, phi@FRACTION; got {name!r}")
    if len(set(signals)) < len(signals):
        raise ValueError(f"signals names one twice; got {', '.join(signals)}")
    checkpoint_epochs(signals, epochs)


def checkpoint_epochs(signals: Iterable[str], epochs: int) -> dict[int, str]:
    """The checkpoints among the signals, such as phi@0.25, by the number of epochs after which each is: the nearest, from 1.

    Raises:
        ValueError: two are of one epoch, or one is of the last, of which phi is.
    """
    found: dict[int, str] = {}
    for name in checkpoints(signals):
        epoch = max(1, round((checkpoint_fraction(name) or 0) * epochs))
        if epoch == epochs:
            raise ValueError(
                f"signals: {name} of {epochs} epochs is the end of training, as phi is: leave it out"
            )
        if epoch in found:
            raise ValueError(
                f"signals: {found[epoch]} and {name} of {epochs} epochs are both after epoch {epoch}"
            )
        found[epoch] = name
    return found


def steps_per_epoch(num_examples: int, batch_size: int, share: float = 0.5) -> int:
    """floor(N share / batch), the same for every model although their numbers of members differ.

    `share` of the N examples is what a model is trained on, on average.
    """
    # The share as it was written: 0.29 of 100 examples are 29, and 28.999999999999996 in float64.
    return int(num_examples * Fraction(str(share))) // batch_size


def learning_rate(recipe: Recipe, total_steps: int) -> optax.Schedule:
    """The learning rate at each step, counted from 0."""
    warmup_steps = recipe.warmup * total_steps

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, float)  # float64 where that is on, as int32 would not become
        progress = step / total_steps
        if recipe.schedule == "cosine":
            shape = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif recipe.schedule == "cos7pi16":
            shape = jnp.cos(7 * jnp.pi / 16 * progress)
        else:
            shape = 1.0
        # The first step already moves: (step + 1) / warm-up steps.
        return recipe.learning_rate * shape * jnp.clip((step + 1) / max(warmup_steps, 1), 0, 1)

    return schedule


def optimizer(recipe: Recipe, rate: optax.Schedule) -> optax.GradientTransformation:
    """The recipe's optimizer at the learning rates `rate(step)`."""
    # Biases and the scales of norms are vectors; everything that is decayed has two axes or more.
    decay = optax.add_decayed_weights(recipe.weight_decay, mask=partial(jax.tree.map, lambda p: p.ndim > 1))
    adam = optax.scale_by_adam()
    parts = {"sgd": (decay, optax.trace(recipe.momentum)), "adam": (decay, adam), "adamw": (adam, decay)}[
        recipe.optimizer
    ]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))
