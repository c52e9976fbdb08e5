"""The trainings of a study, as many at a time as the cluster has room for; one that fails does not end the others.

Each is `commands.train` in a Ray task of its own on the driver's node, where the run folders are.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hbt_ray.commands import train
from hbt_ray.errors import HbtError
from hbt_ray.storage import write_whole
from hbt_ray.study.arms import StudyRun
from hbt_ray.tracking.runs import TRACKING_VARIABLE, Store, run_of_folder

OUTCOME = "outcome.json"  # in the run folder of a finished training

Outcome: TypeAlias = dict[str, Any]  # a row of `runs` in study.json
OnProgress: TypeAlias = Callable[[str], None]


def train_all(
    runs: Sequence[StudyRun], concurrent: int, store: Store, parent_run: Path, on_progress: OnProgress
) -> list[Outcome]:
    """The outcomes of runs, in their order; what has finished before is not started again, what has failed is.

    Args:
        runs: what to train.
        concurrent: how many at a time.
        store: where their MLflow runs are.
        parent_run: folder of the study, below whose MLflow run theirs are shown.
        on_progress: told what has ended, and how.
    """
    outcomes = {run.name: outcome for run in runs if (outcome := _finished(run)) is not None}
    waiting = [run for run in runs if run.name not in outcomes]
    for run, outcome in _trained(waiting, concurrent, store, parent_run):
        if outcome["status"] == "finished":
            write_json(_folder(run) / OUTCOME, outcome)
        else:
            outcome["mlflow_run_id"] = _close(run, store, "FAILED")
        outcomes[run.name] = outcome
        on_progress(f"{len(outcomes)}/{len(runs)} {run.name}: {_told(outcome)}")
    return [outcomes[run.name] for run in runs]


def close_unfinished(runs: Sequence[StudyRun], store: Store) -> None:
    """Trainings that went on when the study was stopped do not stay RUNNING in MLflow."""
    for run in runs:
        if _finished(run) is None:
            _close(run, store, "KILLED")


def write_json(path: Path, content: Any) -> None:
    """Write a file that is there only once it is complete."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _trained(
    runs: Sequence[StudyRun], concurrent: int, store: Store, parent_run: Path
) -> Iterator[tuple[StudyRun, Outcome]]:
    """Each run with its outcome, as they end."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray Train reads its settings in the process that starts it.
    variables = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
    task: Any = ray.remote(**options, runtime_env={"env_vars": variables | {TRACKING_VARIABLE: store.uri}})(_train)
    waiting = deque(runs)
    going: dict[Any, StudyRun] = {}
    while waiting or going:
        while waiting and len(going) < concurrent:
            run = waiting.popleft()
            going[task.remote(run, parent_run)] = run
        (ended,), _ = ray.wait(list(going), num_returns=1)
        run = going.pop(ended)
        yield run, _result(ended, run)


def _result(ended: Any, run: StudyRun) -> Outcome:
    try:
        outcome: Outcome = ray.get(ended)
    except ray.exceptions.RayError as error:  # its process is gone: killed, or out of memory
        return _outcome(run, 0.0, error=str(error).strip().splitlines()[0])
    return outcome


def _train(run: StudyRun, parent_run: Path) -> Outcome:
    """Train one run, in a process of Ray."""
    started = time.monotonic()
    try:
        trained = train(run.config, lambda rows: None, parent_run=parent_run)
    except HbtError as error:
        return _outcome(run, time.monotonic() - started, error=str(error))
    except Exception as error:  # whatever it is, the other runs go on and the study says why this one did not
        return _outcome(run, time.monotonic() - started, error=f"{type(error).__name__}: {error}")
    return _outcome(run, time.monotonic() - started) | {
        "steps": trained.steps,
        "validation_loss": trained.best_validation_loss,
        "best_step": trained.best_step,
        "model_dir": str(trained.model_dir),
        "mlflow_run_id": trained.mlflow_run_id,
    }


def _outcome(run: StudyRun, seconds: float, error: str | None = None) -> Outcome:
    return {
        "arm": run.arm,
        "seed": run.seed,
        "fraction": run.fraction,
        "name": run.name,
        "status": "finished" if error is None else "failed",
        "error": error,
        "steps": None,
        "validation_loss": None,
        "best_step": None,
        "model_dir": None,
        "seconds": seconds,
        "mlflow_run_id": None,
    }


def _told(outcome: Outcome) -> str:
    if outcome["status"] == "failed":
        return f"failed: {outcome['error']}"
    loss = outcome["validation_loss"]
    return f"{outcome['steps']} steps" + ("" if loss is None else f", validation {loss:.4f}")


def _folder(run: StudyRun) -> Path:
    return Path(run.config.run.out) / run.name


def _finished(run: StudyRun) -> Outcome | None:
    """The outcome of a training that finished."""
    path = _folder(run) / OUTCOME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _close(run: StudyRun, store: Store, status: str) -> str | None:
    """End the MLflow run of a training, if it has one; its id."""
    tracked = run_of_folder(_folder(run), store)
    if tracked is None:
        return None
    tracked.finish(status)
    return tracked.run_id
