"""The trials of a sweep under Ray Tune: which values, how many at a time, which go on, and again after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import ray
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray import tune
from ray.tune import PlacementGroupFactory, ResumeConfig
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from hbt_ray.config import Config
from hbt_ray.errors import ResourceError
from hbt_ray.session import environment
from hbt_ray.sweep.population import Population
from hbt_ray.sweep.settings import ALPHA, Asha, Pbt, SweepConfig
from hbt_ray.sweep.space import distributions, grid_points
from hbt_ray.sweep.trial import TrialContext, run_trial

TUNE_FOLDER = "tune"
EXIT_SECONDS = 60.0  # within which the process of a trial that was stopped is gone
DATA_CPUS = 1.0  # of each training, for data tasks: without any it would wait for ever
RANDOM_TRIALS = 1 / 3  # of the trials, and at most as many as Optuna takes, are drawn at random before tpe begins
ENVIRONMENT = {  # of a sweep, from before Ray starts
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep like any command
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # seconds between snapshots: what a restart does not know of is done again
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

Curves = Mapping[str, Sequence[Mapping[str, Any]]]  # trial id -> its validations: step, score
OnProgress = Callable[[int, str], None]

logger = logging.getLogger(__name__)


def concurrent_runs(config: Config, asked: int | None, where: str = "search.concurrent") -> int:
    """Trainings that the cluster has room for at the same time, at most as many as were asked for.

    Raises:
        ResourceError: more were asked for; both numbers are named.
    """
    cluster, there = config.cluster, ray.cluster_resources()
    cpus = there.get("CPU", 0.0)
    room = cpus / (cluster.workers * cluster.cpus_per_worker + DATA_CPUS)
    if cluster.gpu:
        room = min(room, there.get("GPU", 0.0) / cluster.workers)
    fitting = max(1, floor(room + 1e-9))  # one fits: the session has seen to that, with fewer workers if need be
    if asked is not None and asked > fitting:
        raise ResourceError(
            where,
            asked,
            f"at most {fitting}: the cluster has {cpus:g} CPUs and {there.get('GPU', 0.0):g} GPUs, and each takes "
            f"{cluster.workers} x {cluster.cpus_per_worker:g} CPUs for workers and {DATA_CPUS:g} for data",
            f"Lower {where}, or leave it out.",
        )
    return fitting if asked is None else asked


def run_trials(
    context: TrialContext, folder: Path, concurrent: int, curves: Curves, on_progress: OnProgress
) -> list[Trial]:
    """Run all trials, or those that an earlier call in this folder left; all of them, as Ray Tune knows them.

    No process of a trial is left at the end.

    Args:
        context: what the trials share.
        folder: of the sweep; Ray Tune's state is in `tune` there.
        concurrent: trials at a time.
        curves: what trials of earlier calls have found: successive halving compares with them too.
        on_progress: told (trials that have ended, note).
    """
    sweep = context.sweep
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    processes = TrialProcesses()
    with _reachable_by_trials():
        analysis = tune.run(
            tune.with_parameters(run_trial, context=context),
            name=TUNE_FOLDER,
            storage_path=str(folder),
            config={ALPHA: tune.uniform(*_bounds(sweep))} if isinstance(sweep.scheduler, Pbt) else {},
            num_samples=number_of_trials(sweep),
            resources_per_trial=_beside_the_driver(concurrent),
            search_alg=_searcher(sweep),
            scheduler=scheduler_of(sweep, concurrent, curves),
            max_concurrent_trials=None if isinstance(sweep.scheduler, Pbt) else concurrent,
            callbacks=[_Progress(on_progress), processes],
            resume_config=ResumeConfig() if _started(folder) else None,
            trial_dirname_creator=_trial_id,
            trial_name_creator=_trial_id,
            reuse_actors=isinstance(sweep.scheduler, Pbt),  # whose trials begin anew after every exchange
            raise_on_failed_trial=False,
            verbose=0,
        )
    processes.wait()
    return list(analysis.trials)


def number_of_trials(sweep: SweepConfig) -> int:
    """How many trials there will be."""
    return sweep.search.trials or len(grid_points(sweep.space))


def _started(folder: Path) -> bool:
    return any((folder / TUNE_FOLDER).glob("experiment_state-*.json"))


def _bounds(sweep: SweepConfig) -> tuple[float, float]:
    bounds = sweep.space[ALPHA].uniform
    assert bounds is not None
    return bounds


def _trial_id(trial: Trial) -> str:
    return str(trial.trial_id)


def _beside_the_driver(concurrent: int) -> PlacementGroupFactory:
    """No CPU, and a share of the node of the driver, where the run folders are; no more trials than shares."""
    own = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    address = next(name for name in resources if name.startswith("node:") and name != "node:__internal_head__")
    return PlacementGroupFactory([{address: floor(1e4 / concurrent) / 1e4}])


def _searcher(sweep: SweepConfig) -> Searcher | SearchAlgorithm:
    search, objective = sweep.search, sweep.objective
    if isinstance(sweep.scheduler, Pbt):
        return BasicVariantGenerator(random_state=search.seed)
    over_front = search.over == "pareto"
    return OptunaSearch(
        space=distributions(sweep.space),
        metric=list(objective.pareto) if over_front else "score",
        mode=list(objective.pareto.values()) if over_front else "max",
        points_to_evaluate=grid_points(sweep.space) if search.algorithm == "grid" else None,
        sampler=_sampler(sweep),
    )


def _sampler(sweep: SweepConfig) -> BaseSampler:
    """Of a grid too: it draws what is not in the list of points, which is nothing."""
    if sweep.search.algorithm == "tpe":
        at_random = max(1, min(10, round(RANDOM_TRIALS * number_of_trials(sweep))))
        return TPESampler(seed=sweep.search.seed, n_startup_trials=at_random)
    return RandomSampler(seed=sweep.search.seed)


def scheduler_of(sweep: SweepConfig, concurrent: int, curves: Curves) -> TrialScheduler:
    """What decides which trials go on, knowing what trials of an earlier call have found."""
    if isinstance(sweep.scheduler, Pbt):
        return Population(
            interval_steps=sweep.scheduler.interval_steps,
            bounds=_bounds(sweep),
            perturbation=sweep.scheduler.perturbation,
            seed=sweep.search.seed,
            concurrent=concurrent,
        )
    if isinstance(sweep.scheduler, Asha):
        return _asha(sweep.scheduler, sweep.base.train.steps, curves)
    return FIFOScheduler()


def _asha(asha: Asha, steps: int, curves: Curves) -> ASHAScheduler:
    """Successive halving that knows what was seen at its rungs: Ray Tune does not keep that over a restart."""
    scheduler = ASHAScheduler(
        time_attr="step",
        metric="score",
        mode="max",
        max_t=steps,
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
    )
    for trial_id, curve in curves.items():
        trial = SimpleNamespace(trial_id=trial_id)
        scheduler.on_trial_add(None, trial)
        for point in curve:
            scheduler.on_trial_result(None, trial, point)
    return scheduler


@contextmanager
def _reachable_by_trials() -> Iterator[None]:
    """Tell the processes of trials which Ray they are in, of several that a machine may run.

    When a trial is stopped, its workers' resources are given back by an actor of Ray Train that asks that Ray.
    """
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    with environment({"RAY_ADDRESS": ray.get_runtime_context().gcs_address}):
        yield


class _Progress(tune.Callback):  # type: ignore[misc]
    """Says how far the sweep is whenever a trial reports or ends."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        self._say(trials, f"{trial.trial_id} step {result['step']} score {result['score']:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trials, f"{trial.trial_id} ended at step {trial.last_result.get('step', 0)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trials, f"{trial.trial_id} failed")

    def _say(self, trials: Sequence[Trial], note: str) -> None:
        self._on_progress(sum(trial.is_finished() for trial in trials), note)


class TrialProcesses(tune.Callback):  # type: ignore[misc]
    """The processes that trials ran in, on the driver's node.

    Ray Tune does not wait for them: one that is stopped finds its workers gone, and closes its MLflow run as failed.
    """

    def __init__(self) -> None:
        self._processes: set[psutil.Process] = set()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Take note of where the trial runs."""
        with suppress(psutil.NoSuchProcess):
            self._processes.add(psutil.Process(result["pid"]))

    def wait(self, seconds: float = EXIT_SECONDS) -> None:
        """Until all of them are gone; those that are not, are killed."""
        _, alive = psutil.wait_procs(self._processes, timeout=seconds)
        for process in alive:
            logger.warning("process %d of a trial has not ended after %g seconds: killed", process.pid, seconds)
            process.kill()
        psutil.wait_procs(alive)
