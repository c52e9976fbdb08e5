"""Population based training of α: trials in lock-step, after every interval the worst go on from copies of the best.

What a trial ends with is a schedule of α, one value per interval. A batch depends only on α up to its own step, and a
checkpoint may be continued with another α, so one ordinary run with that schedule trains the same weights, bit for bit.

Every interval is a run of its own folder, never written to again once it is finished: whoever copies a trial begins at
the newest checkpoint in there. What goes through Ray Tune is only a `Pointer` to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from hbt_ray import commands
from hbt_ray.config import Config
from hbt_ray.errors import ConfigError
from hbt_ray.storage import Folder
from hbt_ray.tracking.runs import run_of_folder, share_run, tracked_folders, tracking_store
from hbt_ray.train.metrics_log import validated
from hbt_ray.train.record import CheckpointAddress, accepted
from hbt_ray.train.retrieval import PREFIX, Retrieval

ALPHA = "mix.alpha"
LEAST_ALPHA = 1e-4  # not 0: a plan that has never seen an X-X-mono batch numbers its streams otherwise
DECIMALS = 4
EXCHANGED = 0.25  # of the population, copied and overwritten after every interval
RESAMPLED = 0.25  # of the copies; the α of the others moves up or down
POINTER = "pointer.json"
SECONDS = "seconds"  # reported by every trial: of its last attempt

Schedule = tuple[tuple[int, float], ...]  # (step, α from it on): steps rise, neighbours differ

# --- schedules -------------------------------------------------------------------------------------------------------


def usable_alpha(alpha: float) -> float:
    """The nearest α that a trial may have."""
    return min(1.0, max(LEAST_ALPHA, round(alpha, DECIMALS)))


def extended(schedule: Schedule, step: int, alpha: float) -> Schedule:
    """A schedule with `alpha` from `step` on; unchanged where it ends in that α already."""
    if schedule and schedule[-1][1] == alpha:
        return schedule
    return (*schedule, (step, alpha))


def alpha_setting(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a value of mix.alpha."""
    return {"points": [list(point) for point in schedule], "interpolation": "step"}


def perturbed(alpha: float, bounds: tuple[float, float], perturbation: float, rng: random.Random) -> float:
    """Another α within bounds: drawn anew with probability RESAMPLED, else one perturbation up or down."""
    low, high = bounds
    if rng.random() < RESAMPLED:
        return usable_alpha(rng.uniform(low, high))
    moved = alpha + rng.choice((-perturbation, perturbation))
    return usable_alpha(min(high, max(low, moved)))


def segment_name(trial: str, start: int, schedule: Schedule) -> str:
    """The run of one interval: a trial that is overwritten at `start` leaves what it had itself where it is."""
    digest = hashlib.sha256(json.dumps(schedule).encode()).hexdigest()
    return f"{trial}-{start}-{digest[:8]}"


# --- where a trial stands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointer:
    """All that another trial needs to go on from here.

    Args:
        checkpoint: the newest of the trial's last finished interval.
        step: steps done in it.
        schedule: α of these steps.
        model_dir: the exported encoder of the lowest validation loss on the way here, of whichever interval.
        metrics: what was found there: `validation_loss`, `validation/<metric>`.
    """

    checkpoint: CheckpointAddress
    step: int
    schedule: Schedule
    model_dir: str
    metrics: Mapping[str, float]

    def write(self, folder: Path) -> None:
        """Leave it in a folder, as `read_pointer` reads it."""
        (folder / POINTER).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_pointer(checkpoint: tune.Checkpoint) -> Pointer:
    """The pointer in one of Ray Tune's checkpoints."""
    with checkpoint.as_directory() as folder:
        found = json.loads((Path(folder) / POINTER).read_text(encoding="utf-8"))
    return Pointer(
        checkpoint=CheckpointAddress(**found["checkpoint"]),
        step=found["step"],
        schedule=tuple((step, alpha) for step, alpha in found["schedule"]),
        model_dir=found["model_dir"],
        metrics=found["metrics"],
    )


def final_settings(pointer: Pointer) -> dict[str, Any]:
    """The settings that train this trial's weights in one ordinary run."""
    return {ALPHA: alpha_setting(pointer.schedule)}


# --- a trial ---------------------------------------------------------------------------------------------------------


class PopulationTrial(Protocol):
    """What a trial needs to know of its sweep.

    Args:
        name: of the trial, and beginning of the names of its runs.
        config: of every trial, complete but for run.name and mix.alpha.
        interval_steps: steps between exchanges.
        retrieval: what to retrieve at validations.
        parent_run: folder of the sweep, below whose MLflow run the trial's is shown.
        score: what to maximise, of the metrics of a validation, named without `validation/`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def interval_steps(self) -> int: ...  # noqa: D102
    @property
    def retrieval(self) -> Retrieval: ...  # noqa: D102
    @property
    def parent_run(self) -> Path | None: ...  # noqa: D102
    def score(self, metrics: Mapping[str, float], /) -> float: ...  # noqa: D102


def population_trial(sampled: Mapping[str, Any], trial: PopulationTrial) -> None:
    """Train interval after interval with the sampled α, in a Tune trial, from where its checkpoint points.

    Every interval is reported: step, score and metrics of the weights at its end, which is what a copy would get; at
    the very end those of the exported model, and `done`.

    Raises:
        UserError, TrainingError, Interrupted: as `commands.train`.
    """
    began = time.monotonic()  # its process, which other trials have used, is older
    checkpoint = tune.get_checkpoint()
    pointer = read_pointer(checkpoint) if checkpoint else None
    steps = trial.config.train.steps
    while pointer is None or pointer.step < steps:
        pointer, newest = train_interval(trial, pointer, usable_alpha(sampled[ALPHA]))
        done = pointer.step >= steps
        metrics = _plain(pointer.metrics if done else newest)
        row = {**metrics, "step": pointer.step, "score": trial.score(metrics), "done": done}
        row[SECONDS] = time.monotonic() - began
        with TemporaryDirectory() as folder:
            pointer.write(Path(folder))
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))


def train_interval(
    trial: PopulationTrial, pointer: Pointer | None, alpha: float
) -> tuple[Pointer, Mapping[str, float]]:
    """One interval with `alpha`, from a pointer or from the start; where that leads, and what was found at its end.

    The same call again resumes the interval, or returns at once when it is finished.
    """
    start = 0 if pointer is None else pointer.step
    schedule = extended(() if pointer is None else pointer.schedule, start, alpha)
    # A schedule even where α is constant: the validation loss then weighs its modes the same in every interval.
    config = trial.config.replaced(
        {"run.name": segment_name(trial.name, start, schedule), ALPHA: alpha_setting(schedule)}
    )
    run_dir = commands.output_root(config.run.out) / config.run.name
    _feed_the_trials_run(run_dir, trial.name)
    trained = commands.train(
        config,
        lambda rows: None,
        retrieval=trial.retrieval,
        begin=None if pointer is None else pointer.checkpoint,
        until=min(start + trial.interval_steps, config.train.steps),
        parent_run=trial.parent_run,
    )
    _tag(run_dir, {"mlflow.runName": trial.name, ALPHA: json.dumps(alpha_setting(schedule))})
    ours = Pointer(trained.checkpoint, trained.steps, schedule, str(trained.model_dir), trained.metrics)
    newest = validated(accepted(Folder(trained.checkpoint.storage))[0].metrics)
    return _with_the_better_model(ours, pointer), newest


def _with_the_better_model(now: Pointer, before: Pointer | None) -> Pointer:
    """A pointer with the model that one run through all intervals would have exported; a tie goes to the later one."""
    if before is None or _loss(now) <= _loss(before):
        return now
    return replace(now, model_dir=before.model_dir, metrics=before.metrics)


def _loss(pointer: Pointer) -> float:
    """Of the exported model; infinite where nothing is held out."""
    loss = pointer.metrics.get("validation_loss")
    return math.inf if loss is None or math.isnan(loss) else loss


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(PREFIX): value for name, value in metrics.items()}


def _feed_the_trials_run(run_dir: Path, trial: str) -> None:
    """Let a new run folder feed the MLflow run of the trial's first interval."""
    for first in tracked_folders(run_dir.parent, f"{trial}-0-*")[:1]:
        share_run(first, run_dir)


def _tag(run_dir: Path, tags: Mapping[str, str]) -> None:
    run = run_of_folder(run_dir, tracking_store(run_dir.parent))
    assert run is not None, f"commands.train opened a run for {run_dir}"
    run.set_tags(tags)
    run.settle()


# --- the population --------------------------------------------------------------------------------------------------


def check_population(config: Config, interval_steps: int) -> None:
    """Refuse what cannot be trained in intervals.

    Raises:
        ConfigError: an interval that the validations do not divide or that is the whole training; an early stop.
    """
    train = config.train
    if interval_steps % train.validate_every or interval_steps >= train.steps:
        raise ConfigError(
            "scheduler.interval_steps",
            interval_steps,
            f"a multiple of train.validate_every ({train.validate_every}) below train.steps ({train.steps})",
            "Change one of them.",
        )
    if train.patience is not None:
        raise ConfigError(
            "train.patience",
            train.patience,
            "null with scheduler.name: pbt, whose trials all train equally long",
            "Set settings: {train.patience: null} in the sweep.",
        )


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Ray Tune's population based training, in lock-step, repeatable and never stuck.

    Its own synchronous mode waits for ever when a trial fails or the driver was restored, draws from Python's global
    random numbers, and cannot hold trials back (`max_concurrent_trials` would keep the population from filling up).
    Here all that decides is in the trials' last results, which survive a restart: a trial that is behind may run, and
    when all that live stand at one step the library exchanges between them. An exchange that is made again after a
    restart is the same one, because its random numbers depend on nothing but seed, trial and step.

    Args:
        interval_steps: steps between exchanges.
        bounds: lowest and highest α.
        perturbation: what is added to or taken from α.
        seed: of the exchanges.
        concurrent: trials that train at the same time.
    """

    _supports_buffered_results = False

    def __init__(
        self, *, interval_steps: int, bounds: tuple[float, float], perturbation: float, seed: int, concurrent: int
    ) -> None:
        super().__init__(
            time_attr="step",
            metric="score",
            mode="max",
            perturbation_interval=interval_steps,
            hyperparam_mutations={ALPHA: tune.uniform(*bounds)},
            quantile_fraction=EXCHANGED,
            synch=True,
        )
        self._bounds = bounds
        self._perturbation = perturbation
        self._seed = seed
        self._concurrent = concurrent
        self._exchanged_at = 0

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Hold a trial that is new, or restored with steps to go, until its turn: Tune starts pending ones unasked."""
        known = trial in self._trial_state
        super().on_trial_add(tune_controller, trial)
        if not known and trial.status == Trial.PENDING and not _done(trial):
            trial.set_status(Trial.PAUSED)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Wait for the others; the last result of a trial (`done`) does not come here."""
        return str(self.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """One of the trials that are furthest behind, after an exchange when all are at the same step."""
        population = [trial for trial in tune_controller.get_trials() if not (trial.is_finished() or _done(trial))]
        waiting = [trial for trial in population if trial.status == Trial.PAUSED]
        if not waiting or len(population) - len(waiting) >= self._concurrent:
            return None
        steps = [_step(trial) for trial in population]
        behind = min(steps)
        if behind == max(steps) and behind > self._exchanged_at:
            if len(waiting) < len(population):
                return None  # the last one is still saving
            self._exchange(tune_controller, population, behind)
        return min((trial for trial in waiting if _step(trial) == behind), key=_number, default=None)

    def _exchange(self, tune_controller: Any, population: Sequence[Trial], step: int) -> None:
        for trial in population:
            self._save_trial_state(self._trial_state[trial], step, trial.last_result, trial)
        worst, best = self._quantiles()
        for trial in (*best, *worst):  # the best first: what is copied must be known
            self._checkpoint_or_exploit(trial, tune_controller, best, worst)
        self._exchanged_at = step

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial], lower_quantile: list[Trial]
    ) -> None:
        if trial in lower_quantile:
            upper_quantile = [self._random(trial, "donor").choice(sorted(upper_quantile, key=_number))]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        rng = self._random(trial, "alpha")
        alpha = perturbed(trial_to_clone.config[ALPHA], self._bounds, self._perturbation, rng)
        return {**trial_to_clone.config, ALPHA: alpha}, {ALPHA: f"perturbed to {alpha}"}

    def _random(self, trial: Trial, purpose: str) -> random.Random:
        return random.Random(f"{self._seed}/{_number(trial)}/{_step(trial)}/{purpose}")

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        tune_controller._mark_trial_to_checkpoint(trial)  # else a restart could bring the overwritten trial back


def _step(trial: Trial) -> int:
    return int(trial.last_result.get("step", 0))


def _done(trial: Trial) -> bool:
    return bool(trial.last_result.get("done"))


def _number(trial: Trial) -> int:
    """A trial's number within its sweep; the rest of its id is random."""
    return int(trial.trial_id.rpartition("_")[2])
