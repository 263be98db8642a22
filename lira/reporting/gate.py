"""Limits that a pipeline sets: is a reported figure higher than it may be?"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lira.engine.trained import Check
from lira.reporting.figures import percent

__all__ = ["gate"]

FORM = re.compile(
    r"(?:(?P<attack>\w+):)?(?P<figure>auc|balanced_accuracy|tpr@(?P<fpr>[^=]+))=(?P<limit>[^=]+)"
)


def gate(document: Mapping[str, Any], limits: Iterable[str]) -> list[Check]:
    """A check for each limit, which fails where the figure is higher, or could not be measured.

    Args:
        document: a metrics.json.
        limits: `tpr@0.001=0.02`, `auc=0.6` or `balanced_accuracy=0.55` of the headline attack, `ATTACK:auc=0.6` of
            another. All are fractions.

    Raises:
        ValueError: a limit is not of this form, or the attack or the rate is none of those that were reported.
    """
    return [_gate(document, limit) for limit in limits]


def _gate(document: Mapping[str, Any], text: str) -> Check:
    found = FORM.fullmatch(text)
    limit = _fraction(found["limit"]) if found else None
    if found is None or limit is None:
        raise ValueError(
            f"--fail-above: must be FIGURE=LIMIT, such as tpr@0.001=0.02, auc=0.6 or balanced_accuracy=0.55, or ATTACK:FIGURE=LIMIT, a "
            f"limit from 0 to 1; got {text!r}"
        )
    name = found["attack"] or document["verdict"]["attack"]
    attacks = document["attacks"]
    if name not in attacks:
        raise ValueError(
            f"--fail-above: there is no attack {name!r} in the report; it has {', '.join(attacks)}"
        )
    figures, metric = attacks[name], found["figure"].partition("@")[0]
    if metric == "tpr":
        rates = figures["tpr_at_fpr"]
        key = next((key for key in rates if float(key) == _fraction(found["fpr"])), None)
        if key is None:
            raise ValueError(f"--fail-above: reports have a TPR at {', '.join(rates)}; got {text!r}")
        point, what = rates[key], f"TPR at {100 * float(key):g} % FPR"
        value, low, high, status = (point[part] for part in ("tpr", "low", "high", "status"))
    else:
        value, low, high = (figures[f"{metric}{end}"] for end in ("", "_low", "_high"))
        what, status = ("AUC" if metric == "auc" else "balanced accuracy"), "undefined"
    if value is None:
        return Check(
            "limit", "fail", f"{name}'s {what} is {status}, so it may be above {_shown(limit, metric)}"
        )
    between = "" if low is None else f" ({_shown(low, metric)} to {_shown(high, metric)})"
    status, beside = ("fail", "above") if value > limit else ("ok", "not above")
    return Check(
        "limit",
        status,
        f"{name}'s {what} is {_shown(value, metric)}{between}, {beside} {_shown(limit, metric)}",
    )


def _fraction(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _shown(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric == "auc" else percent(value)
