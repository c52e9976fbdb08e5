"""Schedules, parameter groups and the DeepSpeed configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hbt_ray.config import TrainSection
from hbt_ray.model.encoder import load_encoder
from hbt_ray.train.engine import deepspeed_config, learning_rate, parameter_groups
from hbt_ray.train.loop import EarlyStop


def train_section(**changes: object) -> TrainSection:
    return TrainSection.model_validate({"steps": 10, "batch_size": 8, "learning_rate": 1.0, **changes})


def test_linear_schedule_warms_up_and_falls_to_zero() -> None:
    """Two warm-up steps, then straight to zero at the end, by hand."""
    train = train_section(steps=6, warmup_steps=2)
    assert [learning_rate(step, train) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_constant_schedule_stays() -> None:
    """After the warm-up the rate does not move."""
    train = train_section(warmup_steps=2, schedule="constant")
    assert [learning_rate(step, train) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]


def test_clipping_is_always_stated() -> None:
    """DeepSpeed clips at 1.0 when it is not told otherwise; 0 must reach it."""
    config = deepspeed_config(train_section(max_gradient_norm=0.0), 2, 4)
    assert config["gradient_clipping"] == 0.0
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["zero_optimization"] == {"stage": 2}
    assert deepspeed_config(train_section(), 2, 3)["train_micro_batch_size_per_gpu"] == 3  # 8 pairs: 2, 3 and 3


def test_states_in_host_memory_are_an_offload() -> None:
    """cpu_adamw puts the optimiser's partition on the host, adamw does not."""
    offloaded = deepspeed_config(train_section(optimizer="cpu_adamw"), 2, 2)
    assert offloaded["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def test_biases_and_norms_are_not_decayed(toy_model: Path) -> None:
    """Every trained weight is in one group; matrices decay, vectors do not; the unused pooler is in none."""
    encoder = load_encoder(str(toy_model), "mean")[0]
    decayed, kept = parameter_groups(encoder, 0.01)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    assert all(weight.ndim == 2 for weight in decayed["params"])
    assert all(weight.ndim == 1 for weight in kept["params"])
    trained = [weight for name, weight in encoder.named_parameters() if "pooler" not in name]
    assert len(decayed["params"]) + len(kept["params"]) == len(trained)


def test_early_stop_counts_validations_without_a_better_loss() -> None:
    """Patience 2: the second worse validation in a row stops, a better one starts the count again."""
    stop = EarlyStop(2, {"X-X-mono": 1.0, "X-Y": 3.0}, {})
    results = [stop.update({"X-X-mono": mono, "X-Y": 1.0}) for mono in (1.0, 2.0, 0.5, 0.9)]
    assert results[1] == {"validation_loss": 1.25, "validation_loss/X-X-mono": 2.0, "validation_loss/X-Y": 1.0}
    assert not stop.now
    resumed = EarlyStop(2, {"X-X-mono": 1.0, "X-Y": 3.0}, stop.state())
    resumed.update({"X-X-mono": 0.5, "X-Y": 1.0})
    assert resumed.now


def test_without_held_out_data_nothing_stops() -> None:
    """No validation, no early stop, no invented loss."""
    stop = EarlyStop(1, {}, {})
    assert stop.update({}) == {}
    assert not stop.now
