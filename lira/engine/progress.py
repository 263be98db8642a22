"""What people see of training: a bar, and durations and sizes in words."""

import time
from threading import Lock, local

from rich import progress

__all__ = ["Bar", "Clock", "duration", "size_in_words"]


# --- Showing --------------------------------------------------------------------------------------------------------


class Bar:
    """A progress bar with models done, images a second and time left."""

    def __init__(self, verb: str, models: int, done: int, show: bool) -> None:
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
        self._images, self._began, self._lock = 0, time.perf_counter(), Lock()

    def __enter__(self) -> "Bar":
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
