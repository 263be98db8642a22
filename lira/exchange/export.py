"""A run as the directory of the code of Carlini et al. 2022."""

import json
import os
from typing import Any

import numpy as np

from lira.store.config import as_dict
from lira.store.errors import RunError
from lira.store.places import directory_at, new_directory
from lira.store.run import Run

__all__ = ["export_carlini"]


def export_carlini(run: Run, directory: str | os.PathLike[str]) -> list[str]:
    """Write a run as the directory of the original code, whose `plot.py` then works on it.

    Of each usable model: keep.npy, hparams.json, scores (phi in float64, what the original computes of its logits) and
    logits where the run holds any. The original's `plot.py` takes as its target the directory that the file system
    lists last, and `sorted` names put experiment-10_16 before experiment-2_16.

    Args:
        run: the run.
        directory: a new or empty one; it appears whole or not at all.

    Returns:
        What is not there, in sentences.

    Raises:
        RunError: the directory exists and is not empty, or cannot be written; or the run has no model.
    """
    directory = directory_at(directory)
    run = run.as_it_stands()
    models, labels = run.models, run.labels
    if not len(models):
        raise RunError(f"{run.path}: has no usable model to export")
    has_logits, has_labels = run.holds("logits"), bool((labels >= 0).all())
    epoch = run.provenance["source"].get("epoch", 0) if run.is_foreign else run.config.recipe.epochs
    with new_directory(directory) as making:
        if has_labels:
            np.save(making / "y_train.npy", labels)
        for model, keep in zip(models, run.keep, strict=True):
            folder = making / f"experiment-{model}_{run.config.num_models}"
            (folder / "scores").mkdir(parents=True)
            np.save(folder / "keep.npy", keep)
            (folder / "hparams.json").write_text(json.dumps(_hparams(run, int(model)), indent=2))
            phi = np.asarray(run.signal("phi", np.array([model])))[0]
            np.save(folder / "scores" / f"{epoch:010}.npy", phi.astype(np.float64))
            if has_logits:
                (folder / "logits").mkdir()
                logits = np.asarray(run.signal("logits", np.array([model])))[0]
                np.save(folder / "logits" / f"{epoch:010}.npy", logits[:, None])
    missing = ["no x_train.npy, because a run does not hold its inputs"]
    if not has_labels:
        missing.append("no y_train.npy, because the labels are not known")
    if not has_logits:
        missing.append(
            "no logits, because the run holds none; the scores are phi, what score.py makes of logits"
        )
    # Whoever reads the directory, `lira import` too, takes all examples and all models for alike.
    if run.config.num_canaries:
        missing.append(
            f"no word of canaries, which are the last {run.config.num_canaries:,} examples: leave these columns out"
        )
    if run.num_targets:
        missing.append(
            f"no word of who is attacked, which are models {', '.join(map(str, run.targets.tolist()))}, by the others alone"
        )
    return missing


def _hparams(run: Run, model: int) -> dict[str, Any]:
    """What the original writes of a model's making, under its names where it has one."""
    if run.is_foreign:
        recipe = dict(run.provenance["source"].get("hparams", {}))
    else:
        recipe = {
            **as_dict(run.config.recipe),
            "arch": run.config.recipe.model,
            "dataset": run.config.dataset,
        }
    return {**recipe, "expid": model, "num_experiments": run.config.num_models}
