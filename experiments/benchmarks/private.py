"""Private training beside the same training without privacy, and beside Opacus's loop: images a second, paired.

Command:   python experiments/benchmarks/private.py [--rounds 5] [--seconds 3] [--out FILE.json]
Needs:     pip install "lira[privacy,bench]" opacus
Duration:  2 minutes on 2 idle CPU cores.
Expected:  on CPUs several times fewer images than without privacy, as each has a gradient of its own; more than Opacus.
Measured:  experiments/benchmarks/private_cpu2.json, words in experiments/benchmarks/README.md.

The MLP of experiments/dp_digits.toml on scikit-learn's digits, batches of 64 on average, clip 1, noise 2. Every round
measures all three sides one after the other, and ratios are of one round. A side has both cores: two workers here, two
processes of one thread with a model each for Opacus, which draws its batches by its own Poisson loader.
"""

import argparse
import dataclasses
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lira
from lira.engine.calibrate import programs_for, seconds_per_step
from lira.learning.privacy import Privacy
from lira.store.config import Config
from lira.versions import versions

RECIPE = lira.Recipe(epochs=50, batch_size=64, privacy=Privacy(clip=1.0, noise=2.0))
PROCESSES = 2


def of_lira(recipe: lira.Recipe, dataset: lira.Dataset) -> Callable[[], float]:
    """Images a second of stacks at their best width, measured anew at each call."""
    programs = programs_for(Config(recipe=recipe), dataset, 64)
    return lambda: programs.models * recipe.batch_size / seconds_per_step(programs, dataset)


def of_opacus(seconds: float) -> float:
    """Images a second of one model in one thread, by the size that a batch has on average."""
    import torch
    from opacus import PrivacyEngine
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    dataset, privacy = lira.load_dataset("digits"), RECIPE.privacy
    assert privacy is not None
    half = np.random.default_rng(0).permutation(dataset.num_examples)[: dataset.num_examples // 2]
    x = torch.from_numpy(dataset.x[half].astype(np.float32).reshape(len(half), -1))
    y = torch.from_numpy(dataset.y[half].astype(np.int64))
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    model: Any = nn.Sequential(*layers)
    optimizer: Any = torch.optim.SGD(model.parameters(), RECIPE.learning_rate, RECIPE.momentum)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=RECIPE.batch_size),
        noise_multiplier=privacy.noise,
        max_grad_norm=privacy.clip,
    )
    began, steps = 0.0, 0
    for epoch in range(1_000_000):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            steps += 1
        if epoch == 0:  # what is done once
            began, steps = time.perf_counter(), 0
        elif time.perf_counter() - began > seconds:
            break
    return RECIPE.batch_size * steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dataset = lira.load_dataset("digits")
    plain = of_lira(dataclasses.replace(RECIPE, privacy=None), dataset)
    private = of_lira(RECIPE, dataset)
    rows = []
    # New processes: none that JAX's threads were forked into.
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for _ in range(arguments.rounds):
            opacus = sum(pool.map(of_opacus, [arguments.seconds] * PROCESSES, chunksize=1))
            rows.append({"plain": plain(), "private": private(), "opacus": opacus})
            print({name: f"{value:,.0f}" for name, value in rows[-1].items()}, flush=True)
    figures: dict[str, Any] = {"images_per_second": rows, "cores": PROCESSES, "machine": platform.processor()}
    for name, over in (("plain", "private"), ("private", "opacus")):
        ratios = sorted(row[name] / row[over] for row in rows)
        figures[f"{name}_over_{over}"] = {"median": float(np.median(ratios)), "all": ratios}
        print(f"{name} over {over}: {np.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    figures["versions"] = versions("jax", "jax_privacy", "torch", "opacus")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
