"""An unlearning's configuration with everything said that a run to start from decides."""

import dataclasses
from typing import Any

import numpy as np

from lira.data.dataset import Dataset
from lira.membership import keep_mask
from lira.store.config import Config, ConfigError, differences
from lira.store.run import Run
from lira.store.zarr import RunError
from lira.unlearners import method_options
from lira.unlearning.config import UnlearnConfig, absolute

__all__ = ["first_memberships", "resolved", "run_config", "with_options"]


# --- The configuration -----------------------------------------------------------------------------------------------


def resolved(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with everything said: absolute paths, what the run to start from decides, all options.

    With a run, what it decides may be left out; `num_models` may be smaller, and the first ones are taken.

    Raises:
        RunError: the run was imported or saved no parameters.
        ConfigError: the configuration says something else than the run.
        ValueError: a method or an option is unknown.
    """
    config = absolute(config)
    if config.run:
        config = _from_run(config, Run.open(config.run))
    return with_options(config)


def with_options(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with all options of its methods, the defaults too."""
    named = {
        name: method_options(name, config.method.get(name, {})) for name in (*config.methods, *config.method)
    }
    return dataclasses.replace(config, method={name: options for name, options in named.items() if options})


def _from_run(config: UnlearnConfig, run: Run) -> UnlearnConfig:
    if run.is_imported:
        raise RunError(f"{run.path}: was imported and has no recipe: it cannot be retrained")
    if not run.config.save_params:
        raise RunError(
            f"{run.path}: saved no parameters, and unlearning starts from them: train a run with save_params = true"
        )
    missing = int((run.done == 0).sum())
    if missing:
        raise RunError(f"{run.path}: lacks {missing} models: finish it first, lira train {run.path}")
    default, changes = Config(), []
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Config):
        mine, theirs = getattr(config, each.name), getattr(run.config, each.name)
        unsaid = mine == getattr(default, each.name)
        if each.name == "save_params":
            continue
        values[each.name] = theirs if unsaid else mine
        if unsaid or mine == theirs or each.name == "execution":
            continue
        if each.name == "num_models" and mine < theirs:
            continue
        if dataclasses.is_dataclass(mine):
            changes += differences(theirs, mine, f"{each.name}.")
        else:
            changes.append(f"{each.name} is {theirs!r} there and {mine!r} here")
    if changes:
        raise ConfigError(f"{run.path}: decides these, so leave them out: {'; '.join(changes)}")
    return dataclasses.replace(config, **values)


def run_config(config: UnlearnConfig, *, models: int, save_params: bool, seed: int = 0) -> Config:
    """The configuration of one of the runs of an unlearning."""
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(Config)}
    recipe = dataclasses.replace(config.recipe, seed=config.recipe.seed + seed)
    return Config(**{**values, "num_models": models, "save_params": save_params, "recipe": recipe})


def first_memberships(config: UnlearnConfig, dataset: Dataset) -> np.ndarray:
    """Memberships of the models that are unlearned, bool `[M, N]`."""
    if config.run:
        return Run.open(config.run, dataset).memberships(np.arange(config.num_models))
    return keep_mask(config.membership_seed, config.num_models, dataset.num_examples)
