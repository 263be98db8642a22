"""A run on a Ray cluster: tasks of a few pairs of models each, and Ray's own retries where a worker dies.

python experiments/cluster/on_ray.py CONFIG.toml RUN [--models-each 16] [--gpus 1]

RUN is on a file system that all nodes share. A task that is retried finds what its predecessor stored, and trains the rest.
"""

import argparse
from pathlib import Path

import numpy as np
import ray

import lira
from lira.data.dataset import Dataset
from lira.store.config import absolute, read_config


def opened(config_path: str, place: str) -> tuple[lira.Run, Dataset]:
    """The run, made by whoever comes first, and its data."""
    config = absolute(read_config(config_path))
    dataset = lira.load_dataset(config.dataset, num_examples=config.num_examples, data_dir=config.data_dir)
    return lira.Run.from_config(place, dataset, config), dataset


@ray.remote
def train(config_path: str, place: str, first: int, stop: int) -> tuple[int, int]:
    """Train the missing ones of models first to stop - 1."""
    run, dataset = opened(config_path, place)
    lira.train(run, dataset, among=np.arange(first, stop), show_progress=False)
    return first, stop


def main() -> None:
    """Train on all workers, then score and report here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("run")
    parser.add_argument("--models-each", type=int, default=16, help="models of a task, even")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a task")
    arguments = parser.parse_args()
    config_path, place = (str(Path(name).absolute()) for name in (arguments.config, arguments.run))
    ray.init()
    num_models, each = read_config(config_path).num_models, arguments.models_each
    task = train.options(num_gpus=arguments.gpus, num_cpus=1, max_retries=10)
    waiting = [
        task.remote(config_path, place, first, min(first + each, num_models))
        for first in range(0, num_models, each)
    ]
    while waiting:
        done, waiting = ray.wait(waiting)
        first, stop = ray.get(done[0])
        print(f"models {first}:{stop} of {num_models} are trained", flush=True)
    run, dataset = opened(config_path, place)
    evaluation = lira.report(run, dataset)
    print(evaluation.attacks["lira_online"].tpr_at[1e-3])


if __name__ == "__main__":
    main()
