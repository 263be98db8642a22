"""A run directory of models that other code trained: to be scored and reported, not trained."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from lira.learning.logits import signals_of_logits
from lira.store.arrays import ACCURACIES, Arrays, layout_of
from lira.store.checksums import CHECKSUMS, toml_with_checksum
from lira.store.config import IMPORTED
from lira.store.errors import RunError
from lira.store.files import write_atomically
from lira.store.making import ARRAYS, PACKAGES, ROWS, write_provenance
from lira.store.places import directory_at, new_directory
from lira.store.run import Run
from lira.versions import versions

__all__ = ["answers_from_logits", "run_of_models"]


def run_of_models(
    path: str | os.PathLike[str],
    keep: np.ndarray,
    labels: np.ndarray,
    models: Iterable[Mapping[str, np.ndarray]],
    *,
    source: dict[str, Any],
    test_labels: np.ndarray | None = None,
) -> Run:
    """Make the directory; its config.toml holds no recipe, because none is known.

    Args:
        path: a new or empty directory.
        keep: bool `[M, N]`, any M, memberships of any design.
        labels: integer `[N]`, -1 where it is not known.
        models: for each row of `keep` its arrays by name: phi `[N, Q]`, accuracy_in, accuracy_out and
            accuracy_test `[]`, and more, such as logits `[N, Q, C]`. Drawn one by one, so that one is in memory;
            an error raised while drawing leaves nothing behind.
        source: where they come from, for provenance.json. Its `requested` is how many models there were to be, `independent`
            whether memberships are declared to be independent coins, `targets` how many models, the first, are attacked by
            the others alone, and `order` in which models are taken, where complementary pairs do not stand side by side.
        test_labels: integer `[N_test]` of held-out examples, where `models` hold phi_test; -1 where one is not known.

    Raises:
        RunError: the directory cannot be written or is not empty.
    """
    path = directory_at(path)
    labels = np.asarray(labels, np.int32)
    provenance = {
        # All that is known of the examples and their order.
        "fingerprints": {"dataset": hashlib.sha256(labels.tobytes()).hexdigest()},
        "versions": versions(*PACKAGES),
        CHECKSUMS: True,
        "sessions": [],
        "source": source,
    }
    with new_directory(path) as making:
        (making / "scores").mkdir()
        run_arrays = Arrays(making)
        for index, arrays in enumerate(models):
            if index == 0:
                rows = {name: shape for name, row in arrays.items() if (shape := np.shape(row))}
                layout = layout_of(
                    len(keep), rows, len(labels), None if test_labels is None else len(test_labels)
                )
                provenance |= {ARRAYS: sorted(layout), ROWS: rows}
                Arrays.make(making, layout, labels, test_labels).write("keep", keep)
            run_arrays.write_model(index, arrays, diverged=False)
        write_provenance(making, provenance)
        table = {"dataset": IMPORTED, "num_models": len(keep)}
        write_atomically(making / "config.toml", toml_with_checksum(table))
    return Run.open(path)


def answers_from_logits(run: Run, model: int, names: Set[str]) -> dict[str, np.ndarray]:
    """Those of some arrays of an imported model that follow from its logits, float32 by name; without logits, none but NaN.

    Accuracies are NaN where they are not known of any model. Logits are stored in float32, so that what is computed of them
    may differ in its last digits from what was imported.
    """
    others = np.setdiff1d(np.arange(run.config.num_models), [model])
    found: dict[str, np.ndarray] = {}
    for name in names & set(ACCURACIES):
        with contextlib.suppress(RunError):
            if np.isnan(run.arrays.read(name, others)).all():
                found[name] = np.array(np.nan, np.float32)
    labels = run.labels
    if not names - found.keys() or not run.holds("logits") or (labels < 0).any():
        return found
    try:
        logits, keep = run.arrays.read("logits", np.array([model]))[0], run.memberships(np.array([model]))[0]
    except RunError:
        return found
    logits = logits.reshape(len(labels), -1, logits.shape[-1] if logits.ndim > 1 else 1)
    signals, correct = signals_of_logits(logits, np.broadcast_to(labels[:, None], logits.shape[:2]))
    known = {**signals, "accuracy_in": correct[keep].mean(), "accuracy_out": correct[~keep].mean()}
    return {name: np.asarray(known[name], np.float32) for name in names & known.keys()} | found
