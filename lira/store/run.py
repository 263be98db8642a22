"""The run directory: arrays that anyone can open, and the one sign, `done`, that a model is finished.

Layout under RUN: config.toml (re-running needs nothing else), provenance.json, arrays/ and scores/ (Zarr v3). `done` is
written last, and done rows never again. Everything else may vanish at any instant: the same command completes the run.
"""

import contextlib
import dataclasses
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.data.dataset import Dataset
from lira.learning.augment import Queries
from lira.learning.fingerprint import outdated_evaluation
from lira.learning.recipe import SIGNALS, Recipe
from lira.membership import Membership
from lira.store.arrays import DONE, Arrays, fingerprint_of
from lira.store.config import (
    FOREIGN,
    IMPORTED,
    Config,
    Execution,
    absolute,
    read_directory,
    read_provenance,
)
from lira.store.errors import OutdatedWarning, RunError, TakenError
from lira.store.identity import (
    require_planted,
    require_recipe,
    require_same_data,
    require_same_labels,
    require_same_models,
    require_same_settings,
    require_trained_pairs,
    usable_models,
)
from lira.store.making import ARRAYS, grow, make_directory, write_provenance
from lira.store.places import Place, directory_at, is_free, locked
from lira.store.zarr import StoredSignal, read_rows, write_array

__all__ = ["Run"]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run directory. `phi`, `keep` and `models` show the usable models: those that are done, of pairs both."""

    path: Place
    config: Config
    provenance: dict[str, Any]
    usable: np.ndarray | None = None
    """int [m], the models that were usable at some moment; None for those that are now"""

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
        membership: Membership = Membership(),
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
            num_examples=dataset.num_loaded if dataset.name != "memory" else 0,
            data_dir=dataset.data_dir,
            num_models=num_models,
            membership_seed=membership_seed,
            membership=membership,
            canaries=dataset.canaries,
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
            keep: bool `[num_models, N]`, memberships in place of those drawn by `membership_seed`. Such
                a run does not grow, and stores too which examples each model gets right: `correct [M, N]`.
        """
        if keep is not None and config.membership.design != "pairs":
            raise ValueError(
                f'memberships are given, and membership.design = "{config.membership.design}" would draw others: leave it out'
            )
        path = directory_at(path)
        config = absolute(config)
        if keep is not None and keep.shape != (config.num_models, dataset.num_examples):
            raise ValueError(
                f"keep must be [num_models, N], here {[config.num_models, dataset.num_examples]}; got "
                f"{list(keep.shape)}"
            )
        # In this order: another process may be making it.
        occupied = not is_free(path)
        if (path / "config.toml").exists():
            return cls.open(path, dataset=dataset)._continue(config, dataset, keep)
        if occupied:
            raise RunError(f"{path}: is not a run directory (it has no config.toml); name a new or empty one")
        require_planted(path, config, dataset)
        config.recipe.check(dataset.num_examples, dataset.x.shape[1:], config.share(dataset.num_examples))
        config.queries.check(dataset.x.shape[1:], dataset.num_classes)
        try:
            return cls(path, config, make_directory(path, dataset, config, keep))
        except TakenError:
            return cls.open(path, dataset=dataset)._continue(config, dataset, keep)

    @classmethod
    def open(cls, path: str | os.PathLike[str], dataset: Dataset | None = None) -> "Run":
        """Open an existing run; with `dataset`, check that it is the run's.

        Raises:
            RunError: it is not a run directory, is damaged, or is of other data.
        """
        path = directory_at(path)
        config, provenance = read_directory(path)
        run = cls(path, config, provenance)
        if run.arrays.open("keep").shape[0] < config.num_models:
            raise RunError(
                f"{path}: the run directory is damaged: arrays/keep has fewer rows than num_models"
            )
        if dataset is not None:
            require_recipe(path, config, provenance)
            require_same_data(path, config, provenance, dataset)
        if run.outdated:
            warnings.warn(f"{path}: {run.outdated}", OutdatedWarning, stacklevel=2)
        return run

    def __repr__(self) -> str:
        """Where it is and of what, as its configuration has it."""
        config = self.config
        what = "imported models" if self.is_imported else f"{config.recipe.model} models on {config.dataset}"
        return f"Run({str(self.path)!r}: {self.config.num_models:,} {what})"

    @property
    def arrays(self) -> Arrays:
        """What `arrays/` holds."""
        return Arrays(self.path)

    # --- What is there ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> np.ndarray:
        """State of every model, uint8 `[M]`: 0 missing, 1 done, 2 diverged."""
        return self.arrays.read("done", slice(self.config.num_models))

    def attempts(self, models: np.ndarray) -> np.ndarray:
        """Whose randomness models by index have, uint8 `[len(models)]`: 0 unless they diverged at first, see `model_key`."""
        return (
            self.arrays.read("attempt", models) if self.holds("attempt") else np.zeros(len(models), np.uint8)
        )

    @property
    def is_foreign(self) -> bool:
        """Whether other code trained the models, so that there is no recipe."""
        return self.config.dataset in (IMPORTED, FOREIGN)

    @property
    def is_imported(self) -> bool:
        """Whether it did so elsewhere: all models are there, and the memberships are of any design."""
        return self.config.dataset == IMPORTED

    @property
    def independent(self) -> bool:
        """Whether the memberships are known to be independent coins, or were declared so of imported ones.

        Those of pairs are, one model of each; of disjoint pools the targets' at the examples that are attacked, which are the
        ones that any claim is about: shadow models know nothing of these coins.
        """
        if self.is_imported:
            return bool(self.provenance["source"].get("independent", False))
        return "memberships" not in self.provenance["fingerprints"]

    @property
    def recipe(self) -> Recipe | None:
        """What the models are trained by; None where other code trained them, and `config` knows their number alone."""
        return None if self.is_foreign else self.config.recipe

    @property
    def outdated(self) -> str:
        """What is wrong with the models of a run of an earlier version; empty where nothing is."""
        return outdated_evaluation(self.provenance, self.config.recipe)

    @property
    def models(self) -> np.ndarray:
        """Indices of the usable models, int `[m]`: those that are done and did not diverge, of pairs both models."""
        if self.usable is None:
            return usable_models(self.path, self.config, self.provenance, self.done == DONE)
        return self.usable

    def as_it_stands(self) -> "Run":
        """The run with the models that are usable now, though other processes may be training more."""
        return dataclasses.replace(self, usable=self.models)

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
        return self.arrays.read("keep", models)

    @property
    def num_targets(self) -> int:
        """How many models, the first, are attacked by the others and attack none; 0 where every model does both."""
        return self.provenance.get("source", {}).get("targets", self.config.membership.num_targets)

    @property
    def targets(self) -> np.ndarray:
        """Indices of the usable models that are attacked, int `[t]`: all, or the first, see `num_targets`."""
        models = self.models
        return models[models < self.num_targets] if self.num_targets else models

    @property
    def shadows(self) -> np.ndarray:
        """Indices of the usable models that attack, int `[s]`: all, or those that are no targets."""
        models = self.models
        return models[models >= self.num_targets]

    @property
    def audited(self) -> np.ndarray:
        """Indices of the examples that are attacked, int `[n]`: all but canaries, of disjoint pools those no shadow model saw."""
        pool = len(self.labels) - self.config.num_canaries
        return np.flatnonzero(self.config.membership.audited(self.config.membership_seed, pool))

    @property
    def canaries(self) -> np.ndarray:
        """Indices of the canaries, int `[C]`: the last examples, or none."""
        return np.arange(len(self.labels) - self.config.num_canaries, len(self.labels))

    @property
    def membership(self) -> np.ndarray:
        """Which target was trained on which of the examples that are attacked, bool `[t, n]`; `keep`, unless disjoint."""
        return self.memberships(self.targets)[:, self.audited]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the examples, int32 `[N]`."""
        return self.arrays.read("labels")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty where the data had none, and of runs of earlier versions."""
        return tuple(self.provenance.get("class_names", ()))

    def holds(self, name: str) -> bool:
        """Whether an array of that name is stored."""
        return self.arrays.holds(name)

    @property
    def signals(self) -> tuple[str, ...]:
        """The stored signals of every model at every example that attacks read, by name."""
        names = dict.fromkeys(("phi", *SIGNALS, *self.config.signals))
        # One that is lost is not passed over: reading it says so.
        written = self.provenance.get(ARRAYS, ("phi",))
        return tuple(name for name in names if name in written or self.holds(name))

    def signal(
        self, name: str, models: np.ndarray | None = None, examples: np.ndarray | None = None
    ) -> StoredSignal:
        """A stored array by name: phi, phi_test, params, logits; of the usable models, or models and examples by index."""
        return self.arrays.signal(name, self.models if models is None else models, examples)

    @property
    def num_test(self) -> int:
        """Held-out examples, 0 without any."""
        return self.arrays.open("labels_test").shape[0] if self.holds("labels_test") else 0

    def accuracy(self, side: str, models: np.ndarray | None = None) -> np.ndarray:
        """Accuracy of the usable models, or of those given, float32 `[m]`; `side` is in, out or test (NaN without one).

        Where models answer with an average of their weights, raw_in, raw_out and raw_test are of the last weights.
        """
        return self.arrays.read(f"accuracy_{side}", self.models if models is None else models)

    def losses(self, kind: str, models: np.ndarray | None = None) -> np.ndarray:
        """Mean cross-entropy of the usable models, or of those given, float32 `[m]`.

        `kind` is in, members at the clean query, or last_epoch, of training. Not stored by earlier versions.
        """
        return self.arrays.read(f"loss_{kind}", self.models if models is None else models)

    # --- Writing ----------------------------------------------------------------------------------------------------

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for growing and scoring; a second process waits for a minute. The lock dies with its owner."""
        return locked(self.path)

    def require_trained_pairs(self, why: str) -> None:
        """Raise RunError for models that other code trained, or that are no complementary pairs; `why` these are needed."""
        require_trained_pairs(self.path, self.config, why)

    def require_same_models(self, dataset: Dataset) -> None:
        """Raise RunError where models trained now would not be as those that are there, naming what differs."""
        require_same_models(self.path, self.config, self.provenance, dataset)

    def require_same_data(self, dataset: Dataset) -> None:
        """Raise RunError where the data are not the run's; of models of other code the labels are all that is known."""
        if self.is_foreign:
            require_same_labels(self.path, self.labels, dataset)
        else:
            require_same_data(self.path, self.config, self.provenance, dataset)

    def write_model(
        self, index: int, arrays: dict[str, np.ndarray], *, diverged: bool, attempt: int = 0
    ) -> bool:
        """Write one model's rows, and `done` after all of them: see `Arrays.write_model`."""
        return self.arrays.write_model(index, arrays, diverged=diverged, attempt=attempt)

    def add_session(self, session: dict[str, Any]) -> None:
        """Append to provenance what was done, on what and how long it took."""
        with self.lock():
            # Those of others that train the run at the same time are kept.
            stored = read_provenance(self.path)["sessions"]
            self.provenance["sessions"] = [*stored, session]
            write_provenance(self.path, self.provenance)

    def fingerprint(self, models: np.ndarray | None = None) -> str:
        """Of what attacks read of the usable models, or of those given: memberships, labels and signals, as they are stored."""
        names = ["keep", "labels", *self.signals, *(["phi_test"] if self.holds("phi_test") else [])]
        return self.arrays.fingerprint(names, self.models if models is None else models)

    def write_scores(self, attack: str, scores: np.ndarray, signals: str, features: str = "") -> None:
        """Store an attack's scores `[t, n]` of `targets` at the examples `audited`; whatever else `[M, N]` holds is NaN.

        `signals` is the `fingerprint` of what they were computed of, `features` that of the data where it reads these too.
        """
        rows = np.full((self.config.num_models, len(self.labels)), np.nan, np.float32)
        rows[np.ix_(self.targets, self.audited)] = scores
        attributes = {"models": self.models.tolist(), "signals": signals}
        attributes |= {"features": features} if features else {}
        write_array(self.path / "scores" / attack, rows, attributes)

    def scores(
        self, attack: str, signals: str | None = None, features: str | None = None
    ) -> np.ndarray | None:
        """Stored scores of `targets` at `audited`, float32 `[t, n]`; None if absent, damaged or of another set of models.

        With `signals`, the run's `fingerprint`, or `features`, see `write_scores`, also None if computed of others.
        """
        known = {"models": self.models.tolist(), "signals": signals, "features": features}
        attributes = {name: value for name, value in known.items() if value is not None}
        rows = read_rows(self.path / "scores" / attack, self.targets, attributes)
        return rows if rows is None or len(self.audited) == rows.shape[1] else rows[:, self.audited]

    # --- Behind the scenes ------------------------------------------------------------------------------------------

    def _continue(self, config: Config, dataset: Dataset, keep: np.ndarray | None) -> "Run":
        """Give the run with a larger `num_models` or another execution; refused where anything else differs."""
        old = self.config
        require_same_settings(self.path, old, config)
        given = self.provenance["fingerprints"].get("memberships")
        if given != (None if keep is None else fingerprint_of(keep)):
            raise RunError(f"{self.path}: is a run of other memberships; name another directory")
        if config.num_models > old.num_models or (self.done == 0).any():
            self.require_same_models(dataset)
        if (config.num_models, config.execution) == (old.num_models, old.execution):
            return self
        config = dataclasses.replace(old, num_models=config.num_models, execution=config.execution)
        with self.lock():
            grow(self.path, config)
        return dataclasses.replace(self, config=config)
