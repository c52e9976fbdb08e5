"""Training under Ray: the same batches and first loss for any number of workers, resumption, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hbt_ray.config import Config
from hbt_ray.errors import ConfigError, ModelError, ResourceError
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.model.export import read_training
from hbt_ray.session import ray_session
from hbt_ray.train.fit import FitResult, fit, validation_weights
from hbt_ray.train.run_folder import claim_folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(config: Config, corpus: str) -> tuple[FitResult, list[dict[str, Any]]]:
    """Fit below the configured folder; the result and the rows of metrics.jsonl."""
    run_dir = Path(config.run.out) / config.run.name
    claim_folder(run_dir, config, corpus)
    result = fit(config, run_dir, corpus)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def unbroken(toy_config: Config, toy_corpus: str, toy_model: Path) -> tuple[FitResult, list[dict[str, Any]]]:
    """Six steps on one worker, dropout on, never stopped."""
    return run(toy_config.replaced({"run.name": "unbroken", "model.backbone": str(toy_model)}), toy_corpus)


def test_a_run_leaves_metrics_of_every_step_and_an_export(
    unbroken: tuple[FitResult, list[dict[str, Any]]],
) -> None:
    """Every step is in metrics.jsonl once, validations with their loss; the best encoder loads and embeds."""
    result, rows = unbroken
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 5]
    assert result.steps == 6
    assert result.best_validation_loss == min(row["validation_loss"] for row in rows if "validation_loss" in row)
    assert TextEncoder(str(result.model_dir)).encode(["aa bb"]).shape == (1, 32)
    facts = read_training(result.model_dir)
    assert (facts["languages"], facts["seed"], facts["datasets"]) == (["de", "en", "zh"], 13, {"toy": 600})


def test_stopped_and_resumed_is_never_stopped_bitwise(
    unbroken: tuple[FitResult, list[dict[str, Any]]], toy_config: Config, toy_corpus: str, toy_model: Path
) -> None:
    """Three steps, then the same run again to six: losses and weights are bit for bit those of the unbroken run."""
    config = toy_config.replaced({"run.name": "resumed", "model.backbone": str(toy_model), "train.steps": 3})
    assert run(config, toy_corpus)[0].steps == 3
    result, rows = run(config.replaced({"train.steps": 6}), toy_corpus)
    assert [row["step"] for row in rows] == list(range(6))
    assert losses(rows) == losses(unbroken[1])
    ours = load_file(result.model_dir / "model.safetensors")
    theirs = load_file(unbroken[0].model_dir / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_workers_take_the_step_of_one(toy_config: Config, toy_corpus: str, tmp_path: Path) -> None:
    """Without dropout the first loss on two workers is that on one to 1e-5, and every batch has the same draw."""
    base = toy_config.replaced({"model.scratch.dropout": 0.0, "train.steps": 3, "run.out": str(tmp_path)})
    one = run(base.replaced({"run.name": "one"}), toy_corpus)[1]
    two = run(base.replaced({"run.name": "two", "cluster.workers": 2}), toy_corpus)[1]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert [(row["mode"], row["dataset"]) for row in two] == [(row["mode"], row["dataset"]) for row in one]


def test_a_finished_run_returns_at_once(
    unbroken: tuple[FitResult, list[dict[str, Any]]], toy_config: Config, toy_corpus: str, toy_model: Path
) -> None:
    """The same command again trains nothing and writes nothing twice."""
    again, rows = run(toy_config.replaced({"run.name": "unbroken", "model.backbone": str(toy_model)}), toy_corpus)
    assert again == unbroken[0]
    assert rows == unbroken[1]


def test_a_run_name_of_another_configuration_is_refused(
    unbroken: tuple[FitResult, list[dict[str, Any]]], toy_config: Config, toy_corpus: str, toy_model: Path
) -> None:
    """Resuming with another τ is refused, naming the key and both values."""
    config = toy_config.replaced({"run.name": "unbroken", "model.backbone": str(toy_model), "train.temperature": 0.07})
    with pytest.raises(ConfigError, match=r"train\.temperature: got 0\.07; expected 0\.05"):
        claim_folder(Path(config.run.out) / "unbroken", config, toy_corpus)


def test_a_gpu_that_is_not_there_is_refused(toy_config: Config, toy_corpus: str, toy_model: Path) -> None:
    """cluster.gpu on a machine without one raises ResourceError instead of waiting."""
    config = toy_config.replaced({"run.name": "gpu", "model.backbone": str(toy_model), "cluster.gpu": True})
    with pytest.raises(ResourceError, match=r"cluster\.gpu"):
        run(config, toy_corpus)


def test_a_model_folder_without_tokenizer_is_refused(toy_config: Config, toy_corpus: str, tmp_path: Path) -> None:
    """A backbone folder that lacks its tokenizer stops the run before a worker starts."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer"):
        run(toy_config.replaced({"run.name": "bare", "model.backbone": str(tmp_path)}), toy_corpus)


def test_more_workers_than_cpus_are_refused() -> None:
    """A session for more worker CPUs than the cluster has raises ResourceError."""
    with pytest.raises(ResourceError, match="900 CPUs"), ray_session(900):
        pass


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, [1.0, 0.0]), (0.25, [0.25, 0.75]), ({"points": [[0, 0.0], [9, 1.0]]}, [1.0, 1.0])]
)
def test_validation_weighs_modes_as_training_draws_them(
    alpha: object, expected: list[float], toy_config: Config
) -> None:
    """X-X-mono counts α, X-Y 1 - α; under a schedule both count alike."""
    config = toy_config.replaced({"mix.alpha": alpha})
    assert list(validation_weights(config, ["X-X-mono", "X-Y"]).values()) == expected
