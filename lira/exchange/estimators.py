"""Models of any framework, trained here on complementary halves, asked about every example, attacked and reported.

`audit_estimator` takes anything with `fit` and `predict_proba`, `audit_training` a function that trains on some examples.
Both fill a run: it is resumable, grows, and is checked, compared, scored and verified as runs of the engine are.
"""

import datetime
import hashlib
import inspect
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import joblib
import numpy as np

from lira.data.copies import copies_of
from lira.data.dataset import DataError, Dataset
from lira.engine.fill import DivergedWarning
from lira.engine.progress import Bar
from lira.exchange.confidences import as_labels, located, to_signals
from lira.exchange.fitting import Answer, Fit, Train, answer, check_rows, count_of, fingerprint_of
from lira.exchange.reading import AuditError
from lira.numbers import as_array
from lira.parallel import cores
from lira.reporting.evaluation import Evaluation
from lira.reporting.reports import report
from lira.signals import SaturatedWarning
from lira.store.foreign import run_of_function
from lira.store.run import Run

__all__ = ["audit_estimator", "audit_training"]

# What is stored of a model at every example.
SIGNALS = ("phi", "entropy", "modified_entropy")
# Phi of a probability that is 1 in float64, of which nothing is left: log(p / (1 - p)) where 1 - p is half a spacing.
# One value for all models, whatever the others say, so that a model's row is the same in every session.
SATURATED = float(-np.log(np.finfo(np.float64).eps / 4))


class Options(TypedDict, total=False):
    """What both doors take besides; see `audit_training`."""

    run_dir: str | os.PathLike[str]
    num_models: int
    workers: int
    seed: int
    x_test: Any
    y_test: Any
    name: str
    attacks: Collection[str] | None
    headline: str | None
    show_progress: bool


def audit_estimator(make: Callable[[], Any], x: Any, y: Any, **options: Unpack[Options]) -> Evaluation:
    """Attack estimators of scikit-learn, XGBoost, skorch, or anything else with `fit` and `predict_proba`.

    Args:
        make: returns a new estimator. Where its `random_state`, or that of a pipeline's part, is None, each model gets
            its own, from the seed and its number.
        x: the examples: an array, a table of pandas, a sparse matrix, whatever the estimator takes.
        y: `[N]`, labels of any kind, as the estimator takes them.
        **options: as those of `audit_training`.

    Returns:
        What was measured.

    Raises:
        AuditError, RunError, ValueError: as `audit_training`.
    """
    made = make()
    if missing := [name for name in ("fit", "predict_proba") if not hasattr(made, name)]:
        raise AuditError(
            f"make() returned {type(made).__name__}, which has no {' and no '.join(missing)}: give probabilities (of "
            f"scikit-learn, as of CalibratedClassifierCV), or a function by lira.audit_training"
        )
    truth = _vector(y, "y")
    classes = np.unique(truth)
    train = Fit(make, x, truth, classes, options.get("seed", 0))
    # Default settings and addresses in memory say nothing.
    settings = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(made).split()))
    return _audit(train, x, truth, classes, "probabilities", _last_step(made), settings, **options)


def audit_training(
    train: Train,
    x: Any,
    y: Any,
    *,
    answers: Literal["logits", "probabilities"] = "logits",
    **options: Unpack[Options],
) -> Evaluation:
    """Attack the models that a function trains, of PyTorch or any other framework.

    Models are complementary pairs, each trained on a random half. Those that are done are never trained again: call it
    again after an interrupt, or with a larger `num_models`. Where several calls are at one run at the same time, a model
    that two of them train is stored by the first.

    Args:
        train: called as `train(model, members)` with the model's number, for its randomness, and int `[n]`, the examples
            to train on; returns a function from examples, rows of x, to floats `[n, C]`, or a module of PyTorch, which is
            asked in its mode for evaluation. Parallel processes get it by cloudpickle, with all that it refers to and no
            module holds.
        x: the N examples, anything that can be indexed by rows, or several such inputs by name.
        y: `[N]`, labels: 0, 1, ..., or of any kind, which are then numbered in their sorted order.
        answers: what models answer with: logits, or probabilities, whose small differences near 1 are rounded away.
        **options: `run_dir`: of the run (required). `num_models`: 64 by default, even. `workers`: processes side by
            side; 0 is one for each core, 1 trains in this process, as models on one GPU should be. `seed`: of
            memberships, 0 by default. `x_test`, `y_test`: held-out examples. `name`: of the data, for the verdict.
            `attacks`, `headline`: as of `lira.report`. `show_progress`: draw a bar.

    Returns:
        What was measured; the run's directory has the page, and `lira.Run.open(run_dir)` the run.

    Raises:
        AuditError: x and y do not fit each other, or a model's answers cannot be what they are called.
        RunError: the directory is of another run, or cannot be written.
        ValueError: the number of models is odd or too small.

    Warns:
        DivergedWarning: naming models whose answers are not finite; they and their mates are left out.
        SaturatedWarning: how many probabilities are 0 or 1.
    """
    truth = _vector(y, "y")
    numbers = truth.dtype.kind in "bui" and truth.min(initial=0) >= 0
    classes = None if numbers else np.unique(truth)
    if hasattr(train, "state_dict") or not callable(train):
        raise AuditError(
            f"train is {type(train).__name__}: give a function that makes a model and trains it on x[members]"
        )
    name = getattr(train, "__name__", "")
    model = "" if name in ("train", "<lambda>") else name  # which say nothing
    return _audit(train, x, truth, classes, answers, model, _digest(train), **options)


# --- What both do ---------------------------------------------------------------------------------------------------


class _Data(NamedTuple):
    """The examples, with labels as numbers."""

    x: Any
    y: np.ndarray  # int32 [N]
    x_test: Any
    y_test: np.ndarray | None


def _audit(
    train: Train,
    x: Any,
    y: np.ndarray,
    classes: np.ndarray | None,
    kind: Literal["logits", "probabilities"],
    model: str,
    settings: str,
    *,
    run_dir: str | os.PathLike[str] = "",
    num_models: int = 64,
    workers: int = 0,
    seed: int = 0,
    x_test: Any = None,
    y_test: Any = None,
    name: str = "",
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    show_progress: bool = True,
) -> Evaluation:
    if not os.fspath(run_dir):
        raise AuditError("run_dir is missing: name a new or empty directory, or one to go on with")
    if workers < 0:
        raise AuditError(f"workers must be 0 (one for each core) or more; got {workers}")
    data = _data_of(x, y, x_test, y_test, classes)
    rows: dict[str, tuple[int, ...]] = {name: (len(y), 1) for name in SIGNALS}
    if data.y_test is not None:
        rows["phi_test"] = (len(data.y_test), 1)
    dataset = _dataset(data, classes)
    run = run_of_function(
        run_dir,
        data.y,
        labels_test=data.y_test,
        num_models=num_models,
        membership_seed=seed,
        rows=rows,
        fingerprint=fingerprint_of(data),
        source={
            "model": model,
            "settings": settings,
            "kind": kind,
            "data": name,
            "classes": [] if classes is None else classes.tolist(),
        },
        copies=None if dataset is None else copies_of(dataset.x, dataset.y, dataset.x_test),
    )
    _fill(run, train, data, kind, workers or cores(), show_progress)
    return report(run, dataset, attacks=attacks, headline=headline)


def _data_of(x: Any, y: np.ndarray, x_test: Any, y_test: Any, classes: np.ndarray | None) -> _Data:
    """The examples with labels as numbers: as they are, or their positions among the classes."""
    if (x_test is None) != (y_test is None):
        raise AuditError("one of x_test and y_test is given without the other: give both or neither")
    held_out = None if y_test is None else _numbered(_vector(y_test, "y_test"), classes, "y_test")
    numbers = _numbered(y, classes, "y")
    with located("y", AuditError):
        data = _Data(x, as_labels(numbers, len(y)), x_test, held_out)
        if len(data.y) and (data.y == data.y[0]).all():
            raise AuditError("y holds one class only, and there is nothing for a model to tell apart")
    for name, features, labels in (("x", x, data.y), ("x_test", x_test, held_out)):
        if labels is None:
            continue
        with located(name, AuditError):
            check_rows(features, name)
        if (count := count_of(features)) != len(labels):
            raise AuditError(
                f"{name} has {count:,} rows, and there are {len(labels):,} labels: give each row one"
            )
    return data


def _fill(run: Run, train: Train, data: _Data, kind: str, workers: int, show_progress: bool) -> None:
    """Train the missing models in processes, and store each as soon as it has answered."""
    missing = np.flatnonzero(run.done == 0)
    if not len(missing):
        return
    began, written, saturated, unsteady = time.time(), 0, 0, 0
    workers = min(workers, len(missing))
    session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{workers} process{'es' * (workers > 1)}",
        "workers": workers,
    }
    try:
        total = run.config.num_models
        with Bar("training", total, total - len(missing), show_progress) as bar:
            for each in _answers(run, train, data, missing, workers):
                arrays, clipped = _rows(each, data, kind, run.memberships(np.array([each.model]))[0])
                written += run.write_model(each.model, arrays, diverged=not arrays)
                saturated += clipped
                unsteady += not each.steady
                bar.advance(1, 0)
    finally:
        run.add_session(session | {"models": written, "seconds": round(time.time() - began, 2)})
    if unsteady:
        warnings.warn(
            f"{unsteady} of {written} models answer a few examples otherwise when asked about them alone: is dropout on, or are "
            f"statistics of the batch? Return model.eval()",
            stacklevel=4,
        )
    if saturated:
        warnings.warn(
            f"{saturated:,} of {written * len(data.y):,} probabilities of the label are 0 or 1 exactly, taken as phi of "
            f"-{SATURATED:.1f} and {SATURATED:.1f}: attacks cannot tell them apart",
            SaturatedWarning,
            stacklevel=4,
        )
    if len(diverged := np.flatnonzero(run.done > 1)):
        warnings.warn(
            f"{len(diverged)} of {total} models answered with NaN or infinity, and are left out with their mates: "
            f"{', '.join(map(str, diverged))}",
            DivergedWarning,
            stacklevel=4,
        )


def _answers(run: Run, train: Train, data: _Data, missing: np.ndarray, workers: int) -> Iterator[Answer]:
    """What each of the models says, as they come; those that another process has stored by then are passed over."""
    tasks = (
        joblib.delayed(answer)(train, model, np.flatnonzero(keep), data.x, data.x_test)
        for model, keep in zip(missing.tolist(), run.memberships(missing), strict=True)
        if not run.arrays.read("done", np.array([model]))[0]
    )
    # One task at a time is handed out, so that an interrupt loses no more; files behind arrays are private, hence writable.
    options = {"pre_dispatch": workers, "batch_size": 1, "mmap_mode": "c"}
    answers: Any = joblib.Parallel(workers, return_as="generator_unordered", **options)(tasks)
    yield from answers


def _rows(each: Answer, data: _Data, kind: str, keep: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """A model's arrays by name, none where it diverged, and how many confidences of the label are 0 or 1."""
    arrays, saturated = {}, 0
    parts = [("", each.values, data.y)]
    if each.held_out is not None and data.y_test is not None:
        parts.append(("_test", each.held_out, data.y_test))
    for suffix, values, labels in parts:
        if not np.isfinite(values).all():
            return {}, 0
        with located(f"model {each.model}", AuditError):
            if kind == "probabilities":
                _check_vectors(values, labels)
            signals, correct = to_signals("confidences" if kind == "probabilities" else kind, values, labels)
        assert correct is not None  # it is known of logits and of whole vectors
        phi = signals["phi"]
        if not suffix:
            saturated = int(np.isinf(phi).sum())
            arrays |= {name: signals[name] for name in SIGNALS[1:]}
            arrays |= {"accuracy_in": correct[keep].mean(), "accuracy_out": correct[~keep].mean()}
        else:
            arrays["accuracy_test"] = correct.mean()
        arrays[f"phi{suffix}"] = phi.clip(-SATURATED, SATURATED) if kind == "probabilities" else phi
    return {name: np.asarray(values, np.float32) for name, values in arrays.items()}, saturated


def _check_vectors(values: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError unless these are probability vectors `[N, C]`, of as many classes as the labels `[N]` have."""
    if values.ndim != 2 or values.shape[1] < 2:
        one = ": of p of class 1 alone give [1 - p, p]" if values.size == len(values) else ""
        raise ValueError(
            f"probabilities must be [n, C], a column for each class; got {list(values.shape)}{one}"
        )
    sums = values.sum(axis=1, dtype=np.float64)
    if not (near := np.abs(sums - 1) < 1e-3).all():
        row = int(near.argmin())
        raise ValueError(
            f"the probabilities of example {row} sum to {sums[row]:.4g}, not to 1: give logits as answers='logits' of "
            f"lira.audit_training, or each row's softmax"
        )
    if (classes := values.shape[1]) <= labels.max():
        raise ValueError(f"has {classes} classes on its last axis, but labels go up to {labels.max()}")


# --- Data and models, for messages and fingerprints -----------------------------------------------------------------


def _vector(y: Any, name: str) -> np.ndarray:
    """Labels `[N]` of any kind."""
    values = as_array(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise AuditError(
            f"{name} must be [N], a label for each example; got shape {values.shape}: argmax one-hot rows"
        )
    if values.dtype.kind == "f":
        if not (whole := np.isfinite(values) & (values == np.floor(values))).all():
            row = int(whole.argmin())
            raise AuditError(
                f"{name}[{row}] is {values[row]:g}, and a label is no fraction: an audit is of classifiers"
            )
        values = values.astype(np.int64)
    if values.dtype.kind == "O":
        values = values.astype(str)
    return values


def _numbered(y: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """The position of every label among the classes, int32 `[N]`; without these the labels are numbers themselves."""
    if classes is None:
        if y.dtype.kind not in "bui" or y.min(initial=0) < 0:
            raise AuditError(f"{name} must be whole numbers from 0 on, as y; got {y.dtype}")
        return y.astype(np.int32)
    if not (known := np.isin(y, classes)).all():
        row = int(known.argmin())
        raise AuditError(f"{name}[{row}] is {y[row]!r}, which no example of y has: leave such examples out")
    return np.searchsorted(classes, y).astype(np.int32)


def _dataset(data: _Data, classes: np.ndarray | None) -> Dataset | None:
    """The data as attacks on features and pages read it; None where its features are no numbers."""
    plain = classes is None or np.array_equal(classes, np.arange(len(classes)))
    names = () if classes is None or plain else tuple(map(str, classes.tolist()))
    x_test = None if data.x_test is None else as_array(data.x_test)
    try:
        return Dataset.from_arrays(
            as_array(data.x),
            data.y,
            x_test=x_test,
            y_test=data.y_test,
            class_names=names,
        )
    except (DataError, ValueError, TypeError):
        return None


def _last_step(made: Any) -> str:
    """The estimator's name; of a pipeline that of its last step."""
    steps = getattr(made, "steps", None)
    return type(steps[-1][1] if steps else made).__name__


def _digest(train: Callable[..., Any]) -> str:
    """Of a function's own text, by which a changed one is known; empty where there is none to read."""
    try:
        return f"source {hashlib.sha256(inspect.getsource(train).encode()).hexdigest()[:12]}"
    except (OSError, TypeError):
        return ""
