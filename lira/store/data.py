"""The data set of a run, from where its configuration says."""

import warnings

from lira.data.dataset import Dataset
from lira.data.planting import plant
from lira.data.sources import load_dataset
from lira.store.config import Config, ConfigError, read_directory
from lira.store.errors import RunError
from lira.store.identity import require_recipe
from lira.store.places import Place
from lira.store.run import Run

__all__ = ["dataset_if_run", "dataset_if_there", "dataset_of", "load_configured"]


def dataset_of(run: Run) -> Dataset:
    """The data set of a run whose models are trained here.

    Raises:
        RunError: other code trained them.
        ConfigError: it was given in memory.
        ValueError: it cannot be loaded.
    """
    config = run.config
    require_recipe(run.path, config, run.provenance)
    if config.dataset == "memory":
        raise ConfigError(
            f"{run.path}: its data set was given in memory; go on in Python with "
            f"lira.train(lira.Run.open({str(run.path)!r}, dataset=...), dataset)"
        )
    return load_configured(config)


def load_configured(config: Config, *, reread: bool = False) -> Dataset:
    """The data set that a configuration names, with its canaries; `reread` as of `load_dataset`.

    Raises:
        DataError: it cannot be loaded, or has no such canaries.
    """
    dataset = load_dataset(
        config.dataset, num_examples=config.num_examples, data_dir=config.data_dir, reread=reread
    )
    return plant(dataset, config.canaries)


def dataset_if_there(run: Run) -> Dataset | None:
    """The data set for its pictures and names; a report can do without them."""
    try:
        dataset = dataset_of(run)
    except ValueError:
        return None
    if dataset.fingerprint != run.provenance["fingerprints"]["dataset"]:
        warnings.warn(
            f"{run.path}: goes without {dataset.name}, which is not as it was trained on", stacklevel=2
        )
        return None
    return dataset


def dataset_if_run(path: Place) -> Dataset | None:
    """That of a directory, where it is of a run whose configuration can be read; an array of it may be broken."""
    try:
        return dataset_if_there(Run(path, *read_directory(path)))
    except RunError:
        return None
