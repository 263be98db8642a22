"""The making of a run directory, whole or not at all, and its growing."""

from typing import Any

import numpy as np

from lira.data.dataset import Dataset
from lira.learning.fingerprint import evaluation_facts, initial_norms, module_digest
from lira.learning.learner import Learner
from lira.store.arrays import Arrays, fingerprint_of, row_shapes
from lira.store.checksums import CHECKSUMS, json_with_checksum, toml_with_checksum
from lira.store.config import Config, as_dict, deciding
from lira.store.places import Place, new_directory, write_atomically
from lira.store.zarr import written
from lira.versions import versions

__all__ = ["grow", "make_directory", "write_config", "write_provenance"]

# Whose versions provenance.json names.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorstore")


def make_directory(path: Place, dataset: Dataset, config: Config, keep: np.ndarray | None) -> dict[str, Any]:
    """Make the directory of a run, with memberships that are drawn, or given, bool `[M, N]`; return its provenance.

    Raises:
        TakenError: something is there, maybe since a moment ago.
        RunError: it cannot be written.
    """
    learner = Learner.of(config.recipe, dataset, config.membership.share)
    initial = initial_norms(learner, dataset.x)
    provenance = {
        "fingerprints": {
            "dataset": dataset.fingerprint,
            "initial_parameters": initial,
            "module": module_digest(learner, dataset.x),
        },
        "evaluation": evaluation_facts(learner, config.queries, dataset.x),
        "configuration": deciding(config),
        CHECKSUMS: True,
        "versions": versions(*PACKAGES),
        "sessions": [],
    }
    if keep is not None:
        provenance["fingerprints"]["memberships"] = fingerprint_of(keep)
    rows = row_shapes(config, dataset, sum(int(size) for size, _ in initial.values()))
    with new_directory(path) as making:
        (making / "scores").mkdir()
        arrays = Arrays.make(making, config.num_models, rows, dataset.y, dataset.y_test)
        if keep is None:
            _write_keep(arrays, config, 0)
        else:
            arrays.add_truths("correct", keep.shape)
            arrays.open("keep").write(keep).result()
        write_provenance(making, provenance)
        write_config(making, config)
    return provenance


def grow(path: Place, config: Config, there: int) -> None:
    """Give every array the rows of `config.num_models` models, with the memberships of those beyond `there`."""
    arrays = Arrays(path)
    arrays.grow(config.num_models)
    _write_keep(arrays, config, there)


def _write_keep(arrays: Arrays, config: Config, start: int) -> None:
    """Draw the memberships, and store those from model `start` on."""
    store = arrays.open("keep")
    keep = config.membership.draw(config.membership_seed, config.num_models, store.shape[1])
    written(store[start : len(keep)].write(keep[start:]), f"{arrays.run}/arrays/keep")


def write_config(path: Place, config: Config) -> None:
    """Write config.toml, with its checksum."""
    write_atomically(path / "config.toml", toml_with_checksum(as_dict(config)))


def write_provenance(path: Place, provenance: dict[str, Any]) -> None:
    """Write provenance.json, with its checksum."""
    write_atomically(path / "provenance.json", json_with_checksum(provenance))
