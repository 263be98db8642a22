"""`--tensorboard`: where the events of a training go."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from lira.engine.progress import Progress
from lira.engine.tensorboard import require_tensorboard, tensorboard
from lira.store.config import ConfigError
from lira.store.places import directory_at

__all__ = ["TENSORBOARD", "events"]

TENSORBOARD = "write TensorBoard's events of the training into RUN/tensorboard"


def events(
    run_dir: str, wanted: bool
) -> contextlib.AbstractContextManager[Callable[[Progress], None] | None]:
    """What writes them below a run's directory, or None where they are not wanted.

    Raises:
        ConfigError: tensorboardX is not installed, or the run is on an object store.
    """
    if not wanted:
        return contextlib.nullcontext()
    place = directory_at(run_dir)
    if not isinstance(place, Path):
        raise ConfigError(
            "--tensorboard writes into a directory of this machine, and the run is on an object store: use "
            "lira.train(run, dataset, progress=...) with lira.tensorboard(DIRECTORY)"
        )
    try:
        require_tensorboard()
    except ImportError as error:
        raise ConfigError(f"--tensorboard: {error}") from error
    return tensorboard(place / "tensorboard")
