"""Is a directory whole, does it fit together, and is a model what its number, its recipe and its data make of it?"""

import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lira.data.dataset import Dataset
from lira.engine.device import device_name, devices_of
from lira.engine.imitate import SAME_PHI, ask, train_again
from lira.learning.learner import Learner
from lira.store.arrays import DONE
from lira.store.errors import RunError
from lira.store.making import PACKAGES
from lira.store.places import Place, directory_at
from lira.store.run import Run
from lira.store.verify import findings
from lira.store.verify_arrays import Finding, states
from lira.versions import versions

__all__ = ["in_lines", "runs_in", "verify"]


def verify(
    run: Run | str | os.PathLike[str],
    dataset: Dataset | None = None,
    *,
    deep: bool = False,
    model: int | None = None,
) -> list[Finding]:
    """All that is broken, or could not be looked at, in a directory of a run, an unlearning, an imitation, an audit or a grid.

    Of a grid, and of any directory of runs, each run is looked at; the places of what is found name it. Nothing is written.
    `lira.mend`, which `lira run` begins with, makes what is broken again.

    Args:
        run: a run, or a directory.
        dataset: the run's data, or those of all runs of a grid; None goes without comparing labels and a model.
        deep: read every chunk, look for NaN, compare memberships with their seed, and train one model of a run again. Its
            phi must then be the stored one up to `SAME_PHI`, 0.1: float32 sums in another order (another device, width
            or version) move phi by less than that where training is stable. Where it moves by more on another device or
            other versions than the run's, that is "unchecked", not broken.
        model: which one is trained again; the first that is done by default.

    Returns:
        A `Finding` each: status, "broken" or "unchecked", place and what is wrong. None: all is whole.

    Raises:
        RunError: there is no such directory.
    """
    path = run.path if isinstance(run, Run) else directory_at(run)
    names = ("config.toml", "provenance.json", "imitation.toml", "metrics.json", "canaries.json", "grid.json")
    runs = runs_in(path)
    if not runs and not any((path / name).exists() for name in names):
        raise RunError(f"{path}: is no directory of a run, an unlearning, an imitation, an audit or a grid")
    # One thing may be missed by several others.
    found = list(dict.fromkeys(findings(path, dataset=dataset, deep=deep)))
    broken = [each.place for each in found if each.status == "broken"]
    inside = {f"{each.name}/": each for each in runs}
    if (path / "provenance.json").exists():
        inside[""] = path
    for name, each in inside.items() if deep else ():
        if not any(place.startswith(name) for place in broken):
            compared = _compared(Run.open(each), dataset, model)
            found += (one._replace(place=f"{name}{one.place}") for one in compared)
    return found


def runs_in(path: Place) -> list[Place]:
    """The runs immediately below a directory, as of a grid, that is none itself, and no unlearning or imitation."""
    if any((path / name).exists() for name in ("config.toml", "provenance.json", "imitation.toml")):
        return []
    return sorted(each.parent for each in path.glob("[!.]*/provenance.json"))


def in_lines(path: os.PathLike[str], found: Sequence[Finding]) -> list[str]:
    """For people: a line for each thing, and what it comes to, of several runs which of them is broken."""
    broken = [each.place for each in found if each.status == "broken"]
    verdict = f"{len(broken)} broken" if broken else "nothing is broken"
    runs = [each.name for each in runs_in(directory_at(path))]
    if runs:
        which = [name for name in runs if any(place.startswith(f"{name}/") for place in broken)]
        verdict += f", in {len(which)} of {len(runs)} runs" + (f" ({', '.join(which)})" if which else "")
    if unchecked := len(found) - len(broken):
        verdict += f", {unchecked} not looked at"
    return [*(f"{each.status:9}  {each.place} {each.what}" for each in found), f"{path}: {verdict}"]


def _compared(run: Run, dataset: Dataset | None, model: int | None) -> Iterator[Finding]:
    """One model trained again, against what is stored of it."""
    done = np.flatnonzero(states(run)[0] == DONE)
    if not len(done):
        return
    if reason := _why_not(run, dataset):
        yield Finding(
            "unchecked", "arrays/phi", f"was not compared with a model that is trained again: {reason}"
        )
    elif dataset is not None:
        yield from _trained_again(run, dataset, int(done[0]) if model is None else model)


def _why_not(run: Run, dataset: Dataset | None) -> str:
    """Why a model of the run cannot be trained again; empty where it can."""
    if run.is_foreign:
        return "other code trained these"
    if "memberships" in run.provenance["fingerprints"]:
        return "these were not made by training alone"
    if dataset is None:
        return "the data is not there"
    try:
        run.require_same_data(dataset)
        run.require_same_models(dataset)
    except RunError as error:
        return str(error).removeprefix(f"{run.path}: ")
    return ""


def _trained_again(run: Run, dataset: Dataset, model: int) -> Iterator[Finding]:
    learner = Learner.of(run.config.recipe, dataset, run.config.share(dataset.num_examples))
    devices = devices_of(run.config.execution.devices)
    row, place = np.array([model]), f"arrays/phi/c/{model}"
    try:
        with jax.default_device(devices[0]):
            _, phi = ask(run, learner, dataset, train_again(run, dataset, row))
        away = float(np.abs(phi - np.asarray(run.signal("phi", row))[0]).max())
    except RunError as error:
        yield Finding("unchecked", place, f"was not compared: {error}")
        return
    if not away <= SAME_PHI:
        elsewhere = _elsewhere(run, device_name(devices))
        status = "unchecked" if elsewhere else "broken"
        why = f", {elsewhere}" if elsewhere else ""
        what = f"is up to {away:.3g} from that of model {model} trained again{why}"
        yield Finding(status, place, what, model)


def _elsewhere(run: Run, device: str) -> str:
    """What is other than when the run was trained; empty where nothing is."""
    now, then = versions(*PACKAGES), run.provenance["versions"]
    changes = [
        f"{name} {then.get(name)} then and {now.get(name)} now" for name in now if now[name] != then.get(name)
    ]
    trained = {session["device"] for session in run.provenance["sessions"]}
    if trained != {device}:
        changes.append(f"on {', '.join(sorted(trained))} then and {device} now")
    return "; ".join(changes)
