"""The configuration of an unlearning: the runs' own, what is to be forgotten, and by which methods."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from lira.data.dataset import Dataset
from lira.fields import check_fields
from lira.membership import keep_mask
from lira.signals import checkpoints
from lira.store.config import (
    Config,
    ConfigError,
    absolute,
    absolute_path,
    as_dict,
    build,
    differences,
    read_table,
)
from lira.store.errors import RunError
from lira.store.run import Run
from lira.unlearners import METHODS, RETRAIN, method_options

__all__ = [
    "Forget",
    "UnlearnConfig",
    "as_table",
    "first_memberships",
    "is_unlearning",
    "read_unlearning",
    "resolved",
    "run_config",
    "with_options",
]

# What is proven of private models is proven of these, too: one leaves them as they are, one trains by the same recipe.
PROVEN = ("none", RETRAIN)
ALL = (*PROVEN, *(name for name in METHODS if name not in PROVEN))
ForgetKind = Literal["random", "class", "vulnerable", "given"]


@dataclass(frozen=True)
class Forget:
    """What is to be forgotten: disjoint requests, one after the other."""

    kind: ForgetKind = "random"
    """random, class, vulnerable (the most vulnerable first) or given."""
    size: int = 100
    """Examples a request, of random and vulnerable."""
    label: str | int = 0
    """The class of the first request, of class, by its name, or its number where no class has a number for a name; each
    further request is the next class."""
    path: str = ""
    """Indices or a mask (npy, npz, Zarr or CSV), of given; several requests share the indices equally, in their order."""
    scores: str = ""
    """A scored run of the same data, of vulnerable; empty takes the run that is unlearned."""
    requests: int = 1
    """Requests, one after the other."""
    seed: int = 0
    """Which examples, of random."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "forget.")
        for name in ("size", "requests"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"forget.{name} must be at least 1: the forget set is empty; got {getattr(self, name)}"
                )
        # As a flag and in TOML it is the same class.
        if isinstance(self.label, str) and self.label.isdecimal() and str(int(self.label)) == self.label:
            object.__setattr__(self, "label", int(self.label))
        if isinstance(self.label, int) and self.label < 0:
            raise ValueError(f"forget.label must not be negative; got {self.label}")
        if self.seed < 0:
            raise ValueError(f"forget.seed must not be negative; got {self.seed}")
        if (self.kind == "given") != bool(self.path):
            raise ValueError('forget.kind = "given" needs forget.path, and the other kinds take none')


@dataclass(frozen=True)
class UnlearnConfig:
    """Everything an unlearning needs, as in its config.toml: the models to start from, what to forget, and how.

    In TOML and as flags the fields of `pool` stand beside the others.
    """

    pool: Annotated[Config, tyro.conf.arg(name="")]
    """Of the models that are to forget, and of those that are retrained beside them."""
    run: str = ""
    """A run that saved its parameters; empty trains one."""
    methods: tuple[str, ...] = ()
    """Methods by name, or your own by dotted path; empty takes all, of private models none and retrain."""
    forget: Forget = field(default_factory=Forget)
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the methods, by name."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if not self.pool.save_params:
            raise ValueError("save_params must be true: unlearning starts from the saved parameters")
        if self.pool.membership.design != "pairs":
            raise ValueError(
                f'membership.design is "{self.pool.membership.design}", and unlearning is measured on complementary pairs: '
                f"leave it out"
            )
        if self.pool.canaries is not None:
            raise ValueError(
                "unlearning is measured on complementary pairs, and canaries have coins of their own: leave [canaries] out"
            )
        if not self.methods:
            object.__setattr__(self, "methods", PROVEN if self.pool.recipe.privacy else ALL)
        if self.pool.recipe.privacy and (public := [name for name in self.methods if name not in PROVEN]):
            raise ValueError(
                f"recipe.privacy: {', '.join(public)} would go on from private models without clipping or noise, and nothing "
                f'would be proven of what they leave: methods = ["{PROVEN[0]}", "{PROVEN[1]}"], or leave recipe.privacy out'
            )
        if not self.run and (names := checkpoints(self.pool.signals)):
            raise ValueError(
                f"signals: an unlearning keeps no checkpoints of training; leave out {', '.join(names)}"
            )
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be named, each once; got {list(self.methods)}")
        for name in (*self.methods, *self.method):
            method_options(name, self.method.get(name, {}))

    @classmethod
    def of_run(cls, run: str | os.PathLike[str], **fields: Any) -> "UnlearnConfig":
        """That of the models of a run that is there, and of other fields by name.

        Raises:
            RunError: the run was imported, saved no parameters, or lacks models.
        """
        return cls(pool=_run_to_start_from(run).config, run=os.fspath(run), **fields)


def is_unlearning(path: str | os.PathLike[str]) -> bool:
    """Whether a TOML file configures an unlearning: it has a table [forget].

    Raises:
        ConfigError: as `read_config`.
    """
    return "forget" in read_table(path)


def read_unlearning(
    path: str | os.PathLike[str], run: str = "", methods: Sequence[str] = ()
) -> UnlearnConfig:
    """Read a TOML file; what a run to start from decides may be left out of it.

    Args:
        path: of the file.
        run: in place of the file's.
        methods: where the file names none; empty for the defaults.

    Raises:
        ConfigError: as `store.config.read_config`.
        RunError: as `UnlearnConfig.of_run`.
    """
    table = read_table(path)
    names = [each.name for each in dataclasses.fields(UnlearnConfig) if each.name != "pool"]
    fields: dict[str, Any] = {"methods": list(methods)} if methods else {}
    fields |= {name: value for name, value in table.items() if name in names} | ({"run": run} if run else {})
    of_pool = {name: value for name, value in table.items() if name not in names}
    base: dict[str, Any] = {"save_params": True}
    # Those of earlier versions have no table [membership].
    is_whole = all(
        each.name in of_pool
        for each in dataclasses.fields(Config)
        if each.name not in ("membership", "canaries")
    )
    if not is_whole and isinstance(fields.get("run"), str) and fields["run"]:
        base = as_dict(_run_to_start_from(absolute_path(fields["run"])).config)
    for name, value in of_pool.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **value} if both_tables else value
    pool = build(Config, base, str(path), also=names)
    return build(partial(UnlearnConfig, pool), fields, str(path), fields=UnlearnConfig)


def as_table(config: UnlearnConfig) -> dict[str, Any]:
    """The configuration as it is written: nested plain values, those of `pool` beside the others."""
    table = as_dict(config)
    return {**table.pop("pool"), **table}


def resolved(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with everything spelled out: absolute paths, all options; a run to start from agrees with it.

    `num_models` may be smaller than the run's: the first ones are taken.

    Raises:
        RunError: as `UnlearnConfig.of_run`.
        ConfigError: the configuration differs from the run's.
        ValueError: a method or an option is unknown.
    """
    path, scores = absolute_path(config.forget.path), absolute_path(config.forget.scores)
    config = dataclasses.replace(
        config,
        pool=absolute(config.pool),
        run=absolute_path(config.run),
        forget=dataclasses.replace(config.forget, path=path, scores=scores),
    )
    if config.run:
        run = _run_to_start_from(config.run)
        smaller = min(config.pool.num_models, run.config.num_models)
        theirs = dataclasses.replace(run.config, execution=config.pool.execution, num_models=smaller)
        if changes := list(differences(theirs, config.pool)):
            raise ConfigError(f"{run.path}: decides these, so leave them out: {'; '.join(changes)}")
    return with_options(config)


def with_options(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with all options of its methods, the defaults too."""
    named = {
        name: method_options(name, config.method.get(name, {})) for name in (*config.methods, *config.method)
    }
    return dataclasses.replace(config, method={name: options for name, options in named.items() if options})


def _run_to_start_from(path: str | os.PathLike[str]) -> Run:
    run = Run.open(path)
    run.require_trained_pairs("unlearning is measured on complementary pairs that are retrained by it")
    if not run.config.save_params:
        raise RunError(
            f"{run.path}: saved no parameters, and unlearning starts from them: train a run with save_params = true"
        )
    if missing := int((run.done == 0).sum()):
        raise RunError(f"{run.path}: lacks {missing} models: finish it first, lira train {run.path}")
    return run


def run_config(config: UnlearnConfig, *, models: int, save_params: bool, seed: int = 0) -> Config:
    """The configuration of one of the runs of an unlearning: they keep no checkpoints of training.

    Methods do not train from scratch, and what is compared with them holds the same signals.
    """
    pool = config.pool
    signals = tuple(name for name in pool.signals if name not in checkpoints(pool.signals))
    recipe = dataclasses.replace(pool.recipe, seed=pool.recipe.seed + seed)
    return dataclasses.replace(
        pool, num_models=models, save_params=save_params, recipe=recipe, signals=signals
    )


def first_memberships(config: UnlearnConfig, dataset: Dataset) -> np.ndarray:
    """Memberships of the models that are unlearned, bool `[M, N]`."""
    models = config.pool.num_models
    if config.run:
        return Run.open(config.run, dataset).memberships(np.arange(models))
    return keep_mask(config.pool.membership_seed, models, dataset.num_examples)
