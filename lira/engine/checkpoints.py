"""Stacks in training, kept on disk from time to time: a process that is ended loses minutes of them, not all.

A stack goes on from its checkpoint as the very stack that it was: the same models, each at the same attempt, side by side
in the same programs. It then becomes bit for bit what it would have become.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lira.engine.device import arithmetic
from lira.engine.programs import Programs
from lira.store.checkpoint_objects import ObjectCheckpoint, await_the_dead
from lira.store.checkpoints import ABOUT, CHECKPOINTS, Checkpoint, new_checkpoint, unowned
from lira.store.config import deciding
from lira.store.run import Run
from lira.versions import versions

__all__ = ["Begun", "CheckpointWarning", "Checkpoints", "Kept"]

# Other versions of these compute other sums.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
now = time.monotonic


class CheckpointWarning(UserWarning):
    """A checkpoint that cannot be written, or gone on from; the run goes on without it."""


class Begun(NamedTuple):
    """A stack of m models in training."""

    epochs: int  # that are over
    state: Any  # of the models, after these
    losses: list[jax.Array]  # [m, epochs] in all, of epochs one after the other
    # By signal, such as phi@0.25, the variables that the models would have answered with there; on the host.
    looks: dict[str, Any]


class Checkpoints:
    """Those of a run's stacks, as this process goes on from them, writes and removes them."""

    def __init__(self, run: Run, minutes: float, also: Mapping[str, Any] | None = None) -> None:
        """A stack's are written so many minutes apart, never where these are 0; `also` is what else stacks depend on."""
        self.run, self.also = run, dict(also or {})
        self.minutes = minutes
        self.interrupted: list[int] = []
        """models of stacks that were stopped, and written as they were"""
        # One after the other, and beside the training.
        self.writer = ThreadPoolExecutor(1)

    def of(self, programs: Programs, stack: np.ndarray, attempts: np.ndarray) -> "Kept":
        """That of a stack, int `[m]` by number, each model at its attempt: one to go on from, or none as yet."""
        kept = Kept(self, partial(_about, self.run, programs, stack, attempts, self.also))
        for checkpoint in unowned(self.run.path):
            stage = kept.checkpoint.stage if kept.checkpoint else -1
            if checkpoint.about == kept.about and checkpoint.stage > stage:
                kept.checkpoint, checkpoint = checkpoint, kept.checkpoint
            if checkpoint:
                checkpoint.release()
        return kept

    def begun(self, missing: np.ndarray, programs: Programs) -> list[tuple[np.ndarray, np.ndarray]]:
        """The stacks that go on, each its models and their attempts, int `[m]`: what these lack is among the models `missing`.

        Warns:
            CheckpointWarning: others do not, and why.
        """
        stacks: list[tuple[int, list[int], list[int]]] = []
        for checkpoint in self._among(missing):
            about, models = checkpoint.about, checkpoint.about["models"]
            here = _about(self.run, programs, models, about["attempts"], self.also)
            if differs := list(_differences(about, here)):
                warnings.warn(
                    f"{checkpoint.place}: models {_in_words(models)} do not go on from this checkpoint and begin anew: "
                    f"{'; '.join(differs)}",
                    CheckpointWarning,
                    stacklevel=2,
                )
            elif checkpoint.stage:
                stacks.append((checkpoint.stage, models, about["attempts"]))
        begun, taken = [], set()
        for _, models, attempts in sorted(stacks, reverse=True):
            if taken.isdisjoint(models):  # processes may have been at the same models
                taken.update(models)
                begun.append((np.array(models), np.array(attempts)))
        return begun

    def execution(self, missing: np.ndarray) -> tuple[str, int] | None:
        """Lowering and width of the stack that is furthest of those that go on; None where none does.

        Those that the configuration pins, where it does.
        """
        pinned, furthest = self.run.config.execution, (0, None)
        for checkpoint in self._among(missing):
            about = dict(checkpoint.about)
            lowering, width, _ = (about.pop(name, None) for name in ("lowering", "width", "epochs_at_once"))
            here = _about(self.run, None, about["models"], about["attempts"], self.also)
            may = pinned.lowering in ("auto", lowering) and pinned.width in (0, width)
            if may and about == here and checkpoint.stage > furthest[0]:
                furthest = checkpoint.stage, (lowering, width)
        return furthest[1]

    def _among(self, missing: np.ndarray) -> Iterator[Checkpoint | ObjectCheckpoint]:
        """Those that are nobody's now, of stacks that lack some of the models `missing` and no others."""
        for checkpoint in unowned(self.run.path):
            try:
                if (lacking := _lacking(self.run, checkpoint.about)) and lacking <= set(missing.tolist()):
                    yield checkpoint
            finally:
                checkpoint.release()

    def tidy(self) -> None:
        """Remove those that are nobody's now, and of which no model is missing.

        Warns:
            CheckpointWarning: of one nobody can tell what it is of; it is removed, too.
        """
        for checkpoint in unowned(self.run.path):
            if not checkpoint.about and checkpoint.place.is_dir():
                checkpoint.remove()
                warnings.warn(
                    f"{checkpoint.place}: the checkpoint is damaged, and its models begin anew: {ABOUT} is not as it was "
                    f"written",
                    CheckpointWarning,
                    stacklevel=2,
                )
            elif _lacking(self.run, checkpoint.about):
                checkpoint.release()
            else:
                checkpoint.remove()

    def __enter__(self) -> "Checkpoints":
        if not isinstance(self.run.path, Path) and (self.run.done == 0).any():
            await_the_dead(self.run.path)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Remove what nobody needs, and tell who interrupts the work what goes on from here."""
        if isinstance(error, KeyboardInterrupt) and self.interrupted:
            error.add_note(
                f"{len(self.interrupted)} models in training go on from the checkpoint just written"
            )
        self.writer.shutdown()
        self.tidy()
        if isinstance(self.run.path, Path):
            with contextlib.suppress(OSError):  # there are some, or never were
                (self.run.path / CHECKPOINTS).rmdir()


class Kept:
    """The checkpoint of one stack in training, as a context: this process owns it within, and nothing is being written after.

    It stays until its models are stored, see `Checkpoints.tidy`.
    """

    def __init__(self, all_of: Checkpoints, tell: Callable[[], dict[str, Any]]) -> None:
        """One that is of what `tell()` says in a thread of the stack's device; most trainings are too short to ask."""
        self._all, self._tell = all_of, tell
        self.checkpoint: Checkpoint | ObjectCheckpoint | None = None
        self._written, self._last = 0, now()
        self._writing: Future[None] | None = None

    @cached_property
    def about(self) -> dict[str, Any]:
        """What it is of."""
        return self._tell()

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writing:
            self._writing.result()
        if self.checkpoint:
            self.checkpoint.release()

    def restored(self, fresh: Any, looks: Mapping[int, str]) -> Begun:
        """The stack as it was kept, or at the beginning, where its state is `fresh`; `looks` are the signals' names by epoch.

        Warns:
            CheckpointWarning: what was kept is damaged.
        """
        stage = self.checkpoint.stage if self.checkpoint else 0
        if not self.checkpoint or not stage:
            return Begun(0, fresh, [], {})
        try:
            asked = {"params": fresh.params, **fresh.statistics}
            names = [name for epochs, name in looks.items() if epochs <= stage]
            losses = np.zeros((len(jax.tree.leaves(fresh)[0]), stage))
            like, structure = jax.tree.flatten((fresh, losses, dict.fromkeys(names, asked)))
            arrays = self.checkpoint.restore()
            if [each.shape for each in arrays] != [each.shape for each in like]:
                raise ValueError("it holds other arrays")
            state, losses, there = jax.tree.unflatten(structure, arrays)
            self._written = stage
            # Copies, for the programs take the state's memory.
            return Begun(stage, jax.tree.map(jnp.array, state), [jnp.array(losses)], there)
        # Whatever there is in it, the stack can begin anew.
        except Exception as error:
            self._warn(f"is damaged, and models {_in_words(self.about['models'])} begin anew", error)
            self.checkpoint.remove()
            self.checkpoint = None
            return Begun(0, fresh, [], {})

    def keep_if_due(self, begun: Begun) -> None:
        """Write the stack as it is, beside the training, if the last time is long enough ago."""
        due = self._all.minutes and now() - self._last >= 60 * self._all.minutes
        if due and begun.epochs > self._written and (self._writing is None or self._writing.done()):
            self._keep(begun)

    def keep_at_last(self, begun: Begun) -> None:
        """Write a stack that is stopped as it is, and wait until that is done.

        Warns:
            CheckpointWarning: it cannot be written.
        """
        if not self._all.minutes or not begun.epochs:
            return
        if self._writing:
            self._writing.result()
        if self._written < begun.epochs:
            self._keep(begun).result()
        if self._written == begun.epochs:
            self._all.interrupted += self.about["models"]

    def _keep(self, begun: Begun) -> Future[None]:
        self._last, about = now(), self.about
        losses = np.concatenate(begun.losses, axis=1)
        # Copied at once, for the next call of the programs takes the state's memory.
        arrays = [np.array(each) for each in jax.tree.leaves((begun.state, losses, begun.looks))]
        self._writing = self._all.writer.submit(self._write, about, begun.epochs, arrays)
        return self._writing

    def _write(self, about: dict[str, Any], epochs: int, arrays: list[np.ndarray]) -> None:
        try:
            if self.checkpoint is None:
                self.checkpoint = new_checkpoint(self._all.run.path, about)
            self.checkpoint.save(epochs, arrays)
            self._written = epochs
        # A full disk, say: orbax, TensorStore and the file system have an exception of their own each.
        except Exception as error:
            self._warn("cannot be written", error)

    def _warn(self, what: str, error: Exception) -> None:
        place = self.checkpoint.place if self.checkpoint else self._all.run.path / CHECKPOINTS
        # TensorStore tells the whole way there, what it met last of all, and then the specification of the array.
        reason = " ".join(str(error).split(" [")[0].split())[-200:] or type(error).__name__
        warnings.warn(f"{place}: the checkpoint {what}: {reason}", CheckpointWarning, stacklevel=3)


# --- What a checkpoint is of -----------------------------------------------------------------------------------------


def _about(
    run: Run,
    programs: Programs | None,
    models: Iterable[int],
    attempts: Iterable[int],
    also: Mapping[str, Any],
) -> dict[str, Any]:
    """All that decides, to the last bit, what a stack becomes on this thread's device; without programs but for theirs."""
    about = {
        "models": [int(each) for each in models],
        "attempts": [int(each) for each in attempts],
        "device": arithmetic(),
        "versions": versions(*PACKAGES),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "dataset": run.provenance["fingerprints"]["dataset"],
        "configuration": deciding(run.config),
        "also": also,
    }
    if programs:
        about |= {"width": programs.width, "lowering": programs.lowering, "epochs_at_once": programs.epochs}
    return json.loads(json.dumps(about))


def _lacking(run: Run, about: Mapping[str, Any]) -> set[int]:
    """The models of a checkpoint that the run does not hold."""
    return set(about.get("models", ())) & set(np.flatnonzero(run.done == 0).tolist())


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Name what differs between two nested tables: `versions.jax is '0.10.2' there and '0.11.0' here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"


def _in_words(models: Sequence[int]) -> str:
    """For people: "0, 1, 2, 3 and 12 more"."""
    shown, more = ", ".join(map(str, models[:4])), len(models) - 4
    return f"{shown} and {more} more" if more > 0 else shown
