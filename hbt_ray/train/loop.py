"""THE training loop: runs in every Ray Train worker."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from hbt_ray.config import Config, TrainSection
from hbt_ray.errors import TrainingError
from hbt_ray.mixing.stream import slices
from hbt_ray.model.encoder import EncoderSettings, load_encoder
from hbt_ray.model.gather import gather_values, world_size
from hbt_ray.storage import Folder
from hbt_ray.train.checkpoint import agreed_newest, loadable, restore, save_checkpoint
from hbt_ray.train.control import StopWatch
from hbt_ray.train.engine import build_engine, gradient_norm, learning_rate, set_learning_rate
from hbt_ray.train.retrieval import Retrieval, RetrievalValidation
from hbt_ray.train.step import Batch, chunk_tokens, contrastive_loss, contrastive_step, to_batch
from hbt_ray.train.telemetry import StepClock, Telemetry, diverged


@dataclass(frozen=True)
class Job:
    """What a worker needs beside its data.

    Args:
        config: what to train.
        backbone: folder or name of the weights to start from.
        settings: what the export says of itself.
        validation_weights: one entry per held-out mode.
        storage: the run's folder of checkpoints.
        identity: what a checkpoint must agree with to be resumed.
        last_step: where to end; train.steps, or less.
        retrieval: what to retrieve at validations, if anything.
        control: handle of the run's `RunControl`.
    """

    config: Config
    backbone: str
    settings: EncoderSettings
    validation_weights: Mapping[str, float]
    storage: str
    identity: Mapping[str, Any]
    last_step: int
    retrieval: Retrieval | None
    control: Any = None


def train_worker(job: Job) -> None:
    """Train from the newest checkpoint to the last step or the early stop, reporting metrics and checkpoints."""
    train, model = job.config.train, job.config.model
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    storage = Folder(job.storage)

    encoder, tokenizer = load_encoder(job.backbone, job.settings.pooling, model.revision, model.attention)
    zero_stage = job.config.cluster.zero_stage
    saved = agreed_newest(storage)
    with loadable(saved, storage, world_size(), zero_stage) as source:
        universal = source is not None and source.universal
        engine = build_engine(encoder, train, zero_stage, world_size(), universal=universal)
        state = restore(engine, source)
    stop = EarlyStop(train.patience, job.validation_weights, state)
    telemetry = Telemetry(engine.module, device, state.get("mono_batches", 0))
    budget = chunk_tokens(train, device)
    validation = {
        mode: list(_batches(f"validation/{mode}", tokenizer.pad_token_id, device, budget))
        for mode in job.validation_weights
    }
    retrieval = None
    if job.retrieval is not None:
        retrieval = RetrievalValidation(job.retrieval, tokenizer, model, device, budget)
    attempt = _agreed_token()
    stop_watch = StopWatch(job.control)
    preemption = Preemption()

    def save(done: int, metrics: dict[str, Any], *, export: bool) -> None:
        save_checkpoint(
            engine,
            tokenizer,
            job.settings,
            state={"step": done, "mono_batches": telemetry.mono_batches, **stop.state()},
            metrics={"step": done, "log": log, "stopped": stop.now, **metrics},
            identity=job.identity,
            name=f"step-{done:08d}-{attempt}",
            storage=storage,
            export=export,
        )

    engine.train()
    log: list[dict[str, Any]] = []
    expected = state.get("step", 0)
    clock = StepClock()
    for batch in _batches("train", tokenizer.pad_token_id, device, budget):
        clock.data_arrived()
        if batch.step != expected:
            raise TrainingError(f"the data begin at step {batch.step}, the checkpoint ends before step {expected}")
        torch.manual_seed(job.config.run.seed * 1_000_003 + batch.step * world_size() + rank)
        rate = learning_rate(batch.step, train)
        set_learning_rate(engine, rate)
        temperature = float(engine.module.temperature()) if train.learn_temperature else train.temperature
        result = contrastive_step(engine, batch, train)
        norm = gradient_norm(engine)
        engine.step()
        seconds, waited = clock.finished()
        row, stop_requested = telemetry.row(
            batch,
            result,
            temperature=temperature,
            gradient_norm=float(engine.get_global_grad_norm()) if norm is None else norm,
            learning_rate=rate,
            seconds=seconds,
            waited=waited,
            stop_requested=stop_watch.requested,
        )
        log.append(row)

        if diverged(row):
            ray.train.report({"step": batch.step, "log": log[:-1]})
            _end(job, rank, {"outcome": "non-finite", "step": batch.step})
            return
        done = expected = batch.step + 1
        last = done == job.last_step
        logged = done % train.log_every == 0
        if last or done % train.validate_every == 0:
            found = stop.update(_validation_losses(engine, validation, train))
            if retrieval is not None:
                found |= retrieval.metrics(engine)
            save(done, found, export=True)
            log = []
            clock.restart()
        elif stop_requested or _due(done, train.checkpoint_every) or (logged and preemption.announced()):
            save(done, {}, export=False)
            log = []
            clock.restart()
        elif logged:
            ray.train.report({"step": done, "log": log})
            log = []
        if stop_requested and not last and not stop.now:
            _end(job, rank, {"outcome": "interrupted", "step": done})
            return
        if stop.now:
            return
        clock.asked_for_data()


def _batches(name: str, pad_id: int, device: torch.device, budget: int) -> Iterator[Batch]:
    return (to_batch(row, pad_id, device, budget) for row in slices(ray.train.get_dataset_shard(name)))


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _agreed_token() -> str:
    """Eight hex digits, the same on every rank and another at every start of the worker group.

    Names of checkpoints end in it: behind a broken checkpoint the same step is written again, and Ray Train, which
    prunes old checkpoints by name, must not take the new one for the old.
    """
    token = torch.tensor([secrets.randbits(31)], device=ray.train.torch.get_device())
    if dist.is_initialized():
        dist.broadcast(token, src=0)
    return f"{int(token):08x}"


def _end(job: Job, rank: int, outcome: dict[str, Any]) -> None:
    if rank == 0:
        ray.get(job.control.end.remote(outcome))


def _validation_losses(engine: Any, validation: Mapping[str, list[Batch]], train: TrainSection) -> dict[str, float]:
    """Mean InfoNCE of each mode over its held-out batches and all ranks."""
    engine.eval()
    losses = {}
    for mode, batches in validation.items():
        own = torch.stack([contrastive_loss(engine, batch, train).loss for batch in batches]).mean()
        losses[mode] = gather_values(own.reshape(1), [1] * world_size()).mean().item()
    engine.train()
    return losses


class Preemption:
    """Tells once that Ray has announced the end of a node of this run: worth a checkpoint at once."""

    def __init__(self) -> None:
        self._known = False

    def announced(self) -> bool:
        """Whether that is news. Collective: every rank must ask at the same steps."""
        news = not self._known and ray.train.get_preemption_info() is not None
        self._known |= news
        return news


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

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of it."""
        return {"best": self._best, "worse": self._worse}
