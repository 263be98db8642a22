"""The directory of an unlearning, and the arrays in it that metrics are computed from."""

import dataclasses
import json
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lira.data.dataset import Dataset
from lira.engine.answers import accuracy_over
from lira.learning.recipe import SIGNALS
from lira.store.checksums import toml_with_checksum
from lira.store.config import ConfigError, differences, read_checked_table
from lira.store.errors import RunError, TakenError
from lira.store.files import content_of, write_atomically
from lira.store.places import Place, directory_at, is_free, new_directory
from lira.store.run import Run
from lira.store.zarr import StoredSignal, open_array, read_store, write_array
from lira.unlearning.config import UnlearnConfig, as_table, first_memberships, read_unlearning, resolved
from lira.unlearning.methods import check_methods
from lira.unlearning.requests import draw_requests

__all__ = ["Measurements", "StoredModels", "Unlearning", "measurements"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unlearning:
    """An unlearning directory, opened for reading or for `unlearn`."""

    path: Place
    config: UnlearnConfig

    def __repr__(self) -> str:
        """Where it is and of what, as its configuration has it."""
        pool = self.config.pool
        what = f"{pool.num_models:,} {pool.recipe.model} models on {pool.dataset}"
        return f"Unlearning({str(self.path)!r}: {what}, by {', '.join(self.config.methods)})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], dataset: Dataset, config: UnlearnConfig) -> "Unlearning":
        """Make a directory, or open the one that is there, with other methods if `config` names them.

        Raises:
            RunError: the directory cannot be written, holds something else, or an unlearning of other requests or
                models; or the run to start from is incomplete, of other data, or saved no parameters.
            ValueError: the requests do not fit the pool, or a method or the recipe does not fit.
        """
        path = directory_at(path)
        config = resolved(config)
        if (path / "config.toml").exists():
            return cls.open(path)._continue(dataset, config)
        if not is_free(path):
            raise RunError(
                f"{path}: is not an unlearning directory (it has no config.toml); name a new or empty one"
            )
        config.pool.recipe.check(dataset.num_examples, dataset.x.shape[1:])
        config.pool.queries.check(dataset.x.shape[1:], dataset.num_classes)
        requests = draw_requests(config, dataset, first_memberships(config, dataset))
        check_methods(config, dataset, requests, config.methods)
        try:
            with new_directory(path) as making:
                write_array(making / "forget", requests, {"dataset": dataset.fingerprint})
                write_atomically(making / "config.toml", toml_with_checksum(as_table(config)))
        except TakenError:  # another process has made it meanwhile
            return cls.open(path)._continue(dataset, config)
        return cls(path, config)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Unlearning":
        """Open an existing directory.

        Raises:
            RunError: it is not an unlearning directory, or is damaged.
        """
        unlearning = cls.of_configuration(path)
        if not (unlearning.path / "forget").exists():
            raise RunError(
                f"{unlearning.path}: is not whole: it has no forget, which lira unlearn and lira.mend draw again"
            )
        return unlearning

    @classmethod
    def of_configuration(cls, path: str | os.PathLike[str]) -> "Unlearning":
        """`open`, of a directory whose requests may be lost."""
        path = directory_at(path)
        if not (path / "config.toml").exists():
            raise RunError(f"{path}: is not an unlearning directory (it has no config.toml)")
        try:
            table, whole = read_checked_table(path / "config.toml")
            # Those of earlier versions have no checksum, and all have all their keys.
            if whole is False or not table.keys() >= {"dataset", "forget"}:
                raise ConfigError("config.toml is not as it was written: restore it from a copy")
            return cls(path, read_unlearning(path / "config.toml"))
        except ConfigError as error:
            raise RunError(f"{path}: the unlearning directory is damaged: {error}") from error

    def _continue(self, dataset: Dataset, config: UnlearnConfig) -> "Unlearning":
        """Give the directory other methods or another execution; refused where anything else differs."""
        self.require_same_data(dataset)
        old = self.config
        pool = dataclasses.replace(old.pool, execution=config.pool.execution)
        rest = dataclasses.replace(old, pool=config.pool, methods=config.methods, method=config.method)
        changes = [*differences(pool, config.pool), *differences(rest, config)]
        for name in old.method.keys() & config.method.keys():
            if old.method[name] != config.method[name] and self._method_path(name).exists():
                there, here = (
                    ", ".join(f"{key} = {value!r}" for key, value in each.method[name].items())
                    for each in (old, config)
                )
                changes.append(
                    f"method.{name} has {there} there and {here} here (or remove {self._method_path(name)})"
                )
        if changes:
            raise RunError(
                f"{self.path}: is another unlearning: {'; '.join(changes)}; name another directory"
            )
        new = [name for name in config.methods if not self._method_path(name).exists()]
        check_methods(config, dataset, self.requests, new)
        config = dataclasses.replace(config, method={**old.method, **config.method})
        if config != old:
            write_atomically(self.path / "config.toml", toml_with_checksum(as_table(config)))
        return Unlearning(self.path, config)

    def require_same_data(self, dataset: Dataset) -> None:
        """Raise RunError where the requests were drawn from other data; unknown of those of earlier versions."""
        metadata = json.loads(content_of(self.path / "forget/zarr.json"))
        known = metadata.get("attributes", {}).get("dataset", dataset.fingerprint)
        if known != dataset.fingerprint:
            raise RunError(
                f"{self.path}: is an unlearning of other data: its requests were drawn from data with fingerprint "
                f"{known[:12]}, and this is {dataset.name} with {dataset.fingerprint[:12]} (contents, labels or order "
                f"differ)"
            )

    # --- What is there ----------------------------------------------------------------------------------------------

    @property
    def requests(self) -> np.ndarray:
        """The forget sets, one after the other, bool `[K, N]`; no example is in two."""
        return read_store(open_array(self.path / "forget"), f"{self.path}/forget")

    @property
    def before(self) -> Run:
        """The run of the M models that are unlearned."""
        return Run.open(self.config.run or self.path / "before")

    @property
    def retrained(self) -> Run:
        """The run of K M models trained from scratch without requests 0..k: the reference."""
        return Run.open(self.path / "retrained")

    def method(self, name: str) -> Run:
        """The run of K M models that a method left."""
        return Run.open(self._method_path(name))

    def _method_path(self, name: str) -> Place:
        return self.path / "methods" / name

    def is_complete(self) -> bool:
        """Whether every model of every kind is there."""
        paths = [self.path / "retrained", *map(self._method_path, self.config.methods)]
        return all(path.exists() for path in paths) and all((Run.open(path).done > 0).all() for path in paths)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredModels:
    """Signals of some models of a run, one behind the other, float32 `[m, N, D]`, read a model at a time."""

    signals: tuple[StoredSignal, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(m, N, D)`."""
        return (*self.signals[0].shape[:2], sum(each.shape[2] for each in self.signals))

    def __getitem__(self, model: int) -> np.ndarray:
        """What one of them says, `[N, D]`."""
        one = tuple(each.take_models(np.array([model])) for each in self.signals)
        return np.asarray(StoredModels(one))[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return np.concatenate([np.asarray(each) for each in self.signals], axis=2, dtype=dtype)


class Measurements(NamedTuple):
    """What the metrics of a method at request k are computed from; m models, in complementary pairs."""

    keep: np.ndarray  # bool [m, N], memberships of the models before
    forget: np.ndarray  # bool [N], everything requested so far: requests 0..k
    requests: np.ndarray  # bool [k + 1, N], those requests
    labels: np.ndarray  # int32 [N]
    before: StoredModels  # float32 [m, N, Q], phi
    previous: StoredModels  # float32 [m, N, Q], of this method after the request before this one
    after: StoredModels  # float32 [m, N, Q]
    retrained: StoredModels  # float32 [m, N, Q]
    # float32 [m, N, D] before, after and retrained: all signals but logits
    features: tuple[StoredModels, StoredModels, StoredModels]
    accuracies: dict[str, dict[str, np.ndarray]]  # [after | retrained][retain | forget | test] -> float [m]
    seconds: float  # of learning, a model and request; NaN where it was not recorded
    seconds_retrained: float  # the same, of training from scratch


def measurements(unlearning: Unlearning, method: str, k: int) -> Measurements:
    """The arrays that metrics are computed from, of the models whose pairs are usable before, after and retrained.

    What is of every model, example and query stays on disk until it is read, a model at a time.

    Accuracy on the forget set is over the examples that the model held before; NaN for a model that held none. Without
    a test set, test accuracy is over the examples that the model never held.

    Raises:
        RunError: the models are not there yet.
    """
    before, retrained, after = unlearning.before, unlearning.retrained, unlearning.method(method)
    M = unlearning.config.pool.num_models
    usable = set(before.models.tolist())
    for run in (retrained, after):
        usable &= set((run.models[(run.models >= k * M) & (run.models < (k + 1) * M)] - k * M).tolist())
    models = np.array(sorted(m for m in usable if m < M), int)
    if not len(models):
        raise RunError(
            f"{unlearning.path}: no pair of models is complete for {method!r} at request {k}: unlearn first"
        )
    keep = before.memberships(models)
    requests = unlearning.requests[: k + 1]
    forget = np.logical_or.reduce(requests)
    accuracies = {}
    for name, run in (("after", after), ("retrained", retrained)):
        correct = np.asarray(run.signal("correct", models + k * M), bool)
        accuracies[name] = {
            "retain": accuracy_over(correct, keep & ~forget),
            "forget": accuracy_over(correct, keep & forget),
            "test": np.asarray(run.accuracy("test", models + k * M)),
        }
        if not run.holds("phi_test"):
            accuracies[name]["test"] = accuracy_over(correct, ~keep & ~forget)
    signals = tuple(name for name in ("phi", *SIGNALS) if name != "logits" and before.holds(name))

    def phi(run: Run, rows: np.ndarray) -> StoredModels:
        return StoredModels((run.signal("phi", rows),))

    def joined(run: Run, rows: np.ndarray) -> StoredModels:
        return StoredModels(tuple(run.signal(name, rows) for name in signals))

    return Measurements(
        keep=keep,
        forget=forget,
        requests=requests,
        labels=before.labels,
        before=phi(before, models),
        previous=phi(after, models + (k - 1) * M) if k else phi(before, models),
        after=phi(after, models + k * M),
        retrained=phi(retrained, models + k * M),
        features=(joined(before, models), joined(after, models + k * M), joined(retrained, models + k * M)),
        accuracies=accuracies,
        seconds=_seconds_a_model(after),
        seconds_retrained=_seconds_a_model(retrained),
    )


def _seconds_a_model(run: Run) -> float:
    sessions = [s for s in run.provenance["sessions"] if s["models"]]
    models = sum(s["models"] for s in sessions)
    return sum(s["learning_seconds"] for s in sessions) / models if models else float("nan")
