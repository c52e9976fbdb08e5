"""Saves and loads real engines in separate processes; spawned by test_checkpoint.py, importable by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contrastive_ranks import join

from hbt_ray.config import TrainSection
from hbt_ray.mixing.reader import StepRow
from hbt_ray.storage import Folder

IDENTITY = {"run.seed": 13}
STAGES = (0, 1, 2, 3)


def accept(metrics: Mapping[str, Any], checkpoint: Any, checkpoint_dir_name: str, **rest: Any) -> None:
    """What Ray Train does with a report: every rank uploads, then rank 0's metrics go into the record."""
    storage = rest["checkpoint_upload_fn"].args[0]
    (storage / checkpoint_dir_name).upload(Path(checkpoint.path))
    dist.barrier()
    if dist.get_rank() == 0:
        write_record(storage, [(checkpoint_dir_name, metrics)])


def write_record(storage: Folder, results: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """A record like Ray Train's of checkpoints given oldest first."""
    entries = [{"version": 0, "checkpoint_dir_name": name, "metrics": metrics} for name, metrics in results]
    record = {
        "ray_version": "any",
        "checkpoint_results": entries,
        "checkpoint_report_indices": list(range(len(entries))),
        "latest_checkpoint_result": entries[-1],
    }
    storage.write("checkpoint_manager_snapshot.json", json.dumps(record).encode())


def train_save_train(rank: int, world_size: int, port: int, model: str, rows: Sequence[StepRow], folder: str) -> None:
    """Under every ZeRO stage steps 0 and 1, a checkpoint, step 2 without a break."""
    join(rank, world_size, port)
    import ray.train

    ray.train.report = accept
    for stage in STAGES:
        _train_save_train(rank, world_size, model, stage, rows, f"{folder}/zero-{stage}")
    dist.destroy_process_group()


def _train_save_train(rank: int, world_size: int, model: str, stage: int, rows: Sequence[StepRow], folder: str) -> None:
    from hbt_ray.model.encoder import EncoderSettings
    from hbt_ray.train.checkpoint import save_checkpoint

    engine, tokenizer = _engine(model, stage, world_size, universal=False)
    for step in (0, 1):
        _step(engine, tokenizer, rows[step * world_size + rank])
    save_checkpoint(
        engine,
        tokenizer,
        EncoderSettings("mean", "Query: ", "Passage: ", 16),
        state={"step": 2, "best": 0.25, "random": torch.arange(3)},
        metrics={"step": 2},
        identity=IDENTITY,
        name="step-00000002-abcd",
        storage=Folder(folder),
        export=True,
    )
    _finish(engine, tokenizer, rows[2 * world_size + rank], {}, f"{folder}/before.pt")


def load_train(rank: int, world_size: int, port: int, model: str, rows: Sequence[StepRow], folder: str) -> None:
    """Load those checkpoints with another number of ranks and take step 2."""
    join(rank, world_size, port)
    for stage in STAGES:
        _load_train(rank, world_size, model, stage, rows, f"{folder}/zero-{stage}")
    dist.destroy_process_group()


def _load_train(rank: int, world_size: int, model: str, stage: int, rows: Sequence[StepRow], folder: str) -> None:
    from hbt_ray.train.checkpoint import loadable, restore
    from hbt_ray.train.record import newest_intact

    storage = Folder(folder)
    saved, damages = newest_intact(storage)
    assert saved is not None
    assert damages == []
    with loadable(saved, storage, world_size, stage) as source:
        assert source is not None
        assert source.universal == (stage > 0)
        engine, tokenizer = _engine(model, stage, world_size, universal=source.universal)
        state = restore(engine, source)
        converted = source.folder
    assert rank > 0 or not source.universal or not converted.exists()  # taken away by the first rank of the node
    _finish(engine, tokenizer, rows[2 * world_size + rank], state, f"{folder}/after.pt")


def _engine(model: str, stage: int, world_size: int, *, universal: bool) -> tuple[Any, Any]:
    from hbt_ray.model.encoder import load_encoder
    from hbt_ray.train.engine import build_engine

    encoder, tokenizer = load_encoder(model, "mean")
    engine = build_engine(encoder, _section(), stage, world_size, universal=universal)
    engine.eval()  # dropout off: the masks would differ with the number of ranks
    return engine, tokenizer


def _section() -> TrainSection:
    return TrainSection(steps=3, batch_size=16, learning_rate=1e-2, learn_temperature=True)


def _step(engine: Any, tokenizer: Any, row: StepRow) -> float:
    from hbt_ray.train.step import contrastive_step, to_batch

    batch = to_batch(row, tokenizer.pad_token_id, torch.device("cpu"), 10**6)
    loss = contrastive_step(engine, batch, _section()).loss.detach().clone()
    engine.step()
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


def _finish(engine: Any, tokenizer: Any, row: StepRow, state: dict[str, Any], out: str) -> None:
    found = {
        "tensors": _full_state(engine),
        "groups": [
            {key: value for key, value in group.items() if key in ("lr", "betas", "eps", "weight_decay")}
            for group in engine.optimizer.param_groups
        ],
        "state": {key: state[key] for key in ("step", "best", "random") if key in state},
        "loss": _step(engine, tokenizer, row),
        "stepped": _full_state(engine),
    }
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.barrier()


def _full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The float32 weight and both moments of every trained parameter, whole."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    stage = engine.zero_optimization_stage()
    if stage in (1, 2):  # DeepSpeed links moments to parameters after the first group's step, too early for the others
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    tensors = {}
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            continue
        tensors[name] = safe_get_full_fp32_param(weight) if stage else weight
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{name} {moment}"] = (
                safe_get_full_optimizer_state(weight, moment) if stage else engine.optimizer.state[weight][moment]
            )
    return {name: value.detach().clone() for name, value in tensors.items()}
