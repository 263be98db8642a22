"""Training: which models next, in stacks, and what they answer stored as soon as they are done."""

import datetime
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.data.dataset import Dataset
from lira.engine.calibrate import programs_for
from lira.engine.device import Device, device_name, devices_of, this_device
from lira.engine.programs import Programs
from lira.engine.progress import Bar, Clock
from lira.engine.trained import check_trained
from lira.engine.workers import Make, Queue, work_through
from lira.learning.evaluation import answers_by_average
from lira.learning.learner import model_keys
from lira.learning.recipe import checkpoint_epochs
from lira.store.arrays import DIVERGED
from lira.store.run import Run

__all__ = [
    "Data",
    "DivergedWarning",
    "FirstModelsWarning",
    "Learn",
    "Learned",
    "accuracy_over",
    "fill",
    "train",
    "train_stack",
]

# How often a model is tried that diverges.
ATTEMPTS = 2
# Features of no larger size are not why models diverge.
LARGE = 30.0


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
    # By signal, such as phi@0.25, the variables that the models would have answered with there; on the host.
    checkpoints: Mapping[str, Any] = MappingProxyType({})


class Learn(Protocol):
    """Make the models of one stack: `stack` are their rows in the run, int `[m]`, `attempts` which of each this is, from 0.

    Call `advance(models, images)` whenever some are done, a part of a model as a fraction, and return None if `stop` is
    set before all are.
    """

    def __call__(
        self,
        stack: np.ndarray,
        attempts: np.ndarray,
        data: Data,
        advance: Callable[[float, int], None],
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

    Raises:
        RunError: the data is not the run's, or it cannot be written.

    Warns:
        DivergedWarning: naming the models that stopped being finite.
        DeviceWarning: a device ran out of memory, or failed.
    """

    def prepare(missing: int, widest: int) -> tuple[Programs, Learn]:
        programs = programs_for(run.config, dataset, missing, widest)
        return programs, partial(train_stack, run, programs)

    made = fill(
        run,
        dataset,
        prepare,
        attempts=ATTEMPTS,
        inspect=_inspect,
        among=among,
        verb=verb,
        show_progress=show_progress,
    )
    diverged = np.flatnonzero(run.done == DIVERGED)
    if made and len(diverged):
        mates = " with their mates" if run.config.membership.design == "pairs" else ""
        warnings.warn(
            f"{len(diverged)} of {run.config.num_models} models diverged twice and are left out of the attacks"
            f"{mates}: {', '.join(map(str, diverged))}; {_what_would_help(run, dataset)}",
            DivergedWarning,
            stacklevel=2,
        )


def _what_would_help(run: Run, dataset: Dataset) -> str:
    """Against divergence, for people."""
    rate = f"a lower recipe.learning_rate than {run.config.recipe.learning_rate:g} would help"
    largest = 0.0 if dataset.is_image else float(np.abs(dataset.x).max())
    if largest <= LARGE:
        return rate
    return f"features reach {largest:.3g} in size: standardise them, or {rate}"


def fill(
    run: Run,
    dataset: Dataset,
    prepare: Callable[[int, int], tuple[Programs, Learn]],
    *,
    attempts: int = 1,
    inspect: Callable[[Run, np.ndarray], None] | None = None,
    among: np.ndarray | None = None,
    verb: str = "training",
    show_progress: bool = True,
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
        verb: what the progress bar says.
        show_progress: draw a bar with models done, images a second and time left.

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
    began, clock = time.time(), Clock()
    devices = devices_of(run.config.execution.devices)[: len(missing)]
    with jax.default_device(devices[0]):
        first = prepare(len(missing), 0)
    programs, _ = first

    def prepare_once(missing: int, widest: int) -> tuple[Programs, Learn]:
        return first if not widest and this_device() == devices[0] else prepare(missing, widest)

    session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(devices),
        "width": programs.width,
        "workers": programs.workers,
        "lowering": programs.lowering,
    }
    written: list[int] = []
    try:
        with Bar(verb, len(among), len(among) - len(missing), show_progress) as bar:
            _fill_stacks(run, dataset, devices, prepare_once, missing, attempts, inspect, bar, clock, written)
    finally:
        session["models"] = len(written)
        session["seconds"] = round(time.time() - began, 2)
        # Without compilation, queries and writing: what one method costs beside another.
        session["learning_seconds"] = round(clock.seconds / (programs.workers * len(devices)), 4)
        run.add_session(session)
    return len(written)


# --- Stacks ----------------------------------------------------------------------------------------------------------


def _fill_stacks(
    run: Run,
    dataset: Dataset,
    devices: Sequence[Device],
    prepare: Callable[[int, int], tuple[Programs, Learn]],
    missing: np.ndarray,
    attempts: int,
    inspect: Callable[[Run, np.ndarray], None] | None,
    bar: Bar,
    clock: Clock,
    written: list[int],
) -> None:
    """Make and store the models `missing`, noting in `written` those that no other process was faster with.

    After an interrupt every worker stops at the end of its epoch.
    """
    inspected, queue = Event(), Queue(missing, lambda stack: stack[run.arrays.read("done", stack) == 0])
    tried = Counter[int]()  # models that diverged, and how often

    def write(stack: np.ndarray, arrays: dict[str, np.ndarray], finite: np.ndarray) -> None:
        for position, model in enumerate(stack.tolist()):
            if not finite[position] and tried[model] + 1 < attempts:
                tried[model] += 1
                queue.hand_back(stack[position : position + 1])
                bar.advance(-1, 0)
                continue
            row = {name: array[position] for name, array in arrays.items()}
            if run.write_model(model, row, diverged=not finite[position], attempt=tried[model]):
                written.append(model)
        sound = stack[finite[: len(stack)]]
        if inspect and len(sound) and not inspected.is_set():
            inspected.set()
            inspect(run, sound)

    def prepared(widest: int) -> tuple[int, int, Make]:
        programs, learn = prepare(len(missing), widest)
        # Once for each device, in bytes, for all stacks.
        data = Data(*jax.device_put((dataset.x, dataset.y, dataset.x_test, dataset.y_test), this_device()))

        def make(stack: np.ndarray, stop: Event) -> Callable[[], None] | None:
            shown, answered = 0.0, None

            def advance(models: float, images: int) -> None:
                nonlocal shown
                shown += models
                bar.advance(models, images)

            try:
                with clock:
                    learned = learn(stack, np.array([tried[m] for m in stack.tolist()]), data, advance, stop)
                    if learned:
                        jax.block_until_ready(learned.variables)
                answered = learned and _answers(run, data, programs, stack, learned)
            finally:
                if answered is None:  # they are made anew
                    bar.advance(-shown, 0)
            return answered and partial(write, stack, *answered)

        return programs.width, programs.workers, make

    work_through(queue, devices, prepared)


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


def train_stack(
    run: Run,
    programs: Programs,
    stack: np.ndarray,
    attempts: np.ndarray,
    data: Data,
    advance: Callable[[float, int], None],
    stop: Event,
) -> Learned | None:
    """Train the models `stack` from scratch, each with the randomness of its attempt.

    A checkpoint is a look at them: what they would answer with if training ended there, averaged weights with the
    statistics that belong to them included. Training, its learning rates too, goes on as without it.
    """
    recipe = run.config.recipe
    at, checkpoints = checkpoint_epochs(run.config.signals, recipe.epochs), {}
    wide = (np.resize(each, programs.width) for each in (stack, attempts))
    keys = model_keys(recipe.seed, *wide)
    keep = jnp.asarray(run.memberships(np.resize(stack, programs.width)))
    state = programs.init(keys, data.x[:1])
    losses = []
    for first in range(0, recipe.epochs, programs.epochs):
        if stop.is_set():
            return None
        state, loss = programs.train(state, keys, first, programs.steps, data.x, data.y, keep)
        losses.append(loss)
        # One call stays in flight, so that the device need not wait for the host.
        losses[max(len(losses) - 2, 0)].block_until_ready()
        share = programs.epochs / recipe.epochs
        advance(len(stack) * share, len(stack) * programs.steps * recipe.batch_size)
        if name := at.get(first + programs.epochs):
            # Copied, for the next call takes the state's memory; to the host, for models in training fill the device.
            checkpoints[name] = jax.tree.map(np.array, programs.evaluate(state, keys, data.x, keep))
    losses = np.concatenate(losses, axis=1)
    finite = np.asarray(np.isfinite(losses).all(axis=1))
    raw = None
    if answers_by_average(recipe, run.config.queries):
        raw = {"params": state.params, **state.statistics}
    variables = programs.evaluate(state, keys, data.x, keep)
    return Learned(variables, finite, raw, losses[:, -1].astype(np.float32), checkpoints)


def _answers(
    run: Run, data: Data, programs: Programs, stack: np.ndarray, learned: Learned
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Query a stack of models: a row of each array a model, and which models stayed finite."""
    keep = run.memberships(np.resize(stack, programs.width))
    arrays: dict[str, np.ndarray] = {}

    def asked(sweep: Callable[..., Any], variables: Any, prefix: str) -> tuple[Any, np.ndarray, Any]:
        """Note the accuracies of some variables; what they answer about the pool, correct `[m, N]`, and about the test set."""
        answers, correct = jax.tree.map(np.asarray, sweep(variables, data.x, data.y))
        arrays[f"accuracy_{prefix}in"] = accuracy_over(correct, keep)
        arrays[f"accuracy_{prefix}out"] = accuracy_over(correct, ~keep)
        if data.x_test is None:
            return answers, correct, None
        tested, right = jax.tree.map(np.asarray, sweep(variables, data.x_test, data.y_test))
        arrays[f"accuracy_{prefix}test"] = accuracy_over(right, np.ones_like(right))
        return answers, correct, tested

    answers, correct, tested = asked(programs.sweep, learned.variables, "")
    arrays |= {**answers, "loss_in": _mean_loss(answers["phi"][:, :, 0], keep), "correct": correct}
    finite = learned.finite & np.isfinite(answers["phi"]).all(axis=(1, 2))
    if tested is not None:
        arrays["phi_test"] = tested["phi"]
        finite &= np.isfinite(tested["phi"]).all(axis=(1, 2))
    for name, variables in learned.checkpoints.items():
        arrays[name] = np.asarray(programs.sweep(variables, data.x, data.y)[0]["phi"])
        finite &= np.isfinite(arrays[name]).all(axis=(1, 2))
    if learned.loss is not None:
        arrays["loss_last_epoch"] = learned.loss
    if learned.raw is not None:
        asked(programs.clean, learned.raw, "raw_")
    if run.config.save_params:
        flat = jax.vmap(lambda v: ravel_pytree(v)[0].astype(jnp.float32))(learned.variables)
        arrays["params"] = np.asarray(flat)
    # A run of an earlier version has no array for some of them.
    return {name: array for name, array in arrays.items() if run.holds(name)}, finite


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
