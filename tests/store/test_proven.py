import dataclasses
import json

import numpy as np
import pytest
from stored_runs import RECIPE, M, N, dataset

from lira.learning.accounting import guarantee
from lira.learning.privacy import Privacy
from lira.store.errors import RunError
from lira.store.making import write_provenance
from lira.store.proven import proven_of
from lira.store.run import Run


def private_run(tmp_path, **fields):
    recipe = dataclasses.replace(RECIPE, privacy=Privacy(**fields))
    return Run.create(tmp_path / "run", dataset(), recipe, num_models=M)


def test_what_is_proven_is_recorded(tmp_path):
    run = private_run(tmp_path, noise=2.0)
    assert proven_of(run.path, Run.open(run.path).provenance) == guarantee(run.config.recipe, N)
    assert run.provenance["versions"].keys() > {"jax_privacy", "dp_accounting"}
    assert json.loads((run.path / "provenance.json").read_text())["privacy"]["noise"] == 2.0


def test_without_noise_the_record_says_so(tmp_path):
    run = private_run(tmp_path, epsilon=np.inf)
    proven = proven_of(run.path, Run.open(run.path).provenance)
    assert proven is not None
    assert proven.epsilon == np.inf


def test_a_run_does_not_go_on_with_other_noise(tmp_path):
    run = private_run(tmp_path, epsilon=2.0)
    run.require_same_models(dataset())
    changed = {**run.provenance, "privacy": {**run.provenance["privacy"], "noise": 9.0}}
    write_provenance(run.path, changed)
    with pytest.raises(RunError, match=r"its models have noise 9 by recipe.privacy, and accounting comes to"):
        Run.open(run.path).require_same_models(dataset())
