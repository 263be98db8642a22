"""Models that other code trained, of which something is damaged that follows from what else is stored of them."""

import numpy as np
import pytest
from scipy.special import logsumexp

import lira
from lira.cli import main
from lira.exchange.confidences import to_signals
from lira.store.errors import RunError
from lira.store.imported import run_of_models
from lira.store.mend import mend

M, N, C = 4, 30, 3
LABELS = np.arange(N) % C
KEEP = np.array([[True, False] * 15, [False, True] * 15] * 2)
SOURCE = {"path": "there", "layout": "test", "file": "x", "requested": M}


def imported(path, *, with_logits):
    """Models with or without the logits that all else of theirs follows from."""
    models = []
    for logits, keep in zip(
        np.random.default_rng(0).normal(size=(M, N, 2, C)).astype(np.float32), KEEP, strict=True
    ):
        signals, correct = to_signals("logits", logits, LABELS)
        assert correct is not None
        figures = {"accuracy_in": correct[keep].mean(), "accuracy_out": correct[~keep].mean()}
        models.append({**signals, **figures, "logits": logits} if with_logits else signals)
    models = [{name: np.asarray(each, np.float32) for name, each in model.items()} for model in models]
    return run_of_models(path, KEEP, LABELS, models, source=SOURCE), models


FOLLOWS = (
    "phi/c/2/0/0",
    "entropy/c/2/0/0",
    "modified_entropy/c/2/0/0",
    "accuracy_in/c/2",
    "accuracy_out/c/2",
)


def test_what_follows_from_logits_is_computed_again_to_the_last_bit(tmp_path):
    run, models = imported(tmp_path / "run", with_logits=True)
    whole = {name: (run.path / "arrays" / name).read_bytes() for name in FOLLOWS}
    for name in FOLLOWS:
        file = run.path / "arrays" / name
        file.write_bytes(file.read_bytes()[:-1])
    assert main(["score", str(run.path), "--attacks", "global_threshold"]) == 0
    assert {name: (run.path / "arrays" / name).read_bytes() for name in FOLLOWS} == whole
    z = models[2]["logits"].astype(np.float64)
    at_label = np.take_along_axis(z, LABELS[:, None, None], axis=2)
    others = np.where(np.arange(C) == LABELS[:, None, None], -np.inf, z - at_label)
    phi = -np.asarray(logsumexp(others, axis=2))
    np.testing.assert_allclose(np.asarray(lira.Run.open(run.path).phi)[2], phi, rtol=1e-6)
    assert not [each for each in lira.verify(run.path, deep=True) if each.status == "broken"]
    (run.path / "arrays/logits/c/2/0/0/0").unlink()
    (run.path / "arrays/phi/c/2/0/0").unlink()
    with pytest.raises(RunError, match="restore it from a copy"):
        mend(run.path)


@pytest.mark.parametrize("name", ["accuracy_in", "accuracy_test"])
def test_an_accuracy_that_is_known_of_no_model_is_not_known_again(tmp_path, name):
    run, _ = imported(tmp_path / "run", with_logits=False)
    (run.path / "arrays" / name / "c/1").unlink()
    (said,) = mend(run.path)
    assert said == f"arrays/{name}/c/1 is missing: computed again from what is stored of the model"
    assert np.isnan(run.accuracy(name.removeprefix("accuracy_"))).all()
    (run.path / "arrays/phi/c/1/0/0").unlink()
    with pytest.raises(
        RunError, match="arrays/phi/c/1/0/0 is missing, and models that other code trained cannot be"
    ):
        mend(run.path)
