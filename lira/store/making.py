"""The making of a run directory, whole or not at all, and its growing."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lira.data.copies import Copies, CopiesWarning, copies_of
from lira.data.dataset import READING, Dataset
from lira.learning.fingerprint import evaluation_facts, initial_norms, module_digest
from lira.learning.learner import Learner
from lira.store.arrays import Arrays, Layout, fingerprint_of, layout_of, row_shapes
from lira.store.checksums import CHECKSUMS, json_with_checksum, toml_with_checksum
from lira.store.config import Config, as_table, deciding, read_directory
from lira.store.errors import RunError
from lira.store.files import write_atomically
from lira.store.places import Place, new_directory
from lira.store.proven import as_record
from lira.versions import versions

__all__ = [
    "ARRAYS",
    "COPIES",
    "ROWS",
    "grow",
    "kept_copies",
    "layout_by",
    "make_directory",
    "write_config",
    "write_keep",
    "write_provenance",
]

# The names of all arrays, in provenance.json: one that is gone is then missed, and all have checksums.
ARRAYS = "arrays"
# The shapes of a model's rows by name, there too, of imported models: no recipe says them.
ROWS = "rows"
# And how many examples, of the pool and held out, are copies of others.
COPIES = "copies"
# Whose versions provenance.json names.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorstore")
# And of runs whose recipe has privacy.
PRIVACY_PACKAGES = ("jax_privacy", "dp_accounting")


def make_directory(path: Place, dataset: Dataset, config: Config, keep: np.ndarray | None) -> dict[str, Any]:
    """Make the directory of a run, with memberships that are drawn, or given, bool `[M, N]`; return its provenance.

    Raises:
        TakenError: something is there, maybe since a moment ago.
        RunError: it cannot be written.

    Warns:
        CopiesWarning: examples are copies of others.
    """
    learner = Learner.of(config.recipe, dataset, config.share(dataset.num_examples))
    initial = initial_norms(learner, dataset.x)
    x, own = dataset.x, dataset.num_examples - dataset.num_canaries  # of which some are alike by design
    provenance = {
        "fingerprints": {
            "dataset": dataset.fingerprint,
            "initial_parameters": initial,
            "module": module_digest(learner, dataset.x),
        },
        "evaluation": evaluation_facts(learner, config.queries, dataset.x),
        "configuration": deciding(config),
        "reading": READING,
        # Bytes come to a model in [-1, 1].
        "largest_feature": 1.0 if dataset.x.dtype == np.uint8 else max(-float(x.min()), float(x.max())),
        COPIES: kept_copies(copies_of(dataset.x[:own], dataset.y[:own], dataset.x_test)),
        # Names of directories may be in another encoding.
        "class_names": [name.encode("utf-8", "backslashreplace").decode() for name in dataset.class_names],
        CHECKSUMS: True,
        **as_record(learner.guarantee),
        "versions": versions(*PACKAGES, *(PRIVACY_PACKAGES if learner.guarantee else ())),
        "sessions": [],
    }
    if keep is not None:
        provenance["fingerprints"]["memberships"] = fingerprint_of(keep)
    layout = layout_by(config, provenance, dataset)
    provenance[ARRAYS] = sorted(layout)
    with new_directory(path) as making:
        (making / "scores").mkdir()
        arrays = Arrays.make(making, layout, dataset.y, dataset.y_test)
        if keep is None:
            write_keep(arrays, config, 0)
        else:
            arrays.write("keep", keep)
        write_provenance(making, provenance)
        write_config(making, config)
    return provenance


def kept_copies(found: Copies) -> dict[str, Any]:
    """What provenance.json keeps of copies among the examples; warns where there are some."""
    if found.any:
        warnings.warn(found.sentence(), CopiesWarning, stacklevel=5)
    return dataclasses.asdict(found)


def layout_by(config: Config, provenance: Mapping[str, Any], dataset: Dataset | None) -> dict[str, Layout]:
    """The arrays of a run by name, as they are made of its config.toml, provenance.json and data; imports need no data."""
    if ROWS in provenance:
        rows = {name: tuple(shape) for name, shape in provenance[ROWS].items()}
        num_test = rows["phi_test"][0] if "labels_test" in provenance[ARRAYS] else None
        return layout_of(config.num_models, rows, rows["phi"][0], num_test)
    assert dataset is not None
    fingerprints = provenance["fingerprints"]
    num_params = sum(int(size) for size, _ in fingerprints["initial_parameters"].values())
    return layout_of(
        config.num_models,
        row_shapes(config, dataset, num_params),
        dataset.num_examples,
        None if dataset.y_test is None else len(dataset.y_test),
        truths="memberships" in fingerprints,
    )


def grow(path: Place, config: Config) -> None:
    """Give a run that is held more models, with memberships and rows in every array, or another execution.

    Raises:
        RunError: it holds more models already, maybe since a moment ago.
    """
    there = read_directory(path)[0].num_models
    if config.num_models < there:
        raise RunError(
            f"{path}: holds {there} models, and a run does not shrink to {config.num_models}; name another directory"
        )
    if config.num_models > there:
        arrays = Arrays(path)
        arrays.grow(config.num_models)
        write_keep(arrays, config, there)
    write_config(path, config)


def write_keep(arrays: Arrays, config: Config, start: int) -> None:
    """Draw the memberships, and store those from model `start` on."""
    keep = config.draw(arrays.open("keep").shape[1])
    arrays.write("keep", keep[start:], slice(start, len(keep)))


def write_config(path: Place, config: Config) -> None:
    """Write config.toml, with its checksum."""
    write_atomically(path / "config.toml", toml_with_checksum(as_table(config)))


def write_provenance(path: Place, provenance: dict[str, Any]) -> None:
    """Write provenance.json, with its checksum."""
    write_atomically(path / "provenance.json", json_with_checksum(provenance))
