"""One trial: an ordinary training, in a process of Ray Tune, that tells it what every validation finds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray import tune

from hbt_ray.commands import train
from hbt_ray.config import Config
from hbt_ray.sweep.objective import score
from hbt_ray.sweep.population import SECONDS, population_trial
from hbt_ray.sweep.settings import Pbt, SweepConfig
from hbt_ray.sweep.space import chosen
from hbt_ray.tracking.runs import TRACKING_VARIABLE
from hbt_ray.train.metrics_log import Rows, validated
from hbt_ray.train.retrieval import PREFIX, Retrieval

MODEL, MLFLOW_RUN = "model_dir", "mlflow_run_id"  # in the last report only, which is of the exported model


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Args:
        sweep: what was asked for.
        config: of every trial, complete but for run.name and what is searched.
        retrieval: what to retrieve at validations.
        parent_run: folder of the sweep, below whose MLflow run the trials' are shown.
        tracking_uri: the MLflow store it is in.
        current_folder: of the driver, where relative paths start.
    """

    sweep: SweepConfig
    config: Config
    retrieval: Retrieval
    parent_run: Path
    tracking_uri: str
    current_folder: str


@dataclass(frozen=True)
class Trial:
    """One of them; `name` is its run's."""

    name: str
    context: TrialContext

    @property
    def config(self) -> Config:
        """Complete but for run.name and what is searched."""
        return self.context.config

    @property
    def retrieval(self) -> Retrieval:
        """What to retrieve at validations."""
        return self.context.retrieval

    @property
    def parent_run(self) -> Path:
        """Folder of the sweep, below whose MLflow run the trial's is shown."""
        return self.context.parent_run

    @property
    def interval_steps(self) -> int:
        """Steps between exchanges of a population."""
        assert isinstance(self.context.sweep.scheduler, Pbt)
        return self.context.sweep.scheduler.interval_steps

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the sweep maximises."""
        return score(metrics, self.context.sweep.objective.weights)


def run_name(sweep: str, trial_id: str) -> str:
    """The run of a trial, or the beginning of the names of its runs."""
    return f"{sweep}-{trial_id}"


def plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a validation found, named as in METRICS."""
    return {name.removeprefix(PREFIX): value for name, value in validated(metrics).items()}


def run_trial(sampled: Mapping[str, Any], context: TrialContext) -> None:
    """Train with what was sampled; runs in a process of Ray Tune.

    Raises UserError, TrainingError: as `commands.train`.
    """
    os.chdir(context.current_folder)  # Tune enters a folder of its own
    os.environ[TRACKING_VARIABLE] = context.tracking_uri
    trial = Trial(run_name(context.sweep.name, tune.get_context().get_trial_id()), context)
    if isinstance(context.sweep.scheduler, Pbt):
        population_trial(sampled, trial)
    else:
        _plain_trial(trial, chosen(context.sweep.space, sampled))


def _plain_trial(trial: Trial, settings: Mapping[str, Any]) -> None:
    config = trial.config.replaced({**settings, "run.name": trial.name})

    def on_rows(rows: Rows) -> None:
        for row in rows:
            # Told that the last step is done, the scheduler would end the trial before it has exported its model.
            if validated(row) and row["step"] + 1 < config.train.steps:
                _report(trial, row["step"] + 1, plain(row), {})

    trained = train(config, on_rows, retrieval=trial.retrieval, parent_run=trial.parent_run)
    exported = {MODEL: str(trained.model_dir), MLFLOW_RUN: trained.mlflow_run_id}
    _report(trial, trained.steps, plain(trained.metrics), exported)


def _report(trial: Trial, step: int, metrics: Mapping[str, float], exported: Mapping[str, str | None]) -> None:
    seconds = time.time() - psutil.Process().create_time()
    tune.report({**metrics, **exported, "step": step, "score": trial.score(metrics), SECONDS: seconds})
