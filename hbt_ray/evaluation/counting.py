"""Compiled loops over scores: exact inner products, counts of what outranks relevant candidates, the best of a row.

B queries, W candidates of a tile, D dimensions, L languages, m relevant pairs of a query and a candidate, k best
candidates. `approximate` scores come from a matrix product and may be wrong by a bound; what they leave undecided is
decided by the exact ones, float64 sums made in one fixed order.

numba compiles a function at its first call (seconds) and keeps the machine code in __pycache__ beside this file, or
in the user's cache folder where that cannot be written, or where NUMBA_CACHE_DIR says; where nothing can be written
each process compiles anew. Compiled loops hold no lock of the interpreter, so threads run them side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
DoubleArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

Function = TypeVar("Function", bound=Callable[..., Any])

PAIRWISE_BLOCK = 128  # products that NumPy adds up without halving them
CHUNK = 64  # scores looked at one by one where a count says that it is worth it


def _compiled(function: Function) -> Function:
    """The function, compiled for the types of its arguments. No fast-math: sums keep their order."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Function = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder for the machine code can be written
        compiled = numba.njit(function, **options)
    return compiled


def _inlined(function: Function) -> Function:
    """The function, to be compiled as a part of those that call it: a call would count references to its arrays."""
    inlined: Function = numba.njit(function, inline="always")
    return inlined


def summation_order(dim: int) -> IntArray:
    """How NumPy's `sum` adds up `dim` numbers, int64 [blocks, 2]: where each block stops, and how many sums it ends.

    Numbers are halved, to a multiple of eight, until at most PAIRWISE_BLOCK are left; what a half sums up to is added
    to the sum of the half before. The order depends on `dim` alone.
    """
    if dim <= PAIRWISE_BLOCK:
        return np.array([[dim, 0]], dtype=np.int64)
    middle = dim // 2 - dim // 2 % 8
    order = np.concatenate([summation_order(middle), summation_order(dim - middle) + np.array([middle, 0])])
    order[-1, 1] += 1
    return order


@_inlined
def _inner_product(query: DoubleArray, vector: FloatArray, order: IntArray, sums: DoubleArray) -> float:
    """The sum in float64 of the products of two vectors [D], in the order `summation_order`(D).

    Equal vectors score equal to the last bit. `sums`, float64 [blocks], is overwritten.
    """
    open_sums = start = 0
    for block in range(len(order)):
        stop = order[block, 0]
        sums[open_sums] = _block_sum(query[start:stop], vector[start:stop])
        for _ in range(order[block, 1]):
            open_sums -= 1
            sums[open_sums] += sums[open_sums + 1]
        open_sums += 1
        start = stop
    total: float = sums[0]
    return total


@_inlined
def _block_sum(query: DoubleArray, vector: FloatArray) -> float:
    """The sum of the products of a block: every eighth goes into one of eight sums, the rest comes last."""
    size = len(query)
    whole = size - size % 8
    total = 0.0
    if whole:
        a = query[0] * vector[0]
        b = query[1] * vector[1]
        c = query[2] * vector[2]
        d = query[3] * vector[3]
        e = query[4] * vector[4]
        f = query[5] * vector[5]
        g = query[6] * vector[6]
        h = query[7] * vector[7]
        for i in range(8, whole, 8):
            a += query[i] * vector[i]
            b += query[i + 1] * vector[i + 1]
            c += query[i + 2] * vector[i + 2]
            d += query[i + 3] * vector[i + 3]
            e += query[i + 4] * vector[i + 4]
            f += query[i + 5] * vector[i + 5]
            g += query[i + 6] * vector[i + 6]
            h += query[i + 7] * vector[i + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, size):
        total += query[i] * vector[i]
    return total


@_compiled
def pair_scores(
    queries: DoubleArray, vectors: FloatArray, order: IntArray, rows: IntArray, columns: IntArray
) -> DoubleArray:
    """The exact scores, float64 [m], of pairs of a row of `queries` [B, D] and one of `vectors` [N, D].

    The sums are made in `order`, the `summation_order` of D, here and below.
    """
    scores = np.empty(len(rows), dtype=np.float64)
    sums = np.empty(len(order), dtype=np.float64)
    for pair in range(len(rows)):
        scores[pair] = _inner_product(queries[rows[pair]], vectors[columns[pair]], order, sums)
    return scores


@_compiled
def _count(scores: FloatArray, low: float, high: float) -> tuple[np.int32, np.int32]:
    """How many scores are above `high`, and how many are at least `low`."""
    above, near = np.int32(0), np.int32(0)  # as wide as a float32, so that the loop is one of vectors
    for i in range(len(scores)):
        above = np.int32(above + np.int32(scores[i] > high))
        near = np.int32(near + np.int32(scores[i] >= low))
    return above, near


@_compiled
def _replace_worst(scores: FloatArray, columns: IntArray, score: float, column: int) -> None:
    """Put a candidate in the place of the worst, the root of a heap; of equal scores the later column is worse."""
    size = len(scores)
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        other = child + 1
        if other < size and (
            scores[other] < scores[child] or (scores[other] == scores[child] and columns[other] > columns[child])
        ):
            child = other
        if scores[child] > score or (scores[child] == score and columns[child] < column):
            break
        scores[place] = scores[child]
        columns[place] = columns[child]
        place = child
    scores[place] = score
    columns[place] = column


@_inlined
def _score_once(
    row: int,
    column: int,
    queries: DoubleArray,
    vectors: FloatArray,
    order: IntArray,
    sums: DoubleArray,
    exact: DoubleArray,
    scored_for: IntArray,
) -> int:
    """Put the exact score of a pair into `exact`, unless it is there; gives how many were computed, 0 or 1."""
    if scored_for[column] == row:
        return 0
    scored_for[column] = row
    exact[column] = _inner_product(queries[row], vectors[column], order, sums)
    return 1


@_compiled
def positions(
    offsets: IntArray, language: IntArray, score: DoubleArray, in_language: IntArray, among_all: IntArray
) -> None:
    """Fill in, int64 [m], the 1-based places of relevant candidates among those of their query; of equals the first
    comes first. Arguments as in `scan`.
    """
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            in_language[entry] = among_all[entry] = 1
            for other in range(offsets[row], offsets[row + 1]):
                if score[other] > score[entry] or (score[other] == score[entry] and other < entry):
                    among_all[entry] += 1
                    in_language[entry] += language[other] == language[entry]


@_compiled
def scan(
    approximate: FloatArray,
    error: DoubleArray,
    starts: IntArray,
    queries: DoubleArray,
    vectors: FloatArray,
    order: IntArray,
    offsets: IntArray,
    language: IntArray,
    score: DoubleArray,
    low: FloatArray,
    high: FloatArray,
    limit: int,
    own: IntArray,
    every: IntArray,
    best: IntArray,
    best_scores: DoubleArray,
) -> bool:
    """Count what outranks the relevant candidates in a tile of the pool, and find the best k candidates of the tile.

    Args:
        approximate: float32 or float64 [B, W]; -inf for candidates that do not count.
        error: float64 [B], how far an approximate score can be from the exact one.
        starts: int64 [L + 1], the candidates of language l are the columns starts[l]:starts[l + 1] of W.
        queries: float64 [B, D].
        vectors: float32 or float64 [W, D].
        order: of D.
        offsets: int64 [B + 1], compressed rows of the relevant candidates.
        language: int64 [m], theirs.
        score: float64 [m], their exact scores.
        low: [m], of the dtype of `approximate` and finite; what scores lower does not outrank.
        high: the same; what scores higher outranks, and between `low` and `high` the exact score decides.
        limit: of exact scores computed.
        own: int64 [m], to be filled: how many of the relevant candidate's language score at least as high.
        every: int64 [m], the same of all languages.
        best: int64 [B, k], to be filled with columns of the best k, in no order; among equals the first ones.
        best_scores: float64 [B, k], to be filled with their exact scores; -inf where there is no candidate.

    Returns:
        Whether the limit was kept. If not, the results are unfinished.
    """
    width, k = approximate.shape[1], best.shape[1]
    heap, places = np.empty(k, dtype=approximate.dtype), np.empty(k, dtype=np.int64)
    exact = np.empty(width, dtype=np.float64)
    scored_for = np.full(width, -1, dtype=np.int64)  # the row that `exact` is for
    sums = np.empty(len(order), dtype=np.float64)
    computed = 0
    for row in range(len(approximate)):
        own[offsets[row] : offsets[row + 1]] = 0
        every[offsets[row] : offsets[row + 1]] = 0
        for segment in range(len(starts) - 1):
            scores = approximate[row, starts[segment] : starts[segment + 1]]
            for entry in range(offsets[row], offsets[row + 1]):
                above, near = _count(scores, low[entry], high[entry])
                outranking = np.int64(above)
                if near > above:
                    for start in range(starts[segment], starts[segment + 1], CHUNK):
                        chunk = approximate[row, start : min(start + CHUNK, starts[segment + 1])]
                        above, near = _count(chunk, low[entry], high[entry])
                        if near == above:
                            continue
                        for column in range(start, start + len(chunk)):
                            if low[entry] <= approximate[row, column] <= high[entry]:
                                computed += _score_once(row, column, queries, vectors, order, sums, exact, scored_for)
                                outranking += exact[column] >= score[entry]
                every[entry] += outranking
                if language[entry] == segment:
                    own[entry] += outranking

        heap[:] = -np.inf
        for start in range(0, width, CHUNK):
            chunk = approximate[row, start : start + CHUNK]
            if _count(chunk, heap[0], heap[0])[0]:
                for column in range(start, start + len(chunk)):
                    if approximate[row, column] > heap[0]:
                        _replace_worst(heap, places, approximate[row, column], column)
        lowest = np.float64(heap[0]) - 2 * error[row]  # the kth best may be too high, and a better one too low
        best[row] = 0
        best_scores[row] = -np.inf
        for start in range(0, width, CHUNK):
            chunk = approximate[row, start : start + CHUNK]
            if _count(chunk, lowest, lowest)[1]:
                for column in range(start, start + len(chunk)):
                    if approximate[row, column] >= lowest and approximate[row, column] > -np.inf:
                        computed += _score_once(row, column, queries, vectors, order, sums, exact, scored_for)
                        if exact[column] > best_scores[row, 0]:
                            _replace_worst(best_scores[row], best[row], exact[column], column)
        if computed > limit:
            return False
    return True


@_compiled
def spread_ranks(keys: IntArray, column_bits: int, ranks: NDArray[np.float32]) -> None:
    """Ranks of the columns of each row; equal values take the mean of their ranks.

    Args:
        keys: int64 [Q, S], each row sorted by value: the value in the upper bits, its column in the lower ones.
        column_bits: how many are the lower ones.
        ranks: float32 [Q, S], to be filled.
    """
    for row in range(len(keys)):
        start = 0
        while start < keys.shape[1]:
            value = keys[row, start] >> column_bits
            stop = start + 1
            while stop < keys.shape[1] and keys[row, stop] >> column_bits == value:
                stop += 1
            for place in range(start, stop):
                ranks[row, keys[row, place] & ((1 << column_bits) - 1)] = (start + 1 + stop) / 2
            start = stop
