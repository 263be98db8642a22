"""What people and programs see of training: a bar, a function that is called, durations and sizes in words."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock, local
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich import progress

__all__ = ["Bar", "Clock", "EpochLoss", "Progress", "duration", "size_in_words"]


@dataclass(frozen=True, eq=False)
class Progress:
    """What training has come to when some epochs of a stack of models are over, or when models are stored.

    A function of one of these is the `progress` of `lira.train`, `unlearn` and `imitate`. Whatever logs metrics can be one:

        lira.train(run, dataset, progress=lambda now: wandb.log(now.metrics, step=now.step))
        lira.train(run, dataset, progress=lambda now: mlflow.log_metrics(now.metrics, step=now.step))

    Calls come one after the other, from threads of the training, which waits for them; an error that is raised ends it.
    """

    verb: str
    """training, retraining, or a method of an unlearning"""
    done: float
    """models made, a part of one as a fraction"""
    num_models: int
    """of how many"""
    step: int
    """epochs that all models together have behind them, those stored before among them; never less than before"""
    seconds: float
    """since the beginning"""
    images_per_second: float
    """on average; 0 where images are not counted"""
    models: np.ndarray
    """int [m], what this is of, by their rows in the run"""
    epoch: int = 0
    """that is over, from 1, of the models' own; 0 where it is not known yet, and where models are stored"""
    num_epochs: int = 0
    """of how many"""
    loss: np.ndarray | None = None
    """float32 [m], each model's mean cross-entropy over that epoch; None where it is not known"""
    accuracies: Mapping[str, np.ndarray] | None = None
    """float32 [m] by "in", "out" and "test", where models are stored: on members, the others, the held-out examples"""

    @property
    def metrics(self) -> dict[str, float]:
        """What loggers take: models, images_per_second, and means over those models that are finite: loss, accuracy_in, ..."""
        found = {"models": self.done, "images_per_second": self.images_per_second}
        values = {f"accuracy_{side}": each for side, each in (self.accuracies or {}).items()}
        if self.loss is not None:
            values["loss"] = self.loss
        means = {name: each[np.isfinite(each)] for name, each in values.items()}
        return {**found, **{name: float(each.mean()) for name, each in means.items() if len(each)}}


class EpochLoss(NamedTuple):
    """The last epoch of a stack that is over, and each model's mean cross-entropy over it."""

    epoch: int  # from 1
    loss: ArrayLike  # [at least m, epochs], of the stack the first; the last epoch's are asked for


# --- Showing --------------------------------------------------------------------------------------------------------


class Bar:
    """A progress bar with models done, images a second and time left; and whom else to tell."""

    def __init__(
        self,
        verb: str,
        models: int,
        done: int,
        show: bool,
        tell: Callable[[Progress], None] | None = None,
        epochs: int = 1,
    ) -> None:
        """A bar of so many models, of `epochs` each; `tell` is called whenever something is done."""
        self._progress = progress.Progress(
            progress.TextColumn(verb),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("models{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            disable=not show,
        )
        self._task = self._progress.add_task("", total=models, completed=done, rate="")
        self._verb, self._tell, self._epochs = verb, tell, epochs
        self._models, self._done, self._step = models, float(done), 0
        self._images, self._began, self._lock = 0, time.perf_counter(), Lock()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(
        self, models: float, images: int, stack: np.ndarray | None = None, over: EpochLoss | None = None
    ) -> None:
        """Count what a stack has done: an epoch or, where images are not counted, all of it.

        Args:
            models: done, a part of one as a fraction; less than 0 takes back.
            images: trained on.
            stack: int `[m]`, the models; None tells nobody.
            over: the stack's last epoch whose losses are there.
        """
        with self._lock:
            self._images += images
            self._done += models
            rate = f", {self._rate():,.0f} images/s" if images else ""
            # Epochs, fractions of a model, add up to a little less than whole ones.
            self._progress.update(self._task, advance=models * (1 + 1e-9), rate=rate)
            if self._tell and stack is not None:
                loss = None if over is None else np.asarray(over.loss, np.float32)[: len(stack), -1]
                self._say(self._tell, stack, epoch=0 if over is None else over.epoch, loss=loss)

    def stored(self, models: np.ndarray, accuracies: Mapping[str, np.ndarray]) -> None:
        """Tell that models are stored, with accuracies by "in", "out" and "test"."""
        if self._tell:
            with self._lock:
                self._say(self._tell, models, accuracies=accuracies)

    def _rate(self) -> float:
        return self._images / (time.perf_counter() - self._began)

    def _say(self, tell: Callable[[Progress], None], models: np.ndarray, **what: Any) -> None:
        # Stacks that begin anew take models back.
        self._step = max(self._step, round(self._done * self._epochs))
        seconds = time.perf_counter() - self._began
        about = (self._verb, self._done, self._models, self._step, seconds, self._rate(), models)
        tell(Progress(*about, num_epochs=self._epochs, **what))


class Clock:
    """Seconds spent within it, summed over threads."""

    def __init__(self) -> None:
        self.seconds, self._lock, self._thread = 0.0, Lock(), local()

    def __enter__(self) -> None:
        self._thread.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - self._thread.began


def size_in_words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
