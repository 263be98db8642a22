"""What is broken in an unlearning moved aside, so that the same command makes it again."""

import os

import numpy as np

from lira.data.dataset import Dataset
from lira.store.arrays import fingerprint_of
from lira.store.config import read_directory
from lira.store.errors import RunError
from lira.store.identity import require_same_data
from lira.store.mend import mend, set_aside
from lira.store.objects import StoreError
from lira.store.places import Place
from lira.store.zarr import open_array, read_store, write_array
from lira.unlearning.config import first_memberships
from lira.unlearning.directory import Unlearning
from lira.unlearning.protocol import memberships_after
from lira.unlearning.requests import draw_requests

__all__ = ["mend_unlearning"]


def mend_unlearning(path: str | os.PathLike[str], dataset: Dataset) -> list[str]:
    """`mend` for the requests of an unlearning and the runs that are in its directory; its reports are always written anew.

    Returns:
        What was done, a sentence for each thing that was broken.

    Raises:
        RunError: as `mend`; the run that it started from, elsewhere, is not touched. Or the requests, drawn again, are not
            those that the runs were made by: a file or scores that they were drawn from have changed.
    """
    unlearning = Unlearning.of_configuration(path)
    place = unlearning.path
    own = [] if unlearning.config.run else [place / "before"]
    said = [(each, mend(each, dataset)) for each in own if each.exists()]
    forget = _mend_requests(unlearning, dataset)
    if others := _others(place):
        models = np.arange(unlearning.config.pool.num_models)
        keep = memberships_after(unlearning.requests, unlearning.before.memberships(models))
        said += [(each, mend(each, dataset, keep=keep)) for each in others]
    inside = [
        f"{str(each).removeprefix(f'{place}/')}/{sentence}"
        for each, sentences in said
        for sentence in sentences
    ]
    return forget + inside


def _others(path: Place) -> list[Place]:
    """The runs whose memberships are those after the requests."""
    places = [path / "retrained", *sorted((path / "methods").glob("[!.]*"))]
    return [each for each in places if (each / "config.toml").exists()]


def _can_be_read(place: Place) -> bool:
    try:
        read_store(open_array(place), str(place))
    except StoreError:
        raise
    except (ValueError, RunError):
        return False
    return True


def _mend_requests(unlearning: Unlearning, dataset: Dataset) -> list[str]:
    """Draw the requests again where they cannot be read, by their seed and the data; where runs hold them, the same ones."""
    path = unlearning.path
    if _can_be_read(path / "forget"):
        return []
    others = _others(path)
    for each in ([] if unlearning.config.run else [path / "before"]) + others:
        if (each / "config.toml").exists():
            require_same_data(each, *read_directory(each), dataset)
    before = first_memberships(unlearning.config, dataset)
    requests = draw_requests(unlearning.config, dataset, before)
    drawn = fingerprint_of(memberships_after(requests, before))
    for each in others:
        if read_directory(each)[1]["fingerprints"].get("memberships") != drawn:
            raise RunError(
                f"{path}: forget is damaged, and drawn again it is not what {each} was made by (the file or the scores that "
                f"it is drawn from have changed): restore it from a copy"
            )
    aside = set_aside(path, "forget")
    write_array(path / "forget", requests, {"dataset": dataset.fingerprint})
    return [f"forget is damaged or missing: {aside}drawn again"]
