"""Average precision and recall from ranks: per query first, mean over a cell, macro-average over cells.

Shapes: Q queries, G relevant candidates of a query at most. Ranks are 1-based, 0 marks a place without a
relevant candidate. With one relevant candidate (every cell of the language matrix) mAP is the mean reciprocal
rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RECALL_DEPTHS = (1, 10)
MEASURES = ("mAP", *(f"R@{depth}" for depth in RECALL_DEPTHS))


def average_precision(ranks: IntArray) -> FloatArray:
    """Average precision at full depth [Q] of ranks [Q, G], divided by the number of relevant candidates.

    The divisor is that of trec_eval's `map`. NaN for a query without a relevant candidate.
    """
    found_first = np.sort(np.where(ranks > 0, ranks, np.inf), axis=1)
    hits = np.arange(1, ranks.shape[1] + 1)
    return _share_of_relevant((hits / found_first).sum(axis=1), ranks)


def recall(ranks: IntArray, depth: int) -> FloatArray:
    """R@depth [Q] of ranks [Q, G]: the share of the relevant candidates ranked in the first `depth`.

    NaN for a query without a relevant candidate. With 11 relevant candidates R@1 is at most 1/11.
    """
    return _share_of_relevant(((ranks > 0) & (ranks <= depth)).sum(axis=1), ranks)


def query_measures(ranks: IntArray) -> dict[str, FloatArray]:
    """Every measure of MEASURES, per query [Q], of ranks [Q, G]. Under `mAP` stands a query's AP."""
    return {"mAP": average_precision(ranks)} | {f"R@{k}": recall(ranks, k) for k in RECALL_DEPTHS}


def cell_measures(per_query: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean over the queries of a cell, for each measure."""
    return {name: float(values.mean()) for name, values in per_query.items()}


def macro_average(cells: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """The mean over cells, each counting once whatever its number of queries; None if there is no cell."""
    rows = list(cells)
    return {name: float(np.mean([row[name] for row in rows])) if rows else None for name in MEASURES}


def _share_of_relevant(totals: NDArray[np.generic], ranks: IntArray) -> FloatArray:
    relevant = (ranks > 0).sum(axis=1)
    shares = np.full(len(ranks), np.nan)
    np.divide(totals, relevant, out=shares, where=relevant > 0)
    return shares
