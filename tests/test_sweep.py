"""A sweep from end to end: killed and started again, trials that fail or are stopped, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from hbt_ray.config import Config, load_config
from hbt_ray.sweep.objective import pareto_front, score
from hbt_ray.sweep.run import run_sweep
from hbt_ray.sweep.settings import SweepConfig
from hbt_ray.train.metrics_log import validated

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NOT_A_NUMBER = 1e30  # a learning rate
NO_LEARNING = 1e-9
STEPS, EVERY = 30, 10


def sweep_file(config: Config, folder: Path, rates: list[float], **changes: Any) -> Path:
    """A grid over the learning rate, in a file beside its training configuration."""
    training = config.replaced({"run.out": str(folder / "out")}).model_dump(mode="json")
    (folder / "base.yaml").write_text(yaml.safe_dump(training))
    sweep = {
        "name": "rates",
        "config": "base.yaml",
        "settings": {"train.steps": STEPS, "train.validate_every": EVERY, "cluster.max_failures": 0},
        "space": {"train.learning_rate": {"grid": rates}},
        "search": {"algorithm": "grid", "seed": 1},
        "scheduler": {"name": "asha", "grace_steps": EVERY, "reduction_factor": 2},
        "validation": {"questions": 40},
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def loaded(path: Path) -> SweepConfig:
    from hbt_ray.sweep.settings import load_sweep

    return load_sweep(path)


def runs_of(content: dict[str, Any]) -> tuple[Run, list[Run]]:
    """The sweep's MLflow run, and all others of its experiment."""
    client = MlflowClient(content["tracking_uri"])
    (experiment,) = [found for found in client.search_experiments() if found.name == "hbt_ray"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_id == content["mlflow_run_id"]]
    return parent, [run for run in runs if run is not parent]


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_where_it_was(toy_config: Config, tmp_path: Path) -> None:
    """SIGKILL after two finished trials, then the same command: none of them redone, no trial or MLflow run twice."""
    path = sweep_file(toy_config, tmp_path, [3e-3, NOT_A_NUMBER, 1e-3, 2e-3, 4e-3], scheduler={"name": "none"})
    folder = tmp_path / "out" / "rates"
    with started(path) as first:
        finished = wait_for_finished(folder / "trials", 2, first)
        time.sleep(5)  # a snapshot of Ray Tune's state later
    assert not (folder / "sweep.json").exists()
    before = {trial: (folder / "trials" / f"rates-{trial}" / "metrics.jsonl").stat().st_mtime_ns for trial in finished}

    with started(path) as second:
        out, _ = second.communicate(timeout=800)
    assert second.returncode == 0
    content = json.loads((folder / "sweep.json").read_text())
    for trial, modified in before.items():
        assert (folder / "trials" / f"rates-{trial}" / "metrics.jsonl").stat().st_mtime_ns == modified
    check_content(content, folder)
    assert sorted(entry["status"] for entry in content["trials"]) == ["failed"] + 4 * ["finished"]
    assert {entry["settings"]["train.learning_rate"] for entry in content["trials"]} == {
        *(3e-3, NOT_A_NUMBER, 1e-3, 2e-3, 4e-3)
    }
    line = json.loads(out.splitlines()[-1])
    assert line["best_metrics"] == content["best"]["metrics"]
    assert line["report"] == str(folder / "sweep.html")

    began = time.monotonic()
    assert run_sweep(loaded(path)) == content
    assert time.monotonic() - began < 10


def check_content(content: dict[str, Any], folder: Path) -> None:
    """What sweep.json says is what metrics.jsonl, MLflow and best.yaml say."""
    weights, pareto = content["objective"]["weights"], content["objective"]["pareto"]
    for entry in content["trials"]:
        log = folder / "trials" / entry["run_name"] / "metrics.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        found = [row for row in rows if validated(row)]
        assert [point["step"] for point in entry["curve"]] == [row["step"] + 1 for row in found]
        for point, row in zip(entry["curve"], found, strict=True):
            assert point["metrics"]["validation_loss"] == row["validation_loss"]
            assert point["score"] == pytest.approx(sum(row[f"validation/{name}"] for name in weights))
        assert Path(entry["model_dir"]).is_dir() if entry["status"] == "finished" else entry["model_dir"] is None
        if entry["status"] == "failed":
            assert "not a finite number" in entry["error"]
    finished = [entry for entry in content["trials"] if entry["status"] == "finished"]
    best = max(finished, key=lambda entry: entry["score"])
    assert content["best"]["trial_id"] == best["trial_id"]
    assert content["best"]["score"] == score(best["metrics"], weights)
    front = pareto_front([entry["metrics"] for entry in finished], pareto)
    assert content["pareto"] == [finished[i]["trial_id"] for i in front]
    config = load_config(folder / "best.yaml")
    assert config.train.learning_rate == best["settings"]["train.learning_rate"]
    assert config.run.chosen_on == ("held-out",)
    assert config.data.hold_out.seed == 13
    assert (folder / "sweep.html").is_file()

    parent, children = runs_of(content)
    assert parent.info.status == "FINISHED"
    assert {run.info.run_id for run in children} == {entry["mlflow_run_id"] for entry in content["trials"]}
    assert len(children) == len(content["trials"])
    states = {run.info.run_id: run for run in children}
    for entry in content["trials"]:
        run = states[entry["mlflow_run_id"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("FAILED" if entry["status"] == "failed" else "FINISHED")
        expected = str(entry["step"]) if entry["status"] == "stopped" else None
        assert run.data.tags.get("stopped_at_step") == expected


@contextmanager
def started(path: Path) -> Iterator[subprocess.Popen[str]]:
    """`hbt-ray sweep` as a process; at the end it and all that it started get SIGKILL, as when a machine goes down."""
    command = [sys.executable, "-m", "hbt_ray.cli", "sweep", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=path.parent)
    family = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        if process.poll() is None:
            family += family[0].children(recursive=True)
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=20)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_finished(runs: Path, count: int, process: subprocess.Popen[str]) -> list[str]:
    """The ids of the finished trials, once there are so many."""
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        finished = [model.parent.name.removeprefix("rates-") for model in runs.glob("*/model")]
        if len(finished) >= count:
            return finished
        time.sleep(0.5)


@pytest.fixture
def two_at_a_time() -> Iterator[None]:
    """A local Ray with room for two trials of one worker, and with the dashboard, which answers for actors."""
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.timeout(800)
@pytest.mark.usefixtures("two_at_a_time")
def test_stopped_trials_leave_no_workers(toy_config: Config, tmp_path: Path) -> None:
    """Trials that do not learn are stopped at a rung: workers, actors and placement groups are gone, MLflow says so."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    path = sweep_file(
        toy_config,
        tmp_path,
        [1e-2, NO_LEARNING, 2 * NO_LEARNING],
        search={"algorithm": "grid", "seed": 1, "concurrent": 1},
        best={"retrain": {"train.steps": 12}},
    )
    notes: list[str] = []
    content = run_sweep(loaded(path), lambda done, note: notes.append(note))
    assert [entry["status"] for entry in in_order(content)] == ["finished", "stopped", "stopped"]
    assert [entry["step"] for entry in in_order(content)] == [STEPS, EVERY, EVERY]
    assert content["concurrent"] == 1
    assert sum("ended at step" in note for note in notes) == 3
    here = ray.get_runtime_context().gcs_address
    deadline = time.monotonic() + 20
    while left := live(list_placement_groups(here)) + live(list_actors(here)):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    assert content["best"]["retrained"]
    assert content["best"]["config"]["train"]["steps"] == 12
    _, children = runs_of(content)
    assert len(children) == 4  # and the last training
    assert {run.info.status for run in children} == {"FINISHED"}


def in_order(content: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(content["trials"], key=lambda entry: -entry["settings"]["train.learning_rate"])


def live(states: list[Any]) -> list[Any]:
    """What is not gone, but for the two actors that Ray Data keeps for all pipelines of a cluster."""
    kept = ("_AutoscalingCoordinatorActor", "_StatsActor")
    return [
        state for state in states if state["state"] not in ("DEAD", "REMOVED") and state.get("class_name") not in kept
    ]
