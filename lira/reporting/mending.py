"""What is broken moved aside and made again, in whatever directory: a run's, an unlearning's, an imitation's, a grid's."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lira.data.dataset import Dataset
from lira.engine.imitate import SAME_PHI, Teacher, teacher_of
from lira.engine.verify import runs_in
from lira.membership import imitator_mask
from lira.store import mend as of_run
from lira.store.config import read_checked_table
from lira.store.errors import RunError
from lira.store.mend import set_aside
from lira.store.objects import StoreError
from lira.store.places import Place, directory_at
from lira.store.run import Run
from lira.store.zarr import open_array, read_store, write_group
from lira.unlearning.mend import mend_unlearning

__all__ = ["answers_of", "mend", "mend_imitation", "write_target"]


def mend(
    path: str | os.PathLike[str],
    dataset: Dataset | None = None,
    *,
    keep: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> list[str]:
    """Make a directory of a run, an unlearning, an imitation or a grid ready to be completed, by the verb that made it.

    What is broken is moved to broken/ there. Memberships and forget sets are drawn again from their seeds, and an imitation's
    target asked again; models of which anything is broken become missing ones. Models that are whole are not touched.

    Args:
        path: of the directory.
        dataset: the data; None where a run was imported, or to mend a run's scores and reports alone.
        keep: bool `[M, N]`, of a run whose memberships were given and not drawn by a seed.
        among: int, of a run, the models that are looked at, and no scores and reports. All by default.

    Returns:
        What was done, a sentence for each thing that was broken.

    Raises:
        RunError: it is no such directory, its configuration is damaged, it is of other data, or something that cannot be made
            again is broken; the message names it.
    """
    path = directory_at(path)
    if (path / "imitation.toml").exists():
        return _mend_imitation_of_run(path, _needed(path, dataset))
    file, of_a_run = path / "config.toml", (path / "provenance.json").exists()
    if file.exists() and not of_a_run and "forget" in read_checked_table(file)[0]:
        return mend_unlearning(path, _needed(path, dataset))
    said = [(each, of_run.mend(each, dataset)) for each in runs_in(path)]
    if said:
        return [f"{each.name}/{sentence}" for each, sentences in said for sentence in sentences]
    return of_run.mend(path, dataset, keep=keep, among=among)


def _needed(path: Place, dataset: Dataset | None) -> Dataset:
    if dataset is None:
        raise RunError(f"{path}: is no run by itself, and is mended with its data: give the dataset")
    return dataset


# --- Imitations -------------------------------------------------------------------------------------------------------


def _mend_imitation_of_run(path: Place, dataset: Dataset) -> list[str]:
    """`mend_imitation` of a directory whose target is a model of the run that it is in, or that it names."""
    table, whole = read_checked_table(path / "imitation.toml")
    if whole is False:
        raise RunError(
            f"{path}: imitation.toml is not as it was written, by its checksum; restore it from a copy"
        )
    kind, _, number = str(table["target"]).partition("_")
    target = int(number) if kind == "target" else 0
    keep = imitator_mask(table["seed"], target, table["num_imitators"], dataset.num_examples)
    # Of earlier versions, what is elsewhere names none.
    of = path.parent.parent if path.parent.name == "imitations" else table.get("run")
    if kind != "target" or of is None:
        return mend_imitation(path, dataset, keep, None)
    run, row = Run.open(of, dataset), np.array([target])
    if answers_of(run.signal("phi", row)) != table["answers"]:
        raise RunError(
            f"{path}: is of a target that answered otherwise than model {target} of {run.path} does"
        )
    find = partial(teacher_of, run, dataset, target)
    return mend_imitation(
        path, dataset, keep, find, np.asarray(run.signal("phi", row))[0], run.memberships(row)[0]
    )


def mend_imitation(
    path: Place,
    dataset: Dataset,
    keep: np.ndarray,
    find: Callable[[], Teacher] | None,
    phi: np.ndarray | None = None,
    member: np.ndarray | None = None,
) -> list[str]:
    """`mend` for the imitators of a target, and for what is stored of the target.

    Args:
        path: of the imitation.
        dataset: its data.
        keep: bool `[K, N]`, the imitators' memberships.
        find: asks the target; None where it is not known.
        phi: float32 `[N, Q]`, what it must answer, where it is a model of a run.
        member: bool `[N]`, what it was trained on.
    """
    imitators = [each.parent for each in sorted(path.glob("*/config.toml"))]
    said = []
    if (imitators or (path / "target").exists()) and not _can_be_read(path / "target"):
        if find is None or member is None:
            raise RunError(
                f"{path}: target is damaged or missing, and whom it is of is known to lira imitate alone, with the same run, "
                f"logits and member: it mends it"
            )
        found = find()
        if phi is not None and imitators and np.abs(found.phi - phi).max() > SAME_PHI:
            raise RunError(
                f"{path}: target is damaged or missing, and the target, trained again, answers otherwise than when its "
                f"imitation began: restore it from a copy, or remove the directory"
            )
        aside = set_aside(path, "target")
        write_target(path, found, member)
        said.append(f"target is damaged or missing: {aside}asked again")
    for each in imitators:
        said += [f"{each.name}/{sentence}" for sentence in of_run.mend(each, dataset, keep=keep)]
    return said


def _can_be_read(target: Place) -> bool:
    try:
        for name in ("logits", "phi", "member"):
            read_store(open_array(target / name), str(target))
    except StoreError:
        raise
    except (ValueError, RunError):
        return False
    return True


def write_target(path: Place, teacher: Teacher, member: np.ndarray) -> None:
    """Store what a target answered, and bool `[N]`, what it was trained on."""
    write_group(
        path / "target", {"logits": teacher.logits.T, "phi": teacher.phi.T, "member": member[None]}, {}
    )


def answers_of(values: Any) -> str:
    """A fingerprint of an array's shape and contents, in float32, by which a target is known again."""
    array = np.ascontiguousarray(values, np.float32)
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
