"""MLflow's own REST server, in this process, in front of which the network and the server fail as they do in life."""

from __future__ import annotations

import os
import random
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from werkzeug.serving import WSGIRequestHandler, make_server

from hbt_ray.session import environment

Fault = Literal["down", "answer lost", "hanging", "unauthorised", "forbidden", "overloaded"]
HANG = 60  # seconds, at most
PASSING: tuple[Fault, ...] = ("down", "answer lost", "overloaded")
ANSWERS = {
    "unauthorised": ("401 Unauthorized", b"You are not authenticated."),
    "forbidden": ("403 Forbidden", b"Permission denied"),
    "overloaded": ("503 Service Unavailable", b"upstream connect error"),
}


class FaultyMlflow:
    """WSGI application around the server.

    `failing` is a fault that every request meets for as long as it is set; `share` of the requests meet one of PASSING,
    drawn with a seed. A hanging request waits for `released`.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.failing: Fault | None = None
        self.share = 0.0
        self.released = threading.Event()
        self.uri = ""
        self.requests: list[str] = []
        self._draws = random.Random(13)
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        fault = self.failing or (self._draws.choice(PASSING) if self._draws.random() < self.share else None)
        if fault in ANSWERS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else it passes for the next request
            status, body = ANSWERS[fault]
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]
        if fault == "down":
            raise _dropped(environ["werkzeug.socket"])
        if fault == "hanging":
            self.released.wait(HANG)
            raise _dropped(environ["werkzeug.socket"])
        answer = self._application(environ, start_response)
        if fault == "answer lost":  # done, but the client will not know
            b"".join(answer)
            raise _dropped(environ["werkzeug.socket"])
        return answer


def _dropped(connection: socket.socket) -> ConnectionResetError:
    """What ends a request without an answer; the client finds the connection closed."""
    connection.shutdown(socket.SHUT_RDWR)
    return ConnectionResetError()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """The many requests and errors are meant."""


@contextmanager
def serve(database: str, folder: Path) -> Iterator[FaultyMlflow]:
    """Answer on a free port of 127.0.0.1, with runs in a database and artifacts below `folder`; once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what MLflow imports
        import_module("mlflow.server.fastapi_app")  # which the first search would import
        from mlflow.server import app, handlers
        from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR

    settings = {SERVE_ARTIFACTS_ENV_VAR: "true", ARTIFACTS_DESTINATION_ENV_VAR: f"{folder}/artifacts"}
    with environment(settings):
        handlers.initialize_backend_stores(database, database, "mlflow-artifacts:/")
        os.environ.pop("MLFLOW_TRACKING_URI")  # MLflow sets it for a server, which would be a process of its own
        faulty = FaultyMlflow(app)
        server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=_Quiet)
        server.daemon_threads = True
        faulty.uri = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield faulty
        faulty.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
