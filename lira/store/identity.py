"""Is this the run's data, and would models trained now be as those that are there? Refused where not, naming what differs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lira.data.dataset import READING, Dataset
from lira.learning.fingerprint import changed_model, outdated_evaluation
from lira.learning.learner import Learner
from lira.store.config import FOREIGN, FREE, IMPORTED, Config, absolute_canaries, differences
from lira.store.errors import RunError
from lira.store.places import Place
from lira.store.proven import require_same_noise

__all__ = [
    "require_planted",
    "require_recipe",
    "require_same_data",
    "require_same_labels",
    "require_same_models",
    "require_same_settings",
    "require_trained_pairs",
    "usable_models",
]


def require_recipe(path: Place, config: Config, provenance: Mapping[str, Any]) -> None:
    """Raise RunError where other code than the engine trained the models of the run at `path`."""
    if config.dataset == IMPORTED:
        raise RunError(
            f"{path}: was imported from {provenance['source']['path']} and has no recipe: it can be scored and reported, "
            f"not trained"
        )
    if config.dataset == FOREIGN:
        raise RunError(
            f"{path}: its models are trained by a function of yours, and it has no recipe: call lira.audit_estimator or "
            f"lira.audit_training again to train more"
        )


def require_planted(path: Place, config: Config, dataset: Dataset) -> None:
    """Raise RunError where the data set does not hold the canaries of the configuration."""
    planted = None if dataset.canaries is None else absolute_canaries(dataset.canaries)
    if config.canaries != planted:
        raise RunError(
            f"{path}: canaries are {config.canaries} in the configuration and {planted} in the data: "
            f"lira.plant(dataset, config.canaries) plants them"
        )


def require_same_settings(path: Place, there: Config, config: Config) -> None:
    """Raise RunError where a run's configuration differs from another in what decides its models, naming the fields."""
    # Which data it is of, its fingerprint tells.
    alike = dataclasses.replace(there, **{name: getattr(config, name) for name in FREE})
    if changes := list(differences(alike, config)):
        raise RunError(f"{path}: is another run: {'; '.join(changes)}; name another directory")


def require_trained_pairs(path: Place, config: Config, why: str) -> None:
    """Raise RunError where other code trained the models, or they are no complementary pairs; `why` these are needed."""
    if config.dataset in (IMPORTED, FOREIGN):
        which = (
            "was imported" if config.dataset == IMPORTED else "is of models that a function of yours trains"
        )
        raise RunError(f"{path}: {which} and has no recipe, and {why}")
    if (design := config.membership.design) != "pairs":
        raise RunError(f'{path}: is of membership.design = "{design}", and {why}: name a run of pairs')
    if config.canaries is not None:
        raise RunError(
            f"{path}: holds canaries, whose memberships are no pairs, and {why}: name a run without"
        )


def require_same_data(path: Place, config: Config, provenance: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise RunError where a run was trained on other data, by its fingerprint."""
    fingerprint = provenance["fingerprints"]["dataset"]
    if dataset.fingerprint != fingerprint:
        reason = "contents, labels or order differ"
        if provenance.get("reading", 1) != READING and config.dataset == dataset.name:
            reason = (
                "the same files and arrays may be read otherwise by this version: transparent pixels, images that EXIF "
                "turns, rows of bytes, images of 16 bits or of other whole numbers; go on with the version that began the run, or train anew"
            )
        raise RunError(
            f"{path}: is a run of other data: {config.dataset} with fingerprint {fingerprint[:12]}, and this is "
            f"{dataset.name} with {dataset.fingerprint[:12]} ({reason})"
        )


def require_same_labels(path: Place, labels: np.ndarray, dataset: Dataset) -> None:
    """Raise RunError where data are not those of imported models, of which the labels, `[N]`, are all that is known."""
    known = labels >= 0
    if len(dataset.y) != len(labels) or not np.array_equal(dataset.y[known], labels[known]):
        raise RunError(
            f"{path}: is a run of other data than {dataset.name}: the labels or their order differ"
        )


def require_same_models(path: Place, config: Config, provenance: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise RunError where models trained now would not be as those that are there, naming what differs."""
    if outdated := outdated_evaluation(provenance, config.recipe):
        raise RunError(f"{path}: does not go on: {outdated}, in another directory")
    learner = Learner.of(config.recipe, dataset, config.share(dataset.num_examples))
    require_same_noise(path, provenance, learner.guarantee)
    if change := changed_model(provenance, learner, config.queries, dataset.x):
        raise RunError(
            f"{path}: model {learner.recipe.model} has changed since the run began: {change}; restore its code or name "
            f"another directory"
        )


def usable_models(path: Place, config: Config, provenance: Mapping[str, Any], done: np.ndarray) -> np.ndarray:
    """Indices of the models that a run shows, int `[m]`; `done [M]` says which are there and did not diverge."""
    if config.dataset == IMPORTED:
        if not done.all():  # all were, once
            raise RunError(f"{path}: arrays/done lacks model {done.argmin()}: lira.mend makes it whole")
        # In another order where pairs are apart.
        return np.array(provenance["source"].get("order", range(len(done))), int)
    if config.membership.design != "pairs":
        return np.flatnonzero(done)
    return np.flatnonzero(np.repeat(done.reshape(-1, 2).all(axis=1), 2))
