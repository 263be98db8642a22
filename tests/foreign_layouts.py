"""Directories of shadow models as other code writes them."""

import json

import numpy as np

from lira.membership import keep_mask

N, Q, C = 300, 2, 4


def balanced(seed, M, num_examples=N):
    """The original's design: each example in exactly half of the models, no pairs."""
    return np.argsort(np.random.default_rng(seed).uniform(size=(M, num_examples)), axis=0) < M // 2


def pool(M=8, paired=False, seed=0):
    """Logits `[M, N, Q, C]` of models that are right mostly, and more so on members; the mask; the labels."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N) if paired else balanced(seed, M)
    labels = np.arange(N) % C
    logits = rng.normal(size=(M, N, Q, C)) + rng.normal(size=(1, N, 1, C))
    logits[:, np.arange(N), :, labels] += 2 + 2 * keep.T[:, :, None]
    return logits.astype(np.float32), keep, labels


def naive_phi(logits, labels):
    """The original's formula in float64, which does not saturate on logits this small."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    p_y = np.take_along_axis(p, labels[None, :, None, None], axis=-1)[..., 0]
    return np.log(p_y) - np.log(1 - p_y)


def write_carlini(place, logits, keep, labels, epochs=(9, 10), scores=False):
    for i, row in enumerate(keep):
        folder = place / f"experiment-{i}_{len(keep)}"
        for epoch in epochs:
            (folder / "logits").mkdir(parents=True, exist_ok=True)
            (folder / "scores").mkdir(exist_ok=True)
            # Earlier epochs hold noise: only the last counts.
            values = (
                logits[i][:, None]
                if epoch == epochs[-1]
                else np.random.default_rng(epoch).normal(size=(N, 1, Q, C))
            )
            if scores:
                np.save(folder / f"scores/{epoch:010}.npy", naive_phi(values[None, :, 0], labels)[0])
            else:
                np.save(folder / f"logits/{epoch:010}.npy", values)
        np.save(folder / "keep.npy", row)
        (folder / "hparams.json").write_text(json.dumps({"arch": "wrn28-2", "expid": i}))
    np.save(place / "y_train.npy", labels)
    return place


def write_pytorch(place, logits, keep, labels, scores=False):
    for i, row in enumerate(keep):
        (place / str(i)).mkdir(parents=True)
        np.save(place / f"{i}/keep.npy", row)
        values = naive_phi(logits[i : i + 1], labels)[0] if scores else logits[i]
        np.save(place / f"{i}/{'scores' if scores else 'logits'}.npy", values)
    return place


def write_privacy_meter(place, values, keep, name="rmia"):
    for folder in ("models", "signals"):
        (place / folder).mkdir(parents=True)
    np.save(place / "models/memberships.npy", keep)
    np.save(place / f"signals/{name}_signals.npy", values.T)
    return place


def confidences(logits, labels):
    return 1 / (1 + np.exp(-naive_phi(logits, labels)[..., 0]))
