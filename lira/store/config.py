"""The one configuration of a run: a TOML file read into frozen dataclasses, every mistake one line."""

import dataclasses
import difflib
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.canaries import Canaries
from lira.data.huggingface import absolute_hub_source
from lira.data.tables import absolute_source
from lira.fields import check_fields, table_of, typed
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe, check_signals
from lira.membership import Membership, canary_mask
from lira.store.checksums import CHECKSUMS, parsed_json, toml_body
from lira.store.errors import RunError
from lira.store.execution import Execution
from lira.store.files import content_of
from lira.store.objects import ObjectPlace, is_url
from lira.store.places import Place

__all__ = [
    "FOREIGN",
    "FREE",
    "IMPORTED",
    "Config",
    "ConfigError",
    "Execution",
    "absolute",
    "absolute_canaries",
    "absolute_path",
    "as_dict",
    "as_table",
    "build",
    "deciding",
    "differences",
    "in_json",
    "read_checked_table",
    "read_config",
    "read_directory",
    "read_provenance",
    "read_table",
]

# The data set of a run whose models other code trained: it has no recipe, and its memberships are of any design.
IMPORTED = "imported"
# That of a run whose models a function of the user's trains: it has no recipe either, but memberships that are drawn.
FOREIGN = "foreign"
# Fields that do not decide what a model becomes, or that a run's fingerprints tell: they may change.
FREE = ("dataset", "num_examples", "data_dir", "num_models", "execution")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what to do."""


@dataclass(frozen=True)
class Config:
    """Everything a run needs, as in its config.toml."""

    dataset: str = "digits"
    """digits, tfds:NAME, hf:NAME, folder:PATH, npz:PATH, csv:PATH,label=NAME or parquet:PATH,label=NAME; $VARIABLES expand."""
    num_examples: int = 0
    """Use a class-balanced part of the data set; 0 is all of it."""
    data_dir: str = ""
    """Where tensorflow-datasets keeps its prepared data; empty for its own default."""
    num_models: int = 256
    """Models, an even number where they are pairs; a larger one grows a run."""
    membership_seed: int = 0
    """Which model is trained on which example."""
    save_params: bool = False
    """Keep every model's weights."""
    signals: tuple[str, ...] = ("entropy", "modified_entropy")
    """What to store beside phi, for the attacks that read it: entropy, modified_entropy, logits, and phi@FRACTION, phi
    after that share of training's epochs, as of phi@0.25."""
    membership: Membership = field(default_factory=Membership)
    canaries: Canaries | None = None
    """Extra examples that are members by fair coins of their own and reported by themselves; none by default."""
    recipe: Recipe = field(default_factory=Recipe)
    queries: Queries = field(default_factory=Queries)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.dataset != IMPORTED:
            self.membership.check(self.num_models)
        if self.membership.design == "all" and self.canaries is None:
            raise ValueError(
                'membership.design = "all" trains every model on all examples, and canaries alone can be attacked: add '
                "[canaries]"
            )
        for name in ("num_examples", "membership_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        self._check_canaries()
        check_signals(self.signals, self.recipe.epochs)
        if self.recipe.dropout and self.queries.convention == "original":
            raise ValueError(
                'queries.convention = "original" asks models in training mode, in which recipe.dropout drops: leave one out'
            )

    def _check_canaries(self) -> None:
        """Raise ValueError where the design has no use for such canaries, or these fall on one side."""
        canaries, (design, targets) = self.canaries, (self.membership.design, self.membership.num_targets)
        if canaries is None:
            return
        if canaries.kind == "gradient" and (design != "all" or targets):
            raise ValueError(
                'canaries.kind = "gradient" is for audits of single trainings, which need no others for reference: see '
                f'lira audit-one, membership.design = "all" without num_targets; got "{design}" and num_targets = {targets}'
            )
        if design == "all":
            coins = canary_mask(self.membership_seed, targets or self.num_models, canaries.count)
            if coins.all() or not coins.any():
                raise ValueError(
                    f"canaries.count is {canaries.count}, and by the coins of membership_seed = {self.membership_seed} "
                    f"{'all' if coins.all() else 'none'} are members, of which nothing can be told: take more"
                )

    @property
    def num_canaries(self) -> int:
        """How many of the examples, the last ones, are canaries."""
        return 0 if self.canaries is None else self.canaries.count

    def share(self, num_examples: int) -> float:
        """Of all examples, canaries among them, the share that a model is trained on, on average."""
        return self.membership.share_of(num_examples, self.num_canaries)

    def draw(self, num_examples: int) -> np.ndarray:
        """The keep mask of all models, bool `[M, N]`, canaries last."""
        return self.membership.draw(self.membership_seed, self.num_models, num_examples, self.num_canaries)


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a TOML file; relative paths of data are taken from the current directory.

    Raises:
        ConfigError: the file is missing or broken, or a key is unknown, of the wrong type or out of range.
    """
    return build(Config, read_table(path), str(path))


def read_directory(path: Place) -> tuple[Config, dict[str, Any]]:
    """The configuration and the provenance of a run directory.

    Raises:
        RunError: it is not one, is damaged, or its configuration was changed by hand; the message names the file, and
            the fields that differ.
    """
    for name in ("config.toml", "provenance.json", "arrays"):
        # On an object store a directory is nothing by itself.
        if (name != "arrays" or isinstance(path, Path)) and not (path / name).exists():
            raise RunError(f"{path}: is not a run directory (it has no {name})")
    provenance = read_provenance(path)
    try:
        table, whole = read_checked_table(path / "config.toml")
        config = build(Config, table, str(path / "config.toml"))
    except ConfigError as error:
        raise RunError(f"{path}: the run directory is damaged: {error}") from error
    # Of runs of earlier versions nothing but their own words is known.
    if "configuration" in provenance:
        decided = {**as_dict(config), **provenance["configuration"]}
        try:
            began = build(Config, decided, str(path / "provenance.json"))
        except ConfigError as error:  # one field by hand, which does not fit the others
            raise RunError(
                f"{path}: the run directory is damaged: config.toml is not as it was written: {error}"
            ) from error
        if changes := list(differences(began, config)):
            raise RunError(
                f"{path}: config.toml is not as it was written ({'; '.join(changes)}): put these back, or name another "
                f"directory"
            )
    if whole is False or (whole is None and provenance.get(CHECKSUMS)):
        raise RunError(
            f"{path}: the run directory is damaged: config.toml is not as it was written, by its checksum; restore it "
            f"from a copy, and change a run by the flags of lira run"
        )
    if not table.keys() >= {"dataset", "num_models"}:
        raise RunError(f"{path}: the run directory is damaged: config.toml is not whole")
    return config, provenance


def read_provenance(path: Place) -> dict[str, Any]:
    """The provenance.json of a run directory.

    Raises:
        RunError: it cannot be read, or is damaged.
    """
    try:
        provenance, whole = parsed_json(content_of(path / "provenance.json"))
        fields = {"fingerprints": dict, "versions": dict, "sessions": list}
        missing = [name for name, kind in fields.items() if not isinstance(provenance.get(name), kind)]
        if missing or not isinstance(provenance["fingerprints"].get("dataset"), str):
            raise ValueError("fields are missing")
        if whole is False or (whole is None and provenance.get(CHECKSUMS)):
            raise ValueError("it is not as it was written, by its checksum; restore it from a copy")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: the run directory is damaged: provenance.json: {error}") from error
    return provenance


def read_checked_table(path: Place) -> tuple[dict[str, Any], bool | None]:
    """A TOML file of a directory of ours, and whether it is as it was written; None where that is not known.

    Raises:
        ConfigError: as `read_table`.
    """
    body, whole = toml_body(_content(path))
    return _parsed(body, path), whole


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as nested plain values.

    Raises:
        ConfigError: it is no regular file, cannot be read, is not valid TOML, or is that of a run and not as it was
            written.
    """
    body, whole = toml_body(_content(path))
    if whole is False:
        raise ConfigError(
            f"{path}: is not as it was written, by the checksum in its first line: restore it, or remove that line if "
            f"you have changed it by hand"
        )
    return _parsed(body, path)


def _content(path: str | os.PathLike[str]) -> bytes:
    place = ObjectPlace.of(os.fspath(path)) if is_url(os.fspath(path)) else Path(path)
    try:
        if isinstance(place, Path) and place.exists() and not (place.is_file() or place.is_dir()):
            raise ConfigError(f"{path}: cannot be read: it is no regular file")  # a FIFO might never end
        return place.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parsed(content: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # as Windows' editors write it, too
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: it is no UTF-8 ({error}): save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        what = ": of a path write / for \\, or 'single quotes'" if "Unescaped '\\'" in str(error) else ""
        raise ConfigError(f"{path}: is not valid TOML: {error}{what}") from error


def absolute(config: Config) -> Config:
    """The configuration with $VARIABLES and ~ expanded and relative paths made absolute: as it is stored."""
    kind, colon, place = config.dataset.partition(":")
    if kind in ("folder", "npz") and colon:
        config = dataclasses.replace(config, dataset=f"{kind}:{absolute_path(place)}")
    elif kind in ("csv", "parquet", "hf") and place:
        expanded = absolute_hub_source if kind == "hf" else absolute_source
        config = dataclasses.replace(config, dataset=expanded(config.dataset))
    canaries = config.canaries and absolute_canaries(config.canaries)
    return dataclasses.replace(config, data_dir=absolute_path(config.data_dir), canaries=canaries)


def absolute_canaries(canaries: Canaries) -> Canaries:
    """Canaries whose file or run is named by its absolute path."""
    return dataclasses.replace(canaries, file=absolute_path(canaries.file), run=absolute_path(canaries.run))


def absolute_path(place: str) -> str:
    if not place or is_url(place):
        return place
    return os.path.abspath(os.path.expanduser(os.path.expandvars(place)))


def as_dict(config: Any) -> dict[str, Any]:
    """A dataclass of configuration as nested plain values, without the tables that it does not have."""
    return dataclasses.asdict(
        config, dict_factory=lambda fields: {name: value for name, value in fields if value is not None}
    )


def as_table(config: Config) -> dict[str, Any]:
    """What config.toml holds of it; of models that are not trained by a recipe nothing that no one knows."""
    table = as_dict(config)
    if config.dataset != FOREIGN:
        return table
    return {name: table[name] for name in ("dataset", "num_models", "membership_seed", "membership")}


def deciding(config: Config) -> dict[str, Any]:
    """The fields that decide what a model becomes and what is stored of it, as JSON may hold them."""
    return {name: in_json(value) for name, value in as_dict(config).items() if name not in FREE}


def in_json(value: Any) -> Any:
    """Nested plain values with the word for infinite numbers, which JSON does not know."""
    if isinstance(value, dict):
        return {name: in_json(each) for name, each in value.items()}
    return "inf" if value == math.inf else value


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Name each field in which two values of one dataclass differ: `recipe.epochs is 50 there and 60 here`."""
    for each in dataclasses.fields(old):
        before, now = getattr(old, each.name), getattr(new, each.name)
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(now):
            yield from differences(before, now, f"{prefix}{each.name}.")
        elif before != now:
            yield f"{prefix}{each.name} is {before!r} there and {now!r} here"


def build(
    make: Callable[..., Any],
    table: dict[str, Any],
    path: str,
    prefix: str = "",
    *,
    fields: type | None = None,
    also: Sequence[str] = (),
) -> Any:
    """Make a dataclass from a TOML table, naming any key that does not fit.

    Args:
        make: the dataclass, or what makes it of its fields by name.
        table: the fields.
        path: of the file, for messages.
        prefix: of the table's keys there.
        fields: the dataclass, where `make` is another function.
        also: keys that are valid beside these, for messages.
    """
    known = {each.name: each for each in dataclasses.fields(fields or make)}  # pyright: ignore[reportArgumentType]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {prefix + key!r}{_nearest(key, known, prefix, also)}")
        expected = known[key].type
        if (inner := table_of(expected)) is not None:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {prefix + key!r} must be a table, [{prefix}{key}]; got {value!r}")
            values[key] = build(inner, value, path, f"{prefix}{key}.")
        else:
            try:
                values[key] = typed(value, expected, prefix + key)
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from error
    try:
        return make(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _nearest(key: str, known: dict[str, Any], prefix: str, also: Sequence[str]) -> str:
    """`, did you mean 'recipe.epochs'?`, looking into the tables too, else the list of valid keys."""
    names = {name: name for name in (*(prefix + name for name in known), *also)}
    if not prefix:
        for name, each in known.items():
            if (table := table_of(each.type)) is not None:
                names |= {f"{name}.{inner.name}": inner.name for inner in dataclasses.fields(table)}
    plain = {name.rpartition(".")[2]: name for name in reversed(names)}
    close = difflib.get_close_matches(key, plain, n=1)
    return (
        f": did you mean {plain[close[0]]!r}?" if close else f"; valid keys are {', '.join((*known, *also))}"
    )
