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
import numpy as np

from lira.arrays import write_atomically
from lira.augment import ORIGINAL_BATCH, Queries
from lira.cache import cache_directory, keep_compilations
from lira.config import Execution
from lira.convolution import LOWERINGS, lowering
from lira.data import Dataset
from lira.models import build_model
from lira.norms import joint_sums
from lira.parallel import cores
from lira.training import (
    Recipe,
    epoch_order,
    evaluated,
    init_model,
    model_key,
    query,
    steps_per_epoch,
    train_epochs,
    train_step,
)

__all__ = [
    "Programs",
    "compile_programs",
    "epochs_at_once",
    "fit_beside",
    "programs_for",
    "seconds_per_step",
    "stacked",
    "train_steps",
]

# A wider stack must be this much faster than the one before it for a still wider one to be tried.
WORTHWHILE = 1.03
# In a step of so many seconds nothing is left for more models to fill.
LONG_STEP = 0.25
# Seconds that a program's first call is to take for what it does only once not to count.
LONG_CALL = 5.0
# Epochs of fewer steps than this are trained several at a time on accelerators.
STEPS_AT_ONCE = 128
# Widths grow by this factor: fewer compilations than doubling, and throughput is flat about its best.
GROWTH = 4
# Models side by side that each have convolutions of their own: more would fill the device no better, and their programs
# are as many times as long to compile.
SEVERAL = 4
# Share of the device's memory that stacks may take.
MEMORY_SHARE = 0.8


class Programs(NamedTuple):
    """The compiled programs of a stack of `width` models, of which `workers` threads each run their own."""

    width: int
    workers: int
    lowering: str
    why: str  # how they were chosen, for people
    init: Callable[..., Any]  # (indices [m], x [1, ...]) -> state
    epochs: int  # that one call of `train` is of
    steps: int  # that they are
    any_steps: bool  # whether a call may be of fewer steps
    # (state, indices, first epoch, steps, x, y, keep [m, N]) -> (state, losses [m, epochs])
    train: Callable[..., Any]
    evaluate: Callable[..., Any]  # (state, indices, x, keep) -> the variables that the models answer with
    sweep: Callable[..., Any]  # (variables, x [n, ...], y [n]) -> ({"phi": [m, n, Q], ...}, correct [m, n])
    clean: Callable[..., Any]  # as sweep, about the examples as they are, and about nothing but phi
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
    keep_compilations()
    module = build_model(recipe.model, dataset.num_classes)
    workers = min(execution.workers or _cores(), models)
    share = -(-models // workers)  # of each worker
    compiled = partial(compile_programs, module, recipe, queries, dataset, workers, signals=signals)
    candidates = _candidates(module, recipe, dataset, execution, share)
    if execution.width and len(candidates) == 1:
        pinned = candidates[0][0], min(execution.width, share)
        # What does not fit by the compiler's count is tried as it was asked for, on one worker.
        return (_fitting(compiled, *pinned) or compiled(*pinned)._replace(workers=1))._replace(why="pinned")
    place = _cache_file(module, recipe, dataset, execution)
    if (kept := _read_choice(place)) is not None and kept["lowering"] in dict(candidates):
        programs = _fitting(compiled, kept["lowering"], min(kept["width"], share))
        if programs is not None:
            return programs._replace(why="measured before: " + kept["why"])
    best, tried = None, []
    for how, widths in candidates:
        speed = 0.0
        for width in widths:
            candidate = _fitting(compiled, how, width)
            if candidate is None:
                tried.append(f"{how} {width} does not fit")
                break
            step = seconds_per_step(candidate, dataset)
            faster = recipe.batch_size * candidate.models / step
            tried.append(f"{how} {width}: {faster:,.0f}")
            if best is None or faster > best[0]:
                best = (faster, candidate)
            if faster < WORTHWHILE * speed or step > LONG_STEP:
                break
            speed = faster
    if best is None:
        raise ValueError(
            f"not even one {recipe.model} at batch size {recipe.batch_size} fits on the device: lower recipe.batch_size"
        )
    why = "images/s by lowering and width: " + ", ".join(tried)
    _write_choice(place, {"width": best[1].width, "lowering": best[1].lowering, "why": why})
    programs = _fitting(compiled, best[1].lowering, min(best[1].width, share))
    return (programs or best[1])._replace(why=why)


def seconds_per_step(programs: Programs, dataset: Dataset) -> float:
    """Time of one training step of all workers' stacks, over as many steps as take half a second, or as a call takes."""
    indices = jnp.zeros(programs.width, int)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep = jnp.ones((programs.width, len(y)), bool)
    states = [programs.init(indices, x[:1]) for _ in range(programs.workers)]
    count = 1

    def run(state):
        state, taken = train_steps(programs, state, indices, 0, count, x, y, keep)
        return jax.block_until_ready(state), taken

    with ThreadPoolExecutor(programs.workers) as workers:
        timed = False  # not the first call of a program
        while True:
            began = time.perf_counter()
            states, (taken, *_) = zip(*workers.map(run, states), strict=True)
            seconds = time.perf_counter() - began
            # Where a whole epoch is a program, even the first call of a slow one is long enough.
            if seconds > (0.4 if timed else LONG_CALL):
                return seconds / taken
            count = max(taken + 1, int(0.5 * taken / seconds)) if timed else count
            timed = True


def train_steps(
    programs: Programs, state: Any, indices: jax.Array, first: int, steps: int, x, y, keep
) -> tuple[Any, int]:
    """Train a stack for `steps` steps from epoch `first` on, or more where programs are of whole epochs; and how many."""
    taken = 0
    while taken < steps:
        count = min(programs.steps, steps - taken) if programs.any_steps else programs.steps
        epoch = first + taken // programs.steps * programs.epochs
        state, _ = programs.train(state, indices, epoch, count, x, y, keep)
        taken += count
    return state, taken


def _candidates(
    module: nn.Module, recipe: Recipe, dataset: Dataset, execution: Execution, share: int
) -> list[tuple[str, list[int]]]:
    """Lowerings worth measuring for `share` models, each with the widths that are: one where nothing convolves.

    On CPU Winograd in float32 alone, as bfloat16 would round its sums. On accelerators neither it nor patches, which pass
    through memory with many times the bytes of XLA's own convolution (experiments/benchmarks/gpu_programs.py), nor groups,
    for which libraries are slow, and each costs half a minute of compilation: one model, or a few with a convolution each.
    """
    widest = 1 << (share - 1).bit_length()  # a stack is filled up to its width with copies
    if execution.width:
        widths = [execution.width]
    else:
        widths = [GROWTH**i for i in range(widest.bit_length()) if GROWTH**i <= widest]
    if execution.lowering != "auto":
        return [(execution.lowering, widths)]
    shapes = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    if all(leaf.ndim <= 2 for leaf in jax.tree.leaves(shapes.params)):
        return [("patches", widths)]
    if jax.default_backend() == "cpu":
        tiles = ["mixed", "winograd"] if recipe.precision == "float32" else []
        return [(how, widths) for how in (*tiles, "patches", "xla")]
    several = execution.width or min(SEVERAL, widest)
    one = [("xla", [1])] if execution.width <= 1 else []
    return [*one, ("per_model", [several])] if several > 1 else one


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
    return cores() if jax.default_backend() == "cpu" else 1


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

    whole = steps_per_epoch(dataset.num_examples, recipe.batch_size)
    any_steps = jax.default_backend() == "cpu"
    several = 1 if any_steps else epochs_at_once(recipe, whole)

    def epochs(state, index, first, stop, x, y, keep):
        key = model_key(recipe.seed, index)
        # A number that the compiler knows: nothing asks the host after each step whether another follows.
        stop = stop if any_steps else whole
        return train_epochs(module, recipe, total_steps, state, key, first, several, stop, x, y, keep)

    def order(index, number, keep):
        return epoch_order(recipe, model_key(recipe.seed, index), number, keep)

    def step(state, index, number, at, order, x, y):
        key = model_key(recipe.seed, index)
        return train_step(module, recipe, total_steps, state, key, number, at, order, x, y)

    def answer(state, index, x, keep):
        return evaluated(module, recipe, queries, state, model_key(recipe.seed, index), x, keep)

    indices = jnp.zeros(width, int)
    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y))
    keep = jax.ShapeDtypeStruct((width, len(dataset.y)), bool)
    stacked_init = stacked(how, init, 0, None)
    state = jax.eval_shape(stacked_init, indices, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    slow_loops = _slow_in_loops(how)
    if slow_loops:
        # Each step is a program of its own.
        stacked_order = stacked(how, order, 0, None, 0)
        orders = jax.eval_shape(stacked_order, indices, 0, keep)
        one_step = stacked(how, step, 0, 0, None, None, 0, None, None, donate_argnums=0)
        compiled = one_step.lower(state, indices, 0, 0, orders, x, y).compile()
        train = partial(_step_by_step, stacked_order, compiled)
    else:
        of_stack = stacked(how, epochs, 0, 0, None, None, None, None, 0, donate_argnums=0)
        compiled = train = of_stack.lower(state, indices, 0, 0, x, y, keep).compile()
    usage = compiled.memory_analysis()
    memory = None if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes
    evaluate = stacked("patches" if slow_loops else how, answer, 0, 0, None, 0)
    variables = jax.eval_shape(evaluate, state, indices, x, keep)
    sweep = partial(_sweep, module, recipe, how, variables, x, y, usage and usage.temp_size_in_bytes)
    # The compiler counts the bodies of loops once, however often they turn.
    traffic = (compiled.cost_analysis() or {}).get("bytes accessed")
    return Programs(
        width=width,
        workers=1,
        lowering=how,
        why="",
        init=_once(stacked_init),
        epochs=several,
        steps=several * whole,
        any_steps=any_steps,
        train=train,
        evaluate=_once(evaluate),
        sweep=_when_called(partial(sweep, queries, signals)),
        clean=_when_called(partial(sweep, Queries(), ())),
        memory=memory,
        traffic=traffic,
    )


def epochs_at_once(recipe: Recipe, steps: int) -> int:
    """Epochs of so many steps that an accelerator trains in one call: a divisor of all, so that one program serves."""
    divisors = (n for n in range(1, recipe.epochs + 1) if recipe.epochs % n == 0)
    return max(n for n in divisors if n == 1 or n * steps <= STEPS_AT_ONCE)


def _slow_in_loops(how: str) -> bool:
    """In the body of a loop XLA's own convolution is forty times slower on CPU."""
    return how in ("xla", "per_model") and jax.default_backend() == "cpu"


def _sweep(
    module: nn.Module,
    recipe: Recipe,
    how: str,
    variables: Any,
    x: jax.ShapeDtypeStruct,
    y: jax.ShapeDtypeStruct,
    room: int | None,
    queries: Queries,
    signals: tuple[str, ...],
) -> Callable[..., Any]:
    """A stack's answers about all examples, a batch at a time; the training step works with `room` bytes."""
    slow_loops = _slow_in_loops(how)

    def ask(variables, x, y):
        return query(module, queries, signals, variables, x, y)

    if queries.convention == "original":
        # Its batches are part of the convention, so the last one is not filled up.
        how, batch = "patches" if slow_loops else how, ORIGINAL_BATCH
        return partial(_part_by_part, _once(stacked(how, ask, 0, None, None)), batch)
    stacked_ask = stacked(how, ask, 0, None, None)
    batch = max(1, recipe.batch_size // len(queries.views))
    if room is not None:
        batch = _sweep_batch(stacked_ask, variables, x, y, batch, room)
    if slow_loops:
        return partial(_block_by_block, _once(stacked_ask), batch)

    def sweep(variables, x, y):
        answers = jax.lax.map(lambda block: ask(variables, x[block], y[block]), _blocks(len(y), batch))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(y)], answers)

    return _once(stacked(how, sweep, 0, None, None))


def fit_beside(
    programs: Programs, function: Callable[..., Any], axes: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Programs, Callable[..., Any]]:
    """Compile another function of one model for the stacks of `programs`.

    Its convolutions are theirs, but patches in place of XLA's own on CPU, which are slow within loops. Where it takes more
    memory than training, fewer workers call it, or it goes through a stack in narrower parts.

    Args:
        programs: of the stacks.
        function: of one model.
        axes: of its arguments, 0 for those that models have their own of and None for shared ones.
        arguments: arrays or shapes of them for a stack of `programs.width` models.

    Returns:
        The programs with as many workers as there is memory for, and the compiled function of a stack.
    """
    how = "patches" if _slow_in_loops(programs.lowering) else programs.lowering
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
        with lowering(how), joint_sums():
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


def _when_called(make):
    """The function that `make()` gives, made when it is first called: calibration has no use for a sweep."""
    made, lock = [], Lock()

    def call(*arguments):
        with lock:
            if not made:
                made.append(make())
        return made[0](*arguments)

    return call


def _step_by_step(order, one_step, state, indices, number, stop, x, y, keep):
    """An epoch as `stop` calls of one compiled step."""
    orders, total = order(indices, number, keep), 0.0
    for at in range(int(stop)):
        state, losses = one_step(state, indices, number, at, orders, x, y)
        total += losses
    return state, (total / stop)[:, None]


def _block_by_block(ask, batch: int, variables, x, y):
    """The query sweep as one call a batch."""
    answers = [ask(variables, x[block], y[block]) for block in _blocks(len(y), batch)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1)[:, : len(y)], *answers)


def _part_by_part(ask, batch: int, variables, x, y):
    """The query sweep as one call a batch of consecutive examples, the last of which is what remains."""
    parts = [slice(at, at + batch) for at in range(0, len(y), batch)]
    answers = [jax.tree.map(np.asarray, ask(variables, x[part], y[part])) for part in parts]
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *answers)


def _blocks(n: int, batch: int) -> jax.Array:
    """Indices of n examples in whole batches, int `[batches, batch]`; the last one wraps."""
    return jnp.arange(-(-n // batch) * batch).reshape(-1, batch) % n


# --- What earlier runs left -------------------------------------------------------------------------------------------


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
    return cache_directory() / "calibration" / f"{key[:16]}.json"


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
