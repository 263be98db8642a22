"""A model asked about a batch, in training and in evaluation mode, in the precision that the recipe says."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lira.learning.augment import augment
from lira.learning.recipe import Recipe

__all__ = [
    "Array",
    "Variables",
    "apply_module",
    "as_input",
    "augmented",
    "compute_dtype",
    "forward",
    "fresh_variables",
]

Array = jax.Array | np.ndarray  # a trace, or what users have
Variables = dict[str, Any]  # {"params": ..., **statistics}, by flax's names of collections


@jax.named_scope("augment")
def augmented(recipe: Recipe, key: jax.Array, images: jax.Array) -> jax.Array:
    """A batch `[batch, ...]` as training sees it: each image flipped and shifted by its own draw, as the recipe says."""
    if not (recipe.flip or recipe.crop_pad):
        return images
    one = partial(augment, flip=recipe.flip, crop_pad=recipe.crop_pad)
    return jax.vmap(one)(jax.random.split(key, len(images)), images)


@jax.named_scope("forward")
def forward(
    module: nn.Module, recipe: Recipe, variables: Variables, images: Array, dropout_key: jax.Array | None
) -> tuple[jax.Array, Variables]:
    """Ask a model about a batch in the recipe's precision: logits `[batch, C]`, and its statistics after the call.

    With a key for dropout the model is in training mode, and its norms move their statistics. With `None` it is in
    evaluation mode, and the statistics returned are those of `variables`.
    """
    dtype = compute_dtype(recipe, variables["params"])
    cast = {**variables, "params": jax.tree.map(lambda p: p.astype(dtype), variables["params"])}
    logits, statistics = apply_module(module, cast, as_input(images, dtype), dropout_key)
    return jnp.asarray(logits, jnp.promote_types(dtype, jnp.float32)), statistics


def fresh_variables(module: nn.Module, key: jax.Array, inputs: jax.Array) -> Variables:
    """Variables of a model that has seen nothing; `inputs [batch, ...]` gives the shape of an example."""
    # A layer of nnx takes its stream of dropout when it is made; evaluation draws nothing from it.
    return dict(module.init({"params": key, "dropout": key}, inputs, train=False))


def apply_module(
    module: nn.Module, variables: Variables, inputs: jax.Array, dropout_key: jax.Array | None
) -> tuple[jax.Array, Variables]:
    """What the module returns for `inputs [batch, ...]`, and its statistics after the call; modes as for `forward`."""
    statistics = {name: value for name, value in variables.items() if name != "params"}
    training = dropout_key is not None
    logits, updated = module.apply(
        variables,
        inputs,
        train=training,
        mutable=list(statistics) if training else [],
        rngs={"dropout": dropout_key} if training else {},
    )
    return logits, dict(updated) if training else statistics


def compute_dtype(recipe: Recipe, params: Any) -> jnp.dtype:
    """bfloat16 where the recipe says so, else the weights' own."""
    return jnp.dtype(jnp.bfloat16) if recipe.precision == "bfloat16" else jax.tree.leaves(params)[0].dtype


def as_input(x: Array, dtype: DTypeLike) -> jax.Array:
    """Bytes to [-1, 1] as in the paper's code; float features as they are."""
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8:
        # Not in bfloat16, which cannot tell neighbouring bytes apart near 1.
        x = x.astype(jnp.promote_types(dtype, jnp.float32)) / 127.5 - 1
    return x.astype(dtype)
