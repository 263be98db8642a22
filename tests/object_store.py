"""An S3 server of the test's own, moto's, in front of which requests are counted, refused and slowed down."""

import logging
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from lira.store import objects, places

BUCKET = "s3://bucket"


class ObjectStore:
    """The server, and what it was asked."""

    def __init__(self) -> None:
        # Here, for it takes a second, and most tests do without.
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app, self._one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()
        self.requests = Counter[str]()
        self.sent = self.received = 0
        self.fault: Callable[[str, str], int | None] = lambda method, key: None

    @property
    def writes(self) -> int:
        """Requests that change something."""
        return self.requests["PUT"] + self.requests["DELETE"]

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix("/bucket/")
        self.requests[method if key else "LIST"] += 1
        self.received += int(environ.get("CONTENT_LENGTH") or 0)
        if status := self.fault(method, key):
            from werkzeug.wrappers import Response

            return Response("<Error><Code>Injected</Code></Error>", status=status)(environ, start)
        # Conditions hold to the end of a request, as at AWS.
        with self._one_at_a_time:
            body = b"".join(self._app(environ, start))
        self.sent += len(body)
        return [body]


@contextmanager
def served() -> Iterator[tuple[ObjectStore, str]]:
    """A server with an empty bucket, and its address."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = ObjectStore()
    server = make_server("127.0.0.1", 0, store, threaded=True)  # pyright: ignore[reportArgumentType]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What moto keeps, it keeps for the process.
    for method, place in (("POST", "moto-api/reset"), ("PUT", "bucket")):
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{place}", method=method)):
            pass
    try:
        yield store, address
    finally:
        server.shutdown()
        thread.join()


def environment(address: str) -> dict[str, str]:
    """What tells AWS's tools of the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server to which `BUCKET` leads; a failed request is made again at once, and once."""
    with served() as (store, address):
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            objects, "RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"}
        )
        monkeypatch.setattr(places, "LOOK_AFAR", 0.02)
        yield store
