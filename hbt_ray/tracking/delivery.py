"""What MLflow is to know of a run folder, and bringing it there: each thing once, whatever happens on the way.

The folder is the truth. A delivery reads it and sends what MLflow lacks; it may be cut off anywhere and begun again, by
any process and at any time:

<run>/metrics.jsonl               rows, which the training writes
<run>/mlflow.json                 the MLflow run that the folder feeds, once there is one
<run>/mlflow.spool/run.json       until then, what it is to be made of
<run>/mlflow.spool/position.json  how much of metrics.jsonl MLflow has
<run>/mlflow.spool/status         of the run, as last told
<run>/mlflow.spool/<time>.json    a message: status, tags, figures, files or a model; gone once it is delivered
<run>/mlflow.spool/<time>/        the files of a message
<run>/mlflow.spool/lock           held by a delivery

A row's time in MLflow is the start of the run plus the seconds of all steps up to it. So a row that is sent again is
the same metric in key, step, time and value, and MLflow's databases keep that once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SQLAlchemyError

from hbt_ray.errors import ResourceError
from hbt_ray.session import environment
from hbt_ray.storage import write_whole
from hbt_ray.tracking.address import shown, store_error

if TYPE_CHECKING:  # runs.py stands on this module
    from hbt_ray.tracking.runs import Store

METRICS = "metrics.jsonl"
RUN_FILE = "mlflow.json"
SPOOL = "mlflow.spool"
BIRTH, POSITION, STATUS, LOCK = "run.json", "position.json", "status", "lock"
MESSAGES = "[0-9]*.json"
TOKEN_TAG = "hbt_ray.token"  # of a run: by it one that was made, and not noted, is found again
STEP, SECONDS = "step", "seconds"  # of a row

MAX_BATCH = 1000  # metrics in one request
RUNNING = "RUNNING"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts while MLflow does not answer
REQUEST_SECONDS, UPLOAD_SECONDS = "30", "600"  # to wait for an answer

logger = logging.getLogger(__name__)
_in_this_process = threading.RLock()  # the settings of MLflow's requests are environment variables


# --- what is to be told ----------------------------------------------------------------------------------------------


def announce(
    folder: Path, store: Store, experiment: str, name: str, config: Mapping[str, Any], parent: Path | None
) -> None:
    """Note what the folder's MLflow run is to be made of; said again, it is still the same run."""
    path = folder / SPOOL / BIRTH
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read(path) if path.exists() else {"token": secrets.token_hex(8), "started": _now()}
    content = {
        "token": known["token"],
        "started": known["started"],
        "uri": store.uri,
        "artifact_root": store.artifact_root,
        "experiment": experiment,
        "name": name,
        "parent": None if parent is None else str(parent.absolute()),
        "config": dict(config),
    }
    write_whole(path, json.dumps(content) + "\n")


def tell(folder: Path, kind: str, files: Path | None = None, **content: Any) -> None:
    """Leave a message for MLflow; `files` is a folder whose files are kept until they are delivered."""
    spool = folder / SPOOL
    spool.mkdir(parents=True, exist_ok=True)
    name = f"{time.time_ns():020d}-{secrets.token_hex(2)}"
    if files is not None:
        shutil.copytree(files, spool / name, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(SPOOL))
    if kind == "status":
        write_whole(spool / STATUS, content["status"])
    write_whole(spool / f"{name}.json", json.dumps({"kind": kind, "at": _now(), **content}) + "\n")


def share_run(first: Path, other: Path) -> None:
    """Let another run folder feed the MLflow run of the first one."""
    (other / SPOOL).mkdir(parents=True, exist_ok=True)
    for name in (f"{SPOOL}/{BIRTH}", RUN_FILE):  # a delivery may turn the one into the other meanwhile
        if (first / name).exists() and not (other / name).exists():
            shutil.copyfile(first / name, other / name)


def recorded_run(folder: Path, uri: str) -> str | None:
    """Id of the MLflow run that a folder feeds in a store; None if there is none, or none yet."""
    record = folder / RUN_FILE
    known = _read(record) if record.exists() else {}
    return str(known["run_id"]) if known.get("uri") == uri else None


def recorded_address(folder: Path) -> tuple[str, str | None] | None:
    """Address and artifact root of the store that a folder's run is in, or is to be in; None for other folders."""
    for record in (folder / RUN_FILE, folder / SPOOL / BIRTH):
        if record.exists():
            known = _read(record)
            return str(known["uri"]), known.get("artifact_root")
    return None


def told_status(folder: Path) -> str | None:
    """The status of a folder's run that was told last, delivered or not."""
    path = folder / SPOOL / STATUS
    return path.read_text(encoding="utf-8") if path.exists() else None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of another file system
        shutil.copy2(source, target)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _now() -> int:
    return int(time.time() * 1000)


# --- delivery --------------------------------------------------------------------------------------------------------


@dataclass
class Delivered:
    """What a delivery sent: rows of metrics.jsonl, messages by kind, and the versions of registered models by name."""

    run_id: str
    rows: int = 0
    messages: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many messages of each kind."""
        return {kind: self.messages.count(kind) for kind in sorted(set(self.messages))}

    def __str__(self) -> str:
        sent = [f"{count} {kind}" for kind, count in ({"rows": self.rows} | self.counts).items() if count]
        registered = [f"registered as {name} version {number}" for name, number in self.versions.items()]
        return f"MLflow run {self.run_id}: {', '.join(sent + registered) or 'nothing was missing'}"


def deliver(folder: Path, store: Store) -> Delivered:
    """Send what MLflow lacks of a folder now, making its run if need be; waits while another process does.

    What comes meanwhile is for the next delivery: beside a training that is faster than MLflow others would wait for
    ever.

    Raises whatever MLflow and its HTTP and database libraries raise; `problem_of` says what it means.
    """
    # MLflow's own retries take minutes and may make a run twice; whoever delivers tries again by itself.
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": REQUEST_SECONDS,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    with _in_this_process, _locked(folder), environment(_unset(settings)):
        client = MlflowClient(store.uri, store.uri)
        sent = Delivered(_run_id(folder, store, client))
        _send_rows(folder, client, sent)
        _send_messages(folder, store, client, sent)
        return sent


def problem_of(error: BaseException, uri: str) -> ResourceError:
    """What a user can do about a failed delivery."""
    if isinstance(error, ResourceError):
        return error
    known = store_error(error, uri) if isinstance(error, MlflowException | SQLAlchemyError) else None
    return known or ResourceError(
        uri,
        f"{type(error).__name__}: {shown(error)}",
        "a store that takes this run",
        f"Mend what it says; {RUN_FILE} in the run folder names the run.",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    spool = folder / SPOOL
    spool.mkdir(parents=True, exist_ok=True)
    with (spool / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unset(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in os.environ}


def _run_id(folder: Path, store: Store, client: MlflowClient) -> str:
    """The folder's MLflow run; made now, or found, if none is noted."""
    noted = recorded_run(folder, store.uri)
    if noted is not None:
        return noted
    birth = _read(folder / SPOOL / BIRTH)
    experiment = _experiment_id(client, store, birth["experiment"])
    # It was made if a process was killed before it noted the id, or the answer was lost.
    made = client.search_runs([experiment], filter_string=f"tags.`{TOKEN_TAG}` = '{birth['token']}'")
    if made:
        run_id = str(made[0].info.run_id)
    else:
        tags = {TOKEN_TAG: birth["token"]}
        if birth["parent"] is not None:
            tags[MLFLOW_PARENT_RUN_ID] = _parent_id(Path(birth["parent"]), store, client)
        run_id = str(client.create_run(experiment, birth["started"], tags, birth["name"]).info.run_id)
    params = [Param(key, str(value)) for key, value in flattened(birth["config"]).items()]
    client.log_batch(run_id, params=params)
    client.log_dict(run_id, birth["config"], "config.json")
    write_whole(folder / RUN_FILE, json.dumps({"uri": store.uri, "run_id": run_id}) + "\n")
    (folder / SPOOL / BIRTH).unlink()
    return run_id


def _parent_id(folder: Path, store: Store, client: MlflowClient) -> str:
    noted = recorded_run(folder, store.uri)
    if noted is not None:
        return noted
    with _locked(folder):
        return _run_id(folder, store, client)


def _experiment_id(client: MlflowClient, store: Store, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, artifact_location=store.artifact_root))


# --- rows ------------------------------------------------------------------------------------------------------------


class _Position(NamedTuple):
    """How much of metrics.jsonl a run has: `bytes`, whose steps took `seconds`; `start` of the run is in ms."""

    run_id: str
    start: int
    bytes: int
    seconds: float


class _Batch(NamedTuple):
    metrics: list[Metric]
    rows: int
    end: _Position


def _send_rows(folder: Path, client: MlflowClient, sent: Delivered) -> None:
    log = folder / METRICS
    if not log.exists():
        return
    size = log.stat().st_size
    with log.open("rb") as file:
        for batch in _batches(file, _position(folder, size, client, sent.run_id), size):
            for start in range(0, len(batch.metrics), MAX_BATCH):
                client.log_batch(sent.run_id, metrics=batch.metrics[start : start + MAX_BATCH])
            write_whole(folder / SPOOL / POSITION, json.dumps(batch.end._asdict()) + "\n")
            sent.rows += batch.rows


def _position(folder: Path, size: int, client: MlflowClient, run_id: str) -> _Position:
    path = folder / SPOOL / POSITION
    if path.exists():
        noted = _Position(**_read(path))
        if noted.run_id == run_id and noted.bytes <= size:
            return noted
    return _Position(run_id, int(client.get_run(run_id).info.start_time), 0, 0.0)


def _batches(file: IO[bytes], position: _Position, size: int) -> Iterator[_Batch]:
    """The whole lines from a position to a size of the file, as many at a time as a request takes."""
    file.seek(position.bytes)
    batch = _Batch([], 0, position)
    for line in file:
        if batch.end.bytes >= size or not line.endswith(b"\n"):
            break  # the rest is still being written
        row = json.loads(line)
        start, seconds = batch.end.start, batch.end.seconds + row.get(SECONDS, 0.0)
        metrics = _row_metrics(row, start + int(1000 * seconds))
        if batch.rows and len(batch.metrics) + len(metrics) > MAX_BATCH:
            yield batch
            batch = _Batch([], 0, batch.end)
        end = batch.end._replace(bytes=batch.end.bytes + len(line), seconds=seconds)
        batch = _Batch(batch.metrics + metrics, batch.rows + 1, end)
    if batch.rows:
        yield batch


def _row_metrics(row: Mapping[str, Any], at: int) -> list[Metric]:
    """Every number of a row but its step."""
    return [
        Metric(metric_name(key), float(value), at, int(row[STEP]))
        for key, value in row.items()
        if key != STEP and isinstance(value, int | float)
    ]


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


# --- messages --------------------------------------------------------------------------------------------------------


def _send_messages(folder: Path, store: Store, client: MlflowClient, sent: Delivered) -> None:
    """Send the messages in the order in which they were left."""
    for path in sorted((folder / SPOOL).glob(MESSAGES)):
        message = _read(path)
        files = path.with_suffix("")
        if message["kind"] == "model":
            sent.versions[message["name"]] = _register(message, store, sent.run_id)
        elif message["kind"] == "files":
            with environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_SECONDS}):
                client.log_artifacts(sent.run_id, str(files), message["name"])
        else:
            _send(message, client, sent.run_id)
        path.unlink()
        shutil.rmtree(files, ignore_errors=True)
        sent.messages.append(message["kind"])


def _send(message: Mapping[str, Any], client: MlflowClient, run_id: str) -> None:
    match message["kind"]:
        case "status" if message["status"] == RUNNING:
            client.update_run(run_id, RUNNING)
        case "status":
            client.set_terminated(run_id, message["status"], message["at"])
        case "tags":
            for key, value in message["tags"].items():
                client.set_tag(run_id, key, value)
        case "figures":
            metrics = [Metric(metric_name(name), value, message["at"], 0) for name, value in message["figures"].items()]
            for start in range(0, len(metrics), MAX_BATCH):
                client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        case unknown:
            raise AssertionError(f"no message is of kind {unknown!r}")


def _register(message: Mapping[str, Any], store: Store, run_id: str) -> int:
    from hbt_ray.tracking.registry import register  # registry.py stands on this module
    from hbt_ray.tracking.runs import TrackedRun

    model = Path(message["model"])
    if not model.is_dir():
        raise ResourceError(
            str(model), "no such folder", f"the model to register as {message['name']!r}", "Restore it."
        )
    with environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_SECONDS}):
        return register(TrackedRun(store, run_id), model, message["name"], message["alias"], message["width"])


# --- in the background -----------------------------------------------------------------------------------------------


class Courier:
    """Delivers a folder in a thread, so that nobody waits for MLflow longer than he says.

    `versions` are those of the models that it registered.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.versions: dict[str, int] = {}
        self._folder = folder
        self._store = store
        self._error: Exception | None = None  # of the last attempt
        self._pause = FIRST_PAUSE
        self._next = 0.0
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def nudge(self) -> None:
        """There is something new: begin an attempt, unless one goes on or the last one failed a moment ago."""
        with self._starting:
            if not self._going() and time.monotonic() >= self._next:
                self._start(quiet=False)

    def settle(self, patience: float) -> tuple[Exception, ResourceError] | None:
        """Deliver all that is there now; what kept it from that within `patience` seconds, and what to do about it."""
        deadline = time.monotonic() + patience
        self._join(deadline)  # it may have begun before the last message came
        with self._starting:
            if not self._going():
                self._start(quiet=True)
        self._join(deadline)
        if self._going():
            late = TimeoutError(f"it did not take everything within {patience:g} s")
            return late, problem_of(late, self._store.uri)
        return None if self._error is None else (self._error, problem_of(self._error, self._store.uri))

    def _going(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join(self, deadline: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, quiet: bool) -> None:
        self._thread = threading.Thread(target=self._attempt, args=(quiet,), daemon=True, name="mlflow-delivery")
        self._thread.start()

    def _attempt(self, quiet: bool) -> None:
        try:
            self.versions |= deliver(self._folder, self._store).versions
        except Exception as error:  # whatever it is, the training goes on
            if self._error is None and not quiet:
                logger.warning(
                    "%s Training goes on; what MLflow lacks is kept in %s and sent when it answers.",
                    problem_of(error, self._store.uri),
                    self._folder,
                )
            self._error = error
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._error, self._pause, self._next = None, FIRST_PAUSE, 0.0
