"""A private pool that is to forget: by methods of which something is proven, and by no others."""

import pytest

import lira
from lira.cli import main
from lira.store.config import ConfigError
from lira.unlearning.config import read_unlearning
from lira.unlearning.plan import plan_unlearning

CONFIG = """
dataset = "digits"
num_examples = 120
num_models = 4
save_params = true
[forget]
size = 12
[recipe]
epochs = 1
batch_size = 16
[recipe.privacy]
epsilon = 8.0
[execution]
width = 4
workers = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("private")
    (place / "config.toml").write_text(CONFIG)
    return place


def test_private_models_are_retrained_and_the_page_says_what_holds(place):
    assert main(["unlearn", str(place / "config.toml"), "--run-dir", str(place / "run"), "--quiet"]) == 0
    page = (place / "run" / "report.html").read_text()
    unlearning = lira.Unlearning.open(place / "run")
    assert unlearning.config.methods == ("none", "retrain")  # of private models by default
    proven = [run.provenance["privacy"] for run in (unlearning.before, unlearning.retrained)]
    assert proven[0] == proven[1]  # of other memberships, by the same noise and coins
    twice = f"twice as much ({2 * proven[0]['epsilon']:.4g} at 2e-05)"
    for part in (f"epsilon {proven[0]['epsilon']:.4g} at delta 1e-05", twice, "of a request of k examples"):
        assert part in page


def test_flags_that_make_a_pool_private_choose_the_methods_that_are_proven(place, capsys):
    public = CONFIG.partition("[recipe.privacy]")[0]
    (place / "public.toml").write_text(public)
    flags = ["--recipe.privacy.epsilon", "8", "--execution.width", "4", "--execution.workers", "1"]
    assert main(["plan", str(place / "public.toml"), *flags]) == 0
    assert "negrad_plus" not in capsys.readouterr().out
    (place / "named.toml").write_text(
        public.replace("[forget]", 'methods = ["none", "negrad_plus"]\n[forget]')
    )
    assert main(["plan", str(place / "named.toml"), *flags]) == 2
    assert "negrad_plus would go on from private models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "named"),
    [
        (["--methods", "none", "retrain", "scrub"], "recipe.privacy: scrub would go on"),
        (["--methods", "none", "lira.unlearners.finetune"], "lira.unlearners.finetune would go on"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "unlearn"])
def test_methods_that_void_what_is_proven_are_refused_by_name(place, verb, methods, named, capsys):
    assert main([verb, str(place / "config.toml"), "--run-dir", str(place / "nowhere"), *methods]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert 'methods = ["none", "retrain"], or leave recipe.privacy out' in line
    assert not (place / "nowhere").exists()


def test_the_cost_of_private_retraining_is_counted_in_its_own_steps(place):
    dataset, config = lira.load_dataset("digits", num_examples=120), read_unlearning(place / "config.toml")
    costs = {kind.name: kind for kind in plan_unlearning(config, dataset).kinds}
    assert costs["retrain"].seconds == pytest.approx(costs["retrained"].seconds)
    assert 0 < costs["none"].seconds < costs["retrain"].seconds


def test_canaries_are_refused_in_python_as_on_the_command_line(place):
    (place / "canaries.toml").write_text(CONFIG + '[canaries]\ncount = 5\nkind = "random"\n')
    with pytest.raises(ConfigError, match=r"leave \[canaries\] out"):
        read_unlearning(place / "canaries.toml")
