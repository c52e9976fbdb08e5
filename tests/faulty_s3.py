"""An S3 server (moto) that fails as a storage under load does: a seeded share of its answers, or all of them."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import boto3  # type: ignore[import-untyped]
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Fault = Literal["slow down", "denied", "dropped before", "dropped after", "cut short"]
PASSING: tuple[Fault, ...] = ("slow down", "dropped before", "dropped after", "cut short")
REFUSALS = {
    "slow down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "denied": ("403 Forbidden", "AccessDenied", "Access Denied"),
}
BUCKET = "corpora"


class FaultyS3:
    """WSGI application around moto's S3.

    Args:
        share: of the requests that fail, by one of PASSING each.
        seed: of the draws.

    `failing` is a fault that every request meets, for as long as it is set; `next_failing` so many requests are told to
    slow down first. `faults` counts what was done to requests, `requests` lists all of them.
    """

    def __init__(self, share: float = 0.0, seed: int = 13) -> None:
        self.share = share
        self.failing: Fault | None = None
        self.next_failing = 0
        self.faults: Counter[str] = Counter()
        self.requests: list[str] = []
        self.endpoint = ""
        self._draws = random.Random(seed)
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
            fault = self._drawn()
            if fault is not None:
                self.faults[fault] += 1
        if fault in REFUSALS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else it passes for the next request
            return _refusal(*REFUSALS[fault], start_response)
        connection = environ["werkzeug.socket"]
        if fault == "dropped before":
            raise _dropped(connection)
        answer = self._moto(environ, start_response)
        if fault is None:
            return answer
        body = b"".join(answer)
        if fault == "dropped after":  # done, but the client will not know
            raise _dropped(connection)
        return _cut_short(body, connection)

    def _drawn(self) -> Fault | None:
        if self.failing:
            return self.failing
        if self.next_failing:
            self.next_failing -= 1
            return "slow down"
        return self._draws.choice(PASSING) if self._draws.random() < self.share else None


def _refusal(status: str, code: str, message: str, start_response: Callable[..., Any]) -> list[bytes]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _cut_short(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    """Half of what the headers promise, then a lost connection."""
    yield body[: len(body) // 2]
    raise _dropped(connection)


def _dropped(connection: socket.socket) -> ConnectionResetError:
    """What ends a request without an answer; the client finds the connection closed."""
    connection.shutdown(socket.SHUT_RDWR)
    return ConnectionResetError()


class _Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """The many requests and errors are meant."""


@contextmanager
def serve(faulty: FaultyS3) -> Iterator[FaultyS3]:
    """Answer on a free port of 127.0.0.1 with `BUCKET` made; moto keeps the objects of one process together."""
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=_Quiet)
    faulty.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    share, faulty.share = faulty.share, 0.0
    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=faulty.endpoint, **credentials).create_bucket(Bucket=BUCKET)
    faulty.share = share
    yield faulty
    server.shutdown()
    server.server_close()
    thread.join()


def environment(endpoint: str, key: str = "test", secret: str = "test") -> dict[str, str]:
    """What a client of such a server has in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",  # not every server speaks aws-chunked
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "WHEN_REQUIRED",
    }
