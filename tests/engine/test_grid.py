"""A grid's settings: which fields are varied, by which values, and what is refused."""

import pytest

import lira
from lira.engine.grid import parse_over, plan_grid, settings_of
from lira.learning.privacy import Privacy
from lira.store.config import Config, ConfigError


def test_settings_are_all_combinations_the_last_field_fastest():
    base = Config(num_models=8, recipe=lira.Recipe(epochs=7))
    over = parse_over(["recipe.weight_decay=0,5e-4", "recipe.flip=true, false", "queries.top_k=1"])
    assert over == {"recipe.weight_decay": [0, 5e-4], "recipe.flip": [True, False], "queries.top_k": [1]}
    settings = settings_of(base, over)
    assert [each.name for each in settings] == [
        "weight_decay=0, flip=true, top_k=1",
        "weight_decay=0, flip=false, top_k=1",
        "weight_decay=0.0005, flip=true, top_k=1",
        "weight_decay=0.0005, flip=false, top_k=1",
    ]
    last = settings[-1]
    assert last.directory == "weight_decay=0.0005,flip=false,top_k=1"
    assert last.values == {"recipe.weight_decay": 5e-4, "recipe.flip": False, "queries.top_k": 1}
    assert last.config == Config(
        num_models=8, recipe=lira.Recipe(epochs=7, weight_decay=5e-4), queries=lira.Queries(top_k=1)
    )


def test_fields_varied_apart_are_the_base_and_each_value_by_itself():
    over = parse_over(["recipe.weight_decay=0,5e-4", "recipe.dropout=0.1,0.2"])
    settings = settings_of(Config(), over, apart=True)
    # The default of 0 is the base, which is there already.
    assert [each.name for each in settings] == ["base", "weight_decay=0.0005", "dropout=0.1", "dropout=0.2"]
    assert settings[0].config == Config()
    assert settings[2].config == Config(recipe=lira.Recipe(dropout=0.1))


def test_tables_that_are_absent_and_infinite_values():
    settings = settings_of(Config(), parse_over(["recipe.privacy.epsilon=1,inf"]))
    assert [each.name for each in settings] == ["epsilon=1", "epsilon=inf"]
    assert [each.config.recipe.privacy for each in settings] == [
        Privacy(epsilon=1.0),
        Privacy(epsilon=float("inf")),
    ]


def test_settings_of_which_no_pool_is_attacked_are_refused_before_anything_is_trained():
    canaries = lira.Canaries(count=10, kind="blank")
    config = Config(num_examples=100, membership=lira.Membership("all"), canaries=canaries)
    dataset = lira.plant(lira.load_dataset("digits", num_examples=100), canaries)
    with pytest.raises(ConfigError, match=r"setting epochs=1: .*leaves canaries alone to be attacked"):
        plan_grid(None, settings_of(config, {"recipe.epochs": [1, 2]}), dataset)


def test_words_and_directories():
    (setting,) = settings_of(Config(), {"recipe.model": ["some.where/else:Net"]})
    assert setting.config.recipe.model == "some.where/else:Net"
    assert setting.directory == "model=some.where%2Felse%3ANet"
    names = [each.name for each in settings_of(Config(), parse_over(["recipe.model=mlp,cnn"]))]
    assert names == ["model=mlp", "model=cnn"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "a grid needs a field to vary"),
        (["recipe.epochs"], "--over is FIELD=VALUE,VALUE,.*; got 'recipe.epochs'"),
        (["recipe.epochs=1,,2"], "--over is FIELD=VALUE"),
        (["=1"], "--over is FIELD=VALUE"),
        (["recipe.epochs=1", "recipe.epochs=2"], "--over names recipe.epochs twice"),
        (
            ["recipe.wieght_decay=0"],
            "unknown field 'recipe.wieght_decay': did you mean 'recipe.weight_decay'",
        ),
        (["weight_decay=0"], "unknown field 'weight_decay': did you mean 'recipe.weight_decay'"),
        (["recipe=0"], "unknown field 'recipe'"),
        (["recipe.epochs=5,five"], "'recipe.epochs' must be a whole number; got 'five'"),
        (["recipe.epochs=5,1.5"], "'recipe.epochs' must be a whole number; got 1.5"),
        (["recipe.weight_decay=0,0.0"], "--over gives weight_decay=0 twice"),
        (["recipe.momentum=0.9,1.5"], r"recipe.momentum must be in \[0, 1\); got 1.5"),
        (["recipe.optimizer=sgd,sdg"], "recipe.optimizer must be one of sgd, adam, adamw; got 'sdg'"),
        (["recipe.privacy.clip=0"], "recipe.privacy.clip must be positive"),
        (["membership_seed=0,1"], "membership_seed is not varied: it changes the memberships"),
        (["dataset=digits,wine"], "dataset is not varied: it changes the memberships"),
        (["num_examples=100,200"], "num_examples is not varied: it changes the memberships"),
        (["membership.design=pairs"], "membership.design is not varied: it changes the memberships"),
        (["num_models=8,16"], "num_models is not varied: settings are compared model by model"),
        (["execution.width=1,2"], "execution.width is not varied: it does not decide what models become"),
    ],
)
def test_bad_fields_and_values_are_one_line(over, message):
    with pytest.raises(ConfigError, match=message) as caught:
        settings_of(Config(), parse_over(over))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            ["recipe.batch_size=32,1000"],
            "setting batch_size=1000: recipe.batch_size is 1000, but a model has only",
        ),
        (["queries.top_k=2,10"], "setting top_k=10: queries.top_k must be below the 10 classes"),
        (
            ["recipe.model=mlp,resnet18", "recipe.dropout=0,0.5"],
            "model=resnet18, dropout=0.5: recipe.dropout is 0.5",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_compiled(over, message):
    config = Config(num_examples=100, recipe=lira.Recipe(batch_size=8))
    dataset = lira.load_dataset("digits", num_examples=100)
    with pytest.raises(ConfigError, match=message):
        plan_grid(None, settings_of(config, parse_over(over)), dataset)
