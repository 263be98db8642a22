"""The one configuration of a run or an unlearning: a TOML file read into frozen dataclasses, every mistake one line."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin, overload

from lira.augment import Queries
from lira.convolution import LOWERINGS
from lira.membership import check_num_models
from lira.training import SIGNALS, Recipe
from lira.unlearners import METHODS, RETRAIN, method_options

__all__ = [
    "IMPORTED",
    "Config",
    "ConfigError",
    "Execution",
    "Forget",
    "UnlearnConfig",
    "absolute",
    "as_dict",
    "differences",
    "is_unlearning",
    "read_config",
]

# The data set of a run whose models other code trained: it has no recipe, and its memberships are of any design.
IMPORTED = "imported"

FORGET_KINDS = ("random", "class", "vulnerable", "given")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what to do."""


@dataclass(frozen=True)
class Execution:
    """How stacks are executed. It does not change what a model becomes."""

    width: int = 0
    """Models in a stack, trained side by side; 0 takes the fastest by measurement."""
    lowering: str = "auto"
    """How convolutions are computed: xla, per_model, patches, winograd, mixed, or auto for the fastest by measurement."""
    workers: int = 0
    """Stacks trained at the same time; 0 is one a CPU core, and one on an accelerator."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("width", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"execution.{name} must be 0 (automatic) or more; got {getattr(self, name)}")
        if self.lowering not in ("auto", *LOWERINGS):
            raise ValueError(
                f"execution.lowering must be one of auto, {', '.join(LOWERINGS)}; got {self.lowering!r}"
            )


@dataclass(frozen=True)
class Config:
    """Everything a run needs, as in its config.toml."""

    dataset: str = "digits"
    """digits, tfds:NAME, folder:PATH or npz:PATH; $VARIABLES expand."""
    num_examples: int = 0
    """Use a class-balanced part of the data set; 0 is all of it."""
    data_dir: str = ""
    """Where tensorflow-datasets keeps its prepared data; empty for its own default."""
    num_models: int = 256
    """Shadow models, even; a larger number grows a run."""
    membership_seed: int = 0
    """Which model is trained on which example."""
    save_params: bool = False
    """Keep every model's weights."""
    signals: tuple[str, ...] = ("entropy", "modified_entropy")
    """What to store beside phi, for the attacks that read it: entropy, modified_entropy, logits."""
    recipe: Recipe = field(default_factory=Recipe)
    queries: Queries = field(default_factory=Queries)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.dataset != IMPORTED:
            check_num_models(self.num_models)
        for name in ("num_examples", "membership_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in self.signals:
            if name not in SIGNALS:
                raise ValueError(f"signals must be among {', '.join(SIGNALS)}; got {name!r}")
        if len(set(self.signals)) < len(self.signals):
            raise ValueError(f"signals names one twice; got {', '.join(self.signals)}")


@dataclass(frozen=True)
class Forget:
    """What is to be forgotten: disjoint requests, one after the other."""

    kind: str = "random"
    """random, class, vulnerable (the most vulnerable first) or given."""
    size: int = 100
    """Examples a request, of random and vulnerable."""
    label: int = 0
    """The class of the first request, of class; each further request is the next class."""
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
        if self.kind not in FORGET_KINDS:
            raise ValueError(f"forget.kind must be one of {', '.join(FORGET_KINDS)}; got {self.kind!r}")
        for name in ("size", "requests"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"forget.{name} must be at least 1: the forget set is empty; got {getattr(self, name)}"
                )
        for name in ("label", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"forget.{name} must not be negative; got {getattr(self, name)}")
        if (self.kind == "given") != bool(self.path):
            raise ValueError('forget.kind = "given" needs forget.path, and the other kinds take none')


@dataclass(frozen=True)
class UnlearnConfig(Config):
    """Everything an unlearning needs, as in its config.toml: a run to start from, what to forget, and how."""

    save_params: bool = True
    """Unlearning starts from the weights: always true."""
    run: str = ""
    """A run that saved its parameters; empty trains one."""
    methods: tuple[str, ...] = ("none", RETRAIN, *list(METHODS)[1:])
    """Methods by name, or your own by dotted path."""
    forget: Forget = field(default_factory=Forget)
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the methods, by name."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if not self.save_params:
            raise ValueError("save_params must be true: unlearning starts from the saved parameters")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be named, each once; got {list(self.methods)}")
        for name in (*self.methods, *self.method):
            method_options(name, self.method.get(name, {}))


C = TypeVar("C", bound=Config)


def is_unlearning(path: str | os.PathLike[str]) -> bool:
    """Whether a TOML file configures an unlearning: it has a table [forget].

    Raises:
        ConfigError: as `read_config`.
    """
    return "forget" in _read_table(path)


@overload
def read_config(path: str | os.PathLike[str]) -> Config: ...
@overload
def read_config(path: str | os.PathLike[str], kind: type[C]) -> C: ...
def read_config(path: str | os.PathLike[str], kind: type[Config] = Config) -> Config:
    """Read a TOML file; relative paths of data are taken from the current directory.

    Raises:
        ConfigError: the file is missing or broken, or a key is unknown, of the wrong type or out of range.
    """
    return _build(kind, _read_table(path), str(path), "")


def _read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def absolute(config: C) -> C:
    """The configuration with $VARIABLES and ~ expanded and relative paths made absolute: as it is stored."""
    if isinstance(config, UnlearnConfig):
        forget = dataclasses.replace(
            config.forget, path=_absolute(config.forget.path), scores=_absolute(config.forget.scores)
        )
        config = dataclasses.replace(config, run=_absolute(config.run), forget=forget)
    kind, colon, place = config.dataset.partition(":")
    if kind in ("folder", "npz") and colon:
        config = dataclasses.replace(config, dataset=f"{kind}:{_absolute(place)}")
    return dataclasses.replace(config, data_dir=_absolute(config.data_dir))


def _absolute(place: str) -> str:
    return os.path.abspath(os.path.expanduser(os.path.expandvars(place))) if place else ""


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, in TOML's order: plain keys before tables."""
    return dataclasses.asdict(config)


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Name each field in which two values of one dataclass differ: `recipe.epochs is 50 there and 60 here`."""
    for each in dataclasses.fields(old):
        before, now = getattr(old, each.name), getattr(new, each.name)
        if before != now:
            yield f"{prefix}{each.name} is {before!r} there and {now!r} here"


def _build(cls: type, table: dict[str, Any], path: str, prefix: str) -> Any:
    """Make dataclass `cls` from a TOML table, naming any key that does not fit."""
    known = {each.name: each for each in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {prefix + key!r}{_nearest(key, known, prefix)}")
        expected = known[key].type
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {prefix + key!r} must be a table, [{key}]; got {value!r}")
            values[key] = _build(expected, value, path, f"{key}.")
        else:
            values[key] = _typed(value, expected, path, prefix + key)
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _typed(value: Any, expected: Any, path: str, key: str) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if get_origin(expected) is tuple:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{path}: {key!r} must be a list of strings; got {value!r}")
        return tuple(value)
    if get_origin(expected) is dict:
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
            raise ConfigError(f"{path}: {key!r} must hold tables, [{key}.NAME]; got {value!r}")
        return value
    if type(value) is not expected:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        raise ConfigError(f"{path}: {key!r} must be {names[expected]}; got {value!r}")
    return value


def _nearest(key: str, known: dict[str, Any], prefix: str) -> str:
    """`, did you mean 'recipe.epochs'?`, looking into the tables too, else the list of valid keys."""
    names = {prefix + name: prefix + name for name in known}
    if not prefix:
        for name, each in known.items():
            if dataclasses.is_dataclass(each.type):
                names |= {f"{name}.{inner.name}": inner.name for inner in dataclasses.fields(each.type)}
    plain = {name.rpartition(".")[2]: name for name in reversed(names)}
    close = difflib.get_close_matches(key, plain, n=1)
    return f": did you mean {plain[close[0]]!r}?" if close else f"; valid keys are {', '.join(known)}"
