"""Population based training of α: schedules, perturbations, the exchange under Ray Tune, and its proof bit by bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator
from safetensors.torch import load_file

from hbt_ray import commands
from hbt_ray.config import Config, MixSection
from hbt_ray.errors import ConfigError
from hbt_ray.mixing.plan import BatchPlan, DatasetRows
from hbt_ray.session import ray_session
from hbt_ray.sweep.population import (
    ALPHA,
    LEAST_ALPHA,
    Pointer,
    Population,
    Schedule,
    alpha_setting,
    check_population,
    extended,
    final_settings,
    perturbed,
    read_pointer,
    segment_name,
    usable_alpha,
)
from hbt_ray.sweep.run import run_sweep
from hbt_ray.sweep.settings import SweepConfig
from hbt_ray.train.record import CheckpointAddress, alpha_before

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import tests

# --- schedules -------------------------------------------------------------------------------------------------------


def schedule_of(*alphas: float, interval: int = 100) -> Schedule:
    """One α per interval."""
    schedule: Schedule = ()
    for number, alpha in enumerate(alphas):
        schedule = extended(schedule, number * interval, alpha)
    return schedule


def test_equal_neighbours_are_one_point() -> None:
    """A schedule says where α changes, and how often it stayed the same leaves no trace."""
    assert schedule_of(0.3) == ((0, 0.3),)
    assert schedule_of(0.3, 0.3, 0.5, 0.5, 0.3) == ((0, 0.3), (200, 0.5), (400, 0.3))


def test_a_schedule_gives_every_interval_its_alpha() -> None:
    """Of each interval's 1000 steps the plan draws the share of X-X-mono batches that its α says."""
    alphas = [0.3, 0.3, 0.9, 0.1, 0.1, 0.5]
    planned = plan(*alphas, interval=1000)
    for number, alpha in enumerate(alphas):
        mono = sum(planned[step].mode == "X-X-mono" for step in range(1000 * number, 1000 * (number + 1)))
        assert mono == pytest.approx(1000 * alpha, abs=4 * np.sqrt(1000 * alpha * (1 - alpha)))


def plan(*alphas: float, interval: int = 100) -> BatchPlan:
    """Of two datasets in three languages, with one α per interval."""
    mix = MixSection.model_validate({"alpha": alpha_setting(schedule_of(*alphas, interval=interval))})
    return BatchPlan([rows("one", 3, 640), rows("two", 3, 256)], ["de", "en", "zh"], mix, 16, seed=5)


def rows(name: str, languages: int, size: int) -> DatasetRows:
    """A dataset that has every text."""
    full = np.full((languages, size // 8), 255, dtype=np.uint8)
    return DatasetRows(name, full, full, full[0], np.arange(0, size + 1, 64))


def test_a_batch_depends_on_alpha_up_to_its_own_step_only() -> None:
    """Schedules that agree before step 200 plan equal batches before it, whatever follows; then they part."""
    for before in ([0.4, 0.7], [usable_alpha(0.0)] * 2, [1.0, 1.0]):
        short, long, other = plan(*before), plan(*before, 0.2, 0.9), plan(*before, 0.95, 0.1)
        for step in range(200):
            for longer in (long, other):
                ours, theirs = short[step], longer[step]
                assert (ours.dataset, ours.mode) == (theirs.dataset, theirs.mode)
                for name in ("rows", "query_language", "passage_language"):
                    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert [long[step].mode for step in range(200, 400)] != [other[step].mode for step in range(200, 400)]


def test_alpha_stays_within_its_bounds() -> None:
    """Drawn anew a quarter of the time, uniformly; else one perturbation up or down, half of the time each."""
    rng = random.Random(3)
    found = [perturbed(0.5, (0.2, 0.9), 0.15, rng) for _ in range(4000)]
    up, down = found.count(0.65), found.count(0.35)
    others = [alpha for alpha in found if alpha not in (0.65, 0.35)]
    assert len(others) == pytest.approx(1000, abs=4 * 27)  # four standard deviations of Binomial(4000, 1/4)
    assert up == pytest.approx(1500, abs=4 * 31)
    assert down == pytest.approx(1500, abs=4 * 31)
    assert min(others) >= 0.2
    assert max(others) <= 0.9
    assert np.mean(others) == pytest.approx(0.55, abs=4 * 0.2 / np.sqrt(900))
    assert {perturbed(0.85, (0.2, 0.9), 0.15, rng) for _ in range(50)} >= {0.9, 0.7}


def test_alpha_is_never_exactly_zero() -> None:
    """Of the values a trial may have the least is above 0; anything else is rounded to four digits."""
    assert [usable_alpha(alpha) for alpha in (0.0, -0.1, 0.123456, 1.0, 1.2)] == [
        LEAST_ALPHA,
        LEAST_ALPHA,
        0.1235,
        1,
        1,
    ]
    assert perturbed(0.1, (0.0, 1.0), 0.2, FirstDown()) == LEAST_ALPHA


class FirstDown(random.Random):
    """Perturbs, downwards."""

    def random(self) -> float:
        """Never draws anew."""
        return 0.99

    def choice(self, seq: Any) -> Any:
        """The first of (down, up)."""
        return seq[0]


def test_a_continued_schedule_keeps_the_identity_of_its_checkpoints() -> None:
    """What a checkpoint has seen of α is the same before and after another interval was added."""
    for alphas in ([0.3], [0.3, 0.6], [0.3, 0.3, 0.6]):
        step = 100 * len(alphas)
        before, after = schedule_of(*alphas), schedule_of(*alphas, 0.8)
        assert alpha_before(alpha_setting(before), step) == alpha_before(alpha_setting(after), step)
        assert alpha_before(alpha_setting(before), step + 1) != alpha_before(alpha_setting(after), step + 1)


def test_every_history_has_a_run_of_its_own() -> None:
    """Another α, start or trial is another run name; the same history has the same, in any process."""
    names = {
        segment_name(trial, start, schedule)
        for trial in ("s-1_00000", "s-1_00001")
        for start in (100, 200)
        for schedule in (schedule_of(0.3, 0.4), schedule_of(0.3, 0.5), schedule_of(0.4, 0.3))
    }
    assert len(names) == 12
    assert segment_name("s-1_00000", 100, schedule_of(0.3, 0.4)) == "s-1_00000-100-f5cbaeeb"


def test_a_pointer_comes_back_as_it_was_left(tmp_path: Path) -> None:
    """Through its file, with a schedule that a configuration takes."""
    pointer = Pointer(
        CheckpointAddress("s3://bucket/runs/a", "step-00000200-1a2b"),
        200,
        schedule_of(0.3, 0.4),
        "/runs/a/model",
        {"validation_loss": 0.1 + 0.2, "validation/multilingual/mAP": 0.25},
    )
    pointer.write(tmp_path)
    assert read_pointer(tune.Checkpoint.from_directory(tmp_path)) == pointer
    assert final_settings(pointer) == {ALPHA: {"points": [[0, 0.3], [100, 0.4]], "interpolation": "step"}}


@pytest.mark.parametrize(
    ("settings", "interval", "message"),
    [
        ({}, 4, r"scheduler\.interval_steps: got 4; expected a multiple of train\.validate_every \(3\)"),
        ({}, 6, r"scheduler\.interval_steps: got 6; expected .* below train\.steps \(6\)"),
        ({"train.patience": 2}, 3, r"train\.patience: got 2; expected null"),
    ],
)
def test_what_cannot_be_trained_in_intervals_is_refused(
    toy_config: Config, settings: dict[str, Any], interval: int, message: str
) -> None:
    """Intervals without a validation at their end or without a second one, and early stops."""
    check_population(toy_config, 3)
    with pytest.raises(ConfigError, match=message):
        check_population(toy_config.replaced(settings), interval)


# --- the exchange ----------------------------------------------------------------------------------------------------

STEPS, INTERVAL, TRIALS, SEED = 30, 10, 4, 7


def gain(schedule: Schedule, steps: int) -> float:
    """A score that grows with every step, the faster the nearer α is to 0.7."""
    starts, alphas = zip(*schedule, strict=True)
    ends = (*starts[1:], steps)
    gains = ((end - start) * (1 - (alpha - 0.7) ** 2) for start, end, alpha in zip(starts, ends, alphas, strict=True))
    return float(sum(gains))


def pretended_trial(sampled: Mapping[str, Any], log: str, broken: tuple[int, int] | None, seconds: float) -> None:
    """The pointers and reports of a trial without its training; every interval leaves a line in `log`."""
    checkpoint = tune.get_checkpoint()
    pointer = read_pointer(checkpoint) if checkpoint else None
    number = int(tune.get_context().get_trial_id().rpartition("_")[2])
    alpha = usable_alpha(sampled[ALPHA])
    while pointer is None or pointer.step < STEPS:
        start = 0 if pointer is None else pointer.step
        if (number, start) == broken:
            raise ValueError("broken on purpose")
        schedule = extended(() if pointer is None else pointer.schedule, start, alpha)
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps([number, start, schedule]) + "\n")
        time.sleep(seconds)
        pointer = Pointer(CheckpointAddress("-", "-"), start + INTERVAL, schedule, "-", {})
        row = {"step": pointer.step, "score": gain(schedule, pointer.step), "done": pointer.step >= STEPS}
        with TemporaryDirectory() as folder:
            pointer.write(Path(folder))
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))


def evolve(out: Path, broken: tuple[int, int] | None = None, seconds: float = 0.0) -> dict[int, Schedule]:
    """The schedules that a population ends with, by the trials' numbers; goes on where it was killed."""
    trainable = tune.with_resources(
        tune.with_parameters(pretended_trial, log=str(out / "log"), broken=broken, seconds=seconds), {"CPU": 0.5}
    )
    if tune.Tuner.can_restore(str(out / "tune")):
        tuner = tune.Tuner.restore(str(out / "tune"), trainable)
    else:
        scheduler = Population(interval_steps=INTERVAL, bounds=(0.0, 1.0), perturbation=0.2, seed=SEED, concurrent=2)
        tuner = tune.Tuner(
            trainable,
            param_space={ALPHA: tune.uniform(0.0, 1.0)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                num_samples=TRIALS,
                scheduler=scheduler,
                search_alg=BasicVariantGenerator(random_state=SEED),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
        )
    return {
        int(str(result.metrics["trial_id"]).rpartition("_")[2]): read_pointer(result.checkpoint).schedule
        for result in tuner.fit()
        if result.metrics and result.checkpoint
    }


def intervals(out: Path) -> dict[tuple[int, int], Schedule]:
    """The schedule that each (trial, start) was trained with."""
    lines = [json.loads(line) for line in (out / "log").read_text(encoding="utf-8").splitlines()]
    return {(number, start): tuple((step, alpha) for step, alpha in points) for number, start, points in lines}


@dataclass
class Member:
    """A trial as a scheduler sees it."""

    number: int
    status: str
    step: int = 0
    done: bool = False

    @property
    def trial_id(self) -> str:
        """As Ray Tune numbers them."""
        return f"abc_{self.number:05d}"

    @property
    def last_result(self) -> dict[str, Any]:
        """Empty before the first report."""
        return {"step": self.step, "done": self.done} if self.step else {}

    def is_finished(self) -> bool:
        """Whether it ended or failed."""
        return self.status in (Trial.TERMINATED, Trial.ERROR)


@pytest.mark.parametrize(
    ("members", "chosen"),
    [
        ([Member(0, Trial.PAUSED), Member(1, Trial.PAUSED)], 0),
        ([Member(0, Trial.RUNNING), Member(1, Trial.PAUSED)], 1),
        ([Member(0, Trial.RUNNING), Member(1, Trial.PENDING), Member(2, Trial.PAUSED)], None),  # two at a time
        ([Member(0, Trial.PAUSED, 20), Member(1, Trial.PAUSED, 10)], 1),  # as a restart may find them
        ([Member(0, Trial.PAUSED, 20), Member(1, Trial.RUNNING, 10)], None),
        ([Member(0, Trial.PAUSED, 10), Member(1, Trial.RUNNING, 10)], None),  # which is still saving
        ([Member(0, Trial.PAUSED, 20), Member(1, Trial.ERROR, 10), Member(2, Trial.PAUSED, 10)], 2),
        ([Member(0, Trial.RUNNING, 30, done=True), Member(1, Trial.PAUSED, 10), Member(2, Trial.PAUSED, 20)], 1),
        ([Member(0, Trial.TERMINATED, 30, done=True), Member(1, Trial.ERROR)], None),
    ],
)
def test_who_is_furthest_behind_may_run(members: list[Member], chosen: int | None) -> None:
    """Two at a time, nobody ahead of others, nobody before all that live have reported."""
    population = Population(interval_steps=10, bounds=(0.0, 1.0), perturbation=0.2, seed=SEED, concurrent=2)
    trial = population.choose_trial_to_run(SimpleNamespace(get_trials=lambda: members))
    assert (None if trial is None else trial.number) == chosen


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("local_ray")
def test_the_worst_goes_on_from_a_copy_of_the_best(tmp_path: Path) -> None:
    """After every interval the lowest score takes the schedule of the highest with another α; the others go on.

    One trial fails in its second interval: the others go on without it, and what it had counts no more.
    """
    final = evolve(tmp_path, broken=(1, INTERVAL))
    trained = intervals(tmp_path)
    alive = {0, 2, 3}
    assert set(trained) == {(1, 0)} | {(number, start) for number in alive for start in range(0, STEPS, INTERVAL)}
    for start, population in ((INTERVAL, {0, 1, 2, 3}), (2 * INTERVAL, alive)):
        before = {number: trained[number, start - INTERVAL] for number in population}
        worst, *_, best = sorted(population, key=lambda number: gain(before[number], start))
        for number in alive & population:
            after = trained[number, start]
            if number == worst:
                assert after[:-1] == before[best]
                assert after[-1][0] == start
            else:
                assert after == before[number]
    assert final == {number: trained[number, 2 * INTERVAL] for number in alive} | {1: trained[1, 0]}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_population_ends_as_if_never_killed(tmp_path: Path) -> None:
    """The driver killed after the first exchange and started again: the schedules of a population left alone."""
    left_alone, killed = tmp_path / "left alone", tmp_path / "killed"
    expected = driven(left_alone, 0.0)
    process = started(killed, 1.0)
    deadline = time.monotonic() + 300
    while not any(start == INTERVAL for _, start in (intervals(killed) if (killed / "log").exists() else ())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3.0)  # some of the second intervals end, some do not
    process.kill()
    process.wait()
    before = len((killed / "log").read_text(encoding="utf-8").splitlines())
    assert before < TRIALS * STEPS // INTERVAL
    assert driven(killed, 0.0) == expected
    assert intervals(killed) == intervals(left_alone)


def started(out: Path, seconds: float) -> subprocess.Popen[bytes]:
    """`evolve` in a process of its own, which leaves what it ends with in a file."""
    out.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, __file__, str(out), str(seconds)], stdout=subprocess.DEVNULL)


def driven(out: Path, seconds: float) -> str:
    """What `evolve` in a process of its own ends with."""
    assert started(out, seconds).wait(timeout=400) == 0
    return (out / "schedules.json").read_text(encoding="utf-8")


# --- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_schedule_trained_at_once_gives_the_same_weights(toy_config: Config, toy_model: Path, tmp_path: Path) -> None:
    """One trial was overwritten by the other: ordinary runs with their schedules export the same weights, bit for bit.

    Both trials' intervals are in one MLflow run each, below the sweep's.
    """
    base = toy_config.replaced(
        {
            "run.out": str(tmp_path),
            "model.backbone": str(toy_model),
            "train.steps": 16,
            "train.validate_every": 8,
            "train.log_every": 4,
        }
    )
    sweep = SweepConfig.model_validate(
        {
            "name": "evolved",
            "config": base.model_dump(mode="json"),
            "space": {ALPHA: {"uniform": [0.0, 1.0]}},
            "search": {"algorithm": "random", "trials": 2, "seed": SEED},
            "scheduler": {"name": "pbt", "interval_steps": 8, "perturbation": 0.4},
        }
    )
    with ray_session(2.0):
        content = run_sweep(sweep)
        trials = content["trials"]
        assert [(trial["status"], trial["step"], len(trial["curve"])) for trial in trials] == [("finished", 16, 2)] * 2
        kept, overwritten = sorted(trials, key=lambda trial: len(trial["settings"][ALPHA]["points"]))
        points = [trial["settings"][ALPHA]["points"] for trial in (kept, overwritten)]
        assert points[1] == [*points[0], [8, points[1][1][1]]]
        models = [load_file(Path(trial["model_dir"]) / "model.safetensors") for trial in (kept, overwritten)]
        assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
        for trial, model in zip((kept, overwritten), models, strict=True):
            config = base.replaced({"run.name": f"at-once-{trial['trial_id']}", **trial["settings"]})
            at_once = commands.train(config, lambda rows: None)
            theirs = load_file(at_once.model_dir / "model.safetensors")
            assert at_once.best_validation_loss == trial["metrics"]["validation_loss"]
            assert all(torch.equal(model[name], theirs[name]) for name in theirs)
    client = MlflowClient(content["tracking_uri"])
    for trial in trials:
        run = client.get_run(trial["mlflow_run_id"])
        assert run.info.run_name == trial["run_name"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == content["mlflow_run_id"]
        assert json.loads(run.data.tags[ALPHA]) == trial["settings"][ALPHA]
        history = client.get_metric_history(run.info.run_id, "validation_loss")
        assert {point.step for point in history} == {7, 15}
    records = list((tmp_path / "evolved" / "trials").glob("*/mlflow.json"))
    assert len(records) == 4
    assert len({record.read_text(encoding="utf-8") for record in records}) == 2


if __name__ == "__main__":
    from hbt_ray.session import prepare_environment

    os.environ["RAY_AUTH_MODE"] = "disabled"
    prepare_environment()
    with ray_session(2.0):
        schedules = evolve(Path(sys.argv[1]), seconds=float(sys.argv[2]))
    Path(sys.argv[1], "schedules.json").write_text(json.dumps(sorted(schedules.items())), encoding="utf-8")
