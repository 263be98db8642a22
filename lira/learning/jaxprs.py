"""By what a function's code is known again: a digest of its jaxpr."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

__all__ = ["digest"]


def digest(jaxpr: ClosedJaxpr) -> str:
    """SHA-256 of what a traced function computes, in hexadecimals: its operations, shapes, types and constants.

    Equal for equal code in any process of the same version of JAX. Names of variables, places in source files and
    addresses of objects are left out. Of a derivative rule that is a Python function only the name is seen: trace the
    derivative, too.
    """
    parts = hashlib.sha256()
    for token in _tokens(jaxpr):
        parts.update(token + b"\0")
    return parts.hexdigest()


def _tokens(what: Any) -> Iterator[bytes]:
    """What distinguishes an object within a jaxpr, in an order that is the same in every process."""
    match what:
        case ClosedJaxpr() | Jaxpr():  # one class since jax 0.11, whose `jaxpr` is itself
            for value in getattr(what, "consts", ()):
                yield from _tokens(value)
            yield from _of_jaxpr(what.jaxpr if isinstance(what, ClosedJaxpr) else what)
        case np.ndarray() | np.generic() | jax.Array() | bool() | int() | float() | complex():
            if isinstance(what, jax.Array) and jax.dtypes.issubdtype(what.dtype, jax.dtypes.prng_key):
                what = jax.random.key_data(what)
            array = np.asarray(what)
            yield f"{array.dtype}{array.shape}".encode()
            yield array.tobytes()
        case dict():
            for key in sorted(what, key=repr):
                yield repr(key).encode()
                yield from _tokens(what[key])
        case list() | tuple():
            yield f"{type(what).__name__} {len(what)}".encode()
            for each in what:
                yield from _tokens(each)
        case set() | frozenset():
            yield from sorted(b" ".join(_tokens(each)) for each in what)
        case Callable() if not isinstance(what, type):
            yield getattr(what, "__qualname__", type(what).__qualname__).encode()
        case _:
            yield re.sub(r"0x[0-9a-f]+", "", repr(what)).encode()


def _of_jaxpr(jaxpr: Jaxpr) -> Iterator[bytes]:
    numbers: dict[Any, int] = {}

    def name(atom: Any) -> Iterator[bytes]:
        if isinstance(atom, Literal):
            yield from _tokens(atom.val)
        else:
            yield f"{numbers.setdefault(atom, len(numbers))} {atom.aval.str_short()}".encode()

    for atom in (*jaxpr.constvars, *jaxpr.invars):
        yield from name(atom)
    for equation in jaxpr.eqns:
        yield equation.primitive.name.encode()
        yield from _tokens(equation.params)
        for atom in (*equation.invars, *equation.outvars):
            yield from name(atom)
    for atom in jaxpr.outvars:
        yield from name(atom)
