"""What a worker process does: one model trained on its members, and asked about every example. It imports no JAX."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Answer", "Fit", "Predict", "Train", "answer", "as_array", "rows_of"]

# From examples to logits or probabilities [n, C].
Predict = Callable[[Any], Any]
# From a model's number and the examples it is trained on, int [n] ascending, to how it is asked.
Train = Callable[[int, np.ndarray], Predict]
# Examples that a model is asked about at once.
BLOCK = 4096


class Answer(NamedTuple):
    """What one model says."""

    model: int
    values: np.ndarray  # float [N, C]
    held_out: np.ndarray | None  # float [N_test, C]


def answer(train: Train, model: int, members: np.ndarray, x: Any, x_test: Any) -> Answer:
    """Train one model and ask it about all examples; an error says of which model it is.

    Args:
        train: makes the model.
        model: its number.
        members: int `[n]`, the examples it is trained on.
        x: the N examples, whatever can be indexed by rows.
        x_test: held-out ones, or None.
    """
    try:
        predict = train(model, members)
        return Answer(model, _ask(predict, x), None if x_test is None else _ask(predict, x_test))
    except Exception as error:
        error.add_note(f"lira: this is of model {model}; the models before it are kept")
        raise


def _ask(predict: Predict, x: Any) -> np.ndarray:
    N = x.shape[0] if hasattr(x, "shape") else len(x)
    blocks = [slice(start, min(start + BLOCK, N)) for start in range(0, N, BLOCK)]
    answers = [as_array(predict(rows_of(x, block))) for block in blocks]
    for block, each in zip(blocks, answers, strict=True):
        if each.ndim not in (1, 2) or len(each) != block.stop - block.start or each.dtype.kind != "f":
            raise ValueError(
                f"a model must answer with floats [n, C] of n examples, one logit or probability for each class; got "
                f"{each.dtype} {list(each.shape)} of {block.stop - block.start}"
            )
    return np.concatenate(answers)


def as_array(values: Any) -> np.ndarray:
    """As NumPy has it, tensors of PyTorch on any device and of any precision included."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.dtype.itemsize < 4 else values).numpy()
    return np.asarray(values)


def rows_of(x: Any, index: Any) -> Any:
    """Some examples of anything that has rows: an array, a table of pandas, a sparse matrix, a tensor, a list."""
    if hasattr(x, "iloc"):
        return x.iloc[index]
    if isinstance(x, list):
        return x[index] if isinstance(index, slice) else [x[i] for i in index.tolist()]
    return x[index]


# --- Estimators -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Fits what `make()` returns, anything with `fit` and `predict_proba`; a `Train` of probabilities.

    Every `random_state` that is None, of a pipeline's parts too, is drawn from the seed and the model's number.
    """

    make: Callable[[], Any]
    x: Any
    y: np.ndarray  # [N], as it is given to `fit`
    classes: np.ndarray  # [C], ascending, what the columns of probabilities become
    seed: int = 0

    def __call__(self, model: int, members: np.ndarray) -> Predict:
        """Fit one model."""
        estimator = self.make()
        if hasattr(estimator, "get_params") and hasattr(estimator, "set_params"):
            free = sorted(
                name
                for name, value in estimator.get_params().items()
                if value is None and name.rpartition("__")[2] == "random_state"
            )
            if free:
                estimator.set_params(**{name: self._random_state(model, name) for name in free})
        fitted = estimator.fit(rows_of(self.x, members), self.y[members])
        return partial(_probabilities, estimator if fitted is None else fitted, self.classes)

    def _random_state(self, model: int, name: str) -> int:
        digest = hashlib.sha256(f"{self.seed} {model} {name}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1  # some libraries take no more than 31 bits


def _probabilities(estimator: Any, classes: np.ndarray, x: Any) -> np.ndarray:
    """A column for every class: a model that has not seen one gives it 0."""
    found = as_array(estimator.predict_proba(x))
    known = getattr(estimator, "classes_", None)
    if known is None or found.ndim != 2 or len(known) != found.shape[1]:
        return found
    columns = np.searchsorted(classes, np.asarray(known))
    if found.shape[1] == len(classes) and np.array_equal(columns, np.arange(len(classes))):
        return found
    if (columns >= len(classes)).any() or not np.array_equal(classes[columns], known):
        return found  # numbered by the estimator itself
    values = np.zeros((len(found), len(classes)), found.dtype)
    values[:, columns] = found
    return values
