"""TensorBoard's events of a training: a `progress` function that writes them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lira.engine.progress import Progress

__all__ = ["require_tensorboard", "tensorboard"]


@contextlib.contextmanager
def tensorboard(directory: str | os.PathLike[str]) -> Iterator[Callable[[Progress], None]]:
    """Write TensorBoard's events into a directory: `tensorboard --logdir DIRECTORY` shows them.

        with lira.tensorboard("runs/mine/tensorboard") as progress:
            lira.train(run, dataset, progress=progress)

    Below it `training`, or what else is done, has the metrics of `Progress` by the epochs of all models together, and a
    directory for each stack of models, such as `training/models 0-31`, its mean loss by the models' own epochs.

    Raises:
        ImportError: tensorboardX is not installed.
    """
    writers: dict[Path, Any] = {}
    make = require_tensorboard()

    def write(at: Path, values: dict[str, float], step: int) -> None:
        if at not in writers:
            writers[at] = make(str(at))
        for name, value in values.items():
            writers[at].add_scalar(name, value, step)

    def tell(now: Progress) -> None:
        at = Path(directory) / now.verb
        write(at, now.metrics, now.step)
        if now.loss is None or not np.isfinite(now.loss).any():
            return
        stack = at / f"models {now.models[0]}-{now.models[-1]}"
        write(stack, {"loss_by_epoch": float(now.loss[np.isfinite(now.loss)].mean())}, now.epoch)
        if now.epoch == now.num_epochs:  # of thousands of stacks not all files stay open
            writers.pop(stack).close()

    try:
        yield tell
    finally:
        for writer in writers.values():
            writer.close()


def require_tensorboard() -> Callable[[str], Any]:
    """What writes events into a directory; raises ImportError where it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard\'s events need tensorboardX: pip install "lira[tensorboard]"'
        ) from error
    return SummaryWriter
