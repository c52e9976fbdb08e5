"""A session waits for what a cluster lacks, for as long as it was told to, and asks the autoscaler for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hbt_ray import session
from hbt_ray.config import ClusterSection
from hbt_ray.errors import ResourceError
from hbt_ray.session import LOCAL, check_resources, check_workers, prepare_environment, training_session

Requests = list[list[dict[str, float]]]


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Requests]:
    """Lets the cluster have these resources, one after the other, the last for good; gives what was asked for."""

    def grow(*stages: dict[str, float]) -> Requests:
        requests: Requests = []
        shown: Iterator[dict[str, float]] = iter(stages)
        last = dict(stages[-1])
        monkeypatch.setattr("ray.cluster_resources", lambda: next(shown, last))
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requests.append(bundles))
        monkeypatch.setattr(session, "POLL_SECONDS", 0.0)
        return requests

    return grow


def test_enough_is_not_asked_for(grow: Callable[..., Requests]) -> None:
    """Two workers' CPUs, one for data, and their GPUs: nothing is requested."""
    requests = grow({"CPU": 3.0, "GPU": 2.0})
    check_resources(2.0, 2, patience=60.0)
    assert requests == []


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [
        (2, [{"CPU": 1.5, "GPU": 1.0}] * 2 + [{"CPU": 1.0}]),
        (0, [{"CPU": 1.0}] * 4),
    ],
)
def test_the_autoscaler_is_asked_for_what_is_missing_and_waited_for(
    grow: Callable[..., Requests], caplog: pytest.LogCaptureFixture, gpus: int, asked: list[dict[str, float]]
) -> None:
    """Asked once for the workers with their GPUs and the data's CPU; the request is withdrawn when they are there."""
    requests = grow({"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 9.0}, {"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 2.0})
    with caplog.at_level("WARNING", session.__name__):
        check_resources(3.0, gpus, patience=60.0)
    assert requests == [asked, []]
    assert ("0 of 2 GPUs" in caplog.text) == bool(gpus)
    assert "2 of 4 CPUs" in caplog.text


@pytest.mark.parametrize(
    ("there", "error"),
    [
        (
            {"CPU": 64.0, "GPU": 1.0},
            r"cluster\.gpu: got 2 workers with a GPU each; expected at most 1,.*patience_minutes",
        ),
        ({"CPU": 2.0, "GPU": 2.0}, r"got 2 CPUs for workers; expected at most the 2 CPUs.*patience_minutes"),
    ],
)
def test_patience_ends_with_the_request_withdrawn(
    grow: Callable[..., Requests], there: dict[str, float], error: str
) -> None:
    """An autoscaler must not go on looking for hosts that nobody waits for."""
    requests = grow(there)
    with pytest.raises(ResourceError, match=error):
        check_resources(2.0, 2, patience=0.01)
    assert requests[-1] == []
    assert len(requests) == 2


def test_a_training_that_has_begun_does_not_wait(grow: Callable[..., Requests]) -> None:
    """Inside a session what is missing is an error at once, and nothing is asked for."""
    requests = grow({"CPU": 64.0, "GPU": 1.0})
    with pytest.raises(ResourceError, match="2 workers with a GPU each"):
        check_workers(ClusterSection(gpu=True, workers=2))
    check_workers(ClusterSection(gpu=True, workers=2, min_workers=1))
    assert requests == []


def test_a_cluster_is_waited_for_as_long_as_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest workers, their GPUs, and cluster.patience_minutes in seconds; a local Ray is not waited for."""
    waited: list[Any] = []
    for name, value in {"is_initialized": lambda: False, "init": lambda **_: None, "shutdown": lambda: None}.items():
        monkeypatch.setattr(f"ray.{name}", value)
    monkeypatch.setattr(session, "check_resources", lambda *needs: waited.append(needs))
    cluster = ClusterSection(gpu=True, workers=8, min_workers=2, cpus_per_worker=4.0, patience_minutes=15.0)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with training_session(cluster):
        pass
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with training_session(cluster):
        pass
    assert waited == [(8.0, 2, 900.0), (8.0, 2, 0.0)]


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_only_a_local_ray_does_without_what_a_cluster_needs(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """On a cluster Ray's own settings stay, notices of hosts that go among them; what a user has set always does."""
    environ = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"} | ({} if address is None else {"RAY_ADDRESS": address})
    monkeypatch.setattr("os.environ", environ)
    prepare_environment()
    assert environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "1"
    found = {name for name in LOCAL if name in environ}
    assert found == (set(LOCAL) if address is None else {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"})
    assert ("RAY_AUTH_TOKEN" in environ) == (address is None)


SESSIONS = """
from pathlib import Path
from hbt_ray.session import prepare_environment, ray_session

prepare_environment()
for _ in range(3):
    with ray_session():
        pass
    names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    print(names.count(Path("/proc/self/comm").read_text()))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not show its threads")
def test_local_rays_leave_no_exporters_behind() -> None:
    """Ray ends only its first exporter of metrics in a process; each further one may log after its logger is gone.

    That is a segmentation fault at the end of a process that did its work. Ray's exporter has a thread without a name
    of its own, as few others have.
    """
    ours = {name: value for name, value in os.environ.items() if name not in LOCAL}
    ran = subprocess.run([sys.executable, "-c", SESSIONS], env=ours, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    first, second, third = map(int, ran.stdout.split())
    assert third <= second <= first
