"""Throughput of the engine on this machine, beside loops as users write them, model by model."""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

from lira import attacks
from lira.bench.machine import copy_rate, flop_per_image, matmul_rate, processor, seconds_of
from lira.data.dataset import Dataset
from lira.data.sources import load_dataset
from lira.engine.calibrate import programs_for
from lira.engine.programs import Programs, compile_programs, train_steps
from lira.learning.augment import Queries
from lira.learning.convolution.blocks import cache_bytes
from lira.learning.forward import as_input
from lira.learning.learner import Learner
from lira.learning.models import build_model
from lira.learning.recipe import Precision, Recipe
from lira.membership import keep_mask
from lira.store.config import Execution
from lira.store.zarr import write_atomically
from lira.versions import versions

__all__ = [
    "BESIDE",
    "MODELS",
    "Side",
    "add_arguments",
    "bench",
    "model_rows",
    "run",
    "side",
    "table",
    "why_absent",
    "workload",
]

MODELS = ("mlp", "cnn", "cnn-fast", "resnet18", "wrn-28-2")
# What a user would do instead, and beside the last one what an expert would make of it.
BESIDE = ("jax_loop", "vmap_plain", "torch_loop", "torch_graphs")


class Side(NamedTuple):
    """One way of training a model, ready to be timed."""

    train: Callable[[int], int | None]  # take so many steps and wait for them; how many, if they are more
    accuracy: Callable[[], float]  # on the held-out set, normalised by its own batch
    models: int  # trained at a time
    facts: dict[str, Any]


def bench(
    models: Sequence[str] = MODELS,
    *,
    beside: Sequence[str] = BESIDE,
    repeats: int = 5,
    seconds: float = 4.0,
    precision: Precision = "float32",
    so_far: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Time one model after the other, each beside the alternatives, then scoring; return what goes into the JSON file.

    Args:
        models: of `MODELS`.
        beside: which alternatives, of `BESIDE`; none times lira alone.
        repeats: timings of each side.
        seconds: that one timing of a side takes, about.
        precision: of the recipe, and of the matrix product that it is measured against.
        so_far: called with the result as it stands whenever a model is done; its `scoring` is then None.
    """
    if repeats < 1 or not seconds > 0:
        raise ValueError(f"bench needs at least one repeat of some seconds; got {repeats} of {seconds}")
    unknown = [model for model in models if model not in MODELS]
    if unknown or not models:
        raise ValueError(f"bench knows the models {', '.join(MODELS)}; got {', '.join(unknown) or 'none'}")
    if unknown := [name for name in beside if name not in BESIDE]:
        raise ValueError(f"bench knows the sides {', '.join(BESIDE)}; got {', '.join(unknown)}")
    result: dict[str, Any] = {
        "rows": [],
        "skipped": [],
        "scoring": None,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores of {processor()}",
        "cache_bytes": {f"L{level}": size for level, size in cache_bytes().items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "precision": precision,
        "matmul_flop_per_s": matmul_rate(precision),
        "copy_bytes_per_s": copy_rate(),
        "versions": versions("jax", "jaxlib", "flax", "numpy", "torch"),
    }
    for model in models:
        rows, skipped = model_rows(model, beside, repeats=repeats, seconds=seconds, precision=precision)
        result["rows"] += rows
        result["skipped"] += skipped
        so_far(result)
    result["scoring"] = _scoring(repeats)
    return result


def model_rows(
    model: str, beside: Sequence[str], *, repeats: int, seconds: float, precision: Precision
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Lira and the sides `beside` it for one model, in turns: a row each, and which were skipped and why."""
    dataset, recipe, members = workload(model, precision)
    work = flop_per_image(build_model(model, dataset.num_classes), dataset.x[:1])
    sides, steps, skipped = {}, {}, []
    for name in ("lira", *beside):
        made = _side_or_why_not(name, recipe, dataset)
        if isinstance(made, str):
            skipped.append({"model": model, "side": name, "why": made})
            continue
        sides[name], began = made, time.perf_counter()
        made.train(1)
        steps[name] = max(1, int(seconds / (time.perf_counter() - began)))
    # As many steps for all as the fastest kinds take in their time; a side that is far slower takes fewer.
    common = min(steps[name] for name in sides if name != "vmap_plain")
    taken = {name: [] for name in sides}
    for _ in range(repeats):
        for name, each in sides.items():
            count = min(common, steps[name])
            began = time.perf_counter()
            count = each.train(count) or count
            taken[name].append((time.perf_counter() - began) / count)
    rows = []
    for name, each in sides.items():
        rates = [recipe.batch_size * each.models / turn for turn in taken[name]]
        ratios = [
            ours / theirs * sides["lira"].models / each.models
            for theirs, ours in zip(taken["lira"], taken[name], strict=True)
        ]
        speed = statistics.median(rates)
        traffic = each.facts.pop("bytes_per_image")
        rows.append(
            {
                "model": model,
                "side": name,
                "images_per_s": _spread(rates),
                "lira_over_it": _spread(ratios),
                "ms_per_step_and_model": 1e3 * recipe.batch_size / speed,
                "models_per_hour": 3600 * speed / (recipe.epochs * members),
                "mfu": speed * work / matmul_rate(precision),
                "share_of_copy_bandwidth": None if traffic is None else speed * traffic / copy_rate(),
                "accuracy": each.accuracy(),
                "steps": 1 + repeats * min(common, steps[name]),
                "batch_size": recipe.batch_size,
                "precision": precision,
                "flop_per_image": work,
                **each.facts,
            }
        )
    return rows, skipped


def workload(model: str, precision: Precision) -> tuple[Dataset, Recipe, int]:
    """Data, recipe and the members of a whole training, which models an hour are counted by."""
    recipe = Recipe(
        model=model, epochs=60, batch_size=64, learning_rate=0.1, schedule="constant", precision=precision
    )
    if model == "mlp":
        digits = load_dataset("digits")
        held_out = np.arange(digits.num_examples) % 5 == 0
        dataset = Dataset.from_arrays(
            digits.x[~held_out], digits.y[~held_out], x_test=digits.x[held_out], y_test=digits.y[held_out]
        )
        return dataset, recipe, digits.num_examples // 2
    batch_size = 64 if jax.default_backend() == "cpu" else 256
    recipe = dataclasses.replace(
        recipe,
        epochs=100,
        batch_size=batch_size,
        learning_rate=0.02,
        weight_decay=5e-4,
        flip=True,
        crop_pad=4,
    )
    return _patterns(4096, 256), recipe, 25_000


def _patterns(count: int, held_out: int) -> Dataset:
    """Images of CIFAR's size that a few steps can learn: one smooth pattern a class, under noise."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(10, 4, 4, 3))
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)
    y = np.arange(count + held_out) % 10
    x = 127.5 + 40 * smooth[y] + 40 * rng.normal(size=(len(y), 32, 32, 3))
    x = np.clip(x, 0, 255).astype(np.uint8)
    return Dataset.from_arrays(x[:count], y[:count], x_test=x[count:], y_test=y[count:])


# --- Sides --------------------------------------------------------------------------------------------------------


def _side_or_why_not(name: str, recipe: Recipe, dataset: Dataset) -> Side | str:
    """A side made ready, or why there is none."""
    if (why := why_absent(name)) is not None:
        return why
    try:
        return side(name, recipe, dataset)
    except (RuntimeError, ValueError) as error:
        # What another framework cannot do costs its rows alone; what lira cannot do is an error.
        if not name.startswith("torch"):
            raise
        return " ".join(str(error).split())[:200]


def why_absent(name: str) -> str | None:
    """Why this side cannot be timed on this machine, whatever the model; None if it can."""
    if not name.startswith("torch"):
        return None
    if find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'lira[bench]'"
    if name == "torch_graphs":
        from lira.bench.torch_loop import has_cuda

        if not has_cuda():
            return "PyTorch finds no CUDA device"
    return None


def side(name: str, recipe: Recipe, dataset: Dataset) -> Side:
    """Make one side ready, compiled and warm.

    Args:
        name: lira: as `lira run` trains; jax_loop: one model at a time, jitted; vmap_plain: several under `vmap`;
            torch_loop: one model in PyTorch, compiled on a GPU; torch_graphs: that, each step as one CUDA graph.
        recipe: of the training.
        dataset: its data.
    """
    if name.startswith("torch"):
        from lira.bench.torch_loop import TorchLoop

        loop = TorchLoop(recipe, dataset, graphs=name == "torch_graphs")
        facts = {"compile_s": loop.compile_seconds, "memory_bytes": loop.memory(), "bytes_per_image": None}
        return Side(loop.train, loop.accuracy, 1, facts)
    began = time.perf_counter()
    if name == "lira":
        programs = programs_for(recipe, Queries(), Execution(), dataset, 1024)
    else:
        # Grouped convolutions are so slow on CPU that two models must do.
        wide = 16 if recipe.model == "mlp" or jax.default_backend() != "cpu" else 2
        width = 1 if name == "jax_loop" else wide
        programs = compile_programs(Learner.of(recipe, dataset), Queries(), dataset, 1, "xla", width)
    return _jax_side(programs, recipe, dataset, began)


def _jax_side(programs: Programs, recipe: Recipe, dataset: Dataset, began: float) -> Side:
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    held_out = as_input(np.asarray(dataset.x_test), jnp.float32)
    keep = jnp.ones((programs.width, len(y)), bool)
    indices = [jnp.arange(w * programs.width, (w + 1) * programs.width) for w in range(programs.workers)]
    states = [programs.init(index, x[:1]) for index in indices]
    pool, epochs = ThreadPoolExecutor(programs.workers), iter(range(1 << 30))

    def one_worker(steps, epoch, state, index):
        state, taken = train_steps(programs, state, index, epoch, steps, x, y, keep)
        return jax.block_until_ready(state), taken

    def train(steps: int) -> int:
        epoch = next(epochs) * 1000
        states[:], (taken, *_) = zip(
            *pool.map(partial(one_worker, steps, epoch), states, indices), strict=True
        )
        return taken

    train(1)
    compile_seconds = time.perf_counter() - began

    def accuracy() -> float:
        module = build_model(recipe.model, dataset.num_classes)

        @jax.vmap
        def one_model(state):
            variables = {"params": state.params, **state.statistics}
            logits, _ = module.apply(variables, held_out, train=True, mutable=list(state.statistics))
            return jnp.mean(jnp.argmax(logits, axis=1) == dataset.y_test)

        first = jax.tree.map(lambda leaf: leaf[:1], states[0])
        return float(jax.jit(one_model)(first)[0])

    facts = {
        "width": programs.width,
        "workers": programs.workers,
        "lowering": programs.lowering,
        "chosen": programs.why,
        "compile_s": compile_seconds,
        "memory_bytes": programs.memory,
        "bytes_per_image": programs.traffic and programs.traffic / (recipe.batch_size * programs.width),
    }
    return Side(train, accuracy, programs.models, facts)


# --- Scoring ------------------------------------------------------------------------------------------------------


def _scoring(repeats: int, M: int = 256, N: int = 50_000, Q: int = 2) -> dict[str, Any]:
    """All targets of a pool by LiRA, against refitting the Gaussians of every example for each target in a loop."""
    keep = keep_mask(0, M, N)
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((M, N, Q), dtype=np.float32) + keep[..., None] * np.float32(0.5)
    ours = [seconds_of(lambda: attacks.lira_online(phi, keep)) for _ in range(repeats)]
    # The loop takes hours: it is timed on a few hundred examples of one target.
    part = 500
    loop = [
        seconds_of(lambda: _refit(phi[:, :part], keep[:, :part], 0)) * M * N / part for _ in range(repeats)
    ]
    return {
        "models": M,
        "examples": N,
        "queries": Q,
        "lira_online_s": _spread(ours),
        "refit_loop_s": {**_spread(loop), "extrapolated_from": f"{part} examples of one target"},
        "ratio": statistics.median(loop) / statistics.median(ours),
    }


def _refit(phi: np.ndarray, keep: np.ndarray, target: int) -> np.ndarray:
    """The plain way: for each example, two Gaussians of the other models, and their densities."""
    others = np.delete(np.arange(len(phi)), target)
    scores = np.empty(phi.shape[1])
    for n in range(phi.shape[1]):
        inside, outside = phi[others][keep[others, n], n], phi[others][~keep[others, n], n]
        log_in = scipy.stats.norm.logpdf(phi[target, n], np.median(inside, 0), np.std(inside, 0) + 1e-30)
        log_out = scipy.stats.norm.logpdf(phi[target, n], np.median(outside, 0), np.std(outside, 0) + 1e-30)
        scores[n] = np.mean(log_in - log_out)
    return scores


# --- Showing ------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    shown = Table(title=f"{result['device']}, {result['precision']}, {result['date']}", title_justify="left")
    for header in (
        "model",
        "side",
        "images/s (min to max)",
        "lira is",
        "models/h",
        "MFU",
        "copy bw",
        "accuracy",
        "compile",
        "memory",
    ):
        shown.add_column(header, justify="left" if header in ("model", "side") else "right")
    for row in result["rows"]:
        speed, ratio, traffic, memory = (
            row[key] for key in ("images_per_s", "lira_over_it", "share_of_copy_bandwidth", "memory_bytes")
        )
        shown.add_row(
            row["model"],
            row["side"] + (f" {row['lowering']} {row['workers']}x{row['width']}" if "width" in row else ""),
            f"{speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f})",
            f"{ratio['median']:.2f} x",
            f"{row['models_per_hour']:,.1f}",
            f"{row['mfu']:.0%}",
            "-" if traffic is None else f"{traffic:.0%}",
            f"{row['accuracy']:.1%} / {row['steps']} steps",
            f"{row['compile_s']:.0f} s",
            "-" if memory is None else f"{memory / 1e6:,.0f} MB",
        )
    scoring = result["scoring"]
    shown.caption = (
        f"matrix product {result['matmul_flop_per_s'] / 1e9:,.0f} GFLOP/s, copy {result['copy_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Scoring {scoring['models']} x {scoring['examples']:,} x {scoring['queries']}, all targets: "
        f"{scoring['lira_online_s']['median']:.2f} s, refit loop {scoring['refit_loop_s']['median'] / 3600:.1f} h."
        + _skipped(result["skipped"])
    )
    return shown


def _skipped(skipped: Sequence[Mapping[str, str]]) -> str:
    """A sentence for each side and reason, with the models it is about."""
    models: dict[tuple[str, str], list[str]] = {}
    for each in skipped:
        models.setdefault((each["side"], each["why"]), []).append(each["model"])
    return "".join(
        f" Skipped: {name} of {', '.join(which)} ({why})." for (name, why), which in models.items()
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lira bench`."""
    parser.add_argument("--models", default=",".join(MODELS), help="which of " + ", ".join(MODELS))
    parser.add_argument("--beside", default=",".join(BESIDE), help="which of " + ", ".join(BESIDE))
    parser.add_argument("--repeats", type=int, default=5, help="timings of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one timing, about")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--out", metavar="FILE.json", help="also write the figures to this file, after each model"
    )


def run(
    models: str,
    beside: str,
    repeats: int,
    seconds: float,
    precision: Precision,
    out: str | None,
    console: Console,
) -> None:
    """`lira bench`: print the table, and write the JSON file if one is named, anew after each model."""

    def write(result: dict[str, Any]) -> None:
        if out:
            write_atomically(Path(out), json.dumps(result, indent=2, allow_nan=False).encode())

    result = bench(
        models.split(","),
        beside=[name for name in beside.split(",") if name],
        repeats=repeats,
        seconds=seconds,
        precision=precision,
        so_far=write,
    )
    Console(width=max(console.width, 150), soft_wrap=True).print(table(result))
    write(result)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
