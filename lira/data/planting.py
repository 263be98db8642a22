"""Canaries are planted into a data set: behind the pool's own examples, and the same ones each time."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np

from lira.data.canaries import TAKEN, Canaries
from lira.data.dataset import DataError, Dataset
from lira.data.paths import expand
from lira.data.sources import load_archive

__all__ = ["plant"]

# Purposes of a seed's streams.
CHOICE, LABELS, FEATURES = range(3)


def plant(dataset: Dataset, canaries: Canaries | None) -> Dataset:
    """The data set with canaries as its last examples, a pure function of the two (and of the file or run they name).

    Those that are examples of the data set, mislabelled and vulnerable ones, leave their place: the pool has so many fewer,
    and none of its examples is a canary's twin. `dataset.canaries` tells later steps of them; None plants nothing.

    Raises:
        DataError: there are more than the data set, or the file, can give, or these are not such examples; one line says
            what to do.
    """
    if canaries is None:
        return dataset
    if dataset.canaries is not None:
        raise DataError(f"{dataset.name} holds canaries already: plant them into the data set as it was")
    room = dataset.num_examples // 2 if canaries.kind in TAKEN else dataset.num_examples
    if canaries.count > room and canaries.kind != "gradient":  # of which the model's weights take some
        raise DataError(
            f"canaries.count is {canaries.count:,}, and of kind {canaries.kind} {dataset.name} with its "
            f"{dataset.num_examples:,} examples takes at most {room:,}: lower it, or take more examples"
        )
    stays = np.arange(dataset.num_examples)
    if canaries.kind in TAKEN:
        taken = (
            _most_vulnerable(dataset, canaries)
            if canaries.kind == "vulnerable"
            else _chosen(dataset, canaries)
        )
        x, y = dataset.x[taken], dataset.y[taken]
        if canaries.kind == "mislabelled":
            away = 1 + _raw(canaries, LABELS, canaries.count) % np.uint64(dataset.num_classes - 1)
            y = ((y + away.astype(np.int64)) % dataset.num_classes).astype(np.int32)
        stays = np.setdiff1d(stays, taken)
    elif canaries.kind == "own":
        x, y = _own(dataset, canaries)
    elif canaries.kind == "gradient":  # places for them: training never looks at these
        x = np.zeros((canaries.count, *dataset.x.shape[1:]), dataset.x.dtype)
        y = (np.arange(canaries.count) % dataset.num_classes).astype(np.int32)
    else:
        x = _drawn(dataset, canaries)
        y = (_raw(canaries, LABELS, canaries.count) % np.uint64(dataset.num_classes)).astype(np.int32)
    missing = np.setdiff1d(np.arange(dataset.num_classes), dataset.y[stays])
    if len(missing):
        raise DataError(
            f"canaries.count is {canaries.count:,}, and these leave no example of class {missing[0]}: lower it"
        )
    files = tuple(dataset.files[i] for i in stays.tolist()) if dataset.files else ()
    return dataclasses.replace(
        dataset,
        x=np.concatenate([dataset.x[stays], x]),
        y=np.concatenate([dataset.y[stays], y]),
        files=(*files, *("canary" for _ in range(canaries.count))) if files else (),
        canaries=canaries,
    )


def _chosen(dataset: Dataset, canaries: Canaries) -> np.ndarray:
    """Random examples, int `[count]`."""
    return np.argsort(_raw(canaries, CHOICE, dataset.num_examples), kind="stable")[: canaries.count]


def _drawn(dataset: Dataset, canaries: Canaries) -> np.ndarray:
    """Features between the least and the largest of the pool, each by itself: `[count, ...]`, all alike of blank ones."""
    shape = (canaries.count, *dataset.x.shape[1:])
    each = 1 if canaries.kind == "blank" else int(np.prod(shape[1:]))
    share = ((_raw(canaries, FEATURES, canaries.count * each) >> np.uint64(11)) * 2.0**-53).reshape(-1, each)
    if dataset.x.dtype == np.uint8:
        values = np.floor(256 * share).astype(np.uint8)
    else:
        flat = dataset.x.reshape(len(dataset.x), -1).astype(np.float64)
        low, high = flat.min(axis=0), flat.max(axis=0)
        values = (low + share * (high - low)).astype(np.float32)
    return np.broadcast_to(values, (canaries.count, int(np.prod(shape[1:])))).reshape(shape)


def _own(dataset: Dataset, canaries: Canaries) -> tuple[np.ndarray, np.ndarray]:
    """The first of a file's, features and labels."""
    path = expand(canaries.file)
    try:
        arrays = load_archive(path, ("x", "y"))
    except OSError as error:
        raise DataError(f"canaries.file {path} cannot be read ({error.strerror}): check the path") from error
    try:  # as held-out examples of the same data are checked and converted
        held = Dataset.from_arrays(
            dataset.x,
            dataset.y,
            x_test=arrays["x"],
            y_test=arrays["y"],
            num_classes=dataset.num_classes,
            class_names=dataset.class_names,
        )
    except DataError as error:
        message = str(error).replace("x_test", f"{path}:x").replace("y_test", f"{path}:y")
        raise DataError(f"canaries.file: {message}") from error
    assert held.x_test is not None
    assert held.y_test is not None
    if held.num_test < canaries.count:
        raise DataError(
            f"canaries.count is {canaries.count:,}, and {path} holds {held.num_test:,}: lower it, or add some"
        )
    return held.x_test[: canaries.count], held.y_test[: canaries.count]


def _most_vulnerable(dataset: Dataset, canaries: Canaries) -> np.ndarray:
    """Those that an earlier run's records rank first (Aerni et al. 2024, arXiv 2404.17399), int `[count]`."""
    directory = Path(expand(canaries.run))
    try:
        known = json.loads((directory / "provenance.json").read_text())["fingerprints"]["dataset"]
        with open(directory / "records.csv", encoding="utf-8", newline="") as file:
            ranked = (row for row in csv.DictReader(file) if row["rank"])  # attacks may leave out some
            rows = [(int(row["rank"]), int(row["index"])) for row in ranked]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"canaries.run {directory} is no run with a report (provenance.json and records.csv: {error}): name one on "
            f"{dataset.name}, or write its report by lira report {directory}"
        ) from error
    if known != dataset.fingerprint:
        raise DataError(
            f"canaries.run {directory} is a run of other data than {dataset.name}: its ranks say nothing of these examples"
        )
    if len(rows) < canaries.count:
        raise DataError(
            f"canaries.count is {canaries.count:,}, and {directory} ranks {len(rows):,} examples: lower it"
        )
    taken = np.array([index for _, index in sorted(rows)[: canaries.count]])
    if len(np.unique(taken)) < len(taken) or taken.min() < 0 or taken.max() >= dataset.num_examples:
        raise DataError(
            f"canaries.run {directory}: records.csv is damaged, for it ranks an example twice, or one that {dataset.name} has "
            f"not: lira verify {directory} says more, and lira run mends it"
        )
    return taken


def _raw(canaries: Canaries, purpose: int, count: int) -> np.ndarray:
    """Philox's raw output, uint64 `[count]`: a stream that NumPy guarantees not to change."""
    return np.random.Philox(key=np.array([canaries.seed, purpose], dtype=np.uint64)).random_raw(count)
