"""Arrays as files, and the flags that name them."""

import pytest
from audited_models import Files


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)
