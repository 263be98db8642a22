"""Scores of three attacks, and how what is made of them is read."""

import io

import numpy as np
from rich.console import Console

from lira.membership import keep_mask
from lira.reporting import tables

M, N = 16, 400  # 3,200 non-members: 0.01 % is unresolvable, 0.1 % allows three false positives.


def pool(num_models=M, num_examples=N, seed=0):
    """Scores of three attacks of different strength, `[M, N]` each, and the mask."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, num_models, num_examples)
    noise = rng.normal(size=(3, num_models, num_examples)) + 0.1 * rng.normal(size=(3, num_models, 1))
    gap = rng.exponential(size=num_examples)
    names = ("lira_online", "lira_offline_fixed", "global_threshold")
    return {name: noise[i] + (2 - i) * gap * keep for i, name in enumerate(names)}, keep


def rendered(evaluation, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.attacks_table(evaluation))
    return console.export_text()
