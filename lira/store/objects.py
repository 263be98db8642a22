"""Places on object stores, `s3://BUCKET/KEY` and `gs://BUCKET/KEY`: objects that are read and written whole.

There are no directories, no renaming and no locks. What there is, and all that is relied on: an object is seen whole or not at
all, by everybody as soon as it is written, and a write may be conditional on what is there. Where S3 is, and by whose word, is
told by the environment as AWS's own tools have it: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION,
and credentials by TensorStore's chain (environment, profile, container, instance).
"""

import contextlib
import fnmatch
import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorstore as ts

from lira.store.errors import RunError

__all__ = [
    "NOTHING",
    "SCHEMES",
    "ObjectPlace",
    "StoreError",
    "UnreadableError",
    "UnreadableFileError",
    "is_url",
    "reason_of",
    "unreadable",
]

# TensorStore's drivers.
SCHEMES = {"s3": "s3", "gs": "gcs"}
# The generation of an object that is not there.
NOTHING = b"\x02"
# A request that fails for no fault of its own (500, 503, no connection) is made again for about half a minute.
RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}
# How TensorStore says that what is stored is not as it was written; everything else is a failure to read it.
DAMAGE = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")


class StoreError(OSError):
    """An object store that refuses, or does not answer."""


class UnreadableError(StoreError):
    """What is stored and cannot be read, for another reason than that it is damaged."""


class UnreadableFileError(UnreadableError):
    """The same of one file of a file system, beside which others can be read."""


@dataclass(frozen=True, order=True)
class ObjectPlace:
    """An object, or all objects below a URL: what `pathlib.Path` is to a file system."""

    url: str
    """scheme, bucket and key, without a slash at the end"""

    @classmethod
    def of(cls, named: str) -> "ObjectPlace":
        """The place that a user names.

        Raises:
            RunError: there is no such kind of place, no bucket, or a name that is spelt as no other tool would.
        """
        scheme, _, rest = named.partition("://")
        if scheme not in SCHEMES:
            raise RunError(
                f"{named}: {scheme}:// is no kind of place known here: name a local directory, s3://BUCKET/KEY or gs://BUCKET/KEY"
            )
        bucket, *parts = rest.rstrip("/").split("/")
        if not bucket or any(part in ("", ".", "..") for part in parts) or not named.isprintable():
            raise RunError(
                f"{named!r}: must be {scheme}://BUCKET/KEY, without empty parts, '.', '..' or what is no text"
            )
        return cls(f"{scheme}://{'/'.join((bucket, *parts))}")

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        """The URL, which `directory_at` takes."""
        return self.url

    def __truediv__(self, name: str | os.PathLike[str]) -> "ObjectPlace":
        """A place below."""
        return ObjectPlace(f"{self.url}/{os.fspath(name)}")

    @property
    def parent(self) -> "ObjectPlace":
        """The place above."""
        return ObjectPlace(self.url.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    def spec(self) -> dict[str, Any]:
        """TensorStore's specification of it."""
        scheme, _, rest = self.url.partition("://")
        bucket, _, key = rest.partition("/")
        spec: dict[str, Any] = {"driver": SCHEMES[scheme], "bucket": bucket, "path": key}
        if scheme == "gs":
            return {**spec, "gcs_request_retries": RETRIES}
        # Told, because it is not presumed of other servers than AWS's.
        spec |= {"use_conditional_write": True, "s3_request_retries": RETRIES}
        told = {
            "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        }
        if os.environ.get(
            "AWS_ACCESS_KEY_ID"
        ):  # first in the chain, which says on stderr what else is not there
            spec["aws_credentials"] = {"type": "environment"}
        return {**spec, **{name: value for name, value in told.items() if value}}

    # --- What is there ----------------------------------------------------------------------------------------------

    def read(self) -> tuple[bytes | None, bytes]:
        """The content, None where there is none, and its generation, which a conditional write names."""
        store, key = self._store()
        with self._asked():
            found = store.read(key).result()
        return (found.value if found.state == "value" else None), found.stamp.generation

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it cannot be read.
        """
        content, _ = self.read()
        if content is None:
            raise FileNotFoundError(f"{self}: there is no such object")
        return content

    def read_text(self) -> str:
        """The content, as UTF-8."""
        return self.read_bytes().decode()

    def exists(self) -> bool:
        """Whether there is such an object or array, or any object below."""
        return self.is_file() or (self / "zarr.json").is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is such an object."""
        store, key = self._store()
        with self._asked():
            return bool(key) and store.read(key, byte_range=slice(0, 0)).result().state == "value"

    def is_dir(self) -> bool:
        """Whether there is any object below; all of them are listed."""
        return bool(self.below())

    def below(self) -> list[str]:
        """Of all objects below, from here on."""
        store, key = self._store()
        prefix = f"{key}/" if key else ""
        everything = ts.KvStore.KeyRange(prefix, f"{prefix[:-1]}0" if prefix else "")  # "0" follows "/"
        with self._asked():
            return sorted(each.decode()[len(prefix) :] for each in store.list(everything).result())

    def glob(self, pattern: str) -> Iterator["ObjectPlace"]:
        """What matches a pattern below, such as `scores/*/zarr.json`."""
        depth = pattern.count("/") + 1
        for name in sorted({"/".join(each.split("/")[:depth]) for each in self.below()}):
            parts = name.split("/")
            if len(parts) == depth and all(map(fnmatch.fnmatchcase, parts, pattern.split("/"))):
                yield self / name

    def iterdir(self) -> Iterator["ObjectPlace"]:
        """What is immediately below."""
        for name in sorted({each.partition("/")[0] for each in self.below()}):
            yield self / name

    # --- Writing ----------------------------------------------------------------------------------------------------

    def write(self, content: bytes | None, generation: bytes | None = None) -> "ts.Future[Any]":
        """Write the object, or remove it where `content` is None; see `written`.

        Args:
            content: all of it.
            generation: write only where this is what is there, NOTHING or what `read` returned.
        """
        store, key = self._store()
        return store.write(key, content, if_equal=generation)

    def written(self, writing: "ts.Future[Any]") -> bytes:
        """The generation that a `write` has made, once it is kept; empty where it was refused for its condition.

        Raises:
            StoreError: it could not be written.
        """
        with self._asked():
            return writing.result().generation

    def write_bytes(self, content: bytes | bytearray) -> None:
        """Write the object, whatever is there."""
        self.written(self.write(bytes(content)))

    def unlink(self, missing_ok: bool = True) -> None:
        """Remove the object, if there is one."""
        self.written(self.write(None))

    def rename(self, target: "ObjectPlace") -> None:
        """Copy the object, or all objects below, and then remove them: a kill in between leaves both."""
        names = [f"/{each}" for each in self.below()] or [""]
        for name in names:
            ObjectPlace(target.url + name).write_bytes(ObjectPlace(self.url + name).read_bytes())
        for name in names:
            ObjectPlace(self.url + name).unlink()

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """There are no directories."""

    def _store(self) -> tuple[ts.KvStore, str]:
        spec = self.spec()
        key = spec.pop("path")
        with self._asked():
            return _opened(json.dumps(spec)), key

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise StoreError(f"{self}: {reason_of(error)}") from error


@functools.lru_cache(maxsize=16)
def _opened(spec: str) -> ts.KvStore:
    return ts.KvStore.open(json.loads(spec)).result()


def is_url(named: str) -> bool:
    """Whether a user names a place on the network."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", named) is not None


def unreadable(where: object, why: str) -> UnreadableError:
    """What to raise of a place that cannot be read."""
    kind = UnreadableError if is_url(str(where)) else UnreadableFileError
    return kind(f"{where}: {why}")


def reason_of(error: BaseException) -> str:
    """TensorStore's reason, without what it adds in brackets."""
    return str(error).split(" [", 1)[0].splitlines()[0]
