"""A job submitted to a cluster of hosts with their own addresses: it outlives one of them, and does nothing twice.

The hosts, and how one is lost, are those of tests/test_chaos.py: a head without CPUs and two nodes. Here the training
gets there as a user sends it: `hbt-ray submit` from a folder with nothing but the project in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hosts import hosts, marks
from test_chaos import ENV, PACE, WAIT_SECONDS, Cluster, wait

from hbt_ray.config import Config

pytestmark = marks(900)

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with hosts(3, tmp_path_factory.mktemp("hosts")) as (head, *nodes):
        cluster = Cluster(head, nodes)
        cluster.start()
        yield cluster


@pytest.fixture
def project(tmp_path: Path, toy_config: Config, toy_model: Path) -> Path:
    """A clean folder: the package, the jobs, and the configuration of a run on one worker."""
    folder = tmp_path / "project"
    for name in ("hbt_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = toy_config.replaced(
        {
            "run.name": "submitted",
            "run.out": "runs",
            "model.backbone": str(toy_model),
            "train.steps": STEPS,
            "train.validate_every": 12,
            "train.checkpoint_every": 4,
            "train.log_every": 1,
            "cluster.cpus_per_worker": 1.0,
            "cluster.max_failures": 3,
        }
    )
    (folder / "jobs" / "configs" / "submitted.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder


def submitted(cluster: Cluster, project: Path, home: Path) -> subprocess.Popen[bytes]:
    """`hbt-ray submit train` on the head, followed to the end of the job."""
    submit = [
        str(Path(sys.executable).parent / "hbt-ray"), "submit", "--working-dir", str(project),
        "--env", f"{PACE}=0.4", "train", "jobs/configs/submitted.yaml",
    ]  # fmt: skip
    return cluster.head.run(submit, ENV | {"HBT_RAY_HOME": str(home)})


def test_a_submitted_job_outlives_a_host_and_does_nothing_twice(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    """The host with the worker is lost: the job ends right on the other one; submitted again, no step is taken."""
    metrics = tmp_path / "home" / "runs" / "submitted" / "metrics.jsonl"
    job = submitted(cluster, project, tmp_path / "home")

    def under_way() -> bool:
        assert job.poll() is None, cluster.head.log.read_text()[-4000:]
        return metrics.exists() and metrics.read_text().count("\n") > STEPS // 4

    wait(under_way, "training of the submitted job")
    (lost,) = [node for node in cluster.nodes if node.processes("RayTrainWorker")]
    lost.lose()
    assert metrics.read_text().count("\n") < STEPS
    assert job.wait(WAIT_SECONDS) == 0, cluster.head.log.read_text()[-4000:]
    trained = metrics.read_bytes()
    assert [json.loads(line)["step"] for line in trained.splitlines()] == list(range(STEPS))

    model = tmp_path / "home" / "runs" / "submitted" / "model" / "model.safetensors"
    weights = model.read_bytes()
    assert submitted(cluster, project, tmp_path / "home").wait(WAIT_SECONDS) == 0
    assert metrics.read_bytes() == trained
    assert model.read_bytes() == weights
    log = cluster.head.log.read_text()
    assert "train.submitted: SUCCEEDED, exit code 0" in log
    assert "train.submitted.2: SUCCEEDED, exit code 0" in log
    assert log.count(f'"steps": {STEPS}') == 2
