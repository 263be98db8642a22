"""What tests of data sets share: a cache of their own, a folder of images and the paths that were decoded of it."""

import pytest
from data_sets import write_images

from lira.data import folder as image_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, so that none reads what another left."""
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """The paths decoded so far."""
    paths, decode = [], image_folder._decode_image
    monkeypatch.setattr(image_folder, "_decode_image", lambda path: (paths.append(path), decode(path))[1])
    return paths
