"""The configuration of an unlearning: the runs' own, what is to be forgotten, and by which methods."""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from lira.learning.choices import check_choices
from lira.store import config as runs
from lira.store.config import Config, absolute_path, read_table
from lira.unlearners import METHODS, RETRAIN, method_options

__all__ = ["Forget", "UnlearnConfig", "absolute", "is_unlearning"]

ForgetKind = Literal["random", "class", "vulnerable", "given"]


@dataclass(frozen=True)
class Forget:
    """What is to be forgotten: disjoint requests, one after the other."""

    kind: ForgetKind = "random"
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
        check_choices(self, "forget")
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


def is_unlearning(path: str | os.PathLike[str]) -> bool:
    """Whether a TOML file configures an unlearning: it has a table [forget].

    Raises:
        ConfigError: as `read_config`.
    """
    return "forget" in read_table(path)


def absolute(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration with every place in it spelled out, as it is stored: see `store.config.absolute`."""
    path, scores = absolute_path(config.forget.path), absolute_path(config.forget.scores)
    forget = dataclasses.replace(config.forget, path=path, scores=scores)
    return dataclasses.replace(runs.absolute(config), run=absolute_path(config.run), forget=forget)
