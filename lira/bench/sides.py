"""Ways of training a model side by side: lira's, and what a user would do instead."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lira.bench.jax_loop import JaxLoop
from lira.bench.machine import on_cpu
from lira.data.dataset import Dataset
from lira.engine.calibrate import programs_for
from lira.engine.programs import train_steps
from lira.learning.forward import as_input
from lira.learning.learner import model_keys
from lira.learning.models import build_model
from lira.learning.recipe import Recipe
from lira.learning.training import ModelState
from lira.store.config import Config

__all__ = ["BESIDE", "Side", "side", "side_or_why_not", "why_absent"]
# What a user would do instead, and beside the last one what an expert would make of it.
BESIDE = ("jax_loop", "vmap_plain", "torch_loop", "torch_graphs")


class Side(NamedTuple):
    """One way of training a model, ready to be timed."""

    train: Callable[[int], int | None]  # take so many steps and wait for them; how many, if they are more
    accuracy: Callable[[], float]  # on the held-out set, normalised by its own batch
    models: int  # trained at a time
    facts: dict[str, Any]


# --- Sides --------------------------------------------------------------------------------------------------------


def side_or_why_not(name: str, recipe: Recipe, dataset: Dataset) -> Side | str:
    """A side made ready, or why there is none."""
    if (why := why_absent(name)) is not None:
        return why
    try:
        return side(name, recipe, dataset)
    except (RuntimeError, ValueError) as error:
        # What another framework cannot do costs its rows alone; what lira cannot do is an error.
        if not name.startswith("torch"):
            raise
        return " ".join(str(error).split())[:200]


def why_absent(name: str) -> str | None:
    """Why this side cannot be timed on this machine, whatever the model; None if it can."""
    if not name.startswith("torch"):
        return None
    if find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'lira[bench]'"
    if name == "torch_graphs":
        from lira.bench.torch_loop import has_cuda

        if not has_cuda():
            return "PyTorch finds no CUDA device"
    return None


def side(name: str, recipe: Recipe, dataset: Dataset) -> Side:
    """Make one side ready, compiled and warm.

    Args:
        name: lira: as `lira run` trains; jax_loop: one model at a time in plain flax, jitted; vmap_plain: several under `vmap`;
            torch_loop: one model in PyTorch, compiled on a GPU; torch_graphs: that, each step as one CUDA graph.
        recipe: of the training.
        dataset: its data.
    """
    if name.startswith("torch"):
        from lira.bench.torch_loop import TorchLoop

        loop = TorchLoop(recipe, dataset, graphs=name == "torch_graphs")
        facts = {"compile_s": loop.compile_seconds, "memory_bytes": loop.memory(), "bytes_per_image": None}
        return Side(loop.train, loop.accuracy, 1, facts)
    if name != "lira":
        # Grouped convolutions are so slow on CPU that two models must do.
        wide = 16 if recipe.model == "mlp" or not on_cpu() else 2
        loop = JaxLoop(recipe, dataset, models=1 if name == "jax_loop" else wide)
        facts = {"compile_s": loop.compile_seconds, "memory_bytes": loop.memory(), "bytes_per_image": None}
        return Side(loop.train, loop.accuracy, loop.models, {"width": loop.models, **facts})
    return _lira_side(recipe, dataset)


def _lira_side(recipe: Recipe, dataset: Dataset) -> Side:
    began = time.perf_counter()
    programs = programs_for(Config(recipe=recipe), dataset, 1024)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    held_out = as_input(np.asarray(dataset.x_test), jnp.float32)
    keep = jnp.ones((programs.width, len(y)), bool)
    stacks = np.arange(programs.models).reshape(programs.workers, programs.width)
    keys = [model_keys(recipe.seed, stack) for stack in stacks]
    states = [programs.init(each, x[:1]) for each in keys]
    pool, epochs = ThreadPoolExecutor(programs.workers), iter(range(1 << 30))

    def one_worker(steps: int, epoch: int, state: Any, keys: jax.Array) -> tuple[Any, int]:
        state, taken = train_steps(programs, state, keys, epoch, steps, x, y, keep)
        return jax.block_until_ready(state), taken

    def train(steps: int) -> int:
        epoch = next(epochs) * 1000
        states[:], (taken, *_) = zip(*pool.map(partial(one_worker, steps, epoch), states, keys), strict=True)
        return taken

    train(1)
    compile_seconds = time.perf_counter() - began

    def accuracy() -> float:
        module = build_model(recipe.model, dataset.num_classes)

        @jax.vmap
        def one_model(state: ModelState) -> jax.Array:
            variables = {"params": state.params, **state.statistics}
            logits, _ = module.apply(variables, held_out, train=True, mutable=list(state.statistics))
            return jnp.mean(jnp.argmax(logits, axis=1) == dataset.y_test)

        first = jax.tree.map(lambda leaf: leaf[:1], states[0])
        return float(jax.jit(one_model)(first)[0])

    facts = {
        "width": programs.width,
        "workers": programs.workers,
        "lowering": programs.lowering,
        "chosen": programs.why,
        "compile_s": compile_seconds,
        "memory_bytes": programs.memory,
        "bytes_per_image": programs.traffic and programs.traffic / (recipe.batch_size * programs.width),
    }
    return Side(train, accuracy, programs.models, facts)
