"""From the keep mask to the curve: models that this engine trained give their members away, and no others."""

import numpy as np
import pytest

import lira
from lira.metrics import roc


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sixteen models of the demo's kind on all digits."""
    dataset = lira.load_dataset("digits")
    recipe = lira.Recipe(model="mlp", epochs=30, batch_size=64)
    place = tmp_path_factory.mktemp("digits") / "run"
    run = lira.Run.create(place, dataset, recipe, num_models=16, execution=lira.Execution(width=8))
    lira.train(run, dataset, show_progress=False)
    return lira.Run.open(place)


def test_lira_finds_members_and_memberships_of_other_models_are_at_chance(run):
    """A mask that is misaligned anywhere between training and report would show as chance, or as a leak."""
    keep = run.keep
    auc = roc(lira.attacks.lira_online_fixed(run.phi, keep), keep).auc_interval()
    assert auc.low > 0.5, auc
    # Rotated by one pair, so that rows still come in complementary pairs of the same design.
    rotated = np.roll(keep, 2, axis=0)
    auc = roc(lira.attacks.lira_online_fixed(run.phi, rotated), rotated).auc_interval()
    assert auc.low < 0.5 < auc.high, auc
