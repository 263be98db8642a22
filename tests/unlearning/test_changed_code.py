"""An unlearning goes on with the code that it began with."""

import os
import sys

import numpy as np
import pytest

from lira.data.dataset import Dataset
from lira.learning.fingerprint import UncheckedWarning
from lira.learning.recipe import Recipe
from lira.store.config import Config, Execution
from lira.store.errors import RunError
from lira.store.making import write_provenance
from lira.unlearning.config import Forget, UnlearnConfig
from lira.unlearning.directory import Unlearning
from lira.unlearning.protocol import unlearn

CODE = """
import jax
def shrink(problem, key, *, by=0.5):
    return jax.tree.map(lambda leaf: leaf * by, problem.variables)
"""


def dataset():
    rng = np.random.default_rng(0)
    return Dataset(
        rng.normal(size=(40, 4)).astype(np.float32), np.arange(40, dtype=np.int32) % 2, 2, name="memory"
    )


def opened(path, code):
    """The unlearning there, made if it is not, by the method of that code."""
    (path / "shrinking.py").write_text(code)
    os.utime(path / "shrinking.py", (len(code), len(code)))  # for Python's cache
    sys.modules.pop("shrinking", None)
    recipe, execution = Recipe(model="mlp", epochs=1, batch_size=10), Execution(width=2, workers=1)
    pool = Config(dataset="memory", num_models=4, save_params=True, recipe=recipe, execution=execution)
    config = UnlearnConfig(pool, methods=("shrinking.shrink",), forget=Forget(size=4))
    return Unlearning.create(path / "unlearn", dataset(), config)


def test_a_method_whose_code_changed_midway_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    unlearn(opened(tmp_path, CODE), dataset(), show_progress=False)
    other = "# not only a comment" + CODE.replace("leaf * by", "leaf * by + 1")
    unlearn(
        opened(tmp_path, other), dataset(), show_progress=False
    )  # finished: nothing is made by other code
    run = opened(tmp_path, CODE).method("shrinking.shrink")
    run.arrays.open("done")[0].write(0).result()
    with pytest.raises(RunError, match=r"method 'shrinking.shrink' has changed since it began"):
        unlearn(opened(tmp_path, other), dataset(), show_progress=False)
    assert run.done.tolist() == [0, 1, 1, 1]
    unlearn(opened(tmp_path, "# a comment\n" + CODE), dataset(), show_progress=False)
    assert run.done.tolist() == [1, 1, 1, 1]
    run.arrays.open("done")[0].write(0).result()
    del run.provenance["fingerprints"]["method"]  # as of an earlier version
    write_provenance(run.path, run.provenance)
    with pytest.warns(UncheckedWarning, match=r"code of method 'shrinking.shrink' .* is not checked"):
        unlearn(opened(tmp_path, other), dataset(), show_progress=False)
