"""Figures as JSON, which knows neither NaN nor infinity: null in their place. Rates are fractions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lira.epsilon import EpsilonBound
from lira.forgetting import MethodFigures, NormalisedPsi
from lira.forgetting.measure import ClassicalFigures, CurveFigures
from lira.metrics import Difference, Estimate, LearningPoint, OperatingPoint, enough_models
from lira.reporting.figures import known
from lira.reporting.implied import Leakage
from lira.reporting.measured import AttackFigures, Calibrated, CanaryFigures, Measured, Subject
from lira.reporting.records import INTERVAL, Records, column_meanings
from lira.reporting.unlearning_evaluation import UnlearningEvaluation
from lira.reporting.verdict import verdict
from lira.store.config import in_json
from lira.versions import __version__

__all__ = [
    "bound_document",
    "differences_document",
    "learning_document",
    "metrics_document",
    "operating_point",
    "records_document",
    "unlearning_document",
    "with_interval",
]


def metrics_document(evaluation: Measured) -> dict[str, Any]:
    """The content of metrics.json."""
    document = {
        "description": "pooled over targets, except under mean_over_targets; rates are fractions",
        "versions": {"lira": __version__},
        "verdict": dataclasses.asdict(verdict(evaluation)),
        "subject": _subject(evaluation.subject),
        "checks": [check._asdict() for check in evaluation.checks],
        "interval": evaluation.interval,
        "num_models": evaluation.num_models,
        "num_examples": evaluation.num_examples,
        "num_members": evaluation.num_members,
        "num_nonmembers": evaluation.num_nonmembers,
        "attacks": {name: _attack(each) for name, each in evaluation.attacks.items()},
        "calibrated": {name: _calibrated(each) for name, each in evaluation.calibrated.items()},
        "implied": None,
        "selected": evaluation.selected,
    }
    if evaluation.implied is not None:
        document["implied"] = {"attack": evaluation.headline, **_implied(evaluation.implied)}
    if evaluation.canaries is not None:
        document["canaries"] = _canaries(evaluation.canaries)
    if evaluation.models is not None:
        document["models"] = evaluation.models
    if evaluation.pool is not None:
        document["pool"] = evaluation.pool
    return document


def differences_document(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """Paired differences by attack."""
    return {
        name: {"fpr": each.fpr, **with_interval("tpr", each.tpr), **with_interval("auc", each.auc)}
        for name, each in differences.items()
    }


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


def records_document(records: Records) -> dict[str, Any]:
    """The content of records.json: what the columns of records.csv are, and what is no row's alone."""
    names = list(records.attacks)
    agreement = {
        name: {other: known(value) for other, value in zip(names, row, strict=True)}
        for name, row in zip(names, records.agreement, strict=True)
    }
    document = {
        "description": "of records.csv, a row an example, and of the Zarr group records, a row a target",
        "columns": column_meanings(records),
        "interval": INTERVAL if records.num_targets > 1 else None,
        "headline": records.headline,
        "fpr": records.fpr,
        "num_targets": records.num_targets,
        "num_examples": records.num_examples,
        "num_top": records.num_top,
        "num_halves": records.num_halves,
        "called_above": {name: known(each.bar) for name, each in records.attacks.items()},
        "agreement": agreement,
    }
    if records.models is not None:
        document["models"] = records.models
    return document


def unlearning_document(evaluation: UnlearningEvaluation) -> dict[str, Any]:
    """The content of an unlearning's metrics.json."""
    return {
        "description": "of everything forgotten up to each request; rates are fractions; higher attack = less forgotten",
        "interval": evaluation.interval,
        "num_models": evaluation.num_models,
        "num_examples": evaluation.num_examples,
        "num_requests": evaluation.num_requests,
        "doubts": evaluation.doubts,
        "methods": {
            name: {"cost": known(evaluation.cost(name)), "requests": [_method(each) for each in requests]}
            for name, requests in evaluation.methods.items()
        },
    }


# --- Parts of the documents -----------------------------------------------------------------------------------------


def _subject(subject: Subject) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, bool | float):
            return value if isinstance(value, bool) else known(value)
        return value or None  # empty and 0: not known

    return {name: plain(value) for name, value in dataclasses.asdict(subject).items()}


def _learning_point(point: LearningPoint) -> dict[str, Any]:
    return {
        "num_models": int(point.num_models),
        "num_subpools": int(point.num_subpools),
        "tpr_at_fpr": operating_point(point.tpr),
        **with_interval("auc", point.auc),
        **with_interval("shortfall", point.shortfall.tpr),
    }


def _attack(figures: AttackFigures) -> dict[str, Any]:
    means = {
        f"{fpr:g}": {**with_interval("tpr", each.tpr, ""), "status": each.status, "floor": known(each.floor)}
        for fpr, each in figures.mean_tpr_at.items()
    }
    return {
        **with_interval("auc", figures.auc),
        **with_interval("balanced_accuracy", figures.balanced_accuracy),
        "tpr_at_fpr": _plain(figures.tpr_at),
        "mean_over_targets": {**with_interval("auc", figures.mean_auc), "tpr_at_fpr": means},
        "num_examples_left_out": len(figures.left_out),
    }


def _calibrated(figures: Calibrated) -> dict[str, Any]:
    named = figures.named
    points = {
        f"{fpr:g}": {
            **with_interval("tpr", each.tpr, ""),
            **with_interval("realised_fpr", each.realised_fpr),
            "status": each.status,
            "floor": each.floor,
        }
        for fpr, each in figures.points.items()
    }
    return {
        "tpr_at_fpr": points,
        "named_members": {
            "false_discovery_rate": named.rate,
            **with_interval("named_per_target", named.named),
            **with_interval("false_share", named.false_share),
            "share_of_targets": named.targets,
        },
    }


def _canaries(figures: CanaryFigures) -> dict[str, Any]:
    return {
        "kind": figures.kind,
        "count": figures.count,
        "attacks": {name: _attack(each) for name, each in figures.attacks.items()},
        "epsilon": None if figures.epsilon is None else bound_document(figures.epsilon),
        "epsilon_attack": None if figures.epsilon is None else figures.epsilon_attack,
    }


def bound_document(bound: EpsilonBound) -> dict[str, Any]:
    """A lower bound on epsilon, and what it assumes."""
    return {
        "delta": bound.delta,
        "method": bound.method,
        "confidence": bound.confidence,
        "at_least": bound.epsilon,
        "assumes": bound.assumes,
    }


def _implied(implied: Leakage) -> dict[str, Any]:
    fixed, between, epsilon = implied.fixed, implied.stability, None
    if implied.epsilon is not None:
        epsilon = {
            "delta": implied.delta,
            "method": "one_run",
            "confidence": implied.confidence,
            "at_least": implied.epsilon,
        }
    j = {**with_interval("j", implied.youden.j, ""), "optimistic": known(implied.youden.optimistic)}
    return {
        "fpr": implied.fpr,
        "youden_j": j,
        "information_at_least": with_interval("bits", implied.information, ""),
        "bayes_error_at_most": with_interval("error", implied.bayes_error, ""),
        "mutual_information": with_interval("bits", implied.mutual_information, ""),
        "ppv": _plain(implied.ppv),
        "fixed_threshold": fixed
        and {
            **with_interval("fpr", fixed.mean_fpr),
            **with_interval("tpr", fixed.mean_tpr),
            "largest_fpr": float(np.max(fixed.target_fpr)),
        },
        "stability": between
        and {**with_interval("pearson", between.pearson), **with_interval("spearman", between.spearman)},
        "epsilon": epsilon,
        "no_epsilon": implied.no_epsilon,
        "proven": implied.proven and in_json(dataclasses.asdict(implied.proven)),
    }


def _method(figures: MethodFigures) -> dict[str, Any]:
    reference = figures.retrained
    tprs = {f"{fpr:g}": with_interval("tpr", tpr, "") for fpr, tpr in reference.tpr_at_fpr.items()}
    return _plain(
        {
            "verdict": figures.verdict,
            "num_models": figures.num_models,
            "num_forgotten": figures.num_forgotten,
            "attack": figures.attack,
            "u_lira": {
                "after": figures.u_lira,
                "before": figures.untouched,
                "retrained": {"auc": reference.auc, "tpr_at_fpr": tprs},
            },
            "lira": figures.lira,
            "classical": figures.classical,
            "epsilon": {
                "delta": figures.delta,
                "largest_finite": figures.largest_epsilon,
                "infinite": {"after": figures.infinite, "retrained": reference.infinite},
                "forgetting_quality": {"after": figures.quality, "retrained": reference.quality},
                "score": figures.score,
            },
            "klom": {
                "mean": {"after": figures.klom_mean, "retrained": reference.klom_mean},
                "percentile_95": {"after": figures.klom_95, "retrained": reference.klom_95},
            },
            "update_leakage": figures.update_leakage,
            "direction": {
                **figures.direction._asdict(),
                "over_forgotten": figures.direction.over_forgotten,
            },
            "accuracy": figures.accuracy,
            "worst_fpr": figures.worst_fpr,
            "worst": [
                {
                    "example": each.example,
                    "found": each.share,
                    "epsilon": each.epsilon,
                    "epsilon_infinite": bool(np.isinf(each.epsilon)),
                    "phi": each.phi,
                }
                for each in figures.worst
            ],
        }
    )


def _plain(value: Any) -> Any:
    """Figures at any depth as mappings; of named tuples the fields are the keys, FPRs become text."""
    match value:
        case Estimate():
            return with_interval("value", value, "")
        case OperatingPoint():
            return operating_point(value)
        case NormalisedPsi():
            return {
                **with_interval("value", value.estimate, ""),
                "status": "ok" if value.is_resolved else "not resolved",
                "difference": _plain(value.difference),
                "denominator": _plain(value.denominator),
                "over_forgotten": value.over_forgotten,
            }
        case CurveFigures() | ClassicalFigures():
            return _plain(value._asdict())
        case Mapping():
            return {f"{k:g}" if isinstance(k, float) else k: _plain(each) for k, each in value.items()}
        case list():
            return [_plain(each) for each in value]
        case float():
            return known(value)
    return value


def with_interval(name: str, estimate: Estimate, prefix: str | None = None) -> dict[str, float | None]:
    """`{name: value, name_low: ..., name_high: ...}`, or with another `prefix` than `name_` to low and high."""
    prefix = f"{name}_" if prefix is None else prefix
    return {
        name: known(estimate.value),
        f"{prefix}low": known(estimate.low),
        f"{prefix}high": known(estimate.high),
    }


def operating_point(point: OperatingPoint) -> dict[str, Any]:
    """What a TPR at an FPR is, and how far it can be trusted."""
    return {
        "tpr": known(point.tpr),
        "low": known(point.low),
        "high": known(point.high),
        "status": point.status,
        "threshold": known(point.threshold),
        "false_positives": point.false_positives,
        "allowed_false_positives": point.allowed,
        "expected_fpr": known(point.expected_fpr),
        "distinct_examples": point.distinct_examples,
        "floor": known(point.floor),
        "tpr_at_zero_fpr": known(point.tpr_at_zero),
    }
