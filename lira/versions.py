"""What this is a version of, and of what packages it runs on: also from a source tree that is not installed."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__", "versions"]

# The one place: the build reads it here (pyproject.toml), so an installed package says the same.
__version__ = "0.1.0"


def versions(*names: str) -> dict[str, str]:
    """Versions of lira and of the packages `names`; those that are not installed are left out."""
    found = {"lira": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
