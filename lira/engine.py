"""Running: which models next, in stacks of what width, on what device; then every attack on what they left behind."""

import datetime
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock

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

from lira.config import Config
from lira.data import Dataset
from lira.stack import Programs, programs_for, seconds_per_step
from lira.store import DIVERGED, Run, RunError
from lira.suite import ATTACKS, Pool, attack_pool
from lira.training import SIGNALS, evaluated, steps_per_epoch

__all__ = ["DivergedWarning", "Plan", "plan", "pool_of", "score", "train"]

# Patches along each axis of an image whose means are its features.
PATCHES = 8


class DivergedWarning(UserWarning):
    """Models whose loss or confidences stopped being finite; their pairs are left out of the attacks."""


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
    workers: int
    lowering: str
    why: str
    device: str

    def __str__(self) -> str:
        """Two lines for a terminal."""
        memory = "unknown" if self.bytes_on_device is None else _bytes(self.bytes_on_device)
        return (
            f"{self.models} of {self.of} models to train, {self.images:,} images, about {_duration(self.seconds)} "
            f"on {self.device} ({self.workers} x {self.width} side by side, convolutions by {self.lowering}); "
            f"{memory} on the device, {_bytes(self.bytes_on_disk)} on disk"
            + (f"\n{self.why}" if self.why else "")
        )


def plan(config: Config, dataset: Dataset, run: Run | None = None) -> Plan:
    """Estimate the cost of `config`, or of what `run` still lacks, by timing a few steps of a real stack."""
    recipe, queries = config.recipe, config.queries
    recipe.check(dataset.num_examples, dataset.x.shape[1:])
    queries.check(dataset.x.shape[1:])
    missing = np.arange(config.num_models) if run is None else np.flatnonzero(run.done == 0)
    steps = steps_per_epoch(dataset.num_examples, recipe.batch_size) * recipe.epochs
    sides = dataset.num_examples + (0 if dataset.y_test is None else len(dataset.y_test))
    values = sides + dataset.num_examples * sum(
        dataset.num_classes if name == "logits" else 1 for name in config.signals
    )
    row = values * len(queries.views) * 4 + dataset.num_examples
    seconds, programs = 0.0, None
    if len(missing):
        programs = programs_for(recipe, queries, config.execution, dataset, len(missing), config.signals)
        per_step = seconds_per_step(programs, dataset, recipe.batch_size)
        rounds = -(-len(missing) // programs.models)
        # A query costs a forward pass, a third of a training step's work.
        asked = sides * len(queries.views) / recipe.batch_size / 3
        seconds = rounds * per_step * (steps + asked)
    return Plan(
        models=len(missing),
        of=config.num_models,
        images=len(missing) * steps * recipe.batch_size,
        seconds=seconds,
        bytes_on_disk=config.num_models * (row + 4 * dataset.num_examples * len(ATTACKS)),
        bytes_on_device=programs.memory if programs else 0,
        width=programs.width if programs else 0,
        workers=programs.workers if programs else 0,
        lowering=programs.lowering if programs else "-",
        why=programs.why if programs else "",
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
        config = run.config
        programs = programs_for(
            config.recipe, config.queries, config.execution, dataset, len(missing), config.signals
        )
        session = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": _device_name(),
            "width": programs.width,
            "workers": programs.workers,
            "lowering": programs.lowering,
        }
        try:
            with _Bar(run, len(missing), show_progress) as bar:
                _train_stacks(run, dataset, programs, missing, bar)
        finally:
            finished = int((run.done[missing] > 0).sum())
            run.add_session({**session, "models": finished, "seconds": round(time.time() - began, 2)})
    diverged = np.flatnonzero(run.done == DIVERGED)
    if len(diverged):
        warnings.warn(
            f"{len(diverged)} of {run.config.num_models} models diverged and are left out of the attacks with their "
            f"mates: {', '.join(map(str, diverged))}; a lower learning rate would help",
            DivergedWarning,
            stacklevel=2,
        )


def score(run: Run, dataset: Dataset | None = None) -> dict[str, np.ndarray]:
    """Every attack on every usable model of the run, computed where the stored scores are absent or out of date.

    A target's whole pair is left out where the memberships are complementary pairs, as all trained here are; in
    imported pools of another design the target alone.

    Args:
        run: the run.
        dataset: its data, which `quantile_regression` reads; None goes without that attack.

    Returns:
        Scores `[m, N]` by attack. Attacks that need more models than there are are left out, with a warning; those
        that read what is not stored, silently (see `suite.missing_signals`).

    Raises:
        RunError: fewer than four trained models are usable.
    """
    pairs = len(run.models) // 2
    if pairs < 2 and not run.is_imported:
        raise RunError(
            f"{run.path}: has {pairs} complete pairs of models, and the attacks need two: train it first"
        )
    pool = pool_of(run, dataset)
    scores = {}
    for name, attack in ATTACKS.items():
        stored = run.scores(name)
        if stored is None:
            computed = attack_pool(pool, {name: attack})
            if name not in computed:
                continue
            stored = computed[name]
            with run.lock():
                run.write_scores(name, stored)
        scores[name] = stored
    return scores


def pool_of(run: Run, dataset: Dataset | None = None) -> Pool:
    """The run's usable models as the attacks see them; arrays stay on disk until they are read."""
    features = population_features = None
    if dataset is not None and dataset.x_test is not None and dataset.y_test is not None:
        features = _features(dataset.x, dataset.y, dataset.num_classes)
        population_features = _features(dataset.x_test, dataset.y_test, dataset.num_classes)
    return Pool(
        {name: run.signal(name) for name in ("phi", *SIGNALS) if run.holds(name)},
        run.keep,
        population=run.signal("phi_test") if run.holds("phi_test") else None,
        features=features,
        population_features=population_features,
    )


def _features(x: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    """What is public of examples, float32 `[N, F]`: their features, and their labels as one-hot columns.

    Of images the means of PATCHES x PATCHES patches, which is as fine as a regression on them can use.
    """
    if x.ndim == 4:
        for axis in (1, 2):
            edges = np.unique(np.linspace(0, x.shape[axis], PATCHES, endpoint=False, dtype=int))
            counts = np.diff(np.append(edges, x.shape[axis]))
            sums = np.add.reduceat(x, edges, axis=axis, dtype=np.float32)
            x = sums / counts.reshape([-1 if a == axis else 1 for a in range(4)])
    return np.concatenate([x.reshape(len(x), -1), np.eye(num_classes)[y]], axis=1, dtype=np.float32)


# --- Stacks ----------------------------------------------------------------------------------------------------------


def _train_stacks(run: Run, dataset: Dataset, programs: Programs, missing: np.ndarray, bar: "_Bar") -> None:
    """Train and store the models `missing`; each worker takes the next stack when it is done with one.

    A stack's arrays are written while the next one trains. After an error, or an interrupt, every worker stops at the
    end of its epoch.
    """
    # Once, in bytes, for all stacks.
    data = jax.device_put((dataset.x, dataset.y, dataset.x_test, dataset.y_test))
    stacks = iter(
        [missing[start : start + programs.width] for start in range(0, len(missing), programs.width)]
    )
    stop = Event()

    def work() -> None:
        written: Future[None] | None = None
        try:
            for stack in stacks:  # one iterator for all workers
                trained = _train_stack(run, data, programs, stack, bar, stop)
                if written:
                    written.result()
                written = None if trained is None else writer.submit(_write_stack, run, stack, *trained)
            if written:
                written.result()
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(programs.workers) as pool:
        workers = [pool.submit(work) for _ in range(programs.workers)]
        try:
            for worker in workers:
                worker.result()
        finally:
            stop.set()


def _train_stack(
    run: Run,
    data: tuple[jax.Array, ...],
    programs: Programs,
    stack: np.ndarray,
    bar: "_Bar",
    stop: Event,
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Train and query the models `stack`: a row of each array a model, and which models stayed finite.

    A last stack that is short is filled up with copies, so that no program is compiled for it alone. None once `stop`
    is set.
    """
    recipe = run.config.recipe
    x, y, x_test, y_test = data
    indices = jnp.asarray(np.resize(stack, programs.width))
    keep = run.memberships(stack)[np.arange(programs.width) % len(stack)]
    members = jnp.asarray(keep)
    steps = steps_per_epoch(len(y), recipe.batch_size)
    state = programs.init(indices, x[:1])
    losses = []
    for epoch in range(recipe.epochs):
        if stop.is_set():
            return None
        state, loss = programs.epoch(state, indices, epoch, steps, x, y, members)
        losses.append(loss)
        # One epoch stays in flight, so that the device need not wait for the host.
        losses[max(epoch - 1, 0)].block_until_ready()
        bar.advance(len(stack) / recipe.epochs, len(stack) * steps * recipe.batch_size)
    finite = np.all([np.isfinite(np.asarray(loss)) for loss in losses], axis=0)
    said, correct = jax.tree.map(np.asarray, programs.sweep(state, x, y))
    arrays = {
        **said,
        "accuracy_in": _share(correct, keep),
        "accuracy_out": _share(correct, ~keep),
        "accuracy_test": np.full(programs.width, np.nan, np.float32),
    }
    if x_test is not None:
        said, correct = jax.tree.map(np.asarray, programs.sweep(state, x_test, y_test))
        arrays |= {"phi_test": said["phi"], "accuracy_test": _share(correct, np.ones_like(correct))}
        finite &= np.isfinite(said["phi"]).all(axis=(1, 2))
    if run.config.save_params:
        arrays["params"] = np.asarray(
            jax.vmap(lambda s: ravel_pytree(evaluated(recipe, s))[0].astype(jnp.float32))(state)
        )
    finite &= np.isfinite(arrays["phi"]).all(axis=(1, 2))
    return arrays, finite


def _write_stack(run: Run, stack: np.ndarray, arrays: dict[str, np.ndarray], finite: np.ndarray) -> None:
    for position, model in enumerate(stack):
        row = {name: array[position] for name, array in arrays.items()}
        run.write_model(int(model), row, diverged=not finite[position])


def _share(correct: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Accuracy of each model over the examples `among`, float32 `[m]`; NaN over none."""
    count = among.sum(axis=1)
    return ((correct & among).sum(axis=1) / np.where(count, count, np.nan)).astype(np.float32)


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
        self._images, self._began, self._lock = 0, time.perf_counter(), Lock()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, models: float, images: int) -> None:
        """Count one epoch of a stack."""
        with self._lock:
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
