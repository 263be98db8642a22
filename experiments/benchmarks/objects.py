"""What a run on an object store asks of it: requests and bytes a model, counted at an S3 server on this machine (moto's).

Runs of digits' size and of CIFAR's (60,000 examples, 18 queries) are made, filled with random answers, looked through and
scored by one attack; nothing is trained. A request costs S3's latency, so that those one after the other are counted, too: the
time that storing a model takes with every answer held back by 20 ms, less the time without, over 20 ms.

Command:   pip install -e ".[dev]" && python experiments/benchmarks/objects.py
Duration:  two minutes on 2 CPU cores.
Measured:  experiments/benchmarks/README.md.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lira.attacks import lira_online_fixed
from lira.data.dataset import Dataset
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe
from lira.store.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from object_store import BUCKET, ObjectStore, environment, served

MODELS, LATENCY = 8, 0.02
SIZES = {"digits": (1797, 1), "60,000 examples, 18 queries": (60_000, 18)}


def counted(what: str, store: ObjectStore, do: Callable[[], object], per: int = MODELS) -> float:
    """Print what `do` asks of the store, a model; return its seconds, a model."""
    store.requests.clear()
    store.sent = store.received = 0
    began = time.perf_counter()
    do()
    seconds = (time.perf_counter() - began) / per
    kinds = {kind: count / per for kind, count in store.requests.items()}
    reads, lists = kinds.get("GET", 0) + kinds.get("HEAD", 0), kinds.get("LIST", 0)
    print(
        f"  {what:32} {reads:7.1f} GET, HEAD  {kinds.get('PUT', 0):6.1f} PUT  {lists:4.1f} LIST  {kinds.get('DELETE', 0):4.1f} DELETE"
        f"  {store.received / per / 1e6:8.3f} MB up  {store.sent / per / 1e6:8.3f} MB down",
        flush=True,
    )
    return seconds


def measure(store: ObjectStore, name: str, N: int, Q: int) -> None:
    """All of it, for one size of run; figures are a model."""
    print(name)
    queries = {1: Queries(), 18: Queries(mirror=True, shift=1)}[Q]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N, 4, 4, 1)).astype(np.uint8)
    dataset = Dataset(x=x, y=np.arange(N, dtype=np.int32) % 10, num_classes=10, name="memory")
    place = f"{BUCKET}/{N}"
    runs: list[Run] = []
    counted(
        "making the directory",
        store,
        lambda: runs.append(Run.create(place, dataset, Recipe(), num_models=MODELS, queries=queries)),
    )
    (run,) = runs
    answers = {
        array: rng.normal(size=(N, Q)).astype(np.float32) for array in ("phi", "entropy", "modified_entropy")
    }
    answers |= {f"accuracy_{side}": np.array(0.5, np.float32) for side in ("in", "out", "test")}

    def write(first: int, stop: int) -> None:
        for model in range(first, stop):
            run.write_model(model, answers, diverged=False)

    at_once = counted("storing a model", store, lambda: write(0, MODELS // 2), MODELS // 2)
    store.fault = lambda method, key: time.sleep(LATENCY)
    late = counted("the same, answers held back", store, lambda: write(MODELS // 2, MODELS), MODELS // 2)
    store.fault = lambda method, key: None
    print(
        f"  storing a model: {at_once:.2f} s, and {(late - at_once) / LATENCY:.0f} requests one after the other"
    )
    counted("looking which models are done", store, lambda: run.done)
    counted("reading phi and memberships", store, lambda: (np.asarray(run.phi), run.keep))
    scores = lira_online_fixed(np.asarray(run.phi[:, :100]), run.keep[:, :100])
    scores = np.resize(scores, (MODELS, N))
    signals = run.fingerprint()
    counted(
        "storing an attack's scores", store, lambda: run.write_scores("lira_online_fixed", scores, signals)
    )
    counted("reading an attack's scores", store, lambda: run.scores("lira_online_fixed"))


if __name__ == "__main__":
    with served() as (store, address):
        os.environ.update(environment(address))
        for name, (N, Q) in SIZES.items():
            measure(store, name, N, Q)
