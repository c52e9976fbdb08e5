"""Runs the real training step in separate processes; spawned by tests, importable by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hbt_ray.config import TrainSection
from hbt_ray.mixing.reader import StepRow


@dataclass(frozen=True)
class Case:
    """One way to take a step; `rows` has one slice per rank."""

    name: str
    stage: int
    train: TrainSection
    rows: Sequence[StepRow]


def join(rank: int, world_size: int, port: int) -> None:
    """Become one rank of a gloo group of one thread per process."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


def first_steps(rank: int, world_size: int, port: int, model: str, cases: Sequence[Case], out: str) -> None:
    """Backward of the rank's slice under the engine, case by case; rank 0 saves loss, reductions and gradient."""
    join(rank, world_size, port)
    results = {case.name: _first_step(rank, world_size, model, case) for case in cases}
    if rank == 0:
        torch.save(results, Path(out))
    dist.barrier()
    dist.destroy_process_group()


def _first_step(rank: int, world_size: int, model: str, case: Case) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    from hbt_ray.model.encoder import load_encoder
    from hbt_ray.train.engine import build_engine, gradient_norm
    from hbt_ray.train.step import contrastive_step, to_batch

    encoder, tokenizer = load_encoder(model, "mean")
    engine = build_engine(encoder, case.train, case.stage, world_size)
    engine.eval()  # dropout off: the references must see the same function
    budget = case.train.chunk_tokens or 10**6
    batch = to_batch(case.rows[rank], tokenizer.pad_token_id, torch.device("cpu"), budget)
    result = contrastive_step(engine, batch, case.train)
    loss = result.loss.detach().clone()
    dist.all_reduce(loss)
    before = gradient_norm(engine)
    gradients = {
        name: safe_get_full_grad(weight).clone()
        for name, weight in engine.module.named_parameters()
        if weight.requires_grad
    }
    engine.step()
    return {
        "loss": loss.item() / world_size,
        "chunks": len(batch.chunks),
        "norm": float(engine.get_global_grad_norm() if before is None else before),
        "gradients": gradients,
        "weights": {name: weight.detach().clone() for name, weight in engine.module.named_parameters()},
    }
