"""InfoNCE against a hand-written float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hbt_ray.model.loss import MISSING, info_nce
from hbt_ray.model.temperature import Temperature


def unit(rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


def by_hand(
    queries: np.ndarray, candidates: np.ndarray, labels: list[int], keys: np.ndarray, all_keys: np.ndarray, tau: float
) -> list[float]:
    losses = []
    for i, label in enumerate(labels):
        scores = [float(queries[i] @ candidate) / tau for candidate in candidates]
        same = [j for j in range(len(candidates)) if keys[i][0] == all_keys[j][0] or keys[i][1] == all_keys[j][1]]
        kept = [j for j in range(len(candidates)) if j == label or (j not in same and all_keys[j][0] != MISSING)]
        losses.append(-math.log(math.exp(scores[label]) / sum(math.exp(scores[j]) for j in kept)))
    return losses


def pairs_of_keys(passages: list[int], texts: list[int]) -> torch.Tensor:
    return torch.tensor([passages, texts]).T.contiguous()


@pytest.mark.parametrize("tau", [0.02, 0.05, 1.0])
def test_equals_the_formula_with_masked_false_negatives(tau: float) -> None:
    """Equation 1 of arXiv 2408.10536 for each query, without the columns of its own passage or text, or of no text."""
    queries, candidates = unit(4, 1), unit(9, 2)
    labels = [4, 5, 6, 7]
    # Column 5 is the passage of query 0 in another row, column 2 the text of query 1, column 8 is empty.
    all_keys = pairs_of_keys([10, 11, 12, 13, 14, 14, 16, 17, MISSING], [20, 21, 25, 23, 24, 25, 26, 27, MISSING])
    keys = all_keys[labels]
    tau_tensor = torch.tensor(tau, dtype=torch.float64)
    result = info_nce(queries, candidates, torch.tensor(labels), keys, all_keys, tau_tensor)
    expected = by_hand(queries.numpy(), candidates.numpy(), labels, keys.numpy(), all_keys.numpy(), tau)
    assert result.losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_masked_column_gets_no_gradient() -> None:
    """A candidate with the query's own passage under another row is neither pulled nor pushed."""
    queries, candidates = unit(1, 1), unit(3, 2).requires_grad_()
    keys = pairs_of_keys([5, 5, 6], [1, 2, 3])
    info_nce(queries, candidates, torch.tensor([0]), keys[:1], keys, torch.tensor(0.05)).losses.sum().backward()
    assert candidates.grad is not None
    assert torch.all(candidates.grad[1] == 0)
    assert torch.all(candidates.grad[2] != 0)


def test_a_hit_is_a_positive_on_top() -> None:
    """Two of three queries score their own passage highest."""
    candidates = torch.eye(3)
    queries = torch.stack([candidates[0], candidates[1], candidates[0]])
    keys = pairs_of_keys([0, 1, 2], [3, 4, 5])
    result = info_nce(queries, candidates, torch.arange(3), keys, keys, torch.tensor(0.05))
    assert result.hits.tolist() == [True, True, False]


def test_a_learned_temperature_starts_where_it_is_told_and_keeps_its_bounds() -> None:
    """τ is the configured one at first, and inside 0.01 and 1 wherever its parameter goes."""
    temperature = Temperature(0.05, learn=True)
    assert temperature().item() == pytest.approx(0.05, rel=1e-6)
    assert temperature.position is not None
    for position, bound in ((-50.0, 0.01), (50.0, 1.0)):
        temperature.position.data.fill_(position)
        assert temperature().item() == pytest.approx(bound, rel=1e-6)


def test_a_detached_temperature_hands_its_gradient_over() -> None:
    """The loss does not reach the parameter; the handed-over term has the same gradient."""
    whole, apart = Temperature(0.3, learn=True), Temperature(0.3, learn=True)
    (whole() ** 2).backward()
    with apart.detached() as term:
        (apart() ** 2).backward()
        assert apart.position is not None
        assert apart.position.grad is None
    result = term()
    assert isinstance(result, torch.Tensor)
    result.backward()
    assert whole.position is not None
    assert torch.equal(apart.position.grad, whole.position.grad)  # type: ignore[arg-type]


def test_a_fixed_temperature_learns_nothing() -> None:
    """No parameter, no gradient, the configured τ."""
    temperature = Temperature(0.07, learn=False)
    assert list(temperature.parameters()) == []
    assert temperature().item() == pytest.approx(0.07, rel=1e-6)
    with temperature.detached() as term:
        assert term() == 0.0
