"""The temperature τ of InfoNCE, fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hbt_ray.config import LEARNED_TEMPERATURES

LOWEST, HIGHEST = LEARNED_TEMPERATURES


class Temperature(nn.Module):
    """Call it for τ: a float32 scalar, with gradient if learned.

    log τ moves between the logarithms of LOWEST and HIGHEST on a sigmoid, so that it never sticks at a bound.
    """

    def __init__(self, start: float, *, learn: bool) -> None:
        super().__init__()
        self._fixed = start
        self._detached = False
        self._leaf: Tensor | None = None
        self.position: nn.Parameter | None = None
        if learn:
            share = math.log(start / LOWEST) / math.log(HIGHEST / LOWEST)
            self.position = nn.Parameter(torch.tensor([math.log(share / (1 - share))], dtype=torch.float32))

    def forward(self, gradient: Tensor | None = None) -> Tensor:
        """τ as it is now; with a gradient, the term that has this gradient at the parameter.

        All uses of the parameter are in here, because ZeRO-3 brings it from the other ranks for the length of a call.
        """
        if self.position is None:
            return torch.tensor(self._fixed, dtype=torch.float32)
        if gradient is not None:
            return (self.position * gradient).sum()
        position: Tensor = self.position
        if self._detached:
            position = self._leaf = position.detach().clone().requires_grad_()
        return LOWEST * (HIGHEST / LOWEST) ** torch.sigmoid(position.float()[0])

    @contextmanager
    def detached(self) -> Iterator[Callable[[], Tensor | float]]:
        """Cut τ off its parameter, for a loss whose gradient is taken apart from the engine's backward.

        Yields a function that gives, after that loss's backward, a term with its gradient at the parameter: 0 when τ
        is fixed. τ may be asked for once inside.
        """
        self._detached = True
        try:
            yield lambda: 0.0 if self._leaf is None else self(self._leaf.grad)
        finally:
            self._detached = False
