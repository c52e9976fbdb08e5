"""Retrieval measures from ranks: per query first, mean over a cell, macro-average over cells.

Q queries, M relevant (query, candidate) pairs. Ranks are 1-based, 0 for a relevant candidate that was not
retrieved. Divisors and discounts are those of trec_eval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RECALL_DEPTHS = (1, 10, 100)
CUT_OFF = 10
MEASURES = ("mAP", *(f"R@{depth}" for depth in RECALL_DEPTHS), f"nDCG@{CUT_OFF}", f"MRR@{CUT_OFF}")


class Judged(NamedTuple):
    """Ranks of the relevant candidates of Q queries, in compressed rows.

    Args:
        offsets: int64 [Q + 1]; the entries of query i are offsets[i]:offsets[i + 1], in any order, maybe none.
        ranks: int64 [M], 1-based, no rank twice in a query; 0 where the candidate was not retrieved.
        grades: int64 [M], greater than 0.
    """

    offsets: IntArray
    ranks: IntArray
    grades: IntArray

    @property
    def rows(self) -> IntArray:
        """The query of each entry, int64 [M]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def query_measures(judged: Judged) -> dict[str, FloatArray]:
    """Every measure of MEASURES, per query, each float64 [Q]; NaN for a query without a relevant candidate.

    - mAP holds a query's average precision at full depth: the sum over its retrieved relevant candidates of the
      precision at their rank, divided by the number of relevant ones, retrieved or not (trec_eval `map`).
    - R@k is the share of the relevant candidates ranked in the first k (trec_eval `recall_k`).
    - nDCG@10 has gain = grade and discount log2(rank + 1); its ideal ranks all relevant candidates of the query by
      grade (trec_eval `ndcg_cut_10`; Järvelin and Kekäläinen, TOIS 2002).
    - MRR@10 is 1 / rank of the first relevant candidate, 0 if that is deeper than 10.
    """
    rows = judged.rows
    relevant = np.diff(judged.offsets)
    places = np.arange(1, len(rows) + 1) - judged.offsets[rows]  # 1, 2, ... within each query
    unseen, best = judged.ranks.max(initial=0) + 1, judged.grades.max(initial=0)
    ranks = np.where(judged.ranks > 0, judged.ranks, unseen)
    ordered = _sorted_in_rows(rows, ranks)
    # what was not retrieved adds 1 / inf = 0
    depths, ordered_depths = (np.where(values < unseen, values, np.inf) for values in (ranks, ordered))
    ideal = best - _sorted_in_rows(rows, best - judged.grades)

    def total(terms: NDArray[Any]) -> FloatArray:
        return np.bincount(rows, weights=terms, minlength=len(relevant)).astype(np.float64, copy=False)

    first = total(np.where((places == 1) & (ordered_depths <= CUT_OFF), 1 / ordered_depths, 0.0))
    return {
        "mAP": _ratio(total(places / ordered_depths), relevant),
        **{f"R@{depth}": _ratio(total(depths <= depth), relevant) for depth in RECALL_DEPTHS},
        f"nDCG@{CUT_OFF}": _ratio(total(_gains(judged.grades, depths)), total(_gains(ideal, places))),
        f"MRR@{CUT_OFF}": np.where(relevant > 0, first, np.nan),
    }


def cell_measures(per_query: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean over the queries of a cell, for each measure; every query must have a relevant candidate there."""
    return {name: float(values.mean()) for name, values in per_query.items()}


def macro_average(cells: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """The mean over cells, each counting once whatever its number of queries; None if there is no cell."""
    rows = list(cells)
    return {name: float(np.mean([row[name] for row in rows])) if rows else None for name in MEASURES}


def _sorted_in_rows(rows: IntArray, values: IntArray) -> IntArray:
    """The values [M], not negative, in ascending order within each row; rows ascend."""
    first = rows * (values.max(initial=0) + 1)
    ascending: IntArray = np.sort(first + values) - first
    return ascending


def _gains(grades: IntArray, depths: NDArray[Any]) -> FloatArray:
    """Discounted gain of each candidate, 0 beyond CUT_OFF."""
    return np.where(depths <= CUT_OFF, grades / np.log2(depths + 1), 0.0)


def _ratio(totals: FloatArray, divisors: NDArray[Any]) -> FloatArray:
    ratios = np.full(len(totals), np.nan)
    np.divide(totals, divisors, out=ratios, where=divisors > 0)
    return ratios
