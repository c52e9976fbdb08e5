"""What became of the trials: sweep.json's entries, from what Ray Tune knows and what lies in the run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial

from hbt_ray.sweep.objective import pareto_front, score
from hbt_ray.sweep.population import SECONDS, final_settings, read_pointer
from hbt_ray.sweep.settings import Pbt, SweepConfig
from hbt_ray.sweep.space import chosen
from hbt_ray.sweep.trial import MODEL, plain, run_name
from hbt_ray.sweep.validation import METRICS
from hbt_ray.tracking.runs import RUN_FILE
from hbt_ray.train.fit import METRICS as METRICS_LOG
from hbt_ray.train.metrics_log import validated

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"

Entry = dict[str, Any]


def trial_entries(trials: Sequence[Trial], sweep: SweepConfig, runs: Path) -> list[Entry]:
    """Every trial as sweep.json has it; `runs` is the folder of the run folders.

    Its seconds are those of its last attempt to its last report: from the start of its process, as `hbt-ray train`
    has one, or of a population's member from its last exchange.
    """
    return [_entry(trial, sweep, runs) for trial in sorted(trials, key=lambda trial: str(trial.trial_id))]


def front(entries: Sequence[Entry], sweep: SweepConfig) -> list[str]:
    """Ids of the finished trials that no finished trial beats in every objective."""
    finished = [entry for entry in entries if entry["status"] == FINISHED]
    indices = pareto_front([entry["metrics"] for entry in finished], sweep.objective.pareto)
    return [finished[i]["trial_id"] for i in indices]


def best_entry(entries: Sequence[Entry]) -> Entry | None:
    """The finished trial of the highest score; None if none has finished."""
    finished = [entry for entry in entries if entry["status"] == FINISHED]
    return max(finished, key=lambda entry: float(entry["score"]), default=None)


def curve(run_dir: Path, weights: Mapping[str, float]) -> list[Entry]:
    """What the validations of a run have found: step, score and metrics; [] for a run that has not come to one."""
    log = run_dir / METRICS_LOG
    if not log.exists():
        return []
    text = log.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [_point(row["step"] + 1, plain(row), weights) for row in rows if validated(row)]


def _point(step: int, metrics: Mapping[str, float], weights: Mapping[str, float]) -> Entry:
    return {"step": step, "score": score(metrics, weights), "metrics": dict(metrics)}


@dataclass(frozen=True)
class _End:
    """How a trial ended, and for one that finished, what it exported and what that is worth."""

    status: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float] | None = None
    model_dir: str | None = None


def _entry(trial: Trial, sweep: SweepConfig, runs: Path) -> Entry:
    name, weights = run_name(sweep.name, trial.trial_id), sweep.objective.weights
    points = _curve_of(name, runs, weights)
    end = _member_end(trial) if isinstance(sweep.scheduler, Pbt) else _end(trial, sweep)
    metrics = end.metrics or (points[-1]["metrics"] if points else {})
    return {
        "trial_id": trial.trial_id,
        "run_name": name,
        "settings": dict(end.settings),
        "status": end.status,
        "step": trial.last_result["step"] if end.status == FINISHED else points[-1]["step"] if points else 0,
        "score": score(metrics, weights) if metrics else None,
        "metrics": dict(metrics),
        "curve": points,
        "seconds": trial.last_result.get(SECONDS, 0.0),
        "mlflow_run_id": _mlflow_run(name, runs),
        "model_dir": end.model_dir,
        "error": _reason(trial) if end.status == FAILED else None,
    }


def _end(trial: Trial, sweep: SweepConfig) -> _End:
    settings = chosen(sweep.space, trial.config)
    if trial.status == Trial.ERROR:
        return _End(FAILED, settings)
    if MODEL in trial.last_result:
        return _End(FINISHED, settings, _metrics(trial.last_result), trial.last_result[MODEL])
    return _End(STOPPED, settings)


def _member_end(trial: Trial) -> _End:
    """Of a population: what was searched is the schedule of α that it ended with."""
    pointer = None if trial.checkpoint is None else read_pointer(trial.checkpoint)
    settings = dict(trial.config) if pointer is None else final_settings(pointer)
    if pointer is None or trial.status == Trial.ERROR:
        return _End(FAILED, settings)
    return _End(FINISHED, settings, plain(pointer.metrics), pointer.model_dir)


def _curve_of(name: str, runs: Path, weights: Mapping[str, float]) -> list[Entry]:
    """Of all runs of a trial: one, or of a population's member one for every interval."""
    points = [point for run_dir in runs.glob(f"{name}*") for point in curve(run_dir, weights)]
    return sorted(points, key=lambda point: int(point["step"]))


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """What a trial reported, without what Ray Tune adds."""
    return {
        name: value
        for name, value in report.items()
        if name.startswith("validation_loss") or name.removesuffix("/low").removesuffix("/high") in METRICS
    }


def _mlflow_run(name: str, runs: Path) -> str | None:
    record = next(runs.glob(f"{name}*/{RUN_FILE}"), None)  # the runs of a population's member all name the same one
    return None if record is None else str(json.loads(record.read_text(encoding="utf-8"))["run_id"])


def _reason(trial: Trial) -> str:
    """The message of the error that a trial failed with, without the frames of Ray around it."""
    error = trial.get_pickled_error()
    return str(getattr(error, "cause", None) or error or "unknown: its process was gone")
