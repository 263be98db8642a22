"""Running: which models next, in stacks of what width, on what device; then every attack on what they left behind."""

import datetime
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lira import attacks
from lira.augment import Queries
from lira.config import Config, Execution
from lira.data import Dataset
from lira.models import build_model, lowering
from lira.store import DIVERGED, Run, RunError
from lira.training import Recipe, evaluated, init_model, model_key, query, steps_per_epoch, train_epoch

__all__ = ["ATTACKS", "DivergedWarning", "Plan", "plan", "score", "train"]

ATTACKS: dict[str, Callable[..., np.ndarray]] = {
    "lira_online": attacks.lira_online,
    "lira_online_fixed": attacks.lira_online_fixed,
    "lira_offline": attacks.lira_offline,
    "lira_offline_fixed": attacks.lira_offline_fixed,
    "global_threshold": attacks.global_threshold,
}
# Stacks of plain matrix products: measured on 2 CPU cores, where 16 models' weights and activations stay in cache.
CPU_WIDTH = 16
ACCELERATOR_WIDTH = 64


class DivergedWarning(UserWarning):
    """Models whose loss or confidences stopped being finite; their pairs are left out of the attacks."""


class _Programs(NamedTuple):
    """The compiled programs of a stack of `width` models."""

    width: int
    lowering: str
    init: Callable[..., Any]
    epoch: Callable[..., Any]
    sweep: Callable[..., Any]
    memory: int | None  # bytes that the epoch's program holds on the device, as the compiler reports


@dataclass(frozen=True)
class Plan:
    """What completing a run costs, before anything is spent."""

    models: int
    of: int
    images: int
    seconds: float
    bytes_on_disk: int
    bytes_on_device: int | None
    width: int
    lowering: str
    device: str

    def __str__(self) -> str:
        """One line for a terminal."""
        memory = "unknown" if self.bytes_on_device is None else _bytes(self.bytes_on_device)
        return (
            f"{self.models} of {self.of} models to train, {self.images:,} images, about {_duration(self.seconds)} "
            f"on {self.device} ({self.width} side by side, convolutions by {self.lowering}); "
            f"{memory} on the device, {_bytes(self.bytes_on_disk)} on disk"
        )


def plan(config: Config, dataset: Dataset, run: Run | None = None) -> Plan:
    """Estimate the cost of `config`, or of what `run` still lacks, by timing a few steps of a real stack."""
    recipe, queries = config.recipe, config.queries
    recipe.check(dataset.num_examples, dataset.x.shape[1:])
    queries.check(dataset.x.shape[1:])
    missing = np.arange(config.num_models) if run is None else np.flatnonzero(run.done == 0)
    steps = steps_per_epoch(dataset.num_examples, recipe.batch_size) * recipe.epochs
    sides = dataset.num_examples + (0 if dataset.y_test is None else len(dataset.y_test))
    row = sides * len(queries.views) * 4 + dataset.num_examples
    seconds, programs = 0.0, None
    if len(missing):
        programs = _choose(recipe, queries, config.execution, dataset, len(missing))
        per_step = _seconds_per_step(programs, dataset, recipe.batch_size)
        stacks = -(-len(missing) // programs.width)
        # A query costs a forward pass, a third of a training step's work.
        asked = sides * len(queries.views) / recipe.batch_size / 3
        seconds = stacks * per_step * (steps + asked)
    return Plan(
        models=len(missing),
        of=config.num_models,
        images=len(missing) * steps * recipe.batch_size,
        seconds=seconds,
        bytes_on_disk=config.num_models * (row + 4 * dataset.num_examples * len(ATTACKS)),
        bytes_on_device=programs.memory if programs else 0,
        width=programs.width if programs else 0,
        lowering=programs.lowering if programs else "-",
        device=_device_name(),
    )


def train(run: Run, dataset: Dataset, *, show_progress: bool = True) -> None:
    """Train the run's missing models, stack by stack, and store what they answer. Interrupt it at any point.

    Args:
        run: the run; models that it holds already are not touched.
        dataset: its data.
        show_progress: draw a bar with models done, images a second and time left.

    Raises:
        RunError: the data is not the run's, or another process is writing the run.

    Warns:
        DivergedWarning: naming the models that stopped being finite.
    """
    Run.open(run.path, dataset=dataset)
    with run.lock():
        missing = np.flatnonzero(run.done == 0)
        if not len(missing):
            return
        began = time.time()
        programs = _choose(run.config.recipe, run.config.queries, run.config.execution, dataset, len(missing))
        session = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": _device_name(),
            "width": programs.width,
            "lowering": programs.lowering,
        }
        finished = 0
        try:
            with _Bar(run, len(missing), show_progress) as bar:
                for start in range(0, len(missing), programs.width):
                    stack = missing[start : start + programs.width]
                    _train_stack(run, dataset, programs, stack, bar)
                    finished += len(stack)
        finally:
            run.add_session({**session, "models": finished, "seconds": round(time.time() - began, 2)})
    diverged = np.flatnonzero(run.done == DIVERGED)
    if len(diverged):
        warnings.warn(
            f"{len(diverged)} of {run.config.num_models} models diverged and are left out of the attacks with their "
            f"mates: {', '.join(map(str, diverged))}; a lower learning rate would help",
            DivergedWarning,
            stacklevel=2,
        )


def score(run: Run) -> dict[str, np.ndarray]:
    """Every attack on every usable model of the run, computed where the stored scores are absent or out of date.

    Returns:
        Scores `[m, N]` by attack. Attacks that need more models than there are are left out, with a warning.

    Raises:
        RunError: fewer than four models are usable.
    """
    pairs = len(run.models) // 2
    if pairs < 2:
        raise RunError(
            f"{run.path}: has {pairs} complete pairs of models, and the attacks need two: train it first"
        )
    scores = {}
    for name, attack in ATTACKS.items():
        stored = run.scores(name)
        if stored is None:
            # Without the target's pair one model a side is left of two pairs: no variance of one's own.
            if pairs < 3 and name in ("lira_online", "lira_offline"):
                warnings.warn(
                    f"{name} needs three complete pairs of models, and the run has {pairs}", stacklevel=2
                )
                continue
            stored = attack(run.phi, run.keep)
            with run.lock():
                run.write_scores(name, stored)
        scores[name] = stored
    return scores


# --- One stack ------------------------------------------------------------------------------------------------------


def _train_stack(run: Run, dataset: Dataset, programs: _Programs, stack: np.ndarray, bar: "_Bar") -> None:
    """Train, query and write the models `stack`; a last stack that is short is filled up with copies."""
    recipe = run.config.recipe
    indices = np.resize(stack, programs.width)
    keep = np.asarray(run.memberships(stack))[np.arange(programs.width) % len(stack)]
    x, y, keep_device = jnp.asarray(dataset.x), jnp.asarray(dataset.y), jnp.asarray(keep)
    steps = steps_per_epoch(dataset.num_examples, recipe.batch_size)
    state = programs.init(indices, x[:1])
    finite = np.ones(programs.width, bool)
    for epoch in range(recipe.epochs):
        state, losses = programs.epoch(state, indices, epoch, steps, x, y, keep_device)
        finite &= np.isfinite(np.asarray(losses))
        bar.advance(len(stack) / recipe.epochs, len(stack) * steps * recipe.batch_size)
    phi, correct = (np.asarray(a) for a in programs.sweep(state, x, y))
    arrays = {
        "phi": phi,
        "accuracy_in": _share(correct, keep),
        "accuracy_out": _share(correct, ~keep),
        "accuracy_test": np.full(programs.width, np.nan, np.float32),
    }
    if dataset.x_test is not None:
        phi_test, correct = (
            np.asarray(a)
            for a in programs.sweep(state, jnp.asarray(dataset.x_test), jnp.asarray(dataset.y_test))
        )
        arrays |= {"phi_test": phi_test, "accuracy_test": _share(correct, np.ones_like(correct))}
        finite &= np.isfinite(phi_test).all(axis=(1, 2))
    if run.config.save_params:
        arrays["params"] = np.asarray(
            jax.vmap(lambda s: ravel_pytree(evaluated(recipe, s))[0].astype(jnp.float32))(state)
        )
    finite &= np.isfinite(phi).all(axis=(1, 2))
    for position, model in enumerate(stack):
        row = {name: array[position] for name, array in arrays.items()}
        run.write_model(int(model), row, diverged=not finite[position])


def _share(correct: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Accuracy of each model over the examples `among`, float32 `[m]`; NaN over none."""
    count = among.sum(axis=1)
    return ((correct & among).sum(axis=1) / np.where(count, count, np.nan)).astype(np.float32)


def _choose(
    recipe: Recipe, queries: Queries, execution: Execution, dataset: Dataset, models: int
) -> _Programs:
    """Compile the stack's programs at the width and lowering that are pinned, or that suit the device and model."""
    module = build_model(recipe.model, dataset.num_classes)
    shapes = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    convolves = any(leaf.ndim > 2 for leaf in jax.tree.leaves(shapes.params))
    on_cpu = jax.default_backend() == "cpu"
    # XLA's CPU convolution is forty times slower inside a loop, and side by side it is a grouped one.
    how = execution.lowering if execution.lowering != "auto" else "patches" if on_cpu else "xla"
    width = execution.width or ((1 if convolves else CPU_WIDTH) if on_cpu else ACCELERATOR_WIDTH)
    width = min(width, models)
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    while True:
        programs = _compile(module, recipe, queries, how, width, dataset)
        fits = limit is None or programs.memory is None or programs.memory < 0.8 * limit
        if execution.width or width == 1 or fits:
            return programs
        width //= 2


def _compile(
    module: nn.Module, recipe: Recipe, queries: Queries, how: str, width: int, dataset: Dataset
) -> _Programs:
    key = (module, recipe, queries, how, width, dataset.fingerprint)
    if key not in _compiled:
        _compiled.clear()  # one run at a time: the device's memory is better used than by old programs
        _compiled[key] = _build(module, recipe, queries, how, width, dataset)
    return _compiled[key]


_compiled: dict[Any, _Programs] = {}


def _build(
    module: nn.Module, recipe: Recipe, queries: Queries, how: str, width: int, dataset: Dataset
) -> _Programs:
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
    return _Programs(width, how, stacked_init, compiled, jax.jit(jax.vmap(sweep, (0, None, None))), memory)


def _seconds_per_step(programs: _Programs, dataset: Dataset, batch_size: int) -> float:
    """Time of one training step of a stack, over as many steps as take half a second or make a whole epoch."""
    indices = jnp.zeros(programs.width, int)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep = jnp.ones((programs.width, len(y)), bool)
    state = programs.init(indices, x[:1])
    whole, steps = steps_per_epoch(len(y), batch_size), 1
    while True:
        began = time.perf_counter()
        state, losses = programs.epoch(state, indices, 0, steps, x, y, keep)
        losses.block_until_ready()
        seconds = time.perf_counter() - began
        if seconds > 0.5 or steps == whole:
            return seconds / steps
        steps = min(whole, max(2 * steps, int(0.5 * steps / seconds)))


# --- Showing --------------------------------------------------------------------------------------------------------


class _Bar:
    """A progress bar with models done, images a second and time left."""

    def __init__(self, run: Run, missing: int, show: bool) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("models, {task.fields[rate]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not show,
        )
        done = run.config.num_models - missing
        self._task = self._progress.add_task("", total=run.config.num_models, completed=done, rate="-")
        self._images, self._began = 0, time.perf_counter()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, models: float, images: int) -> None:
        """Count one epoch of a stack."""
        self._images += images
        rate = f"{self._images / (time.perf_counter() - self._began):,.0f}"
        self._progress.update(self._task, advance=models, rate=rate)


def _device_name() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
