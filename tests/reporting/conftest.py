"""Scores that are measured once for all tests."""

import pytest
from reported_scores import pool

from lira.reporting import measured
from lira.reporting.document import metrics_document


@pytest.fixture(scope="session")
def evaluated():
    """Scores, memberships, what was measured, and the content of metrics.json."""
    scores, keep = pool()
    evaluation = measured.measure(scores, keep)
    return scores, keep, evaluation, metrics_document(evaluation)
