"""Training under Ray: the same batches and first loss for any number of workers, resumption, refusals."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hbt_ray.config import Config
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.errors import ConfigError, ModelError, ResourceError, TrainingError
from hbt_ray.mixing.source import training_source
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.model.export import read_training
from hbt_ray.session import ray_session
from hbt_ray.storage import Folder
from hbt_ray.train.fit import FitResult, fit, validation_weights
from hbt_ray.train.record import accepted
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


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    unbroken: tuple[FitResult, list[dict[str, Any]]],
    toy_config: Config,
    toy_corpus: str,
    toy_model: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The newest one cut, the run says so, goes on from the one before and ends bit for bit like the unbroken one."""
    config = toy_config.replaced(
        {"run.name": "damaged", "model.backbone": str(toy_model), "train.steps": 5, "train.checkpoint_every": 4}
    )
    run_dir = run(config, toy_corpus)[0].run_dir
    storage = Folder(str(run_dir / "checkpoints" / "damaged"))
    assert [(saved.step, saved.exported) for saved in accepted(storage)] == [(5, True), (4, False), (3, True)]
    newest = Path(storage.path(accepted(storage)[0].name))
    (cut,) = newest.rglob("mp_rank_00_model_states.pt")
    os.truncate(cut, 100)
    with caplog.at_level(logging.WARNING):
        result, rows = run(config.replaced({"train.steps": 6}), toy_corpus)
    assert f"{newest.name} is damaged: engine/engine/mp_rank_00_model_states.pt has 100 bytes" in caplog.text
    assert "step 4" in caplog.text
    assert [row["step"] for row in rows] == list(range(6))
    assert losses(rows) == losses(unbroken[1])
    ours, theirs = (load_file(r.model_dir / "model.safetensors") for r in (result, unbroken[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def other_model(toy_model: Path, tmp_path: Path) -> Path:
    """The same architecture and tokenizer, one weight different."""
    folder = tmp_path / "other"
    shutil.copytree(toy_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7, 3] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_checkpoints_of_another_training_are_refused(
    unbroken: tuple[FitResult, list[dict[str, Any]]],
    toy_config: Config,
    toy_corpus: str,
    toy_model: Path,
    other_model: Path,
    tmp_path: Path,
) -> None:
    """A new run folder whose storage holds an old run's checkpoints: both values, before a worker starts."""
    base = {"run.name": "unbroken", "run.storage": str(unbroken[0].run_dir / "checkpoints")}
    for changes, message in (
        ({"run.seed": 14}, r"^run\.seed: got 14; expected 13"),
        ({"train.batch_size": 8}, r"^train\.batch_size: got 8; expected 16"),
        ({"model.backbone": str(other_model)}, r"^model weights: got [0-9a-f]{12}; expected [0-9a-f]{12}"),
    ):
        out = tmp_path / next(iter(changes))
        config = toy_config.replaced(base | {"run.out": str(out), "model.backbone": str(toy_model)} | changes)
        with pytest.raises(ConfigError, match=message):
            run(config, toy_corpus)
        assert not (out / "unbroken" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_a_number_names_its_pairs(
    toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Weights that overflow in step 0 ends the run in step 1, with that batch's pairs in a file."""
    config = toy_config.replaced(
        {
            "run.name": "overflow",
            "run.out": str(tmp_path),
            "model.backbone": str(toy_model),
            "train.learning_rate": 1e30,
        }
    )
    path = tmp_path / "overflow" / "non-finite-step-00000001.json"
    with pytest.raises(TrainingError, match=rf"of step 1 is not a finite number; its pairs are in {path}"):
        run(config, toy_corpus)
    found = json.loads(path.read_text())
    spec = training_source(config, toy_corpus).open().plan[1]
    (dataset,) = open_corpus(Folder(toy_corpus))
    table = dataset.read_part("en", 0)
    assert [pair["row"] for pair in found["pairs"]] == spec.rows.tolist()
    assert [pair["pair_id"] for pair in found["pairs"]] == [str(table["pair_id"][row]) for row in spec.rows.tolist()]
    query = [("de", "en", "zh")[code] for code in spec.query_language]
    assert [pair["query_language"] for pair in found["pairs"]] == query
    assert (found["step"], found["mode"], found["dataset"]) == (1, spec.mode, "toy")
    lines = (tmp_path / "overflow" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0]
    assert accepted(Folder(str(tmp_path / "overflow" / "checkpoints" / "overflow"))) == []


def test_a_storage_that_cannot_be_written_is_refused(
    toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """A file where a folder should be, and a place where nobody may write."""
    (tmp_path / "file").write_text("")
    for storage in (tmp_path / "file", Path("/proc/checkpoints")):
        config = toy_config.replaced(
            {"run.name": "ro", "run.out": str(tmp_path), "run.storage": str(storage), "model.backbone": str(toy_model)}
        )
        with pytest.raises(ResourceError, match=str(storage)):
            run(config, toy_corpus)


@pytest.mark.slow
def test_workers_that_come_and_go_take_the_same_steps(
    toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Two workers, one, two under ZeRO 2, each going on where the others stopped: the run of one worker to 1e-4."""
    base = toy_config.replaced({"run.out": str(tmp_path), "model.scratch.dropout": 0.0, "cluster.zero_stage": 2})
    one = run(base.replaced({"run.name": "one"}), toy_corpus)[1]
    elastic = base.replaced({"run.name": "elastic", "cluster.min_workers": 1})
    for steps, workers in ((2, 2), (4, 1), (6, 2)):
        _, rows = run(elastic.replaced({"train.steps": steps, "cluster.workers": workers}), toy_corpus)
        storage = Folder(str(tmp_path / "elastic" / "checkpoints" / "elastic"))
        assert accepted(storage)[0].world_size == workers
    assert [(row["step"], row["mode"], row["dataset"]) for row in rows] == [
        (row["step"], row["mode"], row["dataset"]) for row in one
    ]
    assert losses(rows) == pytest.approx(losses(one), rel=1e-4)


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
    ("mix", "expected"),
    [
        ({"alpha": 1.0}, {"X-X-mono": 1.0, "X-Y": 0.0}),
        ({"alpha": 0.25}, {"X-X-mono": 0.25, "X-Y": 0.75}),
        ({"alpha": {"points": [[0, 0.0], [9, 1.0]]}}, {"X-X-mono": 1.0, "X-Y": 1.0}),
        ({"alpha": 0.0, "mixed": "X-X"}, {"X-X-mono": 0.0, "X-Y": 0.0, "X-X": 1.0}),
        ({"alpha": 0.25, "mixed": "X-X"}, {"X-X-mono": 0.25, "X-Y": 0.0, "X-X": 0.75}),
        ({"alpha": {"points": [[0, 0.0], [9, 1.0]]}, "mixed": "X-X"}, {"X-X-mono": 1.0, "X-Y": 0.0, "X-X": 1.0}),
    ],
    ids=str,
)
def test_validation_weighs_modes_as_training_draws_them(
    mix: dict[str, Any], expected: dict[str, float], toy_config: Config
) -> None:
    """X-X-mono counts α, the mixed batches of training 1 - α; under a schedule both count alike; others not at all."""
    config = toy_config.replaced({f"mix.{key}": value for key, value in mix.items()})
    assert validation_weights(config, list(expected)) == expected


def test_until_and_begin_join_to_the_schedule_in_one_run(
    toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """α 1 until step 3, then another run that begins there with α 0: bit for bit the one run with that schedule."""
    base = toy_config.replaced({"run.out": str(tmp_path), "model.backbone": str(toy_model), "train.schedule": "linear"})

    def trained(name: str, alpha: object, **options: Any) -> tuple[FitResult, list[dict[str, Any]]]:
        config = base.replaced({"run.name": name, "mix.alpha": alpha})
        run_dir = tmp_path / name
        claim_folder(run_dir, config, toy_corpus)
        result = fit(config, run_dir, toy_corpus, **options)
        return result, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]

    schedule = {"points": [[0, 1.0], [3, 0.0]], "interpolation": "step"}
    first, rows = trained("first", 1.0, until=3)
    assert (first.steps, first.best_step, [row["step"] for row in rows]) == (3, 3, [0, 1, 2])
    second, more = trained("second", schedule, begin=first.checkpoint)
    whole, expected = trained("whole", schedule)
    assert [row["mode"] for row in expected] == ["X-X-mono"] * 3 + ["X-Y"] * 3
    assert losses(rows) + losses(more) == losses(expected)
    assert second.best_step == 6
    best = first if whole.best_step == 3 else second
    ours, theirs = (load_file(result.model_dir / "model.safetensors") for result in (best, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match=r"^mix\.alpha: got \[\[0, 0\.0\]\]; expected \[\[0, 1\.0\]\], with which"):
        trained("other", 0.0, begin=first.checkpoint)
