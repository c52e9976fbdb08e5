"""InfoNCE with cross-rank in-batch negatives and a false-negative mask (PURE: tensors in, tensors out)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING = torch.iinfo(torch.int64).min  # key of a column without a text: a hard negative that a pair does not have


class InfoNCE(NamedTuple):
    """The loss of each query, float [b], and whether its positive scores highest, bool [b] (no gradient)."""

    losses: Tensor
    hits: Tensor


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    labels: Tensor,
    query_keys: Tensor,
    candidate_keys: Tensor,
    temperature: Tensor,
) -> InfoNCE:
    """-log( exp(s_ii / τ) / Σ_j exp(s_ij / τ) ) of each query i, arXiv 2408.10536 eq. 1.

    A candidate that is the query's own passage once more (one of its keys agrees: the passage in another row or
    language, or the same text as somebody's hard negative) is no negative: its column is masked.

    Args:
        queries: float [b, D], unit length, this rank's.
        candidates: float [n, D], unit length, of all ranks.
        labels: int64 [b], column of each query's positive.
        query_keys: int64 [b, 2], passage key and text key of each query's positive.
        candidate_keys: int64 [n, 2], the same of each candidate; MISSING masks a column for everybody.
        temperature: τ > 0.
    """
    logits = queries @ candidates.T / temperature  # [b, n]
    same = (query_keys[:, None, :] == candidate_keys[None, :, :]).any(dim=2)
    masked = same | (candidate_keys[:, 0] == MISSING)
    masked[torch.arange(len(labels), device=labels.device), labels] = False
    logits = logits.masked_fill(masked, -torch.inf)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return InfoNCE(losses, logits.detach().argmax(dim=1) == labels)
