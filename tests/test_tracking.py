"""MLflow runs and the registry on a SQLite store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from hbt_ray.errors import ModelError, ResourceError
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.tracking.registry import download_model, register
from hbt_ray.tracking.runs import Store, TrackedRun, flattened, open_run, run_of_folder, tracking_store

ROWS = [
    {"step": 0, "mode": "X-Y", "dataset": "toy", "loss": 2.5},
    {"step": 1, "mode": "X-Y", "dataset": "toy", "loss": 2.0, "validation_loss/X-X-mono": 1.0},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A fresh SQLite store."""
    return tracking_store(tmp_path_factory.mktemp("tracking"))


def opened(store: Store, run_dir: Path) -> TrackedRun:
    return open_run(store, "tests", "a run", run_dir, {"mix": {"alpha": 0.5}, "run": {"name": "a run"}})


def history(run: TrackedRun, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in run.client.get_metric_history(run.run_id, name)]


def test_rows_become_metrics_and_the_configuration_parameters(store: Store, tmp_path: Path) -> None:
    """Every number of a row is a metric at its step; dotted configuration keys are parameters."""
    run = opened(store, tmp_path)
    run.log_rows(ROWS)
    run.finish()
    assert history(run, "loss") == [(0, 2.5), (1, 2.0)]
    assert history(run, "validation_loss/X-X-mono") == [(1, 1.0)]
    stored = run.client.get_run(run.run_id)
    assert stored.data.params == {"mix.alpha": "0.5", "run.name": "a run"}
    assert stored.info.status == "FINISHED"


def test_a_resumed_run_is_the_same_run(store: Store, tmp_path: Path) -> None:
    """The second command with the same run folder goes on in the first one's MLflow run."""
    first = opened(store, tmp_path)
    first.finish("FAILED")
    second = opened(store, tmp_path)
    assert second.run_id == first.run_id
    assert second.client.get_run(second.run_id).info.status == "RUNNING"
    found = run_of_folder(tmp_path, store)
    assert found is not None
    assert found.run_id == first.run_id


def test_what_a_failing_server_did_not_take_is_sent_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that fails twice delays the metrics, loses none and doubles none."""
    run = opened(store, tmp_path)

    class Broken:
        def log_batch(self, *_: Any, **__: Any) -> None:
            raise MlflowException("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "client", Broken())
        run.log_rows(ROWS[:1])
        run.log_rows([])
    assert "will try again" in caplog.text
    run.log_rows(ROWS[1:])
    assert history(run, "loss") == [(0, 2.5), (1, 2.0)]


def test_an_unreachable_store_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracking address that does not answer raises ResourceError naming MLFLOW_TRACKING_URI."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResourceError, match="MLFLOW_TRACKING_URI"):
        opened(Store("http://127.0.0.1:9", None), tmp_path)


def test_the_default_store_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SQLite path does not depend on the current folder; MLFLOW_TRACKING_URI goes first."""
    monkeypatch.chdir(tmp_path)
    assert tracking_store(Path("runs")).uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_store(Path("runs")) == Store("http://127.0.0.1:5000", None)


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


@pytest.mark.parametrize("address", ["models:/nobody@champion", "models:/nobody/1", "models:/nobody"])
def test_an_unknown_registered_model_is_refused(address: str, store: Store) -> None:
    """A name, version or alias that is not there raises ModelError with the address."""
    with pytest.raises(ModelError, match=address):
        download_model(address, store)


def test_an_evaluation_becomes_metrics_and_artifacts(store: Store, tmp_path: Path) -> None:
    """Headline figures get stable names (no @, which MLflow refuses), the folder becomes artifacts."""
    run = opened(store, tmp_path / "run")
    setting = {"mAP": 0.5, "R@1": 0.25, "R@10": None, "cells": 1, "queries": 2, "intervals": {"mAP": [0.4, 0.6]}}
    metrics = {
        "benchmark": "toy+context",
        "monolingual": setting,
        "cross_lingual": setting,
        "multilingual": setting,
        "language_bias": {"rank_distance": 3.0, "peer": None, "intervals": {"rank_distance": [2.0, 4.0]}},
        "signature": "s",
    }
    cells = [{"query_language": "en", "candidate_language": "all", "queries": 2, "mAP": 0.5, "R@1": 0.25}]
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    run.log_evaluation(metrics, cells, folder)
    stored = run.client.get_run(run.run_id).data
    name = "toy_plus_context"
    assert stored.metrics[f"{name}/monolingual/R_at_1"] == 0.25
    assert stored.metrics[f"{name}/monolingual/mAP/low"] == 0.4
    assert stored.metrics[f"{name}/language_bias/rank_distance"] == 3.0
    assert stored.metrics[f"{name}/language_bias/rank_distance/high"] == 4.0
    assert stored.metrics[f"{name}/cells/en-all/R_at_1"] == 0.25
    assert f"{name}/monolingual/R_at_10" not in stored.metrics
    assert f"{name}/language_bias/peer" not in stored.metrics
    assert [item.path for item in run.client.list_artifacts(run.run_id, "evaluation/toy_plus_context")] == [
        "evaluation/toy_plus_context/metrics.json"
    ]


def test_nested_sections_become_dotted_keys() -> None:
    """`flattened` keeps lists whole and nests with dots."""
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


def test_a_run_whose_id_was_not_noted_is_found_again(tmp_path: Path) -> None:
    """Killed between MLflow's making of the run and our note of its id: the same run goes on, whole, and no other."""
    store = tracking_store(tmp_path / "out")
    first = open_run(store, "e", "r", tmp_path / "r", {"a": 1}, parent="above")
    (tmp_path / "r" / "mlflow.json").unlink()
    again = open_run(store, "e", "r", tmp_path / "r", {"a": 1}, parent="above")
    assert again.run_id == first.run_id
    found = again.client.get_run(again.run_id)
    assert (found.data.tags["mlflow.parentRunId"], found.data.params) == ("above", {"a": "1"})
    assert open_run(store, "e", "r", tmp_path / "other", {"a": 1}).run_id != first.run_id
