"""Fields of configuration as Python users fill them: numbers of NumPy, lists, words, and what only looks right."""

import re
from typing import Any

import numpy as np
import pytest

import lira
from lira.data.dataset import Dataset
from lira.learning.privacy import Privacy
from lira.store.config import Config, build, in_json
from lira.unlearning.config import Forget

# As those see them who check no types.
Recipe: Any = lira.Recipe
Execution: Any = lira.Execution
AnyConfig: Any = Config


def test_numbers_of_numpy_are_pythons():
    recipe = Recipe(
        epochs=np.int64(3),
        learning_rate=np.float32(0.5),
        weight_decay=1,
        flip=np.bool_(True),
        seed=np.uint8(2),
    )
    assert recipe == lira.Recipe(epochs=3, learning_rate=0.5, weight_decay=1.0, flip=True, seed=2)
    config = AnyConfig(num_models=np.int32(8), signals=["entropy"], recipe=recipe)
    assert config == Config(num_models=8, signals=("entropy",), recipe=recipe)
    for made, plain in ((recipe, lira.Recipe()), (config, Config())):
        kinds = {name: type(each) for name, each in vars(plain).items()}
        assert {name: type(each) for name, each in vars(made).items()} == kinds
    assert Execution(devices=np.arange(2)).devices == (0, 1)


def test_a_run_of_them_is_opened_again(tmp_path):
    dataset = Dataset.from_arrays(np.arange(120.0).reshape(40, 3), np.arange(40) % 2)
    epochs, models = np.array([1, 4])
    run = lira.Run.create(
        tmp_path / "run", dataset, lira.Recipe(epochs=epochs, batch_size=4), num_models=models
    )
    assert lira.Run.open(run.path).config == run.config


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lira.Recipe, dict(epochs=3.0), "'recipe.epochs' must be a whole number; got 3.0"),
        (lira.Recipe, dict(epochs="3"), "'recipe.epochs' must be a whole number; got '3'"),
        (lira.Recipe, dict(epochs=True), "'recipe.epochs' must be a whole number; got True"),
        (lira.Recipe, dict(learning_rate=None), "'recipe.learning_rate' must be a number; got None"),
        (lira.Recipe, dict(flip=1), "'recipe.flip' must be true or false; got 1"),
        (lira.Recipe, dict(optimizer="SGD"), "recipe.optimizer must be one of sgd, adam, adamw; got 'SGD'"),
        (
            lira.Recipe,
            {"privacy": {"epsilon": 1.0}},
            "'recipe.privacy' must be a Privacy; got {'epsilon': 1.0}",
        ),
        (Privacy, dict(epsilon="2"), "'recipe.privacy.epsilon' must be a number; got '2'"),
        (lira.Queries, dict(shift=1.5), "'queries.shift' must be a whole number; got 1.5"),
        (lira.Membership, dict(fraction="half"), "'membership.fraction' must be a number"),
        (lira.Canaries, dict(count=10.0, kind="random"), "'canaries.count' must be a whole number"),
        (lira.Execution, dict(devices=0), "'execution.devices' must be a list of whole numbers; got 0"),
        (Forget, dict(requests=2.0), "'forget.requests' must be a whole number"),
        (Config, dict(num_models=8.0), "'num_models' must be a whole number; got 8.0"),
        (Config, dict(recipe={"epochs": 3}), "'recipe' must be a Recipe"),
        (Config, dict(signals="entropy"), "'signals' must be a list of strings; got 'entropy'"),
        (lira.Recipe, dict(seed=1 << 63), "recipe.seed must be smaller than"),
    ],
)
def test_what_only_looks_right_is_named(make, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**fields)


def test_what_a_file_holds_is_as_strict():
    table = in_json({"learning_rate": 1, "momentum": 0.5})
    assert build(lira.Recipe, table, "mine.toml") == lira.Recipe(learning_rate=1.0, momentum=0.5)
