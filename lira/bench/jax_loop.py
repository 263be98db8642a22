"""What a user of JAX and flax would do instead of a stack: one jitted step, one model after the other, or `vmap` of it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lira.data.dataset import Dataset
from lira.learning.models import build_model
from lira.learning.recipe import Recipe

__all__ = ["JaxLoop"]


class JaxLoop:
    """Models in training by plain flax and optax: data on the device in bytes, a jitted step that donates its state."""

    def __init__(self, recipe: Recipe, dataset: Dataset, *, models: int = 1) -> None:
        """Initialise and compile.

        Args:
            recipe: of the training: sgd at a constant learning rate, as in the benchmark.
            dataset: its data.
            models: trained side by side under `vmap`.
        """
        began = time.perf_counter()
        self.recipe, self.models, self.steps = recipe, models, 0
        self.module = build_model(recipe.model, dataset.num_classes)
        self.x, self.y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
        self.held_out = _as_float(jnp.asarray(dataset.x_test)), jnp.asarray(dataset.y_test)
        self.optimizer = optax.chain(
            optax.add_decayed_weights(recipe.weight_decay, mask=lambda p: jax.tree.map(_is_matrix, p)),
            optax.sgd(recipe.learning_rate, recipe.momentum),
        )
        keys = jax.random.split(jax.random.key(recipe.seed), models)
        self.keys, one = keys, self._init
        self.state = jax.vmap(one)(keys) if models > 1 else one(keys[0])
        step = jax.vmap(self._step) if models > 1 else self._step
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, self._step_keys()).compile()
        self.train(2)
        self.compile_seconds = time.perf_counter() - began

    def train(self, steps: int) -> None:
        """Take `steps` training steps and wait for them."""
        for _ in range(steps):
            self.state = self.compiled(self.state, self._step_keys())
            self.steps += 1
        jax.block_until_ready(self.state)

    def memory(self) -> int | None:
        """Bytes that the step works with, as the compiler reports."""
        usage: Any = self.compiled.memory_analysis()
        return None if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes

    def accuracy(self) -> float:
        """Of the first model on the held-out set, normalised by its own batch."""
        variables, _ = jax.tree.map(lambda leaf: leaf[0], self.state) if self.models > 1 else self.state
        x, y = self.held_out
        mutable = [name for name in variables if name != "params"]
        logits, _ = self.module.apply(variables, x, train=True, mutable=mutable)
        return float(jnp.mean(jnp.argmax(jnp.asarray(logits), axis=1) == y))

    def _step_keys(self) -> jax.Array:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, self.steps))(self.keys)
        return keys if self.models > 1 else keys[0]

    def _init(self, key: jax.Array) -> tuple[Any, optax.OptState]:
        variables = dict(self.module.init(key, _as_float(self.x[:1]), train=False))
        return variables, self.optimizer.init(variables["params"])

    def _step(self, state: tuple[Any, optax.OptState], key: jax.Array) -> tuple[Any, optax.OptState]:
        variables, optimizer_state = state
        batch_key, augment_key, dropout_key = jax.random.split(key, 3)
        batch = jax.random.randint(batch_key, (self.recipe.batch_size,), 0, len(self.y))
        images, labels = _as_float(self._augmented(augment_key, self.x[batch])), self.y[batch]
        dtype = jnp.dtype(self.recipe.precision)
        rest = {name: value for name, value in variables.items() if name != "params"}

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            logits, updated = self.module.apply(
                {"params": cast, **rest},
                images.astype(dtype),
                train=True,
                mutable=list(rest),
                rngs={"dropout": dropout_key},
            )
            logits = jnp.asarray(logits, jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        gradient, updated = jax.grad(loss_of, has_aux=True)(variables["params"])
        updates, optimizer_state = self.optimizer.update(gradient, optimizer_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, optimizer_state

    def _augmented(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """A mirror and a crop of the padded image, each image its own, `[batch, ...]`."""
        pad = self.recipe.crop_pad

        def one(key: jax.Array, image: jax.Array) -> jax.Array:
            mirror_key, crop_key = jax.random.split(key)
            if self.recipe.flip:
                image = jnp.where(jax.random.bernoulli(mirror_key), image[:, ::-1], image)
            if pad:
                top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
                padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
                image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
            return image

        if not (self.recipe.flip or pad):
            return images
        return jax.vmap(one)(jax.random.split(key, len(images)), images)


def _as_float(images: jax.Array) -> jax.Array:
    return images / 127.5 - 1 if images.dtype == jnp.uint8 else images


def _is_matrix(leaf: jax.Array) -> bool:
    return leaf.ndim > 1
