import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.data.dataset import Dataset
from lira.engine import calibrate
from lira.engine import programs as engine_programs
from lira.engine import sweep as engine_sweep
from lira.engine.calibrate import programs_for
from lira.engine.fill import train
from lira.learning.augment import Queries
from lira.learning.evaluation import query
from lira.learning.learner import Learner, model_keys
from lira.learning.models import build_model
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.learning.training import variable_shapes
from lira.store.config import Config, Execution
from lira.store.run import Run

RECIPE = Recipe(epochs=2, batch_size=10)
# So many steps that no choice of a width is too dear.
LONG = Recipe(epochs=10_000_000, batch_size=10)
AUTO = Execution(workers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/calibration"


def dataset():
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(rng.normal(size=(80, 6)), np.arange(80) % 2)


def images():
    x = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
    return Dataset.from_arrays(x, np.arange(96) % 3)


def speeds(monkeypatch, by_width):
    """Pretend that a stack of each width trains so many images a second; return the widths that were measured."""
    measured = []

    def seconds(programs, data, share):
        measured.append(programs.width)
        # In steps of milliseconds: long ones would end the search.
        return RECIPE.batch_size * programs.width / by_width[programs.width] / 1e6

    monkeypatch.setattr(calibrate, "seconds_per_step", seconds)
    return measured


@pytest.mark.parametrize(
    ("by_width", "measured", "chosen"),
    [
        ({1: 100, 4: 300, 16: 310, 64: 200}, [1, 4, 16, 64], 16),
        ({1: 100, 4: 90}, [1, 4], 1),
        ({1: 100, 4: 101}, [1, 4], 4),
        ({1: 1, 4: 4, 16: 16, 64: 64}, [1, 4, 16, 64], 64),
    ],
)
def test_fastest_width_is_kept_and_growth_stops_when_it_no_longer_pays(
    monkeypatch, by_width, measured, chosen
):
    tried = speeds(monkeypatch, by_width)
    programs = programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 64)
    assert tried == measured
    assert programs.width == chosen
    assert f"patches {chosen}: {by_width[chosen]:,}" in programs.why


def test_choice_is_made_once_for_a_device_model_and_batch_size(monkeypatch, cache):
    tried = speeds(monkeypatch, {1: 1, 4: 4, 16: 2})
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16).width == 4
    again = programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16)
    assert again.width == 4
    assert again.why.startswith("measured before: ")
    assert tried == [1, 4, 16]
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 2).width == 2, (
        "never wider than there are models"
    )
    programs_for(Config(recipe=dataclasses.replace(LONG, batch_size=20), execution=AUTO), dataset(), 16)
    assert tried == [1, 4, 16, 1, 4, 16], "another batch size is another question"
    for place in cache.iterdir():
        place.write_text("{")
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16).width == 4
    assert len(tried) == 9, "a damaged choice is measured again"
    assert all(json.loads(p.read_text())["width"] == 4 for p in cache.iterdir() if len(p.read_text()) > 1)


def test_choice_for_few_models_does_not_hold_for_many(monkeypatch, cache):
    tried = speeds(monkeypatch, {1: 1, 4: 4, 16: 2})
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 1).width == 1
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16).width == 4
    assert tried == [1, 1, 4, 16]
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 1).width == 1
    assert len(tried) == 4, "but that for many does for few"


def test_search_ends_when_all_is_trained_sooner_than_another_candidate_is_compiled(monkeypatch, cache):
    tried = speeds(monkeypatch, {1: 1, 4: 4, 16: 16})
    programs = programs_for(Config(recipe=RECIPE, execution=AUTO), dataset(), 16)
    assert (programs.width, tried) == (1, [1])
    assert "no other, as all is trained sooner" in programs.why
    assert programs_for(Config(recipe=RECIPE, execution=AUTO), dataset(), 16).width == 1
    assert tried == [1], "the choice is kept for trainings that are no longer"
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16).width == 16
    assert tried == [1, 1, 4, 16], "and not for longer ones"
    assert programs_for(Config(recipe=RECIPE, execution=AUTO), dataset(), 16).width == 16
    assert len(tried) == 4, "what holds for a long one does for short ones"


@pytest.mark.parametrize(("share", "widths"), [(256, [256, 64, 16, 4, 1]), (100, [128, 32, 8, 2]), (1, [1])])
def test_widths_start_with_the_widest_on_accelerators_where_nothing_convolves(share, widths):
    learner = dataclasses.replace(Learner.of(RECIPE, dataset()), platform="gpu")
    assert calibrate._candidates(learner, dataset(), AUTO, share) == [("patches", widths)]


def test_from_the_widest_on_a_width_that_does_not_fit_is_passed_over(monkeypatch):
    tried = speeds(monkeypatch, {4: 4, 1: 1})
    monkeypatch.setattr(calibrate, "_candidates", lambda *_: [("patches", [16, 4, 1])])
    fitting = calibrate._fitting
    monkeypatch.setattr(
        calibrate, "_fitting", lambda make, *what: None if what[1] == 16 else fitting(make, *what)
    )
    programs = programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 16)
    assert (programs.width, tried) == (4, [4, 1])


def test_what_costs_no_step_anything_is_no_question_and_everything_else_is(monkeypatch, cache):
    speeds(monkeypatch, {1: 1})
    programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 1)
    for field in dataclasses.fields(Recipe):
        if field.name == "model":
            continue
        other = {int: 3, float: 0.5, bool: True, "privacy": Privacy(noise=1.0)}
        other = other.get(field.type) or other.get(field.name) or get_args(field.type)[-1]
        changed = dataclasses.replace(RECIPE, **{field.name: other})
        known = calibrate._cache_file(Learner.of(changed, dataset()), dataset(), AUTO).exists()
        assert known == (field.name in calibrate.COSTLESS), field.name


def test_pinned_width_and_lowering_are_not_measured(monkeypatch):
    tried = speeds(monkeypatch, {})
    programs = programs_for(
        Config(recipe=RECIPE, execution=Execution(width=3, lowering="xla", workers=1)), dataset(), 64
    )
    assert (programs.width, programs.lowering, programs.why, tried) == (3, "xla", "pinned", [])


@pytest.mark.parametrize(
    ("platform", "precision", "execution", "share", "expected"),
    [
        ("cpu", "float32", AUTO, 5, [(name, [1, 4]) for name in ("mixed", "winograd", "patches")]),
        ("cpu", "bfloat16", AUTO, 16, [(name, [1, 4, 16]) for name in ("patches", "xla")]),
        ("cpu", "bfloat16", Execution(width=3), 16, [("patches", [3]), ("xla", [3])]),
        ("gpu", "float32", AUTO, 256, [("xla", [1]), ("per_model", [4])]),
        ("gpu", "float32", AUTO, 2, [("xla", [1]), ("per_model", [2])]),
        ("gpu", "float32", AUTO, 1, [("xla", [1])]),
        ("gpu", "bfloat16", Execution(width=1), 256, [("xla", [1])]),
        ("gpu", "bfloat16", Execution(width=8), 256, [("per_model", [8])]),
        ("gpu", "bfloat16", Execution(lowering="patches"), 4, [("patches", [1, 4])]),
    ],
)
def test_candidates_of_a_network_that_convolves(platform, precision, execution, share, expected):
    """On CPU Winograd in float32, and XLA's own in bfloat16; on a GPU, where each costs half a minute, one model or a few of them."""
    recipe = Recipe(model="cnn", batch_size=8, precision=precision)
    learner = dataclasses.replace(Learner.of(recipe, images()), platform=platform)
    assert calibrate._candidates(learner, images(), execution, share) == expected


@pytest.mark.parametrize(
    ("epochs", "steps", "at_once"),
    [(60, 14, 6), (60, 11, 10), (100, 97, 1), (7, 10, 7), (7, 40, 1), (1, 500, 1)],
)
def test_short_epochs_are_trained_several_at_a_time(epochs, steps, at_once):
    assert engine_programs.epochs_at_once(Recipe(epochs=epochs), steps) == at_once


@pytest.mark.parametrize(
    ("ends", "at_once"), [([12, 24, 36, 48], 6), ([15, 30, 45], 5), ([30], 6), ([20, 40], 5), ([1], 1)]
)
def test_calls_of_several_epochs_end_where_models_are_asked(ends, at_once):
    """Of 60 epochs of 14 steps, whose calls are of six without."""
    assert engine_programs.epochs_at_once(Recipe(epochs=60), 14, ends) == at_once


def test_whole_epochs_as_a_program_train_as_steps_do():
    """Two epochs of four steps, as on an accelerator in one call and timed in such calls, or one call an epoch."""
    data = dataset()
    x, y, keep = jnp.asarray(data.x), jnp.asarray(data.y), jnp.asarray(np.arange(80) % 3 > 0)[None]
    recipe = Recipe(epochs=2, batch_size=10)

    def trained(platform):
        learner = dataclasses.replace(Learner.of(recipe, data), platform=platform)
        programs = engine_programs._build(learner, Queries(), data, "patches", 1, ())
        state = programs.init(model_keys(0, range(1)), x[:1])
        state, taken = engine_programs.train_steps(programs, state, model_keys(0, range(1)), 0, 5, x, y, keep)
        assert calibrate.seconds_per_step(programs, data) > 0
        return programs, taken, state

    programs, taken, state = trained("cpu")
    assert (programs.epochs, programs.steps, taken, int(state.step[0])) == (1, 4, 5, 5)
    state, _ = programs.train(
        programs.init(model_keys(0, range(1)), x[:1]), model_keys(0, range(1)), 0, 4, x, y, keep
    )
    state, losses = programs.train(state, model_keys(0, range(1)), 1, 4, x, y, keep)
    assert losses.shape == (1, 1)
    programs, taken, at_once = trained("gpu")
    assert (programs.epochs, programs.steps, taken, int(at_once.step[0])) == (2, 8, 8, 8)
    for a, e in zip(jax.tree.leaves(at_once.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_width_is_bounded_by_memory(monkeypatch):
    speeds(monkeypatch, {1: 1, 4: 4, 16: 16, 64: 64})
    learner = Learner.of(RECIPE, dataset())
    used = engine_programs.compile_programs(learner, Queries(), dataset(), 1, "patches", 4).memory
    assert used
    monkeypatch.setattr(calibrate, "device_memory", lambda: 2 * used)
    programs = programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 64)
    assert programs.width == 4
    assert "patches 16 does not fit" in programs.why
    programs = programs_for(Config(recipe=RECIPE, execution=Execution(workers=5, width=4)), dataset(), 64)
    assert (programs.workers, programs.models) == (1, 4), "fewer workers before none at all"
    monkeypatch.setattr(calibrate, "device_memory", lambda: 1.0)
    with pytest.raises(ValueError, match="not even one mlp at batch size 20 fits on the device"):
        programs_for(Config(recipe=Recipe(epochs=2, batch_size=20), execution=AUTO), dataset(), 64)


def test_compiler_out_of_memory_is_a_width_that_does_not_fit(monkeypatch):
    speeds(monkeypatch, {1: 1, 4: 4})
    engine_programs._of_a_kind.cache_clear()
    build = engine_programs._build

    def exhausted(*arguments):
        *_, width, _signals, _ends = arguments
        if width > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return build(*arguments)

    monkeypatch.setattr(engine_programs, "_build", exhausted)
    assert programs_for(Config(recipe=LONG, execution=AUTO), dataset(), 64).width == 4


def test_kinds_of_stacks_that_take_turns_are_compiled_once_each(monkeypatch, request):
    nothing: Any = None
    built, blank = [], engine_programs.Programs(*[nothing] * len(engine_programs.Programs._fields))
    monkeypatch.setattr(engine_programs, "_build", lambda *kind: built.append(kind) or blank)
    engine_programs._of_a_kind.cache_clear()
    request.addfinalizer(engine_programs._of_a_kind.cache_clear)
    learner, other = Learner.of(LONG, dataset()), Learner.of(Recipe(epochs=2, batch_size=10), dataset())
    for each, width in ((learner, 1), (learner, 4), (other, 4)) * 2:
        engine_programs.compile_programs(each, Queries(), dataset(), 1, "patches", width)
    assert [(each, width) for each, *_, width, _signals, _ends in built] == [
        (learner, 1),
        (learner, 4),
        (other, 4),
    ]


def test_number_of_compilations_does_not_grow_with_stacks_or_epochs(tmp_path):
    """Initialisation, epoch and sweep are compiled once for a run, a short last stack included."""

    def compiled(models, epochs, name):
        engine_programs._of_a_kind.cache_clear()
        events = []

        def listen(event, duration_secs, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                events.append(event)

        recipe = Recipe(epochs=epochs, batch_size=10)
        run = Run.create(tmp_path / name, dataset(), recipe, num_models=models, execution=Execution(width=4))
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            train(run, dataset(), show_progress=False)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        assert (run.done == 1).all()
        return len(events)

    compiled(8, 1, "warm-up")  # small programs, such as slices, that any later run finds compiled
    once = compiled(8, 2, "two")
    assert once <= 4
    assert compiled(14, 3, "four") == once


def test_steps_of_training_and_queries_are_named_for_profiles():
    recipe, data = Recipe(model="mlp", epochs=1, batch_size=16, ema=0.9, flip=True), images()
    programs = engine_programs._build(Learner.of(recipe, data), Queries(), data, "patches", 2, ())
    train: Any = programs.train
    training = train.as_text()
    for scope in ("augment", "forward", "loss", "optimizer", "averages"):
        assert re.search(rf'op_name="[^"]*\b{scope}\b', training), scope
    module, variables = (
        build_model("mlp", 3),
        {"params": variable_shapes(Learner.of(recipe, data), data.x)["params"]},
    )
    ask = jax.jit(partial(query, module, Queries(), ()))
    assert "query" in ask.lower(variables, data.x, data.y).as_text(debug_info=True)


def test_jax_is_asked_for_its_platform_in_one_place_of_training():
    root = Path(calibrate.__file__).parents[1]
    asking = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if "default_backend" in path.read_text()
    }
    assert asking == {"learning/learner.py", "bench/machine.py"}


def test_sweeps_ask_about_as_many_examples_as_fit_off_the_cpu(monkeypatch):
    recipe = Recipe(model="cnn-small", epochs=1, batch_size=16)
    asked = []
    blocks = engine_sweep.batches_of
    monkeypatch.setattr(engine_sweep, "batches_of", lambda n, batch: asked.append(batch) or blocks(n, batch))

    def sweep(platform):
        learner = dataclasses.replace(Learner.of(recipe, images()), platform=platform)
        programs = engine_programs._build(learner, Queries(mirror=True), images(), "patches", 2, ())
        x, y = jnp.asarray(images().x), jnp.asarray(images().y)
        keys, keep = model_keys(0, range(2)), jnp.ones((2, len(y)), bool)
        variables = programs.evaluate(programs.init(keys, x[:1]), keys, x, keep)
        return programs.sweep(variables, x, y)

    small, _ = sweep("cpu")
    assert asked == [8], "a training batch of queries, two an example"
    large, _ = sweep("gpu")
    assert 8 < asked[-1] <= 96
    np.testing.assert_allclose(large["phi"], small["phi"], rtol=1e-4, atol=1e-4)
