"""The DeepSpeed engine: ZeRO stage, precision and optimiser from the configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hbt_ray.config import TrainSection
from hbt_ray.model.encoder import DualEncoder
from hbt_ray.model.temperature import Temperature

NO_DECAY = ("bias", "LayerNorm.weight", "layer_norm.weight", "norm.weight", "temperature.position")


def build_engine(
    encoder: DualEncoder, train: TrainSection, zero_stage: int, world_size: int, *, universal: bool = False
) -> Any:
    """A DeepSpeed engine around the encoder. The process group must exist (Ray Train made it).

    Args:
        encoder: gets the temperature as a submodule, and is handed to the engine.
        train: optimisation.
        zero_stage: 0 to 3.
        world_size: number of ranks.
        universal: whether the checkpoint to load is in DeepSpeed's universal format (another world size wrote it).
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _mlflow_left_alone():
        import deepspeed
        import deepspeed.ops

    # DeepSpeed would compile this operator for a minute at every first start; only its inference code uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    encoder.add_module("temperature", Temperature(train.temperature, learn=train.learn_temperature))
    if train.activation_checkpointing:
        encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if train.compile:
        encoder.backbone.compile(dynamic=True)
    return deepspeed.initialize(
        model=encoder,
        optimizer=_optimizer(encoder, train),
        config=deepspeed_config(train, zero_stage, world_size, universal=universal),
    )[0]


@contextmanager
def _mlflow_left_alone() -> Iterator[None]:
    """DeepSpeed's autotuner, unused here, imports mlflow where it is installed: two seconds of a worker's start."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import of it is an ImportError, which is expected
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def _optimizer(encoder: DualEncoder, train: TrainSection) -> torch.optim.Optimizer:
    groups = parameter_groups(encoder, train.weight_decay)
    if train.optimizer == "cpu_adamw":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=train.learning_rate)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, lr=train.learning_rate)


def deepspeed_config(
    train: TrainSection, zero_stage: int, world_size: int, *, universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's own configuration; clipping is always stated because its default is 1.0."""
    zero: dict[str, Any] = {"stage": zero_stage}
    if train.optimizer == "cpu_adamw":
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # DeepSpeed only keeps its own books with this number; the last slices of an uneven split are smaller.
        "train_micro_batch_size_per_gpu": -(-train.batch_size // world_size),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_gradient_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": train.precision == "bf16"},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 2**31,
    }


def parameter_groups(encoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: biases and normalisation weights are not decayed."""
    trained = [(name, weight) for name, weight in encoder.named_parameters() if weight.requires_grad]
    decayed = [weight for name, weight in trained if not name.endswith(NO_DECAY)]
    kept = [weight for name, weight in trained if name.endswith(NO_DECAY)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def learning_rate(step: int, train: TrainSection) -> float:
    """The rate of a step (from 0): linear warm-up, then constant or linear to zero. A function, so nothing to save."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    return train.learning_rate * (train.steps - step) / max(1, train.steps - train.warmup_steps)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the rate of all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: Any) -> float | None:
    """Norm of the whole gradient before clipping, call it between backward and step; None where only step knows it."""
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def full_weights(engine: Any) -> dict[str, Tensor] | None:
    """The backbone's whole float32 state dict on rank 0, None elsewhere. All ranks must call it (ZeRO-3 gathers)."""
    import deepspeed

    backbone = engine.module.backbone
    if engine.zero_optimization_stage() < 3:
        return _float32(backbone.state_dict().items()) if engine.global_rank == 0 else None
    with deepspeed.zero.GatheredParameters(list(backbone.parameters()), modifier_rank=None):
        return _float32(backbone.state_dict().items()) if engine.global_rank == 0 else None


def _float32(items: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().clone() for name, value in items
    }
