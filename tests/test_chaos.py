"""Training that cannot be killed: workers, whole hosts and the job itself die at random steps, and nothing changes.

Three Ray hosts on one machine (hosts.py): the head, where the job runs, and two with a worker each. `metrics.jsonl`
says how far the run is; then something is killed. What the run leaves is compared with an unbroken one.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from hosts import Host, hosts, marks, process_of
from safetensors.torch import load_file

from hbt_ray.config import Config

pytestmark = marks(1800)

BIN = Path(sys.executable).parent
PORT = 6379
ENV = {
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches this network
    "RAY_health_check_initial_delay_ms": "1000",  # a lost host is noticed in seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
}
PACE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # reports wait for it, and here every step reports: the seconds of a step
TIMED = {
    "seconds",
    "tokens_per_second",
    "data_wait_share",
    "mfu",
}  # of a row of metrics.jsonl; everything else must agree
WAIT_SECONDS = 240
TERMINATED = 128 + signal.SIGTERM


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait for something to happen; fail if it takes too long."""
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until, f"no {what} in {WAIT_SECONDS} s"
        time.sleep(0.2)  # a look goes through all processes of the hosts


@dataclass
class Cluster:
    """A Ray head without CPUs and two worker hosts that have room for one worker each."""

    head: Host
    nodes: list[Host]

    def start(self, *options: str) -> None:
        """Start Ray everywhere; `options` are the head's."""
        self.head.start(self._ray("--head", f"--port={PORT}", "--num-cpus=0", *options, host=self.head), ENV)
        for node in self.nodes:
            self.start_node(node)
        for host in (self.head, *self.nodes):
            wait(lambda host=host: "Ray runtime started" in host.log.read_text(), f"Ray on {host.address}")

    def start_node(self, node: Host) -> None:
        node.start(self._ray(f"--address={self.head.address}:{PORT}", "--num-cpus=2", host=node), ENV)

    def workers(self) -> set[psutil.Process]:
        """The live workers of Ray Train."""
        return {process for node in self.nodes for process in node.processes("RayTrainWorker")}

    def _ray(self, *options: str, host: Host) -> list[str]:
        address = f"--node-ip-address={host.address}"
        return [str(BIN / "ray"), "start", *options, "--block", address, "--disable-usage-stats"]


@dataclass
class Training:
    """`hbt-ray train` of one configuration on the head; starting it again resumes."""

    cluster: Cluster
    config: Config
    pace: float = 0.4
    _entered: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        return Path(self.config.run.out) / self.config.run.name

    def start(self) -> None:
        path = self.folder.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        env = {**ENV, PACE: str(self.pace), "RAY_ADDRESS": f"{self.cluster.head.address}:{PORT}"}
        self._entered = self.cluster.head.run([str(BIN / "hbt-ray"), "train", str(path)], env)

    def kill(self, number: signal.Signals) -> int:
        """Send a signal to the job's driver; its exit code."""
        assert self._entered is not None
        process_of(self._entered).send_signal(number)
        return self._entered.wait(WAIT_SECONDS)

    def end(self) -> int:
        """Exit code of the job once it has ended by itself."""
        assert self._entered is not None
        return self._entered.wait(WAIT_SECONDS)

    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says so far."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def done(self) -> int:
        """Steps in metrics.jsonl."""
        return len(self.rows())

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to happen while the job runs; fail if the job ends first or it takes too long."""

        def happened() -> bool:
            assert self._entered is not None
            ended = self._entered.poll()
            assert ended is None, f"exit code {ended} at step {self.done()}, before {what}: {self.last_words()}"
            return condition()

        wait(happened, what)

    def last_words(self) -> str:
        """The end of what the head has printed."""
        return self.cluster.head.log.read_text(errors="replace")[-4000:]


Fault = Callable[[Training, random.Random], None]


def lose_worker(training: Training, rng: random.Random) -> None:
    """kill -9 of a worker."""
    rng.choice(sorted(training.cluster.workers(), key=lambda process: process.pid)).kill()


def lose_host(training: Training, rng: random.Random) -> None:
    """A power cut of a whole host, which is switched on again."""
    node = rng.choice(training.cluster.nodes)
    node.lose()
    training.cluster.start_node(node)


def terminate_job(training: Training, rng: random.Random) -> None:
    """SIGTERM to the job, which says that it was interrupted; the same command again."""
    assert training.kill(signal.SIGTERM) == TERMINATED
    training.start()


def lose_job(training: Training, rng: random.Random) -> None:
    """kill -9 of the job; the same command again."""
    assert training.kill(signal.SIGKILL) == -signal.SIGKILL
    training.start()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with hosts(3, tmp_path_factory.mktemp("hosts")) as (head, *nodes):
        cluster = Cluster(head, nodes)
        cluster.start("--include-dashboard=false")
        yield cluster


@pytest.fixture(scope="module")
def config(toy_config: Config, toy_model: Path) -> Config:
    """Sixty steps on two workers that only fit on two hosts; dropout on."""
    return toy_config.replaced(
        {
            "model.backbone": str(toy_model),
            "train.steps": 60,
            "train.validate_every": 20,
            "train.checkpoint_every": 4,
            "train.log_every": 1,
            "cluster.workers": 2,
            "cluster.cpus_per_worker": 1.25,
            "cluster.zero_stage": 2,
            "cluster.max_failures": 20,
        }
    )


def undisturbed(cluster: Cluster, config: Config) -> Training:
    """A run to the end, without a pause."""
    training = Training(cluster, config, pace=0.05)
    training.start()
    assert training.end() == 0, training.last_words()
    return training


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_ten_kills_leave_no_trace(cluster: Cluster, config: Config) -> None:
    """Workers, hosts and the job die ten times at random steps: metrics and weights are bitwise the unbroken run's."""
    steps, rng = config.train.steps, random.Random(7)
    faults: list[Fault] = [*4 * [lose_worker], *2 * [lose_host], *2 * [terminate_job], *2 * [lose_job]]
    rng.shuffle(faults)
    training = Training(cluster, config.replaced({"run.name": "broken"}))
    training.start()
    for step, fault in zip(sorted(rng.sample(range(2, steps - 8), len(faults))), faults, strict=True):
        survive(training, step, fault, rng)
    assert training.end() == 0, training.last_words()

    unbroken = undisturbed(cluster, config.replaced({"run.name": "unbroken"}))
    assert [row["step"] for row in training.rows()] == list(range(steps))
    assert comparable(training.rows()) == comparable(unbroken.rows())
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in (training, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def survive(training: Training, step: int, fault: Fault, rng: random.Random) -> None:
    """Let a fault happen when a step is done, and wait until other workers have gone on."""
    training.wait(lambda: training.done() >= step and len(training.cluster.workers()) == 2, f"step {step}")
    time.sleep(rng.uniform(0, 0.4))  # anywhere in a step
    before, done, killed = training.cluster.workers(), training.done(), time.monotonic()
    fault(training, rng)
    training.wait(lambda: len(training.cluster.workers() - before) == 2, f"new workers after {fault.__name__}")
    resumed = training.done()  # more than `done`: the job may have taken steps while it was being stopped
    training.wait(lambda: training.done() > resumed, f"steps of the new workers after {fault.__name__}")
    print(f"step {done:3d}: {fault.__name__}, {time.monotonic() - killed:.1f} s until the next new step")


def test_a_lost_host_is_done_without_until_it_is_back(cluster: Cluster, config: Config) -> None:
    """Two workers, one while a host is away, two again: the same batches, and losses to 1e-4."""
    config = config.replaced({"model.backbone": "scratch", "model.scratch.dropout": 0.0, "train.steps": 10_000})
    training = Training(cluster, config.replaced({"run.name": "elastic", "cluster.min_workers": 1}))
    training.start()
    wait_for_workers(training, 2)
    lost = random.Random(1).choice(cluster.nodes)
    lost.lose()
    wait_for_workers(training, 1)
    cluster.start_node(lost)
    wait_for_workers(training, 2)
    assert training.kill(signal.SIGTERM) == TERMINATED

    rows = training.rows()
    assert [row["step"] for row in rows] == list(range(len(rows)))
    expected = undisturbed(cluster, config.replaced({"run.name": "steady", "train.steps": len(rows)})).rows()
    assert [(row["mode"], row["dataset"]) for row in rows] == [(row["mode"], row["dataset"]) for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=1e-4)


def wait_for_workers(training: Training, count: int) -> None:
    """Wait until so many workers have taken a few more steps."""
    training.wait(lambda: len(training.cluster.workers()) == count, f"group of {count}")
    done, since = training.done(), time.monotonic()
    training.wait(lambda: training.done() >= done + 5, f"steps of {count} workers")
    assert len(training.cluster.workers()) == count
    print(f"step {done:3d}: {count} workers, {time.monotonic() - since:.1f} s until step {done + 5}")
