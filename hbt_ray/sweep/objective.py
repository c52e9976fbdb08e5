"""What is better: one number of several metrics, and the front where no trial is better in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def score(metrics: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Σ weight · metric; more is better. Raises KeyError for a metric that is not there."""
    return sum(weight * metrics[name] for name, weight in weights.items())


def pareto_front(points: Sequence[Mapping[str, float]], directions: Mapping[str, str]) -> list[int]:
    """Indices of the points that no other point dominates: is as good in every metric and better in one.

    Equal points are on the front together; without directions there is none.
    """
    signs = {name: 1.0 if direction == "max" else -1.0 for name, direction in directions.items()}
    if not signs:
        return []
    vectors = [tuple(sign * point[name] for name, sign in signs.items()) for point in points]
    return [i for i, vector in enumerate(vectors) if not any(_dominates(other, vector) for other in vectors)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
