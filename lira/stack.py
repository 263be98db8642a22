"""A stack of models as compiled programs, and the width and convolution that suit the device, found by measurement."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lira.augment import Queries
from lira.config import Execution
from lira.data import Dataset
from lira.models import LOWERINGS, build_model, lowering
from lira.store import write_atomically
from lira.training import Recipe, init_model, model_key, query, steps_per_epoch, train_epoch

__all__ = ["Programs", "programs_for", "seconds_per_step"]

# A wider stack must be this much faster than the one before it for a still wider one to be tried.
WORTHWHILE = 1.03
# Widths grow by this factor: fewer compilations than doubling, and throughput is flat about its best.
GROWTH = 4


class Programs(NamedTuple):
    """The compiled programs of a stack of `width` models."""

    width: int
    lowering: str
    why: str  # how the two were chosen, for people
    init: Callable[..., Any]  # (indices [m], x [1, ...]) -> state
    epoch: Callable[..., Any]  # (state, indices, epoch, stop, x, y, keep [m, N]) -> (state, losses [m])
    sweep: Callable[..., Any]  # (state, x [n, ...], y [n]) -> (phi [m, n, Q], correct [m, n])
    memory: int | None  # bytes that an epoch holds on the device, as the compiler reports


def programs_for(
    recipe: Recipe, queries: Queries, execution: Execution, dataset: Dataset, models: int
) -> Programs:
    """Compile the programs of a stack for `models` models, at the pinned width and lowering or the fastest ones.

    What is not pinned is measured once on this device, for this model and batch size, and the choice is kept under
    `$LIRA_CACHE` (`~/.cache/lira`).
    """
    module = build_model(recipe.model, dataset.num_classes)
    compiled = partial(_compiled, module, recipe, queries, dataset)
    pinned_lowering = None if execution.lowering == "auto" else execution.lowering
    lowerings = [pinned_lowering] if pinned_lowering else _candidates(module, recipe, dataset)
    widest = 1 << (models - 1).bit_length()  # a stack is filled up to its width with copies
    if execution.width and len(lowerings) == 1:
        return compiled(lowerings[0], min(execution.width, models))._replace(why="pinned")
    place = _cache_file(module, recipe, dataset, execution)
    if (kept := _read_choice(place)) is not None and kept["lowering"] in lowerings:
        width = min(kept["width"], models)
        return compiled(kept["lowering"], width)._replace(why="measured before: " + kept["why"])
    best, tried = None, []
    for how in lowerings:
        width, speed = execution.width or 1, 0.0
        while width <= max(widest, execution.width):
            candidate = _fitting(compiled, how, width)
            if candidate is None:
                tried.append(f"{how} {width} does not fit")
                break
            faster = recipe.batch_size * width / seconds_per_step(candidate, dataset, recipe.batch_size)
            tried.append(f"{how} {width}: {faster:,.0f}")
            if best is None or faster > best[0]:
                best = (faster, candidate)
            if execution.width or faster < WORTHWHILE * speed:
                break
            width, speed = GROWTH * width, faster
    if best is None:
        raise ValueError(
            f"not even one {recipe.model} at batch size {recipe.batch_size} fits on the device: lower recipe.batch_size"
        )
    why = "images/s by lowering and width: " + ", ".join(tried)
    _write_choice(place, {"width": best[1].width, "lowering": best[1].lowering, "why": why})
    width = min(best[1].width, models)
    return compiled(best[1].lowering, width)._replace(why=why)


def seconds_per_step(programs: Programs, dataset: Dataset, batch_size: int) -> float:
    """Time of one training step of a stack, over as many steps as take half a second or make a whole epoch."""
    indices = jnp.zeros(programs.width, int)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep = jnp.ones((programs.width, len(y)), bool)
    state = programs.init(indices, x[:1])
    whole, steps, warm = steps_per_epoch(len(y), batch_size), 1, False
    while True:
        began = time.perf_counter()
        state, losses = programs.epoch(state, indices, 0, steps, x, y, keep)
        losses.block_until_ready()
        seconds = time.perf_counter() - began
        if warm and (seconds > 0.5 or steps == whole):
            return seconds / steps
        steps, warm = min(whole, max(steps + warm, int(0.5 * steps / seconds))), True


def _candidates(module: nn.Module, recipe: Recipe, dataset: Dataset) -> list[str]:
    """Lowerings worth measuring: one where nothing convolves, and on CPU, where XLA's is forty times slower in a loop."""
    shapes = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    convolves = any(leaf.ndim > 2 for leaf in jax.tree.leaves(shapes.params))
    if not convolves or jax.default_backend() == "cpu":
        return ["patches"]
    return list(LOWERINGS)


def _fitting(compiled: Callable[[str, int], Programs], how: str, width: int) -> Programs | None:
    """The programs, unless they need more memory than the device should give or the compiler finds none."""
    try:
        programs = compiled(how, width)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    return programs if programs.memory is None or programs.memory < 0.8 * _device_memory() else None


def _device_memory() -> float:
    """Bytes on the device; half of the machine's where the device is its CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


_programs: dict[Any, Programs] = {}


def _compiled(
    module: nn.Module, recipe: Recipe, queries: Queries, dataset: Dataset, how: str, width: int
) -> Programs:
    """Compile, or take the last programs compiled: planning and training then share them."""
    key = (module, recipe, queries, dataset.fingerprint, how, width)
    if key not in _programs:
        built = _build(module, recipe, queries, dataset, how, width)
        _programs.clear()
        _programs[key] = built
    return _programs[key]


def _build(
    module: nn.Module, recipe: Recipe, queries: Queries, dataset: Dataset, how: str, width: int
) -> Programs:
    total_steps = steps_per_epoch(dataset.num_examples, recipe.batch_size) * recipe.epochs
    # Queries of four training batches at a time.
    batch = max(1, 4 * recipe.batch_size // len(queries.views))

    def init(index, x):
        return init_model(module, recipe, total_steps, model_key(recipe.seed, index), x)

    def epoch(state, index, number, stop, x, y, keep):
        with lowering(how):
            key = model_key(recipe.seed, index)
            return train_epoch(module, recipe, total_steps, state, key, number, stop, x, y, keep)

    def sweep(state, x, y):
        n = len(y)
        blocks = jnp.arange(-(-n // batch) * batch).reshape(-1, batch) % n
        with lowering(how):
            phi, correct = jax.lax.map(lambda i: query(module, recipe, queries, state, x[i], y[i]), blocks)
        return phi.reshape(-1, phi.shape[-1])[:n], correct.ravel()[:n]

    stacked_init = jax.jit(jax.vmap(init, (0, None)))
    stacked_epoch = jax.jit(jax.vmap(epoch, (0, 0, None, None, None, None, 0)), donate_argnums=0)
    indices = jnp.zeros(width, int)
    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y))
    state = jax.eval_shape(stacked_init, indices, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    keep = jax.ShapeDtypeStruct((width, len(dataset.y)), bool)
    compiled = stacked_epoch.lower(state, indices, 0, 0, x, y, keep).compile()
    usage = compiled.memory_analysis()
    memory = None if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes
    return Programs(width, how, "", stacked_init, compiled, jax.jit(jax.vmap(sweep, (0, None, None))), memory)


# --- Choices kept from earlier runs -----------------------------------------------------------------------------------


def _cache_file(module: nn.Module, recipe: Recipe, dataset: Dataset, execution: Execution) -> Path:
    """A file for everything that the fastest width may depend on."""
    cost = (
        recipe.batch_size,
        recipe.optimizer,
        recipe.ema > 0,
        recipe.flip,
        recipe.crop_pad,
        recipe.precision,
    )
    device = (jax.devices()[0].device_kind, jax.device_count(), os.cpu_count(), jax.__version__)
    shape = (dataset.x.shape, dataset.x.dtype.str)
    key = hashlib.sha256(repr((module, cost, device, shape, execution)).encode()).hexdigest()
    root = Path(os.environ.get("LIRA_CACHE") or Path.home() / ".cache" / "lira")
    return root / "calibration" / f"{key[:16]}.json"


def _read_choice(place: Path) -> dict[str, Any] | None:
    try:
        choice = json.loads(place.read_text())
        return choice if {"width", "lowering", "why"} <= choice.keys() else None
    except (OSError, ValueError):
        return None


def _write_choice(place: Path, choice: dict[str, Any]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(choice).encode())
    except OSError:
        return  # measured again next time
