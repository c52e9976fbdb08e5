"""The registered model: what is stored, what it answers, and `mlflow models serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError
from test_encoder import sentence_transformer_vectors

from hbt_ray.errors import ModelError, ResourceError
from hbt_ray.model.export import model_hash
from hbt_ray.tracking import registry as registry_module
from hbt_ray.tracking.address import may_pass, store_error
from hbt_ray.tracking.registry import Registry, download_model, find_version, open_registry, register, resolve_address
from hbt_ray.tracking.runs import TrackedRun, open_run, tracking_store

TEXTS = ["aa bb", "一一 二二", "kk ll mm nn"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return open_registry(tracking_store(tmp_path_factory.mktemp("tracking")))


@pytest.fixture(scope="module")
def run(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    return open_run(registry.store, "tests", "a run", tmp_path_factory.mktemp("run"), {})


@pytest.fixture(scope="module")
def registered(registry: Registry, run: TrackedRun, toy_model: Path) -> Iterator[str]:
    """The address of the toy encoder in the registry, which is MLflow's own store meanwhile."""
    version = register(run, toy_model, "toy", "challenger", 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", registry.store.uri)
        yield f"models:/toy/{version}"


@pytest.fixture(scope="module")
def pyfunc(registered: str) -> Any:
    """The registered model, loaded where MLflow may not unpickle anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return mlflow.pyfunc.load_model(registered)


def test_no_pickle_is_stored(registered: str) -> None:
    """Code, safetensors and text: nothing that runs when it is only read."""
    folder = Path(mlflow.artifacts.download_artifacts(registered))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {Path(file).suffix for file in files} <= {"", ".py", ".json", ".safetensors", ".txt", ".yaml", ".md"}
    assert "pyfunc_encoder.py" in files
    assert not [file for file in files if file.endswith((".pkl", ".pt", ".bin", ".pickle"))]


@pytest.mark.parametrize("prompt", ["", "query", "passage"])
def test_vectors_are_those_of_sentence_transformers(pyfunc: Any, toy_model: Path, prompt: str) -> None:
    """To 1e-5, with the prompt that `params` names; a list, an array and a one-column frame are the same."""
    expected = sentence_transformer_vectors(toy_model, TEXTS, **({"prompt_name": prompt} if prompt else {}))
    params = {"prompt": prompt}
    for texts in (TEXTS, np.array(TEXTS), pd.DataFrame({"text": TEXTS})):
        np.testing.assert_allclose(pyfunc.predict(texts, params=params), expected, atol=1e-5)
    if not prompt:
        np.testing.assert_array_equal(pyfunc.predict(TEXTS), pyfunc.predict(TEXTS, params=params))


@pytest.mark.parametrize(
    ("texts", "params", "message"),
    [
        (TEXTS, {"prompt": "question"}, "prompt: got 'question'; expected query, passage"),
        (["a", None], {}, "text 1: got nan; expected a string"),
        (["a", 5], {}, "5|schema"),
    ],
    ids=["unknown prompt", "no text", "a number"],
)
def test_what_is_no_text_or_prompt_is_refused(
    pyfunc: Any, texts: list[Any], params: dict[str, str], message: str
) -> None:
    """None must not be embedded as the word "None", nor a misspelt prompt be left out."""
    with pytest.raises(MlflowException, match=message):
        pyfunc.predict(texts, params=params)


def test_several_columns_are_refused(pyfunc: Any) -> None:
    """Two columns would give twice the vectors."""
    with pytest.raises(MlflowException, match=r"2 columns|schema|column"):
        pyfunc.unwrap_python_model().predict(None, pd.DataFrame({"a": TEXTS, "b": TEXTS}))


def test_registering_that_was_cut_off_makes_no_second_version(
    registry: Registry, run: TrackedRun, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the version's making, before the alias: the next call finds the version and gives the alias."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry_module.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(run, toy_model, "cut", "challenger", 32)
    assert register(run, toy_model, "cut", "challenger", 32) == 1
    assert len(registry.client.search_model_versions("name = 'cut'")) == 1
    assert find_version(registry, "cut", "@challenger").number == 1
    assert find_version(registry, "cut", 1).model_hash == model_hash(toy_model)


def test_mlflow_goes_by_the_environment_afterwards(
    registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registering points MLflow at one store and leaves no trace of that, in the process or in its environment."""
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == f"sqlite:///{tmp_path}/other.db"


def test_an_alias_of_a_newer_version_stays_there(registry: Registry, run: TrackedRun, toy_model: Path) -> None:
    """A model that is delivered late does not take the alias from a newer one."""
    assert register(run, toy_model, "late", "challenger", 32) == 1
    newer = registry.client.create_model_version("late", "nowhere", tags={"model_hash": "f" * 12})
    registry.client.set_registered_model_alias("late", "challenger", newer.version)
    assert register(run, toy_model, "late", "challenger", 32) == 1
    assert find_version(registry, "late", "@challenger").number == 2


def test_an_address_is_resolved_or_answered_with_what_is_there(registry: Registry, registered: str) -> None:
    """Alias and number mean the same version; unknown ones are listed with the store that was asked."""
    by_alias, by_number = (resolve_address(uri, registry.store) for uri in ("models:/toy@challenger", registered))
    assert by_alias == by_number
    for uri, message in (
        (
            "models:/toy@champion",
            rf"{registry.store.uri}.*unknown alias 'champion'; expected one of @challenger \(version 1\)",
        ),
        ("models:/toy/9", "unknown version '9'; expected one of 1"),
        ("models:/toy/latest", "unknown version 'latest'"),
        ("models:/toys/1", "unknown model 'toys'; expected one of .*toy"),
        ("models:/toy", "models:/NAME@ALIAS"),
        ("models:/@x", "models:/NAME@ALIAS"),
    ):
        with pytest.raises(ModelError, match=message):
            resolve_address(uri, registry.store)


def test_a_model_whose_files_are_gone_or_not_ours_is_refused(
    registry: Registry, run: TrackedRun, tmp_path: Path
) -> None:
    """The address is named, with what was found there."""
    registry.client.create_registered_model("gone")
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty"):
        registry.client.create_model_version("gone", source.as_uri(), run.run_id, tags={"model_hash": "0" * 12})
    with pytest.raises(ResourceError, match="models:/gone/1"):
        download_model("models:/gone/1", registry.store)
    with pytest.raises(ModelError, match="models:/gone/2: got no encoder in it"):
        download_model("models:/gone/2", registry.store)


def test_failures_of_a_store_are_told_apart() -> None:
    """What may pass later, what needs a person, and what is the caller's own mistake."""
    unanswered = MlflowException("API request to http://u:secret@h/api failed with exception Max retries")
    refused = MlflowException("API request to endpoint /api failed with error code 401 != 200")
    older = MlflowException("Detected out-of-date database schema (found version a, but expected b)")
    unknown = MlflowException("Registered Model with name=x not found", error_code=5)
    database = OperationalError("select 1", {}, Exception("connection refused"))
    passing = (unanswered, database, ConnectionError())
    assert [may_pass(error) for error in passing] == [True, True, True]
    assert [may_pass(error) for error in (refused, older, unknown, ValueError())] == [False, False, False, False]
    assert all("an MLflow store that answers" in str(store_error(error, "http://h")) for error in passing)
    assert "secret" not in str(store_error(unanswered, "http://h"))
    assert "MLFLOW_TRACKING_USERNAME" in str(store_error(refused, "http://h"))
    assert "mlflow db upgrade" in str(store_error(older, "sqlite:////x/mlflow.db"))
    assert store_error(unknown, "http://h") is None
