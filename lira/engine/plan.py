"""What completing a run costs, before anything is spent."""

from dataclasses import dataclass

import numpy as np

from lira.data.dataset import Dataset
from lira.engine.calibrate import programs_for, seconds_per_step
from lira.engine.checkpoints import Checkpoints
from lira.engine.device import device_name, devices_of
from lira.engine.progress import duration, size_in_words
from lira.engine.trained import check_averaging
from lira.learning.accounting import guarantee
from lira.learning.recipe import checkpoint_epochs, steps_per_epoch
from lira.store.config import Config
from lira.store.run import Run

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What completing a run costs, before anything is spent."""

    models: int
    of: int
    images: int
    seconds: float
    bytes_on_disk: int  # of the models' answers
    bytes_of_scores: int  # of one attack, on disk as well
    bytes_of_checkpoints: (
        int  # on disk while stacks are in training; 0 where no training is long enough for one
    )
    bytes_on_device: int | None  # on each
    width: int
    workers: int  # on each device
    lowering: str
    why: str
    device: str
    warning: str = ""
    design: str = ""  # of the memberships, in words; empty for pairs
    privacy: str = ""  # what is proven of every model, in words; empty where nothing is

    def __str__(self) -> str:
        """Two lines for a terminal."""
        each = "" if self.device.startswith("1 x ") else " on each"
        memory = "unknown" if self.bytes_on_device is None else size_in_words(self.bytes_on_device)
        checkpoints = ""
        if self.bytes_of_checkpoints:
            checkpoints = f", while training up to {size_in_words(self.bytes_of_checkpoints)} for checkpoints"
        return (
            f"{self.models} of {self.of} models to train, {self.images:,} images, about {duration(self.seconds)} "
            f"on {self.device} ({self.workers} x {self.width} side by side{each}, convolutions by {self.lowering}); "
            f"{memory} on {'each' if each else 'the'} device, {size_in_words(self.bytes_on_disk)} on disk and "
            f"{size_in_words(self.bytes_of_scores)} for the scores of each attack{checkpoints}"
            + (f"\nmemberships are {self.design}" if self.design else "")
            + (f"\nprivate training proves {self.privacy}" if self.privacy else "")
            + (f"\n{self.why}" if self.why else "")
            + (f"\nwarning: {self.warning}" if self.warning else "")
        )


def plan(config: Config, dataset: Dataset, run: Run | None = None, among: np.ndarray | None = None) -> Plan:
    """Estimate the cost of `config`, or of what `run` still lacks, by timing a few steps of a real stack.

    Args:
        config: of the run.
        dataset: its data.
        run: what is there of it.
        among: int, the models that this process is to train, see `lira.engine.share`; all by default.
    """
    recipe, queries = config.recipe, config.queries
    share = config.share(dataset.num_examples)
    recipe.check(dataset.num_examples, dataset.x.shape[1:], share)
    queries.check(dataset.x.shape[1:], dataset.num_classes)
    missing = np.arange(config.num_models) if among is None else among
    if run is not None:
        missing = missing[run.done[missing] == 0]
    steps = steps_per_epoch(dataset.num_examples, recipe.batch_size, share) * recipe.epochs
    sides = dataset.num_examples + (0 if dataset.y_test is None else len(dataset.y_test))
    values = sides + dataset.num_examples * sum(
        dataset.num_classes if name == "logits" else 1 for name in config.signals
    )
    row = values * len(queries.views) * 4 + dataset.num_examples
    proven = guarantee(recipe, dataset.num_examples, share)
    averaging = check_averaging(recipe, steps)
    doubts = [
        averaging.sentence if averaging and averaging.status != "ok" else "",
        proven.doubt(dataset.num_examples * share) if proven else "",
    ]
    execution = config.execution
    seconds, kept, programs, devices = 0.0, 0, None, devices_of(execution.devices)
    if len(missing):
        begun = Checkpoints(run, 0).execution(missing) if run else None
        programs = programs_for(config, dataset, len(missing), begun=begun)
        per_step = seconds_per_step(programs, dataset, share)
        rounds = -(-len(missing) // (programs.models * len(devices)))
        # A query costs a forward pass, a third of a training step's work.
        asked = sides + dataset.num_examples * len(checkpoint_epochs(config.signals, recipe.epochs))
        asked *= len(queries.views) / recipe.batch_size / 3
        seconds = rounds * per_step * (steps + asked)
        if 0 < 60 * execution.checkpoint_minutes < per_step * steps:
            # One takes the place of another, which stays until then.
            kept = 2 * programs.state * programs.workers * len(devices)
    return Plan(
        models=len(missing),
        of=config.num_models,
        images=len(missing) * steps * recipe.batch_size,
        seconds=seconds,
        bytes_on_disk=config.num_models * row,
        bytes_of_scores=config.num_models * dataset.num_examples * 4,
        bytes_of_checkpoints=kept,
        bytes_on_device=programs.memory if programs else 0,
        width=programs.width if programs else 0,
        workers=programs.workers if programs else 0,
        lowering=programs.lowering if programs else "-",
        why=programs.why if programs else "",
        device=device_name(devices),
        warning="; ".join(filter(None, doubts)),
        privacy="" if proven is None else str(proven),
        design="" if config.membership.design == "pairs" else _design_in_words(config, dataset.num_examples),
    )


def _design_in_words(config: Config, num_examples: int) -> str:
    """The design, and how many models hold an example: by these numbers attacks are possible or not."""
    membership, M = config.membership, config.num_models
    if membership.design == "all":
        return membership.in_words()
    pool = num_examples - config.num_canaries
    audited = np.flatnonzero(membership.audited(config.membership_seed, pool))
    held = config.draw(num_examples)[membership.num_targets :, audited].sum(axis=0)
    return (
        f"{membership.in_words()}: {len(held):,} examples are attacked, which are in {held.min()} to {held.max()} of "
        f"{M - membership.num_targets} shadow models"
    )
