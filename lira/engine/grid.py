"""A grid of settings: one configuration with some of its fields varied, every combination a run of its own."""

import dataclasses
import difflib
import itertools
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lira.data.dataset import Dataset
from lira.engine.plan import Plan, plan
from lira.engine.progress import duration, size_in_words
from lira.faults import whose
from lira.learning.accounting import guarantee
from lira.learning.learner import Learner
from lira.store.config import Config, ConfigError, as_dict, build, read_directory
from lira.store.identity import require_same_settings
from lira.store.places import Place
from lira.store.run import Run

__all__ = ["GridPlan", "Setting", "parse_over", "plan_grid", "require_same_runs", "settings_of"]

# The setting in which nothing is varied, where fields are varied one at a time.
BASE = "base"
# Tables whose fields may be varied; what is wrong with all others.
VARIED = ("recipe", "queries")
OF_MEMBERSHIPS = ("dataset", "num_examples", "data_dir", "membership_seed", "membership", "canaries")
WHY_NOT = {
    "num_models": "settings are compared model by model, so all have as many; lira enough says how many are enough",
    **dict.fromkeys(
        OF_MEMBERSHIPS,
        "it changes the memberships, and settings are compared on the same ones: make a grid of each",
    ),
}


@dataclass(frozen=True)
class Setting:
    """One combination of the fields that are varied."""

    name: str  # for people: epsilon=1, clip=0.5
    values: dict[str, Any]  # by field
    config: Config

    @property
    def directory(self) -> str:
        """Of its run, within the grid's: the name, without what file systems do not take."""
        return urllib.parse.quote(self.name.replace(", ", ","), safe="=,+")


@dataclass(frozen=True)
class GridPlan:
    """What completing a grid costs, before anything is spent."""

    settings: dict[str, Plan]  # by name

    @property
    def seconds(self) -> float:
        """Of all of them, one after the other."""
        return sum(each.seconds for each in self.settings.values())

    def __str__(self) -> str:
        """One line for a terminal, and one for each different warning."""
        plans = list(self.settings.values())
        models, of, images, disk, scores = (
            sum(getattr(each, name) for each in plans)
            for name in ("models", "of", "images", "bytes_on_disk", "bytes_of_scores")
        )
        warnings = dict.fromkeys(each.warning for each in plans if each.warning)
        return (
            f"{len(plans)} settings: {models} of {of} models to train, {images:,} images, about {duration(self.seconds)} "
            f"in all on {plans[0].device}; {size_in_words(disk)} on disk and {size_in_words(scores)} for the scores of each "
            f"attack"
        ) + "".join(f"\nwarning: {each}" for each in warnings)


def parse_over(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each field, from `FIELD=VALUE,VALUE,...` as they stand on the command line.

    A value is read as TOML reads it (5e-4, true, inf); what is not TOML is a word.

    Raises:
        ConfigError: a text is no such thing, or a field is there twice.
    """
    over: dict[str, list[Any]] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not (field and equals and all(value.strip() for value in values.split(","))):
            raise ConfigError(
                f"--over is FIELD=VALUE,VALUE,..., as of recipe.weight_decay=0,5e-4; got {text!r}"
            )
        if field in over:
            raise ConfigError(f"--over names {field} twice: give all its values at once")
        over[field] = [_value(each.strip()) for each in values.split(",")]
    return over


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"x = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["x"]


def settings_of(base: Config, over: Mapping[str, Sequence[Any]], *, apart: bool = False) -> list[Setting]:
    """Every combination of the values of the fields `over`, the last field varied fastest.

    Args:
        base: all other fields.
        over: values by field, as of `{"recipe.weight_decay": [0.0, 5e-4]}`.
        apart: vary one field at a time in place of that: the base first, then each value of each field by itself.

    Raises:
        ConfigError: there is no such field, or one that may not differ between settings; a value does not fit, or is
            there twice.
    """
    if not over:
        raise ConfigError("a grid needs a field to vary, as of --over recipe.weight_decay=0,5e-4")
    for field, values in over.items():
        _check_field(field)
        if not values:
            raise ConfigError(f"--over {field} has no values")
    last = [field.rpartition(".")[2] for field in over]
    short = {field: name if last.count(name) == 1 else field for field, name in zip(over, last, strict=True)}
    if apart:
        combinations = [{}, *({field: value} for field, values in over.items() for value in values)]
    else:
        combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    settings: dict[str, Setting] = {}
    for values in combinations:
        table = as_dict(base)
        for field, value in values.items():
            _put(table, field, value)
        config = build(Config, table, "--over")
        typed = {field: _at(config, field) for field in values}
        name = ", ".join(f"{short[field]}={_text(value)}" for field, value in typed.items()) or BASE
        if name in settings:
            raise ConfigError(f"--over gives {name} twice")
        if not (apart and values and config == base):
            settings[name] = Setting(name, typed, config)
    return list(settings.values())


def _check_field(field: str) -> None:
    """Raise ConfigError unless the field is there and may be varied."""
    known = list(_fields(Config))
    if field not in known:
        plain = {name.rpartition(".")[2]: name for name in reversed(known)}
        close = difflib.get_close_matches(field, known, n=1) or [
            plain[name] for name in difflib.get_close_matches(field.rpartition(".")[2], plain, n=1)
        ]
        meant = f"did you mean {close[0]!r}?" if close else "fields are named as recipe.weight_decay is"
        raise ConfigError(f"--over: unknown field {field!r}: {meant}")
    table = field.partition(".")[0]
    if table not in VARIED:
        why = WHY_NOT.get(
            table, "it does not decide what models become or answer; vary fields of recipe and queries"
        )
        raise ConfigError(f"--over: {field} is not varied: {why}")


def _fields(cls: Any, prefix: str = "") -> Iterator[str]:
    """The names of the fields that are no tables, of tables that may be absent, too."""
    for each in dataclasses.fields(cls):
        table = next((t for t in (each.type, *get_args(each.type)) if dataclasses.is_dataclass(t)), None)
        if table is None:
            yield prefix + each.name
        else:
            yield from _fields(table, f"{prefix}{each.name}.")


def _put(table: dict[str, Any], field: str, value: Any) -> None:
    """Put a value into nested tables, of which those on the way are made where they are absent."""
    *path, last = field.split(".")
    for part in path:
        table[part] = table.get(part) or {}
        table = table[part]
    table[last] = value


def _at(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = getattr(config, part)
    return config


def _text(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


# --- On disk, and what it costs ---------------------------------------------------------------------------------------


def require_same_runs(path: Place, settings: Sequence[Setting]) -> None:
    """Raise RunError where a run of the grid at `path` is there already, of another configuration than its setting's."""
    for each in settings:
        place = path / each.directory
        if (place / "config.toml").exists():
            require_same_settings(place, read_directory(place)[0], each.config)


def plan_grid(path: Place | None, settings: Sequence[Setting], dataset: Dataset) -> GridPlan:
    """Estimate the cost of each setting, or of what its run lacks, by timing a few steps of a real stack.

    Args:
        path: the grid's directory; None: nothing is there yet.
        settings: of the grid.
        dataset: their data.

    Raises:
        ConfigError: a setting's models cannot be trained on these data; it is named.
    """
    for each in settings:
        try:
            _check(each.config, dataset)
        except ValueError as error:
            if whose(error) != "input":
                raise
            raise ConfigError(f"setting {each.name}: {error}") from error
    plans = {}
    for each in settings:
        place = None if path is None else path / each.directory
        there = place is not None and (place / "config.toml").exists()
        plans[each.name] = plan(each.config, dataset, Run.open(place, dataset) if place and there else None)
    return GridPlan(plans)


def _check(config: Config, dataset: Dataset) -> None:
    """Raise ValueError, before anything is compiled, where models of this configuration cannot be trained on these data, or
    not be attacked.
    """
    if config.membership.design == "all":
        raise ValueError(
            'membership.design = "all" leaves canaries alone to be attacked, and settings are compared by what is attacked of '
            "the pool: take pairs, or lira audit-one of each setting"
        )
    share = config.share(dataset.num_examples)
    config.recipe.check(dataset.num_examples, dataset.x.shape[1:], share)
    config.queries.check(dataset.x.shape[1:], dataset.num_classes)
    Learner.of(config.recipe, dataset, share)
    guarantee(config.recipe, dataset.num_examples, share)
