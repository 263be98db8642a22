"""Forget sets: which examples are to be unlearned, request by request."""

import numpy as np

from lira.data.dataset import Dataset
from lira.data.files import read_array
from lira.metrics import example_tpr, roc
from lira.store.errors import RunError
from lira.store.run import Run
from lira.unlearning.config import UnlearnConfig

__all__ = ["draw_requests"]

# The most vulnerable examples are those found most often at this false-positive rate.
VULNERABLE_FPR = 1e-3


def draw_requests(config: UnlearnConfig, dataset: Dataset, keep: np.ndarray) -> np.ndarray:
    """The forget sets, disjoint, one after the other.

    Args:
        config: its `forget` says which.
        dataset: the pool.
        keep: bool `[M, N]`, memberships of the models that are to forget.

    Returns:
        bool `[K, N]`.

    Raises:
        ValueError: a request is empty, outside the pool, larger than it, or held by no model; or a model would be left
            with nothing.
    """
    forget, N = config.forget, dataset.num_examples
    if forget.kind == "class":
        try:
            first = dataset.label_of(forget.label)
        except ValueError as error:
            raise ValueError(f"forget.label: {error}") from error
        if (last := first + forget.requests - 1) >= dataset.num_classes:
            raise ValueError(f"forget.label: class {last} is outside 0..{dataset.num_classes - 1}")
        parts = [np.flatnonzero(dataset.y == first + k) for k in range(forget.requests)]
    elif forget.kind == "given":
        indices = _given(forget.path, N)
        if len(indices) < forget.requests:
            raise ValueError(f"{forget.path}: holds {len(indices)} examples for {forget.requests} requests")
        parts = np.array_split(indices, forget.requests)
    else:
        total = forget.size * forget.requests
        if total > N:
            raise ValueError(
                f"the forget set is larger than the pool: {forget.requests} requests of {forget.size} among "
                f"{N} examples; lower forget.size"
            )
        if forget.kind == "random":
            order = np.random.Generator(np.random.Philox(forget.seed)).permutation(N)
        else:
            order = _by_vulnerability(config, dataset)
        parts = np.split(order[:total], forget.requests)
    requests = np.zeros((forget.requests, N), bool)
    for request, part in zip(requests, parts, strict=True):
        request[part] = True
    for k, request in enumerate(requests):
        if not keep[:, request].any():
            raise ValueError(f"forget: no model holds any of the {request.sum()} examples of request {k}")
    left = (keep & ~requests.any(axis=0)).sum(axis=1)
    if not left.all():
        raise ValueError(f"forget: model {left.argmin()} would be left with no example: forget fewer")
    return requests


def _given(path: str, N: int) -> np.ndarray:
    """Indices of the examples that a file names, int `[F]`, by index or by a mask."""
    array = np.asarray(read_array(path))
    if array.ndim != 1:
        raise ValueError(
            f"{path}: must be a list of indices or a mask [{N}]; its shape is {list(array.shape)}"
        )
    if array.dtype == bool:
        if len(array) != N:
            raise ValueError(f"{path}: is a mask of {len(array)} examples, and the pool has {N}")
        array = np.flatnonzero(array)
    if not len(array):
        raise ValueError(f"{path}: the forget set is empty")
    if not (array == np.floor(array)).all():
        raise ValueError(f"{path}: holds {array[array != np.floor(array)][0]}, which is no index")
    if (outside := (array < 0) | (array >= N)).any():
        raise ValueError(f"{path}: example {array[outside][0]:.0f} is outside the pool, 0..{N - 1}")
    indices = array.astype(int)
    if len(np.unique(indices)) < len(indices):
        raise ValueError(f"{path}: names an example twice (a mask must be of type bool)")
    return indices


def _by_vulnerability(config: UnlearnConfig, dataset: Dataset) -> np.ndarray:
    """All examples, int `[N]`, those that LiRA finds most often at a low false-positive rate first."""
    path = config.forget.scores or config.run
    if not path:
        raise ValueError('forget.kind = "vulnerable" needs forget.scores, a scored run of the same data')
    run = Run.open(path, dataset)
    scores = next((s for s in map(run.scores, ("lira_online", "lira_online_fixed")) if s is not None), None)
    if scores is None:
        raise RunError(f"{path}: has no scores of LiRA: lira score {path}")
    keep = run.keep
    rates = example_tpr(scores, keep, roc(scores, keep).threshold_at(VULNERABLE_FPR))
    # Where rates are equal, their mean score.
    mean = np.where(keep, scores, 0).sum(axis=0) / keep.sum(axis=0)
    return np.lexsort((-mean, -rates))
