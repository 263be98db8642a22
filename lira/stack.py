"""Stacks of models as compiled programs, and the width and convolution that suit the device, found by measurement.

On CPU each core trains a stack of its own (`workers`): small operations do not fill two cores, stacks do.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lira.arrays import write_atomically
from lira.augment import Queries
from lira.config import Execution
from lira.convolution import LOWERINGS, lowering
from lira.data import Dataset
from lira.models import build_model
from lira.training import (
    Recipe,
    epoch_order,
    evaluated,
    init_model,
    model_key,
    query,
    steps_per_epoch,
    train_epoch,
    train_step,
)

__all__ = ["Programs", "compile_programs", "fit_beside", "programs_for", "seconds_per_step", "stacked"]

# A wider stack must be this much faster than the one before it for a still wider one to be tried.
WORTHWHILE = 1.03
# In a step of so many seconds nothing is left for more models to fill.
LONG_STEP = 0.25
# Widths grow by this factor: fewer compilations than doubling, and throughput is flat about its best.
GROWTH = 4
# Share of the device's memory that stacks may take.
MEMORY_SHARE = 0.8


class Programs(NamedTuple):
    """The compiled programs of a stack of `width` models, of which `workers` threads each run their own."""

    width: int
    workers: int
    lowering: str
    why: str  # how they were chosen, for people
    init: Callable[..., Any]  # (indices [m], x [1, ...]) -> state
    epoch: Callable[..., Any]  # (state, indices, epoch, stop, x, y, keep [m, N]) -> (state, losses [m])
    evaluate: Callable[..., Any]  # state -> the variables that the models answer with
    sweep: Callable[..., Any]  # (variables, x [n, ...], y [n]) -> ({"phi": [m, n, Q], ...}, correct [m, n])
    memory: int | None  # bytes that the stacks of all workers hold on the device, as the compiler reports
    traffic: (
        float | None
    )  # bytes that one training step of one stack reads and writes, as the compiler counts

    @property
    def models(self) -> int:
        """Models in training at a time."""
        return self.width * self.workers


def programs_for(
    recipe: Recipe,
    queries: Queries,
    execution: Execution,
    dataset: Dataset,
    models: int,
    signals: tuple[str, ...] = (),
) -> Programs:
    """Compile the programs of stacks for `models` models, at the pinned width and lowering or the fastest ones.

    They are asked for phi and for `signals`.

    What is not pinned is measured once on this device, for this model and batch size. The choice, and what XLA
    compiled, are kept under `$LIRA_CACHE` (`~/.cache/lira`).
    """
    _keep_compilations()
    module = build_model(recipe.model, dataset.num_classes)
    workers = min(execution.workers or _cores(), models)
    share = -(-models // workers)  # of each worker
    compiled = partial(compile_programs, module, recipe, queries, dataset, workers, signals=signals)
    pinned_lowering = None if execution.lowering == "auto" else execution.lowering
    lowerings = [pinned_lowering] if pinned_lowering else _candidates(module, recipe, dataset)
    if execution.width and len(lowerings) == 1:
        pinned = lowerings[0], min(execution.width, share)
        # What does not fit by the compiler's count is tried as it was asked for, on one worker.
        return (_fitting(compiled, *pinned) or compiled(*pinned)._replace(workers=1))._replace(why="pinned")
    place = _cache_file(module, recipe, dataset, execution)
    if (kept := _read_choice(place)) is not None and kept["lowering"] in lowerings:
        programs = _fitting(compiled, kept["lowering"], min(kept["width"], share))
        if programs is not None:
            return programs._replace(why="measured before: " + kept["why"])
    best, tried = None, []
    widest = 1 << (share - 1).bit_length()  # a stack is filled up to its width with copies
    for how in lowerings:
        width, speed = execution.width or 1, 0.0
        while width <= max(widest, execution.width):
            candidate = _fitting(compiled, how, width)
            if candidate is None:
                tried.append(f"{how} {width} does not fit")
                break
            step = seconds_per_step(candidate, dataset, recipe.batch_size)
            faster = recipe.batch_size * candidate.models / step
            tried.append(f"{how} {width}: {faster:,.0f}")
            if best is None or faster > best[0]:
                best = (faster, candidate)
            if execution.width or faster < WORTHWHILE * speed or step > LONG_STEP:
                break
            width, speed = GROWTH * width, faster
    if best is None:
        raise ValueError(
            f"not even one {recipe.model} at batch size {recipe.batch_size} fits on the device: lower recipe.batch_size"
        )
    why = "images/s by lowering and width: " + ", ".join(tried)
    _write_choice(place, {"width": best[1].width, "lowering": best[1].lowering, "why": why})
    programs = _fitting(compiled, best[1].lowering, min(best[1].width, share))
    return (programs or best[1])._replace(why=why)


def seconds_per_step(programs: Programs, dataset: Dataset, batch_size: int) -> float:
    """Time of one training step of all workers' stacks, over as many steps as take half a second."""
    indices = jnp.zeros(programs.width, int)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep = jnp.ones((programs.width, len(y)), bool)
    whole, count = steps_per_epoch(len(y), batch_size), 1
    states = [programs.init(indices, x[:1]) for _ in range(programs.workers)]

    def run(state):
        for start in range(0, count, whole):
            state, _ = programs.epoch(state, indices, 0, min(whole, count - start), x, y, keep)
        return jax.block_until_ready(state)

    with ThreadPoolExecutor(programs.workers) as workers:
        states = list(workers.map(run, states))  # not counted: the first call of a program
        while True:
            began = time.perf_counter()
            states = list(workers.map(run, states))
            seconds = time.perf_counter() - began
            if seconds > 0.4:
                return seconds / count
            count = max(count + 1, int(0.5 * count / seconds))


def _candidates(module: nn.Module, recipe: Recipe, dataset: Dataset) -> list[str]:
    """Lowerings worth measuring: one where nothing convolves, and Winograd's tiles on CPU in float32 alone.

    bfloat16 would round its sums. On accelerators its tiles would pass through memory, with four times the bytes of
    XLA's own convolution (experiments/benchmarks/gpu_programs.py).
    """
    shapes = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    if all(leaf.ndim <= 2 for leaf in jax.tree.leaves(shapes.params)):
        return ["patches"]
    tiles = jax.default_backend() == "cpu" and recipe.precision == "float32"
    return [how for how in reversed(LOWERINGS) if how not in ("winograd", "mixed") or tiles]


def _fitting(compiled: Callable[[str, int], Programs], how: str, width: int) -> Programs | None:
    """The programs, with as many workers as there is memory for; None where there is too little for one."""
    try:
        programs = compiled(how, width)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    if programs.memory is None:
        return programs
    each = programs.memory // programs.workers
    workers = min(programs.workers, int(MEMORY_SHARE * _device_memory()) // max(each, 1))
    return programs._replace(workers=workers, memory=workers * each) if workers else None


def _device_memory() -> float:
    """Bytes on the device; half of the machine's where the device is its CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _cores() -> int:
    """Stacks to train at a time: one a CPU core that this process may use, one on an accelerator."""
    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1


_programs: dict[Any, Programs] = {}


def compile_programs(
    module: nn.Module,
    recipe: Recipe,
    queries: Queries,
    dataset: Dataset,
    workers: int,
    how: str,
    width: int,
    signals: tuple[str, ...] = (),
) -> Programs:
    """Compile, or take the last programs compiled: planning and training then share them."""
    key = (module, recipe, queries, dataset.fingerprint, how, width, signals)
    if key not in _programs:
        built = _build(module, recipe, queries, dataset, how, width, signals)
        _programs.clear()
        _programs[key] = built
    built = _programs[key]
    return built._replace(workers=workers, memory=built.memory and workers * built.memory)


def _build(
    module: nn.Module,
    recipe: Recipe,
    queries: Queries,
    dataset: Dataset,
    how: str,
    width: int,
    signals: tuple[str, ...],
) -> Programs:
    total_steps = steps_per_epoch(dataset.num_examples, recipe.batch_size) * recipe.epochs

    def init(index, x):
        return init_model(module, recipe, total_steps, model_key(recipe.seed, index), x)

    def epoch(state, index, number, stop, x, y, keep):
        key = model_key(recipe.seed, index)
        return train_epoch(module, recipe, total_steps, state, key, number, stop, x, y, keep)

    def order(index, number, keep):
        return epoch_order(recipe, model_key(recipe.seed, index), number, keep)

    def step(state, index, number, at, order, x, y):
        key = model_key(recipe.seed, index)
        return train_step(module, recipe, total_steps, state, key, number, at, order, x, y)

    def ask(variables, x, y):
        return query(module, queries, signals, variables, x, y)

    def sweep(batch, variables, x, y):
        answers = jax.lax.map(lambda block: ask(variables, x[block], y[block]), _blocks(len(y), batch))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(y)], answers)

    indices = jnp.zeros(width, int)
    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y))
    keep = jax.ShapeDtypeStruct((width, len(dataset.y)), bool)
    stacked_init = stacked(how, init, 0, None)
    state = jax.eval_shape(stacked_init, indices, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    if how == "xla" and jax.default_backend() == "cpu":
        # In the body of a loop XLA's convolution is forty times slower here: each step is a program of its own.
        stacked_order = stacked(how, order, 0, None, 0)
        orders = jax.eval_shape(stacked_order, indices, 0, keep)
        one_step = stacked(how, step, 0, 0, None, None, 0, None, None, donate_argnums=0)
        compiled = one_step.lower(state, indices, 0, 0, orders, x, y).compile()
        epoch_of_stack = partial(_step_by_step, stacked_order, compiled)
    else:
        whole = stacked(how, epoch, 0, 0, None, None, None, None, 0, donate_argnums=0)
        compiled = epoch_of_stack = whole.lower(state, indices, 0, 0, x, y, keep).compile()
    usage = compiled.memory_analysis()
    memory = None if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes
    evaluate = jax.jit(jax.vmap(partial(evaluated, recipe)))
    stacked_ask = stacked(how, ask, 0, None, None)
    batch = max(1, recipe.batch_size // len(queries.views))
    if usage is not None:
        variables = jax.eval_shape(evaluate, state)
        batch = _sweep_batch(stacked_ask, variables, x, y, batch, usage.temp_size_in_bytes)
    if epoch_of_stack is compiled:
        sweep_of_stack = _once(stacked(how, partial(sweep, batch), 0, None, None))
    else:
        sweep_of_stack = partial(_block_by_block, _once(stacked_ask), batch)
    # The compiler counts the body of the loop over steps once, since it cannot know how many there will be.
    traffic = (compiled.cost_analysis() or {}).get("bytes accessed")
    return Programs(
        width, 1, how, "", _once(stacked_init), epoch_of_stack, evaluate, sweep_of_stack, memory, traffic
    )


def fit_beside(
    programs: Programs, function: Callable[..., Any], axes: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Programs, Callable[..., Any]]:
    """Compile another function of one model for the stacks of `programs`.

    Its convolutions are theirs, but patches in place of XLA's on CPU, which are slow within loops. Where it takes more
    memory than training, fewer workers call it, or it goes through a stack in narrower parts.

    Args:
        programs: of the stacks.
        function: of one model.
        axes: of its arguments, 0 for those that models have their own of and None for shared ones.
        arguments: arrays or shapes of them for a stack of `programs.width` models.

    Returns:
        The programs with as many workers as there is memory for, and the compiled function of a stack.
    """
    on_cpu = jax.default_backend() == "cpu"
    how = "patches" if programs.lowering == "xla" and on_cpu else programs.lowering
    jitted = stacked(how, function, *axes)
    for width in (w for w in range(programs.width, 0, -1) if programs.width % w == 0):
        shapes = [
            jax.ShapeDtypeStruct((width, *a.shape[1:]) if axis == 0 else a.shape, a.dtype)
            for a, axis in zip(arguments, axes, strict=True)
        ]
        try:
            compiled = jitted.lower(*shapes).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                continue
            raise
        usage = compiled.memory_analysis()
        each = 0 if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes
        if workers := min(programs.workers, int(MEMORY_SHARE * _device_memory()) // max(each, 1)):
            return programs._replace(workers=workers), partial(_by_parts, compiled, axes, width)
    raise ValueError("not even one model fits on the device: lower recipe.batch_size")


def _by_parts(compiled, axes, width: int, *arguments):
    """Call a function compiled for `width` models on a whole stack, one part after the other."""
    models = _width(axes, arguments)
    if models == width:
        return compiled(*arguments)
    parts = [
        compiled(*(a[at : at + width] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)))
        for at in range(0, models, width)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def stacked(how: str, function: Callable[..., Any], *axes: int | None, **options: Any):
    """A function of one model, jitted for a stack of them, with every convolution in it by lowering `how`."""

    def lowered(*arguments):
        with lowering(how):
            return (_alone if _width(axes, arguments) == 1 else jax.vmap)(function, axes)(*arguments)

    return jax.jit(lowered, **options)


def _width(axes: tuple[int | None, ...], arguments: tuple[Any, ...]) -> int:
    """Models in a stack of which these are the arguments."""
    of_models = [a for a, axis in zip(arguments, axes, strict=True) if axis == 0]
    return len(jax.tree.leaves(of_models)[0])


def _alone(function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """As `vmap`, for a stack of one: XLA makes slower matrix products of those with an axis of one model."""

    def call(*arguments):
        one = [
            jax.tree.map(lambda leaf: leaf[0], a) if axis == 0 else a
            for a, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*one))

    return call


def _sweep_batch(ask, variables, x, y, batch: int, room: int) -> int:
    """Examples to ask about at a time: `batch`, or as many as fit in the bytes that a training step works with.

    Not so on CPU: what a training batch needs stays in the cache there, and larger ones were up to 30 % slower.
    """
    if jax.default_backend() == "cpu":
        return batch
    few = (jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in (x, y))
    each = ask.lower(variables, *few).compile().memory_analysis().temp_size_in_bytes / batch
    return min(max(batch, int(room / max(each, 1))), y.shape[0])


def _once(function):
    """A jitted function that threads which call it at the same time compile once for each shape of the last argument."""
    compiled, lock = {}, Lock()

    def call(*arguments):
        shape = arguments[-1].shape
        with lock:
            if shape not in compiled:
                compiled[shape] = function.lower(*arguments).compile()
        return compiled[shape](*arguments)

    return call


def _step_by_step(order, one_step, state, indices, number, stop, x, y, keep):
    """An epoch as `stop` calls of one compiled step."""
    orders, total = order(indices, number, keep), 0.0
    for at in range(int(stop)):
        state, losses = one_step(state, indices, number, at, orders, x, y)
        total += losses
    return state, total / stop


def _block_by_block(ask, batch: int, variables, x, y):
    """The query sweep as one call a batch."""
    answers = [ask(variables, x[block], y[block]) for block in _blocks(len(y), batch)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1)[:, : len(y)], *answers)


def _blocks(n: int, batch: int) -> jax.Array:
    """Indices of n examples in whole batches, int `[batches, batch]`; the last one wraps."""
    return jnp.arange(-(-n // batch) * batch).reshape(-1, batch) % n


# --- What earlier runs left -------------------------------------------------------------------------------------------


def _cache() -> Path:
    return Path(os.environ.get("LIRA_CACHE") or Path.home() / ".cache" / "lira")


def _keep_compilations() -> None:
    """Have JAX keep what XLA compiles, unless the user has said where or whether it should."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(_cache() / "xla"))


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
    device = (jax.devices()[0].device_kind, jax.device_count(), _cores(), jax.__version__)
    shape = (dataset.x.shape, dataset.x.dtype.str)
    key = hashlib.sha256(repr((module, cost, device, shape, execution, LOWERINGS)).encode()).hexdigest()
    return _cache() / "calibration" / f"{key[:16]}.json"


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
