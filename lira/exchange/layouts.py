"""Runs of other code: read their directories into a run.

    carlini         DIR/y_train.npy [N], DIR/experiment-{i}_{n}/{keep.npy [N], logits/{epoch:010}.npy [N, 1, Q, C],
                    scores/{epoch:010}.npy [N, Q], hparams.json}: the code of Carlini et al. 2022
    pytorch         DIR/{i}/{keep.npy [N], logits.npy [N, Q, C], scores.npy [N, Q]}: its PyTorch port
    privacy-meter   DIR/models/memberships.npy [M, N], DIR/signals/*_signals.npy [N, M]: ML Privacy Meter

Logits are preferred to scores, which these codes compute with probabilities that saturate.
"""

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.files import read_array
from lira.exchange.confidences import (
    as_keep,
    as_labels,
    convert_models,
    located,
    pair_order,
    to_signals,
)
from lira.metrics.coins import check_coins
from lira.signals import replace_saturated
from lira.store.imported import run_of_models
from lira.store.places import directory_at, require_new
from lira.store.run import Run

__all__ = ["LAYOUTS", "LayoutError", "import_run"]


class LayoutError(ValueError):
    """A directory that does not hold what its layout promises; the message names the file."""


@dataclasses.dataclass(frozen=True)
class _Models:
    """What a directory holds, opened but not read: `signals[m]` is a model's logits [N, Q, C] or phi [N, Q]."""

    names: list[str]  # of the models, for messages
    keep: np.ndarray  # bool [M, N]
    labels: np.ndarray | None  # int [N]
    kind: str  # logits or phi
    signals: Sequence[np.ndarray]
    source: dict[str, Any]  # more for provenance.json


def import_run(
    layout: str,
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    labels: np.ndarray | None = None,
    independent: bool = False,
    trust_order: bool = False,
) -> Run:
    """Make a run directory of what other code left behind; `lira score` and `lira report` work on it.

    Everything is checked before the run appears. Files are mapped, and one model is in memory at a time.

    Args:
        layout: one of `LAYOUTS`.
        directory: to read.
        path: the run directory to make, new or empty.
        labels: int `[N]`, where the layout has none of its own; logits need them.
        independent: declares that each membership (of one model of each pair) was drawn by a coin of its own, all of
            one probability. It is kept with the run; reports claim no epsilon without it.
        trust_order: declares that logits, labels and memberships are in the same order; what speaks against it is then a
            warning.

    Raises:
        LayoutError: files are missing, of shapes or epochs that disagree, or hold what cannot be: NaN, labels that the
            logits contradict, memberships that the confidences contradict.
        RunError: the run directory cannot be made.
    """
    require_new(directory_at(path))
    try:
        directory = Path(directory).expanduser().absolute()
    except RuntimeError as error:
        raise LayoutError(f"{directory}: there is no such home directory: spell the path out") from error
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {layout!r}: the layouts are {', '.join(LAYOUTS)}")
    if not directory.is_dir():
        raise LayoutError(f"{directory}: is not a directory")
    models = LAYOUTS[layout](directory)
    M, N = models.keep.shape
    for row, name in zip(models.keep, models.names, strict=True):
        if row.all() or not row.any():
            raise LayoutError(
                f"{directory}: {name} was trained on {'all' if row.all() else 'none'} of the examples"
            )
    given = models.labels if labels is None else labels
    with located(directory, LayoutError):
        known = None if given is None else as_labels(given, N)
        if independent:
            check_coins(models.keep, known)
    if models.source["requested"] != M:
        warnings.warn(f"{directory}: {M} of {models.source['requested']} models are there", stacklevel=2)
    order = pair_order(models.keep, models.names)
    if order is not None:
        models = dataclasses.replace(
            models,
            names=[models.names[m] for m in order],
            keep=models.keep[order],
            signals=[models.signals[m] for m in order],
        )
    source = {"layout": layout, "path": str(directory), "independent": independent, **models.source}
    stored = np.full(N, -1) if known is None else known
    return run_of_models(
        path, models.keep, stored, _rows(directory, models, known, trust_order), source=source
    )


def _rows(
    directory: Path, models: _Models, labels: np.ndarray | None, trust_order: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Each model's arrays; after the last, whether all of them fit the labels and the memberships."""
    named = zip(models.names, models.signals, strict=True)
    with located(directory, LayoutError):
        converted = convert_models(models.kind, named, labels, models.keep, trust_order=trust_order)
        for (signals, correct), name, keep, values in zip(
            converted, models.names, models.keep, models.signals, strict=True
        ):
            if np.isinf(signals["phi"]).any():
                raise ValueError(f"{name}: holds infinite confidences: leave that model out")
            inside, outside = (
                (np.nan, np.nan) if correct is None else (correct[keep].mean(), correct[~keep].mean())
            )
            figures = {"accuracy_in": inside, "accuracy_out": outside, "accuracy_test": np.nan}
            arrays = {name: np.asarray(each, np.float32) for name, each in {**signals, **figures}.items()}
            if models.kind == "logits":
                arrays["logits"] = np.asarray(values, np.float32)
            yield arrays


# --- The layouts ----------------------------------------------------------------------------------------------------


def _carlini(directory: Path) -> _Models:
    folders = _numbered(directory, r"experiment-(\d+)_(\d+)", "experiment-{i}_{n}")
    requested = {int(match[2]) for match in folders.values()}
    if len(requested) > 1:
        counts = ", ".join(map(str, sorted(requested)))
        raise LayoutError(
            f"{directory}: holds experiments of {counts} models each: keep one set in a directory"
        )
    newest = [_last_epoch(folder) for folder in folders]
    kind = "logits" if all("logits" in each for each in newest) else "scores"
    for folder, each in zip(folders, newest, strict=True):
        if kind not in each:
            raise LayoutError(
                f"{folder}: has neither logits/*.npy nor scores/*.npy: finish that model or remove it"
            )
    files = [each[kind] for each in newest]
    for file in files:
        if int(file.stem) != int(files[0].stem):
            raise LayoutError(
                f"{file}: is this model's last epoch, and {files[0].name} that of {files[0].parts[-3]}: bring all "
                f"models to one epoch, or remove the later files"
            )
    source = {
        "file": f"{kind}/{files[0].name}",
        "epoch": int(files[0].stem),
        "requested": requested.pop(),
        "hparams": _read_hparams(next(iter(folders)) / "hparams.json"),
    }
    models = _of_folders(folders, files, 4 if kind == "logits" else 2, source)
    labels, signals = np.asarray(read_array(directory / "y_train.npy")), models.signals
    if kind == "logits":
        if signals[0].shape[1] != 1:
            raise LayoutError(f"{files[0]}: must be [N, 1, Q, C]; got {signals[0].shape}")
        signals = [each[:, 0] for each in signals]
    return dataclasses.replace(models, labels=labels, signals=signals)


def _pytorch(directory: Path) -> _Models:
    folders = _numbered(directory, r"(\d+)", "{i}")
    kind = "logits" if all((folder / "logits.npy").exists() for folder in folders) else "scores"
    numbers = [int(match[1]) for match in folders.values()]
    source = {"file": f"{kind}.npy", "requested": numbers[-1] - numbers[0] + 1}
    files = [folder / f"{kind}.npy" for folder in folders]
    return _of_folders(folders, files, 3 if kind == "logits" else 2, source)


def _privacy_meter(directory: Path) -> _Models:
    keep = as_keep(np.asarray(read_array(directory / "models" / "memberships.npy")), "memberships.npy")
    files = [directory / "signals" / f"{name}_signals.npy" for name in ("rmia", "loss")]
    file = next((each for each in files if each.exists()), files[0])
    values = np.asarray(read_array(file))
    if keep.ndim != 2 or values.shape != keep.shape[::-1]:
        turned = "; it is transposed" if values.shape == keep.shape else ""
        raise LayoutError(
            f"{file}: must be [examples, models] = {keep.shape[::-1]}, the transpose of memberships.npy; got "
            f"{values.shape}{turned}"
        )
    # Both files hold the softmax of the label in its newer versions; loss_signals.npy holds losses in older ones.
    kind = "losses" if file == files[1] and np.nanmax(values) > 1 else "confidences"
    with located(file, LayoutError):
        phi = np.stack([to_signals(kind, column, None)[0]["phi"] for column in values.T])
    phi = replace_saturated(phi, values.dtype)
    source = {"file": f"signals/{file.name}", "requested": len(keep)}
    return _Models([f"model {m}" for m in range(len(keep))], keep, None, "phi", list(phi), source)


LAYOUTS: dict[str, Callable[[Path], _Models]] = {
    "carlini": _carlini,
    "pytorch": _pytorch,
    "privacy-meter": _privacy_meter,
}


def _numbered(directory: Path, pattern: str, wanted: str) -> dict[Path, re.Match[str]]:
    """The models' directories in the order of their numbers: as text, 10 comes before 2."""
    folders = {
        each: match
        for each in directory.iterdir()
        if (match := re.fullmatch(pattern, each.name)) and each.is_dir()
    }
    if not folders:
        raise LayoutError(f"{directory}: holds no directory {wanted}")
    return dict(sorted(folders.items(), key=lambda item: int(item[1][1])))


def _last_epoch(folder: Path) -> dict[str, Path]:
    """The newest file of each kind that a model has."""
    epochs = {
        kind: [file for file in (folder / kind).glob("*.npy") if file.stem.isdigit()]
        for kind in ("logits", "scores")
    }
    return {kind: max(files, key=lambda file: int(file.stem)) for kind, files in epochs.items() if files}


def _same_shapes(files: Sequence[Path], axes: int) -> list[np.ndarray]:
    """Map the models' files; all must have the shape of the first."""
    arrays = [np.asanyarray(read_array(file)) for file in files]
    for file, array in zip(files, arrays, strict=True):
        if array.ndim != axes or array.shape != arrays[0].shape:
            raise LayoutError(
                f"{file}: has shape {array.shape}; all models need one shape of {axes} axes, and {files[0]} has "
                f"{arrays[0].shape}"
            )
    return arrays


def _read_hparams(file: Path) -> dict[str, Any]:
    try:
        hparams = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(hparams, dict):
        raise LayoutError(f"{file}: must hold a table of hyperparameters; got {type(hparams).__name__}")
    return hparams


def _of_folders(folders: Iterable[Path], files: Sequence[Path], axes: int, source: dict[str, Any]) -> _Models:
    """Models of a directory each: its keep.npy, and a file of logits (three axes or more) or of phi (two)."""
    signals, rows = _same_shapes(files, axes), []
    for folder in folders:
        row = as_keep(np.asarray(read_array(folder / "keep.npy")), f"{folder}/keep.npy")
        if row.shape != signals[0].shape[:1]:
            raise LayoutError(
                f"{folder}/keep.npy: must be [{len(signals[0])}], as many as the model was asked about; got {row.shape}"
            )
        rows.append(row)
    names = [folder.name for folder in folders]
    return _Models(names, np.stack(rows), None, "logits" if axes > 2 else "phi", signals, source)
