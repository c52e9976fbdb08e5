"""Language bias of a multilingual ranking: how far apart it puts passages that say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LanguageBias(NamedTuple):
    """Rank distance of a benchmark; lower is better.

    Args:
        rank_distance: mean over the languages that have one, None if none has.
        rank_distance_by_language: query language -> mean over its queries, None if it has no query that counts.
        queries: how many queries count, in all languages.
    """

    rank_distance: float | None
    rank_distance_by_language: dict[str, float | None]
    queries: int


def rank_distance(pool_ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest minus smallest merged-pool rank of a query's relevant passages, in ranks [Q].

    From 1-based ranks [Q, L], 0 where a language lacks the passage. NaN for a query with fewer than two relevant
    passages, which has no distance. Source: arXiv 2408.10536, after Huang et al., SIGIR 2023.
    """
    present = pool_ranks > 0
    smallest = np.where(present, pool_ranks, np.iinfo(np.int64).max).min(axis=1)
    return np.where(present.sum(axis=1) >= 2, (pool_ranks.max(axis=1) - smallest).astype(np.float64), np.nan)


def language_bias(distances: Mapping[str, NDArray[np.float64]]) -> LanguageBias:
    """Mean over queries, then over languages, of the rank distances [Q] of each query language; NaN is left out."""
    counted = {language: values[~np.isnan(values)] for language, values in distances.items()}
    by_language = {code: float(values.mean()) if len(values) else None for code, values in counted.items()}
    means = [mean for mean in by_language.values() if mean is not None]
    return LanguageBias(
        rank_distance=float(np.mean(means)) if means else None,
        rank_distance_by_language=by_language,
        queries=sum(len(values) for values in counted.values()),
    )
