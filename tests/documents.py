"""Documents that the package writes, without what only tells whether they are whole."""

import json
from pathlib import Path
from typing import Any

__all__ = ["figures_of"]


def figures_of(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    return {name: value for name, value in document.items() if name not in ("checksum", "files", "arrays")}
