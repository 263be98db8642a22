"""The width of a stack and the convolution that suit the device, found by measurement.

On CPU each core trains a stack of its own (`workers`): small operations do not fill two cores, stacks do.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lira.cache import cache_directory, keep_compilations
from lira.data.dataset import Dataset
from lira.engine.device import MEMORY_SHARE, device_memory, devices_of, stacks_at_a_time, this_device
from lira.engine.programs import Programs, compile_programs, train_steps
from lira.learning.convolution import LOWERINGS
from lira.learning.learner import Learner, model_keys
from lira.learning.recipe import steps_per_epoch
from lira.learning.training import variable_shapes
from lira.store.config import Config, Execution, as_dict
from lira.store.errors import RunError
from lira.store.files import write_atomically

__all__ = ["programs_for", "seconds_per_step"]

# A wider stack must be this much faster than the one before it for a still wider one to be tried.
WORTHWHILE = 1.03
# In a step of so many seconds nothing is left for more models to fill.
LONG_STEP = 0.25
# Seconds that a program's first call is to take for what it does only once not to count.
LONG_CALL = 5.0
# Widths grow by this factor: fewer compilations than doubling, and throughput is flat about its best.
GROWTH = 4
# Models side by side that each have convolutions of their own: more would fill the device no better, and their programs
# are as many times as long to compile.
SEVERAL = 4
# Fields of a recipe by whose value no step takes longer.
COSTLESS = {
    *("epochs", "schedule_epochs", "learning_rate", "schedule", "warmup", "momentum", "weight_decay"),
    *("label_smoothing", "statistics", "seed"),
}


def programs_for(
    config: Config,
    dataset: Dataset,
    models: int,
    widest: int = 0,
    ends: tuple[int, ...] = (),
    begun: tuple[str, int] | None = None,
) -> Programs:
    """Compile the programs of stacks for `models` models, at the pinned width and lowering or the fastest ones.

    They are this thread's device's, for its share of the models. A width or lowering that is not pinned is measured, once for
    this device, model and batch size; the choice and XLA's programs are kept under `$LIRA_CACHE` (`~/.cache/lira`). Stacks of
    more models than `widest` proved too wide; 0 is none. Calls of `Programs.train` end after each of the numbers of epochs
    `ends`. Stacks that are `begun` go on with their own lowering and width, and all others with them.

    Raises:
        ValueError: not even one model fits on the device, or there is no such model.
    """
    keep_compilations()
    recipe, execution = config.recipe, config.execution
    if widest:
        execution = dataclasses.replace(execution, width=min(execution.width or widest, widest))
    learner = Learner.of(recipe, dataset, config.share(dataset.num_examples))
    devices = len(devices_of(execution.devices))
    workers = min(execution.workers or stacks_at_a_time(learner.platform, devices), models)
    share = -(-models // (workers * devices))  # of each worker
    compiled = partial(
        compile_programs, learner, config.queries, dataset, workers, signals=config.signals, ends=ends
    )
    if begun and (not widest or begun[1] <= widest) and (programs := _fitting(compiled, *begun)):
        return programs._replace(why="as the stacks that go on from checkpoints")
    candidates = _candidates(learner, dataset, execution, share)
    if execution.width and len(candidates) == 1:
        pinned = candidates[0][0], min(execution.width, share)
        # Where it does not fit by the compiler's count, it is tried all the same, on one worker.
        return (_fitting(compiled, *pinned) or compiled(*pinned)._replace(workers=1))._replace(why="pinned")
    file = _cache_file(learner, dataset, execution)
    widest = max(width for _, widths in candidates for width in widths)
    kept = _read_choice(file)
    # A choice made for fewer models never measured the wider stacks that there may be now, and one for a short training
    # not all that are worth it for a longer one.
    images = steps_per_epoch(dataset.num_examples, recipe.batch_size, config.share(dataset.num_examples))
    images *= recipe.batch_size * recipe.epochs / devices  # of one model, on each device
    if (
        kept is not None
        and kept["lowering"] in dict(candidates)
        and kept["widest"] >= widest
        and not 0 < kept["images"] < models * images
    ):
        programs = _fitting(compiled, kept["lowering"], min(kept["width"], share))
        if programs is not None:
            return programs._replace(why="measured before: " + kept["why"])
    fastest, tried, stopped = _fastest(
        candidates, compiled, dataset, recipe.batch_size, models * images, config.share(dataset.num_examples)
    )
    if fastest is None:
        raise ValueError(
            f"not even one {recipe.model} at batch size {recipe.batch_size} fits on the device: lower recipe.batch_size"
        )
    why = "images/s by lowering and width: " + ", ".join(tried)
    chosen = {"width": fastest.width, "lowering": fastest.lowering, "widest": widest, "why": why}
    _write_choice(file, {**chosen, "images": models * images if stopped else 0.0})
    programs = _fitting(compiled, fastest.lowering, min(fastest.width, share))
    return (programs or fastest)._replace(why=why)


def _fastest(
    candidates: list[tuple[str, list[int]]],
    compiled: Callable[[str, int], Programs],
    dataset: Dataset,
    batch_size: int,
    images: float,
    share: float,
) -> tuple[Programs | None, list[str], bool]:
    """The fastest of the candidates, what was found of each, and whether some were left out.

    They are left out once all `images` of a device's training take no longer at the best speed than trying one more does.
    """
    speed, fastest, tried = 0.0, None, []  # images a second
    for lowering, widths in candidates:
        before = 0.0
        for width in widths:
            began = time.perf_counter()
            candidate = _fitting(compiled, lowering, width)
            if candidate is None:
                tried.append(f"{lowering} {width} does not fit")
                if width < widths[-1]:
                    break
                continue
            step = seconds_per_step(candidate, dataset, share)
            now = batch_size * candidate.models / step
            tried.append(f"{lowering} {width}: {now:,.0f}")
            if fastest is None or now > speed:
                speed, fastest = now, candidate
            last = (lowering, width) == (candidates[-1][0], widths[-1])
            if not last and images / speed < time.perf_counter() - began:
                return fastest, [*tried, "no other, as all is trained sooner than one is compiled"], True
            if now < WORTHWHILE * before or (step > LONG_STEP and width < widths[-1]):
                break
            before = now
    return fastest, tried, False


def seconds_per_step(programs: Programs, dataset: Dataset, share: float = 0.5) -> float:
    """Time of one training step of a device's stacks, over as many steps as take half a second, or as a call takes.

    Models hold a `share` of the examples: in private training a step takes the longer the more there are.
    """
    device = this_device()
    keys = model_keys(0, range(programs.width))
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep = jnp.tile(jnp.arange(len(y)) < share * len(y), (programs.width, 1))
    states = [programs.init(keys, x[:1]) for _ in range(programs.workers)]
    count = 1

    def run(state: Any) -> tuple[Any, int]:
        with jax.default_device(device):
            state, taken = train_steps(programs, state, keys, 0, count, x, y, keep)
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


def _candidates(
    learner: Learner, dataset: Dataset, execution: Execution, share: int
) -> list[tuple[str, list[int]]]:
    """Lowerings worth measuring for `share` models, each with the widths that are: one lowering where nothing convolves.

    On CPU: Winograd's in float32 alone, as bfloat16 would round its sums, and XLA's own convolution in bfloat16 alone. It
    never won in float32 (experiments/benchmarks/README.md), and took a half to a fifth of the time of patches where the
    processor multiplies bfloat16 (Intel's AMX; 74 against 169 ms a step of CNN, 234 against 1,253 of WRN-16-1, batch 64).

    On accelerators: XLA's own convolution, of one model, or one for each of a few models. Winograd's tiles and patches
    pass through memory with many times its bytes (experiments/benchmarks/gpu_programs.py), libraries are slow at groups,
    and each candidate costs half a minute of compilation. Models without convolutions are the faster the more there are
    (142 million images/s of 256, 2 million of one on an H200), so their widths start with the widest.
    """
    widest = 1 << (share - 1).bit_length()  # a stack is filled up to its width with copies
    grown = [GROWTH**i for i in range(widest.bit_length()) if GROWTH**i <= widest]
    widths = [execution.width] if execution.width else grown
    if execution.lowering != "auto":
        return [(execution.lowering, widths)]
    if learner.recipe.privacy and learner.platform == "cpu":
        # Single examples' gradients fill the caches: no wider stack was faster, nor another convolution.
        return [("patches", [execution.width or 1])]
    if all(leaf.ndim <= 2 for leaf in jax.tree.leaves(variable_shapes(learner, dataset.x)["params"])):
        if learner.platform != "cpu" and not execution.width:
            widths = [widest >> shift for shift in range(0, widest.bit_length(), 2)]
        return [("patches", widths)]
    if learner.platform == "cpu":
        in_float32 = learner.recipe.precision == "float32"
        lowerings = ("mixed", "winograd", "patches") if in_float32 else ("patches", "xla")
        return [(lowering, widths) for lowering in lowerings]
    if learner.recipe.privacy:
        # A microbatch fills the device as a stack does; a convolution for each model would be one for each example.
        return [("xla", [execution.width or 1])]
    several = execution.width or min(SEVERAL, widest)
    one = [("xla", [1])] if execution.width <= 1 else []
    return [*one, ("per_model", [several])] if several > 1 else one


def _fitting(compiled: Callable[[str, int], Programs], lowering: str, width: int) -> Programs | None:
    """The programs, with as many workers as there is memory for; None where there is too little for one."""
    try:
        programs = compiled(lowering, width)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    if programs.memory is None:
        return programs
    each = programs.memory // programs.workers
    workers = min(programs.workers, int(MEMORY_SHARE * device_memory()) // max(each, 1))
    return programs._replace(workers=workers, memory=workers * each) if workers else None


# --- What earlier runs left -------------------------------------------------------------------------------------------


def _cache_file(learner: Learner, dataset: Dataset, execution: Execution) -> Path:
    """A file for everything that the fastest width may depend on: all of the recipe but what costs no step anything."""
    fields = as_dict(learner.recipe).items()
    cost = {name: value for name, value in fields if name not in COSTLESS} | {"ema": learner.recipe.ema > 0}
    devices = devices_of(execution.devices)
    stacks = stacks_at_a_time(learner.platform, len(devices))
    device = (devices[0].device_kind, len(devices), stacks, jax.__version__)
    shape = (dataset.x.shape, dataset.x.dtype.str)
    named = repr((learner.module, cost, device, shape, execution, LOWERINGS))
    return cache_directory() / "calibration" / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.json"


def _read_choice(file: Path) -> dict[str, Any] | None:
    """What was chosen before; None where there is nothing, or anything else than what `_write_choice` writes."""
    types = {"width": int, "lowering": str, "widest": int, "why": str, "images": float}
    try:
        choice = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(choice, dict) or any(
        type(choice.get(name)) is not kind for name, kind in types.items()
    ):
        return None
    return choice if min(choice["width"], choice["widest"]) > 0 else None


def _write_choice(file: Path, choice: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(choice).encode())
    except (OSError, RunError):
        return  # measured again next time
