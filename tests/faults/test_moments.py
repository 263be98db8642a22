"""The short form of experiments/benchmarks/faults.py: a fault of each kind that ends a process, at a moment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments/benchmarks/faults.py"
KINDS = ("SIGKILL in write", "SIGKILL in report")


def test_nothing_is_lost_or_wrong_whenever_a_process_ends(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--count",
        "1",
        "--only",
        *KINDS,
        "--out",
        str(tmp_path / "out.json"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "out.json").read_text())
    assert counts.keys() == set(KINDS)
    for kind, each in counts.items():
        assert each["times"] == 1, kind
        assert not any(each[what] for what in ("lost", "wrong", "unseen", "unpromised")), (
            f"{kind}: {done.stdout}"
        )
    assert counts["SIGKILL in report"]["done before"] == 8
