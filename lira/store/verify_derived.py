"""Are scores and reports whole, and of what is stored now?"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import tensorstore as ts

from lira.membership import is_paired
from lira.store.arrays import DONE
from lira.store.checksums import checksum_of, parsed_json
from lira.store.chunks import fingerprint
from lira.store.errors import RunError
from lira.store.files import content_of
from lira.store.making import ARRAYS
from lira.store.objects import UnreadableFileError
from lira.store.places import Place
from lira.store.run import Run
from lira.store.verify_arrays import EARLIER, Finding, altered, chunk_findings, short_reason
from lira.store.zarr import CHECKSUM, metadata_of, open_array

__all__ = ["document_findings", "score_findings"]

# What stands beside a document that names it.
BESIDE = {
    "metrics.json": "report.html",
    "records.json": "records.csv",
    "enough.json": "enough.png",
    "canaries.json": "canaries.html",
    "grid.json": "grid.png",
}


def score_findings(run: Run, done: np.ndarray, deep: bool = False) -> Iterator[Finding]:
    """Of the stored scores: whole, of models that are `done`, and of the signals that are stored."""
    known: dict[tuple[int, ...], str] = {}
    lost: set[int] = set()
    for name in sorted(each.name for each in (run.path / "scores").glob("[!.]*")):
        place, models = f"scores/{name}", None
        try:
            store = open_array(run.path / place)
            attributes = metadata_of(store)["attributes"]
            models = np.array(attributes["models"], int)
        except (ValueError, KeyError, UnreadableFileError) as error:
            yield Finding("broken", place, f"cannot be used: {short_reason(error)}")
            continue
        if CHECKSUM not in attributes:
            yield Finding(*(altered(place) if ARRAYS in run.provenance else ("unchecked", place, EARLIER)))
        found = [each.what for each in chunk_findings(store, place, None, deep)]
        if not found and deep and _holds_nan(run, store, models):
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
            # An array cannot be opened, or a chunk read: said already.
            except (RunError, UnreadableFileError):
                known[key] = ""
        if known[key] not in ("", attributes["signals"]):
            yield Finding("broken", place, "was computed of other signals than are stored")


def _holds_nan(run: Run, store: ts.TensorStore, models: np.ndarray) -> bool:
    """Whether a score `[t, n]` is NaN that should not be; not where memberships cannot be read.

    Examples that an attack leaves out have none of any target, and there are none in complementary pairs, of which each
    example has the same number of models on either side.
    """
    targets = models[models < run.num_targets] if run.num_targets else models
    try:
        nan = np.isnan(np.asarray(store[targets].read().result())[:, run.audited])
        left_out = nan.all(axis=0)
        return bool(nan[:, ~left_out].any() or (left_out.any() and is_paired(run.memberships(targets))))
    except (ValueError, IndexError):
        return False


def document_findings(
    path: Place, deep: bool = False, names: Iterable[str] | None = None
) -> Iterator[Finding]:
    """Of the JSON documents of a directory, or some, the files that each names, and the arrays that it is of."""
    there = {file.name for file in path.glob("[!.]*.json")} - {"provenance.json", "zarr.json"}
    for name in sorted(there if names is None else names):
        if (path / name).exists():
            yield from _document(path / name, deep)
        elif names is not None:
            yield Finding("broken", name, "is missing")
    if names is not None:
        return
    of_grid = any((path / name).exists() for name in ("grid.json", "grid.png"))
    for name, other in BESIDE.items():
        if of_grid and name == "metrics.json":  # a grid's page is of grid.json
            continue
        if (path / other).exists() and not (path / name).exists():
            yield Finding("broken", name, "is missing")


def _document(file: Place, deep: bool) -> Iterator[Finding]:
    try:
        document, whole = parsed_json(content_of(file))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or short_reason(error)
        yield Finding("broken", file.name, f"cannot be read: {why}")
        return
    if not whole:
        earlier = whole is None and "files" not in document
        yield Finding(*(("unchecked", file.name, EARLIER) if earlier else altered(file.name)))
        return
    for name, checksum in document["files"].items():
        place = file.parent / name
        if not place.exists():
            yield Finding("broken", name, "is missing")
            continue
        try:
            if checksum_of(content_of(place)) != checksum:
                yield Finding(*altered(name))
        except OSError as error:
            yield Finding("broken", name, f"cannot be read: {error.strerror or error}")
    for name, known in document["arrays"].items():
        if not (file.parent / name).exists():
            yield Finding("broken", name, "is missing")
            continue
        theirs = name.startswith("scores/")  # looked at by themselves, too
        try:
            store = open_array(file.parent / name)
            values = fingerprint({name: (store, None)})
        except (ValueError, UnreadableFileError) as error:
            if not theirs:
                yield Finding("broken", name, f"cannot be used: {short_reason(error)}")
            continue
        if not theirs:
            yield from itertools.islice(chunk_findings(store, name, None, deep), 1)
        if values not in ("", known):
            yield Finding("broken", file.name, f"is of other values than {name} holds")
