"""THE training loop: runs in every Ray Train worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch

from hbt_ray.config import Config
from hbt_ray.mixing.stream import step_rows
from hbt_ray.model.encoder import EncoderSettings, load_encoder
from hbt_ray.train.checkpoint import restore, written_checkpoint
from hbt_ray.train.engine import build_engine, learning_rate, set_learning_rate
from hbt_ray.train.step import Batch, contrastive_loss, mean_over_ranks, to_batch


@dataclass(frozen=True)
class Job:
    """What a worker needs beside its data; `validation_weights` has one entry per held-out mode."""

    config: Config
    backbone: str
    settings: EncoderSettings
    validation_weights: Mapping[str, float]


def train_worker(loop_config: Mapping[str, Any]) -> None:
    """Train from the newest checkpoint to the last step or the early stop, reporting metrics and checkpoints."""
    job: Job = loop_config["job"]
    train = job.config.train
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = ray.train.torch.get_device()

    encoder, tokenizer = load_encoder(job.backbone, job.settings.pooling, job.config.model.revision)
    engine = build_engine(encoder, train, job.config.cluster.zero_stage, context.get_world_size())
    stop = EarlyStop(train.patience, job.validation_weights, restore(engine))
    validation = {
        mode: list(_batches(f"validation/{mode}", tokenizer.pad_token_id, device)) for mode in job.validation_weights
    }

    engine.train()
    log: list[dict[str, Any]] = []
    started = time.perf_counter()
    for batch in _batches("train", tokenizer.pad_token_id, device):
        waited = time.perf_counter() - started
        torch.manual_seed(job.config.run.seed * 1_000_003 + batch.step * context.get_world_size() + rank)
        rate = learning_rate(batch.step, train)
        set_learning_rate(engine, rate)
        loss, accuracy = contrastive_loss(engine, batch, rank, train.temperature)
        engine.backward(loss)
        engine.step()

        seconds = time.perf_counter() - started
        log.append(
            {
                "step": batch.step,
                "mode": batch.mode,
                "dataset": batch.dataset,
                "loss": mean_over_ranks(loss),
                "accuracy": mean_over_ranks(accuracy),
                "learning_rate": rate,
                "tokens_per_second": batch.tokens * context.get_world_size() / seconds,
                "data_wait_share": waited / seconds,
            }
        )
        done = batch.step + 1
        last = done == train.steps
        if last or done % train.validate_every == 0:
            losses = {
                mode: _validation_loss(engine, batches, rank, train.temperature) for mode, batches in validation.items()
            }
            validated = stop.update(losses)
            metrics = {"step": done, "log": log, "stopped": stop.now, **validated}
            with written_checkpoint(engine, tokenizer, job.settings, stop.state(done)) as checkpoint:
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step-{done:08d}")
            log = []
        elif done % train.log_every == 0:
            ray.train.report({"step": done, "log": log})
            log = []
        if stop.now:
            return
        started = time.perf_counter()


def _batches(name: str, pad_id: int, device: torch.device) -> Iterator[Batch]:
    return (to_batch(row, pad_id, device) for row in step_rows(ray.train.get_dataset_shard(name)))


@torch.no_grad()
def _validation_loss(engine: Any, batches: list[Batch], rank: int, temperature: float) -> float:
    """Mean InfoNCE over held-out batches and ranks."""
    engine.eval()
    losses = [mean_over_ranks(contrastive_loss(engine, batch, rank, temperature).loss) for batch in batches]
    engine.train()
    return sum(losses) / len(losses)


class EarlyStop:
    """Counts validations without a better loss; the same on every rank because the losses are."""

    def __init__(self, patience: int | None, weights: Mapping[str, float], state: Mapping[str, Any]) -> None:
        self._patience = patience
        self._weights = weights
        self._best: float | None = state.get("best")
        self._worse: int = state.get("worse", 0)

    @property
    def now(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self._worse >= self._patience

    def update(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Take one validation into account: `validation_loss`, the weighted mean, beside each mode's own loss."""
        if not losses:
            return {}
        mean = sum(self._weights[mode] * loss for mode, loss in losses.items()) / sum(self._weights.values())
        if self._best is None or mean < self._best:
            self._best, self._worse = mean, 0
        else:
            self._worse += 1
        return {"validation_loss": mean} | {f"validation_loss/{mode}": loss for mode, loss in losses.items()}

    def state(self, step: int) -> dict[str, Any]:
        """What a resumed run needs; everything else is a function of the step."""
        return {"step": step, "best": self._best, "worse": self._worse}
