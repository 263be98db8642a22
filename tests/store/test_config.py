import dataclasses
import json
import math
import tomllib
from pathlib import Path

import pytest
import tomli_w

from lira.learning.models import build_model
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.membership import Membership
from lira.store.config import Config, ConfigError, as_dict, build, deciding, differences, read_config
from lira.unlearning.config import is_unlearning, read_unlearning

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


def written(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_file_is_read_into_the_dataclasses(tmp_path):
    config = read_config(
        written(
            tmp_path,
            'dataset = "npz:a.npz"\nnum_models = 8\n[recipe]\nepochs = 3\nlearning_rate = 1\n[queries]\nmirror = true',
        )
    )
    assert config.num_models == 8
    assert config.recipe == Recipe(epochs=3, learning_rate=1.0)
    assert isinstance(config.recipe.learning_rate, float)
    assert config.queries.mirror
    assert config.execution == Config().execution


def test_a_file_without_a_design_is_of_pairs_and_one_with_independent_coins_may_be_odd(tmp_path):
    assert read_config(written(tmp_path, "num_models = 8")).membership == Membership("pairs", 0.5)
    config = read_config(
        written(tmp_path, "num_models = 7\n[membership]\ndesign = 'independent'\nfraction = 0.3")
    )
    assert config.membership == Membership("independent", 0.3)
    assert read_config(written(tmp_path, tomli_w.dumps(as_dict(config)))) == config


def test_written_configuration_reads_back_equal(tmp_path):
    config = Config(
        dataset='npz:a "quoted" path.npz', recipe=Recipe(ema=0.999, flip=True), signals=("logits",)
    )
    assert read_config(written(tmp_path, tomli_w.dumps(as_dict(config)))) == config
    assert set(tomllib.loads(tomli_w.dumps(as_dict(config)))) == {
        f.name for f in dataclasses.fields(Config)
    } - {"canaries"}, "a table that is not there"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_can_be_read(path):
    config = read_unlearning(path).pool if is_unlearning(path) else read_config(path)
    if config.dataset.endswith("cifar10"):
        config.recipe.check(50_000, (32, 32, 3))
        config.queries.check((32, 32, 3), 10)
    build_model(config.recipe.model, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_model = 8", "unknown key 'num_model': did you mean 'num_models'"),
        ("epochs = 8", "unknown key 'epochs': did you mean 'recipe.epochs'"),
        ("[recipe]\nepoch = 8", "unknown key 'recipe.epoch': did you mean 'recipe.epochs'"),
        ("[recipe]\nzzz = 8", "unknown key 'recipe.zzz'; valid keys are model, epochs"),
        ("recipe = 3", r"'recipe' must be a table, \[recipe\]; got 3"),
        ('dataset = "npz:C:\\data\\x.npz"', r"Unescaped .*: of a path write / for \\, or 'single quotes'"),
        ('num_models = "8"', "'num_models' must be a whole number; got '8'"),
        ("num_models = 8.0", "'num_models' must be a whole number; got 8.0"),
        ("num_models = true", "'num_models' must be a whole number; got True"),
        ("[recipe]\nflip = 1", "'recipe.flip' must be true or false; got 1"),
        ("dataset = 3", "'dataset' must be a string; got 3"),
        ("num_models = 7", "num_models must be even and at least 4.*got 7"),
        ("num_models = 0", "num_models must be even and at least 4.*got 0"),
        ("num_models = 2", "num_models must be even and at least 4.*got 2"),
        ("[recipe]\nepochs = 0", "recipe.epochs must be at least 1; got 0"),
        ("[queries]\nshift = -1", "queries.shift must not be negative"),
        (
            "[execution]\nlowering = 'magic'",
            "execution.lowering must be one of auto, xla, per_model, patches",
        ),
        ("num_models = ", "is not valid TOML: Invalid value"),
        ("signals = 'logits'", "'signals' must be a list of strings; got 'logits'"),
        (
            "signals = ['logit']",
            "signals must be among entropy, modified_entropy, logits, phi@FRACTION; got 'logit'",
        ),
        *(
            (
                f"signals = ['phi@{fraction}']",
                rf"a checkpoint is phi@FRACTION of training, above 0 and below 1; got 'phi@{fraction}'",
            )
            for fraction in ("", "0", "0.0", "1", "1.0", "-0.5", "nan", "inf", "half", "25 %")
        ),
        ("signals = ['phi@.5']", "a checkpoint has one name: write phi@0.5 for 'phi@.5'"),
        ("signals = ['phi@0.50', 'phi@0.5']", "a checkpoint has one name: write phi@0.5 for 'phi@0.50'"),
        ("signals = ['phi@0.5', 'phi@0.5']", "signals names one twice"),
        (
            "signals = ['phi@0.5', 'phi@0.505']",
            "phi@0.5 and phi@0.505 of 50 epochs are both after epoch 25",
        ),
        ("signals = ['phi@0.999']", "phi@0.999 of 50 epochs is the end of training, as phi is: leave it out"),
        ("signals = ['phi@0.5']\n[recipe]\nepochs = 1", "phi@0.5 of 1 epochs is the end of training"),
        ("signals = ['logits', 'logits']", "signals names one twice"),
        ("membership_seed = -1", "membership_seed must not be negative"),
        ("[membership]\ndesign = 'pair'", "membership.design must be one of pairs, independent.*got 'pair'"),
        (
            "[membership]\nfractions = 0.3",
            "unknown key 'membership.fractions': did you mean 'membership.fraction'",
        ),
        ("[membership]\nfraction = 0.3", "membership.fraction is 0.3, and each model of a pair"),
        ("num_models = 3\n[membership]\ndesign = 'independent'", "num_models must be at least 4; got 3"),
    ],
)
def test_every_mistake_is_named_in_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml: cannot be read: No such file"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        read_config(tmp_path)


def test_differences_name_fields():
    assert list(differences(Recipe(), Recipe(epochs=60), "recipe.")) == [
        "recipe.epochs is 50 there and 60 here"
    ]
    assert list(differences(Recipe(), Recipe())) == []


def test_brackets_beyond_depth_and_numbers_beyond_bits_are_one_line(tmp_path):
    place = tmp_path / "config.toml"
    place.write_text("dataset = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_config(place)
    for text, message in [
        (f"membership_seed = {2**63}", r"membership_seed must be smaller than 2\^63"),
        (f"[recipe]\nseed = {2**80}", r"recipe.seed must be smaller than 2\^63"),
        (f"num_models = {2**31}", r"num_models must be smaller than 2\^31"),
        (f"[recipe]\nepochs = {2**40}", r"recipe.epochs must be smaller than 2\^31"),
        (f"[execution]\ndevices = [{2**70}]", r"execution.devices must be smaller than 2\^31"),
    ]:
        place.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(place)
    place.write_text(f"[recipe]\nseed = {2**63 - 1}")
    assert read_config(place).recipe.seed == 2**63 - 1


def test_a_table_that_may_be_absent_is_read_written_and_compared(tmp_path):
    text = "[recipe]\nepochs = 3\n[recipe.privacy]\nepsilon = inf\nclip = 1"
    config = read_config(written(tmp_path, text))
    assert config.recipe.privacy == Privacy(epsilon=math.inf)
    assert read_config(written(tmp_path, tomli_w.dumps(as_dict(config)))) == config
    # JSON has no infinity.
    decided = json.loads(json.dumps(deciding(config), allow_nan=False))
    assert build(Config, decided, "provenance.json").recipe == config.recipe
    plain = Config(recipe=Recipe(epochs=3))
    assert "privacy" not in as_dict(plain)["recipe"]
    assert list(differences(plain, config)) == [
        f"recipe.privacy is None there and {config.recipe.privacy!r} here"
    ]
    assert list(differences(config, plain)) == [
        f"recipe.privacy is {config.recipe.privacy!r} there and None here"
    ]
    for changed, message in (
        (
            text.replace("clip", "clp"),
            r"unknown key 'recipe.privacy.clp': did you mean 'recipe.privacy.clip'",
        ),
        (text.replace("clip = 1", "clip = 'a'"), r"'recipe.privacy.clip' must be a number; got 'a'"),
        ("[recipe]\nprivacy = 3", r"'recipe.privacy' must be a table, \[recipe.privacy\]; got 3"),
        (text + "\nnoise = 2.0", "needs epsilon or noise, and not both"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_config(written(tmp_path, changed))


def test_files_of_windows_editors_are_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes("\ufeffdataset = 'digits'\r\nnum_models = 8\r\n".encode())
    assert read_config(path).num_models == 8
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("dataset = 'npz:K\u00f6ln.npz'".encode(encoding))
        with pytest.raises(ConfigError, match=r"is no UTF-8 \(.*\): save it as UTF-8"):
            read_config(path)
