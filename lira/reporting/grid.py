"""`lira.grid`: settings trained, attacked and reported side by side, and the page of them all.

Layout under GRID: a run directory for each setting, named by it, and of them all grid.json, grid.png and report.html.
"""

import json
import os
import warnings as python_warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.attacks.suite import ATTACKS, select_attacks
from lira.data.dataset import Dataset
from lira.engine.fill import train
from lira.engine.grid import GridPlan, Setting, plan_grid, require_same_runs, settings_of
from lira.engine.progress import Progress
from lira.faults import is_out_of_memory, whose
from lira.reporting.grid_document import grid_document, grid_page, in_sentences
from lira.reporting.grid_figures import AttackRate, GridFigures, Measurement, measure_grid
from lira.reporting.grid_plots import panels, plot_grid
from lira.reporting.measured import headline_attack
from lira.reporting.reports import report, reported
from lira.reporting.write import png, write_document
from lira.scoring import score
from lira.store.chunks import stored_fingerprint
from lira.store.config import Config, absolute
from lira.store.data import load_configured
from lira.store.errors import RunError
from lira.store.files import require_writable
from lira.store.mend import mend
from lira.store.places import Place, directory_at
from lira.store.proven import proven_of
from lira.store.run import Run

__all__ = ["Grid", "grid"]


@dataclass(frozen=True, eq=False)
class Grid:
    """What came of a grid of settings."""

    path: Place
    figures: GridFigures
    runs: dict[str, Run]  # by setting, of those that are complete
    failed: dict[str, str]  # by setting, why it is not

    def __str__(self) -> str:
        """The findings, in plain words."""
        return "\n".join(in_sentences(self.figures))


def grid(
    path: str | os.PathLike[str],
    config: Config,
    over: Mapping[str, Sequence[Any]],
    *,
    apart: bool = False,
    dataset: Dataset | None = None,
    attacks: Sequence[str] | None = None,
    headline: str | None = None,
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
    planned: Callable[[GridPlan], None] | None = None,
    warnings: Iterable[str] = (),
) -> Grid:
    """Train, attack and report every combination of some fields' values on the same memberships, and compare them.

    The same call goes on after an interrupt; a setting that is complete is not touched. Cheap settings come first. One
    that cannot be completed (its models diverge, memory or disk run out) is named by a warning, and the others go on.

    Args:
        path: of the grid's directory, in which each setting has a run directory of its own.
        config: all fields that are not varied.
        over: values by field of `recipe` or `queries`, as of `{"recipe.weight_decay": [0.0, 5e-4]}`.
        apart: vary one field at a time, beside the configuration as it stands, in place of every combination.
        dataset: the data; None loads those that the configuration names.
        attacks: names of those to run; None: all.
        headline: the attack by which settings are compared; None: by the number of models, see `headline_attack`.
        show_progress: draw bars.
        progress: called as by `train`.
        planned: called with what all this costs, before anything is written.
        warnings: for the top of the page, read once all is measured.

    Raises:
        ConfigError: a field cannot be varied, or a value or combination does not fit; nothing is written then.
        RunError: a run of another configuration is where a setting's is to be; or no setting is complete.
        ValueError: there is no such attack.
        Exception: a setting ends in a fault, of lira or of a module of the user's; what is done is kept.
    """
    chosen = select_attacks([*attacks, *filter(None, [headline])]) if attacks else None
    if headline is not None and headline not in ATTACKS:
        select_attacks([headline])  # raises, naming the nearest
    config, path = absolute(config), directory_at(path)
    settings = settings_of(config, over, apart=apart)
    require_same_runs(path, settings)
    if dataset is None:
        dataset = load_configured(config)
    plan = plan_grid(path, settings, dataset)
    if planned is not None:
        planned(plan)
    require_writable(path)
    runs, failed = dict[str, Run](), dict[str, str]()
    for setting in sorted(settings, key=lambda each: plan.settings[each.name].seconds):
        try:
            runs[setting.name] = _completed(
                path / setting.directory, dataset, setting.config, attacks, show_progress, progress
            )
        except Exception as error:
            # A fault, of lira or of a user's module, would be in other settings as well, unseen.
            if not is_out_of_memory(error) and whose(error) != "input":
                raise
            why = f"out of memory: {error}" if is_out_of_memory(error) else str(error)
            failed[setting.name] = " ".join(why.split())
            python_warnings.warn(f"setting {setting.name} is left out: {failed[setting.name]}", stacklevel=2)
    if not runs:
        raise RunError(f"{path}: no setting could be completed: {next(iter(failed.values()))}")
    settings = [each for each in settings if each.name in runs]
    figures = _measured(settings, runs, dataset, config, chosen, headline)
    _write(path, figures, config, over, runs, failed, warnings)
    return Grid(path, figures, runs, failed)


def _completed(
    path: Place,
    dataset: Dataset,
    config: Config,
    attacks: Sequence[str] | None,
    show_progress: bool,
    progress: Callable[[Progress], None] | None,
) -> Run:
    """The run of a setting, of which everything that is missing is made."""
    if (path / "config.toml").exists():
        for sentence in mend(path, dataset):
            python_warnings.warn(f"{path}: {sentence}", stacklevel=3)
    run = Run.from_config(path, dataset, config)
    if (run.done == 0).any():
        train(run, dataset, show_progress=show_progress, progress=progress)
    if reported(run, attacks) is None:
        report(run, dataset, attacks=attacks)
    return run


# --- What it comes to -------------------------------------------------------------------------------------------------


def _measured(
    settings: Sequence[Setting],
    runs: Mapping[str, Run],
    dataset: Dataset,
    config: Config,
    chosen: Mapping[str, Any] | None,
    headline: str | None,
) -> GridFigures:
    """The figures of the settings that are complete, by one attack that could run on all of them."""
    scores = {each.name: score(runs[each.name], dataset, attacks=chosen) for each in settings}
    common = [name for name in next(iter(scores.values())) if all(name in each for each in scores.values())]
    if headline is not None and headline not in common:
        raise ValueError(
            f"the headline attack {headline!r} could not run on every setting; {', '.join(common)} could"
        )
    attack = headline or headline_attack(common, min(len(run.shadows) for run in runs.values()))
    accuracies = {each.name: runs[each.name].accuracy("test", runs[each.name].targets) for each in settings}
    side = "out" if any(np.isnan(each).any() for each in accuracies.values()) else "test"
    measured = {}
    for each in settings:
        run = runs[each.name]
        measured[each.name] = Measurement(
            each.values,
            each.directory,
            run.targets,
            scores[each.name][attack],
            run.membership,
            run.accuracy(side, run.targets),
            run.accuracy("in", run.targets),
            proven_of(run.path, run.provenance),
            _rates(run),
        )
    return measure_grid(
        measured,
        attack=attack,
        side=side,
        reference=next((each.name for each in settings if each.config == config), ""),
        independent=all(run.independent for run in runs.values()),
    )


def _rates(run: Run) -> dict[float, list[AttackRate]]:
    """The pooled TPR of every attack that the run's report has, by FPR."""
    found: dict[float, list[AttackRate]] = {}
    for name, each in json.loads((run.path / "metrics.json").read_bytes())["attacks"].items():
        for fpr, point in each["tpr_at_fpr"].items():
            if point["tpr"] is not None:
                ends = (np.nan if point[end] is None else point[end] for end in ("low", "high"))
                found.setdefault(float(fpr), []).append(AttackRate(name, point["tpr"], *ends))
    return found


def _write(
    path: Place,
    figures: GridFigures,
    config: Config,
    over: Mapping[str, Sequence[Any]],
    runs: Mapping[str, Run],
    failed: Mapping[str, str],
    warnings: Iterable[str],
) -> None:
    """Write grid.png, report.html and, last, grid.json."""
    pictures = {name: png(plot_grid(figures, [name])) for name in panels(figures)}
    picture = png(plot_grid(figures)) if len(pictures) > 1 else pictures["leakage"]
    left_out = [f"setting {name} is left out: {why}" for name, why in failed.items()]
    said = list(dict.fromkeys([*left_out, *warnings]))
    page = grid_page(figures, pictures, config, runs, said)
    places = [f"{each.directory}/scores/{figures.attack}" for each in figures.settings.values()]
    arrays = {place: stored_fingerprint(path, place) for place in places}
    document = grid_document(figures, over, failed)
    write_document(path, "grid.json", document, {"grid.png": picture, "report.html": page.encode()}, arrays)
