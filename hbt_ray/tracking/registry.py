"""The model registry: an exported folder becomes a registered pyfunc (texts in, vectors out), found by alias."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from hbt_ray import __version__
from hbt_ray.errors import ModelError
from hbt_ray.model.export import model_hash
from hbt_ray.session import environment
from hbt_ray.tracking.runs import TRACKING_VARIABLE, Store, TrackedRun

MODELS_SCHEME = "models:/"
ENCODER = "encoder"
MODEL_HASH = "model_hash"  # tag of a version
PYFUNC_CODE = "pyfunc_encoder.py"  # a file, not an import: MLflow runs it when it loads the model


def register(run: TrackedRun, model_dir: Path, name: str, alias: str, width: int) -> int:
    """Log the exported folder to the run, register it as a new version of `name` and move `alias` to it.

    A run that registers the same encoder again gets the version it has. Returns the version number; `width` is the
    embedding's length, for the signature.
    """
    fingerprint = model_hash(model_dir)
    known = _registered_version(run, name, fingerprint)
    if known is not None:
        return known
    signature = infer_signature(["text"], np.zeros((1, width), np.float32), params={"prompt": ""})
    with _fluent_api(run.store), mlflow.start_run(run_id=run.run_id), warnings.catch_warnings():
        # MLflow asks for type hints and an input example, from which it would infer the signature given here.
        warnings.simplefilter("ignore")
        info = mlflow.pyfunc.log_model(
            name=ENCODER,
            python_model=str(Path(__file__).with_name(PYFUNC_CODE)),
            artifacts={ENCODER: str(model_dir)},
            signature=signature,
            pip_requirements=[f"hbt_ray=={__version__}"],
            registered_model_name=name,
        )
    version = int(info.registered_model_version)
    run.client.set_model_version_tag(name, str(version), MODEL_HASH, fingerprint)
    run.client.set_registered_model_alias(name, alias, str(version))
    return version


@contextmanager
def _fluent_api(store: Store) -> Iterator[None]:
    """Point MLflow's global state at a store; it also sets an environment variable, which must not outlive the call."""
    with environment({TRACKING_VARIABLE: store.uri}):
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_registry_uri(store.uri)
        yield


def _registered_version(run: TrackedRun, name: str, fingerprint: str) -> int | None:
    versions = run.client.search_model_versions(f"name = '{name}'")
    return next(
        (int(v.version) for v in versions if v.run_id == run.run_id and v.tags.get(MODEL_HASH) == fingerprint), None
    )


def download_model(uri: str, store: Store) -> tuple[Path, TrackedRun]:
    """Local folder of a registered model's encoder (`models:/name@alias` or `models:/name/1`), and its run.

    Raises ModelError if there is no such model, version or alias.
    """
    client = MlflowClient(store.uri, store.uri)
    address = uri.removeprefix(MODELS_SCHEME)
    try:
        name, at, alias = address.partition("@")
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = address.partition("/")
            version = client.get_model_version(name, number)
        with _fluent_api(store):
            folder = Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        raise ModelError(
            "--model",
            f"{uri} ({str(error).strip().splitlines()[0]})",
            f"a registered model in {store.uri}",
            "Check name, version or alias, and MLFLOW_TRACKING_URI.",
        ) from None
    artifacts = folder / "artifacts"
    return next(path for path in artifacts.iterdir() if path.is_dir()), TrackedRun(store, version.run_id)
