"""`mlflow models serve` of a registered model, and what it must answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ports import free_port
from test_encoder import sentence_transformer_vectors

TEXTS = ["What is the currency of Japan?", "Япония", "الين الياباني"]


def answer(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text of a server's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def serving(address: str, variables: Mapping[str, str], log: Path) -> Iterator[str]:
    """`mlflow models serve` of a registered model on a free port of loopback; the URL that takes texts."""
    port = free_port()
    words = ["models", "serve", "-m", address, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls uvicorn
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            env={**os.environ, **variables, "PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 180
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        return answer(url)[0] == 200
    except OSError:
        return False


def check_served_vectors(url: str, folder: Path) -> None:
    """Every prompt, as a list and as a frame, gives what SentenceTransformer makes of the folder; mistakes give 400."""
    for prompt in ("", "query", "passage"):
        expected = sentence_transformer_vectors(folder, TEXTS, **({"prompt_name": prompt} if prompt else {}))
        for body in ({"inputs": TEXTS}, {"dataframe_split": {"columns": ["text"], "data": [[t] for t in TEXTS]}}):
            status, text = answer(url, body | {"params": {"prompt": prompt}})
            assert status == 200, text
            np.testing.assert_allclose(json.loads(text)["predictions"], expected, atol=1e-5)
    status, text = answer(url, {"inputs": TEXTS, "params": {"prompt": "question"}})
    assert (status, "expected query, passage" in text) == (400, True), text
