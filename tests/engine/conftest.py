"""A run that was never interrupted, and one that was cut off."""

import shutil

import pytest
from cut_off_runs import NEVER, cut_off, made
from small_runs import dataset

from lira.engine.fill import train
from lira.store.run import Run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("whole") / "run", NEVER)
    train(run, dataset(), show_progress=False)
    return run


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A run whose models 0 to 2 are done, and 3 to 5 were cut off."""
    run = made(tmp_path_factory.mktemp("cut") / "run")
    cut_off(run)
    assert run.done.tolist() == [1, 1, 1, 0, 0, 0]
    return run


@pytest.fixture
def begun(original, tmp_path):
    shutil.copytree(original.path, tmp_path / "run")
    return Run.open(tmp_path / "run", dataset())
