import json
from functools import partial

import numpy as np
import pytest

from lira import attacks, scoring
from lira.attacks.suite import ATTACKS, Pool
from lira.cli import main
from lira.data.dataset import Dataset
from lira.engine import fill
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.metrics import enough_models, learning_curve
from lira.reporting import enough
from lira.reporting.enough import RULE, curves_of, write_curves
from lira.reporting.tables import learning_table
from lira.store.config import Execution
from lira.store.run import Run

M, N = 32, 400
KEEP = keep_mask(0, M, N)
rng = np.random.default_rng(0)
PHI = (rng.normal(size=(M, N, 1)) + 2 * KEEP[..., None]).astype(np.float32)
POOL = Pool({"phi": PHI}, KEEP)


@pytest.fixture(scope="module")
def curves():
    return curves_of(POOL, fpr=0.01, attacks=["lira_online", "lira_online_fixed", "base", "global_threshold"])


def test_each_attack_starts_where_it_is_possible(curves):
    sizes = {name: [point.num_models for point in points] for name, points in curves.items()}
    assert sizes == {
        "lira_online": [8, 16, 32],  # two a side for a variance
        "lira_online_fixed": [4, 8, 16, 32],
        "base": [4, 8, 16, 32],
    }
    assert not ATTACKS["global_threshold"].uses_shadows


def test_curves_are_those_of_the_metric(curves):
    (largest,) = learning_curve(attacks.lira_online_fixed, PHI, KEEP, [32], fpr=0.01)
    assert curves["lira_online_fixed"][-1].tpr == largest.tpr
    tprs = [point.tpr.tpr for point in curves["lira_online_fixed"]]
    assert tprs[0] < tprs[-1], "more models attack better"


def test_pools_of_other_designs_are_refused():
    with pytest.raises(ValueError, match="this pool is of another design"):
        curves_of(Pool({"phi": PHI[:31]}, KEEP[:31]))


def test_figure_and_document_hold_every_point(curves, tmp_path):
    write_curves(tmp_path, curves, 0.01)
    assert (tmp_path / "enough.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "enough.json").read_text())
    for name, points in curves.items():
        written = document["attacks"][name]
        assert written["enough"] == enough_models(points)
        assert [each["num_models"] for each in written["points"]] == [p.num_models for p in points]
        assert [each["tpr_at_fpr"]["tpr"] for each in written["points"]] == [p.tpr.tpr for p in points]
    columns = [str(column.header) for column in learning_table(curves, 0.01, RULE).columns]
    assert columns == ["attack", "4", "8", "16", "32", "enough"]


def test_an_attack_that_finds_nobody_never_has_enough():
    pool = Pool({"phi": np.zeros_like(PHI)}, KEEP)
    (points,) = curves_of(pool, fpr=0.01, attacks=["base"]).values()
    assert points[-1].tpr.tpr == 0
    assert enough_models(points) is None


def test_commands_on_a_run(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(1)
    few = ("lira_online", "lira_online_fixed", "base", "global_threshold")
    monkeypatch.setattr(scoring, "ATTACKS", {name: ATTACKS[name] for name in few})
    monkeypatch.setattr(enough, "curves_of", partial(curves_of, attacks=few))
    data = Dataset.from_arrays(rng.normal(size=(80, 6)), np.arange(80) % 2)
    for name, seed, membership in (("a", 0, 0), ("b", 1, 0), ("c", 0, 5)):
        recipe = Recipe(epochs=8, batch_size=10, seed=seed)
        pinned = {"num_models": 8, "membership_seed": membership, "execution": Execution(width=8)}
        fill.train(Run.create(tmp_path / name, data, recipe, **pinned), data, show_progress=False)
    assert main(["enough", str(tmp_path / "a")]) == 0
    assert "by number of models" in capsys.readouterr().out
    assert (tmp_path / "a/enough.json").exists()
    assert main(["compare", str(tmp_path / "a")]) == 0
    assert "each attack minus" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Two seeds, the same memberships: every attack is compared.
    assert [line.split()[0] for line in lines if line.strip().startswith(few)] == list(few)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    same = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("base"))
    assert "+0.0000 [+0.0000, +0.0000]" in same
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "memberships" in capsys.readouterr().err
