"""The run directory: arrays that anyone can open, and the one sign, `done`, that a model is finished.

Layout under RUN: config.toml (re-running needs nothing else), provenance.json, arrays/ and scores/ (Zarr v3).
A model's arrays are written first and its `done` last; done rows are never written again. Everything else may vanish
at any instant, and the same command completes the run.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import tomli_w

from lira.data.dataset import Dataset
from lira.learning.augment import Queries
from lira.learning.evaluation import answers_by_average
from lira.learning.fingerprint import evaluation_facts, initial_norms
from lira.learning.learner import Learner
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.store.config import (
    IMPORTED,
    Config,
    ConfigError,
    Execution,
    absolute,
    as_dict,
    differences,
    read_config,
)
from lira.store.zarr import (
    BLOCK,
    RunError,
    StoredSignal,
    create_array,
    new_directory,
    open_array,
    read_store,
    write_array,
    write_atomically,
    writing,
)
from lira.versions import versions

__all__ = ["DIVERGED", "DONE", "OutdatedWarning", "Run"]

DONE, DIVERGED = 1, 2
# Whose versions provenance.json names.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorstore")
# Figures of a model, by array name: each a number, NaN where it is not known.
ACCURACIES = ("accuracy_in", "accuracy_out", "accuracy_test")
RAW_ACCURACIES = ("accuracy_raw_in", "accuracy_raw_out", "accuracy_raw_test")
LOSSES = ("loss_in", "loss_last_epoch")
FIGURES = (*ACCURACIES, *RAW_ACCURACIES, *LOSSES)


class OutdatedWarning(UserWarning):
    """A run whose models an earlier version evaluated wrongly."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory. `phi`, `keep` and `models` show the usable models: those whose whole pair is done."""

    path: Path
    config: Config
    provenance: dict[str, Any]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dataset: Dataset,
        recipe: Recipe,
        *,
        num_models: int = 256,
        queries: Queries = Queries(),
        membership_seed: int = 0,
        save_params: bool = False,
        signals: tuple[str, ...] = Config.signals,
        execution: Execution = Execution(),
    ) -> "Run":
        """Make a run directory, or open the one that is there, growing it if `num_models` is larger.

        Raises:
            RunError: the directory cannot be written, holds something else, or is a run of other data, recipe,
                queries or membership, or of more models; the message names what differs.
            ValueError: the recipe or the queries do not fit the data.
        """
        config = Config(
            dataset=dataset.name,
            num_examples=dataset.num_examples if dataset.name != "memory" else 0,
            data_dir=dataset.data_dir,
            num_models=num_models,
            membership_seed=membership_seed,
            save_params=save_params,
            signals=signals,
            recipe=recipe,
            queries=queries,
            execution=execution,
        )
        return cls.from_config(path, dataset, config)

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str],
        dataset: Dataset,
        config: Config,
        *,
        keep: np.ndarray | None = None,
    ) -> "Run":
        """`create`, from a configuration; its `dataset` is where `dataset` was loaded from.

        Args:
            path: of the directory.
            dataset: the data.
            config: everything else.
            keep: bool `[num_models, N]`, memberships of any design in place of those drawn by `membership_seed`. Such
                a run does not grow, and stores too which examples each model gets right: `correct [M, N]`.
        """
        path = Path(path).expanduser().absolute()
        config = absolute(config)
        if keep is not None and keep.shape != (config.num_models, dataset.num_examples):
            raise ValueError(
                f"keep must be [num_models, N], here {[config.num_models, dataset.num_examples]}; got "
                f"{list(keep.shape)}"
            )
        if (path / "config.toml").exists():
            run = cls.open(path, dataset=dataset)
            return run._continue(config, dataset, keep)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path}: is not a run directory (it has no config.toml); name a new or empty one")
        config.recipe.check(dataset.num_examples, dataset.x.shape[1:])
        config.queries.check(dataset.x.shape[1:])
        learner = Learner.of(config.recipe, dataset)
        initial = initial_norms(learner, dataset.x)
        provenance = {
            "fingerprints": {"dataset": dataset.fingerprint, "initial_parameters": initial},
            "evaluation": evaluation_facts(learner, config.queries, dataset.x),
            "versions": versions(*PACKAGES),
            "sessions": [],
        }
        N, Q = dataset.num_examples, len(config.queries.views)
        rows: dict[str, tuple[int, ...]] = {"phi": (N, Q)}
        for name in config.signals:
            rows[name] = (N, Q, dataset.num_classes) if name == "logits" else (N, Q)
        if dataset.y_test is not None:
            rows["phi_test"] = (len(dataset.y_test), Q)
        if config.save_params:
            rows["params"] = (sum(int(size) for size, _ in initial.values()),)
        rows |= dict.fromkeys(LOSSES, ())
        if answers_by_average(config.recipe, config.queries):
            rows |= dict.fromkeys(RAW_ACCURACIES, ())
        if keep is not None:
            provenance["fingerprints"]["memberships"] = _fingerprint(keep)
        with new_directory(path) as making:
            (making / "scores").mkdir()
            run = cls(making, config, provenance)
            run._make_arrays(rows, dataset.y, dataset.y_test)
            if keep is None:
                run._write_keep(0, config.num_models, N)
            else:
                shape = (config.num_models, N)
                create_array(making / "arrays" / "correct", shape, "bool", (1, min(N, BLOCK)), {})
                run._array("keep").write(keep).result()
            run._write_provenance()
            write_atomically(making / "config.toml", tomli_w.dumps(as_dict(config)).encode())
        return cls(path, config, provenance)

    @classmethod
    def from_models(
        cls,
        path: str | os.PathLike[str],
        keep: np.ndarray,
        labels: np.ndarray,
        models: Iterable[Mapping[str, np.ndarray]],
        *,
        source: dict[str, Any],
    ) -> "Run":
        """Make a run directory of models that other code trained: to be scored and reported, not trained.

        Its config.toml holds no recipe, because none is known, and its memberships are `keep`, of any design.

        Args:
            path: a new or empty directory.
            keep: bool `[M, N]`, any M.
            labels: integer `[N]`, -1 where it is not known.
            models: for each row of `keep` its arrays by name: phi `[N, Q]`, accuracy_in, accuracy_out and
                accuracy_test `[]`, and more, such as logits `[N, Q, C]`. Drawn one by one, so that one is in memory;
                an error raised while drawing leaves nothing behind.
            source: where they come from, for provenance.json.

        Raises:
            RunError: the directory cannot be written or is not empty.
        """
        path = Path(path).expanduser().absolute()
        config = Config(dataset=IMPORTED, num_models=len(keep))
        labels = np.asarray(labels, np.int32)
        provenance = {
            # All that is known of the examples and their order.
            "fingerprints": {"dataset": hashlib.sha256(labels.tobytes()).hexdigest()},
            "versions": versions(*PACKAGES),
            "sessions": [],
            "source": source,
        }
        with new_directory(path) as making:
            (making / "scores").mkdir()
            run = cls(making, config, provenance)
            for index, arrays in enumerate(models):
                if index == 0:
                    shapes = {name: np.shape(row) for name, row in arrays.items()}
                    run._make_arrays({name: shape for name, shape in shapes.items() if shape}, labels, None)
                    run._array("keep").write(keep).result()
                run.write_model(index, dict(arrays), diverged=False)
            run._write_provenance()
            text = tomli_w.dumps({"dataset": IMPORTED, "num_models": len(keep)})
            write_atomically(making / "config.toml", text.encode())
        return cls(path, config, provenance)

    @classmethod
    def open(cls, path: str | os.PathLike[str], dataset: Dataset | None = None) -> "Run":
        """Open an existing run; with `dataset`, check that it is the run's.

        Raises:
            RunError: it is not a run directory, is damaged, or is of other data.
        """
        path = Path(path).expanduser().absolute()
        for name in ("config.toml", "provenance.json", "arrays"):
            if not (path / name).exists():
                raise RunError(f"{path}: is not a run directory (it has no {name})")
        try:
            config = read_config(path / "config.toml")
            provenance = json.loads((path / "provenance.json").read_text())
            fingerprint = provenance["fingerprints"]["dataset"]
        except (ConfigError, OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path}: the run directory is damaged: {error}") from error
        run = cls(path, config, provenance)
        if run._array("keep").shape[0] < config.num_models:
            raise RunError(
                f"{path}: the run directory is damaged: arrays/keep has fewer rows than num_models"
            )
        if dataset is not None and run.is_imported:
            raise RunError(
                f"{path}: was imported from {provenance['source']['path']} and has no recipe: it can be scored and "
                f"reported, not trained"
            )
        if dataset is not None and dataset.fingerprint != fingerprint:
            raise RunError(
                f"{path}: is a run of other data: {config.dataset} with fingerprint {fingerprint[:12]}, and this is "
                f"{dataset.name} with {dataset.fingerprint[:12]} (contents, labels or order differ)"
            )
        if run.outdated:
            warnings.warn(f"{path}: {run.outdated}", OutdatedWarning, stacklevel=2)
        return run

    # --- What is there ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> np.ndarray:
        """State of every model, uint8 `[M]`: 0 missing, 1 done, 2 diverged."""
        store = self._array("done")[: self.config.num_models]
        return read_store(store, f"{self.path}/arrays/done")

    @property
    def is_imported(self) -> bool:
        """Whether other code trained the models: there is no recipe, and the memberships are of any design."""
        return self.config.dataset == IMPORTED

    @property
    def outdated(self) -> str:
        """What is wrong with the models of a run of an earlier version; empty where nothing is.

        They were asked by the average of their weights, with norms' statistics of the last steps' weights.
        """
        leaves = self.provenance["fingerprints"].get("initial_parameters", {})
        has_statistics = any(not leaf.startswith("params/") for leaf in leaves)
        if "evaluation" in self.provenance or not (self.config.recipe.ema and has_statistics):
            return ""
        return (
            "its models were evaluated by an earlier version, averaged weights with norm statistics that were not "
            "averaged with them, and may be far worse than those that were trained: train the pool anew"
        )

    @property
    def models(self) -> np.ndarray:
        """Indices of the usable models, int `[m]`: both models of the pair are done and neither diverged.

        Imported models need not be pairs, and all of them are usable.
        """
        if self.is_imported:
            return np.flatnonzero(self.done == DONE)
        pairs = (self.done == DONE).reshape(-1, 2).all(axis=1)
        return np.flatnonzero(np.repeat(pairs, 2))

    @property
    def phi(self) -> StoredSignal:
        """Logit-scaled confidences of the usable models, lazy float32 `[m, N, Q]`."""
        return self.signal("phi")

    @property
    def keep(self) -> np.ndarray:
        """Membership of the usable models, bool `[m, N]`."""
        return self.memberships(self.models)

    def memberships(self, models: np.ndarray) -> np.ndarray:
        """Rows of the keep mask by model index, trained or not, bool `[len(models), N]`."""
        return read_store(self._array("keep")[models], f"{self.path}/arrays/keep")

    @property
    def labels(self) -> np.ndarray:
        """Labels of the examples, int32 `[N]`."""
        return read_store(self._array("labels"), f"{self.path}/arrays/labels")

    def holds(self, name: str) -> bool:
        """Whether an array of that name is stored."""
        return (self.path / "arrays" / name).exists()

    def signal(self, name: str, models: np.ndarray | None = None) -> StoredSignal:
        """A stored array by name, of the usable models or of those given by index: phi, phi_test, params, logits."""
        rows = self.models if models is None else models
        return StoredSignal(self._array(name), rows, f"{self.path}/arrays/{name}")

    @property
    def num_test(self) -> int:
        """Held-out examples, 0 without any."""
        return self._array("labels_test").shape[0] if self.holds("labels_test") else 0

    def accuracy(self, side: str, models: np.ndarray | None = None) -> np.ndarray:
        """Accuracy of the usable models, or of those given, float32 `[m]`; `side` is in, out or test (NaN without one).

        Where models answer with an average of their weights, raw_in, raw_out and raw_test are of the last weights.
        """
        return self._of_models(f"accuracy_{side}", models)

    def losses(self, kind: str, models: np.ndarray | None = None) -> np.ndarray:
        """Mean cross-entropy of the usable models, or of those given, float32 `[m]`.

        `kind` is in, members at the clean query, or last_epoch, of training. Not stored by earlier versions.
        """
        return self._of_models(f"loss_{kind}", models)

    def _of_models(self, name: str, models: np.ndarray | None) -> np.ndarray:
        rows = self.models if models is None else models
        return read_store(self._array(name)[rows], f"{self.path}/arrays/{name}")

    # --- Writing ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; a second process is refused. The lock dies with its owner."""
        with writing(self.path), open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.path}: another process is writing this run; wait for it or stop it"
                ) from error
            yield

    def require_same_models(self, dataset: Dataset) -> None:
        """Raise RunError where models trained now would not be as those that are there, naming what differs."""
        if self.outdated:
            raise RunError(f"{self.path}: does not go on: {self.outdated}, in another directory")
        learner = Learner.of(self.config.recipe, dataset)
        recorded = self.provenance["fingerprints"].get("initial_parameters", {})
        now = initial_norms(learner, dataset.x)
        for leaf in sorted(recorded.keys() | now.keys()):
            if (
                leaf not in recorded
                or leaf not in now
                or not np.allclose(recorded[leaf], now[leaf], rtol=1e-5)
            ):
                raise RunError(
                    f"{self.path}: model {learner.recipe.model} has changed since the run began: the initial "
                    f"parameter {leaf} is another; restore its code or name another directory"
                )
        if "evaluation" not in self.provenance:
            return
        before = self.provenance["evaluation"]
        after = evaluation_facts(learner, self.config.queries, dataset.x)
        for layer in sorted(before["norms"].keys() | after["norms"].keys()):
            there, here = before["norms"].get(layer), after["norms"].get(layer)
            if there != here:
                raise RunError(
                    f"{self.path}: model {learner.recipe.model} has changed since the run began: norm {layer} is {there} "
                    f"there and {here} here; restore its code or name another directory"
                )

    def write_model(self, index: int, arrays: dict[str, np.ndarray], *, diverged: bool) -> None:
        """Write one model's rows, and `done` after all of them. A done model is never written again.

        Args:
            index: the model.
            arrays: a row by array name: phi `[N, Q]`, accuracy_in `[]`, ... Figures that are not given are NaN.
            diverged: record it as diverged; its arrays are then not written.
        """
        if int(self._array("done")[index].read().result()):
            raise RunError(f"{self.path}: model {index} is done already")
        with writing(self.path):
            if not diverged:
                unknown = {name: np.float32(np.nan) for name in FIGURES if self.holds(name)}
                writes = [self._array(name)[index].write(row) for name, row in {**unknown, **arrays}.items()]
                for write in writes:
                    write.result()
            self._array("done")[index].write(DIVERGED if diverged else DONE).result()

    def add_session(self, session: dict[str, Any]) -> None:
        """Append to provenance what was done, on what and how long it took."""
        self.provenance["sessions"].append(session)
        self._write_provenance()

    def write_scores(self, attack: str, scores: np.ndarray) -> None:
        """Store an attack's scores `[m, N]` of the usable models; rows of other models are NaN."""
        models = self.models
        rows = np.full((self.config.num_models, scores.shape[1]), np.nan, np.float32)
        rows[models] = scores
        write_array(self.path / "scores" / attack, rows, {"models": models.tolist()})

    def scores(self, attack: str) -> np.ndarray | None:
        """Stored scores of the usable models, float32 `[m, N]`; None if absent or of another set of models."""
        place = self.path / "scores" / attack
        try:
            attributes = json.loads((place / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError):
            return None
        models = self.models
        if attributes.get("models") != models.tolist():
            return None
        return read_store(open_array(place)[models], str(place))

    # --- Behind the scenes ------------------------------------------------------------------------------------------

    def _continue(self, config: Config, dataset: Dataset, keep: np.ndarray | None) -> "Run":
        """Give the run with a larger `num_models` or another execution; refused where anything else differs."""
        old = self.config
        # Which data it is of, its fingerprint has told.
        free = ("dataset", "num_examples", "data_dir", "num_models", "execution")
        alike = dataclasses.replace(old, **{name: getattr(config, name) for name in free})
        if changes := list(differences(alike, config)):
            raise RunError(f"{self.path}: is another run: {'; '.join(changes)}; name another directory")
        given = self.provenance["fingerprints"].get("memberships")
        if given != (None if keep is None else _fingerprint(keep)):
            raise RunError(f"{self.path}: is a run of other memberships; name another directory")
        if config.num_models < old.num_models:
            raise RunError(
                f"{self.path}: holds {old.num_models} models, and a run does not shrink to {config.num_models}; "
                f"name another directory"
            )
        if config.num_models > old.num_models or (self.done == 0).any():
            self.require_same_models(dataset)
        run = Run(
            self.path,
            dataclasses.replace(old, num_models=config.num_models, execution=config.execution),
            self.provenance,
        )
        if run.config == old:
            return self
        with run.lock():
            if config.num_models > old.num_models:
                for name in _per_model(run.path):
                    store = run._array(name)
                    if store.shape[0] < config.num_models:
                        store.resize(exclusive_max=[config.num_models, *store.shape[1:]]).result()
                run._write_keep(old.num_models, config.num_models, dataset.num_examples)
            write_atomically(run.path / "config.toml", tomli_w.dumps(as_dict(run.config)).encode())
        return run

    def _make_arrays(
        self, rows: Mapping[str, tuple[int, ...]], labels: np.ndarray, labels_test: np.ndarray | None
    ) -> None:
        """Make all arrays; `rows` holds the shapes of a model's float32 rows by name, such as phi (N, Q)."""
        M, N = self.config.num_models, len(labels)
        # name: (dtype, shape, chunk). A model's row is in chunks of its own: writing it never touches another's.
        arrays: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
            "keep": ("bool", (M, N), (1, min(N, BLOCK))),
            "labels": ("int32", (N,), (N,)),
            **dict.fromkeys(ACCURACIES, ("float32", (M,), (1,))),
            "done": ("uint8", (M,), (1,)),
        }
        for name, shape in rows.items():
            block = shape if name == "params" else (*(min(n, BLOCK) for n in shape[:1]), *shape[1:])
            arrays[name] = ("float32", (M, *shape), (1, *block))
        if labels_test is not None:
            arrays["labels_test"] = ("int32", labels_test.shape, labels_test.shape)
        for name, (dtype, shape, chunk) in arrays.items():
            create_array(self.path / "arrays" / name, shape, dtype, chunk, {})
        self._array("labels").write(labels).result()
        if labels_test is not None:
            self._array("labels_test").write(labels_test).result()

    def _write_keep(self, start: int, stop: int, num_examples: int) -> None:
        keep = keep_mask(self.config.membership_seed, stop, num_examples)
        self._array("keep")[start:stop].write(keep[start:stop]).result()

    def _write_provenance(self) -> None:
        write_atomically(self.path / "provenance.json", json.dumps(self.provenance, indent=2).encode())

    def _array(self, name: str) -> ts.TensorStore:
        place = self.path / "arrays" / name
        try:
            # `done` is the one array whose absent chunks mean something: not done.
            return open_array(place, fill_missing=name == "done")
        except ValueError as error:
            raise RunError(
                f"{self.path}: the run directory is damaged: arrays/{name} cannot be opened"
            ) from error


def _per_model(path: Path) -> list[str]:
    """Names of the arrays that have a row a model."""
    return sorted(each.name for each in (path / "arrays").iterdir() if not each.name.startswith("labels"))


def _fingerprint(keep: np.ndarray) -> str:
    return hashlib.sha256(f"{keep.shape}".encode() + np.packbits(keep).tobytes()).hexdigest()
