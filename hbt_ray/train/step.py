"""One exact contrastive step: this rank's slice of a global batch, negatives from all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbt_ray.model.encoder import pad
from hbt_ray.model.gather import gather_rows, gather_values
from hbt_ray.model.loss import InfoNCE, info_nce


@dataclass(frozen=True)
class Batch:
    """A rank's slice, padded and on its device: ids and masks int64 [b, T], passage keys int64 [b]."""

    step: int
    mode: str
    dataset: str
    query_ids: Tensor
    query_mask: Tensor
    passage_ids: Tensor
    passage_mask: Tensor
    passage_keys: Tensor

    @property
    def tokens(self) -> int:
        """Real tokens, padding left out."""
        return int(self.query_mask.sum() + self.passage_mask.sum())


def to_batch(row: Mapping[str, Any], pad_id: int, device: torch.device) -> Batch:
    """Pad one row of the stream and move it to the device."""
    query_ids, query_mask = pad(row["query_ids"], pad_id)
    passage_ids, passage_mask = pad(row["passage_ids"], pad_id)
    keys = torch.tensor(row["passage_keys"], dtype=torch.int64)
    tensors = [t.to(device) for t in (query_ids, query_mask, passage_ids, passage_mask, keys)]
    return Batch(row["step"], row["mode"], row["dataset"], *tensors)


def contrastive_loss(encoder: Any, batch: Batch, rank: int, temperature: float) -> InfoNCE:
    """The mean loss of this rank over its own queries against the passages of all ranks.

    The engine's average over ranks is then the loss, and its gradient the gradient, of the whole global batch.
    """
    queries = encoder(batch.query_ids, batch.query_mask)  # [b, D]
    passages = encoder(batch.passage_ids, batch.passage_mask)  # [b, D]
    labels = rank * len(queries) + torch.arange(len(queries), device=queries.device)
    return info_nce(
        queries,
        gather_rows(passages),
        labels,
        batch.passage_keys,
        gather_values(batch.passage_keys),
        temperature,
    )


def mean_over_ranks(value: Tensor) -> float:
    """Mean of a scalar over ranks."""
    return float(gather_values(value.detach().float().reshape(1)).mean())
