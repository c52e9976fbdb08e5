"""What a plan really draws: counted, not promised (PURE)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hbt_ray.mixing.plan import BatchPlan


@dataclass(frozen=True)
class Mixture:
    """Batches by mode, dataset and X-X-mono language; training pairs by (query language, passage language)."""

    batches: int
    modes: Counter[str]
    datasets: Counter[str]
    mono_languages: Counter[str]
    pairs: Counter[tuple[str, str]]


def realised_mixture(plan: BatchPlan, steps: int) -> Mixture:
    """Count the first `steps` batches of a plan."""
    modes: Counter[str] = Counter()
    datasets: Counter[str] = Counter()
    mono_languages: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for spec in plan.steps(0, steps):
        modes[spec.mode] += 1
        datasets[spec.dataset] += 1
        if spec.mode == "X-X-mono":
            mono_languages[plan.languages[spec.query_language[0]]] += 1
        codes = Counter(zip(spec.query_language.tolist(), spec.passage_language.tolist(), strict=True))
        pairs.update({(plan.languages[q], plan.languages[p]): n for (q, p), n in codes.items()})
    return Mixture(steps, modes, datasets, mono_languages, pairs)
