"""Unlearning methods: pure functions of one trained model and of what it is to forget; `vmap` makes stacks outside.

A method is `method(problem, key, *, options) -> variables`; one of your own is named by its dotted path and may use
`descend` and `fold_steps` as those here do. It must not depend on anything but its arguments, and every option has a
default that is a number, a string, true or false.

Learning rates are given as `rate`, the share of the recipe's peak at which its own optimizer steps, so that the
defaults mean the same for SGD and for Adam. The running averages of norms follow the retained batches alone:
forgotten examples are asked about in evaluation mode.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lira.learning.dotted import import_dotted
from lira.unlearners.descent import (
    finetune,
    gradient_ascent,
    last_layer,
    negrad_plus,
    none,
    random_labels,
    scrub,
)
from lira.unlearners.fisher import fisher
from lira.unlearners.problem import Batch, Method, Problem, Variables, descend, fold_steps

__all__ = [
    "METHODS",
    "RETRAIN",
    "Batch",
    "Problem",
    "apply_method",
    "descend",
    "find_method",
    "finetune",
    "fisher",
    "fold_steps",
    "gradient_ascent",
    "last_layer",
    "method_options",
    "negrad_plus",
    "none",
    "random_labels",
    "scrub",
]


# Trained from scratch by the engine: not a function of a trained model.
RETRAIN = "retrain"

_METHODS = (none, finetune, gradient_ascent, negrad_plus, random_labels, scrub, last_layer, fisher)
METHODS: dict[str, Method] = {method.__name__: method for method in _METHODS}


def apply_method(
    method: Method, options: Mapping[str, Any], problem: Problem, key: jax.Array
) -> tuple[Variables, jax.Array]:
    """The variables after a method, and whether they are all finite.

    A model that holds nothing of the request keeps its variables, whatever the method.

    Raises:
        ValueError: the method returned another structure than `problem.variables`, or refused an option.
    """
    before = problem.variables
    after = method(problem, key, **options)
    shapes = [
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree) for tree in (before, after)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "must return the model's variables, the same names, shapes and dtypes as problem.variables"
        )
    holds = jnp.any(problem.forget)
    after = jax.tree.map(lambda new, old: jnp.where(holds, new, old), after, before)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after)]).all()
    return after, finite


def find_method(name: str) -> Method:
    """A method by name or dotted path; the current directory is importable.

    Raises:
        ValueError: no such method, or what the path leads to cannot be called.
    """
    if name in METHODS:
        return METHODS[name]
    method: Any = import_dotted(name, "method", [*METHODS, RETRAIN], "a function of your own")
    if not inspect.isfunction(method):
        raise ValueError(f"method {name!r}: is not a function (problem, key, *, options)")
    return method


def method_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        ValueError: an option is unknown, or of another type than its default.
    """
    if name == RETRAIN:
        known = {}
    else:
        parameters = inspect.signature(find_method(name)).parameters.values()
        known = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    options = dict(known)
    for key, value in given.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"valid ones are {', '.join(known) or 'none'}"
            raise ValueError(f"method.{name}: unknown option {key!r}: {hint}")
        wanted = type(known[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"method.{name}.{key} must be like its default, {known[key]!r}; got {value!r}")
        options[key] = value
    for key, value in options.items():
        if type(value) not in (bool, int, float, str):
            raise ValueError(f"method.{name}.{key} needs a default: a number, a string, true or false")
    return options
