"""The command line in this process, and a small configuration for it."""

import numpy as np
import pytest

from lira.cli import main

SMALL = """\
dataset = "npz:{data}"
num_models = 8
[recipe]
epochs = 2
batch_size = 10
learning_rate = 0.05
[execution]
width = 8
"""


@pytest.fixture
def config(tmp_path):
    """A configuration of 100 tiny images, half of which are noise that only memory can label."""
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    x = rng.integers(0, 256, (100, 5, 5, 1)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    path = tmp_path / "config.toml"
    path.write_text(SMALL.format(data=tmp_path / "data.npz"))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])
