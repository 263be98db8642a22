"""Fields of configuration that take one of a few words: their `Literal` types, held where dataclasses are made."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

__all__ = ["check_choices"]


def check_choices(config: Any, table: str) -> None:
    """Raise ValueError where a field of a dataclass is none of the words of its type; `table` is its name in TOML."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(get_args(field.type))
            raise ValueError(f"{table}.{field.name} must be one of {choices}; got {value!r}")
