"""All figures of an unlearning: those of the functions, in the document too, of arrays of any kind."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from array_kinds import SINGLE
from forgetting_worlds import World, ensembles

from lira.forgetting import (
    called_members,
    direction,
    example_epsilons,
    exposure_threshold,
    forgetting_quality,
    klom,
    lira_after,
    measure,
    psi_normalised,
    retrained_values,
    u_lira,
    update_leakage,
)
from lira.membership import keep_mask
from lira.metrics import roc
from lira.reporting.document import unlearning_document
from lira.reporting.unlearning_evaluation import evaluate_unlearning


@pytest.fixture(scope="module")
def exposed():
    """A few examples stay far out; lowering all confidences on the forget set makes its averages look retrained."""
    N, F = 500, 100
    rng = np.random.default_rng(0)
    gap = np.full(N, 0.7)
    gap[rng.permutation(N)[: N // 10]] = 7
    world = World(M=32, N=N, F=F, gap=gap, hardness=1.0)
    low, high, after = -10.0, 0.0, world.before
    for _ in range(20):
        shift = (low + high) / 2
        after = world.before + np.float32(shift) * world.forget[:, None]
        found = psi_normalised(*ensembles(world, after))
        low, high = (low, shift) if found.estimate.value > 0 else (shift, high)
    return world, after, measure(world.before, after, world.retrained, world.keep, world.forget)


def test_lowered_confidence_fools_the_averages_and_not_u_lira(exposed):
    world, _, figures = exposed
    averages = figures.classical["threshold"][0.5]
    normalised = averages.psi_normalised.estimate
    assert normalised.low < 0 < normalised.high
    efficacy = averages.mia_efficacy
    assert efficacy["after"].value == pytest.approx(efficacy["retrained"].value, abs=0.02)
    for fpr in (0.001, 0.01):
        point, chance = figures.u_lira.tpr_at_fpr[fpr], figures.retrained.tpr_at_fpr[fpr]
        assert point.status == "ok"
        assert point.tpr > 10 * fpr
        assert point.low > chance.high
    # The examples it names are those whose gap was large.
    named = [each.example for each in figures.worst[:5]]
    assert (world.gap[named] == 7).all()
    assert world.forget[named].all()


def test_the_figures_are_what_the_functions_say(exposed):
    world, after, figures = exposed
    keep, forget = world.keep, world.forget
    scores, held = u_lira(after, world.retrained, keep, forget)
    curve = roc(scores, held)
    assert figures.u_lira.auc.value == curve.auc
    assert figures.u_lira.tpr_at_fpr[0.01].tpr == curve.tpr_at(0.01).tpr
    own = retrained_values(world.retrained, keep, forget)
    assert figures.retrained == own
    assert figures.lira["before"].auc.value == roc(*lira_after(world.before, keep, forget)).auc
    leak = figures.update_leakage["difference"]
    for name, models in (("after", after), ("retrained", world.retrained)):
        expected = roc(*update_leakage(world.before, models, keep, forget, attack=None)).auc
        assert leak[name].auc.value == expected
    epsilons = example_epsilons(after, world.retrained, keep, forget)
    assert figures.quality == forgetting_quality(epsilons)
    assert figures.infinite == np.isinf(epsilons).mean()
    assert figures.klom_mean == klom(after, world.retrained, keep, forget).mean()
    assert figures.direction == direction(after, world.retrained, keep, forget)
    fpr, threshold = exposure_threshold(curve)
    assert figures.worst_fpr == fpr == 0.001
    worst = figures.worst[0]
    i = np.flatnonzero(np.flatnonzero(forget) == worst.example)[0]
    assert worst.share == np.mean(scores[held[:, i], i] >= threshold)
    assert worst.phi["after"] == pytest.approx(after[held[:, i], worst.example].mean(dtype=float))
    assert [each.share for each in figures.worst] == sorted(
        (each.share for each in figures.worst), reverse=True
    )
    assert np.isnan(figures.score)
    assert figures.accuracy == {}


def test_the_document_holds_the_figures(exposed):
    world, _, figures = exposed
    evaluation = evaluate_unlearning({"lowered": [figures]}, world.keep, costs={"lowered": 0.1})
    document = json.loads(json.dumps(unlearning_document(evaluation), allow_nan=False))
    assert document["methods"]["lowered"]["cost"] == 0.1
    (document,) = document["methods"]["lowered"]["requests"]
    own = figures.retrained
    assert document["verdict"] == figures.verdict
    assert document["u_lira"]["after"]["auc"]["value"] == figures.u_lira.auc.value
    assert document["u_lira"]["after"]["tpr_at_fpr"]["0.01"]["tpr"] == figures.u_lira.tpr_at_fpr[0.01].tpr
    assert document["u_lira"]["retrained"]["auc"]["high"] == own.auc.high
    assert document["u_lira"]["retrained"]["tpr_at_fpr"]["0.01"]["tpr"] == own.tpr_at_fpr[0.01].value
    assert document["epsilon"]["forgetting_quality"]["retrained"]["low"] == own.quality.low
    assert document["epsilon"]["forgetting_quality"]["after"] == figures.quality
    assert document["epsilon"]["infinite"]["after"] == figures.infinite
    assert document["klom"]["mean"]["after"] == figures.klom_mean
    assert document["direction"]["shift"]["value"] == figures.direction.shift.value
    assert document["lira"]["before"]["auc"]["value"] == figures.lira["before"].auc.value
    leak = document["update_leakage"]["difference"]["retrained"]["auc"]["value"]
    assert leak == figures.update_leakage["difference"]["retrained"].auc.value
    averages = document["classical"]["threshold"]["0.5"]
    assert averages["psi_normalised"]["low"] < 0 < averages["psi_normalised"]["high"]
    assert averages["mia_efficacy"]["after"]["value"] == pytest.approx(
        averages["mia_efficacy"]["retrained"]["value"], abs=0.02
    )
    assert document["worst_fpr"] == 0.001
    assert document["worst"][0]["example"] == figures.worst[0].example
    assert (document["epsilon"]["score"], document["accuracy"]) == (None, {})


def test_accuracies_earlier_requests_and_several_queries():
    world = World(M=8, N=120, F=24)
    forget = world.forget
    latest = forget & (np.cumsum(forget) > 12)
    two = [
        np.concatenate([phi, phi + 0.1], axis=2)
        for phi in (world.before, world.draw(world.rest), world.retrained)
    ]
    accuracy = {
        "retain": (np.full(8, 0.9), np.full(8, 1.0)),
        "test": (np.full(8, 0.8), np.full(8, 0.9)),
        "forget": (np.linspace(0, 1, 8), np.full(8, np.nan)),
    }
    own = retrained_values(two[2], world.keep, forget, redraws=3)
    figures = measure(
        two[0],
        two[1],
        two[2],
        world.keep,
        forget,
        previous=two[2],
        latest=latest,
        accuracy=accuracy,
        fprs=(0.25,),
        worst=3,
        reference=own,
    )
    document = unlearning_document(evaluate_unlearning({"a": [figures]}, world.keep))["methods"]["a"]
    json.dumps(document, allow_nan=False)
    assert document["requests"][0]["accuracy"]["forget"]["retrained"]["value"] is None
    assert figures.score == pytest.approx(figures.quality * 0.9 * 0.8 / 0.9)
    assert figures.accuracy["forget"]["after"].value == pytest.approx(0.5)
    assert np.isnan(figures.accuracy["forget"]["retrained"].value)
    assert list(figures.classical) == ["threshold", "logistic"]
    assert list(figures.classical["threshold"]) == [0.25]
    assert len(figures.worst) == 3
    leak = roc(*update_leakage(two[2], two[1], world.keep, latest, attack=None)).auc
    assert figures.update_leakage["difference"]["after"].auc.value == leak
    # 96 non-members: 0.1 % cannot be resolved, 1 % neither.
    assert figures.u_lira.tpr_at_fpr[0.001].status == "unresolvable"
    assert figures.worst_fpr == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": np.ones((8, 40), bool)}, "the rows of keep are not paired"),
        ({"keep": np.ones((8, 40))}, r"keep must be bool \[models, examples\]"),
        ({"forget": np.zeros(40, bool)}, "forget holds no example"),
        ({"forget": np.zeros(39, bool)}, r"forget must be bool of shape \(40,\)"),
        ({"forget": np.array([3])}, "got int64"),
        ({"forget": np.ones(40, bool)}, "model 0 has no retain examples in the half"),
        (
            {"after": np.zeros((8, 40))},
            r"after must be \[8 models, 40 examples, values\] like keep and before",
        ),
        ({"after": np.zeros((8, 40, 2))}, r"got shape \(8, 40, 2\)"),
        (
            {"after": np.full((8, 40, 1), np.nan)},
            r"after\[0, 0, 0\] is nan: leave that model and its mate out",
        ),
        ({"fprs": (0.1, 1.0)}, "fprs are fractions between 0 and 1; got 1"),
        ({"delta": 1.0}, r"delta must be in \[0, 1\); got 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(change, message):
    world = World(M=8, N=40, F=6)
    arguments = {
        "before": world.before,
        "after": world.before,
        "retrained": world.retrained,
        "keep": world.keep,
        "forget": world.forget,
    }
    with pytest.raises(ValueError, match=message) as error:
        measure(**{**arguments, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [*SINGLE, "bytes"])
def test_measures_do_not_depend_on_how_arrays_are_held(kind):
    rng = np.random.default_rng(0)
    keep, forget = keep_mask(0, 8, 60), np.arange(60) % 3 == 0
    before, after, retrained = rng.integers(0, 60, (3, 8, 60, 2)).astype(np.float32)
    hold = SINGLE.get(kind, lambda values: values.astype(np.uint8))
    as_bool = jnp.asarray if kind == "jax" else np.asfortranarray

    def figures(hold, as_bool):
        b, a, r = map(hold, (before, after, retrained))
        k, f = as_bool(keep), as_bool(forget)
        yield update_leakage(b, a, k, f, attack=None)[0]
        yield u_lira(a, r, k, f)[0]
        yield lira_after(a, k, f)[0]
        yield example_epsilons(a, r, k, f)
        yield klom(a, r, k, f)
        yield from called_members(a, k, f, fprs=(0.1,))
        yield [direction(a, r, k, f).auc.value]

    for found, expected in zip(figures(hold, as_bool), figures(np.asarray, np.asarray), strict=True):
        np.testing.assert_array_equal(found, expected)
