"""Which models of a run are one process's, of many that train it: named, or by a scheduler's own index."""

import os
import re
from collections.abc import Mapping

import numpy as np

__all__ = ["models_in_words", "models_of_process", "scheduled_share"]

# Index, first index, step and number of tasks, as schedulers tell each of them.
SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
# Kubernetes tells the index alone; the Job must set the other, to the number that it has for `completions`.
KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


def models_of_process(
    num_models: int, models: str = "", share: str = "", environment: Mapping[str, str] = os.environ
) -> np.ndarray:
    """The models that a process is to train, int `[m]`; all where nothing says otherwise.

    Shares are of whole pairs, one after the other: 0/16 is the first sixteenth, 15/16 the last.

    Args:
        num_models: of the run.
        models: "0:64", from the first up to and without the second.
        share: "3/16", counted from 0.
        environment: where a scheduler tells the process's place among others; read where neither is given.

    Raises:
        ValueError: they are not of this form, name models or a share that there are not, or are both given.
    """
    if models and share:
        raise ValueError(f"--models {models} and --share {share} cannot both be given")
    if models:
        found = re.fullmatch(r"(\d+):(\d+)", models)
        first, stop = map(int, found.groups()) if found else (0, 0)
        if not first < stop <= num_models:
            raise ValueError(
                f"--models must be FIRST:STOP within 0:{num_models}, such as 0:{max(2, num_models // 4)}; got {models}"
            )
        return np.arange(first, stop)
    given = share or scheduled_share(environment)
    found = re.fullmatch(r"(\d+)/(\d+)", given or "0/1")
    index, of = map(int, found.groups()) if found else (0, 0)
    if not index < of:
        raise ValueError(f"--share must be INDEX/COUNT, counted from 0, such as 0/16 to 15/16; got {given}")
    first, stop = (2 * (num_models // 2 * each // of) for each in (index, index + 1))
    return np.arange(first, num_models if index + 1 == of else stop)


def scheduled_share(environment: Mapping[str, str] = os.environ) -> str:
    """The share of a task of a SLURM array or an indexed Kubernetes Job, such as "3/16"; empty elsewhere.

    Raises:
        ValueError: a Job's number of completions is not told.
    """
    index, *rest = (environment.get(name, "") for name in SLURM)
    if index and rest[-1]:
        low, step, count = int(rest[0] or 0), int(rest[1] or 1), int(rest[2])
        return f"{(int(index) - low) // step}/{count}"
    index, count = (environment.get(name, "") for name in KUBERNETES)
    if index and not count:
        raise ValueError(
            f"{KUBERNETES[0]} is {index}, but not of how many: set {KUBERNETES[1]} to the Job's completions, or give "
            f"--share {index}/COUNT"
        )
    return f"{index}/{count}" if index else ""


def models_in_words(models: np.ndarray, num_models: int) -> str:
    """For people: "models 0:64 of 256"; empty where they are all."""
    if len(models) == num_models:
        return ""
    return f"models {models[0]}:{models[-1] + 1} of {num_models}" if len(models) else "no models"
