"""Models that imitate one target: trained in stacks as all others are, by a loss that takes the target's logits too.

What a target answers is used here by design, so it is exempt from the rule that nothing used against a target may depend
on it. What must not depend on its membership is which examples the imitators are trained on: `membership.imitator_mask`.
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.data.dataset import Dataset
from lira.engine.answers import Data
from lira.engine.calibrate import programs_for
from lira.engine.checkpoints import Checkpoints
from lira.engine.device import devices_of, this_device
from lira.engine.fill import DivergedWarning, Learn, fill, train_stack
from lira.engine.programs import Programs, compile_imitation
from lira.engine.progress import Progress
from lira.engine.stacked import made_when_called
from lira.engine.sweep import sweep_program
from lira.learning.imitation import Imitation, pivots_of
from lira.learning.learner import Learner
from lira.learning.training import variable_shapes
from lira.numbers import as_array
from lira.signals import logit_scaled_confidence
from lira.store.arrays import DIVERGED
from lira.store.config import Config
from lira.store.errors import RunError
from lira.store.places import Place
from lira.store.run import Run

__all__ = ["SAME_PHI", "Teacher", "ask", "imitate_target", "outside_teacher", "teacher_of", "train_again"]

# Added to the recipe's seed: an imitator must not begin as its target did.
IMITATOR_SEED = 3
# Largest difference of phi at which a target that was trained again is taken for the same.
SAME_PHI = 0.1


class Teacher(NamedTuple):
    """What is imitated, and attacked."""

    logits: np.ndarray  # float32 [N, C], about the examples as they are
    phi: np.ndarray  # float32 [N, Q]
    variables: Any = None  # of the target, where training asks it about augmented images; else None


# --- The target ------------------------------------------------------------------------------------------------------


def teacher_of(run: Run, dataset: Dataset, target: int) -> Teacher:
    """A model of a run, as it answers.

    Its logits where the run stores them and training does not augment; else it is asked, from its saved parameters or
    trained again from its number.

    Raises:
        RunError: trained again, the target diverges.

    Warns:
        UserWarning: trained again, it is not quite the model that the run stores the answers of.
    """
    recipe, row = run.config.recipe, np.array([target])
    augments = recipe.flip or recipe.crop_pad > 0
    stored = np.asarray(run.signal("phi", row))[0]
    if run.holds("logits") and not augments:
        return Teacher(np.asarray(run.signal("logits", row))[0, :, 0], stored)
    learner = Learner.of(recipe, dataset)
    with jax.default_device(devices_of(run.config.execution.devices)[0]):
        variables = (
            _saved(run, learner, dataset, row) if run.config.save_params else train_again(run, dataset, row)
        )
        logits, phi = ask(run, learner, dataset, variables)
    away = float(np.abs(phi - stored).max())
    if away > SAME_PHI:
        warnings.warn(
            f"{run.path}: target {target}, trained again, answers with a phi that is up to {away:.2g} from the stored one: "
            f"that model is imitated and attacked; save_params = true keeps the very models",
            stacklevel=3,
        )
    else:
        phi = stored
    # On the host, for every device's workers ask it.
    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), variables) if augments else None
    return Teacher(logits[:, 0], phi, one)


def _saved(run: Run, learner: Learner, dataset: Dataset, row: np.ndarray) -> Any:
    """The variables of one model of a run that saved its parameters, a stack of one."""
    shapes = variable_shapes(learner, dataset.x)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    return jax.vmap(unravel)(jnp.asarray(np.asarray(run.signal("params", row))))


def train_again(run: Run, dataset: Dataset, row: np.ndarray) -> Any:
    """The variables of one model of a run, `row` int `[1]`, trained again in a stack as wide as the pool's; a stack of one.

    A model is a function of its number. Raises RunError where it diverges.
    """
    programs = programs_for(run.config, dataset, run.config.num_models)
    data = Data(*jax.device_put((dataset.x, dataset.y, dataset.x_test, dataset.y_test), this_device()))
    learned = train_stack(
        run, programs, Checkpoints(run, 0), row, run.attempts(row), data, lambda *_: None, Event()
    )
    if learned is None or not learned.finite[0]:
        raise RunError(f"{run.path}: target {row[0]}, trained again, diverges: take another target")
    return jax.tree.map(lambda leaf: leaf[:1], learned.variables)


def ask(run: Run, learner: Learner, dataset: Dataset, variables: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, Q, C]` and phi `[N, Q]` of a stack of one model, by the run's queries."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y))
    lowering = "patches" if learner.platform == "cpu" else "xla"
    sweep = sweep_program(learner, lowering, shapes, x, y, None, run.config.queries, ("logits",))
    answers, _ = sweep(variables, jnp.asarray(dataset.x), jnp.asarray(dataset.y))
    return np.asarray(answers["logits"])[0], np.asarray(answers["phi"])[0]


def outside_teacher(run: Run, dataset: Dataset, logits: np.ndarray) -> Teacher:
    """A model that anyone trained, from its logits `[N, C]`, or `[N, Q, C]` about the run's Q queries, the clean one first.

    Raises:
        ValueError: the recipe augments, so that these logits are not about what imitators are trained on; shapes
            disagree with the data or the queries; or the logits are of half precision or not finite.
    """
    recipe, Q = run.config.recipe, len(run.config.queries.views)
    if recipe.flip or recipe.crop_pad:
        raise ValueError(
            f"{run.path}: its recipe augments images, and logits tell nothing about those: make a run with "
            f"recipe.flip = false and recipe.crop_pad = 0"
        )
    logits = as_array(logits)
    if logits.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"logits must be float32 or float64; got {logits.dtype}: half precision rounds away what is attacked"
        )
    views = logits[:, None] if logits.ndim == 2 else logits
    N, C = dataset.num_examples, dataset.num_classes
    if views.shape != (N, Q, C):
        raise ValueError(
            f"logits must be [N, C] of one query, or [N, Q, C]: {[N, Q, C]} for {run.path}; got shape {list(logits.shape)}"
        )
    if not np.isfinite(views).all():
        raise ValueError("logits are not finite: a model that diverged cannot be imitated")
    views = views.astype(np.float32)
    phi = logit_scaled_confidence(views, np.broadcast_to(dataset.y[:, None], (N, Q)))
    return Teacher(views[:, 0], np.asarray(phi))


# --- Its imitators ---------------------------------------------------------------------------------------------------


def imitate_target(
    path: Place,
    run: Run,
    dataset: Dataset,
    teacher: Teacher,
    imitation: Imitation,
    keep: np.ndarray,
    *,
    verb: str = "imitating",
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train the missing ones of some models that imitate a target, by the recipe of a run. Interrupt it at any point.

    The warm-up is the program of ordinary models, so that until its end an imitator is, to the last bit, an ordinary model of
    its seed and members. It then differs by its loss alone, or by what it is still trained on, see `Imitation.loss`: order,
    augmentation, learning rates and averages go on.

    Args:
        path: of the imitators' own run directory, made or gone on with.
        run: whose recipe, queries and data they have.
        dataset: its data.
        teacher: what is imitated.
        imitation: how.
        keep: bool `[K, N]`, what the imitators are trained on, in complementary pairs.
        verb: what the progress bar says.
        show_progress: draw a bar.
        progress: called as by `train`.

    Returns:
        Their run: phi `[K, N, Q]`, keep `[K, N]`.

    Raises:
        RunError: the run's recipe is private; the directory is of other imitators or data, or another process is
            writing it.

    Warns:
        DivergedWarning: naming imitators that stopped being finite.
    """
    if run.config.recipe.privacy:
        raise RunError(
            f"{run.path}: has recipe.privacy, and imitators learn without noise: imitate a target of a run without it"
        )
    config = _config_of(run, len(keep))
    imitators = Run.from_config(path, dataset, config, keep=keep)

    def prepare(missing: int, widest: int) -> tuple[Programs, Learn]:
        warmup = imitation.warmup_epochs(config.recipe.epochs)
        programs = programs_for(config, dataset, missing, widest, ends=(warmup,) if warmup else ())
        if imitation.loss == "pivots":
            programs = _on_pivots(programs, warmup, pivots_of(teacher.phi[:, 0], dataset.y))
            return programs, partial(train_stack, imitators, programs, checkpoints)
        learner = dataclasses.replace(Learner.of(config.recipe, dataset), imitation=imitation)
        taught = teacher.logits if teacher.variables is None else teacher.variables
        taught = jax.device_put(taught, this_device())
        imitate = made_when_called(partial(compile_imitation, programs, learner, dataset, taught))

        def train(state: Any, keys: jax.Array, first: int, *rest: Any) -> Any:
            if first < warmup:
                return programs.train(state, keys, first, *rest)
            return imitate(state, keys, first, *rest, taught)

        return programs, partial(train_stack, imitators, programs._replace(train=train), checkpoints)

    # Logits that differ in the last bit make other imitators.
    also = {"imitation": dataclasses.asdict(imitation), "teacher": _digest(teacher)}
    minutes = config.execution.checkpoint_minutes
    with Checkpoints(imitators, minutes, also) as checkpoints:
        made = fill(
            imitators,
            dataset,
            prepare,
            checkpoints=checkpoints,
            verb=verb,
            show_progress=show_progress,
            progress=progress,
        )
    diverged = np.flatnonzero(imitators.done == DIVERGED)
    if made and len(diverged):
        warnings.warn(
            f"{path}: {len(diverged)} of {len(keep)} imitators diverged and are left out with their mates: "
            f"{', '.join(map(str, diverged))}; a lower learning rate, a longer warm-up or a higher temperature would help",
            DivergedWarning,
            stacklevel=2,
        )
    return imitators


def _on_pivots(programs: Programs, warmup: int, pivots: np.ndarray) -> Programs:
    """Programs that after the warm-up know nothing of a model's members but those among `pivots`, bool `[N]`."""

    def train(state: Any, keys: jax.Array, first: int, steps: int, x: Any, y: Any, keep: jax.Array) -> Any:
        return programs.train(state, keys, first, steps, x, y, keep if first < warmup else keep & pivots)

    def evaluate(state: Any, keys: jax.Array, x: Any, keep: jax.Array) -> Any:
        return programs.evaluate(state, keys, x, keep & pivots)

    return programs._replace(train=train, evaluate=evaluate)


def _digest(teacher: Teacher) -> str:
    """Of what imitators learn from a target: its logits, or where it is asked while they do, its variables."""
    taught = jax.tree.leaves(teacher.logits if teacher.variables is None else teacher.variables)
    return hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in taught)).hexdigest()


def _config_of(run: Run, num_imitators: int) -> Config:
    """That of imitators: the run's, of which phi alone is kept, and randomness of their own."""
    recipe = dataclasses.replace(run.config.recipe, seed=run.config.recipe.seed + IMITATOR_SEED)
    return dataclasses.replace(
        run.config, num_models=num_imitators, recipe=recipe, save_params=False, signals=()
    )
