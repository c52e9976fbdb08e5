"""Runs the real training step in separate processes; spawned by test_step.py, importable by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def first_step(
    rank: int, world_size: int, port: int, model: str, rows: list[dict[str, Any]], stage: int, out: str
) -> None:
    """One rank: backward of its slice under the engine; rank 0 saves the full gradient and the global loss."""
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
    from deepspeed.utils import safe_get_full_grad

    from hbt_ray.config import TrainSection
    from hbt_ray.model.encoder import load_encoder
    from hbt_ray.train.engine import build_engine
    from hbt_ray.train.step import contrastive_loss, mean_over_ranks, to_batch

    train = TrainSection(steps=1, batch_size=len(rows[0]["query_ids"]) * world_size, temperature=0.02)
    encoder, tokenizer = load_encoder(model, "mean")
    engine = build_engine(encoder, train, stage, world_size)
    engine.eval()  # dropout off: the references must see the same function
    batch = to_batch(rows[rank], tokenizer.pad_token_id, torch.device("cpu"))
    loss = contrastive_loss(engine, batch, rank, train.temperature).loss
    engine.backward(loss)
    gradients = {
        name: safe_get_full_grad(weight) for name, weight in engine.module.named_parameters() if weight.requires_grad
    }
    mean = mean_over_ranks(loss)
    if rank == 0:
        torch.save({"loss": mean, "gradients": {k: v.clone() for k, v in gradients.items()}}, Path(out))
    dist.barrier()
    dist.destroy_process_group()
