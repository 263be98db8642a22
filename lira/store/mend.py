"""What is broken moved aside, and made again: memberships from their seed, labels from the data, all else by who made it.

A model of which anything is broken becomes a missing one, which the next training makes; scores and reports go, and the next
report makes them. Nothing else is touched.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.dataset import Dataset
from lira.store.arrays import DONE
from lira.store.config import read_directory
from lira.store.errors import RunError
from lira.store.identity import require_same_data
from lira.store.imported import answers_from_logits
from lira.store.making import ROWS, layout_by
from lira.store.places import Place, directory_at, locked_model
from lira.store.run import Run
from lira.store.verify_arrays import (
    BROKEN,
    Finding,
    array_findings,
    keep_findings,
    label_findings,
    model_findings,
    states,
)
from lira.store.verify_derived import document_findings, score_findings
from lira.store.zarr import metadata_of, open_array

__all__ = ["mend", "set_aside"]


def mend(
    path: str | os.PathLike[str],
    dataset: Dataset | None = None,
    *,
    keep: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> list[str]:
    """Make a run directory ready to be completed: train, score and report it afterwards.

    Every chunk is read; on an object store, which keeps checksums of its own, only its end. What is broken is moved to
    RUN/broken/. Models that are whole are not touched.

    Args:
        path: of the run.
        dataset: its data; None where it was imported, or to mend scores and reports alone. Of imported models mended are
            the arrays' metadata, which of them are done, what their logits say where these are stored, scores and reports.
        keep: bool `[M, N]`, memberships that were given, where these are not drawn by a seed.
        among: int, the models that are looked at, and no scores and reports: for one of many processes. All by default.

    Returns:
        What was done, a sentence for each thing that was broken.

    Raises:
        RunError: it is no run, its configuration is damaged, it is of other data, or something that cannot be made again is
            broken; the message names it.
    """
    path = directory_at(path)
    deep = isinstance(path, Path)
    run = Run(path, *read_directory(path))
    if dataset is not None and not run.is_foreign:
        require_same_data(path, run.config, run.provenance, dataset)
    said: dict[str, str] = {}
    _mend_all(run, said, lambda: _broken(array_findings(run)), lambda each: _array(run, dataset, each))
    _mend_all(
        run, said, lambda: _broken(label_findings(run, dataset)), lambda each: _labels(run, dataset, each)
    )
    _mend_all(
        run,
        said,
        lambda: _broken(keep_findings(run, keep, deep=deep)),
        lambda each: _memberships(run, keep, each),
    )
    done, broken = states(run)
    models = np.arange(run.config.num_models) if among is None else among
    broken += _broken(model_findings(run, models[done[models] == DONE], deep))
    lost = sorted({each.model for each in broken if each.model is not None})
    for model in lost:
        said |= _model(run, model)
    if lost:
        with run.lock():
            said |= _of_unknown_signals(run)
    if among is None:
        done, _ = states(run)
        _mend_all(run, said, lambda: _stale_scores(run, done, lost, deep), lambda each: _derived(run, each))
        _mend_all(run, said, lambda: _broken(document_findings(path, deep)), lambda each: _derived(run, each))
    return [f"{place} {what}" for place, what in said.items()]


def _stale_scores(run: Run, done: np.ndarray, lost: list[int], deep: bool) -> list[Finding]:
    """What is broken of the scores; models that are `lost` by now have been told of."""
    return [each for each in _broken(score_findings(run, done, deep)) if each.model not in lost]


def _broken(found: Iterable[Finding]) -> list[Finding]:
    return [each for each in found if each.status == "broken"]


def _mend_all(
    run: Run, said: dict[str, str], look: Callable[[], list[Finding]], repair: Callable[[Finding], str]
) -> None:
    """Repair what is found while the run is held, within which it is looked for once more: others may have mended it."""
    if not look():
        return
    with run.lock():
        for each in look():
            if each.place not in said:
                said[each.place] = f"{each.what}: {repair(each)}"


def set_aside(path: Place, place: str) -> str:
    """Move a file or a directory of the directory `path` to its broken/; say so, or nothing where there is none."""
    there = path / place
    if not there.exists():
        return ""
    names = (f"{BROKEN}/{place}{f'.{number}' if number > 1 else ''}" for number in itertools.count(1))
    name = next(each for each in names if not (path / each).exists())
    to: Any = path / name
    to.parent.mkdir(parents=True, exist_ok=True)
    there.rename(to)
    return f"moved to {name}, "


def _restore(run: Run, each: Finding, why: str) -> RunError:
    source = run.provenance["source"]["path"] if run.is_imported else ""
    or_else = f", or import {source} once more" if source else ""
    return RunError(f"{run.path}: {each.place} {each.what}, and {why}: restore it from a copy{or_else}")


# --- One thing each --------------------------------------------------------------------------------------------------


def _array(run: Run, dataset: Dataset | None, each: Finding) -> str:
    """Write an array's metadata again; its chunks stay."""
    if dataset is None and not (run.is_imported and ROWS in run.provenance):
        raise _restore(run, each, "without the run's recipe and data it is not known how it was made")
    name = each.place.split("/")[1]
    layout = layout_by(run.config, run.provenance, dataset)
    if name not in layout:
        raise _restore(run, each, "it is no array that this version makes")
    aside = set_aside(run.path, each.place)
    run.arrays.create(name, layout[name])
    return f"{aside}made again"


def _labels(run: Run, dataset: Dataset | None, each: Finding) -> str:
    if run.is_imported or dataset is None:
        raise _restore(run, each, "labels come from the data, which is not there")
    name = each.place.split("/")[1]
    aside = set_aside(run.path, each.place)
    theirs = dataset.y if name == "labels" else dataset.y_test
    run.arrays.write(name, np.asarray(theirs))
    return f"{aside}taken from the data"


def _memberships(run: Run, keep: np.ndarray | None, each: Finding) -> str:
    if run.is_imported or (keep is None and "memberships" in run.provenance["fingerprints"]):
        raise _restore(run, each, "these memberships were not drawn by a seed")
    if keep is None:
        keep = run.config.draw(run.arrays.open("keep").shape[1])
    model = each.model or 0
    aside = set_aside(run.path, each.place)
    run.arrays.write("keep", keep[model], model)
    return f"{aside}drawn again from its seed"


def _model(run: Run, model: int) -> dict[str, str]:
    """Make a model a missing one, unless another process has by now; say by place what was done."""
    with locked_model(run.path, model):
        done, broken = states(run)
        broken = [each for each in broken if each.model == model]
        if done[model] == DONE or run.is_imported:
            broken += _broken(model_findings(run, np.array([model]), True))
        if broken and run.is_imported:
            return _imported(run, model, broken)
        # What was broken goes first: a kill in between leaves a done model without it, which is found again.
        said = {
            each.place: f"{each.what}: {set_aside(run.path, each.place)}model {model} is trained again"
            for each in broken
        }
        if broken:
            with contextlib.suppress(FileNotFoundError):
                (run.path / "arrays/attempt/c" / str(model)).unlink()
            run.arrays.write("done", np.array(0, np.uint8), model)
    return said


def _imported(run: Run, model: int, broken: list[Finding]) -> dict[str, str]:
    """Of a model that other code trained, what follows from the rest: it is done, and what its logits say."""
    lost = {each.place.split("/")[1] for each in broken}
    again = answers_from_logits(run, model, lost - {"done", "attempt"})
    for each in broken:
        if each.place.split("/")[1] not in ("done", "attempt", *again):
            raise _restore(run, each, "models that other code trained cannot be trained again")
    said = {}
    for each in broken:
        name = each.place.split("/")[1]
        how = (
            "computed again from what is stored of the model"
            if name in again
            else "all imported models are done"
        )
        said[each.place] = f"{each.what}: {set_aside(run.path, each.place)}{how}"
    for name, values in again.items():
        run.arrays.write(name, values, model)
    run.arrays.write("done", np.array(DONE, np.uint8), model)
    return said


def _of_unknown_signals(run: Run) -> dict[str, str]:
    """Move scores of an earlier version aside, which do not tell what they were computed of."""
    said = {}
    for each in sorted((run.path / "scores").glob("[!.]*")):
        with contextlib.suppress(ValueError):
            if "signals" not in metadata_of(open_array(each))["attributes"]:
                place = f"scores/{each.name}"
                aside = set_aside(run.path, place)
                said[place] = f"may be of models that are trained again: {aside}the report makes it again"
    return said


def _derived(run: Run, each: Finding) -> str:
    """Move scores or files of a report aside, which the next report makes again."""
    if each.model is not None:
        return f"model {each.model} is trained again"
    if each.place.startswith("enough"):
        return (
            "".join(set_aside(run.path, name) for name in ("enough.json", "enough.png"))
            + "lira enough makes it again"
        )
    return f"{set_aside(run.path, each.place)}the report makes it again"
