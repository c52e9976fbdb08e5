"""The model registry: an exported folder becomes a registered pyfunc (texts in, vectors out), found by alias."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from hbt_ray import __version__
from hbt_ray.errors import ModelError, ResourceError
from hbt_ray.model.export import model_hash
from hbt_ray.session import environment
from hbt_ray.tracking.address import answering_store, shown, store_error
from hbt_ray.tracking.runs import TRACKING_VARIABLE, Store, TrackedRun, tracking_store

MODELS_SCHEME = "models:/"
CHAMPION = "champion"  # alias of the version that is in use
ENCODER = "encoder"
MODEL_HASH = "model_hash"  # tag of a version
PYFUNC_CODE = "pyfunc_encoder.py"  # a file, not an import: MLflow runs it when it loads the model
REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
DATABASE = "mlflow.db"  # in an output folder, where no server is named


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Args:
        name: of the model.
        number: of the version.
        run_id: the MLflow run that made it; "" where none did.
        model_hash: of its encoder.
    """

    name: str
    number: int
    run_id: str
    model_hash: str

    @property
    def address(self) -> str:
        """What `--model` takes."""
        return f"{MODELS_SCHEME}{self.name}/{self.number}"


@dataclass(frozen=True)
class Registry:
    """A store that has answered, made by `open_registry`."""

    store: Store
    client: MlflowClient


# --- registering -----------------------------------------------------------------------------------------------------


def register(run: TrackedRun, model_dir: Path, name: str, alias: str, width: int) -> int:
    """Log the exported folder to the run, register it as a new version of `name` and give it `alias`.

    A run that registers the same encoder again, also after it was killed while it did, gets the version it has; the
    alias is left where a newer version has it meanwhile. Returns the version number; `width` is the embedding's
    length, for the signature.
    """
    fingerprint = model_hash(model_dir)
    version = _registered_version(run, name, fingerprint)
    if version is None:
        with _fluent_api(run.store):
            address = _logged_model(run, model_dir, width)
            version = int(mlflow.register_model(address, name, tags={MODEL_HASH: fingerprint}).version)
    if int(run.client.get_registered_model(name).aliases.get(alias, 0)) < version:
        run.client.set_registered_model_alias(name, alias, str(version))
    return version


def _logged_model(run: TrackedRun, model_dir: Path, width: int) -> str:
    """The address of the folder as a pyfunc of the run, in no registry yet."""
    signature = infer_signature(["text"], np.zeros((1, width), np.float32), params={"prompt": ""})
    with mlflow.start_run(run_id=run.run_id), warnings.catch_warnings():
        # An example would make MLflow load and run the model, to infer the signature given here.
        warnings.filterwarnings("ignore", message=".*An input example was not provided", category=UserWarning)
        info = mlflow.pyfunc.log_model(
            name=ENCODER,
            python_model=str(Path(__file__).with_name(PYFUNC_CODE)),
            artifacts={ENCODER: str(model_dir)},
            signature=signature,
            pip_requirements=[f"hbt_ray=={__version__}"],
        )
    return str(info.model_uri)


@contextmanager
def _fluent_api(store: Store) -> Iterator[None]:
    """Point MLflow's global state at a store; after it MLflow goes by the environment again, as it was before."""
    with environment({TRACKING_VARIABLE: store.uri, REGISTRY_VARIABLE: store.uri}):  # both are set by what follows
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_registry_uri(store.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)


def _registered_version(run: TrackedRun, name: str, fingerprint: str) -> int | None:
    versions = run.client.search_model_versions(f"name = '{name}'")
    return next(
        (int(v.version) for v in versions if v.run_id == run.run_id and v.tags.get(MODEL_HASH) == fingerprint), None
    )


# --- looking up ------------------------------------------------------------------------------------------------------


def existing_store(out: Path) -> Store:
    """The store that MLFLOW_TRACKING_URI names, else that of an output folder, which is not made by looking at it.

    Raises ModelError if neither is there.
    """
    if not os.environ.get(TRACKING_VARIABLE) and not (out / DATABASE).exists():
        raise ModelError(
            TRACKING_VARIABLE,
            f"no value, and no store of runs and models in {out.absolute()}",
            f"a server's address, or {DATABASE} in that folder",
            f"Set {TRACKING_VARIABLE}, or start where the model was trained.",
        )
    return tracking_store(out)


def open_registry(store: Store) -> Registry:
    """The registry of a store that answers. Raises ResourceError."""
    with answering_store(store.uri):
        client = MlflowClient(store.uri, store.uri)
        # The tracking half checks the database's schema; the registry half, asked first, would not.
        client.search_experiments(max_results=1)
    return Registry(store, client)


def find_version(registry: Registry, name: str, version: str | int) -> Version:
    """A version by its number, or by its alias as "@alias".

    Raises ModelError with those that there are, ResourceError if the store does not answer.
    """
    with answering_store(registry.store.uri):
        try:
            found = _looked_up(registry.client, name, str(version))
        except MlflowException as error:
            raise _unknown(registry, name, str(version), error) from None
        return _version(registry.store, found)


def champion_of(registry: Registry, name: str) -> Version | None:
    """The version that the alias `champion` names; None if it names none. Raises ResourceError."""
    with answering_store(registry.store.uri):
        number = registry.client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else find_version(registry, name, number)


def download_model(uri: str, store: Store) -> tuple[Path, TrackedRun]:
    """Local folder of a registered model's encoder (`models:/name@alias` or `models:/name/1`), and its run.

    Only files are read: the code that MLflow keeps with a model is not run.

    Raises ModelError if there is no such model, version or alias, ResourceError if the store does not answer.
    """
    found = resolve_address(uri, store)
    with answering_store(store.uri):
        return _downloaded(found.address, store), TrackedRun(store, found.run_id)


def resolve_address(uri: str, store: Store) -> Version:
    """The version that `models:/name@alias` or `models:/name/1` means now. Raises ModelError, ResourceError."""
    name, at, alias = uri.removeprefix(MODELS_SCHEME).partition("@")
    name, slash, number = (name, "", f"@{alias}") if at else name.partition("/")
    if not name or not (at or slash):
        raise ModelError("--model", uri, "models:/NAME@ALIAS or models:/NAME/VERSION", "Correct the address.")
    return find_version(open_registry(store), name, number)


def _looked_up(client: MlflowClient, name: str, version: str) -> ModelVersion:
    if version.startswith("@"):
        return client.get_model_version_by_alias(name, version[1:])
    return client.get_model_version(name, version)


def _version(store: Store, found: ModelVersion) -> Version:
    number = int(found.version)
    # A version whose registering was cut off before its tag was written is asked for its files.
    fingerprint = found.tags.get(MODEL_HASH) or model_hash(_downloaded(f"{MODELS_SCHEME}{found.name}/{number}", store))
    return Version(found.name, number, found.run_id or "", fingerprint)


def _downloaded(address: str, store: Store) -> Path:
    """Local folder of a version's encoder. Raises ModelError, ResourceError."""
    try:
        with _fluent_api(store):
            folder = Path(mlflow.artifacts.download_artifacts(address))
    except MlflowException as error:
        raise store_error(error, store.uri) or _unreadable(address, error) from None
    encoder = next((path for path in folder.glob("artifacts/*") if path.is_dir()), None)
    if encoder is None:
        raise ModelError(address, "no encoder in it", "a model that hbt_ray registered", "Choose another model.")
    return encoder


def _unreadable(address: str, error: MlflowException) -> ResourceError:
    return ResourceError(address, shown(error), "files that can be read", "Look after the store of artifacts.")


def _unknown(registry: Registry, name: str, version: str, error: MlflowException) -> ModelError:
    """What is there instead of the version that was asked for. Raises ResourceError."""
    if (unserved := store_error(error, registry.store.uri)) is not None:
        raise unserved
    asked = f"{MODELS_SCHEME}{name}{version}" if version.startswith("@") else f"{MODELS_SCHEME}{name}/{version}"
    where = f"--model {asked}, in {registry.store.uri}"
    named = "which names this store" if os.environ.get(TRACKING_VARIABLE) else "not set: this is the default store"
    fix = f"Choose one of these, or correct {TRACKING_VARIABLE} ({named})."
    models = {model.name: model for model in registry.client.search_registered_models()}
    if name not in models:
        return ModelError(where, f"unknown model {name!r}", f"one of {', '.join(sorted(models)) or 'none'}", fix)
    if version.startswith("@"):
        aliases = (f"@{alias} (version {number})" for alias, number in sorted(models[name].aliases.items()))
        return ModelError(where, f"unknown alias {version[1:]!r}", f"one of {', '.join(aliases) or 'none'}", fix)
    numbers = sorted(int(found.version) for found in registry.client.search_model_versions(f"name = '{name}'"))
    return ModelError(where, f"unknown version {version!r}", f"one of {', '.join(map(str, numbers)) or 'none'}", fix)
