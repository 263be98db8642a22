"""Is what is stored of models and examples whole, and does it fit together?"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from lira.data.dataset import Dataset
from lira.store.arrays import ACCURACIES, fingerprint_of
from lira.store.chunks import chunk_faults, chunk_keys, chunk_shape, has_checksums
from lira.store.making import ARRAYS
from lira.store.objects import UnreadableFileError, reason_of
from lira.store.run import Run
from lira.store.zarr import CHECKSUM, metadata_of, open_array, read_store

__all__ = [
    "BROKEN",
    "EARLIER",
    "Finding",
    "altered",
    "array_findings",
    "chunk_findings",
    "keep_findings",
    "label_findings",
    "model_findings",
    "short_reason",
    "sound",
    "states",
]

# Chunks that are read at once.
CHUNKS = 16
# Arrays whose rows are no model's answers.
OTHERS = ("keep", "labels", "labels_test", "done", "attempt")
# Where what was broken is moved to, in its directory.
BROKEN = "broken"
EARLIER = "was written by an earlier version, without a checksum"


class Finding(NamedTuple):
    """What is wrong with one thing, or what could not be looked at."""

    status: str  # "broken" or "unchecked"
    place: str  # in the directory, such as arrays/phi/c/3/0/0
    what: str  # such as "is missing"
    model: int | None = None  # whose it is


def altered(place: str) -> tuple[str, str, str]:
    return "broken", place, "is not as it was written, by its checksum"


def names_of(run: Run) -> list[str]:
    """The arrays that a run should have; of earlier versions those that it has."""
    if ARRAYS in run.provenance:
        return list(run.provenance[ARRAYS])
    there = {place.name for place in (run.path / "arrays").iterdir() if place.is_dir()}
    return sorted(there | {"keep", "labels", "done", "phi", *ACCURACIES})


def array_findings(run: Run) -> Iterator[Finding]:
    """Of what the arrays' zarr.json say."""
    opened = _opened(run, names_of(run))
    keep = opened.get("keep")
    N = keep.shape[1] if isinstance(keep, ts.TensorStore) else None
    for name, store in opened.items():
        place = f"arrays/{name}/zarr.json"
        if not isinstance(store, ts.TensorStore):
            yield Finding("broken", place, store)
        elif CHECKSUM not in metadata_of(store)["attributes"]:
            yield Finding(*(altered(place) if ARRAYS in run.provenance else ("unchecked", place, EARLIER)))
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
        except (ValueError, UnreadableFileError) as error:
            there = (run.path / "arrays" / name / "zarr.json").exists()
            opened[name] = f"cannot be used: {short_reason(error)}" if there else "is missing"
    return opened


def sound(run: Run, names: Iterable[str]) -> dict[str, ts.TensorStore]:
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
    for name, store in sound(run, [name for name in names_of(run) if name.startswith("labels")]).items():
        found = list(chunk_findings(store, f"arrays/{name}", None, deep=True))
        yield from found
        if found:
            continue
        values = np.asarray(store.read().result())
        if run.is_imported:
            differ = name == "labels" and hashlib.sha256(values.tobytes()).hexdigest() != fingerprint
        else:
            theirs = None if dataset is None else dataset.y if name == "labels" else dataset.y_test
            differ = theirs is not None and not np.array_equal(values, theirs)
        if differ:
            yield Finding("broken", f"arrays/{name}/c/0", "holds other labels than the data")


def keep_findings(run: Run, keep: np.ndarray | None = None, *, deep: bool = False) -> Iterator[Finding]:
    """Of the memberships, with `deep` against their seed, or those that were given, `keep`, bool `[M, N]`."""
    store = sound(run, ["keep"]).get("keep")
    if store is None:
        return
    M = run.config.num_models
    found = list(chunk_findings(store, "arrays/keep", range(M), deep))
    yield from found
    if found or not deep:
        return
    stored, given = np.asarray(store[:M].read().result()), run.provenance["fingerprints"].get("memberships")
    if given is not None and fingerprint_of(stored) == given:
        return
    if given is None and not run.is_imported:
        keep = run.config.draw(stored.shape[1])
    if keep is not None:
        for model in np.flatnonzero((keep != stored).any(axis=1)).tolist():
            yield Finding("broken", f"arrays/keep/c/{model}", "is not what its seed gives", model)
    elif given is not None:
        yield Finding("broken", "arrays/keep/c", "holds other memberships than were given")


def states(run: Run) -> tuple[np.ndarray, list[Finding]]:
    """State of every model, uint8 `[M]`, and what is wrong with these; what cannot be read is taken for missing.

    A model that is not there is not trained yet; of imported ones, which all were written, it is lost.
    """
    M = run.config.num_models
    store = sound(run, ["done"]).get("done")
    if store is None:
        return np.zeros(M, np.uint8), []
    try:
        done = read_store(store[:M], "arrays/done")
        if not run.is_imported or done.all():
            return done, []
    except (ValueError, UnreadableFileError):
        pass
    found = [
        each
        for each in chunk_findings(store, "arrays/done", range(M), True)
        if run.is_imported or each.what != "is missing"
    ]
    done = np.zeros(M, np.uint8)
    whole = np.setdiff1d(np.arange(M), [int(each.place.rsplit("/", 1)[1]) for each in found])
    done[whole] = np.asarray(store[whole].read().result())
    return done, found


def model_findings(run: Run, models: np.ndarray, deep: bool = False) -> Iterator[Finding]:
    """Of what is stored of some done models, int `[m]`."""
    names = [name for name in names_of(run) if name not in OTHERS]
    for name, store in sound(run, names).items():
        place, rows = f"arrays/{name}", models.tolist()
        if not has_checksums(store):
            yield Finding("unchecked", place, EARLIER)
        bound = None
        if store.dtype == ts.float32 and store.ndim > 1:  # single figures are NaN where they are not known
            bound = np.inf if name.startswith("phi") and not run.is_imported else np.nan
        yield from chunk_findings(store, place, rows, deep, bound)
    # An absent one is the first attempt.
    for store in sound(run, ["attempt"]).values():
        found = chunk_findings(store, "arrays/attempt", models.tolist(), deep)
        yield from (each for each in found if each.what != "is missing")


def chunk_findings(
    store: ts.TensorStore, place: str, rows: Iterable[int] | None, deep: bool, bound: float | None = None
) -> Iterator[Finding]:
    """Of an array's chunks, or of those of some rows: their sizes, and with `deep` what reading them shows, see `_read`."""
    keys = chunk_keys(store, rows)
    faults = chunk_faults(store, keys)
    if deep:
        faults |= _read(store, [key for key in keys if key not in faults], bound)
    for key in keys:
        if key in faults:
            model = None if rows is None else int(key.split("/")[1])
            yield Finding("broken", f"{place}/{key}", faults[key], model)


def _read(store: ts.TensorStore, keys: Sequence[str], bound: float | None) -> dict[str, str]:
    """By file what is wrong with its contents: they cannot be read, or are no numbers below a bound (NaN: any numbers)."""
    sizes, faults = chunk_shape(store), {}
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
                faults[key] = f"is damaged: {short_reason(error)}"
                continue
            if (
                bound is not None
                and not (~np.isnan(values) if np.isnan(bound) else np.abs(values) < bound).all()
            ):
                faults[key] = "holds NaN or infinity"
    return faults


def short_reason(error: Exception) -> str:
    """TensorStore's reason without the file, which a finding names."""
    return reason_of(error).rsplit('": ', 1)[-1]
