"""A whole run on S3 (corpus, checkpoints, export), interrupted and resumed, is the run on local disk, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import swift
import torch
import yaml
from faulty_s3 import BUCKET, PASSING, FaultyS3, environment, serve
from safetensors.torch import load_file

from hbt_ray.config import Config
from hbt_ray.errors import ResourceError
from hbt_ray.storage import Folder
from hbt_ray.train.record import accepted, damage

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
INTERRUPTED = 143


def command(config: Config) -> list[str]:
    """The command line of a run; its configuration is written beside the runs."""
    path = Path(config.run.out) / f"{config.run.name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "-m", "hbt_ray.cli", "train", str(path)]


def started(config: Config, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command(config), cwd=config.run.out, env=env, stdout=output, stderr=output)


def finished(config: Config, log: Path) -> None:
    """Run to the end."""
    process = started(config, log)
    assert process.wait(timeout=600) == 0, log.read_text()


def interrupted(config: Config, log: Path) -> None:
    """Run until some steps are on record, then ask the run to stop: it must say that it was interrupted."""
    process = started(config, log)
    deadline = time.monotonic() + 600
    while not rows(config) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == INTERRUPTED, log.read_text()
    assert 0 < len(rows(config)) < STEPS


def run_dir(config: Config) -> Path:
    return Path(config.run.out) / config.run.name


def rows(config: Config) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    path = run_dir(config) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def weights(config: Config) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir(config) / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def local(
    toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    """Two workers, sharded optimizer, checkpoints on disk, never stopped; and the corpus."""
    out = tmp_path_factory.mktemp("runs")
    settings = {
        "run.name": "local",
        "run.out": str(out),
        "model.backbone": str(toy_model),
        "train.steps": STEPS,
        "train.validate_every": 8,
        "train.checkpoint_every": 4,
        "cluster.workers": 2,
        "cluster.zero_stage": 1,
    }
    config = toy_config.replaced(settings)
    finished(config, out / "local.log")
    return config, Path(toy_corpus)


def check_run_on_s3(local: tuple[Config, Path], name: str, bucket: str) -> None:
    """Corpus and checkpoints in a bucket, one interruption: losses and weights are those of the local run."""
    reference, corpus = local
    Folder(f"s3://{bucket}/data").upload(corpus)
    config = reference.replaced(
        {"run.name": name, "run.storage": f"s3://{bucket}/runs", "data.root": f"s3://{bucket}/data"}
    )
    log = Path(config.run.out) / f"{name}.log"
    interrupted(config, log)
    finished(config, log)
    assert [row["step"] for row in rows(config)] == list(range(STEPS))
    for key in ("loss", "validation_loss"):
        assert [row.get(key) for row in rows(config)] == [row.get(key) for row in rows(reference)]
    expected = weights(reference)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(config).items())
    storage = Folder(f"s3://{bucket}/runs/{name}")
    kept = [saved for saved in accepted(storage) if saved.name in storage.folders()]
    assert kept[0].step == STEPS
    assert [damage(saved, storage) for saved in kept] == [None] * len(kept)
    assert not (run_dir(config) / "checkpoints").exists()
    for path in (run_dir(config) / "model").glob("*.*"):
        assert (storage / "model").read(path.name) == path.read_bytes()


def with_environment(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_run_on_a_failing_s3(local: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One request in twenty fails, in four ways, from the first to the last; nobody notices."""
    with serve(FaultyS3(share=0.05)) as server:
        with_environment(environment(server.endpoint), monkeypatch)
        check_run_on_s3(local, "faulty", BUCKET)
    assert set(server.faults) == set(PASSING)
    assert server.faults.total() > len(server.requests) / 40


def test_a_run_on_swift(
    local: tuple[Config, Path], swift_clients: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a server that checks signatures and stores on disk."""
    with_environment(swift_clients, monkeypatch)
    check_run_on_s3(local, "swift", swift.BUCKET)


def test_swift_refuses_a_wrong_secret(swift_clients: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that does not match is refused, without a second attempt, with what to check."""
    with_environment(swift_clients | {"AWS_SECRET_ACCESS_KEY": "wrong"}, monkeypatch)
    with pytest.raises(ResourceError, match=r"SIGNATURE_DOES_NOT_MATCH.*Check AWS_ACCESS_KEY_ID"):
        Folder(f"s3://{swift.BUCKET}/secret").entries()
    with pytest.raises(ResourceError, match=r"credentials that may read and write there"):
        Folder(f"s3://{swift.BUCKET}/secret").check_writable()
