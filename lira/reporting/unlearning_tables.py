"""What an unlearning came to: the terminal's table, and the cards of the page."""

from rich.table import Column, Table
from rich.text import Text

from lira.forgetting import MethodFigures
from lira.metrics import Estimate
from lira.reporting.figures import Cell, rate, share
from lira.reporting.tables import make_table, text
from lira.reporting.unlearning_evaluation import UnlearningEvaluation

__all__ = ["page_cards", "verdicts_table"]


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

    shown = fpr or next(iter(first.u_lira.tpr_at_fpr))

    def add(name: str, verdict: str, side: str, each: MethodFigures, cells: list[Cell], cost: float) -> None:
        # The accuracies' intervals are on the page: there is no room for them here.
        for group in ("retain", "test"):
            cells.append(Cell(rate(each.accuracy[group][side], missing="unknown").value))
        cells.append(rate(cost, missing="unknown"))
        result.add_row(Text(name), *map(text, cells), verdict)

    def figure(value: Estimate | float, digits: int = 3) -> Cell:
        return share(value, digits, between=" to ", missing="not resolved")

    reference = first.retrained
    tpr = rate(reference.tpr_at_fpr[shown], missing="unresolvable")
    cells = [figure(reference.auc), tpr, figure(0, 2), figure(reference.quality)]
    add("retrained", "the reference", "retrained", first, cells, 1.0)
    for name, each in evaluation.last.items():
        psi = figure(evaluation.classical(each).psi_normalised.estimate, 2)
        cells = [figure(each.u_lira.auc), rate(each.u_lira.tpr_at_fpr[shown]), psi, figure(each.quality)]
        add(name, each.verdict, "after", each, cells, evaluation.cost(name))
    return result


def page_cards(evaluation: UnlearningEvaluation) -> list[tuple[str, str, str]]:
    """How many methods have each verdict, and which; "not resolved" only where some have it."""
    cards, last = [], evaluation.last
    for label, verdict in (
        ("told from retraining", "exposed"),
        ("over-forgotten", "over-forgotten"),
        ("not told from retraining", "as retrained"),
        ("not resolved", "not resolved"),
    ):
        names = [name for name, each in last.items() if each.verdict == verdict]
        if verdict == "not resolved" and not names:
            continue
        cards.append((label, f"{len(names)} of {len(last)}", ", ".join(names)))
    return cards
