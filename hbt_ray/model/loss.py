"""InfoNCE with cross-rank in-batch negatives and a false-negative mask (PURE: tensors in, tensors out)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class InfoNCE(NamedTuple):
    """Mean loss (scalar), and the share of queries whose positive scores highest (scalar, no gradient)."""

    loss: Tensor
    accuracy: Tensor


def info_nce(
    queries: Tensor, candidates: Tensor, labels: Tensor, query_keys: Tensor, candidate_keys: Tensor, temperature: float
) -> InfoNCE:
    """L = mean_i -log( exp(s_ii / τ) / Σ_j exp(s_ij / τ) ), arXiv 2408.10536 eq. 1.

    A candidate that is the query's own passage under another row (same key, not the label) is no negative: its
    column is masked.

    Args:
        queries: float [b, D], unit length, this rank's.
        candidates: float [n, D], unit length, of all ranks.
        labels: int64 [b], column of each query's positive.
        query_keys: int64 [b], key of each query's passage.
        candidate_keys: int64 [n], key of each candidate.
        temperature: τ > 0.
    """
    logits = queries @ candidates.T / temperature  # [b, n]
    same_passage = query_keys[:, None] == candidate_keys[None, :]
    positive = F.one_hot(labels, num_classes=len(candidates)).bool()
    logits = logits.masked_fill(same_passage & ~positive, -torch.inf)
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return InfoNCE(F.cross_entropy(logits, labels), accuracy.detach())
