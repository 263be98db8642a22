"""What a run will cost."""

from pathlib import Path

import pytest
from small_runs import N, dataset, made

from lira.attacks.suite import ATTACKS
from lira.engine import plan as plan_module
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.scoring import score
from lira.store.config import Execution


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
def test_plan_counts_models_images_and_bytes(tmp_path):
    run = made(tmp_path, signals=("logits", "phi@0.3", "phi@0.6"))
    cost = plan(run.config, dataset(), run)
    assert (cost.models, cost.of) == (6, 6)
    assert cost.images == 6 * 3 * (N // 2 // 10) * 10
    assert cost.seconds > 0
    train(run, dataset(), show_progress=False)
    stored = sum(
        p.stat().st_size
        for p in Path(run.path / "arrays").rglob("*")
        if p.is_file() and p.name != "zarr.json"
    )
    assert cost.bytes_on_disk == pytest.approx(stored, rel=0.1)
    score(run, attacks={"lira_online": ATTACKS["lira_online"]})
    scored = [p.stat().st_size for p in Path(run.path / "scores/lira_online/c").rglob("*") if p.is_file()]
    assert cost.bytes_of_scores == pytest.approx(sum(scored), rel=0.1)
    assert plan(run.config, dataset(), run).models == 0
    assert "6 of 6 models to train" in str(cost)


def test_plan_counts_the_sweeps_of_checkpoints(tmp_path, monkeypatch):
    """A query costs a third of a training step's image: two more sweeps of two views of the pool, not of the test set."""
    monkeypatch.setattr(plan_module, "seconds_per_step", lambda *_: 1.0)
    seconds = {}
    for name, signals in (("without", ()), ("with", ("phi@0.3", "phi@0.6"))):
        config = made(tmp_path, name, signals=signals, execution=Execution(width=6, workers=1)).config
        seconds[name] = plan(config, dataset()).seconds
    assert seconds["with"] - seconds["without"] == pytest.approx(2 * 2 * N / 10 / 3)
