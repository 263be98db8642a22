import hypothesis
import pytest

# Compilation makes the first example slow, so no deadline; derandomized, so that a failure is everybody's failure.
hypothesis.settings.register_profile("lira", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("lira")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Neither read nor leave anything in the user's cache; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
