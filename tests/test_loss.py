"""InfoNCE against a hand-written float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hbt_ray.model.loss import info_nce


def unit(rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


def by_hand(
    queries: np.ndarray, candidates: np.ndarray, labels: list[int], keys: list[int], all_keys: list[int], tau: float
) -> float:
    losses = []
    for i, label in enumerate(labels):
        scores = [float(queries[i] @ candidate) / tau for candidate in candidates]
        kept = [j for j in range(len(candidates)) if j == label or all_keys[j] != keys[i]]
        losses.append(-math.log(math.exp(scores[label]) / sum(math.exp(scores[j]) for j in kept)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tau", [0.02, 0.05, 1.0])
def test_equals_the_formula_with_masked_false_negatives(tau: float) -> None:
    """The loss is equation 1 of arXiv 2408.10536, without the columns of a query's own passage."""
    queries, candidates = unit(4, 1), unit(8, 2)
    labels, all_keys = [4, 5, 6, 7], [10, 11, 12, 13, 14, 10, 16, 14]
    keys = [all_keys[label] for label in labels]
    result = info_nce(queries, candidates, torch.tensor(labels), torch.tensor(keys), torch.tensor(all_keys), tau)
    expected = by_hand(queries.numpy(), candidates.numpy(), labels, keys, all_keys, tau)
    assert result.loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_masked_column_gets_no_gradient() -> None:
    """A candidate with the query's own passage under another row is neither pulled nor pushed."""
    queries, candidates = unit(1, 1), unit(3, 2).requires_grad_()
    keys = torch.tensor([5, 5, 6])
    info_nce(queries, candidates, torch.tensor([0]), keys[:1], keys, 0.05).loss.backward()
    assert candidates.grad is not None
    assert torch.all(candidates.grad[1] == 0)
    assert torch.all(candidates.grad[2] != 0)


def test_accuracy_is_the_share_of_positives_on_top() -> None:
    """Two of three queries score their own passage highest."""
    candidates = torch.eye(3)
    queries = torch.stack([candidates[0], candidates[1], candidates[0]])
    keys = torch.arange(3)
    result = info_nce(queries, candidates, torch.arange(3), keys, keys, 0.05)
    assert result.accuracy.item() == pytest.approx(2 / 3)
