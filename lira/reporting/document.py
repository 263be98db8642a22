"""Figures as JSON, which knows neither NaN nor infinity: null in their place. Rates are fractions."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lira.forgetting.measure import ClassicalFigures, CurveFigures, ExposedExample, MethodFigures
from lira.metrics import Estimate, LearningPoint, OperatingPoint, enough_models
from lira.reporting.evaluate import AttackFigures, Evaluation
from lira.reporting.implied import CONFIDENCE, DELTA, Leakage
from lira.reporting.unlearning_evaluation import UnlearningEvaluation

__all__ = ["as_json", "learning_document", "metrics_document", "unlearning_document"]


def as_json(document: Mapping[str, Any]) -> bytes:
    """The content of a JSON file.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(document, indent=2, allow_nan=False).encode()


def metrics_document(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json."""
    document = {
        "description": "pooled over targets, except under mean_over_targets; rates are fractions",
        "interval": evaluation.interval,
        "num_models": evaluation.num_models,
        "num_examples": evaluation.num_examples,
        "num_members": evaluation.num_members,
        "num_nonmembers": evaluation.num_nonmembers,
        "attacks": {name: _attack(each) for name, each in evaluation.attacks.items()},
        "strongest": None,
    }
    if evaluation.strongest is not None:
        name, implied = evaluation.strongest
        document["strongest"] = {"attack": name, **_implied(implied)}
    if evaluation.models is not None:
        document["models"] = evaluation.models
    return document


def learning_document(rule: str, curves: Mapping[str, Sequence[LearningPoint]], fpr: float) -> dict[str, Any]:
    """The content of enough.json: by attack how many models are enough by `rule`, and the points of its curve."""
    return {
        "rule": rule,
        "fpr": fpr,
        "attacks": {
            name: {"enough": enough_models(points), "points": [_learning_point(each) for each in points]}
            for name, points in curves.items()
        },
    }


def unlearning_document(evaluation: UnlearningEvaluation) -> dict[str, Any]:
    """The content of an unlearning's metrics.json."""
    return {
        "description": "of everything forgotten up to each request; rates are fractions; higher attack = less forgotten",
        "interval": evaluation.interval,
        "num_models": evaluation.num_models,
        "num_examples": evaluation.num_examples,
        "num_requests": evaluation.num_requests,
        "methods": {
            name: {"cost": evaluation.costs.get(name), "requests": [_method(each) for each in requests]}
            for name, requests in evaluation.methods.items()
        },
    }


# --- Parts of the documents -----------------------------------------------------------------------------------------


def _learning_point(point: LearningPoint) -> dict[str, Any]:
    return {
        "num_models": int(point.num_models),
        "num_subpools": int(point.num_subpools),
        "tpr_at_fpr": _point(point.tpr),
        **_estimate("auc", point.auc),
        **_estimate("shortfall", point.shortfall.tpr),
    }


def _attack(figures: AttackFigures) -> dict[str, Any]:
    return {
        **_estimate("auc", figures.auc),
        **_estimate("balanced_accuracy", figures.balanced_accuracy),
        "tpr_at_fpr": {f"{fpr:g}": _point(point) for fpr, point in figures.tpr_at.items()},
        "mean_over_targets": {
            **_estimate("auc", figures.mean_auc),
            "tpr_at_fpr": {
                f"{fpr:g}": {
                    **_estimate("tpr", each.tpr, ""),
                    "status": each.status,
                    "floor": _number(each.floor),
                }
                for fpr, each in figures.mean_tpr_at.items()
            },
        },
    }


def _implied(implied: Leakage) -> dict[str, Any]:
    fixed, between = implied.fixed, implied.stability
    return {
        "fpr": implied.fpr,
        "youden_j": {
            **_estimate("j", implied.youden.j, ""),
            "optimistic": _number(implied.youden.optimistic),
        },
        "information_at_least": _estimate("bits", implied.information, ""),
        "bayes_error_at_most": _estimate("error", implied.bayes_error, ""),
        "mutual_information": _estimate("bits", implied.mutual_information, ""),
        "ppv": {f"{prior:g}": _number(value) for prior, value in implied.ppv.items()},
        "fixed_threshold": fixed
        and {
            **_estimate("fpr", fixed.mean_fpr),
            **_estimate("tpr", fixed.mean_tpr),
            "largest_fpr": float(np.max(fixed.target_fpr)),
        },
        "stability": between
        and {**_estimate("pearson", between.pearson), **_estimate("spearman", between.spearman)},
        "epsilon": None
        if implied.epsilon is None
        else {"delta": DELTA, "method": "one_run", "confidence": CONFIDENCE, "at_least": implied.epsilon},
    }


def _method(figures: MethodFigures) -> dict[str, Any]:
    own = figures.retrained
    return {
        "verdict": figures.verdict,
        "num_models": figures.num_models,
        "num_forgotten": figures.num_forgotten,
        "attack": figures.attack,
        "u_lira": {
            "after": _curve(figures.u_lira),
            "retrained": {
                "auc": _figure(own.auc),
                "tpr_at_fpr": {f"{fpr:g}": _estimate("tpr", tpr, "") for fpr, tpr in own.tpr_at_fpr.items()},
            },
        },
        "lira": _each(_curve, figures.lira),
        "classical": {
            name: {f"{fpr:g}": _classical(each) for fpr, each in by_fpr.items()}
            for name, by_fpr in figures.classical.items()
        },
        "epsilon": {
            "delta": figures.delta,
            "largest_finite": figures.largest_epsilon,
            "infinite": {"after": figures.infinite, "retrained": _figure(own.infinite)},
            "forgetting_quality": {"after": figures.quality, "retrained": _figure(own.quality)},
            "score": _number(figures.score),
        },
        "klom": {
            "mean": {"after": figures.klom_mean, "retrained": _figure(own.klom_mean)},
            "percentile_95": {"after": figures.klom_95, "retrained": _figure(own.klom_95)},
        },
        "update_leakage": {kind: _each(_curve, each) for kind, each in figures.update_leakage.items()},
        "direction": {
            "shift": _figure(figures.direction.shift),
            "auc": _figure(figures.direction.auc),
            "over_forgotten": figures.direction.over_forgotten,
        },
        "accuracy": {group: _each(_figure, each) for group, each in figures.accuracy.items()},
        "worst_fpr": figures.worst_fpr,
        "worst": [_exposed(each) for each in figures.worst],
    }


def _classical(figures: ClassicalFigures) -> dict[str, Any]:
    normalised = figures.psi_normalised
    return {
        "mia_efficacy": _each(_figure, figures.mia_efficacy),
        "psi": _each(_figure, figures.psi),
        "psi_normalised": {
            **_figure(normalised.estimate),
            "status": "ok" if normalised.is_defined else "undefined",
            "denominator": _figure(normalised.denominator),
            "over_forgotten": normalised.over_forgotten,
        },
        "tpr": _each(_figure, figures.tpr),
        "fpr": _each(_figure, figures.fpr),
    }


def _exposed(example: ExposedExample) -> dict[str, Any]:
    return {
        "example": example.example,
        "found": example.found,
        "epsilon": _number(example.epsilon),
        "epsilon_infinite": bool(np.isinf(example.epsilon)),
        "phi": example.phi,
    }


def _curve(figures: CurveFigures) -> dict[str, Any]:
    points = {f"{fpr:g}": _point(point) for fpr, point in figures.tpr_at.items()}
    return {"auc": _figure(figures.auc), "tpr_at_fpr": points}


def _each(convert: Callable[[Any], dict[str, Any]], figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: convert(each) for name, each in figures.items()}


def _figure(estimate: Estimate) -> dict[str, float | None]:
    return _estimate("value", estimate, "")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _estimate(name: str, estimate: Estimate, prefix: str | None = None) -> dict[str, float | None]:
    """`{name: value, name_low: ..., name_high: ...}`, or with another `prefix` than `name_` to low and high."""
    prefix = f"{name}_" if prefix is None else prefix
    return {
        name: _number(estimate.value),
        f"{prefix}low": _number(estimate.low),
        f"{prefix}high": _number(estimate.high),
    }


def _point(point: OperatingPoint) -> dict[str, Any]:
    """What a TPR at an FPR is, and how far it can be trusted."""
    return {
        "tpr": _number(point.tpr),
        "low": _number(point.low),
        "high": _number(point.high),
        "status": point.status,
        "threshold": _number(point.threshold),
        "false_positives": point.false_positives,
        "allowed_false_positives": point.allowed,
        "expected_fpr": _number(point.expected_fpr),
        "distinct_examples": point.distinct_examples,
        "floor": _number(point.floor),
        "tpr_at_zero_fpr": _number(point.tpr_at_zero),
    }
