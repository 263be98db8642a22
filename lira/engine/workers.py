"""Who makes which stack: one queue of models, and on every device workers that take from it.

Models need no word from each other, so devices share nothing but the queue. One that fails hands its models back.
"""

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any

import jax
import numpy as np

from lira.engine.device import Device
from lira.store.errors import RunError

__all__ = ["DeviceWarning", "Queue", "work_through"]

Make = Callable[[np.ndarray, Event], Callable[[], None] | None]


class DeviceWarning(UserWarning):
    """A device ran out of memory or failed; its models are made in narrower stacks, or on the others."""


class Queue:
    """Models that are still to be made."""

    def __init__(
        self,
        models: np.ndarray,
        missing: Callable[[np.ndarray], np.ndarray],
        begun: Sequence[np.ndarray] = (),
    ) -> None:
        """Of models, int `[m]`, those are left out that `missing` does not return when they are taken.

        Stacks that are `begun` come first, each as a whole.
        """
        self._missing, self._lock, self._begun = missing, Lock(), deque(begun)
        whole = [model for stack in begun for model in stack.tolist()]
        self._models = deque(models[~np.isin(models, whole)].tolist())

    def __len__(self) -> int:
        return len(self._models) + sum(map(len, self._begun))

    def take(self, width: int) -> np.ndarray:
        """The next models, int `[up to width]`; none where the queue is empty."""
        stack = np.zeros(0, int)
        with self._lock:
            while self._begun:
                begun = self._begun.popleft()
                if len(begun) <= width and len(self._missing(begun)):
                    return begun
                self._models.extendleft(reversed(begun.tolist()))
            while self._models and len(stack) < width:
                count = min(width - len(stack), len(self._models))
                taken = np.array([self._models.popleft() for _ in range(count)])
                stack = np.append(stack, self._missing(taken))
        return stack

    def hand_back(self, stack: np.ndarray) -> None:
        """Let others make these."""
        with self._lock:
            self._models.extendleft(reversed(stack.tolist()))


def work_through(
    queue: Queue,
    devices: Sequence[Device],
    prepare: Callable[[int], tuple[int, int, Make]],
) -> None:
    """Make all models of a queue, on all devices at once, each with workers of its own.

    A device that runs out of memory goes on with stacks of half the width, or with one worker. One that fails hands its
    stack back and is done; the others go on. After any other error, or an interrupt, all stop as soon as they can.

    Args:
        queue: the models.
        devices: to work on; in the threads of each it is JAX's default device.
        prepare: called in a thread of each device with the widest stack that it may make, 0 for any: width, workers, and
            `make(stack, stop)`, which makes the models `stack` (int `[m]`) and returns what writes them, to be called
            while the next stack is made; or None if `stop` was set before they were done.

    Raises:
        RunError: no device is left.

    Warns:
        DeviceWarning: a device ran out of memory, or failed.
    """
    interrupted, failures = Event(), {}
    stops = {device: Event() for device in devices}

    def stop_all() -> None:
        interrupted.set()
        for stop in stops.values():
            stop.set()

    def on_device(device: Device) -> None:
        widest, most = 0, None
        while len(queue):
            with jax.default_device(device):
                width, workers, make = prepare(widest)
            workers = min(workers, most or workers)
            # A new one, for the last may be set; noted before the look, so that no interrupt falls between the two.
            stops[device] = stop = Event()
            if interrupted.is_set():
                return
            error = _side_by_side(queue, device, width, workers, make, writer, stop)
            if error is None:
                return
            reason = " ".join(str(error).split())[:200]
            if "RESOURCE_EXHAUSTED" not in reason or (width == 1 and workers == 1):
                failures[device] = reason
                left = len(devices) - len(failures)
                warnings.warn(
                    f"{device} failed, {left} of {len(devices)} devices go on: {reason}",
                    DeviceWarning,
                    stacklevel=2,
                )
                return
            widest, most = (width // 2, None) if width > 1 else (1, 1)
            narrower = f"{widest} models" if width > 1 else "one model, one at a time"
            warnings.warn(
                f"{device} ran out of memory with {workers} x {width} models: it goes on with stacks of {narrower}",
                DeviceWarning,
                stacklevel=2,
            )

    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(len(devices)) as threads:
        try:
            # Again, where a device failed after the others had found nothing left.
            while len(queue) and (left := [device for device in devices if device not in failures]):
                # The first error, whichever device it is of, ends the work of all.
                for each in as_completed([threads.submit(on_device, device) for device in left]):
                    each.result()
        finally:
            stop_all()
    if len(queue):
        raise RunError(
            f"{len(queue)} models are not made, all devices failed: {'; '.join(failures.values())}"
        )


def _side_by_side(
    queue: Queue,
    device: Device,
    width: int,
    workers: int,
    make: Make,
    writer: ThreadPoolExecutor,
    stop: Event,
) -> Exception | None:
    """Make stacks on one device until none is left; or the error of its first that failed, all of which are handed back."""

    def one_after_another() -> None:
        written: Future[Any] | None = None
        try:
            with jax.default_device(device):
                while not stop.is_set() and len(stack := queue.take(width)):
                    write = None
                    try:
                        write = make(stack, stop)
                    finally:
                        if write is None:
                            queue.hand_back(stack)
                    if written:
                        written.result()
                    written = write and writer.submit(write)
        except BaseException:
            stop.set()
            raise
        finally:
            if written:
                written.result()

    with ThreadPoolExecutor(workers) as threads:
        futures = [threads.submit(one_after_another) for _ in range(workers)]
    failed = None
    for each in futures:
        try:
            each.result()
        except jax.errors.JaxRuntimeError as error:
            failed = failed or error
    return failed
