"""What a sweep's file may say, what is searched, what is better: all that needs no Ray."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hbt_ray.cli import run
from hbt_ray.config import Config
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.settings_file import checked
from hbt_ray.sweep.objective import pareto_front, score
from hbt_ray.sweep.prepare import check_claim, claim, prepare, resolved
from hbt_ray.sweep.results import best_entry, curve, front
from hbt_ray.sweep.run import trial_table
from hbt_ray.sweep.search import TrialProcesses, concurrent_runs, scheduler_of
from hbt_ray.sweep.settings import SweepConfig, load_sweep
from hbt_ray.sweep.space import check_space, chosen, distributions, grid_points

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(toy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The toy configuration, writing below a folder of this module."""
    return toy_config.replaced({"run.out": str(tmp_path_factory.mktemp("sweeps"))})


def raw(base: Config, **changes: Any) -> dict[str, Any]:
    """A sweep's file as read, with some keys changed."""
    return {
        "name": "s",
        "config": base.model_dump(mode="json"),
        "space": {"mix.alpha": {"uniform": [0.0, 1.0]}, "train.temperature": {"log_uniform": [0.02, 0.2]}},
        "search": {"trials": 4},
        "validation": {"questions": 20},
        **changes,
    }


def sweep(base: Config, **changes: Any) -> SweepConfig:
    return checked(SweepConfig, raw(base, **changes), "sweep.yaml")


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"spce": {}}, ["sweep.yaml: spce", "'space'"]),
    ({"search": {"trial": 3}}, ["search.trial", "'trials'"]),
    ({"search": {}}, ["search.trials", "nothing"]),
    ({"space": {}}, ["space", "at least 1"]),
    ({"space": {"mix.alpha": {"unifrom": [0, 1]}}}, ["space.mix.alpha.unifrom", "'uniform'"]),
    ({"space": {"mix.alpha": {}}}, ["space.mix.alpha:", "nothing"]),
    ({"space": {"mix.alpha": {"uniform": [0, 1], "choice": [1]}}}, ["uniform and choice"]),
    ({"space": {"mix.alpha": {"uniform": [1, 0]}}}, ["space.mix.alpha.uniform", "lower"]),
    ({"space": {"mix.alpha": {"log_uniform": [0, 1]}}}, ["log_uniform", "above 0"]),
    ({"space": {"mix.alpha": {"choice": [0.5, 0.5]}}}, ["space.mix.alpha.choice", "0.5 twice"]),
    ({"space": {"mix.alpha": {"grid": [0, 1]}}}, ["space.mix.alpha", "search.algorithm: grid"]),
    ({"search": {"algorithm": "grid"}}, ["space.mix.alpha", "uniform with search.algorithm 'grid'"]),
    ({"search": {"algorithm": "grid", "trials": 3}}, ["search.trials", "as many as it has points"]),
    ({"search": {"algorithm": "random", "trials": 3, "over": "pareto"}}, ["search.over", "tpe"]),
    ({"settings": {"mix.alpha": 0.3}}, ["settings.mix.alpha", "searched"]),
    ({"scheduler": {"name": "asha"}}, ["scheduler.grace_steps", "no default"]),
    ({"scheduler": {"name": "asha", "grace": 3}}, ["scheduler.grace", "'grace_steps'"]),
    ({"scheduler": {"name": "pbt", "interval_steps": 3}}, ["space", "exactly mix.alpha"]),
    ({"objective": {"weights": {"multilingual/map": 1}}}, ["weights.multilingual/map", "'multilingual/mAP'"]),
    ({"objective": {"weights": {"language_bias/rank_distance": 1}}}, ["a negative weight"]),
    ({"objective": {"weights": {"multilingual/mAP": 0}}}, ["a positive weight"]),
    ({"objective": {"pareto": {"multilingual/mAP": "min"}}}, ["pareto.multilingual/mAP", "max"]),
    ({"objective": {"pareto": {"multilingual/R@10": "up"}}}, ["pareto.multilingual/R@10", "'max' or 'min'"]),
    ({"validation": {"benchmark": "xquad"}}, ["validation.benchmark", "'xquad-r'"]),
    ({"validation": {"benchmark": "xquad-r"}}, ["validation.data", "folder"]),
    ({"validation": {"data": "x"}}, ["validation.data", "held-out"]),
    ({"report": [{"benchmark": "sampl", "data": "x"}]}, ["report.0.benchmark", "'sample'"]),
    (
        {"validation": {"benchmark": "xquad-r", "data": "x"}, "report": [{"benchmark": "xquad-r", "data": "y"}]},
        ["report.0.benchmark", "'xquad-r'", "chosen on this one"],
    ),
    ({"best": {"retrain": {"run.name": "x"}}}, ["best.retrain.run.name"]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=lambda value: json.dumps(value)[:50])
def test_mistakes_in_the_file_are_named(base: Config, changes: dict[str, Any], words: list[str]) -> None:
    """Every mistake is a ConfigError with file, key and what would be right, and survives pickling."""
    with pytest.raises(ConfigError) as caught:
        sweep(base, **changes)
    for word in ("sweep.yaml", *words):
        assert word in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


IMPOSSIBLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"settings": {"train.stepz": 3}}, ["train.stepz", "'steps'"]),
    ({"space": {"mix.alfa": {"uniform": [0, 1]}}}, ["space.mix.alfa", "'mix.alpha'"]),
    ({"space": {"mix.alpha": {"uniform": [0, 1.5]}}}, ["space.mix.alpha", "uniform with 1.5", "less than or equal"]),
    ({"space": {"mix.mixed": {"choice": ["X-Y", "Y-X"]}}}, ["space.mix.mixed", "choice with 'Y-X'"]),
    ({"space": {"train.batch_size": {"int_uniform": [1, 16]}}}, ["space.train.batch_size", "int_uniform with 1"]),
    ({"space": {"train.steps": {"int_uniform": [1, 16]}}}, ["space.train.steps", "compared"]),
    ({"space": {"data.hold_out.fraction": {"uniform": [0.1, 0.2]}}}, ["space.data.hold_out.fraction", "compared"]),
    ({"scheduler": {"name": "asha", "grace_steps": 6}}, ["scheduler.grace_steps", "less than train.steps (6)"]),
    ({"settings": {"data.hold_out.fraction": 0.0}}, ["data.hold_out.fraction", "held-out documents"]),
    ({"settings": {"data.languages": ["en"], "mix.alpha": 1.0}, "space": {"train.temperature": {"uniform": [0.1, 1]}}},
     ["objective.weights.cross_lingual/mAP", "held-out of en"]),
    ({"settings": {"data.languages": ["en"], "mix.alpha": 1.0}, "space": {"train.temperature": {"uniform": [0.1, 1]}},
      "objective": {"weights": {"monolingual/mAP": 1}}}, ["objective.pareto.multilingual/mAP", "may be empty"]),
    ({"settings": {"data.root": "/not/there"}}, ["/not/there"]),
    ({"report": [{"benchmark": "xquad-r", "data": "/not/there"}]}, ["/not/there"]),
    ({"best": {"retrain": {"train.step": 3}}}, ["train.step", "'steps'"]),
    ({"scheduler": {"name": "pbt", "interval_steps": 4}, "space": {"mix.alpha": {"uniform": [0, 1]}},
      "search": {"algorithm": "random", "trials": 4}}, ["scheduler.interval_steps"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), IMPOSSIBLE, ids=lambda value: json.dumps(value)[:50])
def test_what_cannot_run_is_refused_before_ray_starts(
    base: Config, changes: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`hbt-ray sweep` ends with exit code 2 and one message; no folder, no MLflow store and no Ray are made."""
    import ray

    config = base.replaced({"run.out": str(tmp_path / "out")}).model_dump(mode="json")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw(base, **changes) | {"config": config}))
    assert run(["sweep", str(path)]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()
    assert not ray.is_initialized()


def test_a_file_names_its_configuration_and_takes_settings(base: Config, tmp_path: Path) -> None:
    """`config` is relative to the file; --set reaches keys with dots in them."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json")))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw(base) | {"config": "inner/base.yaml"}))
    settings = ["settings.train.steps=30", "space.mix.alpha={uniform: [0.2, 0.4]}", "search.trials=7"]
    found = load_sweep(path, [*settings, "best.retrain.train.steps=60"])
    assert found.base.train.steps == 30
    assert found.config == base
    assert found.space["mix.alpha"].uniform == (0.2, 0.4)
    assert found.search.trials == 7
    assert found.best.retrain == {"train.steps": 60}
    with pytest.raises(ConfigError, match=r"inner/none.yaml"):
        load_sweep(path, ["config=inner/none.yaml"])


def test_sample_sweep_is_valid() -> None:
    """The sweep that is shipped loads and all its ends of ranges are taken."""
    found = load_sweep(ROOT / "jobs" / "configs" / "sweep-sample.yaml")
    check_space(found.space, found.base)
    assert found.search.trials == 12


def test_trials_hold_out_the_same_documents(base: Config) -> None:
    """Whatever seed is searched, documents are held out by the base seed, or the one that the base names."""
    prepared = prepare(sweep(base, space={"run.seed": {"choice": [1, 2]}}))
    assert prepared.config({"run.seed": 2}).data.hold_out.seed == base.run.seed
    named = prepare(sweep(base, settings={"data.hold_out.seed": 99}))
    assert named.config({}).data.hold_out.seed == 99


def test_another_sweep_does_not_get_the_folder(base: Config) -> None:
    """A changed key is refused with its name and both values; concurrency and workers may change."""
    asked = sweep(base, name="claimed")
    claim(asked)
    check_claim(asked)
    check_claim(sweep(base, name="claimed", search={"trials": 4, "concurrent": 1}))
    for changes, words in (
        ({"search": {"trials": 5}}, ["search.trials: got 5; expected 4"]),
        ({"space": {"mix.alpha": {"uniform": [0, 0.5]}}}, ["space.mix.alpha.uniform: got [0.0, 0.5]", "[0.0, 1.0]"]),
        ({"objective": {"weights": {"multilingual/mAP": 2}}}, ["objective.weights.cross_lingual/mAP", "expected 1.0"]),
        ({"settings": {"train.steps": 9}}, ["settings.train.steps: got 9; expected None"]),
    ):
        with pytest.raises(ConfigError) as caught:
            check_claim(sweep(base, name="claimed", **changes))
        for word in words:
            assert word in str(caught.value)


# --- the space -------------------------------------------------------------------------------------------------------

SPACE: dict[str, Any] = {
    "mix.alpha": {"choice": [0.5, {"points": [[0, 1.0], [3, 0.0]], "interpolation": "step"}]},
    "train.temperature": {"log_uniform": [0.02, 0.2]},
    "train.batch_size": {"int_uniform": [15, 17]},
    "train.learning_rate": {"uniform": [1e-4, 1e-3]},
}


def test_sampled_values_are_settings(base: Config) -> None:
    """500 draws: within bounds, both ends of whole numbers drawn, log-uniform by its decades, all taken by Config."""
    space = sweep(base, space=SPACE).space
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [chosen(space, study.ask(distributions(space)).params) for _ in range(500)]
    temperatures = np.array([settings["train.temperature"] for settings in drawn])
    assert 0.02 <= temperatures.min() < temperatures.max() <= 0.2
    assert abs(np.mean(np.log10(temperatures)) - np.log10(np.sqrt(0.02 * 0.2))) < 0.03
    assert {settings["train.batch_size"] for settings in drawn} == {15, 16, 17}
    assert {json.dumps(settings["mix.alpha"]) for settings in drawn} == {
        json.dumps(value) for value in SPACE["mix.alpha"]["choice"]
    }
    assert base.replaced(drawn[0]).train.temperature == drawn[0]["train.temperature"]


def test_grid_points_are_all_combinations(base: Config) -> None:
    """Every value with every other, as itertools.product lists them."""
    grids = {"mix.alpha": [0.0, 0.5, 1.0], "train.symmetric": [False, True], "mix.mixed": ["X-Y", "X-X"]}
    space = sweep(
        base, space={key: {"grid": found} for key, found in grids.items()}, search={"algorithm": "grid"}
    ).space
    expected = [dict(zip(grids, point, strict=True)) for point in itertools.product(*grids.values())]
    assert [chosen(space, point) for point in grid_points(space)] == expected


# --- what is better --------------------------------------------------------------------------------------------------


def test_score_is_the_weighted_sum() -> None:
    """Against numpy; a metric that is not there is an error, never zero."""
    metrics = {"a": 0.25, "b": 30.0, "c": 7.0}
    assert score(metrics, {"a": 2.0, "b": -0.01}) == pytest.approx(np.dot([2.0, -0.01], [0.25, 30.0]))
    with pytest.raises(KeyError):
        score(metrics, {"d": 1.0})


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_front_is_what_no_point_dominates(points: list[tuple[int, int, int]]) -> None:
    """Brute force over all pairs with explicit comparisons, in one, two and three objectives with ties."""
    for count in (1, 2, 3):
        names = ["up", "down", "also up"][:count]
        directions = dict(zip(names, ["max", "min", "max"], strict=False))
        named = [dict(zip(names, map(float, point), strict=False)) for point in points]
        expected = []
        for i, mine in enumerate(named):
            beaten = False
            for other in named:
                no_worse = all(
                    other[name] >= mine[name] if direction == "max" else other[name] <= mine[name]
                    for name, direction in directions.items()
                )
                beaten = beaten or (no_worse and other != mine)
            if not beaten:
                expected.append(i)
        assert pareto_front(named, directions) == expected


def test_no_objectives_no_front() -> None:
    """Without directions nothing is on the front."""
    assert pareto_front([{"a": 1.0}], {}) == []


def entry(trial_id: str, status: str, value: float | None, multilingual: float, distance: float) -> dict[str, Any]:
    metrics = {"multilingual/mAP": multilingual, "language_bias/rank_distance": distance}
    return {
        "trial_id": trial_id,
        "status": status,
        "score": value,
        "step": 5,
        "metrics": metrics if value is not None else {},
        "settings": {"mix.alpha": 0.123456, "train.temperature": 0.05},
    }


def test_only_finished_trials_are_chosen_from(base: Config) -> None:
    """A stopped trial of a higher score is neither the best nor on the front; the table begins with the best."""
    entries = [
        entry("a", "finished", 1.0, 0.3, 20.0),
        entry("b", "stopped", 9.0, 0.9, 1.0),
        entry("c", "finished", 2.0, 0.4, 30.0),
        entry("d", "failed", None, 0.0, 0.0),
        entry("e", "finished", 0.5, 0.2, 40.0),
    ]
    asked = sweep(base)
    best = best_entry(entries)
    assert best is not None
    assert best["trial_id"] == "c"
    assert front(entries, asked) == ["a", "c"]
    assert best_entry([entries[1], entries[3]]) is None
    header, rows = trial_table(resolved(asked) | {"trials": entries})
    assert [row[0] for row in rows] == ["c", "a", "e", "b", "d"]
    assert rows[0][header.index("mix.alpha")] == "0.1235"
    assert rows[0][header.index("score")] == "2"
    assert rows[4][header.index("score")] == "-"
    entries[0]["settings"]["mix.alpha"] = {"points": [[0, 1.0], [50, 0.25]], "interpolation": "step"}
    assert trial_table(resolved(asked) | {"trials": entries})[1][1][header.index("mix.alpha")] == "1 → 0.25"


def test_curve_is_what_validations_logged(tmp_path: Path) -> None:
    """Rows with a validation only, by steps done; a line that is not finished is left out; no file, no points."""
    weights = {"multilingual/mAP": 2.0}
    assert curve(tmp_path, weights) == []
    rows = [
        {"step": 0, "loss": 3.0},
        {"step": 1, "loss": 2.5, "validation_loss": 2.6, "validation/multilingual/mAP": 0.25},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.5, "validation_loss": 1.6, "validation/multilingual/mAP": 0.5},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "validation_l')
    assert curve(tmp_path, weights) == [
        {"step": 2, "score": 0.5, "metrics": {"validation_loss": 2.6, "multilingual/mAP": 0.25}},
        {"step": 4, "score": 1.0, "metrics": {"validation_loss": 1.6, "multilingual/mAP": 0.5}},
    ]


def test_halving_remembers_trials_of_before_a_restart(base: Config) -> None:
    """Ray Tune forgets its rungs; given the curves, a trial below what was seen at the rung is stopped, as at first."""
    asked = sweep(base, scheduler={"name": "asha", "grace_steps": 2, "reduction_factor": 2})
    trial = SimpleNamespace(trial_id="new")

    def decision(curves: dict[str, Any], value: float) -> str:
        scheduler = scheduler_of(asked, 1, curves)
        scheduler.on_trial_add(None, trial)
        return str(scheduler.on_trial_result(None, trial, {"step": 2, "score": value}))

    before = {"a": [{"step": 2, "score": 1.0}], "b": [{"step": 2, "score": 3.0}]}
    assert decision({}, 1.9) == "CONTINUE"
    assert decision(before, 1.9) == "STOP"  # the median of what was seen is 2
    assert decision(before, 2.1) == "CONTINUE"


def test_a_sweep_waits_for_the_processes_of_its_trials(caplog: pytest.LogCaptureFixture) -> None:
    """One on its way out is waited for, one that does not end is killed, one of before a restart is nobody's."""
    commands = {"leaves": "import time; time.sleep(2)", "stays": "import time; time.sleep(600)", "left": ""}
    children = {name: subprocess.Popen([sys.executable, "-c", code]) for name, code in commands.items()}
    children["left"].wait()
    processes = TrialProcesses()
    for child in children.values():
        processes.on_trial_result(0, [], SimpleNamespace(), {"pid": child.pid})
    processes.wait(5.0)
    assert not any(psutil.pid_exists(child.pid) for child in children.values())
    assert f"process {children['stays'].pid} of a trial has not ended" in caplog.text
    assert f"process {children['leaves'].pid} " not in caplog.text
    for child in children.values():
        child.wait()  # their handles learn of it


@pytest.mark.parametrize(
    ("cluster", "there", "room"),
    [
        ({"workers": 1}, {"CPU": 4.0}, 2),
        ({"workers": 1}, {"CPU": 2.0}, 1),
        ({"workers": 4}, {"CPU": 64.0}, 12),
        ({"workers": 2, "cpus_per_worker": 0.5}, {"CPU": 7.0}, 3),
        ({"workers": 2, "gpu": True}, {"CPU": 64.0, "GPU": 8.0}, 4),
        ({"workers": 4, "gpu": True}, {"CPU": 12.0, "GPU": 8.0}, 2),
    ],
)
def test_trials_at_a_time_are_those_that_fit(
    base: Config, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], there: dict[str, float], room: int
) -> None:
    """Workers' CPUs and one for data each, and a GPU per worker; one more than that is refused with both numbers."""
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    config = base.replaced({f"cluster.{key}": value for key, value in ({"cpus_per_worker": 1.0} | cluster).items()})
    assert concurrent_runs(config, None) == room
    assert concurrent_runs(config, 1) == 1
    with pytest.raises(ResourceError, match=rf"search.concurrent: got {room + 1}; expected at most {room}"):
        concurrent_runs(config, room + 1)
