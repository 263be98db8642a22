import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.data.dataset import Dataset
from lira.engine import imitate
from lira.engine.calibrate import programs_for
from lira.engine.fill import train
from lira.learning.augment import Queries
from lira.learning.imitation import Imitation, pivots_of
from lira.learning.learner import model_keys
from lira.learning.recipe import Recipe
from lira.membership import imitator_mask
from lira.store.config import Execution
from lira.store.errors import RunError
from lira.store.run import Run

N = 120
RECIPE = Recipe(epochs=12, batch_size=10, learning_rate=0.05, flip=True)


def dataset():
    """Images that say a little of their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(N, dtype=np.int32) % 3
    x = rng.integers(0, 200, (N, 4, 4, 1)) + 20 * y[:, None, None, None]
    return Dataset.from_arrays(x.astype(np.uint8), y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pool that keeps no parameters, trained with mirrored images."""
    place = tmp_path_factory.mktemp("imitate") / "run"
    made = Run.create(
        place,
        dataset(),
        RECIPE,
        num_models=6,
        queries=Queries(mirror=True),
        execution=Execution(width=6, workers=1),
    )
    train(made, dataset(), show_progress=False)
    return made


@pytest.fixture(scope="module")
def teacher(run):
    return imitate.teacher_of(run, dataset(), 3)


def phi_of(logits):
    """Of the labels, by the formula."""
    is_label = np.arange(3) == dataset().y[:, None]
    return logits[is_label] - np.logaddexp.reduce(np.where(is_label, -np.inf, logits), axis=1)


def test_a_target_that_is_trained_again_is_the_same_model(run, teacher):
    """From its number alone; else there would be a warning, which is an error here."""
    np.testing.assert_array_equal(teacher.phi, np.asarray(run.phi)[3])
    np.testing.assert_allclose(phi_of(teacher.logits), teacher.phi[:, 0], rtol=1e-3, atol=1e-3)
    assert teacher.variables is not None, "it is asked about mirrored images"


def test_saved_parameters_and_stored_logits_are_the_target_as_well(tmp_path, run, teacher):
    def alike(name, recipe=RECIPE, **options):
        made = Run.create(
            tmp_path / name,
            dataset(),
            recipe,
            num_models=6,
            queries=Queries(mirror=True),
            execution=Execution(width=6, workers=1),
            **options,
        )
        train(made, dataset(), show_progress=False)
        return imitate.teacher_of(made, dataset(), 3)

    saved = alike("saved", save_params=True)
    np.testing.assert_allclose(saved.logits, teacher.logits, rtol=1e-4, atol=1e-4)
    for a, e in zip(jax.tree.leaves(saved.variables), jax.tree.leaves(teacher.variables), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
    plain = dataclasses.replace(RECIPE, flip=False)
    stored = alike("stored", plain, signals=("logits",))
    assert stored.variables is None
    np.testing.assert_allclose(phi_of(stored.logits), stored.phi[:, 0], rtol=1e-3, atol=1e-3)


def test_until_the_warm_up_ends_an_imitator_is_an_ordinary_model_bit_for_bit(
    tmp_path, run, teacher, monkeypatch
):
    """Of its seed and members: what is handed over to the loss of imitation, against nine epochs by the ordinary program."""
    compiled, states = imitate.compile_imitation, []

    def watched(*arguments):
        train = compiled(*arguments)

        def watch(state, *rest):
            states.append(jax.tree.map(np.array, state))
            return train(state, *rest)

        return watch

    monkeypatch.setattr(imitate, "compile_imitation", watched)
    imitators = imitate.imitate_target(
        tmp_path / "imitators",
        run,
        dataset(),
        teacher,
        Imitation(warmup=0.75),
        imitator_mask(0, 3, 6, N),
        show_progress=False,
    )
    assert len(states) == 3, "one call an epoch"
    state = states[0]
    assert (state.step == 54).all()
    data, config = dataset(), imitators.config
    assert config.recipe == dataclasses.replace(RECIPE, seed=RECIPE.seed + imitate.IMITATOR_SEED)
    programs = programs_for(config, data, 6)
    keys, x, y = model_keys(config.recipe.seed, range(6)), jnp.asarray(data.x), jnp.asarray(data.y)
    keep = jnp.asarray(imitators.memberships(np.arange(6)))
    ordinary = programs.init(keys, x[:1])
    for epoch in range(9):
        ordinary, _ = programs.train(ordinary, keys, epoch, programs.steps, x, y, keep)
    for a, e in zip(jax.tree.leaves(state), jax.tree.leaves(ordinary), strict=True):
        np.testing.assert_array_equal(a, e)


def test_imitators_come_closer_to_the_target_and_a_killed_run_gives_the_same(tmp_path, run, teacher):
    """Closer than ordinary models of their own seeds and members; after it, the models that are missing again."""
    arguments = (run, dataset(), teacher, Imitation(), imitator_mask(2, 3, 6, N))
    made = imitate.imitate_target(tmp_path / "made", *arguments, show_progress=False)
    keep = made.keep
    others = Run.from_config(tmp_path / "others", dataset(), made.config, keep=keep)
    train(others, dataset(), show_progress=False)
    away = [
        [
            np.square((theirs - teacher.phi)[~held]).mean()
            for theirs, held in zip(np.asarray(each.phi), keep, strict=True)
        ]
        for each in (made, others)
    ]
    assert (np.array(away[0]) < np.array(away[1])).all(), ("each than its own twin", away)
    rows, before = [1, 4], np.asarray(made.phi)
    made.arrays.open("done")[rows].write(0).result()
    made.arrays.open("phi")[rows].write(np.nan).result()
    again = imitate.imitate_target(tmp_path / "made", *arguments, show_progress=False)
    np.testing.assert_allclose(np.asarray(again.phi), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(RunError, match="is a run of other memberships"):
        imitate.imitate_target(
            tmp_path / "made", *arguments[:-1], imitator_mask(3, 3, 6, N), show_progress=False
        )


def test_what_is_trained_further_sees_pivots_alone(tmp_path, run, teacher):
    """Images of members that are no pivots are changed: they matter to the warm-up, and to nothing after it."""
    keep = imitator_mask(2, 3, 6, N)
    others = keep[0] & ~pivots_of(teacher.phi[:, 0], dataset().y)
    changed = dataset().x.copy()
    changed[others] = 255 - changed[others]
    changed = Dataset.from_arrays(changed, dataset().y)

    def phi(name, data, warmup):
        made = imitate.imitate_target(
            tmp_path / name, run, data, teacher, Imitation("pivots", warmup), keep, show_progress=False
        )
        return np.asarray(made.phi)[0, ~others]

    np.testing.assert_array_equal(phi("one", dataset(), 0.0), phi("two", changed, 0.0))
    assert (phi("three", dataset(), 0.25) != phi("four", changed, 0.25)).any()


def test_anyones_logits_that_cannot_be_imitated_are_refused(tmp_path, run):
    plain = Run.create(tmp_path / "run", dataset(), dataclasses.replace(RECIPE, flip=False), num_models=4)
    logits = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    teacher = imitate.outside_teacher(plain, dataset(), logits)
    assert (teacher.logits.shape, teacher.phi.shape) == ((N, 3), (N, 1))
    for bad, message in (
        (
            np.asarray(jnp.asarray(logits, jnp.bfloat16)),
            "logits must be float32 or float64; got bfloat16: half precision",
        ),
        (logits.astype(np.float16), "got float16"),
        (logits.T, r"\[120, 1, 3\] for .*; got shape \[3, 120\]"),
        (np.stack([logits] * 2, axis=1), r"got shape \[120, 2, 3\]"),
        (np.where(logits > 1, np.nan, logits), "logits are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            imitate.outside_teacher(plain, dataset(), bad)
    with pytest.raises(ValueError, match=r"its recipe augments images.*recipe.flip = false"):
        imitate.outside_teacher(run, dataset(), logits)
