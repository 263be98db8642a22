"""How places are spelt, and what is told of a store."""

import pytest

from lira.store.errors import RunError
from lira.store.objects import ObjectPlace
from lira.store.places import directory_at


def test_places_are_spelt_in_one_way(monkeypatch):
    for name in ("s3://b/runs/x", "s3://b/runs/x/", "s3://b/runs/x//"):
        assert str(directory_at(name)) == "s3://b/runs/x"
    place = directory_at("gs://b/x") / "arrays/phi"
    assert (str(place), place.name) == ("gs://b/x/arrays/phi", "phi")
    assert directory_at(place) == place
    for name in ("s3://", "s3:///x", "s3://b/../c", "s3://b//c", "s3://b/./c", "s3://b/a\nb"):
        with pytest.raises(RunError, match=r"must be s3://BUCKET/KEY"):
            directory_at(name)
    with pytest.raises(RunError, match="http:// is no kind of place known here"):
        directory_at("http://b/c")


def test_tensorstore_is_told_what_the_environment_says(monkeypatch):
    for name in (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ACCESS_KEY_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    place = ObjectPlace.of("s3://b/runs/x")
    plain = place.spec()
    assert (plain["driver"], plain["bucket"], plain["path"]) == ("s3", "b", "runs/x")
    assert plain["use_conditional_write"] is True
    assert not plain.keys() & {"endpoint", "aws_region", "aws_credentials"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "there")
    assert (place.spec()["endpoint"], place.spec()["aws_region"]) == ("http://one", "there")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://two")
    monkeypatch.setenv("AWS_REGION", "here")
    assert (place.spec()["endpoint"], place.spec()["aws_region"]) == ("http://two", "here")
    google = ObjectPlace.of("gs://b/runs/x").spec()
    assert (google["driver"], google["bucket"], google["path"]) == ("gcs", "b", "runs/x")
    assert not google.keys() & {"endpoint", "aws_region", "aws_credentials", "use_conditional_write"}
