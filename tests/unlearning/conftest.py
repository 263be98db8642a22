"""An unlearning that is done, which tests read and copy."""

import pytest
from unlearned_runs import finished


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """Two requests of six examples, forgotten by four linear models."""
    return finished(
        tmp_path_factory.mktemp("unlearning") / "u",
        methods=("none", "retrain", "unlearned_runs.nudge"),
    )
