"""Arrays as files, and the flags that name them."""

import pytest
from audited_models import Files

from lira.exchange import estimators


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def unreported(monkeypatch):
    """Attacks and pages cost seconds, and are not what is looked at."""
    monkeypatch.setattr(estimators, "report", lambda run, *_, **__: run)
