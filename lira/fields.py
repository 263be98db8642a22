"""What holds for fields of configuration whatever they mean: their types, words among those of a type, numbers of so many bits."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import numpy as np

__all__ = ["check_fields", "table_of", "typed"]

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def check_fields(config: Any, table: str = "") -> None:
    """Give every field of a frozen dataclass a value of its type, see `typed`, and see that it is one that is allowed.

    Args:
        config: the dataclass, while it is made.
        table: in TOML its name and a dot, such as `recipe.`, for messages.

    Raises:
        ValueError: a value is of another type, none of the words of its type, or a whole number of more bits than TOML and
            JAX know: seeds may have 63, counts 31.
    """
    for field in dataclasses.fields(config):
        name = table + field.name
        value = typed(getattr(config, field.name), field.type, name)
        object.__setattr__(config, field.name, value)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            raise ValueError(f"{name} must be one of {', '.join(get_args(field.type))}; got {value!r}")
        bits = 63 if name.endswith("seed") else 31
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= 1 << bits:
                raise ValueError(f"{name} must be smaller than 2^{bits}; got {number}")


def typed(value: Any, expected: Any, key: str) -> Any:
    """A field's value as what its type asks for: Python's own number of NumPy's, a tuple of a list, 1 as 1.0.

    What reads alike and is not the same (1.0 for a whole number, 1 for true) is refused, as it is in TOML.

    Raises:
        ValueError: it is of another type; the message names the field, `key`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if (table := table_of(expected)) is not None:
        if isinstance(value, get_args(expected) or (table,)):
            return value
        raise ValueError(f"{key!r} must be a {table.__name__}; got {value!r}")
    if expected is float and (type(value) is int or value == "inf"):
        return float(value)
    if get_origin(expected) is tuple:
        each, names = get_args(expected)[0], {str: "strings", int: "whole numbers"}
        items = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(items, list | tuple) or not all(type(item) is each for item in items):
            raise ValueError(f"{key!r} must be a list of {names[each]}; got {value!r}")
        return tuple(items)
    if get_origin(expected) is dict:
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
            raise ValueError(f"{key!r} must hold tables, [{key}.NAME]; got {value!r}")
        return value
    # Of words the dataclass says which there are.
    kinds = (str,) if get_origin(expected) is Literal else get_args(expected) or (expected,)
    if type(value) not in kinds:
        raise ValueError(f"{key!r} must be {' or '.join(KINDS[each] for each in kinds)}; got {value!r}")
    return value


def table_of(kind: Any) -> Any:
    """The dataclass that a field of this type is a table of, also where there may be none; None for plain values."""
    for each in (kind, *get_args(kind)):
        if isinstance(each, type) and dataclasses.is_dataclass(each):
            return each
    return None
