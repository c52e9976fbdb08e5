"""What a failure of an MLflow store means for who called it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import mlflow
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_TRACKING_URI
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from hbt_ray.credentials import without_credentials
from hbt_ray.errors import ResourceError
from hbt_ray.session import environment

StoreFailure: TypeAlias = MlflowException | SQLAlchemyError | OSError  # OSError: those of `requests` are

RETRIES_OF_A_COMMAND = "2"  # a person waits for the answer; MLflow's own seven take minutes

_OLDER_SCHEMA = "out-of-date database schema"
_REFUSALS = re.compile(r"error code 40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|password authentication failed")
_NO_ANSWER = "API request to"  # how MLflow begins where no MLflow server answered it
_SERVER_FAULTS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: no answer, or a fault of the server's own."""
    if not isinstance(error, StoreFailure):
        return False
    reason = str(error)
    return not (_OLDER_SCHEMA in reason or _REFUSALS.search(reason)) and _is_unserved(error)


def store_error(error: StoreFailure, uri: str) -> ResourceError | None:
    """What a user can do about a store that does not serve; None for an error about what was asked of it."""
    reason = shown(error)
    if _OLDER_SCHEMA in reason:
        return ResourceError(
            uri,
            "a database with the schema of another MLflow",
            f"the schema of the installed MLflow, {mlflow.__version__}",
            f"Back the database up, then run: mlflow db upgrade {uri}",
        )
    if _REFUSALS.search(reason):
        return ResourceError(
            uri,
            reason,
            "credentials that the store takes",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if _is_unserved(error):
        return ResourceError(
            uri, reason, "an MLflow store that answers", f"Start it, or correct {MLFLOW_TRACKING_URI.name}."
        )
    return None


def _is_unserved(error: StoreFailure) -> bool:
    if isinstance(error, MlflowException):
        return str(error).startswith(_NO_ANSWER) or error.error_code in _SERVER_FAULTS
    return True


def shown(error: BaseException) -> str:
    """The beginning of MLflow's text in one line; it repeats addresses, so they lose what is secret in them."""
    return without_credentials(" ".join(str(error).split()))[:300]


@contextmanager
def answering_store(uri: str) -> Iterator[None]:
    """Raises ResourceError for a store that does not serve, after few attempts; other MlflowExceptions pass."""
    retries = MLFLOW_HTTP_REQUEST_MAX_RETRIES.name
    try:
        with environment({retries: os.environ.get(retries, RETRIES_OF_A_COMMAND)}):
            yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        unserved = store_error(error, uri)
        if unserved is None:
            raise
        raise unserved from None
