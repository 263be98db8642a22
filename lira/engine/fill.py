"""Training: which models next, in stacks, and what they answer stored as soon as they are done."""

import contextlib
import datetime
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lira.data.dataset import Dataset
from lira.engine.answers import Data, Learned, answers_of
from lira.engine.calibrate import programs_for
from lira.engine.checkpoints import Begun, Checkpoints
from lira.engine.device import Device, device_name, devices_of, this_device
from lira.engine.programs import Programs
from lira.engine.progress import Bar, Clock, EpochLoss, Progress
from lira.engine.trained import LARGE, check_trained, unscaled
from lira.engine.workers import Make, Queue, work_through
from lira.learning.evaluation import answers_by_average
from lira.learning.learner import model_keys
from lira.learning.recipe import checkpoint_epochs
from lira.store.arrays import DIVERGED
from lira.store.files import require_writable
from lira.store.run import Run

__all__ = [
    "DivergedWarning",
    "FirstModelsWarning",
    "Learn",
    "fill",
    "train",
    "train_stack",
]

# How often a model is tried that diverges.
ATTEMPTS = 2
# What is told of models that are stored.
ACCURACIES = ("accuracy_in", "accuracy_out", "accuracy_test")


class Learn(Protocol):
    """Make the models of one stack: `stack` are their rows in the run, int `[m]`, `attempts` which of each this is, from 0.

    Call `advance(models, images, over)` whenever some are done, a part of a model as a fraction, with the last epoch whose
    losses are there, and return None if `stop` is set before all are.
    """

    def __call__(
        self,
        stack: np.ndarray,
        attempts: np.ndarray,
        data: Data,
        advance: Callable[[float, int, EpochLoss | None], None],
        stop: Event,
        /,
    ) -> Learned | None: ...


class DivergedWarning(UserWarning):
    """Models whose loss or confidences stopped being finite; they, and the mates of pairs, are left out of the attacks."""


class FirstModelsWarning(UserWarning):
    """The first models of a run are not what they should be."""


def train(
    run: Run,
    dataset: Dataset,
    *,
    among: np.ndarray | None = None,
    verb: str = "training",
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Train the run's missing models, stack by stack, and store what they answer. Interrupt it at any point.

    Any number of processes, on machines that share the directory, may train a run at the same time; a model that two of
    them train is stored by the first.

    Args:
        run: the run; models that it holds already are not touched.
        dataset: its data.
        among: int, the models in question, see `lira.engine.share`; all of the run by default.
        verb: what the progress bar says.
        show_progress: draw a bar with models done, images a second and time left.
        progress: called whenever epochs of a stack are over and when models are stored, see `Progress`; what it raises
            ends the training, which goes on at the next call.

    Raises:
        RunError: the data is not the run's, or it cannot be written.

    Warns:
        DivergedWarning: naming the models that stopped being finite.
        DeviceWarning: a device ran out of memory, or failed.
        CheckpointWarning: one cannot be written or gone on from.
    """
    among = np.arange(run.config.num_models) if among is None else among

    def prepare(missing: int, widest: int) -> tuple[Programs, Learn]:
        programs = programs_for(run.config, dataset, missing, widest, begun=begun)
        return programs, partial(train_stack, run, programs, checkpoints)

    with Checkpoints(run, run.config.execution.checkpoint_minutes) as checkpoints:
        begun = checkpoints.execution(among[run.done[among] == 0])
        made = fill(
            run,
            dataset,
            prepare,
            # Noise of another seed would tell that the first attempt diverged, and be accounted for twice.
            attempts=1 if run.config.recipe.privacy else ATTEMPTS,
            inspect=_inspect,
            among=among,
            checkpoints=checkpoints,
            verb=verb,
            show_progress=show_progress,
            progress=progress,
        )
    diverged = np.flatnonzero(run.done == DIVERGED)
    if made and len(diverged):
        mates = " with their mates" if run.config.membership.design == "pairs" else ""
        warnings.warn(
            f"{len(diverged)} of {run.config.num_models} models diverged{'' if run.config.recipe.privacy else ' twice'} and are left out of the attacks"
            f"{mates}: {', '.join(map(str, diverged))}; {_what_would_help(run, dataset)}",
            DivergedWarning,
            stacklevel=2,
        )


def _what_would_help(run: Run, dataset: Dataset) -> str:
    """Against divergence, for people."""
    rate = f"a lower recipe.learning_rate than {run.config.recipe.learning_rate:g} would help"
    largest = 0.0 if dataset.x.dtype == np.uint8 else max(-float(dataset.x.min()), float(dataset.x.max()))
    if largest <= LARGE:
        return rate
    return f"{unscaled(largest, dataset.name)}, or {rate}"


def fill(
    run: Run,
    dataset: Dataset,
    prepare: Callable[[int, int], tuple[Programs, Learn]],
    *,
    attempts: int = 1,
    inspect: Callable[[Run, np.ndarray], None] | None = None,
    among: np.ndarray | None = None,
    checkpoints: Checkpoints | None = None,
    verb: str = "training",
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> int:
    """Make the run's missing models, stack by stack, and store what they answer. Interrupt it at any point.

    Args:
        run: the run; models that it holds already are not touched.
        dataset: its data.
        prepare: called for each device, if models are missing, with their number and the widest stack that may be, 0 for
            any: the programs of their stacks, and how a stack learns.
        attempts: how often a model is tried that diverges.
        inspect: called once with the run and the indices of the first models that are stored.
        among: int, the models in question; all of the run by default. Other processes may be at others, or the same.
        checkpoints: where stacks are kept that can go on; those that are there come first.
        verb: what the progress bar says.
        show_progress: draw a bar with models done, images a second and time left.
        progress: called as by `train`.

    Returns:
        How many models were made and stored here.

    Raises:
        RunError: the data is not the run's, or it cannot be written.
    """
    Run.open(run.path, dataset=dataset)
    among = np.arange(run.config.num_models) if among is None else among
    missing = among[run.done[among] == 0]
    if not len(missing):
        return 0
    run.require_same_models(dataset)
    require_writable(run.path)
    began = time.time()
    devices = devices_of(run.config.execution.devices)[: len(missing)]
    with jax.default_device(devices[0]):
        first = prepare(len(missing), 0)
    programs, _ = first

    def prepare_once(widest: int) -> tuple[Programs, Learn]:
        return first if not widest and this_device() == devices[0] else prepare(len(missing), widest)

    counts = len(among), len(among) - len(missing)
    with (
        _session(run, programs, devices, began) as (written, clock),
        Bar(verb, *counts, show_progress, progress, run.config.recipe.epochs) as bar,
    ):
        begun = checkpoints.begun(missing, programs) if checkpoints else []
        stacks = _Stacks(
            run,
            dataset,
            Queue(
                missing,
                lambda stack: stack[run.arrays.read("done", stack) == 0],
                [stack for stack, _ in begun],
            ),
            Counter({m: a for each in begun for m, a in zip(*(part.tolist() for part in each), strict=True)}),
            attempts,
            inspect,
            checkpoints.tidy if checkpoints else lambda: None,
            bar,
            clock,
            written,
        )
        work_through(stacks.queue, devices, partial(_prepared, stacks, prepare_once))
    return len(written)


@contextlib.contextmanager
def _session(
    run: Run, programs: Programs, devices: Sequence[Device], began: float
) -> Iterator[tuple[list[int], Clock]]:
    """A session of the run, to be noted however it ends: the models written within, and a clock of their learning."""
    session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(devices),
        "width": programs.width,
        "workers": programs.workers,
        "lowering": programs.lowering,
    }
    written: list[int] = []
    clock = Clock()
    try:
        yield written, clock
    finally:
        session["models"] = len(written)
        session["seconds"] = round(time.time() - began, 2)
        # Without compilation, queries and writing: what one method costs beside another.
        session["learning_seconds"] = round(clock.seconds / (programs.workers * len(devices)), 4)
        run.add_session(session)


# --- Stacks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stacks:
    """What all stacks of one call of `fill` share. After an interrupt every worker stops at the end of its epoch."""

    run: Run
    dataset: Dataset
    queue: Queue  # first those that are begun, see `Checkpoints.begun`
    tried: Counter[int]  # models that diverged, and how often
    attempts: int
    inspect: Callable[[Run, np.ndarray], None] | None
    tidy: Callable[[], None]  # called when a stack is stored
    bar: Bar
    clock: Clock
    written: list[int]  # models that no other process was faster with
    inspected: Event = field(default_factory=Event)


def _prepared(
    stacks: _Stacks, prepare: Callable[[int], tuple[Programs, Learn]], widest: int
) -> tuple[int, int, Make]:
    """Of a device: width, workers, and what makes a stack there, see `work_through`."""
    programs, learn = prepare(widest)
    dataset = stacks.dataset
    # Once for each device, in bytes, for all stacks.
    data = Data(*jax.device_put((dataset.x, dataset.y, dataset.x_test, dataset.y_test), this_device()))
    return programs.width, programs.workers, partial(_make, stacks, programs, learn, data)


def _make(
    stacks: _Stacks, programs: Programs, learn: Learn, data: Data, stack: np.ndarray, stop: Event
) -> Callable[[], None] | None:
    """Make the models `stack`, int `[m]`; return what writes them, or None if `stop` was set before they were done."""
    shown, answered = 0.0, None

    def advance(models: float, images: int, over: EpochLoss | None) -> None:
        nonlocal shown
        shown += models
        stacks.bar.advance(models, images, stack, over)

    try:
        with stacks.clock:
            attempts = np.array([stacks.tried[m] for m in stack.tolist()])
            learned = learn(stack, attempts, data, advance, stop)
            if learned:
                jax.block_until_ready(learned.variables)
        answered = learned and answers_of(stacks.run, data, programs, stack, learned)
    finally:
        if answered is None:  # they are made anew
            stacks.bar.advance(-shown, 0)
    return answered and partial(_write, stacks, stack, *answered)


def _write(stacks: _Stacks, stack: np.ndarray, arrays: dict[str, np.ndarray], finite: np.ndarray) -> None:
    """Store a stack's models, but those that diverged and are to be tried again."""
    for position, model in enumerate(stack.tolist()):
        if not finite[position] and stacks.tried[model] + 1 < stacks.attempts:
            stacks.tried[model] += 1
            stacks.queue.hand_back(stack[position : position + 1])
            stacks.bar.advance(-1, 0)
            continue
        row = {name: array[position] for name, array in arrays.items()}
        if stacks.run.write_model(model, row, diverged=not finite[position], attempt=stacks.tried[model]):
            stacks.written.append(model)
    stacks.tidy()
    among = finite[: len(stack)]
    sides = {name.removeprefix("accuracy_"): arrays[name] for name in ACCURACIES if name in arrays}
    stacks.bar.stored(stack[among], {side: array[: len(stack)][among] for side, array in sides.items()})
    if stacks.inspect and among.any() and not stacks.inspected.is_set():
        stacks.inspected.set()
        stacks.inspect(stacks.run, stack[among])


def _inspect(run: Run, models: np.ndarray) -> None:
    """Warn of what is wrong with the first models before the others are trained.

    Warns:
        FirstModelsWarning: a line for each check of theirs that does not pass.
    """
    first = "model" if len(models) == 1 else f"{len(models)} models"
    for check in check_trained(run, models):
        if check.status != "ok":
            warnings.warn(f"after the first {first}: {check.sentence}", FirstModelsWarning, stacklevel=2)


def train_stack(
    run: Run,
    programs: Programs,
    checkpoints: Checkpoints,
    stack: np.ndarray,
    attempts: np.ndarray,
    data: Data,
    advance: Callable[[float, int, EpochLoss | None], None],
    stop: Event,
) -> Learned | None:
    """Train the models `stack`, each with the randomness of its attempt: from scratch, or from where they are kept.

    For a signal such as phi@0.25 a look is taken at them: what they would answer with if training ended there, averaged
    weights with the statistics that belong to them included. Training, its learning rates too, goes on as without it.
    """
    recipe = run.config.recipe
    at = checkpoint_epochs(run.config.signals, recipe.epochs)
    wide = (np.resize(each, programs.width) for each in (stack, attempts))
    keys = model_keys(recipe.seed, *wide)
    keep = jnp.asarray(run.memberships(np.resize(stack, programs.width)))
    with checkpoints.of(programs, stack, attempts) as kept:
        over, state, losses, looks = kept.restored(programs.init(keys, data.x[:1]), at)
        advance(len(stack) * over / recipe.epochs, 0, None)
        told = None
        for first in range(over, recipe.epochs, programs.epochs):
            if stop.is_set():
                kept.keep_at_last(Begun(first, state, losses, looks))
                return None
            kept.keep_if_due(Begun(first, state, losses, looks))
            state, loss = programs.train(state, keys, first, programs.steps, data.x, data.y, keep)
            losses.append(loss)
            # One call stays in flight, so that the device need not wait for the host.
            losses[max(len(losses) - 2, 0)].block_until_ready()
            share = programs.epochs / recipe.epochs
            advance(len(stack) * share, len(stack) * programs.steps * recipe.batch_size, told)
            told = EpochLoss(first + programs.epochs, loss)  # once the call is over
            if name := at.get(first + programs.epochs):
                # Copied, for the next call takes the state's memory; to the host, for models in training fill the device.
                looks[name] = jax.tree.map(np.array, programs.evaluate(state, keys, data.x, keep))
    losses = np.concatenate(losses, axis=1)
    advance(0, 0, told)
    finite = np.asarray(np.isfinite(losses).all(axis=1))
    raw = None
    if answers_by_average(recipe, run.config.queries):
        raw = {"params": state.params, **state.statistics}
    variables = programs.evaluate(state, keys, data.x, keep)
    canaries = None if state.canaries is None else np.asarray(state.canaries, np.float32)
    return Learned(variables, finite, raw, losses[:, -1].astype(np.float32), canaries, looks)
