"""The verdict's sentences say what a count by hand says, and nothing that was not seen."""

import dataclasses
import json
import re
from functools import cache

import numpy as np
import pytest

from lira.engine.trained import Check
from lira.membership import keep_mask
from lira.metrics import UndefinedMetricWarning
from lira.reporting.document import metrics_document
from lira.reporting.measured import Subject, headline_attack, measure
from lira.reporting.page import threat_model
from lira.reporting.verdict import as_verdict, verdict

PAPER = Subject("tfds:cifar10", "wrn-28-2", 50_000, 256, False, 18, "pairs", 0.999, 0.915, 0.92)


@cache
def evaluation(num_models=64, num_examples=400, gap=2.0, seed=0):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, num_models, num_examples)
    names = ("lira_online", "lira_online_fixed", "global_threshold")
    scores = {name: rng.normal(size=keep.shape) + gap * (i + 1) / 3 * keep for i, name in enumerate(names)}
    return scores, keep, measure(scores, keep)


def with_tpr(tpr, low, high, subject=PAPER):
    """An evaluation whose headline attack has that TPR at 0.1 % FPR."""
    _, _, found = evaluation()
    attack = found.attacks["lira_online"]
    point = dataclasses.replace(attack.tpr_at[1e-3], tpr=tpr, low=low, high=high)
    attack = dataclasses.replace(attack, tpr_at={**attack.tpr_at, 1e-3: point})
    return dataclasses.replace(found, attacks={"lira_online": attack}, subject=subject)


def test_members_are_counted_as_by_hand():
    scores, keep, found = evaluation()
    values = scores["lira_online"]
    others = np.sort(values[~keep])[::-1]
    named = np.mean(values[keep] > others[int(0.001 * len(others))])  # as many false alarms as are allowed
    said = verdict(found)
    assert (said.attack, said.fpr, said.tpr) == ("lira_online", 1e-3, named)
    assert f"Of 1,000 members lira_online names {1000 * named:.0f}, at 1 false alarm in 1,000" in said.finding
    assert "guessing names 1." in said.finding
    low, high = re.findall(r"interval is ([\d.]+) to ([\d.]+);", said.certainty)[0]
    assert float(low) <= 1000 * named <= float(high)
    # The strongest of the three is the last, whose members stand out most.
    assert (said.strongest, said.num_attacks) == ("global_threshold", 3)
    assert "The strongest of 3 attacks, picked after all results were seen, is global_threshold" in said.best


@pytest.mark.parametrize(
    ("figures", "level", "words"),
    [
        ((0.0012, 0.0004, 0.002), "guessing", "no more than guessing"),
        ((0.0020, 0.0012, 0.003), "less than published", "less than any of them"),
        ((0.0720, 0.0700, 0.074), "as published", "among them"),
        ((0.2900, 0.2800, 0.300), "more than published", "more than any of them"),
        ((0.0720, np.nan, np.nan), "as published", "cannot be said"),
    ],
)
def test_whether_it_is_much(figures, level, words):
    said = verdict(with_tpr(*figures))
    assert said.level == level
    assert words in f"{said.certainty} {said.comparison}"
    if level != "guessing":
        assert (
            "Published runs of this attack name 6.8 (resnet18 on cifar10, 16 models) to 276"
            in said.comparison
        )


def test_an_attack_that_names_no_one_may_tell_something_all_the_same():
    found = with_tpr(0.0012, 0.0004, 0.002)
    auc = found.attacks["lira_online"].auc
    assert auc.low > 0.5
    said = verdict(found).comparison
    assert f"picks the member {100 * auc.value:.1f} times in 100 ({100 * auc.low:.1f} to" in said
    for low in (0.499, np.nan):
        attack = dataclasses.replace(found.attacks["lira_online"], auc=dataclasses.replace(auc, low=low))
        unsure = verdict(dataclasses.replace(found, attacks={"lira_online": attack}))
        assert unsure.comparison == "That is no more than guessing may give."


def test_the_same_published_run_is_named():
    found = dataclasses.replace(with_tpr(0.072, 0.07, 0.074), num_models=256)
    assert (
        "Published of the same data, model and number of models: 84 (Carlini et al. 2022)."
        in verdict(found).comparison
    )
    other = dataclasses.replace(found, subject=dataclasses.replace(PAPER, design="independent"))
    assert "of the same data" not in verdict(other).comparison


def test_accuracies_stand_in_the_first_sentence_in_percent():
    outside = dataclasses.replace(PAPER, outside=True)
    assert verdict(with_tpr(0.07, 0.06, 0.08, outside)).subject == (
        "64 wrn-28-2 models trained on cifar10, 50,000 examples, attacked with 256 others; a model gets 99.9 % of its "
        "members (what it was trained on), 91.5 % of the other examples and 92.0 % of held-out ones right."
    )
    _, _, found = evaluation()
    arrays = dataclasses.replace(found, subject=Subject("memory", "mlp", 400))
    own = dataclasses.replace(found, subject=Subject("memory", "__main__.Net", 400))
    for each, model in ((found, ""), (arrays, "mlp "), (own, "Net ")):
        assert (
            verdict(each).subject
            == f"64 {model}models trained on half of 400 examples each; accuracy not known."
        )


def test_every_doubt_is_named_and_a_failure_comes_first():
    _, _, found = evaluation()
    checks = (Check("a", "ok", "fine"), Check("b", "warn", "thin"), Check("c", "fail", "wrong sign"))
    said = verdict(dataclasses.replace(found, checks=checks, warnings=("slow", "slow", "odd")))
    assert said.failed == ("c: wrong sign",)
    assert said.warnings == ("b: thin", "slow", "odd")
    assert said.sentences[0] == "Do not rely on these figures: c: wrong sign."
    assert verdict(found).failed == verdict(found).warnings == ()


def test_few_nonmembers_are_said_to_be_few():
    said = verdict(evaluation(num_models=8, num_examples=400)[2])  # 1,600 non-members: one false alarm
    assert "Only 1 false alarm is behind that rate, which is some 0.12 % in truth." in said.certainty
    said = verdict(evaluation(num_models=4, num_examples=100)[2])  # 200: 1 % can be resolved
    assert said.fpr == 1e-2
    assert "at 10 false alarms in 1,000 non-members; guessing names 10." in said.finding
    scores, keep, found = evaluation(num_models=4, num_examples=20)
    said = verdict(found)
    assert (said.fpr, said.tpr) == (None, None)
    values = scores["lira_online_fixed"]
    pairs = (values[keep][:, None] > values[~keep]).mean()
    assert f"picks the member {100 * pairs:.0f} times in 100; guessing 50." in said.finding
    assert "2 complementary pairs of models are too few to resample" in said.certainty


def test_one_class_is_no_verdict():
    with pytest.warns(UndefinedMetricWarning):
        found = measure({"a": np.zeros((2, 9))}, np.ones((2, 9), bool))
    said = verdict(found)
    assert said.level == ""
    assert said.finding.startswith("Nothing can be measured")


def test_the_headline_is_declared_by_size_and_design():
    names = [
        "attack_r",
        "global_threshold",
        "lira_offline",
        "lira_offline_fixed",
        "lira_online",
        "lira_online_fixed",
    ]
    assert headline_attack(names, 64) == "lira_online"
    assert headline_attack(names, 63) == "lira_online_fixed"
    assert headline_attack(names[:4], 64) == "lira_offline"
    assert headline_attack(names[:4], 63) == "lira_offline_fixed"
    assert headline_attack(names[:2], 256) == "global_threshold"
    assert headline_attack(["mine"], 256) == "mine"
    # Of a single target the pool is what counts.
    scores, keep, _ = evaluation()
    one = {name: values[:1] for name, values in scores.items()}
    assert measure(one, keep[:1], num_shadows=64).headline == "lira_online"
    assert measure(one, keep[:1], num_shadows=10).headline == "lira_online_fixed"
    assert measure(one, keep[:1], headline="global_threshold").headline == "global_threshold"
    with pytest.raises(
        ValueError, match="headline attack 'rmia_online' is not among those that were run: lira_online"
    ):
        measure(one, keep[:1], headline="rmia_online")


def test_a_single_target_is_not_spoken_of_as_many():
    scores, keep, _ = evaluation()
    found = measure({name: values[:1] for name, values in scores.items()}, keep[:1], num_shadows=64)
    found = dataclasses.replace(
        found, subject=Subject(num_models=64, num_examples=400, queries=3, outside=True)
    )
    assert (
        verdict(found).subject
        == f"1 model trained on {keep[0].sum()} of 400 examples, attacked with 64 others; accuracy not known."
    )
    threat = threat_model(found)
    assert "64 models of its own, for 1 attacked model." in threat
    assert "2 shifted or mirrored copies" in threat


def test_it_comes_back_from_metrics_json():
    checks = (Check("b", "warn", "thin"), Check("c", "fail", "wrong sign"))
    for found in (evaluation()[2], dataclasses.replace(with_tpr(0.07, 0.06, 0.08), checks=checks)):
        document = json.loads(json.dumps(metrics_document(found), allow_nan=False))
        assert as_verdict(document) == verdict(found)
