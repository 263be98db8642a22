"""What commands on a run share: its data, and the files that they leave behind."""

import warnings

from lira.data.dataset import Dataset
from lira.data.sources import load_dataset
from lira.store.config import ConfigError
from lira.store.run import Run

__all__ = ["RECORDS", "dataset_if_there", "dataset_of"]

# What `lira records` leaves behind, and every report.
RECORDS = ("records.csv", "records.json", "records")


def dataset_of(run: Run) -> Dataset:
    """The data set that a run is of, from where its configuration says.

    Raises:
        ConfigError: the run was imported, or its data was given in memory.
    """
    config = run.config
    if run.is_imported:
        raise ConfigError(
            f"{run.path}: was imported from {run.provenance['source']['path']} and has no recipe: it can be scored and "
            f"reported, not trained"
        )
    if config.dataset == "memory":
        raise ConfigError(
            f"{run.path}: its data set was given in memory; go on in Python with "
            f"lira.train(lira.Run.open({str(run.path)!r}, dataset=...), dataset)"
        )
    return load_dataset(config.dataset, num_examples=config.num_examples, data_dir=config.data_dir)


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
