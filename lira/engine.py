"""Running: which models next, in stacks of what width, on what device; then every attack on what they left behind."""

import dataclasses
import datetime
import math
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock, local
from typing import Any, NamedTuple, Protocol

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

from lira.attacks import SignalArray
from lira.config import Config
from lira.data import Dataset
from lira.stack import Programs, programs_for, seconds_per_step
from lira.store import DIVERGED, Run, RunError
from lira.suite import ATTACKS, Pool, attack_pool
from lira.trained import check_averaging, check_trained
from lira.training import SIGNALS, answers_by_average, steps_per_epoch

__all__ = [
    "Data",
    "DivergedWarning",
    "FirstModelsWarning",
    "Learn",
    "Learned",
    "Plan",
    "accuracy_over",
    "duration",
    "fill",
    "plan",
    "pool_of",
    "score",
    "train",
]

# Patches along each axis of an image whose means are its features.
PATCHES = 8
# Signals of at most so many bytes are read into memory once; larger ones in blocks, by each attack anew.
HELD = 1 << 29


class Data(NamedTuple):
    """A data set's arrays on the device."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array | None
    y_test: jax.Array | None


class Learned(NamedTuple):
    """A stack of the programs' width; a short one is filled up with copies, so that no program is compiled for it."""

    variables: Any  # that the models answer with
    finite: np.ndarray  # bool [width], which models stayed so
    raw: Any = None  # the variables as they were trained, where the models answer with an average of them
    loss: np.ndarray | None = None  # float [width], mean training loss of the last epoch


class Learn(Protocol):
    """Make the models `stack`, rows of a run, and tell `advance` the models and images done.

    None if `stop` was set meanwhile.
    """

    def __call__(
        self, stack: np.ndarray, data: Data, advance: Callable[[float, int], None], stop: Event, /
    ) -> Learned | None: ...


class DivergedWarning(UserWarning):
    """Models whose loss or confidences stopped being finite; their pairs are left out of the attacks."""


class FirstModelsWarning(UserWarning):
    """The first models of a run are not what they should be."""


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
    warning: str = ""

    def __str__(self) -> str:
        """Two lines for a terminal."""
        memory = "unknown" if self.bytes_on_device is None else _bytes(self.bytes_on_device)
        return (
            f"{self.models} of {self.of} models to train, {self.images:,} images, about {duration(self.seconds)} "
            f"on {self.device} ({self.workers} x {self.width} side by side, convolutions by {self.lowering}); "
            f"{memory} on the device, {_bytes(self.bytes_on_disk)} on disk"
            + (f"\n{self.why}" if self.why else "")
            + (f"\nwarning: {self.warning}" if self.warning else "")
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
    averaging = check_averaging(recipe, steps)
    seconds, programs = 0.0, None
    if len(missing):
        programs = programs_for(recipe, queries, config.execution, dataset, len(missing), config.signals)
        per_step = seconds_per_step(programs, dataset)
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
        warning=averaging.sentence if averaging and averaging.status != "ok" else "",
    )


def train(run: Run, dataset: Dataset, *, verb: str = "training", show_progress: bool = True) -> None:
    """Train the run's missing models, stack by stack, and store what they answer. Interrupt it at any point.

    Args:
        run: the run; models that it holds already are not touched.
        dataset: its data.
        verb: what the progress bar says.
        show_progress: draw a bar with models done, images a second and time left.

    Raises:
        RunError: the data is not the run's, or another process is writing the run.

    Warns:
        DivergedWarning: naming the models that stopped being finite.
    """

    def prepare(missing: int) -> tuple[Programs, Learn]:
        config = run.config
        programs = programs_for(
            config.recipe, config.queries, config.execution, dataset, missing, config.signals
        )
        return programs, partial(_train_stack, run, programs)

    if not fill(run, dataset, prepare, inspect=_inspect, verb=verb, show_progress=show_progress):
        return
    diverged = np.flatnonzero(run.done == DIVERGED)
    if len(diverged):
        warnings.warn(
            f"{len(diverged)} of {run.config.num_models} models diverged and are left out of the attacks with their "
            f"mates: {', '.join(map(str, diverged))}; a lower learning rate would help",
            DivergedWarning,
            stacklevel=2,
        )


def fill(
    run: Run,
    dataset: Dataset,
    prepare: Callable[[int], tuple[Programs, Learn]],
    *,
    inspect: Callable[[Run, np.ndarray], None] | None = None,
    among: np.ndarray | None = None,
    verb: str = "training",
    show_progress: bool = True,
) -> int:
    """Make the run's missing models, stack by stack, and store what they answer. Interrupt it at any point.

    Args:
        run: the run; models that it holds already are not touched.
        dataset: its data.
        prepare: called with the number of missing models, if any are: the programs of their stacks, and how a stack
            learns.
        inspect: called once with the run and the indices of the first models that are stored.
        among: int, the models in question; all of the run by default.
        verb: what the progress bar says.
        show_progress: draw a bar with models done, images a second and time left.

    Returns:
        How many models were made.

    Raises:
        RunError: the data is not the run's, or another process is writing the run.
    """
    Run.open(run.path, dataset=dataset)
    with run.lock():
        among = np.arange(run.config.num_models) if among is None else among
        missing = among[run.done[among] == 0]
        if not len(missing):
            return 0
        run.require_same_models(dataset)
        began, clock = time.time(), _Clock()
        programs, learn = prepare(len(missing))
        session = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": _device_name(),
            "width": programs.width,
            "workers": programs.workers,
            "lowering": programs.lowering,
        }
        try:
            with _Bar(verb, len(among), len(among) - len(missing), show_progress) as bar:
                _fill_stacks(run, dataset, programs, learn, missing, inspect, bar, clock)
        finally:
            session["models"] = int((run.done[missing] > 0).sum())
            session["seconds"] = round(time.time() - began, 2)
            # Without compilation, queries and writing: what one method costs beside another.
            session["learning_seconds"] = round(clock.seconds / programs.workers, 4)
            run.add_session(session)
    return len(missing)


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
    pool, scores = None, {}
    for name, attack in ATTACKS.items():
        stored = run.scores(name)
        if stored is None:
            pool = pool or _held(pool_of(run, dataset))
            computed = attack_pool(pool, {name: attack})
            if name not in computed:
                continue
            stored = computed[name]
            with run.lock():
                run.write_scores(name, stored)
        scores[name] = stored
    return scores


def pool_of(run: Run, dataset: Dataset | None = None) -> Pool:
    """The run's usable models as the attacks see them; arrays stay on disk, and features undone, until they are read."""
    features = population_features = None
    if dataset is not None and dataset.x_test is not None and dataset.y_test is not None:
        features = _Features(dataset.x, dataset.y, dataset.num_classes)
        population_features = _Features(dataset.x_test, dataset.y_test, dataset.num_classes)
    return Pool(
        {name: run.signal(name) for name in ("phi", *SIGNALS) if run.holds(name)},
        run.keep,
        population=run.signal("phi_test") if run.holds("phi_test") else None,
        features=features,
        population_features=population_features,
    )


def _held(pool: Pool) -> Pool:
    """The pool with what is not too large read into memory, once for all attacks."""

    def read(signal: SignalArray) -> SignalArray:
        return np.asarray(signal) if 4 * math.prod(signal.shape) <= HELD else signal

    signals = {name: read(signal) for name, signal in pool.signals.items()}
    population = None if pool.population is None else read(pool.population)
    return dataclasses.replace(pool, signals=signals, population=population)


@dataclass(frozen=True, eq=False)
class _Features:
    """What is public of examples, see `_features`; computed when it is read, which few attacks do."""

    x: np.ndarray
    y: np.ndarray
    num_classes: int

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The features."""
        return _features(self.x, self.y, self.num_classes).astype(dtype or np.float32, copy=False)


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


def _fill_stacks(
    run: Run,
    dataset: Dataset,
    programs: Programs,
    learn: Learn,
    missing: np.ndarray,
    inspect: Callable[[Run, np.ndarray], None] | None,
    bar: "_Bar",
    clock: "_Clock",
) -> None:
    """Make and store the models `missing`; each worker takes the next stack when it is done with one.

    A stack's arrays are written while the next one learns. After an error, or an interrupt, every worker stops at the
    end of its epoch.
    """
    # Once, in bytes, for all stacks.
    data = Data(*jax.device_put((dataset.x, dataset.y, dataset.x_test, dataset.y_test)))
    stacks = iter(
        [missing[start : start + programs.width] for start in range(0, len(missing), programs.width)]
    )
    stop = Event()
    inspected = Event()

    def write(stack: np.ndarray, arrays: dict[str, np.ndarray], finite: np.ndarray) -> None:
        _write_stack(run, stack, arrays, finite)
        sound = stack[finite[: len(stack)]]
        if inspect and len(sound) and not inspected.is_set():
            inspected.set()
            inspect(run, sound)

    def work() -> None:
        written: Future[None] | None = None
        try:
            for stack in stacks:  # one iterator for all workers
                with clock:
                    learned = None if stop.is_set() else learn(stack, data, bar.advance, stop)
                    if learned:
                        jax.block_until_ready(learned.variables)
                answered = learned and _answers(run, data, programs, stack, learned)
                if written:
                    written.result()
                written = writer.submit(write, stack, *answered) if answered else None
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


def _inspect(run: Run, models: np.ndarray) -> None:
    """Warn of what is wrong with the first models before the others are trained.

    Warns:
        FirstModelsWarning: a line for each check of theirs that does not pass.
    """
    for check in check_trained(run, models):
        if check.status != "ok":
            warnings.warn(
                f"after the first {len(models)} models: {check.sentence}", FirstModelsWarning, stacklevel=2
            )


def _train_stack(
    run: Run,
    programs: Programs,
    stack: np.ndarray,
    data: Data,
    advance: Callable[[float, int], None],
    stop: Event,
) -> Learned | None:
    """Train the models `stack` from scratch."""
    recipe = run.config.recipe
    indices = jnp.asarray(np.resize(stack, programs.width))
    keep = jnp.asarray(run.memberships(np.resize(stack, programs.width)))
    state = programs.init(indices, data.x[:1])
    losses = []
    for first in range(0, recipe.epochs, programs.epochs):
        if stop.is_set():
            return None
        state, loss = programs.train(state, indices, first, programs.steps, data.x, data.y, keep)
        losses.append(loss)
        # One call stays in flight, so that the device need not wait for the host.
        losses[max(len(losses) - 2, 0)].block_until_ready()
        share = programs.epochs / recipe.epochs
        advance(len(stack) * share, len(stack) * programs.steps * recipe.batch_size)
    losses = np.concatenate(losses, axis=1)
    finite = np.asarray(np.isfinite(losses).all(axis=1))
    raw = None
    if answers_by_average(recipe, run.config.queries):
        raw = {"params": state.params, **state.statistics}
    return Learned(
        programs.evaluate(state, indices, data.x, keep), finite, raw, losses[:, -1].astype(np.float32)
    )


def _answers(
    run: Run, data: Data, programs: Programs, stack: np.ndarray, learned: Learned
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Query a stack of models: a row of each array a model, and which models stayed finite."""
    keep = run.memberships(np.resize(stack, programs.width))
    said, correct = jax.tree.map(np.asarray, programs.sweep(learned.variables, data.x, data.y))
    arrays = {
        **said,
        "accuracy_in": accuracy_over(correct, keep),
        "accuracy_out": accuracy_over(correct, ~keep),
        "loss_in": _mean_loss(said["phi"][:, :, 0], keep),
    }
    finite = learned.finite & np.isfinite(arrays["phi"]).all(axis=(1, 2))
    if run.holds("correct"):
        arrays["correct"] = correct
    if data.x_test is not None:
        said, correct = jax.tree.map(np.asarray, programs.sweep(learned.variables, data.x_test, data.y_test))
        arrays |= {"phi_test": said["phi"], "accuracy_test": accuracy_over(correct, np.ones_like(correct))}
        finite &= np.isfinite(said["phi"]).all(axis=(1, 2))
    if learned.loss is not None:
        arrays["loss_last_epoch"] = learned.loss
    if learned.raw is not None:
        correct = np.asarray(programs.clean(learned.raw, data.x, data.y)[1])
        arrays |= {
            "accuracy_raw_in": accuracy_over(correct, keep),
            "accuracy_raw_out": accuracy_over(correct, ~keep),
        }
        if data.x_test is not None:
            correct = np.asarray(programs.clean(learned.raw, data.x_test, data.y_test)[1])
            arrays["accuracy_raw_test"] = accuracy_over(correct, np.ones_like(correct))
    if run.config.save_params:
        flat = jax.vmap(lambda v: ravel_pytree(v)[0].astype(jnp.float32))(learned.variables)
        arrays["params"] = np.asarray(flat)
    # A run of an earlier version has no place for some of them.
    return {name: array for name, array in arrays.items() if run.holds(name)}, finite


def _write_stack(run: Run, stack: np.ndarray, arrays: dict[str, np.ndarray], finite: np.ndarray) -> None:
    for position, model in enumerate(stack):
        row = {name: array[position] for name, array in arrays.items()}
        run.write_model(int(model), row, diverged=not finite[position])


def _mean_loss(phi: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Mean cross-entropy of each model over the examples `among`, float32 `[m]`; NaN over none. `phi` is `[m, N]`."""
    count = among.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a diverged model's is NaN
        total = np.where(among, np.logaddexp(0, -phi.astype(np.float64)), 0).sum(axis=1)
    return (total / np.where(count, count, np.nan)).astype(np.float32)


def accuracy_over(correct: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Accuracy of each model over the examples `among`, float32 `[m]`; NaN over none."""
    count = among.sum(axis=1)
    return ((correct & among).sum(axis=1) / np.where(count, count, np.nan)).astype(np.float32)


# --- Showing --------------------------------------------------------------------------------------------------------


class _Bar:
    """A progress bar with models done, images a second and time left."""

    def __init__(self, verb: str, models: int, done: int, show: bool) -> None:
        self._progress = Progress(
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("models{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not show,
        )
        self._task = self._progress.add_task("", total=models, completed=done, rate="")
        self._images, self._began, self._lock = 0, time.perf_counter(), Lock()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, models: float, images: int) -> None:
        """Count what a stack has done: an epoch or, where images are not counted, all of it."""
        with self._lock:
            self._images += images
            rate = f", {self._images / (time.perf_counter() - self._began):,.0f} images/s" if images else ""
            # Epochs, fractions of a model, add up to a little less than whole ones.
            self._progress.update(self._task, advance=models * (1 + 1e-9), rate=rate)


class _Clock:
    """Seconds spent within it, summed over threads."""

    def __init__(self) -> None:
        self.seconds, self._lock, self._own = 0.0, Lock(), local()

    def __enter__(self) -> None:
        self._own.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - self._own.began


def _device_name() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
