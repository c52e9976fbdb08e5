"""OpenStack Swift's S3 on this machine: a server of other people, with real signatures and its objects on disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3  # type: ignore[import-untyped]
from faulty_s3 import environment

RECIPE = Path(__file__).resolve().parents[2] / "shared" / "recipes" / "swift" / "up.sh"
ADDRESS = ("127.0.0.1", 9000)  # the recipe's own
BUCKET = "corpora"


def missing() -> str | None:
    """What keeps Swift from being started here; None if nothing does."""
    if not RECIPE.exists():
        return f"{RECIPE} does not exist"
    for program in ("swift-proxy-server", "swift-object-server", "memcached"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None


@contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Swift with its files in a folder and `BUCKET` made; the environment of its clients."""
    assert not _answers(), f"another server answers at {ADDRESS}"
    log = folder / "up.log"
    with log.open("wb") as output:
        script = subprocess.Popen(["bash", str(RECIPE), str(folder)], stdout=output, stderr=output)
        try:
            assert script.wait(timeout=120) == 0, log.read_text()
            clients = environment("http://{}:{}".format(*ADDRESS), key="test:tester", secret="testing")
            boto3.client(
                "s3",
                endpoint_url=clients["AWS_ENDPOINT_URL"],
                aws_access_key_id=clients["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=clients["AWS_SECRET_ACCESS_KEY"],
                region_name=clients["AWS_DEFAULT_REGION"],
            ).create_bucket(Bucket=BUCKET)
            yield clients
        finally:
            for pid in (folder / "pids").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)  # the servers take their own workers along
            _wait_until_gone()


def _wait_until_gone() -> None:
    deadline = time.monotonic() + 60
    while _answers():
        assert time.monotonic() < deadline, f"the server at {ADDRESS} does not stop"
        time.sleep(0.1)


def _answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(ADDRESS) == 0
