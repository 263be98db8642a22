"""The tables and cards of an unlearning, in the terminal and on its page."""

from collections.abc import Callable
from typing import NamedTuple

from rich.table import Column, Table
from rich.text import Text

from lira.forgetting import MethodFigures
from lira.metrics import Estimate
from lira.reporting.figures import Cell, percent, rate, share
from lira.reporting.tables import make_table, text
from lira.reporting.unlearning_evaluation import UnlearningEvaluation

__all__ = ["PageTable", "page_cards", "page_tables", "verdicts_table", "worst_rows"]

# What stands in the row of exact retraining for figures that are relative to it.
ZERO, ONE = Cell("0", "by definition"), Cell("100 %", "by definition")
BLANK = Cell("")


class Row(NamedTuple):
    """A method, or the retrained models, and its figures."""

    name: str
    verdict: str
    cells: list[Cell]


class PageTable(NamedTuple):
    """A table of methods, whose first row is exact retraining."""

    heading: str
    note: str
    headers: list[str]
    rows: list[Row]


def verdicts_table(evaluation: UnlearningEvaluation) -> Table:
    """What became of each method at the last request, as a table for a terminal."""
    first = evaluation.first
    fpr = first.lowest_fpr
    columns = ["U-LiRA\nAUC", f"TPR at\n{100 * (fpr or 0):g} % FPR", "normalised\npsi"]
    columns += ["forgetting\nquality", "retain\naccuracy", "test\naccuracy", "cost"]
    result = make_table(
        f"Unlearning {first.num_forgotten} examples in {evaluation.num_models} models",
        Column("method", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in columns),
        Column("verdict", no_wrap=True),
    )

    def add(
        name: str, verdict: str, cells: list[Cell], each: MethodFigures, side: str, cost: float | None
    ) -> None:
        # The accuracies' intervals are on the page: there is no room for them here.
        accuracies = [Cell(accuracy(each, group, side).value) for group in ("retain", "test")]
        result.add_row(Text(name), *map(text, [*cells, *accuracies, cost_cell(cost)]), verdict)

    own, shown = first.retrained, fpr or next(iter(first.u_lira.tpr_at))
    tpr = rate(own.tpr_at_fpr[shown], missing="unresolvable")
    cells = [figure(own.auc), tpr, figure(0.0, 2), figure(own.quality)]
    add("retrained", "the reference", cells, first, "retrained", 1.0)
    for name, each in evaluation.last.items():
        psi = evaluation.classical(each).psi_normalised.estimate
        cells = [
            figure(each.u_lira.auc),
            rate(each.u_lira.tpr_at[shown]),
            figure(psi, 2),
            figure(each.quality),
        ]
        add(name, each.verdict, cells, each, "after", evaluation.costs.get(name))
    return result


def page_cards(evaluation: UnlearningEvaluation) -> list[tuple[str, str, str]]:
    """How many methods have each verdict, and which."""
    cards, last = [], evaluation.last
    for label, verdict in (
        ("told from retraining", "exposed"),
        ("over-forgotten", "over-forgotten"),
        ("not told from retraining", "as retrained"),
    ):
        names = [name for name, each in last.items() if each.verdict == verdict]
        cards.append((label, f"{len(names)} of {len(last)}", ", ".join(names)))
    return cards


def page_tables(evaluation: UnlearningEvaluation) -> list[PageTable]:
    """Tables of methods, the first row of each exact retraining: told from it, on which side, averages, accuracy."""
    first = evaluation.first
    attack, psi_fpr = evaluation.headline_psi
    points, groups = first.u_lira.tpr_at, list(first.accuracy)

    def table(
        heading: str,
        note: str,
        headers: list[str],
        retrained: list[Cell],
        cells: Callable[[str, MethodFigures], list[Cell]],
    ) -> PageTable:
        rows = [Row(name, each.verdict, cells(name, each)) for name, each in evaluation.last.items()]
        return PageTable(heading, note, headers, [Row("retrained models", "", retrained), *rows])

    def averages(each: MethodFigures, side: str, psi: Cell, membership: Cell) -> list[Cell]:
        classical, leak = evaluation.classical(each), each.update_leakage["lira"][side]
        efficacy = figure(classical.mia_efficacy[side])
        return [efficacy, figure(classical.psi[side]), psi, membership, figure(leak.auc)]

    def accuracies(each: MethodFigures, side: str) -> list[Cell]:
        return [accuracy(each, group, side) for group in groups]

    own = first.retrained
    return [
        table(
            "Can it be told from retraining?",
            "Unlearned against retrained models, example by example. In the first row: what exact retraining "
            "scores, and the range that holds 95 % of retrainings. Above the range in AUC or TPR: exposed.",
            [
                "U-LiRA AUC",
                *(f"U-LiRA TPR at {100 * fpr:g} % FPR" for fpr in points),
                "forgetting quality",
                "KLoM, mean",
                "KLoM, 95th percentile",
            ],
            [
                figure(own.auc),
                *(rate(own.tpr_at_fpr[fpr], missing=point.status) for fpr, point in points.items()),
                figure(own.quality),
                figure(own.klom_mean, 2),
                figure(own.klom_95, 2),
            ],
            lambda _, each: [
                figure(each.u_lira.auc),
                *map(rate, each.u_lira.tpr_at.values()),
                figure(each.quality),
                figure(each.klom_mean, 2),
                figure(each.klom_95, 2),
            ],
        ),
        table(
            "Which side of retraining?",
            "Below 0, and an AUC below one half: over-forgotten, which shows as clearly as what is left.",
            ["mean shift of phi", "AUC of phi itself"],
            [ZERO, Cell("0.500", "by definition")],
            lambda _, each: [figure(each.direction.shift, 2), figure(each.direction.auc)],
        ),
        table(
            "Averages, and what the update leaks",
            f"Classical attack: {attack}, at {100 * psi_fpr:g} % FPR (the first of those measured at which "
            f"it tells original from retrained models; metrics.json has all). LiRA AUC before unlearning: "
            f"{figure(first.lira['before'].auc).value}. Update leakage: in the first row, of an update by retraining.",
            ["MIA-efficacy", "psi", "normalised psi", "LiRA AUC after", "update leakage, AUC"],
            averages(first, "retrained", ZERO, BLANK),
            lambda _, each: averages(
                each,
                "after",
                figure(evaluation.classical(each).psi_normalised.estimate, 2),
                figure(each.lira["after"].auc),
            ),
        ),
        table(
            "Accuracy and cost",
            "Score: forgetting quality times the ratios of retain and test accuracy to the retrained models'. "
            "Cost: of retraining.",
            [*(f"{group} accuracy" for group in groups), "score", "cost"],
            [*accuracies(first, "retrained"), BLANK, ONE],
            lambda name, each: [
                *accuracies(each, "after"),
                share(each.score, missing="unknown"),
                cost_cell(evaluation.costs.get(name)),
            ],
        ),
    ]


def worst_rows(evaluation: UnlearningEvaluation, count: int = 3) -> list[tuple[str, int, list[str]]]:
    """The forgotten examples that each method leaves most exposed: method, example, its figures."""
    return [
        (
            name,
            worst.example,
            [percent(worst.found), f"{worst.epsilon:.2f}".replace("inf", "infinite")]
            + [f"{mean:.1f}" for mean in worst.phi.values()],
        )
        for name, each in evaluation.last.items()
        for worst in each.worst[:count]
    ]


def figure(value: Estimate | float, digits: int = 3) -> Cell:
    """A figure and its interval; between the ends no dash, because one may be negative."""
    return share(value, digits, between=" to ")


def accuracy(figures: MethodFigures, group: str, side: str) -> Cell:
    return rate(figures.accuracy[group][side], missing="unknown", digits=1)


def cost_cell(cost: float | None) -> Cell:
    return Cell("unknown" if cost is None else percent(cost))
