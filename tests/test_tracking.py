"""MLflow runs and the registry: on a SQLite store, and on a server that fails in every way that servers fail."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_mlflow import HANG, Fault, FaultyMlflow, serve
from mlflow import MlflowClient

from hbt_ray.errors import ConfigError, ModelError, ResourceError
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.tracking import delivery, runs
from hbt_ray.tracking.delivery import flattened
from hbt_ray.tracking.registry import download_model, register
from hbt_ray.tracking.runs import (
    Store,
    TrackedRun,
    is_open,
    open_run,
    run_of_folder,
    share_run,
    sync,
    tracked_folders,
    tracking_store,
)

ROWS = [
    {"step": 0, "mode": "X-Y", "dataset": "toy", "loss": 2.5, "seconds": 0.5},
    {"step": 1, "mode": "X-Y", "dataset": "toy", "loss": 2.0, "seconds": 0.25, "validation_loss/X-X-mono": 1.0},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A fresh SQLite store."""
    return tracking_store(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def running_server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyMlflow]:
    """MLflow's REST server."""
    with serve(store.uri, tmp_path_factory.mktemp("server")) as faulty:
        yield faulty


@pytest.fixture
def server(running_server: FaultyMlflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyMlflow]:
    """The server in good health; clients with the patience that a busy machine needs, and no pause after failures."""
    monkeypatch.setattr(runs, "OPEN_SECONDS", 200.0)
    monkeypatch.setattr(runs, "FINISH_SECONDS", 200.0)
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.0)
    running_server.released.clear()
    yield running_server
    running_server.failing, running_server.share = None, 0.0
    running_server.released.set()


def opened(store: Store, run_dir: Path, **options: Any) -> TrackedRun:
    experiment = "in files" if store.artifact_root else "on a server"  # the server has the database of the other tests
    config = {"mix": {"alpha": 0.5}, "run": {"name": "a run"}}
    return open_run(store, experiment, "a run", run_dir, config, **options)


def write(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    """What the training does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def some_rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "mode": "X-Y", "loss": 1 / (1 + step), "seconds": 0.1} for step in range(first, first + count)
    ]


def history(client: MlflowClient, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def check_delivered(run_dir: Path, store: Store, status: str) -> None:
    """MLflow has one run for the folder, whole, with every row's every number once."""
    client = MlflowClient(store.uri, store.uri)
    record = json.loads((run_dir / "mlflow.json").read_text())
    run = client.get_run(record["run_id"])
    assert run.info.status == status
    assert run.data.params == {"mix.alpha": "0.5", "run.name": "a run"}
    assert "config.json" in [item.path for item in client.list_artifacts(record["run_id"])]
    token = run.data.tags["hbt_ray.token"]
    found = client.search_runs([run.info.experiment_id], f"tags.`hbt_ray.token` = '{token}'")
    assert [one.info.run_id for one in found] == [record["run_id"]]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in {name for row in rows for name in row} - {"step", "mode", "dataset"}:
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert sorted(history(client, record["run_id"], name)) == expected
    assert list((run_dir / "mlflow.spool").glob("[0-9]*")) == []


def synced(*folders: Path) -> list[dict[str, Any]]:
    return sync(folders, lambda folder, sent: None)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_rows_become_metrics_and_the_configuration_parameters(store: Store, tmp_path: Path) -> None:
    """Every number of a row is a metric at its step and time; dotted configuration keys are parameters."""
    run = opened(store, tmp_path)
    write(tmp_path, ROWS)
    run.log_rows()
    run.finish()
    check_delivered(tmp_path, store, "FINISHED")
    start = run.client.get_run(run.run_id).info.start_time
    times = [metric.timestamp for metric in run.client.get_metric_history(run.run_id, "loss")]
    assert times == [start + 500, start + 750]


def test_a_resumed_run_is_the_same_run(store: Store, tmp_path: Path) -> None:
    """The second command with the same run folder goes on in the first one's MLflow run."""
    first = opened(store, tmp_path)
    write(tmp_path, ROWS[:1])
    first.finish("FAILED")
    assert not is_open(tmp_path)
    second = opened(store, tmp_path)
    assert second.run_id == first.run_id
    assert second.client.get_run(second.run_id).info.status == "RUNNING"
    assert is_open(tmp_path)
    write(tmp_path, ROWS[1:])
    second.finish()
    check_delivered(tmp_path, store, "FINISHED")
    found = run_of_folder(tmp_path, store)
    assert found is not None
    assert found.run_id == first.run_id
    assert run_of_folder(tmp_path, Store("sqlite:///elsewhere.db", None)) is None


def test_a_run_whose_id_was_not_noted_is_found_again(store: Store, tmp_path: Path) -> None:
    """Killed between MLflow's making of the run and our note of its id: the same run goes on, whole, and no other."""
    opened(store, tmp_path / "above")
    first = opened(store, tmp_path / "r", parent=tmp_path / "above")
    token = first.client.get_run(first.run_id).data.tags["hbt_ray.token"]
    (tmp_path / "r" / "mlflow.json").unlink()
    delivery.announce(tmp_path / "r", store, "in files", "a run", {"mix": {"alpha": 0.5}}, None)
    birth = tmp_path / "r" / "mlflow.spool" / "run.json"
    birth.write_text(json.dumps(json.loads(birth.read_text()) | {"token": token}))
    again = opened(store, tmp_path / "r", parent=tmp_path / "above")
    assert again.run_id == first.run_id
    assert opened(store, tmp_path / "other").run_id != first.run_id


def test_rows_sent_twice_are_there_once(store: Store, tmp_path: Path) -> None:
    """SIGKILL between MLflow's taking of rows and our note of it: the rows are sent again as the same metrics."""
    run = opened(store, tmp_path)
    rows = [*some_rows(0, 700), {"step": 700, "loss": float("nan"), "seconds": 0.0}]
    write(tmp_path, rows)
    assert run.settle()
    (tmp_path / "mlflow.spool" / "position.json").unlink()
    assert synced(tmp_path)[0]["rows"] == 701
    assert synced(tmp_path)[0]["rows"] == 0
    found = history(run.client, run.run_id, "loss")
    assert sorted(step for step, _ in found) == list(range(701))
    assert dict(found)[3] == rows[3]["loss"]
    assert history(run.client, run.run_id, "seconds")[-1] == (700, 0.0)


def test_a_line_that_is_being_written_waits(store: Store, tmp_path: Path) -> None:
    """Half a line is no row yet."""
    run = opened(store, tmp_path)
    write(tmp_path, ROWS[:1])
    text = json.dumps(ROWS[1]) + "\n"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(text[:9])
        file.flush()
        assert run.settle()
        assert history(run.client, run.run_id, "loss") == [(0, 2.5)]
        file.write(text[9:])
    run.finish()
    check_delivered(tmp_path, store, "FINISHED")


def test_the_default_store_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SQLite path does not depend on the current folder; MLFLOW_TRACKING_URI goes first."""
    monkeypatch.chdir(tmp_path)
    assert tracking_store(Path("runs")).uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_store(Path("runs")) == Store("http://127.0.0.1:5000", None)


@pytest.mark.parametrize("uri", ["http://me:hidden@mlflow.example", "postgresql://me:hidden@db.example/mlflow"])
def test_credentials_in_the_address_are_refused(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address is written into files and messages, so it holds no password; the refusal does not repeat it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        tracking_store(tmp_path)
    assert "hidden" not in str(refusal.value)


# --- a server that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["down", "hanging", "overloaded"])
def test_a_server_that_is_down_at_the_start_gets_everything_later(
    fault: Fault,
    server: FaultyMlflow,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Opening waits as long as is stated, logging not at all; later the server has run, parent, rows and tags."""
    store = Store(server.uri, None)
    monkeypatch.setattr(runs, "OPEN_SECONDS", 1.0)
    server.failing = fault
    began = time.monotonic()
    opened(store, tmp_path / "above")
    run = opened(store, tmp_path / "run", parent=tmp_path / "above")
    assert time.monotonic() - began < HANG / 2
    assert run.run_id is None
    assert "Training goes on" in caplog.text
    began = time.monotonic()
    for row in ROWS[:1]:
        write(tmp_path / "run", [row])
        run.log_rows()
    run.set_tags({"mood": "patient"})
    assert time.monotonic() - began < HANG / 2

    server.failing = None
    server.released.set()
    write(tmp_path / "run", ROWS[1:])
    run.finish()
    check_delivered(tmp_path / "run", store, "FINISHED")
    found = run.client.get_run(run.run_id)
    assert found.data.tags["mood"] == "patient"
    assert (
        found.data.tags["mlflow.parentRunId"] == json.loads((tmp_path / "above" / "mlflow.json").read_text())["run_id"]
    )


def test_a_server_that_ends_with_the_training_is_told_by_sync(
    server: FaultyMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hanging at the end it costs the patience that is stated; the message names the command that delivers the rest."""
    store = Store(server.uri, None)
    run = opened(store, tmp_path)
    write(tmp_path, ROWS[:1])
    assert run.settle()
    server.failing = "hanging"
    write(tmp_path, ROWS[1:])
    run.log_rows()
    results = tmp_path / "report"
    results.mkdir()
    (results / "page.html").write_text("a page")
    run.log_folder(results, "study")
    (results / "page.html").unlink()
    monkeypatch.setattr(runs, "FINISH_SECONDS", 0.5)
    began = time.monotonic()
    run.finish()
    assert time.monotonic() - began < HANG / 2
    assert f"hbt-ray tracking sync {tmp_path}" in caplog.text
    server.failing = None
    server.released.set()
    (sent,) = synced(tmp_path)
    assert (sent["run_id"], sent["rows"], sent["messages"]) == (run.run_id, 1, {"files": 1, "status": 1})
    check_delivered(tmp_path, store, "FINISHED")
    assert [item.path for item in run.client.list_artifacts(run.run_id, "study")] == ["study/page.html"]
    assert synced(tmp_path)[0]["messages"] == {}


def test_whatever_the_network_does_everything_arrives_once(server: FaultyMlflow, tmp_path: Path) -> None:
    """A third of all requests fail, before or after they were done: one run, every number once."""
    store = Store(server.uri, None)
    server.share = 0.35
    run = opened(store, tmp_path)
    for first in range(0, 60, 5):
        write(tmp_path, some_rows(first, 5))
        run.log_rows()
        run.log_figures({f"figure/{first}": 1.0})
        time.sleep(0.02)
    run.finish()
    for _ in range(100):
        try:
            synced(tmp_path)
            break
        except ResourceError:
            continue
    failed = Counter(server.requests)
    assert failed["POST /api/2.0/mlflow/runs/create"] >= 1
    check_delivered(tmp_path, store, "FINISHED")
    client = MlflowClient(store.uri)
    run_id = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
    assert all(history(client, run_id, f"figure/{first}") == [(0, 1.0)] for first in range(0, 60, 5))


def test_a_server_that_fails_in_the_middle_says_so_once(
    server: FaultyMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten attempts on a server that is gone, or no longer lets us in: one warning, and nothing raised."""
    run = opened(Store(server.uri, None), tmp_path)
    server.failing = "forbidden"
    for row in some_rows(0, 10):
        write(tmp_path, [row])
        run.log_rows()
        while run._courier is not None and run._courier._going():
            time.sleep(0.01)
    assert caplog.text.count("Training goes on") == 1
    assert "403" in caplog.text
    server.failing = None
    run.finish()
    check_delivered(tmp_path, run.store, "FINISHED")


@pytest.mark.parametrize(("fault", "status"), [("unauthorised", "401"), ("forbidden", "403")])
def test_a_server_that_refuses_is_a_clear_error(
    fault: Fault, status: str, server: FaultyMlflow, tmp_path: Path
) -> None:
    """Wrong credentials are a mistake to mend before hours of training: ResourceError, with the variables to set."""
    server.failing = fault
    with pytest.raises(ResourceError, match=rf"{status}.*MLFLOW_TRACKING_PASSWORD"):
        opened(Store(server.uri, None), tmp_path)


def test_a_database_of_an_older_schema_is_a_clear_error(store: Store, tmp_path: Path) -> None:
    """The message says how to upgrade it."""
    opened(store, tmp_path / "first")
    database = tmp_path / "old.db"
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as source, sqlite3.connect(database) as target:
        source.backup(target)
        target.execute("update alembic_version set version_num = 'cc1f77228345'")
    target.close()
    source.close()
    with pytest.raises(ResourceError, match=f"mlflow db upgrade sqlite:///{database}"):
        opened(Store(f"sqlite:///{database}", None), tmp_path / "second")


def test_nobody_at_the_address_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A closed port: the run is opened, the warning names the store and the way out."""
    run = opened(Store("http://127.0.0.1:9", None), tmp_path)
    assert run.run_id is None
    assert "correct MLFLOW_TRACKING_URI" in caplog.text
    with pytest.raises(ResourceError, match=r"http://127\.0\.0\.1:9"):
        synced(tmp_path)


KILLED = """
import json, sys, time
from pathlib import Path
from hbt_ray.tracking.runs import Store, open_run
folder, uri = Path(sys.argv[1]), sys.argv[2]
run = open_run(Store(uri, None), "in files", "a run", folder, {"mix": {"alpha": 0.5}, "run": {"name": "a run"}})
for step in range(10**6):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / (1 + step), "seconds": 0.1}) + "\\n")
    run.log_rows()
    time.sleep(0.002)
"""


def test_a_killed_driver_loses_nothing_and_doubles_nothing(store: Store, tmp_path: Path) -> None:
    """SIGKILL while it logs, with another process that delivers the same folder all the time; then a sync."""
    opened(store, tmp_path / "warm")  # the database is made
    folder = tmp_path / "run"
    driver = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), store.uri], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 280
        while not (folder / "mlflow.spool" / "position.json").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(10):
            synced(folder)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    lines = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(lines[: lines.rfind(b"\n") + 1])  # as a resumed training does
    assert is_open(folder)
    run = opened(store, folder)
    run.finish("KILLED")
    assert lines.count(b"\n") > 20
    check_delivered(folder, store, "KILLED")


def test_sync_takes_folders_of_runs_and_refuses_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder above run folders stands for all of them; one without a run, or of another store, is an error."""
    for name in ("a", "b"):
        opened(store, tmp_path / "out" / name)
        write(tmp_path / "out" / name, ROWS)
    told: list[Path] = []
    results = sync([tmp_path / "out", tmp_path / "out" / "a"], lambda folder, sent: told.append(folder))
    assert told == [tmp_path / "out" / "a", tmp_path / "out" / "b"]
    assert [(result["rows"], result["messages"], result["versions"]) for result in results] == [(2, {}, {})] * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="a run folder"):
        synced(tmp_path / "empty")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=f"MLFLOW_TRACKING_URI: got http://127.0.0.1:9; expected {store.uri}"):
        synced(tmp_path / "out")


def test_folders_can_feed_one_run(server: FaultyMlflow, tmp_path: Path) -> None:
    """The intervals of a population's trial, begun while the server was down, end in one MLflow run."""
    store = Store(server.uri, None)
    server.failing = "down"
    first = opened(store, tmp_path / "trial-0-x")
    write(tmp_path / "trial-0-x", ROWS[:1])
    share_run(tmp_path / "trial-0-x", tmp_path / "trial-1-y")
    second = opened(store, tmp_path / "trial-1-y")
    write(tmp_path / "trial-1-y", ROWS[1:])
    server.failing = None
    second.finish()
    first.finish()
    assert first.run_id == second.run_id
    assert sorted(history(first.client, first.run_id, "loss")) == [(0, 2.5), (1, 2.0)]
    assert [folder.name for folder in tracked_folders(tmp_path, "trial-*")] == ["trial-1-y", "trial-0-x"]


# --- the registry ----------------------------------------------------------------------------------------------------


def test_a_registered_model_embeds_as_the_folder_does(
    store: Store, tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models:/name@challenger` predicts the vectors of the exported folder, with and without prompt."""
    import mlflow

    assert register(opened(store, tmp_path / "first"), toy_model, "toy", "challenger", 32) == 1
    run = opened(store, tmp_path / "second")
    assert register(run, toy_model, "toy", "challenger", 32) == 2
    assert register(run, toy_model, "toy", "challenger", 32) == 2, "a resumed run registers nothing twice"
    assert int(run.client.get_model_version_by_alias("toy", "challenger").version) == 2
    assert "MLFLOW_TRACKING_URI" not in os.environ, "registering must not decide where later runs go"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    texts = ["aa bb", "一一 二二"]
    model = mlflow.pyfunc.load_model("models:/toy@challenger")
    encoder = TextEncoder(str(toy_model))
    np.testing.assert_allclose(model.predict(texts), encoder.encode(texts), atol=1e-6)
    np.testing.assert_allclose(
        model.predict(texts, params={"prompt": "query"}), encoder.encode(texts, "Query: "), atol=1e-6
    )
    folder, source = download_model("models:/toy@challenger", store)
    assert source.run_id == run.run_id
    assert (folder / "model.safetensors").read_bytes() == (toy_model / "model.safetensors").read_bytes()


def test_a_model_is_registered_when_the_registry_answers_again(
    server: FaultyMlflow, tmp_path: Path, toy_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Down at the end: no version yet and a warning; sync registers it, once."""
    store = Store(server.uri, None)
    run = opened(store, tmp_path)
    write(tmp_path, ROWS)
    server.failing = "down"
    assert run.register(toy_model, "late", "challenger", 32) is None
    run.finish()
    assert f"{toy_model} is not yet registered as 'late'" in caplog.text
    server.failing = None
    (sent,) = synced(tmp_path)
    assert sent["versions"] == {"late": 1}
    check_delivered(tmp_path, store, "FINISHED")
    assert run.register(toy_model, "late", "challenger", 32) == 1, "the version that it has"
    run.finish()
    (version,) = run.client.search_model_versions("name = 'late'")
    assert version.run_id == run.run_id
    assert run.client.get_model_version_by_alias("late", "challenger").version == version.version


@pytest.mark.parametrize("address", ["models:/nobody@champion", "models:/nobody/1", "models:/nobody"])
def test_an_unknown_registered_model_is_refused(address: str, store: Store) -> None:
    """A name, version or alias that is not there raises ModelError with the address."""
    with pytest.raises(ModelError, match=address):
        download_model(address, store)


# --- evaluations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluation(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """metrics.json's content, rows of cells and the folder of an evaluation."""
    setting = {"mAP": 0.5, "R@1": 0.25, "R@10": None, "cells": 1, "queries": 2, "intervals": {"mAP": [0.4, 0.6]}}
    metrics = {
        "benchmark": "toy+context",
        "monolingual": setting,
        "cross_lingual": setting,
        "multilingual": setting,
        "language_bias": {"rank_distance": 3.0, "peer": None, "intervals": {"rank_distance": [2.0, 4.0]}},
        "signature": "hbt_ray 0|toy|data:0a|model:1b2c|depth:full",
    }
    cells = [{"query_language": "en", "candidate_language": "all", "queries": 2, "mAP": 0.5, "R@1": 0.25}]
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics, cells, folder


def test_an_evaluation_becomes_metrics_and_artifacts(
    store: Store, tmp_path: Path, evaluation: tuple[dict[str, Any], list[dict[str, Any]], Path]
) -> None:
    """Headline figures get stable names (no @, which MLflow refuses), the folder becomes artifacts of its model."""
    run = opened(store, tmp_path / "run")
    run.log_evaluation(*evaluation)
    stored = run.client.get_run(run.run_id).data
    name = "toy_plus_context"
    assert stored.metrics[f"{name}/monolingual/R_at_1"] == 0.25
    assert stored.metrics[f"{name}/monolingual/mAP/low"] == 0.4
    assert stored.metrics[f"{name}/language_bias/rank_distance"] == 3.0
    assert stored.metrics[f"{name}/language_bias/rank_distance/high"] == 4.0
    assert stored.metrics[f"{name}/cells/en-all/R_at_1"] == 0.25
    assert f"{name}/monolingual/R_at_10" not in stored.metrics
    assert f"{name}/language_bias/peer" not in stored.metrics
    assert stored.tags[f"signature.{name}"] == evaluation[0]["signature"]
    assert [item.path for item in run.client.list_artifacts(run.run_id, f"evaluation/{name}/1b2c")] == [
        f"evaluation/{name}/1b2c/metrics.json"
    ]


def test_the_evaluation_of_a_registered_model_is_kept_beside_its_results(
    server: FaultyMlflow, tmp_path: Path, evaluation: tuple[dict[str, Any], list[dict[str, Any]], Path]
) -> None:
    """A run without a folder here: while the server is down, a folder beside the results waits for sync."""
    known = opened(Store(server.uri, None), tmp_path / "run")
    run = TrackedRun(known.store, known.run_id)
    beside = tmp_path / f"results.mlflow-{known.run_id}"
    server.failing = "down"
    run.log_evaluation(*evaluation)
    assert beside.is_dir()
    server.failing = None
    assert synced(beside)[0]["messages"] == {"figures": 1, "files": 1, "tags": 1}
    run.log_evaluation(*evaluation)
    assert not beside.exists()
    assert known.client.get_run(known.run_id).data.metrics["toy_plus_context/multilingual/mAP"] == 0.5


def test_nested_sections_become_dotted_keys() -> None:
    """`flattened` keeps lists whole and nests with dots."""
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}
