"""The tables and cards of the page of an unlearning."""

from collections.abc import Mapping
from typing import Any

from lira.reporting.plots import percent
from lira.reporting.tables import rate_cells

__all__ = ["Document", "figure_cells", "page_cards", "page_tables", "percentage_cells", "worst_rows"]

Document = Mapping[str, Any]  # what was measured of one method after one request


def page_cards(last: Mapping[str, Document]) -> list[tuple[str, str, str]]:
    cards = []
    for label, kind in (
        ("told from retraining", "exposed"),
        ("over-forgotten", "over-forgotten"),
        ("not told from retraining", "as retrained"),
    ):
        names = [name for name, document in last.items() if document["verdict"] == kind]
        cards.append((label, f"{len(names)} of {len(last)}", ", ".join(names)))
    return cards


def page_tables(
    metrics: Mapping[str, Any], last: Mapping[str, Document], attack: str, psi_fpr: str
) -> list[dict[str, Any]]:
    """Tables of methods, the first row of each exact retraining: told from it, on which side, averages, accuracy."""
    first = next(iter(last.values()))
    fprs = list(first["u_lira"]["after"]["tpr_at_fpr"])

    def told(document, side):
        curve = document["u_lira"][side]
        epsilon, klom = document["epsilon"], document["klom"]
        rates = [
            rate_cells(
                {
                    "status": document["u_lira"]["after"]["tpr_at_fpr"][fpr]["status"],
                    **curve["tpr_at_fpr"][fpr],
                }
            )
            for fpr in fprs
        ]
        return [
            figure_cells(curve["auc"]),
            *rates,
            figure_cells(epsilon["forgetting_quality"][side]),
            figure_cells(klom["mean"][side], 2),
            figure_cells(klom["percentile_95"][side], 2),
        ]

    def averages(document, side):
        classical = document["classical"][attack][psi_fpr]
        leak = document["update_leakage"]["lira"][side]["auc"]
        if side == "retrained":
            normalised, membership = ("0", "by definition"), ("", "")
        else:
            normalised, membership = (
                figure_cells(classical["psi_normalised"], 2),
                figure_cells(document["lira"]["after"]["auc"]),
            )
        return [
            figure_cells(classical["mia_efficacy"][side]),
            figure_cells(classical["psi"][side]),
            normalised,
            membership,
            figure_cells(leak),
        ]

    def direction(document):
        return [figure_cells(document["direction"]["shift"], 2), figure_cells(document["direction"]["auc"])]

    groups = list(first["accuracy"])

    def accuracy(document, side):
        return [percentage_cells(document["accuracy"][group][side]) for group in groups]

    def score(name, document):
        cost, value = metrics["methods"][name]["cost"], document["epsilon"]["score"]
        return [
            ("unknown" if value is None else f"{value:.3f}", ""),
            ("unknown" if cost is None else percent(cost), ""),
        ]

    own = {"name": "retrained models", "verdict": ""}
    named = [
        (name, document, {"name": name, "verdict": document["verdict"]}) for name, document in last.items()
    ]
    return [
        {
            "heading": "Can it be told from retraining?",
            "note": "Unlearned against retrained models, example by example. In the first row: what exact retraining "
            "scores, and the range that holds 95 % of retrainings. Above the range in AUC or TPR: exposed.",
            "headers": [
                "U-LiRA AUC",
                *(f"U-LiRA TPR at {100 * float(fpr):g} % FPR" for fpr in fprs),
                "forgetting quality",
                "KLoM, mean",
                "KLoM, 95th percentile",
            ],
            "rows": [
                {**own, "cells": told(first, "retrained")},
                *({**row, "cells": told(document, "after")} for _, document, row in named),
            ],
        },
        {
            "heading": "Which side of retraining?",
            "note": "Below 0, and an AUC below one half: over-forgotten, which shows as clearly as what is left.",
            "headers": ["mean shift of phi", "AUC of phi itself"],
            "rows": [
                {**own, "cells": [("0", "by definition"), ("0.500", "by definition")]},
                *({**row, "cells": direction(document)} for _, document, row in named),
            ],
        },
        {
            "heading": "Averages, and what the update leaks",
            "note": f"Classical attack: {attack}, at {100 * float(psi_fpr):g} % FPR (the first of those measured at which "
            f"it tells original from retrained models; metrics.json has all). LiRA AUC before unlearning: "
            f"{figure_cells(first['lira']['before']['auc'])[0]}. Update leakage: in the first row, of an update by retraining.",
            "headers": ["MIA-efficacy", "psi", "normalised psi", "LiRA AUC after", "update leakage, AUC"],
            "rows": [
                {**own, "cells": averages(first, "retrained")},
                *({**row, "cells": averages(document, "after")} for _, document, row in named),
            ],
        },
        {
            "heading": "Accuracy and cost",
            "note": "Score: forgetting quality times the ratios of retain and test accuracy to the retrained models'. "
            "Cost: of retraining.",
            "headers": [*(f"{group} accuracy" for group in groups), "score", "cost"],
            "rows": [
                {**own, "cells": [*accuracy(first, "retrained"), ("", ""), ("100 %", "by definition")]},
                *(
                    {**row, "cells": [*accuracy(document, "after"), *score(name, document)]}
                    for name, document, row in named
                ),
            ],
        },
    ]


def worst_rows(last: Mapping[str, Document], count: int = 3) -> list[dict[str, Any]]:
    rows = []
    for name, document in last.items():
        for each in document["worst"][:count]:
            epsilon = "infinite" if each["epsilon_infinite"] else f"{each['epsilon']:.2f}"
            phi = [f"{each['phi'][stage]:.1f}" for stage in ("before", "after", "retrained")]
            rows.append(
                {"name": name, "example": each["example"], "cells": [percent(each["found"]), epsilon, *phi]}
            )
    return rows


def figure_cells(figure: Mapping[str, Any] | float, digits: int = 3) -> tuple[str, str]:
    """A figure and its interval, or the word that stands in its place."""
    if not isinstance(figure, Mapping):
        return f"{figure:.{digits}f}", ""
    if figure["value"] is None:
        return "undefined", ""
    low, high = figure["low"], figure["high"]
    # Not a dash: an end may be negative.
    interval = "" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{figure['value']:.{digits}f}", interval


def percentage_cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    if figure["value"] is None:
        return "unknown", ""
    low, high = figure["low"], figure["high"]
    interval = "" if low is None else f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{100 * figure['value']:.1f} %", interval
