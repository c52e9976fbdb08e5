"""All-gather over ranks that carries gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
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
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        return gather_values(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = first_row(ctx.counts)
        return total[start : start + ctx.counts[rank()]], None


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def first_row(counts: Sequence[int]) -> int:
    """Where this rank's rows begin among the rows of all ranks."""
    return [0, *accumulate(counts)][rank()]


def gather_values(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks in rank order, without gradient.

    Args:
        rows: [counts[rank], ...].
        counts: rows of every rank.

    Returns:
        [sum(counts), ...].
    """
    if world_size() == 1:
        return rows
    most = max(counts)
    own = rows.new_zeros((most, *rows.shape[1:]))  # ranks must hand in equal shapes
    own[: len(rows)] = rows
    gathered = [torch.empty_like(own) for _ in counts]
    dist.all_gather(gathered, own)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks in rank order, with gradient: float [counts[rank], D] -> [sum(counts), D]."""
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows, counts)  # type: ignore[no-any-return,no-untyped-call]
