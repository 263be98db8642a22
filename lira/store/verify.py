"""Is a directory whole? Every part of it looked at, and what is broken named.

Without `deep`: sizes and metadata, the checksums of files, the fingerprints of arrays. With it every chunk is read, NaN is
looked for, and memberships are compared with their seed. What earlier versions wrote without checksums is "unchecked".
"""

import json
from collections.abc import Iterator, Set
from typing import NamedTuple

import numpy as np

from lira.data.dataset import Dataset
from lira.store.arrays import DONE
from lira.store.checksums import CHECKSUMS
from lira.store.config import ConfigError, read_checked_table, read_directory
from lira.store.errors import RunError
from lira.store.files import content_of
from lira.store.objects import UnreadableFileError
from lira.store.places import Place
from lira.store.run import Run
from lira.store.verify_arrays import (
    BROKEN,
    EARLIER,
    Finding,
    altered,
    array_findings,
    chunk_findings,
    keep_findings,
    label_findings,
    model_findings,
    short_reason,
    sound,
    states,
)
from lira.store.verify_derived import document_findings, score_findings
from lira.store.zarr import CHECKSUM, metadata_of, open_array

__all__ = ["findings"]


class _Kind(NamedTuple):
    """A directory of several runs that is more than these."""

    table: str  # its configuration
    keys: Set[str]  # that it has in every version
    made_with: str  # an array, or a group of the arrays
    arrays: tuple[str, ...]
    at_once: bool  # whether that is there from the beginning, or from the first run on


KINDS = (
    _Kind(
        "imitation.toml",
        {"target", "answers", "num_imitators", "seed", "methods"},
        "target",
        ("logits", "phi", "member"),
        False,
    ),
    _Kind("config.toml", {"dataset", "forget"}, "forget", (), True),
)


def findings(path: Place, *, dataset: Dataset | None = None, deep: bool = False) -> Iterator[Finding]:
    """All that is broken or unchecked in a directory of a run, an unlearning, an imitation or an audit, or of such directories.

    Args:
        path: the directory.
        dataset: the run's data, whose labels are compared; None goes without.
        deep: read every chunk.
    """
    if (path / "zarr.json").exists():
        yield from _stored(path, ".", deep)
        return
    inside, kind = "[!.]*", None
    if (path / "provenance.json").exists() or (path / "arrays").exists():
        inside = "imitations"
        try:
            run = Run(path, *read_directory(path))
        except RunError as error:
            name = "provenance.json" if "provenance.json" in str(error) else "config.toml"
            what = str(error).removeprefix(f"{path}: ")
            yield Finding("broken", name, what.removeprefix("the run directory is damaged: "))
        else:
            yield from _run_findings(run, dataset, deep)
    else:
        if kind := _kind_of(path):
            yield from _made_with(path, kind, deep)
        elif path.name != "imitations":
            dataset = None  # runs side by side may be of different data
        yield from document_findings(path, deep)
    for each in sorted(path.glob(inside)):
        if each.is_dir() and each.name not in (BROKEN, kind and kind.made_with):
            for found in findings(each, dataset=dataset, deep=deep):
                inner = "" if found.place == "." else f"/{found.place.removeprefix('./')}"
                yield found._replace(place=f"{each.name}{inner}", model=None)


def _run_findings(run: Run, dataset: Dataset | None, deep: bool) -> Iterator[Finding]:
    if not run.provenance.get(CHECKSUMS):
        yield Finding("unchecked", "config.toml", EARLIER)
    yield from array_findings(run)
    yield from label_findings(run, dataset)
    yield from keep_findings(run, deep=deep)
    done, broken = states(run)
    yield from broken
    if sound(run, ["done"]):
        yield from model_findings(run, np.flatnonzero(done == DONE), deep)
        yield from score_findings(run, done, deep)
    yield from document_findings(run.path, deep)


def _kind_of(path: Place) -> _Kind | None:
    """What a directory of several runs is, by its table or what it is made with; None: of a grid, or runs side by side."""
    for kind in KINDS:
        made_with = path / kind.made_with
        if (path / kind.table).exists() or (made_with.exists() and not (made_with / "config.toml").exists()):
            return kind
    return None


def _made_with(path: Place, kind: _Kind, deep: bool) -> Iterator[Finding]:
    """Of what such a directory is made with: its table and its arrays."""
    if (path / kind.table).exists():
        yield from _table_findings(path / kind.table, kind.keys)
    else:
        yield Finding("broken", kind.table, "is missing")
    place = kind.made_with
    if not (path / place).exists():
        if kind.at_once or any(path.glob("*/config.toml")):
            yield Finding("broken", place, "is missing")
        return
    if kind.arrays and not _is_group(path / place / "zarr.json"):
        yield Finding("broken", f"{place}/zarr.json", "is missing or no group's")
    for name in (f"{place}/{each}" for each in kind.arrays) if kind.arrays else (place,):
        yield from _stored(path / name, name, deep)


def _is_group(file: Place) -> bool:
    try:
        return json.loads(content_of(file))["node_type"] == "group"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _table_findings(file: Place, keys: Set[str]) -> Iterator[Finding]:
    try:
        table, whole = read_checked_table(file)
    except ConfigError as error:
        yield Finding("broken", file.name, str(error).removeprefix(f"{file}: "))
        return
    if missing := sorted(keys - table.keys()):
        yield Finding("broken", file.name, f"is not whole: it has no {', '.join(missing)}")
    elif whole is not True:
        yield Finding(*(("unchecked", file.name, EARLIER) if whole is None else altered(file.name)))


def _stored(place: Place, name: str, deep: bool) -> Iterator[Finding]:
    """Of an array, or a group of arrays, by itself."""
    try:
        store = open_array(place)
    except (ValueError, UnreadableFileError) as error:
        inner = sorted(each.parent for each in place.glob("*/zarr.json"))
        if not inner:
            yield Finding("broken", f"{name}/zarr.json", f"cannot be used: {short_reason(error)}")
        for each in inner:
            yield from _stored(each, f"{name}/{each.name}", deep)
        return
    if CHECKSUM not in metadata_of(store)["attributes"]:
        yield Finding("unchecked", f"{name}/zarr.json", EARLIER)
    yield from chunk_findings(store, name, None, deep)
