"""Files that tell by themselves whether they are whole: a SHA-256 of what they hold, at their beginning.

At the beginning, so that a truncated file still has it; in the same file, so that no reader finds one without the other.
"""

import hashlib
import json
import re
from typing import Any

import tomli_w

__all__ = ["CHECKSUMS", "checksum_of", "json_with_checksum", "parsed_json", "toml_body", "toml_with_checksum"]

# Whether the files of a directory were made with checksums, in provenance.json: one that has lost its own is then seen.
CHECKSUMS = "checksums"
_TOML = re.compile(rb"# sha256 of the lines below: ([0-9a-f]{64})\n")
# The same line with a fault in it, which makes no file of an earlier version of it.
_TOML_LIKE = re.compile(rb"# sha256 of|[^\n]*[0-9a-f]{64}\n?")
_JSON = re.compile(rb'\{\n  "checksum": "([0-9a-f]{64})",\n')


def toml_with_checksum(table: dict[str, Any]) -> bytes:
    """A table as TOML, below a comment with its checksum."""
    body = tomli_w.dumps(table).encode()
    return b"# sha256 of the lines below: %s\n" % _digest(body) + body


def toml_body(content: bytes) -> tuple[bytes, bool | None]:
    """What `toml_with_checksum` wrote below its comment, and whether it is whole; None where there is no checksum."""
    found = _TOML.match(content)
    if not found:
        return content, False if _TOML_LIKE.match(content) else None
    body = content[found.end() :]
    return body, _digest(body) == found[1]


def json_with_checksum(document: dict[str, Any]) -> bytes:
    """A document with one field or more as JSON, with its checksum as the first field.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    body = json.dumps(document, indent=2, allow_nan=False).encode()
    return b'{\n  "checksum": "%s",\n' % _digest(body) + body[2:]


def parsed_json(content: bytes) -> tuple[dict[str, Any], bool | None]:
    """The document that `json_with_checksum` wrote, and whether it is whole; None where there is no checksum.

    Raises:
        ValueError: it is not JSON, or no object.
    """
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    document.pop("checksum", None)
    found = _JSON.match(content)
    if not found:
        return document, None
    return document, _digest(b"{\n" + content[found.end() :]) == found[1]


def checksum_of(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _digest(body: bytes) -> bytes:
    return checksum_of(body).encode()
