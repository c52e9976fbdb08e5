"""MLflow runs, fed from the driver: parameters, metrics, artifacts.

The local `metrics.jsonl` is the truth. Metrics that MLflow does not take are kept and sent again with the next ones,
so a slow or absent server delays logging and never stops training.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from hbt_ray.errors import ResourceError
from hbt_ray.storage import write_whole

logger = logging.getLogger(__name__)

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_FILE = "mlflow.json"  # in a run folder: which MLflow run it feeds
TOKEN_FILE = "mlflow.token"  # in a run folder, from before its MLflow run is made: by it the run is found again
TOKEN_TAG = "hbt_ray.token"
MAX_BATCH = 1000  # metrics in one request
NOT_METRICS = {"step", "mode", "dataset"}


@dataclass(frozen=True)
class Store:
    """Where runs and artifacts go; `artifact_root` is None where a server decides."""

    uri: str
    artifact_root: str | None


def tracking_store(out: Path) -> Store:
    """MLFLOW_TRACKING_URI if set; else SQLite and artifacts in the (absolute) output folder, no server needed."""
    uri = os.environ.get(TRACKING_VARIABLE)
    if uri:
        return Store(uri, None)
    out.mkdir(parents=True, exist_ok=True)
    return Store(f"sqlite:///{out.absolute()}/mlflow.db", (out.absolute() / "mlartifacts").as_uri())


@dataclass
class TrackedRun:
    """One MLflow run."""

    store: Store
    run_id: str
    _pending: list[Metric] = field(default_factory=list)

    @property
    def client(self) -> MlflowClient:
        """A client of the run's store; explicit, because the fluent API is not safe across processes."""
        return MlflowClient(self.store.uri, self.store.uri)

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send rows of metrics.jsonl; what cannot be sent now is sent with the next rows."""
        now = int(time.time() * 1000)
        self._pending += [
            Metric(metric_name(key), float(value), now, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key not in NOT_METRICS
        ]
        try:
            while self._pending:
                self.client.log_batch(self.run_id, metrics=self._pending[:MAX_BATCH])
                del self._pending[:MAX_BATCH]
        except MlflowException as error:
            logger.warning("MLflow did not take %d metrics, will try again: %s", len(self._pending), error)

    def log_evaluation(self, metrics: Mapping[str, Any], cells: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """An evaluation's figures as metrics with stable names, its folder (figures, report, tables) as artifacts.

        Names: <benchmark>/<setting>/<measure>[/low|/high], <benchmark>/language_bias/<measure>[/low|/high] and
        <benchmark>/cells/<query language>-<candidate language>/<measure>.
        """
        benchmark = metric_name(metrics["benchmark"])
        self.log_figures(evaluation_figures(metrics, cells))
        self.set_tags({f"signature.{benchmark}": metrics["signature"]})
        self.log_folder(folder, f"evaluation/{benchmark}")

    def log_figures(self, figures: Mapping[str, float]) -> None:
        """Numbers that have no step."""
        now = int(time.time() * 1000)
        entries = [Metric(metric_name(name), value, now, 0) for name, value in figures.items()]
        for start in range(0, len(entries), MAX_BATCH):
            self.client.log_batch(self.run_id, metrics=entries[start : start + MAX_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)

    def log_folder(self, folder: Path, name: str) -> None:
        """The files of a folder as artifacts below `name`."""
        self.client.log_artifacts(self.run_id, str(folder), name)

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is pending and close the run."""
        self.log_rows([])
        if self._pending:
            logger.error(
                "MLflow run %s lacks %d metrics; they are in the run folder's metrics.jsonl",
                self.run_id,
                len(self._pending),
            )
        self.client.set_terminated(self.run_id, status)


def open_run(
    store: Store,
    experiment: str,
    name: str,
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    parent: str | None = None,
) -> TrackedRun:
    """The MLflow run of a run folder: made at the first call, reopened when the run is resumed.

    `parent` is the id of the run that it is shown below: of a sweep or a study.

    Raises ResourceError if the store cannot be reached.
    """
    client = MlflowClient(store.uri, store.uri)
    record = run_dir / RUN_FILE
    try:
        if record.exists():
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["uri"] == store.uri:
                client.update_run(known["run_id"], status="RUNNING")
                return TrackedRun(store, known["run_id"])
        run_id = _made_run(client, _experiment_id(client, store, experiment), name, run_dir, parent)
        params = [Param(key, str(value)) for key, value in flattened(config).items()]
        client.log_batch(run_id, params=params)
        client.log_dict(run_id, dict(config), "config.json")
    except MlflowException as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(
            TRACKING_VARIABLE, f"{store.uri} ({reason})", "an MLflow store that answers", "Start it, or unset it."
        ) from None
    write_whole(record, json.dumps({"uri": store.uri, "run_id": run_id}) + "\n")
    return TrackedRun(store, run_id)


def _made_run(client: MlflowClient, experiment_id: str, name: str, run_dir: Path, parent: str | None) -> str:
    """A new MLflow run, or the one that a process made for this folder and was killed before it noted the id."""
    path = run_dir / TOKEN_FILE
    if path.exists():
        token = path.read_text(encoding="utf-8").strip()
        for run in client.search_runs([experiment_id], filter_string=f"tags.`{TOKEN_TAG}` = '{token}'"):
            client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        write_whole(path, token + "\n")
    tags = {TOKEN_TAG: token} | ({} if parent is None else {MLFLOW_PARENT_RUN_ID: parent})
    return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)


def run_of_folder(run_dir: Path, store: Store) -> TrackedRun | None:
    """The MLflow run that a run folder feeds, if it is in this store."""
    record = run_dir / RUN_FILE
    if not record.exists():
        return None
    known = json.loads(record.read_text(encoding="utf-8"))
    return TrackedRun(store, known["run_id"]) if known["uri"] == store.uri else None


def _experiment_id(client: MlflowClient, store: Store, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, artifact_location=store.artifact_root))


def evaluation_figures(metrics: Mapping[str, Any], cells: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Every defined number of an evaluation under its name; what is undefined has none."""
    benchmark = metrics["benchmark"]
    figures: dict[str, float] = {}
    for section in ("monolingual", "cross_lingual", "multilingual", "language_bias"):
        values = metrics[section]
        for name, value in values.items():
            if isinstance(value, float):
                figures[f"{benchmark}/{section}/{name}"] = value
        for name, (low, high) in values["intervals"].items():
            figures |= {f"{benchmark}/{section}/{name}/low": low, f"{benchmark}/{section}/{name}/high": high}
    for cell in cells:
        pair = f"{cell['query_language']}-{cell['candidate_language']}"
        figures |= {f"{benchmark}/cells/{pair}/{k}": v for k, v in cell.items() if isinstance(v, float)}
    return figures


def metric_name(name: str) -> str:
    """MLflow allows neither @ nor + in names: R@1 becomes R_at_1, xquad-r+context xquad-r_plus_context."""
    return name.replace("@", "_at_").replace("+", "_plus_")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
