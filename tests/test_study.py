"""A study from end to end: killed and started again, an arm that fails, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from hbt_ray.config import Config, load_config
from hbt_ray.errors import ResourceError, TrainingError
from hbt_ray.evaluation.comparison import compare
from hbt_ray.model.export import model_hash
from hbt_ray.study.analysis import read_metrics
from hbt_ray.study.run import run_study
from hbt_ray.study.settings import StudyConfig, load_study

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BENCHMARK = {"benchmark": "sample", "data": "sample://", "languages": ["en", "de", "zh"]}
BROKEN = {"train.learning_rate": 1e30, "train.max_gradient_norm": 0}  # the second step's loss is not a number
SEEDS = [3, 4]


def study_file(config: Config, folder: Path, **changes: Any) -> Path:
    """Two arms and two seeds, in a file beside their training configuration."""
    training = config.replaced({"run.out": str(folder / "out"), "cluster.max_failures": 0}).model_dump(mode="json")
    (folder / "base.yaml").write_text(yaml.safe_dump(training))
    study = {
        "name": "small",
        "config": "base.yaml",
        "arms": {"X-X-mono": {"mix.alpha": 1.0}, "mono→cross": {"mix.alpha": {"points": [[0, 1.0], [3, 0.0]]}}},
        "baseline": "X-X-mono",
        "seeds": SEEDS,
        "benchmarks": [BENCHMARK],
        "concurrent": 2,
        "resamples": 500,
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def started(path: Path) -> subprocess.Popen[str]:
    """`hbt-ray study`, as users start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "hbt_ray.cli", "study", str(path)], stdout=subprocess.PIPE, text=True, cwd=path.parent
    )


def wait_for(runs: Path, finished: int, process: subprocess.Popen[str]) -> list[Path]:
    """The run folders of finished trainings, once there are so many."""
    deadline = time.monotonic() + 600
    while len(found := [path.parent for path in runs.glob("*/outcome.json")]) < finished:
        assert process.poll() is None, "the study ended"
        assert time.monotonic() < deadline, "nothing finished"
        time.sleep(0.2)
    return found


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the driver and all that it started, as when a machine goes down."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=20)
    process.communicate()


@pytest.mark.timeout(900)
def test_a_killed_study_goes_on_where_it_was(toy_config: Config, tmp_path: Path) -> None:
    """SIGKILL after the first finished training, then the same command: nothing is done twice; finished, it returns
    at once.
    """
    path = study_file(toy_config, tmp_path)
    folder = tmp_path / "out" / "small"
    first = started(path)
    before = {run: (run / "metrics.jsonl").stat().st_mtime_ns for run in wait_for(folder / "runs", 1, first)}
    kill_all(first)
    assert not (folder / "study.json").exists()

    second = started(path)
    out, _ = second.communicate(timeout=800)
    assert second.returncode == 0
    for run, modified in before.items():
        assert (run / "metrics.jsonl").stat().st_mtime_ns == modified
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    check_runs(study, folder)
    check_numbers(study, folder)
    check_mlflow(study)
    line = json.loads(out.splitlines()[-1])
    assert line["tests"]["sample"] == study["benchmarks"]["sample"]["tests"]
    assert Path(line["report"]).is_file()

    began = time.monotonic()
    assert json.loads(json.dumps(run_study(load_study(path)))) == study
    assert time.monotonic() - began < 10


def check_runs(study: dict[str, Any], folder: Path) -> None:
    """Arms of a seed start from the same weights, those of two seeds from others; all hold out the same documents."""
    assert [(run["arm"], run["seed"], run["status"]) for run in study["runs"]] == [
        (arm, seed, "finished") for seed in SEEDS for arm in study["arms"]
    ]
    configs = {
        run["name"]: json.loads((folder / "runs" / run["name"] / "config.json").read_text()) for run in study["runs"]
    }
    assert {config["data"]["hold_out"]["seed"] for config in configs.values()} == {13}
    starts: dict[int, set[str]] = {seed: set() for seed in SEEDS}
    for run in study["runs"]:
        starts[run["seed"]].add(model_hash(Path(configs[run["name"]]["model"]["backbone"])))
        rows = [json.loads(line) for line in (folder / "runs" / run["name"] / "metrics.jsonl").read_text().splitlines()]
        assert run["steps"] == len(rows) == study["steps"]
        losses = {row["step"] + 1: row["validation_loss"] for row in rows if "validation_loss" in row}
        assert run["validation_loss"] == losses[run["best_step"]] == min(losses.values())
        modes = [row["mode"] for row in rows]
        assert ("X-Y" in modes) == (run["arm"] == "mono→cross")
    assert all(len(hashes) == 1 for hashes in starts.values())
    assert len(set.union(*starts.values())) == len(SEEDS)


def check_numbers(study: dict[str, Any], folder: Path) -> None:
    """The table holds the evaluations' numbers, the tests are those of `compare` on their averages."""
    found = study["benchmarks"]["sample"]
    results = folder / "results" / "sample"
    assert list(found["table"]) == ["untrained", "X-X-mono", "mono→cross"]
    for arm, slug in (("X-X-mono", "X-X-mono"), ("mono→cross", "mono-cross")):
        metrics = [read_metrics(results / f"small-{slug}-s{seed}") for seed in SEEDS]
        for section, measure in (("cross_lingual", "R@1"), ("multilingual", "mAP"), ("language_bias", "rank_distance")):
            value = found["table"][arm][section][measure]
            np.testing.assert_allclose(value["seeds"], [one[section][measure] for one in metrics], rtol=1e-9)
            assert value["mean"] == pytest.approx(np.mean(value["seeds"]))
            assert value["low"] < value["mean"] < value["high"]
    start = read_metrics(results / "untrained-s3")
    assert found["table"]["untrained"]["monolingual"]["mAP"]["seeds"] == pytest.approx([start["monolingual"]["mAP"]])
    averaged = folder / "averaged" / "sample"
    compared = compare(
        [averaged / "X-X-mono", averaged / "mono-cross"], resamples=500, seen_languages=found["seen_languages"]
    )
    assert list(found["tests"]) == ["mono→cross"]
    row = found["tests"]["mono→cross"]["settings"]["monolingual"]["mAP"]
    assert {key: row[key] for key in compared["settings"]["monolingual"]["mAP"]} == compared["settings"]["monolingual"][
        "mAP"
    ]
    assert found["seen_languages"] == ["de", "en", "zh"]


def check_mlflow(study: dict[str, Any]) -> None:
    """One run for the study with the table's numbers, and below it one for every training, none of them open."""
    client = MlflowClient(study["tracking_uri"])
    (experiment,) = [found for found in client.search_experiments() if found.name == "hbt_ray"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(study["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    value = study["benchmarks"]["sample"]["table"]["mono→cross"]["multilingual"]["R@10"]
    assert parent.data.metrics["sample/mono-cross/multilingual/R_at_10"] == pytest.approx(value["mean"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "study")} == {
        f"study/study.{kind}" for kind in ("html", "json", "md")
    }
    assert set(runs) == {run["mlflow_run_id"] for run in study["runs"]}
    for run in study["runs"]:
        tracked = runs[run["mlflow_run_id"]]
        assert tracked.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert tracked.info.status == "FINISHED"
        assert "sample/multilingual/mAP" in tracked.data.metrics


@pytest.mark.timeout(600)
def test_a_study_without_a_baseline_or_room_says_so(toy_config: Config, tmp_path: Path) -> None:
    """More trainings at a time than CPUs is the user's mistake; a baseline that never finishes names the reason."""
    broken = {"arms": {"X-X-mono": BROKEN}, "seeds": [3], "untrained": False}
    crowded: StudyConfig = load_study(study_file(toy_config, tmp_path, **broken, concurrent=500))
    with pytest.raises(ResourceError, match="concurrent"):
        run_study(crowded)
    with pytest.raises(TrainingError, match=r"baseline 'X-X-mono' finished: .*not a finite number"):
        run_study(load_study(study_file(toy_config, tmp_path, **broken)))
    config = load_config(tmp_path / "base.yaml")
    client = MlflowClient(f"sqlite:///{config.run.out}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
