"""Is what is stored whole, and does it fit together? Every part of a directory looked at, and what is broken named.

Without `deep`: sizes and metadata, the checksums of files, the fingerprints of arrays. With it every chunk is read, NaN is
looked for, and memberships are compared with their seed. What earlier versions wrote without checksums is "unchecked".
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from lira.data.dataset import Dataset
from lira.store.arrays import ACCURACIES, DONE, fingerprint_of
from lira.store.checksums import CHECKSUMS, checksum_of, parsed_json
from lira.store.chunks import chunk_faults, chunk_keys, fingerprint, has_checksums
from lira.store.config import ConfigError, read_checked_table, read_directory
from lira.store.making import ARRAYS
from lira.store.run import Run
from lira.store.zarr import CHECKSUM, RunError, metadata_of, open_array

__all__ = [
    "Finding",
    "array_findings",
    "document_findings",
    "findings",
    "keep_findings",
    "label_findings",
    "model_findings",
    "score_findings",
    "states",
]

# Chunks that are read at once.
CHUNKS = 16
# Arrays whose rows are no model's answers.
OTHERS = ("keep", "labels", "labels_test", "done", "attempt")
# What stands beside a document that names it.
BESIDE = {"metrics.json": "report.html", "records.json": "records.csv", "enough.json": "enough.png"}
NOT_AS_WRITTEN = "is not as it was written, by its checksum"
EARLIER = "was written by an earlier version, without a checksum"


class Finding(NamedTuple):
    """What is wrong with one thing, or what could not be looked at."""

    status: str  # "broken" or "unchecked"
    place: str  # in the directory, such as arrays/phi/c/3/0/0
    what: str  # such as "is missing"
    model: int | None = None  # whose it is


def findings(path: Path, *, dataset: Dataset | None = None, deep: bool = False) -> Iterator[Finding]:
    """All that is broken or unchecked in a directory of a run, an unlearning, an imitation or an audit.

    Args:
        path: the directory.
        dataset: the run's data, whose labels are compared; None goes without.
        deep: read every chunk.
    """
    if (path / "zarr.json").exists():
        yield from _stored(path, ".", deep)
        return
    inside = "[!.]*"
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
        for file in sorted(path.glob("*.toml")):
            yield from _table_findings(file)
        yield from document_findings(path, deep)
    for each in sorted(path.glob(inside)):
        if each.is_dir():
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
    if _sound(run, ["done"]):
        yield from model_findings(run, np.flatnonzero(done == DONE), deep)
        yield from score_findings(run, done, deep)
    yield from document_findings(run.path, deep)


def _table_findings(file: Path) -> Iterator[Finding]:
    try:
        _, whole = read_checked_table(file)
    except ConfigError as error:
        yield Finding("broken", file.name, str(error).removeprefix(f"{file}: "))
        return
    if whole is not True:
        yield Finding(*(("unchecked", file.name, EARLIER) if whole is None else _altered(file.name)))


def _altered(place: str) -> tuple[str, str, str]:
    return "broken", place, NOT_AS_WRITTEN


# --- Arrays ----------------------------------------------------------------------------------------------------------


def _names(run: Run) -> list[str]:
    """The arrays that a run should have; of earlier versions those that it has."""
    if ARRAYS in run.provenance:
        return list(run.provenance[ARRAYS])
    there = {place.name for place in (run.path / "arrays").iterdir() if place.is_dir()}
    return sorted(there | {"keep", "labels", "done", "phi", *ACCURACIES})


def array_findings(run: Run) -> Iterator[Finding]:
    """Of what the arrays' zarr.json say."""
    opened = _opened(run, _names(run))
    N = opened["keep"].shape[1] if isinstance(opened.get("keep"), ts.TensorStore) else None
    for name, store in opened.items():
        place = f"arrays/{name}/zarr.json"
        if not isinstance(store, ts.TensorStore):
            yield Finding("broken", place, store)
        elif CHECKSUM not in metadata_of(store)["attributes"]:
            yield Finding(*(_altered(place) if ARRAYS in run.provenance else ("unchecked", place, EARLIER)))
        elif name == "labels" and N is not None and store.shape[0] != N:
            yield Finding("broken", place, f"is of {store.shape[0]} examples, and arrays/keep of {N}")
        elif not name.startswith("labels") and store.shape[0] < run.config.num_models:
            yield Finding("broken", place, f"has fewer rows than num_models = {run.config.num_models}")


def _opened(run: Run, names: Iterable[str]) -> dict[str, ts.TensorStore | str]:
    """Arrays by name, or why they cannot be opened."""
    opened: dict[str, ts.TensorStore | str] = {}
    for name in names:
        try:
            opened[name] = open_array(run.path / "arrays" / name, fill_missing=name in ("done", "attempt"))
        except ValueError as error:
            there = (run.path / "arrays" / name / "zarr.json").exists()
            opened[name] = f"cannot be used: {_reason(error)}" if there else "is missing"
    return opened


def _sound(run: Run, names: Iterable[str]) -> dict[str, ts.TensorStore]:
    """Those that can be opened and have a row for every model."""
    M = run.config.num_models
    return {
        name: store
        for name, store in _opened(run, names).items()
        if isinstance(store, ts.TensorStore) and (name.startswith("labels") or store.shape[0] >= M)
    }


def label_findings(run: Run, dataset: Dataset | None = None) -> Iterator[Finding]:
    """Of the labels, against the data where these are there."""
    fingerprint = run.provenance["fingerprints"]["dataset"]
    for name, store in _sound(run, [name for name in _names(run) if name.startswith("labels")]).items():
        found = list(_chunks(store, f"arrays/{name}", None, deep=True))
        yield from found
        if found:
            continue
        values = np.asarray(store.read().result())
        theirs = None if dataset is None else dataset.y if name == "labels" else dataset.y_test
        if run.is_imported and name == "labels":
            altered = hashlib.sha256(values.tobytes()).hexdigest() != fingerprint
        else:
            altered = dataset is not None and not run.is_imported and not np.array_equal(values, theirs)  # pyright: ignore[reportArgumentType]
        if altered:
            yield Finding("broken", f"arrays/{name}/c/0", "holds other labels than the data")


def keep_findings(run: Run, keep: np.ndarray | None = None, *, deep: bool = False) -> Iterator[Finding]:
    """Of the memberships, with `deep` against their seed, or those that were given, `keep`, bool `[M, N]`."""
    store = _sound(run, ["keep"]).get("keep")
    if store is None:
        return
    M = run.config.num_models
    found = list(_chunks(store, "arrays/keep", range(M), deep))
    yield from found
    if found or not deep:
        return
    stored, given = np.asarray(store[:M].read().result()), run.provenance["fingerprints"].get("memberships")
    if given is not None and fingerprint_of(stored) == given:
        return
    if given is None and not run.is_imported:
        keep = run.config.membership.draw(run.config.membership_seed, M, stored.shape[1])
    if keep is not None:
        for model in np.flatnonzero((keep != stored).any(axis=1)).tolist():
            yield Finding("broken", f"arrays/keep/c/{model}", "is not what its seed gives", model)
    elif given is not None:
        yield Finding("broken", "arrays/keep/c", "holds other memberships than were given")


def states(run: Run) -> tuple[np.ndarray, list[Finding]]:
    """State of every model, uint8 `[M]`, and what is wrong with these; what cannot be read is taken for missing."""
    M = run.config.num_models
    store = _sound(run, ["done"]).get("done")
    if store is None:
        return np.zeros(M, np.uint8), []
    try:
        return np.asarray(store[:M].read().result()), []
    except ValueError:
        found = [each for each in _chunks(store, "arrays/done", range(M), True) if each.what != "is missing"]
    done = np.zeros(M, np.uint8)
    whole = np.setdiff1d(np.arange(M), [each.model for each in found])
    done[whole] = np.asarray(store[whole].read().result())
    return done, found


def model_findings(run: Run, models: np.ndarray, deep: bool = False) -> Iterator[Finding]:
    """Of what is stored of some done models, int `[m]`."""
    names = [name for name in _names(run) if name not in OTHERS]
    for name, store in _sound(run, names).items():
        place, rows = f"arrays/{name}", models.tolist()
        if not has_checksums(store):
            yield Finding("unchecked", place, EARLIER)
        bound = None
        if store.dtype == ts.float32 and store.ndim > 1:  # single figures are NaN where they are not known
            bound = np.inf if name.startswith("phi") and not run.is_imported else np.nan
        yield from _chunks(store, place, rows, deep, bound)
    # An absent one is the first attempt.
    for store in _sound(run, ["attempt"]).values():
        found = _chunks(store, "arrays/attempt", models.tolist(), deep)
        yield from (each for each in found if each.what != "is missing")


def _chunks(
    store: ts.TensorStore, place: str, rows: Iterable[int] | None, deep: bool, bound: float | None = None
) -> Iterator[Finding]:
    """Of an array's chunks, or of those of some rows: their sizes, and with `deep` what reading them shows, see `_read`."""
    keys = chunk_keys(store, rows)
    faults = chunk_faults(store, keys) if has_checksums(store) else {}
    if deep:
        faults |= _read(store, [key for key in keys if key not in faults], bound)
    for key in keys:
        if key in faults:
            model = None if rows is None else int(key.split("/")[1])
            yield Finding("broken", f"{place}/{key}", faults[key], model)


def _read(store: ts.TensorStore, keys: Sequence[str], bound: float | None) -> dict[str, str]:
    """By file what is wrong with its contents: they cannot be read, or are no numbers below a bound (NaN: any numbers)."""
    sizes, faults = store.chunk_layout.write_chunk.shape, {}
    for first in range(0, len(keys), CHUNKS):
        reading = {}
        for key in keys[first : first + CHUNKS]:
            index = zip(map(int, key.split("/")[1:]), sizes, store.shape, strict=True)
            part = tuple(slice(i * size, min((i + 1) * size, n)) for i, size, n in index)
            reading[key] = store[part].read()
        for key, each in reading.items():
            try:
                values = np.asarray(each.result())
            except ValueError as error:
                faults[key] = f"is damaged: {_reason(error)}"
                continue
            if (
                bound is not None
                and not (~np.isnan(values) if np.isnan(bound) else np.abs(values) < bound).all()
            ):
                faults[key] = "holds NaN or infinity"
    return faults


def _reason(error: Exception) -> str:
    """Without where in TensorStore, and in which file."""
    return str(error).split(" [", 1)[0].splitlines()[0].rsplit('": ', 1)[-1]


def _stored(place: Path, name: str, deep: bool) -> Iterator[Finding]:
    """Of an array, or a group of arrays, by itself."""
    try:
        store = open_array(place)
    except ValueError as error:
        inner = sorted(each.parent for each in place.glob("*/zarr.json"))
        if not inner:
            yield Finding("broken", f"{name}/zarr.json", f"cannot be used: {_reason(error)}")
        for each in inner:
            yield from _stored(each, f"{name}/{each.name}", deep)
        return
    if CHECKSUM not in metadata_of(store)["attributes"]:
        yield Finding("unchecked", f"{name}/zarr.json", EARLIER)
    yield from _chunks(store, name, None, deep)


# --- What is derived -------------------------------------------------------------------------------------------------


def score_findings(
    run: Run, done: np.ndarray, deep: bool = False, attacks: Iterable[str] | None = None
) -> Iterator[Finding]:
    """Of the stored scores, or of some attacks: whole, of models that are `done`, and of the signals that are stored."""
    known: dict[tuple[int, ...], str] = {}
    lost: set[int] = set()
    there = sorted(each.name for each in (run.path / "scores").glob("[!.]*"))
    for name in there if attacks is None else attacks:
        place, models = f"scores/{name}", None
        try:
            store = open_array(run.path / place)
            attributes = metadata_of(store)["attributes"]
            models = np.array(attributes["models"], int)
        except (ValueError, KeyError) as error:
            yield Finding("broken", place, f"cannot be used: {_reason(error)}")
            continue
        if CHECKSUM not in attributes:
            yield Finding(*(_altered(place) if ARRAYS in run.provenance else ("unchecked", place, EARLIER)))
        found = [each.what for each in _chunks(store, place, None, deep)]
        if not found and deep and np.isnan(_scored(run, store, models)).any():
            found = ["holds NaN"]
        if found:
            yield Finding(
                "broken", place, found[0] if len(found) == 1 else f"{found[0]}, in {len(found)} chunks"
            )
        gone = models[done[models] != DONE].tolist()
        for model in sorted(set(gone) - lost):
            yield Finding("broken", f"arrays/done/c/{model}", f"does not call done what {place} is of", model)
        lost |= set(gone)
        if gone or "signals" not in attributes:
            continue
        if (key := tuple(models.tolist())) not in known:
            try:
                known[key] = run.fingerprint(models)
            except RunError:  # an array cannot be opened, which is said already
                known[key] = ""
        if known[key] not in ("", attributes["signals"]):
            yield Finding("broken", place, "was computed of other signals than are stored")


def _scored(run: Run, store: ts.TensorStore, models: np.ndarray) -> np.ndarray:
    """What is defined of an array of scores, `[t, n]`; nothing where memberships cannot be read."""
    targets = models[models < run.config.membership.num_targets] if run.is_disjoint else models
    try:
        return np.asarray(store[targets].read().result())[:, run.audited]
    except (ValueError, IndexError):
        return np.empty(0)


def document_findings(
    path: Path, deep: bool = False, names: Iterable[str] | None = None
) -> Iterator[Finding]:
    """Of the JSON documents of a directory, or some, the files that each names, and the arrays that it is of."""
    there = {file.name for file in path.glob("[!.]*.json")} - {"provenance.json", "zarr.json"}
    for name in sorted(there if names is None else names):
        if (path / name).exists():
            yield from _document(path / name, deep)
        elif names is not None:
            yield Finding("broken", name, "is missing")
    for name, other in BESIDE.items():
        if names is None and (path / other).exists() and not (path / name).exists():
            yield Finding("broken", name, "is missing")


def _document(file: Path, deep: bool) -> Iterator[Finding]:
    try:
        document, whole = parsed_json(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        yield Finding("broken", file.name, f"cannot be read: {_reason(error)}")
        return
    if not whole:
        earlier = whole is None and "files" not in document
        yield Finding(*(("unchecked", file.name, EARLIER) if earlier else _altered(file.name)))
        return
    for name, checksum in document["files"].items():
        place = file.parent / name
        if not place.exists():
            yield Finding("broken", name, "is missing")
        elif checksum_of(place.read_bytes()) != checksum:
            yield Finding(*_altered(name))
    for name, known in document["arrays"].items():
        if not (file.parent / name).exists():
            yield Finding("broken", name, "is missing")
            continue
        theirs = name.startswith("scores/")  # looked at by themselves, too
        try:
            store = open_array(file.parent / name)
        except ValueError as error:
            if not theirs:
                yield Finding("broken", name, f"cannot be used: {_reason(error)}")
            continue
        if not theirs:
            yield from itertools.islice(_chunks(store, name, None, deep), 1)
        if fingerprint({name: (store, None)}) not in ("", known):
            yield Finding("broken", file.name, f"is of other values than {name} holds")
