"""The arrays of a run: a row a model in each, and the one sign, `done`, that a model is finished.

A model's arrays are written first and its `done` last; done rows are never written again.
"""

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from lira.data.dataset import Dataset
from lira.learning.evaluation import answers_by_average
from lira.store.chunks import fingerprint
from lira.store.config import Config
from lira.store.errors import RunError
from lira.store.files import writing
from lira.store.objects import reason_of
from lira.store.places import Place, locked_model
from lira.store.zarr import (
    BLOCK,
    StoredSignal,
    create_array,
    opened_array,
    opening_array,
    read_store,
    write_rows,
    written,
)

__all__ = [
    "ACCURACIES",
    "DIVERGED",
    "DONE",
    "LOSSES",
    "RAW_ACCURACIES",
    "Arrays",
    "Layout",
    "fingerprint_of",
    "layout_of",
    "row_shapes",
]

DONE, DIVERGED = 1, 2
# Figures of a model, by array name: each a number, NaN where it is not known.
ACCURACIES = ("accuracy_in", "accuracy_out", "accuracy_test")
RAW_ACCURACIES = ("accuracy_raw_in", "accuracy_raw_out", "accuracy_raw_test")
LOSSES = ("loss_in", "loss_last_epoch")
# Where absent chunks mean something: not done, and the first attempt.
MEANT = ("done", "attempt")
FIGURES = (*ACCURACIES, *RAW_ACCURACIES, *LOSSES)


def fingerprint_of(keep: np.ndarray) -> str:
    """Of memberships that were given, bool `[M, N]`, by which they are known again."""
    return hashlib.sha256(f"{keep.shape}".encode() + np.packbits(keep).tobytes()).hexdigest()


def row_shapes(config: Config, dataset: Dataset, num_params: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what is stored of each model that is trained, by array name: phi (N, Q), and what is asked for."""
    N, Q = dataset.num_examples, len(config.queries.views)
    rows: dict[str, tuple[int, ...]] = {"phi": (N, Q)}
    for name in config.signals:
        rows[name] = (N, Q, dataset.num_classes) if name == "logits" else (N, Q)
    if dataset.y_test is not None:
        rows["phi_test"] = (len(dataset.y_test), Q)
    if config.save_params:
        rows["params"] = (num_params,)
    if config.canaries is not None and config.canaries.kind == "gradient":
        rows["canary_scores"] = (config.num_canaries,)
    rows |= dict.fromkeys(LOSSES, ())
    if answers_by_average(config.recipe, config.queries):
        rows |= dict.fromkeys(RAW_ACCURACIES, ())
    return rows


class Layout(NamedTuple):
    """What is decided of an array before anything is written."""

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]


def layout_of(
    models: int,
    rows: Mapping[str, tuple[int, ...]],
    num_examples: int,
    num_test: int | None = None,
    *,
    truths: bool = False,
) -> dict[str, Layout]:
    """All arrays of a run by name. A model's row is in chunks of its own: writing it never touches another's.

    Args:
        models: M.
        rows: the shapes of a model's float32 rows by name, such as phi (N, Q).
        num_examples: N.
        num_test: held-out examples; None without any.
        truths: whether it is stored which examples each model gets right, `correct`, bool `[M, N]`.
    """
    M, N = models, num_examples
    of_examples = Layout("bool", (M, N), (1, min(N, BLOCK)))
    layout = {"keep": of_examples, "labels": Layout("int32", (N,), (N,))}
    layout |= dict.fromkeys(ACCURACIES, Layout("float32", (M,), (1,)))
    layout |= dict.fromkeys(("done", "attempt"), Layout("uint8", (M,), (1,)))
    for name, shape in rows.items():
        block = shape if name == "params" else (*(min(n, BLOCK) for n in shape[:1]), *shape[1:])
        layout[name] = Layout("float32", (M, *shape), (1, *block))
    if num_test is not None:
        layout["labels_test"] = Layout("int32", (num_test,), (num_test,))
    if truths:
        layout["correct"] = of_examples
    return layout


@dataclass(frozen=True)
class Arrays:
    """The Zarr arrays of the run directory `run`, by name."""

    run: Place

    @classmethod
    def make(
        cls, run: Place, layout: Mapping[str, Layout], labels: np.ndarray, labels_test: np.ndarray | None
    ) -> "Arrays":
        """Make all arrays; the labels are written."""
        arrays = cls(run)
        for name, each in layout.items():
            arrays.create(name, each)
        arrays.write("labels", labels)
        if labels_test is not None:
            arrays.write("labels_test", labels_test)
        return arrays

    def create(self, name: str, layout: Layout) -> None:
        """Make one array, of the chunks that may be there."""
        create_array(self.run / "arrays" / name, layout.shape, layout.dtype, layout.chunk, {})

    def grow(self, models: int) -> None:
        """Give every array of models that many rows, where it has fewer."""
        for place in sorted((self.run / "arrays").iterdir()):
            if place.name.startswith("labels"):
                continue
            store = self.open(place.name)
            if store.shape[0] < models:
                # Another process may be growing it further.
                growing = store.resize(exclusive_max=[models, *store.shape[1:]], expand_only=True)
                written(growing, str(place))

    def holds(self, name: str) -> bool:
        """Whether an array of that name is stored."""
        return (self.run / "arrays" / name / "zarr.json").is_file()

    def open(self, name: str) -> ts.TensorStore:
        """One array.

        Raises:
            RunError: it is not there, or damaged.
        """
        return self._opened({name}, needed={name})[name]

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Rows of one array, in memory."""
        return read_store(self.open(name)[rows], f"{self.run}/arrays/{name}")

    def write(self, name: str, values: np.ndarray, rows: int | slice = slice(None)) -> None:
        """Write rows of one array.

        Raises:
            StoreError: they cannot be written.
        """
        written(self.open(name)[rows].write(values), f"{self.run}/arrays/{name}")

    def fingerprint(self, names: Iterable[str], models: np.ndarray) -> str:
        """Of what these arrays hold of some models, by the checksums of their chunks; empty where one is not whole."""
        rows = models.tolist()
        return fingerprint(
            {name: (self.open(name), None if name.startswith("labels") else rows) for name in names}
        )

    def signal(self, name: str, rows: np.ndarray, examples: np.ndarray | None = None) -> StoredSignal:
        """Rows of one array, lazy; with `examples` these of each."""
        return StoredSignal(self.open(name), rows, f"{self.run}/arrays/{name}", examples)

    def write_model(
        self, index: int, arrays: Mapping[str, np.ndarray], *, diverged: bool, attempt: int = 0
    ) -> bool:
        """Write one model's rows, and `done` after all of them, whoever else is writing it: all rows are of one attempt.

        Args:
            index: the model.
            arrays: a row by array name: phi `[N, Q]`, accuracy_in `[]`, ... Figures that are not given are NaN.
            diverged: record it as diverged; its arrays are then not written.
            attempt: whose randomness it has, see `model_key`.

        Returns:
            Whether it was written: a model that is done already, maybe by another process, is left as it is.
        """
        rows = {} if diverged else {**dict.fromkeys(FIGURES, np.array(np.nan, np.float32)), **arrays}
        done = {"done": np.array(DIVERGED if diverged else DONE, np.uint8)}
        place = self.run / "arrays"
        with locked_model(self.run, index) as claim, writing(self.run):
            stores = self._opened({"done", "attempt", *rows}, needed={"done", *arrays})
            there = {
                name: self._number(stores, name, index) for name in ("done", "attempt") if name in stores
            }
            if there["done"]:
                return False
            if claim and claim.found.get("done"):  # whoever wrote it was stopped before the last word
                write_rows(place, stores, index, {"done": np.array(claim.found["done"], np.uint8)}, claim)
                return False
            if there.get("attempt", attempt) != attempt:  # maybe that of a process that was stopped
                rows["attempt"] = np.array(attempt, np.uint8)
            write_rows(
                place, stores, index, {name: rows[name] for name in rows.keys() & stores.keys()}, claim
            )
            if claim:
                claim.says["done"] = int(done["done"])
                claim.renew()
            write_rows(place, stores, index, done, claim)
        return True

    def _number(self, stores: Mapping[str, ts.TensorStore], name: str, index: int) -> int:
        return int(read_store(stores[name][index], f"{self.run}/arrays/{name}"))

    def _opened(self, names: Set[str], *, needed: Set[str]) -> dict[str, ts.TensorStore]:
        """Those arrays that are there, opened all at once.

        Raises:
            RunError: one is damaged, or is needed and not there.
        """
        opening = {
            name: opening_array(self.run / "arrays" / name, fill_missing=name in MEANT) for name in names
        }
        stores = {}
        for name, each in opening.items():
            try:
                stores[name] = opened_array(self.run / "arrays" / name, each)
            except ValueError as error:
                if name in needed or not reason_of(error).startswith("NOT_FOUND"):
                    raise RunError(
                        f"{self.run}: the run directory is damaged: arrays/{name} cannot be opened; lira verify "
                        f"{self.run} says what is broken, and lira run mends it"
                    ) from error
        return stores
