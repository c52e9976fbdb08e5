"""MLflow's server as mlflow/README.md starts it: PostgreSQL, artifacts on Swift's S3, authentication; on loopback."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import swift
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "mlflow" / "README.md"
POSTGRES_USER = "postgres"  # PostgreSQL does not run as root
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
SECONDS_TO_START = 240


def missing() -> str | None:
    """What keeps the server from being started here; None if nothing does."""
    if postgres_programs() is None:
        return "PostgreSQL is not installed"
    for module in ("psycopg", "flask_wtf"):
        if find_spec(module) is None:
            return f"the Python package {module} is not installed"
    return swift.missing()


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's own programs, which Debian keeps out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def documented(beginning: str) -> str:
    """The command of README.md that begins so."""
    (command,) = re.findall(rf"^    ({re.escape(beginning)}.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return str(command)


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """PostgreSQL with an empty database `mlflow`; the environment of its clients."""
    programs = postgres_programs()
    assert programs is not None
    as_owner: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        data, words = Path(folder) / "data", Path(folder) / "password"
        clients = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(free_port()),
            "PGUSER": "mlflow",
            "PGPASSWORD": secrets.token_hex(16),
        }
        words.write_text(clients["PGPASSWORD"])
        if os.geteuid() == 0:
            as_owner = ("--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--clear-groups", "--")
            for path in (folder, words):
                shutil.chown(path, POSTGRES_USER, POSTGRES_USER)
        owned = [*DIES_WITH_US, *as_owner]
        subprocess.run(
            [*owned, programs / "initdb", "--username=mlflow", "--auth=scram-sha-256", f"--pwfile={words}", str(data)],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        options = {
            "unix_socket_directories": folder,
            "port": clients["PGPORT"],
            "fsync": "off",
            "shared_buffers": "32MB",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([*owned, programs / "postgres", "-D", data, *settings], stderr=log, cwd=folder)
        try:
            run = {"env": os.environ | clients, "capture_output": True}
            deadline = time.monotonic() + 60
            while subprocess.run([programs / "pg_isready"], **run).returncode:
                assert time.monotonic() < deadline, (Path(folder) / "log").read_text()
                time.sleep(0.1)
            subprocess.run([programs / "createdb", "mlflow"], check=True, **run)
            yield clients
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(60)


@dataclass
class MlflowServer:
    """The server; `start` and `kill` as often as needed.

    Args:
        uri: its address.
        environment: what the server runs with, for commands of an operator too.
        clients: what those who log to it have in their environment.
        log: what it prints.
    """

    uri: str
    environment: Mapping[str, str]
    clients: Mapping[str, str]
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it by the command of README.md, on our port; returns when it answers."""
        command = documented("mlflow server --app-name").replace("--port=5000", f"--port={self.uri.rpartition(':')[2]}")
        command = command.replace("$MLFLOW_ARTIFACTS", self.environment["MLFLOW_ARTIFACTS"])
        command = command.replace("--workers=2", "--workers=1")  # a second one takes another 400 MB
        program, *arguments = shlex.split(command)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIES_WITH_US, sys.executable, "-m", program, *arguments],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def serve(folder: Path) -> Iterator[MlflowServer]:
    """The server, started, with the logs of all parts below a folder."""
    (folder / "swift").mkdir()
    with swift.serve(folder / "swift") as s3, postgres() as database:
        password = secrets.token_hex(16)
        settings = {
            **os.environ,
            **database,
            **s3,
            "MLFLOW_ARTIFACTS": f"s3://{swift.BUCKET}/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "mlflow" / "basic_auth.ini"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        uri = f"http://127.0.0.1:{free_port()}"
        clients = {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": password,
        }
        server = MlflowServer(uri, settings, clients, folder / "mlflow.log")
        server.start()
        try:
            yield server
        finally:
            server.kill()
