"""MLflow runs, fed from the driver: parameters, metrics, artifacts.

Whatever is logged is first put down in the run folder (delivery.py) and sent from there in the background: a slow,
absent or failing MLflow delays what it shows and stops nothing. `hbt-ray tracking sync` delivers what is left.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from hbt_ray.credentials import refuse_credentials
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.storage import write_whole
from hbt_ray.tracking.address import may_pass
from hbt_ray.tracking.delivery import (
    RUN_FILE,
    RUNNING,
    SPOOL,
    Courier,
    Delivered,
    announce,
    deliver,
    flattened,
    metric_name,
    problem_of,
    recorded_address,
    recorded_run,
    share_run,
    tell,
    told_status,
)

__all__ = ["RUN_FILE", "flattened", "metric_name", "share_run"]

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
OPEN_SECONDS = 10.0  # to wait for MLflow before a training, at most
FINISH_SECONDS = 30.0  # after it
STOP_SECONDS = 5.0  # after one that was asked to stop: whoever asked may kill it
REGISTER_SECONDS = 900.0  # for the upload of a model
LOCAL_SECONDS = 300.0  # in every case, for a database in a file: a busy machine is slow, and nobody is away

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Where runs and artifacts go; `artifact_root` is None where a server decides."""

    uri: str
    artifact_root: str | None


def tracking_store(out: Path) -> Store:
    """MLFLOW_TRACKING_URI if set; else SQLite and artifacts in the (absolute) output folder, no server needed.

    Raises ConfigError if credentials are in the address, which goes into files and messages.
    """
    uri = os.environ.get(TRACKING_VARIABLE)
    if uri:
        refuse_credentials(TRACKING_VARIABLE, uri)
        return Store(uri, None)
    out.mkdir(parents=True, exist_ok=True)
    return Store(f"sqlite:///{out.absolute()}/mlflow.db", (out.absolute() / "mlartifacts").as_uri())


@dataclass
class TrackedRun:
    """One MLflow run.

    Args:
        store: where it is.
        run_id: None until MLflow has made it.
        folder: what feeds it; None for a run that only its id is known of.
    """

    store: Store
    run_id: str | None
    folder: Path | None = None
    _courier: Courier | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._courier = None if self.folder is None else Courier(self.folder, self.store)

    @property
    def client(self) -> MlflowClient:
        """A client of the run's store; explicit, because the fluent API is not safe across processes."""
        return MlflowClient(self.store.uri, self.store.uri)

    def log_rows(self) -> None:
        """metrics.jsonl has grown: send what is new, in the background."""
        self._fed[1].nudge()

    def log_evaluation(self, metrics: Mapping[str, Any], cells: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """An evaluation's figures as metrics with stable names, its folder (figures, report, tables) as artifacts.

        Names: <benchmark>/<setting>/<measure>[/low|/high], <benchmark>/language_bias/<measure>[/low|/high] and
        <benchmark>/cells/<query language>-<candidate language>/<measure>; artifacts are below
        evaluation/<benchmark>/<hash of the model>, because a run that is resumed exports a second model.
        """
        if self.folder is None:
            _log_evaluation_elsewhere(self, metrics, cells, folder)
            return
        benchmark = metric_name(metrics["benchmark"])
        parts = ["evaluation", benchmark, *_model_of(metrics["signature"])]
        self._tell("figures", figures=evaluation_figures(metrics, cells))
        self._tell("tags", tags={f"signature.{benchmark}": metrics["signature"]})
        self._tell("files", files=folder, name="/".join(parts))
        self.settle()

    def log_figures(self, figures: Mapping[str, float]) -> None:
        """Numbers that have no step; `settle` or `finish` sends them."""
        self._tell("figures", figures=dict(figures))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; `settle` or `finish` sends them."""
        self._tell("tags", tags=dict(tags))

    def log_folder(self, folder: Path, name: str) -> None:
        """The files of a folder, which may go then, as artifacts below `name`; `settle` or `finish` sends them."""
        self._tell("files", files=folder, name=name)

    def register(self, model_dir: Path, name: str, alias: str, width: int) -> int | None:
        """Register an exported folder as a new version of a model and move `alias` to it (registry.register).

        Returns the version's number; None if MLflow does not take it now, of which a warning tells. `width` is the
        embedding's length.
        """
        model = str(model_dir.absolute())
        self._tell("model", model=model, name=name, alias=alias, width=width)
        if self._attempt(REGISTER_SECONDS) is not None:  # of which `finish` will tell
            logger.warning("%s is not yet registered as %r.", model, name)
        return self._fed[1].versions.get(name)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run and send all that is left; what is not sent within FINISH_SECONDS stays in the folder."""
        self._tell("status", status=status)
        self.settle(STOP_SECONDS if status == "KILLED" else FINISH_SECONDS)

    def settle(self, patience: float = FINISH_SECONDS) -> bool:
        """Send all that there is; whether that was done within `patience` seconds, else a warning says what to do."""
        failure = self._attempt(patience)
        if failure is not None:
            what = "What MLflow lacks is kept; deliver it with: hbt-ray tracking sync"
            logger.warning("%s %s %s", failure[1], what, self.folder)
        return failure is None

    def _attempt(self, patience: float) -> tuple[Exception, ResourceError] | None:
        folder, courier = self._fed
        local = self.store.uri.startswith("sqlite:")
        failure = courier.settle(max(patience, LOCAL_SECONDS) if local else patience)
        self.run_id = recorded_run(folder, self.store.uri)
        return failure

    def _tell(self, kind: str, files: Path | None = None, **content: Any) -> None:
        tell(self._fed[0], kind, files, **content)

    @property
    def _fed(self) -> tuple[Path, Courier]:
        assert self.folder is not None, "a run known by its id alone is not fed"
        assert self._courier is not None
        return self.folder, self._courier


def open_run(
    store: Store,
    experiment: str,
    name: str,
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    parent: Path | None = None,
) -> TrackedRun:
    """The MLflow run of a run folder: made at the first call, reopened when the run is resumed.

    A store that does not answer within OPEN_SECONDS gets everything later. `parent` is the folder whose run it is shown
    below: of a sweep or a study.

    Raises ResourceError if the store refuses: wrong credentials, a database of another MLflow, a run that was deleted.
    """
    run = TrackedRun(store, recorded_run(run_dir, store.uri), run_dir)
    if run.run_id is None:
        announce(run_dir, store, experiment, name, config, parent)
    run._tell("status", status=RUNNING)
    failure = run._attempt(OPEN_SECONDS)
    if failure is not None:
        error, problem = failure
        if not may_pass(error):
            raise problem from None
        logger.warning("%s Training goes on; what MLflow lacks is kept in %s.", problem, run_dir)
    return run


def run_of_folder(run_dir: Path, store: Store) -> TrackedRun | None:
    """The MLflow run that a run folder feeds, if it is in this store, or will be."""
    recorded = recorded_address(run_dir)
    if recorded is None or recorded[0] != store.uri:
        return None
    return TrackedRun(store, recorded_run(run_dir, store.uri), run_dir)


def tracked_folders(root: Path, pattern: str = "*") -> list[Path]:
    """The folders in `root` that feed an MLflow run; the one that was told of a status last comes last."""
    found = [folder for folder in root.glob(pattern) if recorded_address(folder) is not None]
    return sorted(found, key=lambda folder: (folder / SPOOL).stat().st_mtime if (folder / SPOOL).exists() else 0.0)


def is_open(run_dir: Path) -> bool:
    """Whether the run of a folder was not closed."""
    return told_status(run_dir) == RUNNING


# --- sync ------------------------------------------------------------------------------------------------------------


def sync(folders: Sequence[Path], on_delivered: Callable[[Path, Delivered], None]) -> list[dict[str, Any]]:
    """Deliver what MLflow lacks of run folders, and of all run folders below them.

    `on_delivered` is told of each. Returns for each: folder, run_id, rows (of metrics.jsonl), messages by kind and
    versions of registered models. Nothing to deliver is no error.

    Raises:
        ConfigError: a folder without a run; MLFLOW_TRACKING_URI names another store than a run is in.
        ResourceError: a store that does not take what there is; what was delivered before is.
    """
    results = []
    for folder in _fed_folders(folders):
        store = _store_of(folder)
        try:
            sent = deliver(folder, store)
        except Exception as error:
            raise problem_of(error, store.uri) from error
        on_delivered(folder, sent)
        results.append(
            {
                "folder": str(folder),
                "run_id": sent.run_id,
                "rows": sent.rows,
                "messages": sent.counts,
                "versions": sent.versions,
            }
        )
    return results


def _fed_folders(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for folder in folders:
        below = {path.parent for name in (RUN_FILE, SPOOL) for path in folder.absolute().rglob(name)}
        fed = [path for path in sorted(below) if recorded_address(path) is not None]
        if not fed:
            expected = f"a run folder: {RUN_FILE} or {SPOOL}/ in it, or below it"
            raise ConfigError(
                "RUN_DIR", str(folder), expected, "Give the folder that a training has printed as run_dir."
            )
        found |= dict.fromkeys(fed)
    return list(found)


def _store_of(folder: Path) -> Store:
    """The store that a folder's run is in; before there is a run, MLFLOW_TRACKING_URI may name another one."""
    recorded = recorded_address(folder)
    assert recorded is not None
    uri, artifact_root = recorded
    asked = os.environ.get(TRACKING_VARIABLE)
    if not asked or asked == uri:
        return Store(uri, artifact_root)
    if (folder / RUN_FILE).exists():
        raise ConfigError(TRACKING_VARIABLE, asked, f"{uri}, where the run of {folder} is", "Correct or unset it.")
    return tracking_store(folder.parent)


# --- evaluations -----------------------------------------------------------------------------------------------------


def _log_evaluation_elsewhere(
    run: TrackedRun, metrics: Mapping[str, Any], cells: Iterable[Mapping[str, Any]], folder: Path
) -> None:
    """The evaluation of a registered model, whose run folder may be anywhere: fed from a folder beside the results."""
    beside = folder.absolute().with_name(f"{folder.name}.mlflow-{run.run_id}")
    beside.mkdir(exist_ok=True)
    write_whole(beside / RUN_FILE, json.dumps({"uri": run.store.uri, "run_id": run.run_id}) + "\n")
    fed = TrackedRun(run.store, run.run_id, beside)
    fed.log_evaluation(metrics, cells, folder)
    if not any((beside / SPOOL).glob("*.json")):
        shutil.rmtree(beside)


def _model_of(signature: str) -> list[str]:
    """The hash of the model in an evaluation's signature."""
    return [part.removeprefix("model:") for part in signature.split("|") if part.startswith("model:")]


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
