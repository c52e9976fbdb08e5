"""What a step tells about itself: one row of metrics.jsonl, the same numbers on every rank."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from hbt_ray.model.gather import gather_values, world_size
from hbt_ray.train.step import Batch, StepResult

# Dense bf16 FLOP/s of a GPU, from the data sheets; a GPU that is not listed has no MFU rather than a guessed one.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12}


class StepClock:
    """Tells how long a step took, from the end of the one before, and how much of it waited for data."""

    def __init__(self) -> None:
        self._started = self._asked = self._arrived = time.perf_counter()

    def asked_for_data(self) -> None:
        """The next batch is wanted now."""
        self._asked = time.perf_counter()

    def data_arrived(self) -> None:
        """The batch of this step is here."""
        self._arrived = time.perf_counter()

    def finished(self) -> tuple[float, float]:
        """Seconds of the step and seconds of waiting in it; the next step starts now."""
        now = time.perf_counter()
        seconds = now - self._started
        self._started = now
        return seconds, self._arrived - self._asked

    def restart(self) -> None:
        """Leave out of the next step what was done since the last: validation, a checkpoint."""
        self._started = time.perf_counter()


class Telemetry:
    """Makes the rows; keeps count of the X-X-mono batches, which is what α has come to so far."""

    def __init__(self, model: torch.nn.Module, device: torch.device, mono_batches: int) -> None:
        self._flops_per_token, self._flops_per_position = _model_flops(model)
        self._device = device
        self._peak = _peak_flops(device)
        self.mono_batches = mono_batches

    def row(
        self,
        batch: Batch,
        result: StepResult,
        *,
        temperature: float,
        gradient_norm: float,
        learning_rate: float,
        seconds: float,
        waited: float,
        stop_requested: bool,
    ) -> tuple[dict[str, Any], bool]:
        """The row of a step over all ranks, and whether any rank was asked to stop. Collective.

        Returns:
            loss and accuracy of the global batch, τ, gradient norm before clipping, learning rate, real tokens, seconds
            of the slowest rank, tokens per second, shares of padding and of waiting for data, share of X-X-mono batches
            so far (`alpha`), and on a known GPU `mfu`, the model's FLOPs (activations computed twice not counted) over
            the GPUs' bf16 peak.
        """
        own = [float(result.loss), float(result.accuracy), batch.tokens, batch.padded_tokens]
        own += [seconds, waited, self._flops(batch), float(stop_requested)]
        # float32 on the device, the one collective of the books: tokens of a step stay far below 2^24 a rank.
        ranks = gather_values(torch.tensor([own], device=self._device), [1] * world_size()).double()
        loss, accuracy = ranks[:, :2].mean(dim=0).tolist()
        tokens, padded = ranks[:, 2:4].sum(dim=0).tolist()
        slowest = ranks[:, 4].max().item()
        self.mono_batches += batch.mode == "X-X-mono"
        row = {
            "step": batch.step,
            "mode": batch.mode,
            "dataset": batch.dataset,
            "loss": loss,
            "accuracy": accuracy,
            "temperature": temperature,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "alpha": self.mono_batches / (batch.step + 1),
            "tokens": int(tokens),
            "seconds": slowest,
            "tokens_per_second": tokens / slowest,
            "padding_share": 1 - tokens / padded,
            "data_wait_share": (ranks[:, 5] / ranks[:, 4]).mean().item(),
        }
        if self._peak:
            row["mfu"] = ranks[:, 6].sum().item() / (slowest * self._peak * world_size())
        return row, bool(ranks[:, 7].any())

    def _flops(self, batch: Batch) -> float:
        return sum(
            chunk.ids.numel() * (self._flops_per_token + self._flops_per_position * chunk.ids.shape[1])
            for chunk in batch.chunks
        )


def diverged(row: Mapping[str, Any]) -> bool:
    """Whether a step's loss or gradient is not a finite number; DeepSpeed reports such a gradient's norm as inf or -1.

    DeepSpeed leaves out the update of such a step without a word, and trains on.
    """
    return not (math.isfinite(row["loss"]) and 0 <= row["gradient_norm"] < math.inf)


def _model_flops(model: torch.nn.Module) -> tuple[int, int]:
    """FLOPs of forward and backward per token, and per token and position it attends to (Kaplan et al. 2020, §2.1)."""
    backbone: Any = model.backbone
    embeddings = {id(weight) for weight in backbone.get_input_embeddings().parameters()}
    weights = sum(
        getattr(weight, "ds_numel", weight.numel())  # ZeRO-3 leaves an empty tensor and the true count
        for name, weight in backbone.named_parameters()
        if weight.requires_grad and id(weight) not in embeddings and not name.startswith("embeddings.")
    )
    config = backbone.config
    return 6 * weights, 12 * config.num_hidden_layers * config.hidden_size


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)
