"""Throughput of the engine on this machine, beside loops as users write them, model by model."""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from lira.bench.machine import copy_rate, flop_per_image, matmul_rate, on_cpu
from lira.bench.scoring import scoring_times, spread
from lira.bench.sides import BESIDE, side_or_why_not
from lira.data.dataset import Dataset
from lira.data.sources import load_dataset
from lira.engine.device import processor
from lira.learning.convolution.cpu.cache import cache_bytes
from lira.learning.models import build_model
from lira.learning.recipe import Precision, Recipe
from lira.store.files import require_writable, write_atomically
from lira.versions import versions

__all__ = ["MODELS", "add_arguments", "bench", "model_rows", "run", "table", "workload"]

MODELS = ("mlp", "cnn", "cnn-fast", "resnet18", "wrn-28-2")


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
    result["scoring"] = scoring_times(repeats)
    return result


def model_rows(
    model: str, beside: Sequence[str], *, repeats: int, seconds: float, precision: Precision
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Lira and the sides `beside` it for one model, in turns: a row each, and which were skipped and why."""
    dataset, recipe, members = workload(model, precision)
    work = flop_per_image(build_model(model, dataset.num_classes), dataset.x[:1])
    sides, steps, skipped = {}, {}, []
    for name in ("lira", *beside):
        made = side_or_why_not(name, recipe, dataset)
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
                "images_per_s": spread(rates),
                "lira_over_it": spread(ratios),
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


def workload(model: str, precision: Precision, platform: str | None = None) -> tuple[Dataset, Recipe, int]:
    """Data, recipe and the members of a whole training, which models an hour are counted by.

    Batches are smaller on CPU; `platform` is JAX's name of what it is for, by default this machine's.
    """
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
    batch_size = 64 if platform == "cpu" or (platform is None and on_cpu()) else 256
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


# --- Showing ------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    shown = Table(title=f"{result['device']}, {result['precision']}, {result['date']}", title_justify="left")
    rates = ("images/s (min to max)", "lira is", "models/h", "MFU", "copy bw")
    for header in ("model", "side", *rates, "accuracy", "compile", "memory"):
        shown.add_column(header, justify="left" if header in ("model", "side") else "right")
    for row in result["rows"]:
        speed, ratio, traffic, memory = (
            row[key] for key in ("images_per_s", "lira_over_it", "share_of_copy_bandwidth", "memory_bytes")
        )
        shown.add_row(
            row["model"],
            row["side"]
            + (f" {row['lowering']} {row['workers']}x{row['width']}" if "lowering" in row else ""),
            f"{speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f})",
            f"{ratio['median']:.2f} x",
            f"{row['models_per_hour']:,.1f}",
            f"{100 * row['mfu']:.0f} %",
            "-" if traffic is None else f"{100 * traffic:.0f} %",
            f"{100 * row['accuracy']:.1f} % / {row['steps']} steps",
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


def run(models: str, beside: str, out: str | None, **options: Any) -> dict[str, Any]:
    """`lira bench`: the result, written to the JSON file if one is named, anew after each model.

    `models` and `beside` are joined by commas; `options` are the others of `bench`.
    """

    def write(result: dict[str, Any]) -> None:
        if out:
            write_atomically(Path(out), json.dumps(result, indent=2, allow_nan=False).encode())

    if out:
        require_writable(Path(out).absolute().parent)
    alternatives = [name for name in beside.split(",") if name]
    result = bench(models.split(","), beside=alternatives, so_far=write, **options)
    write(result)
    return result
