"""Exact full-depth ranks of relevant candidates by counting what outranks them; no sort, no cut at a depth.

Q queries, B of them in a block, N candidates of all languages, L languages, D dimensions, M relevant pairs of a
query and a candidate, k best candidates.

The score of a pair is the float64 inner product of the two vectors as given, summed in one fixed order: equal
vectors score equal to the last bit, wherever and in whatever company they are scored. Ties are broken
pessimistically: among equal scores every non-relevant candidate comes before the relevant ones, which follow in
column order. That is a real permutation, the worst one, so a constant scorer gets no credit.

Computing every score like that would take far longer than a float32 matrix product. So the product
decides all pairs but those whose approximate score lies within its error bound of the score it is compared with,
and only these are scored in float64. The bound is the rigorous one of Higham, Accuracy and Stability of Numerical
Algorithms (2002), equation 3.5, which holds for every order of summation, with and without fused multiply-add:

    |fl(q·x) - q·x|  <=  gamma_D  sum_i |q_i x_i|  <=  gamma_D |q| |x|,    gamma_D = D u / (1 - D u)

A block that float32 leaves too much undecided (collapsed encoders) is done again with a float64 product. The loops
over scores are compiled: `counting`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hbt_ray.evaluation import counting

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.int64]
Top: TypeAlias = tuple[IntArray, NDArray[np.float64]]  # columns and scores [B, k], best first

TOP = 10
BLOCK_QUERIES = 512
TILE_COLUMNS = 16_384
UNDECIDED_SHARE = 1 / 32  # beyond it a float64 product is cheaper than scoring undecided pairs one by one
LEAST_EXPONENT = -16  # vectors whose largest number is from 2**-17 to 1 need no scaling


@dataclass(frozen=True)
class Pool:
    """The candidates of all languages, in columns grouped by language; made by `candidate_pool`.

    Args:
        vectors: float32 or float64 [N, D], as given.
        starts: int64 [L + 1]; columns starts[l]:starts[l + 1] belong to language l.
        approximate: float32 [N, D], the vectors divided by 2**exponent, so that the largest number is below 1.
        exponent: see `approximate`.
        norm: at least the largest Euclidean norm of the divided vectors.
        largest_integer: the largest magnitude where all numbers are integers (binary, int8), else infinity.
    """

    vectors: FloatArray
    starts: IntArray
    approximate: NDArray[np.float32]
    exponent: int
    norm: float
    largest_integer: float


@dataclass(frozen=True)
class Relevant:
    """The relevant candidates of queries, in compressed rows.

    Args:
        offsets: int64 [Q + 1]; those of query i are the entries offsets[i]:offsets[i + 1].
        columns: int64 [M], columns of the pool, ascending and unique within a query.
    """

    offsets: IntArray
    columns: IntArray


class Ranks(NamedTuple):
    """Where the relevant candidates of queries stand.

    Args:
        cell: int64 [M], 1-based rank among the candidates of the relevant candidate's own language; 0 where it is
            deeper than the depth of the search (never for `rank_queries`, whose depth is full).
        pool: int64 [M], the same in the merged pool of all languages.
        top: int64 [Q, k], the columns of the best k = min(TOP, N) candidates, best first.
    """

    cell: IntArray
    pool: IntArray
    top: IntArray


class _Block(NamedTuple):
    """A block of queries and its m relevant candidates.

    Args:
        queries: float64 [B, D], as given.
        scaled: float64 [B, D], each query divided by 2**exponent, so that its largest number is below 1.
        exponent: int64 [B].
        offsets: int64 [B + 1], compressed rows of the relevant candidates.
        row, column, language: int64 [m] of the relevant candidates.
        score: float64 [m], their scores.
    """

    queries: NDArray[np.float64]
    scaled: NDArray[np.float64]
    exponent: IntArray
    offsets: IntArray
    row: IntArray
    column: IntArray
    language: IntArray
    score: NDArray[np.float64]


def candidate_pool(candidates: Sequence[FloatArray]) -> Pool:
    """The pool of finite candidate vectors [n_l, D], n_l >= 1, one array per language.

    Vectors are kept in float32 if all are float32, else in float64.
    """
    starts = np.cumsum([0, *map(len, candidates)], dtype=np.int64)
    single = all(np.asarray(part).dtype == np.float32 for part in candidates)
    vectors: FloatArray = np.concatenate(candidates, dtype=np.float32 if single else np.float64)
    vectors = np.ascontiguousarray(vectors)
    exponent = int(_exponents(max(vectors.max(), -vectors.min())))
    scaled = np.ldexp(vectors, -exponent) if exponent else vectors
    approximate = scaled.astype(np.float32, copy=False)
    return Pool(
        vectors=vectors,
        starts=starts,
        approximate=approximate,
        exponent=exponent,
        norm=norm_bound(approximate).max(),
        largest_integer=_largest_integer(vectors),
    )


def _exponents(largest: Any) -> Any:
    """The powers of 2 that divide numbers of these magnitudes to below 1; 0 where they are, and not far below."""
    exponents = np.frexp(largest)[1].astype(np.int64)
    return np.where((exponents >= LEAST_EXPONENT) & (exponents <= 0), 0, exponents)


def _largest_integer(vectors: FloatArray) -> float:
    """See Pool. Most vectors are told by their first row."""
    for part in (vectors[:1], vectors):
        if not np.array_equal(part, np.rint(part)):
            return float("inf")
    return float(np.abs(vectors).max())


def rank_queries(queries: FloatArray, pool: Pool, relevant: Relevant, *, threads: int | None = None) -> Ranks:
    """Ranks of the relevant candidates of queries, at full depth and exact.

    Beside the pool and the result, each thread holds at most BLOCK_QUERIES x TILE_COLUMNS float32 scores, 32 MiB, and
    three copies of BLOCK_QUERIES queries, whatever the sizes of queries and pool. Only where float32 scores tie en
    masse these scores and the vectors of TILE_COLUMNS candidates are also held in float64.

    Args:
        queries: float32 or float64 [Q, D], finite; scored as given, not normalised.
        pool: all candidates.
        relevant: of these queries; a query may have none.
        threads: query blocks ranked at the same time; by default one for each core at hand.

    Returns:
        The ranks, in the order of `relevant`, and the top of each query.
    """
    return _rank(queries, pool, relevant, min(TOP, len(pool.vectors)), threads)[0]


def top_candidates(queries: FloatArray, pool: Pool, relevant: Relevant, k: int, *, threads: int | None = None) -> Top:
    """Columns int64 [Q, k] and scores float64 [Q, k] of the best k <= N candidates of each query, best first.

    Arguments and order as in `rank_queries`: a tie puts relevant candidates last.
    """
    ranks, scores = _rank(queries, pool, relevant, k, threads)
    return ranks.top, scores


def query_blocks(queries: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK_QUERIES rows that cover `queries` rows."""
    bounds = [*range(0, queries, BLOCK_QUERIES), queries]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def join_ranks(blocks: Sequence[Ranks], top: int = TOP) -> Ranks:
    """The ranks of consecutive blocks as one; `top` is the width of Ranks.top where there is no block."""
    if not blocks:
        none = np.empty(0, dtype=np.int64)
        return Ranks(none, none, np.empty((0, top), dtype=np.int64))
    return Ranks(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def pair_scores(queries: FloatArray, vectors: FloatArray, rows: IntArray, columns: IntArray) -> NDArray[np.float64]:
    """The scores of pairs of a query and a candidate; the same on every machine, as each is summed in one order."""
    double = np.ascontiguousarray(queries, dtype=np.float64)
    order = counting.summation_order(double.shape[1])
    return counting.pair_scores(double, np.ascontiguousarray(vectors), order, rows, columns)


def _rank(
    queries: FloatArray, pool: Pool, relevant: Relevant, k: int, threads: int | None
) -> tuple[Ranks, NDArray[np.float64]]:
    """The ranks, with k candidates in their top, and the scores [Q, k] of the top.

    Blocks of equal size are ranked several at a time. Each thread keeps one memory for scores, because fresh memory
    costs as much as the work in it.
    """
    threads = threads or _cores()
    rounds = -(-len(queries) // (BLOCK_QUERIES * threads))
    bounds = np.linspace(0, len(queries), min(rounds * threads, len(queries)) + 1).astype(np.int64).tolist()
    blocks = [slice(start, stop) for start, stop in pairwise(bounds)]
    idle: SimpleQueue[NDArray[np.float32]] = SimpleQueue()
    for _ in range(threads):
        idle.put(np.empty(BLOCK_QUERIES * min(len(pool.vectors), TILE_COLUMNS), dtype=np.float32))

    def rank(rows: slice) -> tuple[Ranks, NDArray[np.float64]]:
        memory = idle.get()
        try:
            return _rank_block(_block(queries[rows], pool, relevant, rows), pool, k, memory)
        finally:
            idle.put(memory)

    # A product that took all cores would wait for those that count.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as executor:
        done = list(executor.map(rank, blocks))
    return join_ranks([ranks for ranks, _ in done], k), np.concatenate([np.empty((0, k)), *(top for _, top in done)])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _block(queries: FloatArray, pool: Pool, relevant: Relevant, rows: slice) -> _Block:
    """The block of `queries` [B, D], which are rows `rows` of those that `relevant` is about."""
    offsets = relevant.offsets[rows.start : rows.stop + 1]
    column = relevant.columns[offsets[0] : offsets[-1]]
    row = np.repeat(np.arange(len(queries)), np.diff(offsets))
    double = np.ascontiguousarray(queries, dtype=np.float64)
    exponent = _exponents(np.abs(double).max(axis=1))
    return _Block(
        queries=double,
        scaled=np.ldexp(double, -exponent[:, None]) if exponent.any() else double,
        exponent=exponent,
        offsets=offsets - offsets[0],
        row=row,
        column=column,
        language=np.searchsorted(pool.starts, column, side="right") - 1,
        score=pair_scores(double, pool.vectors, row, column),
    )


def _tiles(pool: Pool) -> Iterator[slice]:
    columns = len(pool.vectors)
    return (slice(start, min(start + TILE_COLUMNS, columns)) for start in range(0, columns, TILE_COLUMNS))


def _rank_block(block: _Block, pool: Pool, k: int, memory: NDArray[np.float32]) -> tuple[Ranks, NDArray[np.float64]]:
    """As `_rank`, of one block, whose scores are written into `memory`."""
    cell, merged = np.empty_like(block.row), np.empty_like(block.row)
    counting.positions(block.offsets, block.language, block.score, cell, merged)
    tops = []
    for tile in _tiles(pool):
        own, every, top = _scan_tile(block, pool, tile, k, memory)
        cell += own
        merged += every
        tops.append(top)
    columns, scores = _top_of_all(block, tops, k)
    return Ranks(cell, merged, columns), scores


def _scan_tile(
    block: _Block, pool: Pool, tile: slice, k: int, memory: NDArray[np.float32]
) -> tuple[IntArray, IntArray, Top]:
    """How many non-relevant candidates of a tile score at least as high as each relevant one, and the best k.

    Two counts, int64 [m]: of those of the relevant candidate's own language, and of all. By float32 scores, or by
    float64 ones where those leave too much undecided.
    """
    found = _scan(block, pool, tile, pool.approximate[tile], k, memory)
    if found is None:
        exact = np.ldexp(pool.vectors[tile].astype(np.float64), -pool.exponent)
        found = _scan(block, pool, tile, exact, k, np.empty(len(block.queries) * len(exact)))
        assert found is not None, "every pair can be scored"
    return found


def _scan(
    block: _Block, pool: Pool, tile: slice, candidates: FloatArray, k: int, memory: FloatArray
) -> tuple[IntArray, IntArray, Top] | None:
    """As `_scan_tile`, by scores of the dtype of `candidates`; None where float32 leaves too much undecided."""
    shape = len(block.queries), len(candidates)
    scores = memory[: shape[0] * shape[1]].reshape(shape)
    np.matmul(block.scaled.astype(candidates.dtype, copy=False), candidates.T, out=scores)
    here = (block.column >= tile.start) & (block.column < tile.stop)
    scores[block.row[here], block.column[here] - tile.start] = -np.inf

    error = _error_bound(block, pool, candidates.dtype)
    low, high = _thresholds(block, pool, error, candidates.dtype)
    share = UNDECIDED_SHARE if scores.dtype == np.float32 else 1
    own, every = np.empty_like(block.row), np.empty_like(block.row)
    columns, exact = np.empty((shape[0], k), dtype=np.int64), np.empty((shape[0], k))
    finished = counting.scan(
        scores, error, np.clip(pool.starts - tile.start, 0, shape[1]),
        block.queries, pool.vectors[tile], counting.summation_order(pool.vectors.shape[1]),
        block.offsets, block.language, block.score, low, high, int(share * scores.size) + 2 * k * shape[0],
        own, every, columns, exact,
    )  # fmt: skip
    if not finished:
        return None
    columns += tile.start
    best_first = np.lexsort((columns, -exact))
    return own, every, (np.take_along_axis(columns, best_first, axis=1), np.take_along_axis(exact, best_first, axis=1))


def _error_bound(block: _Block, pool: Pool, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """How far [B] a divided approximate score, compared with a divided exact one, can be off.

    Three roundings beside those of the product: each vector's own, and the sum of score and bound. What underflows
    adds an absolute error: at most the smallest normal number for each of 4 D operations, and for each product of the
    exact score, which is not divided.
    """
    dim = block.queries.shape[1]
    if dim * pool.largest_integer * _largest_integer(block.queries) * float(np.finfo(dtype).eps) <= 2:
        return np.zeros(len(block.queries))  # sums of integers below 2**24, in float64 2**53, are exact
    relative = product_error(dim + 3, dtype) + product_error(dim, np.dtype(np.float64))
    with np.errstate(over="ignore"):  # an infinite bound leaves everything to the exact scores
        undivided = np.ldexp(np.finfo(np.float64).tiny, -block.exponent - pool.exponent)
    underflow = dim * (4 * float(np.finfo(dtype).tiny) + undivided)
    bound: NDArray[np.float64] = relative * norm_bound(block.scaled) * pool.norm + underflow
    return bound


def product_error(roundings: int, dtype: np.dtype[Any]) -> float:
    """gamma_n of the module's docstring, for n roundings in that precision."""
    unit = float(np.finfo(dtype).eps) / 2 * roundings
    return unit / (1 - unit)


def norm_bound(vectors: FloatArray) -> NDArray[np.float64]:
    """At least the Euclidean norm of each row, also of what the row was before it was rounded to float32."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return norms * (1 + 2.0**-20)


def _thresholds(
    block: _Block, pool: Pool, error: NDArray[np.float64], dtype: np.dtype[Any]
) -> tuple[FloatArray, FloatArray]:
    """Bounds [m]: an approximate score outside is certainly lower, or higher, than that of a relevant candidate."""
    score = np.ldexp(block.score, -block.exponent[block.row] - pool.exponent)
    error = error[block.row]
    with np.errstate(over="ignore"):
        low, high = (score - error).astype(dtype), (score + error).astype(dtype)
    # Finite, so that relevant candidates, whose scores are -inf, stay below an infinite bound too.
    below = np.maximum(np.nextafter(low, dtype.type(-np.inf)), np.finfo(dtype).min)
    exact = error == 0  # nothing is undecided: what is not below the score outranks it
    return np.where(exact, low, below), np.where(exact, below, np.nextafter(high, dtype.type(np.inf)))


def _top_of_all(block: _Block, tiles: Sequence[Top], k: int) -> Top:
    """The best k of each query, from the non-relevant ones of each tile and the relevant ones, which lose ties."""
    parts = [*tiles, _in_rows(block.row, block.column, block.score, len(block.queries))]
    columns, scores = (np.concatenate(matrices, axis=1) for matrices in zip(*parts, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _in_rows(rows: IntArray, columns: IntArray, scores: NDArray[np.float64], count: int) -> Top:
    """Lists of pairs, rows ascending, as matrices [count, longest row]; -inf fills the shorter rows."""
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    shape = count, int(place.max(initial=-1)) + 1
    matrix = np.zeros(shape, dtype=np.int64), np.full(shape, -np.inf)
    matrix[0][rows, place] = columns
    matrix[1][rows, place] = scores
    return matrix
