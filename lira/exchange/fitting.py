"""What a worker process does: one model trained on its members, and asked about every example. It imports no JAX."""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import joblib
import numpy as np

from lira.numbers import as_array, native_floats

__all__ = [
    "Answer",
    "Fit",
    "Predict",
    "Train",
    "answer",
    "check_rows",
    "count_of",
    "fingerprint_of",
    "rows_of",
]

# From examples to logits or probabilities [n, C].
Predict = Callable[[Any], Any]
# From a model's number and the examples it is trained on, int [n] ascending, to how it is asked.
Train = Callable[[int, np.ndarray], Predict]
# Examples that a model is asked about at once.
BLOCK = 4096
# Of the first examples so many are asked once more, alone; answers that differ by more than this share of the largest are
# not of rounding, of half precision in other blocks neither.
AGAIN, ROUNDING = 8, 0.03


class Answer(NamedTuple):
    """What one model says."""

    model: int
    values: np.ndarray  # float [N, C]
    held_out: np.ndarray | None  # float [N_test, C]
    steady: bool  # whether a few examples are answered alone as they are among others


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
        predict = _asked(train(model, members))
        with _without_gradients():
            values, held_out = _ask(predict, x), None if x_test is None else _ask(predict, x_test)
            return Answer(model, values, held_out, _is_steady(predict, x, values))
    except Exception as error:
        error.add_note(f"lira: this is of model {model}; the models before it are kept")
        raise


def _ask(predict: Predict, x: Any) -> np.ndarray:
    N = count_of(x)
    blocks = [slice(start, min(start + BLOCK, N)) for start in range(0, N, BLOCK)]
    answers = [_array_of(predict(rows_of(x, block))) for block in blocks]
    for block, each in zip(blocks, answers, strict=True):
        if each.ndim not in (1, 2) or len(each) != block.stop - block.start or each.dtype.kind not in "fV":
            raise ValueError(
                f"a model must answer with floats [n, C] of n examples, one logit or probability for each class; got "
                f"{each.dtype} {list(each.shape)} of {block.stop - block.start}"
            )
    return np.concatenate([native_floats(each) for each in answers])


def _asked(returned: Any) -> Predict:
    """How a model is asked, of what `train` returned; a module of PyTorch without its dropout and batch statistics."""
    if not callable(returned):
        raise ValueError(
            f"train returned {type(returned).__name__}, and must return how its model is asked: the model itself, or a "
            f"function from rows of x to logits [n, C]"
        )
    model: Any = returned
    if hasattr(model, "eval") and hasattr(model, "training"):
        model.eval()
    return model


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Of PyTorch, where it is in use: what gradients need is as much memory again for each layer."""
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.no_grad()


def _array_of(said: Any) -> np.ndarray:
    part = ".logits" if hasattr(said, "logits") else "[0]" if isinstance(said, tuple) else ""
    if not part and isinstance(said, Mapping):
        part = f"[{next(iter(said), '')!r}]"
    if part:
        raise ValueError(
            f"a model answered with {type(said).__name__}: let train return what gives logits, as lambda x: model(x){part}"
        )
    return as_array(said)


def _is_steady(predict: Predict, x: Any, values: np.ndarray) -> bool:
    few = slice(0, min(AGAIN, len(values)))
    again = as_array(predict(rows_of(x, few)))
    if again.shape != values[few].shape or not np.isfinite(values[few]).all():
        return True
    return bool(np.abs(again - values[few]).max() <= ROUNDING * np.abs(values[few]).max())


# --- Examples -------------------------------------------------------------------------------------------------------


def check_rows(x: Any, name: str) -> None:
    """Raise ValueError where x has no rows that can be taken together: a data set or a loader of PyTorch, a list of tensors."""
    if isinstance(x, list | tuple) and x and hasattr(x[0], "detach"):
        raise ValueError(f"is a {type(x).__name__} of tensors: give one, torch.stack({name})")
    if hasattr(x, "shape") or isinstance(x, list | Mapping):
        return
    data = "loader.dataset" if hasattr(x, "dataset") and hasattr(x, "batch_size") else "data"
    raise ValueError(
        f"is {type(x).__name__}, of which rows cannot be taken together: give its examples and labels, as "
        f"torch.stack([each for each, _ in {data}]) and torch.tensor([label for _, label in {data}]); train may still use it"
    )


def count_of(x: Any) -> int:
    """How many examples there are; those of several inputs by name, as tokenizers give, are as many as of the first."""
    if isinstance(x, Mapping):
        return count_of(next(iter(x.values()), []))
    return x.shape[0] if hasattr(x, "shape") else len(x)


def rows_of(x: Any, index: Any) -> Any:
    """Some examples of anything that has rows: an array, a table of pandas, a sparse matrix, a tensor, a list, these by name."""
    if isinstance(x, Mapping):
        return {name: rows_of(each, index) for name, each in x.items()}
    if hasattr(x, "iloc"):
        return x.iloc[index]
    if isinstance(x, list):
        return x[index] if isinstance(index, slice) else [x[i] for i in index.tolist()]
    return x[index]


def fingerprint_of(parts: Iterable[Any]) -> str:
    """SHA-256 of examples and labels, their dtypes and order; parts that are None are left out."""
    digest = hashlib.sha256()
    for column in [each for part in parts if part is not None for each in _columns(part)]:
        array = None if hasattr(column, "tocsr") else as_array(column)
        array = native_floats(array) if array is not None and array.dtype.kind == "V" else array
        if array is not None and array.dtype.kind in "buifcSU":
            digest.update(f"{array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        else:
            content = column if array is None else [str(value) for value in array.ravel().tolist()]
            digest.update(str(joblib.hash(content)).encode())
    return digest.hexdigest()


def _columns(x: Any) -> list[Any]:
    """Those of a table, which are of different kinds, or inputs by name; anything else is one."""
    if isinstance(x, Mapping):
        return [column for each in x.values() for column in _columns(each)]
    if hasattr(x, "iloc") and x.ndim == 2:
        return [x.iloc[:, column] for column in range(x.shape[1])]
    return [x]


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
