"""All-gather over ranks that carries gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Forward: concatenate every rank's rows. Backward: sum the gradients of all ranks, keep the own rows.

    With each rank's loss over its own queries only, and gradients averaged over ranks by the engine, this is exactly
    the gradient of the mean loss of the global batch: no factor of the world size.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return gather_values(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_values(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient: [b, ...] -> [W·b, ...]; b is the same on every rank."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient: float [b, D] -> [W·b, D]."""
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # type: ignore[no-any-return,no-untyped-call]
