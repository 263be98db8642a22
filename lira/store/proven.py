"""What is proven of a run's models, as provenance.json holds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lira.learning.accounting import Guarantee
from lira.store.config import build, in_json
from lira.store.errors import RunError
from lira.store.places import Place

__all__ = ["as_record", "proven_of", "require_same_noise"]

# In provenance.json, of runs whose recipe has privacy.
PRIVACY = "privacy"


def as_record(guarantee: Guarantee | None) -> dict[str, Any]:
    """What provenance.json holds of it: nothing where there is none."""
    return {} if guarantee is None else {PRIVACY: in_json(dataclasses.asdict(guarantee))}


def proven_of(path: Place, provenance: Mapping[str, Any]) -> Guarantee | None:
    """What is proven of every model of the run at `path`; None where its recipe has no privacy."""
    if PRIVACY not in provenance:
        return None
    return build(Guarantee, provenance[PRIVACY], str(path / "provenance.json"))


def require_same_noise(path: Place, provenance: Mapping[str, Any], guarantee: Guarantee | None) -> None:
    """Raise RunError where models trained now would have other noise than those that are there, at the same epsilon."""
    there = proven_of(path, provenance)
    if there is None or guarantee is None:
        return
    for name in ("noise", "rate", "steps", "max_batch"):
        if getattr(there, name) != getattr(guarantee, name):
            raise RunError(
                f"{path}: its models have {name} {getattr(there, name):g} by recipe.privacy, and accounting comes to "
                f"{getattr(guarantee, name):g} now: go on with the versions that began the run, or name another directory"
            )
