"""The protocol of an unlearning: models before, retrained without the forget set, and unlearned, in one directory.

Layout under UNLEARN: config.toml, `forget` (Zarr bool [K, N], the requests), before/ (a run, where none was given),
retrained/ and methods/<name>/ (runs of K M models with given memberships). Row k M + m is model m after requests
0..k: trained from scratch without them, or unlearned by the method from row (k - 1) M + m on. Every model's `done` is
written last, so that the same command completes what was interrupted.
"""

import warnings
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lira.data.dataset import Dataset
from lira.engine.answers import Data, Learned
from lira.engine.calibrate import programs_for
from lira.engine.fill import DivergedWarning, Learn, fill, train
from lira.engine.programs import Programs, fit_beside
from lira.engine.progress import Progress
from lira.learning.fingerprint import UncheckedWarning, other_versions
from lira.learning.jaxprs import digest
from lira.learning.learner import Learner
from lira.store.arrays import DIVERGED, DONE
from lira.store.errors import RunError
from lira.store.making import write_provenance
from lira.store.run import Run
from lira.unlearners import RETRAIN
from lira.unlearning.config import run_config
from lira.unlearning.directory import Unlearning
from lira.unlearning.methods import one_model, traced

__all__ = ["memberships_after", "unlearn"]

# Added to the recipe's seed: what is compared must not share its randomness.
RETRAINED_SEED, RETRAIN_SEED = 1, 2


# --- Running ---------------------------------------------------------------------------------------------------------


def unlearn(
    unlearning: Unlearning,
    dataset: Dataset,
    *,
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Train, retrain and unlearn all models that are missing. Interrupt it at any point.

    Args:
        unlearning: the directory.
        dataset: its data.
        show_progress: draw bars.
        progress: called as by `train`.

    Raises:
        RunError: the data is not the directory's, another process is writing it, or a method returned NaN for every
            model that had something to forget.

    Warns:
        DivergedWarning: naming models that stopped being finite.
    """
    config, requests = unlearning.config, unlearning.requests
    M, K = config.pool.num_models, len(requests)
    told: dict[str, Any] = {"show_progress": show_progress, "progress": progress}
    if config.run:
        before = Run.open(config.run, dataset)
    else:
        before = Run.from_config(
            unlearning.path / "before", dataset, run_config(config, models=M, save_params=True)
        )
        train(before, dataset, **told)
    keep = memberships_after(requests, before.memberships(np.arange(M)))
    scratch = partial(run_config, config, models=K * M, save_params=False)
    retrained = Run.from_config(
        unlearning.path / "retrained", dataset, scratch(seed=RETRAINED_SEED), keep=keep
    )
    train(retrained, dataset, verb="retraining", **told)
    for name in config.methods:
        path = unlearning.path / "methods" / name
        if name == RETRAIN:
            run = Run.from_config(path, dataset, scratch(seed=RETRAIN_SEED), keep=keep)
            train(run, dataset, verb=RETRAIN, **told)
        else:
            # Only the next request starts from them.
            stored = run_config(config, models=K * M, save_params=K > 1)
            run = Run.from_config(path, dataset, stored, keep=keep)
            _require_same_method(run, dataset, name, traced(name, config, dataset, requests))
            for k in range(K):
                _unlearn_request(unlearning, dataset, before, run, name, k, told)


def _require_same_method(run: Run, dataset: Dataset, name: str, jaxpr: Any) -> None:
    """Record what a method computes with its run, or raise RunError where the run began with another."""
    # A method may train by what is fast on its platform.
    now = {"platform": Learner.of(run.config.recipe, dataset).platform, "jaxpr": digest(jaxpr)}
    with run.lock():
        if not run.done.any():
            run.provenance["fingerprints"]["method"] = now
            write_provenance(run.path, run.provenance)
            return
    known = run.provenance["fingerprints"].get("method")
    if known is None or known["platform"] != now["platform"] or other_versions(run.provenance):
        warnings.warn(
            f"whether the code of method {name!r} has changed since {run.path} began is not checked: it began with another "
            f"version or on another platform",
            UncheckedWarning,
            stacklevel=3,
        )
    elif known != now and (run.done == 0).any():
        raise RunError(
            f"{run.path}: method {name!r} has changed since it began (its code, or a setting of JAX): restore its code, or "
            f"remove the directory and unlearn anew"
        )


def memberships_after(requests: np.ndarray, before: np.ndarray) -> np.ndarray:
    """What models hold after each request, bool `[K M, N]`: row k M + m is that of model m after requests 0..k.

    Args:
        requests: bool `[K, N]`.
        before: memberships before the first, bool `[M, N]`.
    """
    gone = np.cumsum(requests, axis=0).astype(bool)
    return (before & ~gone[:, None]).reshape(-1, before.shape[1])


def _unlearn_request(
    unlearning: Unlearning, dataset: Dataset, before: Run, run: Run, name: str, k: int, told: dict[str, Any]
) -> None:
    """Make the models of a method after request k; a model that had diverged before it stays so."""
    config, requests = unlearning.config, unlearning.requests
    M, K = config.pool.num_models, len(requests)
    models, rows = np.arange(M), k * M + np.arange(M)
    source, from_rows = (run, rows - M) if k else (before, models)
    lost = source.done[from_rows] != DONE
    with run.lock():
        for row in rows[lost & (run.done[rows] == 0)]:
            run.write_model(int(row), {}, diverged=True)
    held = before.memberships(models)
    masks = held & requests[k], held & ~requests[: k + 1].any(axis=0)  # forget, retain
    one = one_model(name, config, dataset, requests)

    def prepare(missing: int, widest: int) -> tuple[Programs, Learn]:
        programs = programs_for(config.pool, dataset, missing, widest)
        programs, compiled = _fitted(programs, one, source, dataset)

        def learn(
            stack: np.ndarray, _: np.ndarray, data: Data, advance: Callable[..., None], stop: Event
        ) -> Learned:
            wide = np.resize(stack, programs.width) - k * M
            flat = jnp.asarray(np.asarray(source.signal("params", from_rows[wide])))
            indices, request = jnp.asarray(wide, jnp.int32), jnp.asarray(k, jnp.int32)
            variables, finite = compiled(flat, indices, request, data.x, data.y, *(m[wide] for m in masks))
            finite = np.asarray(finite)
            advance(len(stack), 0, None)
            return Learned(variables, finite)

        return programs, learn

    verb = f"{name}, request {k + 1} of {K}" if K > 1 else name
    made = fill(run, dataset, prepare, among=rows, verb=verb, **told)
    diverged = (run.done[rows] == DIVERGED) & ~lost
    if diverged.any() and diverged[~lost & masks[0].any(axis=1)].all():
        raise RunError(
            f"method {name!r} returned NaN or infinity for every model at request {k}: change its options under "
            f"[method.{name}] and remove {run.path}"
        )
    if made and diverged.any():
        warnings.warn(
            f"method {name!r} returned NaN or infinity for {diverged.sum()} of {M} models at request {k}; they are left "
            f"out with their mates: {', '.join(map(str, np.flatnonzero(diverged)))}",
            DivergedWarning,
            stacklevel=3,
        )


def _fitted(
    programs: Programs, one: Callable[..., Any], source: Run, dataset: Dataset
) -> tuple[Programs, Callable[..., Any]]:
    """A method of one model, see `one_model`, compiled for stacks of models whose parameters a run holds."""
    width, N = programs.width, dataset.num_examples
    arrays = (
        jax.ShapeDtypeStruct((width, source.signal("params").shape[1]), jnp.float32),
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((width,), ())),
        *(dataset.x, dataset.y),
        *(jax.ShapeDtypeStruct((width, N), bool) for _ in range(2)),
    )
    return fit_beside(programs, one, (0, 0, None, None, None, 0, 0), arrays)
