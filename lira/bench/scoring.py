"""Scoring all targets of a pool at once, beside refitting Gaussians for each in a loop."""

import statistics
from typing import Any

import numpy as np
import scipy.stats

from lira import attacks
from lira.bench.machine import seconds_of
from lira.membership import keep_mask

__all__ = ["scoring_times", "spread"]


# --- Scoring ------------------------------------------------------------------------------------------------------


def scoring_times(repeats: int, M: int = 256, N: int = 50_000, Q: int = 2) -> dict[str, Any]:
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
        "lira_online_s": spread(ours),
        "refit_loop_s": {**spread(loop), "extrapolated_from": f"{part} examples of one target"},
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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
