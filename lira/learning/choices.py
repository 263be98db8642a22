"""What holds for fields of configuration whatever they mean: words among those of their types, numbers of so many bits."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

__all__ = ["check_choices", "check_numbers"]


def check_choices(config: Any, table: str) -> None:
    """Raise ValueError where a field of a dataclass is none of the words of its type; `table` is its name in TOML."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(get_args(field.type))
            raise ValueError(f"{table}.{field.name} must be one of {choices}; got {value!r}")


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raise ValueError where a whole number of a dataclass, or of one in it, has more bits than TOML and JAX know.

    Seeds may have 63 bits, counts 31.
    """
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
        bits = 63 if name.endswith("seed") else 31
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= 1 << bits:
                raise ValueError(f"{name} must be smaller than 2^{bits}; got {number}")
