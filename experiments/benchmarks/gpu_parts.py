"""The parts of gpu.py, each a function of its sitting."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gpu_sitting import ENOUGH, PAPER, ROOT, Sitting, SkippedError
from jax.profiler import ProfileData, ProfileOptions

import lira
from lira.bench import machine, sides, throughput
from lira.engine.trained import HORIZONS, check_trained
from lira.learning.recipe import steps_per_epoch
from lira.reporting.published import PUBLISHED
from lira.store.imported import run_of_models

BESIDE = ("torch_loop", "torch_graphs")
# One model at a time, nothing to choose: a model is done every half minute, and little is lost when time is over.
ONE_BY_ONE = lira.Execution(width=1, lowering="xla")
# Kernels shown of a profile.
TOP = 40


def device(sitting: Sitting) -> None:
    """What JAX finds, and what its matrix products and copies reach."""
    first = jax.devices()[0]
    found = {"kind": first.device_kind, "count": jax.device_count(), "runtime": first.client.platform_version}
    sitting.keep(**found, memory_bytes=(first.memory_stats() or {}).get("bytes_limit"))
    sitting.keep(copy_bytes_per_s=machine.copy_rate())
    sitting.keep(matmul_flop_per_s={name: machine.matmul_rate(name) for name in ("float32", "bfloat16")})


def evaluation(sitting: Sitting) -> None:
    """Two models of the paper's recipe: averaged weights, with norms' statistics of either kind, beside the raw ones."""
    dataset, rows = sitting.dataset(), []
    steps = steps_per_epoch(dataset.num_examples, sitting.sizes.paper.batch_size) * sitting.sizes.epochs
    for statistics_of, precision in itertools.product(("recomputed", "averaged"), ("bfloat16", "float32")):
        sitting.needs(70, f"{precision}, {statistics_of}")  # nine tenths of it compiles
        # The fewest horizons of the average that make it one of good weights: the paper's reaches back over half of these steps.
        recipe = dataclasses.replace(
            sitting.sizes.paper,
            epochs=sitting.sizes.epochs,
            ema=round(1 - HORIZONS / steps, 4) if not sitting.toy else sitting.sizes.paper.ema,
            precision=precision,
            statistics=statistics_of,
        )
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            run = lira.Run.create(
                Path(place) / "run", dataset, recipe, num_models=4, signals=(), execution=ONE_BY_ONE
            )
            for spare in (2, 3):  # a run has four models or more: the second pair is not trained
                run.write_model(spare, {}, diverged=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lira.train(run, dataset, show_progress=False)
            gave = training_gave(run, np.arange(2))
        seconds = time.perf_counter() - began
        rows.append({"precision": precision, "statistics": statistics_of, "seconds": seconds, **gave})
        sitting.keep(model=recipe.model, epochs=recipe.epochs, ema=recipe.ema, rows=rows)


def training(model: str, sitting: Sitting) -> None:
    """`lira bench` of one model: ours alone, then in turns with PyTorch's sides."""
    sizes = sitting.sizes
    rows_of = partial(
        throughput.model_rows,
        model,
        repeats=sizes.repeats,
        seconds=sizes.seconds,
        precision=precision_of(model),
    )
    rows, _ = rows_of([])
    sitting.keep(rows=rows)
    if absent := {name: why for name in BESIDE if (why := sides.why_absent(name))}:
        sitting.keep(skipped=absent)
    if present := [name for name in BESIDE if name not in absent]:
        # PyTorch compiles for most of a minute, and less for a second side of the same model.
        sitting.needs(15 if model == "mlp" else 75, ", ".join(present))
        rows, skipped = rows_of(present)
        sitting.keep(rows=rows, skipped={**absent, **{each["side"]: each["why"] for each in skipped}})


def digits(sitting: Sitting) -> None:
    """The demo from end to end, as a process of its own: with nothing kept from before, then with what that one kept."""
    with tempfile.TemporaryDirectory() as place:
        for kept in ("nothing", "calibration and programs"):
            run_dir = Path(place) / kept.split()[0]
            flags = ["run", ROOT / "experiments/digits.toml", "--run-dir", run_dir, *sitting.sizes.digits]
            seconds = command(sitting, *flags, cache=f"{place}/cache")
            session = json.loads((run_dir / "provenance.json").read_text())["sessions"][-1]
            attacks = json.loads((run_dir / "metrics.json").read_text())["attacks"]
            found = {"seconds": seconds, "training": session, "auc": attacks["lira_online"]["auc"]}
            sitting.keep(**{f"with {kept} kept": found})


def scoring(sitting: Sitting) -> None:
    """Seconds in which all targets are attacked, phi in the host's memory and in the device's."""
    phi, keep = drawn(*sitting.sizes.pool)
    places = {"host": phi, "device": jax.device_put(phi)}
    sitting.keep(pool=phi.shape)
    for name in ("lira_online", "lira_online_fixed"):
        taken = {}
        for where, values in places.items():
            attack = partial(getattr(lira.attacks, name), values, keep)
            first, *others = (seconds_of(attack) for _ in range(6))
            taken[f"phi on {where}"] = {"first": first, "median": statistics.median(others), "all": others}
        sitting.keep(**{name: taken})


def report(pool: tuple[int, int, int], sitting: Sitting) -> None:
    """`lira report` of a pool that is on disk: every attack with its intervals, pictures and the page."""
    phi, keep = drawn(*pool)
    M, N, Q = phi.shape
    rng = np.random.default_rng(1)
    models = (
        {
            "phi": row,
            "entropy": np.exp(-row),
            "modified_entropy": np.exp(-row),
            "phi_test": rng.standard_normal((N // 5, Q), dtype=np.float32),
            "accuracy_in": np.float32(1.0),
            "accuracy_out": np.float32(0.9),
            "accuracy_test": np.float32(0.9),
        }
        for row in phi
    )
    with tempfile.TemporaryDirectory() as place:
        source = {"path": "drawn", "file": "-", "layout": "-", "requested": M}
        run_of_models(f"{place}/run", keep, np.arange(N) % 10, models, source=source)
        for kept in ("nothing", "programs"):
            shutil.rmtree(f"{place}/run/scores")
            os.mkdir(f"{place}/run/scores")
            seconds = command(sitting, "report", f"{place}/run", cache=f"{place}/cache")
            sitting.keep(pool=phi.shape, **{f"seconds with {kept} kept": seconds})


def profile(sitting: Sitting) -> None:
    """The kernels of a training step by the time that they take, of each model as it is trained in the benchmark."""
    for model in sitting.sizes.models:
        sitting.needs(10, model)
        dataset, recipe, _ = throughput.workload(model, precision_of(model))
        side = sides.side("lira", recipe, dataset)
        whole = steps_per_epoch(dataset.num_examples, recipe.batch_size)
        steps = whole if sitting.toy else whole * -(-20 // whole)
        steps = side.train(steps) or steps  # more, where a program is of several epochs
        step = seconds_of(partial(side.train, steps)) / steps
        options = ProfileOptions()
        options.python_tracer_level = 0
        with tempfile.TemporaryDirectory() as place:
            with jax.profiler.trace(place, profiler_options=options):
                side.train(steps)
            traces = [ProfileData.from_file(str(file)) for file in Path(place).rglob("*.xplane.pb")]
        execution = {name: side.facts[name] for name in ("width", "workers", "lowering")}
        sitting.keep(**{model: {**execution, "ms_per_step": 1e3 * step, **by_kernel(traces, steps)}})


def shadows(sitting: Sitting) -> None:
    """Shadow models of the paper's recipe for as long as there is time, and what those of all sittings show."""
    dataset, place = sitting.dataset(), sitting.run_dir
    sitting.needs(60, "a shadow model, with compiling")
    held = lira.Run.open(place, dataset).config.num_models if (place / "config.toml").exists() else 0
    run = lira.Run.create(
        place,
        dataset,
        sitting.sizes.paper,
        num_models=max(held, sitting.sizes.shadows),
        queries=PAPER.queries,
        membership_seed=PAPER.membership_seed,
        signals=PAPER.signals,
        execution=ONE_BY_ONE,
    )
    with interrupted_after(max(sitting.left() - 30, 1)):  # time for the last answers and for the figures
        lira.train(run, dataset, show_progress=False)
    sitting.keep(**shown(run))


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt what is done within, as Ctrl-C does, when it takes longer."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(KeyboardInterrupt):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def precision_of(model: str) -> str:
    return "float32" if model == "mlp" else "bfloat16"


def training_gave(run: lira.Run, models: np.ndarray) -> dict[str, Any]:
    """Accuracies and losses of each model, of raw weights too where averaged ones answer, and what checks make of them."""
    found = {}
    for name in ("in", "out", "test", "raw_in", "raw_out", "raw_test"):
        if run.holds(f"accuracy_{name}"):
            found[f"accuracy_{name}"] = run.accuracy(name, models)
    for name in ("in", "last_epoch"):
        if run.holds(f"loss_{name}"):
            found[f"loss_{name}"] = run.losses(name, models)
    return {
        **{name: [none_if_nan(round(float(value), 5)) for value in values] for name, values in found.items()},
        "checks": [f"{check.status}: {check.sentence}" for check in check_trained(run, models)],
    }


def drawn(M: int, N: int, Q: int) -> tuple[np.ndarray, np.ndarray]:
    """A pool `[M, N, Q]` whose members are told apart a little, and its memberships."""
    keep = lira.keep_mask(0, M, N)
    noise = np.random.default_rng(0).standard_normal((M, N, Q), dtype=np.float32)
    return noise + keep[..., None] * np.float32(0.5), keep


def seconds_of(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def command(sitting: Sitting, *arguments: Any, cache: str) -> float:
    """Run `lira` in a fresh process that keeps what it compiles and measures in `cache`; return the seconds."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "LIRA_CACHE": cache, "PYTHONPATH": path}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    try:
        subprocess.run(
            [sys.executable, "-m", "lira", *map(str, arguments)],
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=max(sitting.left(), 1),
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"lira {arguments[0]} was not done after {error.timeout:.0f} s") from error
    return time.perf_counter() - began


def by_kernel(traces: Iterable[ProfileData], steps: int) -> dict[str, Any]:
    """The events of traces of so many steps added up by kernel, those that take longest first."""
    count, spent = collections.Counter(), collections.Counter()
    with warnings.catch_warnings():
        # Of a type of jaxlib's own, which ends the process where warnings are errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        for event in itertools.chain.from_iterable(map(events, traces)):
            count[event.name] += 1
            spent[event.name] += event.duration_ns
    rows = [
        {"kernel": name[:160], "per_step": count[name] / steps, "us_per_step": nanoseconds / 1e3 / steps}
        for name, nanoseconds in spent.most_common(TOP)
    ]
    return {
        "kernels_per_step": count.total() / steps,
        "ms_within_kernels": spent.total() / 1e6 / steps,
        "kernels": rows,
    }


def events(trace: ProfileData) -> Iterator[Any]:
    """What ran on the GPUs' streams; on a CPU the operations that XLA names, loops left out as their bodies count."""
    planes = list(trace.planes)
    cards = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in cards or planes:
        for line in plane.lines:
            if cards and line.name.startswith("Stream"):
                yield from line.events
            elif not cards:
                named = (event for event in line.events if "hlo_op" in dict(event.stats))
                yield from (event for event in named if not event.name.startswith(("while", "call")))


def shown(run: lira.Run) -> dict[str, Any]:
    """Accuracies of the shadow models and, where there are enough, TPR at 0.1 % FPR with what was published."""
    found = {
        "run": str(run.path),
        "models_in_pairs": len(run.models),
        "sessions": run.provenance["sessions"],  # models and seconds, compilation included
        **training_gave(run, np.flatnonzero(run.done == 1)),  # those without their mate, too
    }
    if len(run.models) < ENOUGH:
        return found
    phi, keep = np.asarray(run.phi), run.keep
    found["tpr_at_0.1%_fpr"] = rows = []
    # The first two queries are the image and its mirror image, which published figures of small pools have.
    for name, queries in itertools.product(
        ("lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed", "global_threshold"),
        (2, phi.shape[2]),
    ):
        point = lira.metrics.roc(getattr(lira.attacks, name)(phi[..., :queries], keep), keep).tpr_at(1e-3)
        figures = {key: none_if_nan(getattr(point, key)) for key in ("tpr", "low", "high")}
        rows.append({"attack": name, "queries": queries, "status": point.status, **figures})
    found["published"] = [
        {"attack": each.attack, "models": each.models, "queries": each.queries, "source": each.source}
        | {"tpr": each.figures["0.001"]}
        for each in PUBLISHED
        if (each.dataset, each.model) == ("cifar10", PAPER.recipe.model) and "0.001" in each.figures
    ]
    return found


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
