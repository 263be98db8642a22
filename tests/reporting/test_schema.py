"""The schema of metrics.json that the package ships, against documents of every kind."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError
from metrics_schema import SCHEMA

from lira.attacks import suite
from lira.engine.trained import Check
from lira.learning.accounting import guarantee
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.metrics import UndefinedMetricWarning
from lira.reporting.document import metrics_document
from lira.reporting.measured import Subject, calibrate, measure

VALIDATOR = Draft202012Validator(SCHEMA)


def documents():
    """By kind: many models with p-values, a single target, too few for anything, one class, infinite scores."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 20, 200)
    phi = (rng.normal(size=(20, 200, 1)) + 2 * keep[..., None]).astype(np.float32)
    pool = suite.Pool({"phi": phi}, keep, independent=True)
    scores = {name: phi[..., 0] for name in ("lira_online", "global_threshold")}
    calibrated, _ = calibrate(suite.pool_p_values(pool), keep)
    recipe = Recipe(batch_size=20, epochs=1, privacy=Privacy(epsilon=np.inf))
    proven = guarantee(recipe, 200)
    full = measure(scores, keep, list(range(20)), independent=True, calibrated=calibrated, proven=proven)
    yield dataclasses.replace(
        full,
        pool=list(range(20)),
        subject=Subject("digits", "mlp", 200, 20, False, 1, "pairs", 1.0, 0.9),
        checks=(Check("a", "ok", "fine"), Check("b", "warn", "thin"), Check("c", "fail", "wrong")),
        warnings=("slow",),
        selected=("lira_online", "global_threshold"),
    )
    yield measure({"a": scores["lira_online"][:1]}, keep[:1])
    yield measure({"a": scores["lira_online"][:4, :20]}, keep[:4, :20])
    yield measure({"a": np.where(keep, np.inf, -np.inf)}, keep)
    with pytest.warns(UndefinedMetricWarning):
        yield measure({"a": rng.normal(size=(4, 9))}, np.ones((4, 9), bool))


def test_the_schema_holds_of_every_kind_of_report():
    Draft202012Validator.check_schema(SCHEMA)
    for evaluation in documents():
        VALIDATOR.validate(json.loads(json.dumps(metrics_document(evaluation), allow_nan=False)))


def test_it_refuses_what_no_report_says():
    document = json.loads(json.dumps(metrics_document(next(documents()))))

    def changes(node, *way):
        """Every object of the document without one of its keys, and with one more."""
        if isinstance(node, dict):
            yield (*way, None)
            for key, value in node.items():
                yield (*way, key)
                yield from changes(value, *way, key)

    free = {"attacks", "calibrated", "ppv"}  # whose keys are names
    tried = 0
    for *way, key in list(changes(document))[::4]:
        if free & set(way[-1:]) or (key in ("models", "pool") and not way):
            continue
        broken = copy.deepcopy(document)
        node = broken
        for each in way:
            node = node[each]
        if key is None:
            node["surprise"] = 1
        else:
            del node[key]
        with pytest.raises(ValidationError):
            VALIDATOR.validate(broken)
        tried += 1
    assert tried > 60
    broken = copy.deepcopy(document)
    broken["attacks"]["lira_online"]["auc"] = 61.5  # percent in the place of a fraction
    with pytest.raises(ValidationError):
        VALIDATOR.validate(broken)
