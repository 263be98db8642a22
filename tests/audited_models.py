"""Answers of models as arrays of every kind, as files and as flags."""

import numpy as np
from scipy.special import log_softmax

from lira.cli import main
from lira.membership import keep_mask

M, N, Q, C = 10, 200, 2, 3
FEW = ("global_threshold", "lira_online_fixed")


def balanced(M=M):
    return np.argsort(np.random.default_rng(0).uniform(size=(M, N)), axis=0) < M // 2


def model_logits(keep, num_classes=C, seed=0):
    """Logits `[rows, N, Q, C]` of models that are right mostly, and more so on members."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % num_classes
    logits = rng.normal(size=(*keep.shape, Q, num_classes)) + np.random.default_rng(99).normal(
        size=(1, N, 1, num_classes)
    )
    logits[:, np.arange(N), :, labels] += 1 + 2 * keep.T[:, :, None]
    return logits.astype(np.float32), labels


KEEP = keep_mask(0, M, N)
LOGITS, LABELS = model_logits(KEEP)


def exact_phi(logits, labels):
    log_p = log_softmax(logits.astype(np.longdouble), axis=-1)
    others = np.where(np.arange(logits.shape[-1]) == labels[:, None, None], -np.inf, log_p)
    label = np.take_along_axis(
        log_p, np.broadcast_to(labels[:, None, None], (*log_p.shape[:-1], 1)), axis=-1
    )[..., 0]
    return (label - np.log(np.exp(others).sum(axis=-1))).astype(np.float32)


PHI = exact_phi(LOGITS, LABELS)


class Files:
    """Arrays as files, and the flags that name them."""

    def __init__(self, place):
        self.place = place

    def __call__(self, **arrays):
        flags = {}
        for name, values in arrays.items():
            flags[name] = values
            if isinstance(values, np.ndarray):
                flags[name] = str(self.place / f"{name}.npy")
                np.save(flags[name], values)
        return flags


def run(flags, out, *declared):
    arguments = [
        part for name, place in flags.items() for part in (f"--{name.replace('_', '-')}", str(place))
    ]
    return main(["audit", *arguments, *declared, "--out", str(out)])
