"""The schema of metrics.json that the package ships."""

import json
from importlib.resources import files

SCHEMA = json.loads((files("lira.reporting") / "schemas/metrics.schema.json").read_text())
