"""The protocol of an unlearning: models before, retrained without the forget set, and unlearned, in one directory.

Layout under UNLEARN: config.toml, `forget` (Zarr bool [K, N], the requests), before/ (a run, where none was given),
retrained/ and methods/<name>/ (runs of K M models with given memberships). Row k M + m is model m after requests
0..k: trained from scratch without them, or unlearned by the method from row (k - 1) M + m on. Every model's `done` is
written last, so that the same command completes what was interrupted.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w
from jax.flatten_util import ravel_pytree

from lira.arrays import RunError, new_directory, open_array, read_store, write_array, write_atomically
from lira.config import (
    Config,
    ConfigError,
    UnlearnConfig,
    absolute,
    as_dict,
    differences,
    read_config,
)
from lira.data import Dataset
from lira.engine import (
    Data,
    DivergedWarning,
    Learn,
    Learned,
    accuracy_over,
    duration,
    fill,
    plan,
    train,
)
from lira.forget_sets import draw_requests
from lira.membership import keep_mask
from lira.models import build_model
from lira.stack import Programs, fit_beside, programs_for
from lira.store import DIVERGED, DONE, Run
from lira.training import SIGNALS, Recipe, init_model, model_key, steps_per_epoch, train_step
from lira.unlearners import RETRAIN, Problem, apply_method, find_method, method_options

__all__ = [
    "Measurements",
    "Unlearning",
    "UnlearningPlan",
    "measurements",
    "plan_unlearning",
    "resolved",
    "unlearn",
    "with_options",
]

# Added to the recipe's seed: what is compared must not share its randomness.
RETRAINED_SEED, RETRAIN_SEED = 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Unlearning:
    """An unlearning directory, opened for reading or for `unlearn`."""

    path: Path
    config: UnlearnConfig

    @classmethod
    def create(cls, path: str | os.PathLike[str], dataset: Dataset, config: UnlearnConfig) -> "Unlearning":
        """Make a directory, or open the one that is there, with other methods if `config` names them.

        Raises:
            RunError: the directory cannot be written, holds something else, or an unlearning of other requests or
                models; or the run to start from is incomplete, of other data, or saved no parameters.
            ValueError: the requests do not fit the pool, or a method or the recipe does not fit.
        """
        path = Path(path).expanduser().absolute()
        config = resolved(config)
        if (path / "config.toml").exists():
            return cls.open(path)._continue(dataset, config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path}: is not an unlearning directory (it has no config.toml); name a new or empty one"
            )
        config.recipe.check(dataset.num_examples, dataset.x.shape[1:])
        config.queries.check(dataset.x.shape[1:])
        requests = draw_requests(config, dataset, _first_memberships(config, dataset))
        _check_methods(config, dataset, requests, config.methods)
        with new_directory(path) as making:
            write_array(making / "forget", requests, {})
            write_atomically(making / "config.toml", tomli_w.dumps(as_dict(config)).encode())
        return cls(path, config)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Unlearning":
        """Open an existing directory.

        Raises:
            RunError: it is not an unlearning directory, or is damaged.
        """
        path = Path(path).expanduser().absolute()
        for name in ("config.toml", "forget"):
            if not (path / name).exists():
                raise RunError(f"{path}: is not an unlearning directory (it has no {name})")
        try:
            return cls(path, read_config(path / "config.toml", UnlearnConfig))
        except ConfigError as error:
            raise RunError(f"{path}: the unlearning directory is damaged: {error}") from error

    def _continue(self, dataset: Dataset, config: UnlearnConfig) -> "Unlearning":
        """Give the directory other methods or another execution; refused where anything else differs."""
        old = self.config
        same = {"methods", "method", "execution", "recipe", "queries", "forget"}
        changes = [
            *differences(old.recipe, config.recipe, "recipe."),
            *differences(old.queries, config.queries, "queries."),
            *differences(old.forget, config.forget, "forget."),
            *(
                f"{each.name} is {getattr(old, each.name)!r} there and {getattr(config, each.name)!r} here"
                for each in dataclasses.fields(config)
                if each.name not in same and getattr(old, each.name) != getattr(config, each.name)
            ),
        ]
        for name in old.method.keys() & config.method.keys():
            if old.method[name] != config.method[name] and self._place(name).exists():
                there, here = (
                    ", ".join(f"{key} = {value!r}" for key, value in each.method[name].items())
                    for each in (old, config)
                )
                changes.append(
                    f"method.{name} has {there} there and {here} here (or remove {self._place(name)})"
                )
        if changes:
            raise RunError(
                f"{self.path}: is another unlearning: {'; '.join(changes)}; name another directory"
            )
        _check_methods(
            config,
            dataset,
            self.requests,
            [name for name in config.methods if not self._place(name).exists()],
        )
        config = dataclasses.replace(config, method={**old.method, **config.method})
        if config != old:
            write_atomically(self.path / "config.toml", tomli_w.dumps(as_dict(config)).encode())
        return Unlearning(self.path, config)

    # --- What is there ----------------------------------------------------------------------------------------------

    @property
    def requests(self) -> np.ndarray:
        """The forget sets, one after the other, bool `[K, N]`; no example is in two."""
        return read_store(open_array(self.path / "forget"), f"{self.path}/forget")

    @property
    def before(self) -> Run:
        """The run of the M models that are unlearned."""
        return Run.open(self.config.run or self.path / "before")

    @property
    def retrained(self) -> Run:
        """The run of K M models trained from scratch without requests 0..k: the reference."""
        return Run.open(self.path / "retrained")

    def method(self, name: str) -> Run:
        """The run of K M models that a method left."""
        return Run.open(self._place(name))

    def _place(self, name: str) -> Path:
        return self.path / "methods" / name

    def is_complete(self) -> bool:
        """Whether every model of every kind is there."""
        places = [self.path / "retrained", *map(self._place, self.config.methods)]
        if not all(place.exists() for place in places):
            return False
        return all((Run.open(place).done > 0).all() for place in places)


class Measurements(NamedTuple):
    """What the metrics of a method at request k are computed from; m models, in complementary pairs."""

    keep: np.ndarray  # bool [m, N], memberships of the models before
    forget: np.ndarray  # bool [N], everything requested so far: requests 0..k
    requests: np.ndarray  # bool [k + 1, N], those requests
    labels: np.ndarray  # int32 [N]
    before: np.ndarray  # float32 [m, N, Q], phi
    previous: np.ndarray  # float32 [m, N, Q], of this method after the request before this one
    after: np.ndarray  # float32 [m, N, Q]
    retrained: np.ndarray  # float32 [m, N, Q]
    features: tuple[
        np.ndarray, np.ndarray, np.ndarray
    ]  # float32 [m, N, D] before, after and retrained: all signals but logits
    accuracies: dict[str, dict[str, np.ndarray]]  # [after | retrained][retain | forget | test] -> float [m]
    seconds: float  # of learning, a model and request; NaN where it was not recorded
    seconds_retrained: float  # the same, of training from scratch


def measurements(unlearning: Unlearning, method: str, k: int) -> Measurements:
    """The arrays that metrics are computed from, of the models whose pairs are usable before, after and retrained.

    Accuracy on the forget set is over the examples that the model held before; NaN for a model that held none. Without
    a test set, test accuracy is over the examples that the model never held.

    Raises:
        RunError: the models are not there yet.
    """
    before, retrained, after = unlearning.before, unlearning.retrained, unlearning.method(method)
    M = unlearning.config.num_models
    usable = set(before.models.tolist())
    for run in (retrained, after):
        usable &= set((run.models[(run.models >= k * M) & (run.models < (k + 1) * M)] - k * M).tolist())
    models = np.array(sorted(m for m in usable if m < M), int)
    if not len(models):
        raise RunError(
            f"{unlearning.path}: no pair of models is complete for {method!r} at request {k}: unlearn first"
        )
    keep = before.memberships(models)
    requests = unlearning.requests[: k + 1]
    forget = np.logical_or.reduce(requests)
    accuracies = {}
    for name, run in (("after", after), ("retrained", retrained)):
        correct = np.asarray(run.signal("correct", models + k * M), bool)
        accuracies[name] = {
            "retain": accuracy_over(correct, keep & ~forget),
            "forget": accuracy_over(correct, keep & forget),
            "test": np.asarray(run.accuracy("test", models + k * M)),
        }
        if not run.holds("phi_test"):
            accuracies[name]["test"] = accuracy_over(correct, ~keep & ~forget)
    signals = [name for name in ("phi", *SIGNALS) if name != "logits" and before.holds(name)]

    def joined(run: Run, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(run.signal(name, rows)) for name in signals], axis=2)

    return Measurements(
        keep=keep,
        forget=forget,
        requests=requests,
        labels=before.labels,
        before=np.asarray(before.signal("phi", models)),
        previous=np.asarray(after.signal("phi", models + (k - 1) * M) if k else before.signal("phi", models)),
        after=np.asarray(after.signal("phi", models + k * M)),
        retrained=np.asarray(retrained.signal("phi", models + k * M)),
        features=(joined(before, models), joined(after, models + k * M), joined(retrained, models + k * M)),
        accuracies=accuracies,
        seconds=_seconds_a_model(after),
        seconds_retrained=_seconds_a_model(retrained),
    )


def _seconds_a_model(run: Run) -> float:
    sessions = [s for s in run.provenance["sessions"] if s["models"]]
    models = sum(s["models"] for s in sessions)
    return sum(s["learning_seconds"] for s in sessions) / models if models else float("nan")


# --- The configuration -----------------------------------------------------------------------------------------------


def resolved(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with everything said: absolute paths, what the run to start from decides, all options.

    With a run, what it decides may be left out; `num_models` may be smaller, and the first ones are taken.

    Raises:
        RunError: the run was imported or saved no parameters.
        ConfigError: the configuration says something else than the run.
        ValueError: a method or an option is unknown.
    """
    config = absolute(config)
    if config.run:
        config = _from_run(config, Run.open(config.run))
    return with_options(config)


def with_options(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with all options of its methods, the defaults too."""
    named = {
        name: method_options(name, config.method.get(name, {})) for name in (*config.methods, *config.method)
    }
    return dataclasses.replace(config, method={name: options for name, options in named.items() if options})


def _from_run(config: UnlearnConfig, run: Run) -> UnlearnConfig:
    if run.is_imported:
        raise RunError(f"{run.path}: was imported and has no recipe: it cannot be retrained")
    if not run.config.save_params:
        raise RunError(
            f"{run.path}: saved no parameters, and unlearning starts from them: train a run with save_params = true"
        )
    missing = int((run.done == 0).sum())
    if missing:
        raise RunError(f"{run.path}: lacks {missing} models: finish it first, lira train {run.path}")
    default, changes = Config(), []
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Config):
        mine, theirs = getattr(config, each.name), getattr(run.config, each.name)
        unsaid = mine == getattr(default, each.name)
        if each.name == "save_params":
            continue
        values[each.name] = theirs if unsaid else mine
        if unsaid or mine == theirs or each.name == "execution":
            continue
        if each.name == "num_models" and mine < theirs:
            continue
        if dataclasses.is_dataclass(mine):
            changes += differences(theirs, mine, f"{each.name}.")
        else:
            changes.append(f"{each.name} is {theirs!r} there and {mine!r} here")
    if changes:
        raise ConfigError(f"{run.path}: decides these, so leave them out: {'; '.join(changes)}")
    return dataclasses.replace(config, **values)


def _run_config(config: UnlearnConfig, *, models: int, save_params: bool, seed: int = 0) -> Config:
    """The configuration of one of the runs of an unlearning."""
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(Config)}
    recipe = dataclasses.replace(config.recipe, seed=config.recipe.seed + seed)
    return Config(**{**values, "num_models": models, "save_params": save_params, "recipe": recipe})


def _first_memberships(config: UnlearnConfig, dataset: Dataset) -> np.ndarray:
    """Memberships of the models that are unlearned, bool `[M, N]`."""
    if config.run:
        return Run.open(config.run, dataset).memberships(np.arange(config.num_models))
    return keep_mask(config.membership_seed, config.num_models, dataset.num_examples)


# --- Running ---------------------------------------------------------------------------------------------------------


def unlearn(unlearning: Unlearning, dataset: Dataset, *, show_progress: bool = True) -> None:
    """Train, retrain and unlearn all models that are missing. Interrupt it at any point.

    Raises:
        RunError: the data is not the directory's, another process is writing it, or a method returned NaN for every
            model that had something to forget.

    Warns:
        DivergedWarning: naming models that stopped being finite.
    """
    config, requests = unlearning.config, unlearning.requests
    M, K = config.num_models, len(requests)
    if config.run:
        before = Run.open(config.run, dataset)
    else:
        before = Run.from_config(
            unlearning.path / "before", dataset, _run_config(config, models=M, save_params=True)
        )
        train(before, dataset, show_progress=show_progress)
    # Row k M + m: what model m holds after requests 0..k.
    gone = np.cumsum(requests, axis=0).astype(bool)
    keep = (before.memberships(np.arange(M)) & ~gone[:, None]).reshape(K * M, -1)
    scratch = partial(_run_config, config, models=K * M, save_params=False)
    retrained = Run.from_config(
        unlearning.path / "retrained", dataset, scratch(seed=RETRAINED_SEED), keep=keep
    )
    train(retrained, dataset, verb="retraining", show_progress=show_progress)
    for name in config.methods:
        place = unlearning.path / "methods" / name
        if name == RETRAIN:
            run = Run.from_config(place, dataset, scratch(seed=RETRAIN_SEED), keep=keep)
            train(run, dataset, verb=RETRAIN, show_progress=show_progress)
        else:
            # Only the next request starts from them.
            stored = _run_config(config, models=K * M, save_params=K > 1)
            run = Run.from_config(place, dataset, stored, keep=keep)
            for k in range(K):
                _unlearn_request(unlearning, dataset, before, run, name, k, show_progress)


def _unlearn_request(
    unlearning: Unlearning, dataset: Dataset, before: Run, run: Run, name: str, k: int, show_progress: bool
) -> None:
    """Make the models of a method after request k; a model that had diverged before it stays so."""
    config, requests = unlearning.config, unlearning.requests
    M, K = config.num_models, len(requests)
    models, rows = np.arange(M), k * M + np.arange(M)
    source, from_rows = (run, rows - M) if k else (before, models)
    lost = source.done[from_rows] != DONE
    with run.lock():
        for row in rows[lost & (run.done[rows] == 0)]:
            run.write_model(int(row), {}, diverged=True)
    held = before.memberships(models)
    forget, retain = held & requests[k], held & ~requests[: k + 1].any(axis=0)
    one = _one_model(find_method(name), config.method.get(name, {}), config, dataset, requests)

    def prepare(missing: int) -> tuple[Programs, Learn]:
        programs = programs_for(
            config.recipe, config.queries, config.execution, dataset, missing, config.signals
        )
        W = programs.width
        parameters = source.signal("params").shape[1]
        shapes = (
            jax.ShapeDtypeStruct((W, parameters), jnp.float32),
            jax.ShapeDtypeStruct((W,), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.int32),
            *(jax.ShapeDtypeStruct((W, dataset.num_examples), bool) for _ in range(2)),
            *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y)),
        )
        programs, compiled = fit_beside(programs, one, (0, 0, None, 0, 0, None, None), shapes)

        def learn(
            stack: np.ndarray, data: Data, advance: Callable[[float, int], None], stop: Event
        ) -> Learned:
            wide = np.resize(stack, W) - k * M
            variables, finite = compiled(
                jnp.asarray(np.asarray(source.signal("params", from_rows[wide]))),
                jnp.asarray(wide, jnp.int32),
                jnp.asarray(k, jnp.int32),
                jnp.asarray(forget[wide]),
                jnp.asarray(retain[wide]),
                data.x,
                data.y,
            )
            finite = np.asarray(finite)
            advance(len(stack), 0)
            return Learned(variables, finite)

        return programs, learn

    said = f"{name}, request {k + 1} of {K}" if K > 1 else name
    made = fill(run, dataset, prepare, among=rows, verb=said, show_progress=show_progress)
    diverged = (run.done[rows] == DIVERGED) & ~lost
    if diverged.any() and diverged[~lost & forget.any(axis=1)].all():
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


def _one_model(
    method: Callable[..., Any],
    options: Mapping[str, Any],
    config: UnlearnConfig,
    dataset: Dataset,
    requests: np.ndarray,
) -> Callable[..., Any]:
    """A method as a function of one model's stored parameters: `(flat [P], model, request, forget, retain, x, y)`."""
    recipe, module = config.recipe, build_model(config.recipe.model, dataset.num_classes)
    _, unravel = ravel_pytree(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _shapes(recipe, dataset))
    )
    size = int(requests.sum(axis=1).max())

    def one(flat, model, request, forget, retain, x, y):
        # Not among the keys of the model's training, and the same for all methods.
        key = jax.random.fold_in(jax.random.fold_in(model_key(recipe.seed, model), 2), request)
        problem = Problem(module, recipe, dataset.num_classes, size, unravel(flat), x, y, forget, retain)
        return apply_method(method, options, problem, key)

    return one


def _shapes(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Shapes of the variables that a trained model answers with."""
    module = build_model(recipe.model, dataset.num_classes)
    state = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    return {"params": state.params, **state.statistics}


def _check_methods(config: UnlearnConfig, dataset: Dataset, requests: np.ndarray, methods) -> None:
    """Raise ValueError, before anything is spent, for a method that cannot be traced."""
    for name in methods:
        if name != RETRAIN:
            _traced(name, config, dataset, requests)


def _traced(name: str, config: UnlearnConfig, dataset: Dataset, requests: np.ndarray) -> Any:
    """The program of a method for one model, as JAX sees it."""
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(_shapes(config.recipe, dataset)))
    one = _one_model(find_method(name), config.method.get(name, {}), config, dataset, requests)
    mask = jax.ShapeDtypeStruct((dataset.num_examples,), bool)
    flat = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    try:
        return jax.make_jaxpr(one)(flat, 0, 0, mask, mask, dataset.x, dataset.y)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"method {name!r}: {str(error).splitlines()[0]}") from error


# --- What it costs ---------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Models of one kind in a plan."""

    name: str
    models: int  # to be made
    of: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class UnlearningPlan:
    """What completing an unlearning costs, before anything is spent."""

    kinds: list[Kind]
    how: str

    def __str__(self) -> str:
        """A line a kind of models."""
        lines = [
            f"{kind.name:>20}: {kind.models} of {kind.of} models, about {duration(kind.seconds)}"
            for kind in self.kinds
        ]
        total = f"{'together':>20}: about {duration(sum(kind.seconds for kind in self.kinds))} {self.how}"
        return "\n".join([*lines, total])


def plan_unlearning(
    config: UnlearnConfig, dataset: Dataset, unlearning: Unlearning | None = None
) -> UnlearningPlan:
    """Estimate the cost of `config` (`resolved`), or of what `unlearning` still lacks.

    A few steps of training are timed; a method costs as many of them as its multiplications come to.
    """
    requests = draw_requests(config, dataset, _first_memberships(config, dataset))
    M, K = config.num_models, len(requests)
    training = plan(_run_config(config, models=M, save_params=True), dataset)
    steps = steps_per_epoch(dataset.num_examples, config.recipe.batch_size) * config.recipe.epochs
    # As in `plan`, a query costs a third of what an image costs in training.
    asked = (
        (dataset.num_examples + dataset.num_test) * len(config.queries.views) / config.recipe.batch_size / 3
    )
    seconds_per_step = training.seconds / M / (steps + asked)
    one_step = _step_operations(config.recipe, dataset)

    def kind(name: str, place: Path | None, of: int, its_steps: float) -> Kind:
        missing = of
        if place is not None and (place / "config.toml").exists():
            missing = int((Run.open(place).done == 0).sum())
        return Kind(name, missing, of, missing * (its_steps + asked) * seconds_per_step)

    root = unlearning.path if unlearning else None
    kinds = []
    if not config.run:
        kinds.append(kind("original", root and root / "before", M, steps))
    kinds.append(kind("retrained", root and root / "retrained", K * M, steps))
    for name in config.methods:
        its_steps = steps
        if name != RETRAIN:
            its_steps = operations(_traced(name, config, dataset, requests).jaxpr) / one_step
        kinds.append(kind(name, root and root / "methods" / name, K * M, its_steps))
    return UnlearningPlan(
        kinds,
        f"on {training.device} ({training.workers} x {training.width} side by side, convolutions by "
        f"{training.lowering})",
    )


def _step_operations(recipe: Recipe, dataset: Dataset) -> int:
    """Multiplications of one training step of one model."""
    module = build_model(recipe.model, dataset.num_classes)
    key = jax.random.key(0)
    state = jax.eval_shape(partial(init_model, module, recipe, 1), key, dataset.x[:1])
    order = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    step = partial(train_step, module, recipe, 1)
    return operations(jax.make_jaxpr(step)(state, key, 0, 0, order, dataset.x, dataset.y).jaxpr)


def operations(jaxpr: Any) -> int:
    """Multiplications in the matrix products and convolutions of a program, those in a loop as often as it turns.

    Loops whose number of turns is not known beforehand count once.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += int(np.prod(equation.outvars[0].aval.shape)) * int(
                np.prod([shape[axis] for axis in contracted])
            )
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += int(np.prod(equation.outvars[0].aval.shape)) * int(np.prod(kernel)) // features
        else:
            inner = [
                operations(getattr(each, "jaxpr", each))
                for value in equation.params.values()
                for each in (value if isinstance(value, tuple | list) else [value])
                if hasattr(each, "eqns")
            ]
            # Of the branches of a condition one is taken.
            once = max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
            total += once * equation.params.get("length", 1)
    return total
