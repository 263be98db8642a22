"""What is broken in an unlearning moved aside, so that the same command makes it again."""

import numpy as np

from lira.data.dataset import Dataset
from lira.store.mend import mend
from lira.unlearning.directory import Unlearning
from lira.unlearning.protocol import memberships_after

__all__ = ["mend_unlearning"]


def mend_unlearning(unlearning: Unlearning, dataset: Dataset) -> list[str]:
    """`mend` for the runs of an unlearning that are in its directory; its reports are always written anew.

    Returns:
        What was done, a sentence for each thing that was broken.

    Raises:
        RunError: as `mend`; the run that it started from, elsewhere, is not touched.
    """
    path = unlearning.path
    own = [] if unlearning.config.run else [path / "before"]
    said = [(each, mend(each, dataset)) for each in own if each.exists()]
    others = [
        each for each in (path / "retrained", *sorted((path / "methods").glob("[!.]*"))) if each.exists()
    ]
    if others:
        models = np.arange(unlearning.config.pool.num_models)
        keep = memberships_after(unlearning.requests, unlearning.before.memberships(models))
        said += [(each, mend(each, dataset, keep=keep)) for each in others]
    return [
        f"{str(each).removeprefix(f'{path}/')}/{sentence}"
        for each, sentences in said
        for sentence in sentences
    ]
