"""A run directory of models that a function of the user's trains: memberships are drawn here, and models come one by one."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from lira.data.copies import Copies
from lira.store.arrays import Arrays, layout_of
from lira.store.checksums import CHECKSUMS
from lira.store.config import FOREIGN, Config, as_table
from lira.store.errors import RunError, TakenError
from lira.store.making import (
    ARRAYS,
    COPIES,
    PACKAGES,
    grow,
    kept_copies,
    write_config,
    write_keep,
    write_provenance,
)
from lira.store.places import Place, directory_at, is_free, new_directory
from lira.store.run import Run
from lira.versions import versions

__all__ = ["run_of_function"]


def run_of_function(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    *,
    num_models: int,
    membership_seed: int,
    rows: Mapping[str, tuple[int, ...]],
    fingerprint: str,
    source: dict[str, Any],
    labels_test: np.ndarray | None = None,
    copies: Copies | None = None,
) -> Run:
    """Make the directory, or open the one that is there, growing it if `num_models` is larger.

    Args:
        path: of the directory.
        labels: int32 `[N]`.
        num_models: M, even; memberships are complementary pairs.
        membership_seed: these are drawn by it.
        rows: the shapes of a model's float32 arrays by name, such as phi (N, 1).
        fingerprint: of the data.
        source: what is known of the models, for provenance.json.
        copies: among the examples, where their features are numbers.
        labels_test: int32 `[N_test]` of held-out examples, where phi_test is among the rows.

    Raises:
        RunError: the directory cannot be written, holds something else, or is a run of other data, models or memberships,
            or of more models; the message names what differs.
        ValueError: `num_models` is odd or too small, or the seed negative.
    """
    path = directory_at(path)
    config = Config(dataset=FOREIGN, num_models=num_models, membership_seed=membership_seed)
    if not is_free(path) and not (path / "config.toml").exists():
        raise RunError(f"{path}: is not a run directory (it has no config.toml); name a new or empty one")
    if not (path / "config.toml").exists():
        facts = {"fingerprint": fingerprint, "source": source, "copies": copies}
        with contextlib.suppress(TakenError):  # by another process, a moment ago
            _make(path, config, labels, labels_test, rows, **facts)
    run = Run.open(path)
    _require_same(run, config, rows, fingerprint, source)
    if config.num_models == run.config.num_models:
        return run
    with run.lock():
        grow(path, config)
    return dataclasses.replace(run, config=config)


def _make(
    path: Place,
    config: Config,
    labels: np.ndarray,
    labels_test: np.ndarray | None,
    rows: Mapping[str, tuple[int, ...]],
    *,
    fingerprint: str,
    source: dict[str, Any],
    copies: Copies | None,
) -> None:
    num_test = None if labels_test is None else len(labels_test)
    layout = layout_of(config.num_models, rows, len(labels), num_test)
    decided = {name: value for name, value in as_table(config).items() if name.startswith("membership")}
    provenance = {
        "fingerprints": {"dataset": fingerprint},
        "configuration": decided,
        CHECKSUMS: True,
        "versions": versions(*PACKAGES, *source.get("packages", ())),
        "sessions": [],
        "source": source,
        COPIES: None if copies is None else kept_copies(copies),
        ARRAYS: sorted(layout),
    }
    with new_directory(path) as making:
        (making / "scores").mkdir()
        write_keep(Arrays.make(making, layout, labels, labels_test), config, 0)
        write_provenance(making, provenance)
        write_config(making, config)


def _require_same(
    run: Run, config: Config, rows: Mapping[str, tuple[int, ...]], fingerprint: str, source: dict[str, Any]
) -> None:
    """Raise RunError where what is there is of something else."""
    if run.config.dataset != FOREIGN:
        raise RunError(
            f"{run.path}: is a run of {run.config.dataset}, not of these models; name another directory"
        )
    there, elsewhere = run.provenance, "name another directory"
    if there["fingerprints"]["dataset"] != fingerprint:
        raise RunError(
            f"{run.path}: is a run of other data (x, y, their order or the held-out ones differ); {elsewhere}"
        )
    for name in ("model", "settings", "kind"):
        before, now = there["source"].get(name), source.get(name)
        if before != now:
            raise RunError(
                f"{run.path}: is a run of other models: {name} is {before!r} there and {now!r} here; {elsewhere}"
            )
    if run.config.membership_seed != config.membership_seed:
        raise RunError(
            f"{run.path}: is another run: the seed is {run.config.membership_seed} there and {config.membership_seed} "
            f"here; {elsewhere}"
        )
    if missing := [name for name in rows if not run.holds(name)]:
        raise RunError(f"{run.path}: holds no {', '.join(missing)}; {elsewhere}")
