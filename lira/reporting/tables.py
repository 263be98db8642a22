"""What a terminal shows: tables of figures with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from lira.metrics import Difference, LearningPoint, OperatingPoint, enough_models
from lira.reporting.figures import Cell, percent, rate, share, signed
from lira.reporting.grid_figures import GridFigures
from lira.reporting.measured import FPRS, Measured

__all__ = [
    "attacks_table",
    "differences_table",
    "fitted",
    "footnotes",
    "fpr_header",
    "grid_table",
    "learning_table",
    "make_table",
    "text",
]


def attacks_table(evaluation: Measured) -> Table:
    """The pooled figures as a table for a terminal of 100 columns or more.

    Under each figure stands its 95 % interval. Under an FPR at which fewer than ten false positives are allowed stand
    their number k and the true FPR that such a threshold has on average.
    """
    first = next(iter(evaluation.attacks.values()))
    headers = ["AUC", "balanced\naccuracy", *("\n".join(fpr_header(first.tpr_at[fpr])) for fpr in FPRS)]
    result = make_table(
        f"Membership inference{f', pooled over {evaluation.num_models:,} targets' * (evaluation.num_models > 1)}",
        Column("attack", overflow="fold"),
        *(Column(header, justify="right", no_wrap=True) for header in headers),
        caption="\n".join(footnotes(evaluation)),
        padding=(0, 1, 0, 0),
    )
    for name, attack in evaluation.attacks.items():
        cells = [share(attack.auc), rate(attack.balanced_accuracy), *map(rate, attack.tpr_at.values())]
        result.add_row(Text(name), *map(text, cells))
    return result


def differences_table(differences: Mapping[str, Difference], title: str) -> Table:
    """Paired differences by attack as a table for a terminal."""
    first = next(iter(differences.values()), None)
    tpr = "TPR" if first is None else f"TPR at {100 * first.fpr:g} % FPR"
    result = make_table(
        title,
        "attack",
        Column(f"{tpr}, percentage points", justify="right"),
        Column("AUC", justify="right"),
        caption="Differences with their 95 % intervals, from the same resamples for both.",
    )
    for name, each in differences.items():
        result.add_row(Text(name), Text(signed(each.tpr, 2, scale=100)), Text(signed(each.auc, 4)))
    return result


def grid_table(grid: GridFigures) -> Table:
    """What became of each setting of a grid."""
    fpr = "TPR" if grid.fpr is None else f"TPR at\n{100 * grid.fpr:g} % FPR"
    on = "test" if grid.side == "test" else "others"
    headers = (f"accuracy,\n{on}", fpr, "strongest", "AUC", "epsilon,\nmeasured", "epsilon,\nproven", "front")
    result = make_table(
        f"{len(grid.settings)} settings, by {grid.attack}, and the strongest of all attacks",
        Column("setting", overflow="fold"),
        *(Column(header, justify="right", no_wrap=True) for header in headers),
        caption=f"Below an accuracy: models' standard deviation, in points. Intervals: {grid.interval}, each by itself. "
        f"Below a measured epsilon: so that those of all settings hold together with 95 %.",
    )
    for name, each in grid.settings.items():
        accuracy = Cell(percent(each.accuracy), "" if np.isnan(each.spread) else f"{100 * each.spread:.1f}")
        result.add_row(
            Text(name),
            text(accuracy),
            text(Cell("unresolvable") if each.tpr is None else rate(each.tpr)),
            "-" if each.strongest is None else percent(each.strongest.tpr),
            text(share(each.auc)),
            "-"
            if each.epsilon is None
            else text(Cell(f"{each.epsilon.alone:.2f}", f"{each.epsilon.together:.2f}")),
            "-" if each.proven is None else f"{each.proven.epsilon:.3g}",
            "yes" if name in grid.front else "",
        )
    return result


def learning_table(curves: Mapping[str, Sequence[LearningPoint]], fpr: float, rule: str) -> Table:
    """TPR at `fpr` by attack and number of models, and how many are enough by `rule`."""
    sizes = sorted({point.num_models for points in curves.values() for point in points})
    result = make_table(
        f"TPR at {100 * fpr:g} % FPR by number of models",
        Column("attack", overflow="fold", no_wrap=True),
        *(Column(f"{size}", justify="right", no_wrap=True) for size in sizes),
        "enough",
        caption=rule,
    )
    for name, points in curves.items():
        by_size = {point.num_models: text(rate(point.tpr, digits=2)) for point in points}
        enough = enough_models(points)
        cells = [by_size.get(size, "") for size in sizes]
        result.add_row(Text(name), *cells, "more" if enough is None else f"{enough}")
    return result


def make_table(title: str, *columns: Column | str, caption: str | None = None, **options: Any) -> Table:
    """An empty table in the style of all others."""
    return Table(
        *columns,
        title=Text(title, style="table.title"),
        title_justify="left",
        caption=None if caption is None else Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        **options,
    )


def fitted(table: Table, console: Console, spare: Sequence[int] = ()) -> Table:
    """The table without as many of its `spare` columns, the first first, as the console has no room for."""
    columns, left_out = list(table.columns), []
    for index in spare:
        if Measurement.get(console, console.options.update(width=10**4), table).minimum <= console.width:
            break
        if index < len(columns) and len(table.columns) > 2:
            table.columns.remove(columns[index])
            for place, column in enumerate(table.columns):
                column._index = place  # rich pads the first and the last otherwise
            left_out.append(str(columns[index].header).split("\nk = ")[0].replace("\n", " "))
    if left_out:
        note = f"For want of room without {', '.join(left_out)}."
        table.caption = Text("\n").join([*filter(None, [table.caption]), Text(note)])  # pyright: ignore[reportArgumentType]
    return table


def text(cell: Cell) -> Text:
    """A figure with its interval under it."""
    return (
        Text(cell.value) if not cell.interval else Text(cell.value).append("\n" + cell.interval, style="dim")
    )


# --- Tables and the page --------------------------------------------------------------------------------------------


def fpr_header(point: OperatingPoint) -> list[str]:
    """The lines above a column of TPRs at one FPR, in the terminal and on the page."""
    lines = ["TPR at", f"{100 * point.fpr:g} % FPR"]
    if 1 <= point.allowed < 10:
        lines += [f"k = {point.allowed}, true", f"≈ {100 * point.expected_fpr:#.2g} %"]
    return lines


def coverage_note(evaluation: Measured) -> str:
    """What the intervals of pooled figures are good for; empty where there are none. Figures of experiments/README.md."""
    if evaluation.num_models == 1:
        return " They are of this target beside these shadow models: others would move the figures, too."
    if all(np.isnan(attack.auc.low) for attack in evaluation.attacks.values()):
        return ""
    return (
        " They hold scores fixed, so they do not see that one pool of shadow models made them all: in simulated pools of 16 "
        "to 256 models they held the truth in 91 to 96 % (TPR) and in 85 to 94 % (AUC, balanced accuracy)."
    )


def footnotes(evaluation: Measured) -> list[str]:
    """What stands below the pooled figures, in the terminal and on the page."""
    attacks = evaluation.attacks
    points = next(iter(attacks.values())).tpr_at.values()
    notes = [f"Intervals (small figures): {evaluation.interval}.{coverage_note(evaluation)}"]
    if any(1 <= point.allowed < 10 for point in points):
        notes.append("k: false positives allowed; true: the FPR that such a threshold has on average.")
    unresolvable = [point for point in points if point.status == "unresolvable"]
    if unresolvable:
        at_zero = ", ".join(
            f"{name} {percent(attack.tpr_at[FPRS[0]].tpr_at_zero)}" for name, attack in attacks.items()
        )
        notes.append(
            f"unresolvable: less than one false positive among {evaluation.num_nonmembers:,} non-members (floor "
            f"{100 * unresolvable[0].floor:.3g} %). TPR at 0 false positives: {at_zero}."
        )
    return notes
