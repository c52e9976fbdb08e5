"""Exact full-depth ranks of relevant candidates by counting what outranks them; no sort, no cut at a depth.

Q queries, B of them in a block, N candidates of all languages, L languages, D dimensions, M relevant pairs of a
query and a candidate, K best candidates.

The score of a pair is the float64 inner product of the two vectors as given, summed in one fixed order: equal
vectors score equal to the last bit, wherever and in whatever company they are scored. Ties are broken
pessimistically: among equal scores every non-relevant candidate comes before the relevant ones, which follow in
column order. That is a real permutation, the worst one, so a constant scorer gets no credit.

Computing every score like that would take a hundred times longer than a float32 matrix product. So the product
decides all pairs but those whose approximate score lies within its error bound of the score it is compared with,
and only these are scored in float64. The bound is the rigorous one of Higham, Accuracy and Stability of Numerical
Algorithms (2002), equation 3.5, which holds for every order of summation, with and without fused multiply-add:

    |fl(q·x) - q·x|  <=  gamma_D  sum_i |q_i x_i|  <=  gamma_D |q| |x|,    gamma_D = D u / (1 - D u)

A block that float32 leaves too much undecided (collapsed encoders) is done again with a float64 product.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.int64]
Top: TypeAlias = tuple[IntArray, NDArray[np.float64]]  # columns and scores [B, K], best first

Result = TypeVar("Result")

TOP = 10
BLOCK_QUERIES = 1024
TILE_COLUMNS = 16_320  # 64 x 255: the bytes of 255 words of a mask add up without a carry
UNDECIDED_SHARE = 1 / 32  # beyond it a float64 product is cheaper than scoring undecided pairs one by one
STRIP_ROWS = 64  # rows compared at a time: fewer are slower by the number of calls, more by leaving the cache
CHUNK_NUMBERS = 2**16  # numbers in a temporary array of gathered vectors: 512 KB, for the same reason


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
        first: int64 [N], the first column with the same vector; None where all vectors differ.
    """

    vectors: FloatArray
    starts: IntArray
    approximate: NDArray[np.float32]
    exponent: int
    norm: float
    largest_integer: float
    first: IntArray | None


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
        top: int64 [Q, K], the columns of the best K = min(TOP, N) candidates, best first.
    """

    cell: IntArray
    pool: IntArray
    top: IntArray


class _Block(NamedTuple):
    """A block of queries and its m relevant candidates.

    Args:
        queries: [B, D], as given.
        scaled: float64 [B, D], each query divided by 2**exponent, so that its largest number is below 1.
        exponent: int64 [B, 1].
        offsets: int64 [B + 1], compressed rows of the relevant candidates.
        row, column, language: int64 [m] of the relevant candidates.
        score: float64 [m], their scores.
        slots: (language, entries) such that each relevant candidate is an entry of one slot, and the entries of a
            slot are of one language and of different queries, in ascending order.
    """

    queries: FloatArray
    scaled: NDArray[np.float64]
    exponent: IntArray
    offsets: IntArray
    row: IntArray
    column: IntArray
    language: IntArray
    score: NDArray[np.float64]
    slots: list[tuple[int, IntArray]]


class _Workspace(NamedTuple):
    """Memory that a thread fills again for every block, because fresh memory costs more than the work in it."""

    scores: NDArray[np.float32]
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]


class _Scan(NamedTuple):
    """Approximate scores of a block of queries with a tile of W candidates.

    Args:
        scores: float32 or float64 [B, W], divided like the vectors they come from; -inf for relevant candidates.
        error: float64 [B], how far a score can be from the exact one.
        start: the tile's first column.
    """

    scores: FloatArray
    error: NDArray[np.float64]
    start: int


class _Undecided(Exception):  # noqa: N818 - not an error: asks for the same scan in float64
    """The approximate scores leave so much open that more precise ones are cheaper."""


def candidate_pool(candidates: Sequence[FloatArray]) -> Pool:
    """The pool of finite candidate vectors [n_l, D], n_l >= 1, one array per language.

    Vectors are kept in float32 if all are float32, else in float64.
    """
    starts = np.cumsum([0, *map(len, candidates)], dtype=np.int64)
    single = all(np.asarray(part).dtype == np.float32 for part in candidates)
    vectors: FloatArray = np.concatenate(candidates, dtype=np.float32 if single else np.float64)
    exponent = int(np.frexp(max(vectors.max(), -vectors.min()))[1])
    approximate = np.ldexp(vectors, -exponent).astype(np.float32, copy=False)
    return Pool(
        vectors=vectors,
        starts=starts,
        approximate=approximate,
        exponent=exponent,
        norm=norm_bound(approximate).max(),
        largest_integer=_largest_integer(vectors),
        first=_first_copies(vectors),
    )


def _largest_integer(vectors: FloatArray) -> float:
    """See Pool. Most vectors are told by their first row."""
    for part in (vectors[:1], vectors):
        if not np.array_equal(part, np.rint(part)):
            return float("inf")
    return float(np.abs(vectors).max())


def rank_queries(queries: FloatArray, pool: Pool, relevant: Relevant, *, threads: int | None = None) -> Ranks:
    """Ranks of the relevant candidates of queries, at full depth and exact.

    Beside the pool and the result, each thread holds BLOCK_QUERIES x TILE_COLUMNS float32 scores at most and the
    masks of STRIP_ROWS of them: 70 MB, whatever the sizes of queries and pool. Only where scores tie en masse
    it takes several times as much.

    Args:
        queries: float32 or float64 [Q, D], finite; scored as given, not normalised.
        pool: all candidates.
        relevant: of these queries; a query may have none.
        threads: query blocks ranked at the same time; by default one for each core at hand.

    Returns:
        The ranks, in the order of `relevant`, and the top of each query.
    """
    top = min(TOP, len(pool.vectors))

    def rank(block: slice, workspace: _Workspace) -> Ranks:
        return _rank_block(_block(queries[block], pool, relevant, block), pool, top, workspace)

    return join_ranks(_over_blocks(rank, len(queries), pool, threads), top)


def top_candidates(queries: FloatArray, pool: Pool, relevant: Relevant, k: int, *, threads: int | None = None) -> Top:
    """Columns int64 [Q, k] and scores float64 [Q, k] of the best k <= N candidates of each query, best first.

    Arguments and order as in `rank_queries`: a tie puts relevant candidates last.
    """

    def best(rows: slice, workspace: _Workspace) -> Top:
        block = _block(queries[rows], pool, relevant, rows)

        def pick(scan: _Scan) -> Top:
            return _tile_top(block, pool, scan, k)

        return _top_of_all(block, [_scan_tile(pick, block, pool, tile, workspace) for tile in _tiles(pool)], k)

    blocks = _over_blocks(best, len(queries), pool, threads)
    columns = [np.empty((0, k), dtype=np.int64), *(columns for columns, _ in blocks)]
    return np.concatenate(columns), np.concatenate([np.empty((0, k)), *(scores for _, scores in blocks)])


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


def _over_blocks(
    work: Callable[[slice, _Workspace], Result], queries: int, pool: Pool, threads: int | None
) -> list[Result]:
    """`work` done for blocks of equal size, several at a time; each has a core and a workspace of its own."""
    threads = threads or _cores()
    rounds = -(-queries // (BLOCK_QUERIES * threads))
    bounds = np.linspace(0, queries, min(rounds * threads, queries) + 1).astype(np.int64).tolist()
    blocks = [slice(start, stop) for start, stop in pairwise(bounds)]
    idle: SimpleQueue[_Workspace] = SimpleQueue()
    for _ in range(threads):
        idle.put(_workspace(pool))

    def work_in_idle_space(block: slice) -> Result:
        workspace = idle.get()
        try:
            return work(block, workspace)
        finally:
            idle.put(workspace)

    # A product that took all cores would wait for those that count.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as executor:
        return list(executor.map(work_in_idle_space, blocks))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workspace(pool: Pool) -> _Workspace:
    width = min(_word_aligned(len(pool.vectors)), TILE_COLUMNS)
    above, near, undecided = (np.empty(STRIP_ROWS * width, np.bool_) for _ in range(3))
    return _Workspace(np.empty(BLOCK_QUERIES * width, np.float32), (above, near, undecided))


def _word_aligned(columns: int) -> int:
    """The width of a mask: 8 groups of 64-bit words."""
    return -(-columns // 64) * 64


def _block(queries: FloatArray, pool: Pool, relevant: Relevant, rows: slice) -> _Block:
    """The block of `queries` [B, D], which are rows `rows` of those that `relevant` is about."""
    offsets = relevant.offsets[rows.start : rows.stop + 1]
    column = relevant.columns[offsets[0] : offsets[-1]]
    row = np.repeat(np.arange(len(queries)), np.diff(offsets))
    language = np.searchsorted(pool.starts, column, side="right") - 1
    exponent = np.frexp(np.abs(queries).max(axis=1, keepdims=True))[1].astype(np.int64)
    return _Block(
        queries=queries,
        scaled=np.ldexp(queries.astype(np.float64), -exponent),
        exponent=exponent,
        offsets=offsets - offsets[0],
        row=row,
        column=column,
        language=language,
        score=pair_scores(queries, pool.vectors, row, column),
        slots=_slots(row, language),
    )


def _slots(row: IntArray, language: IntArray) -> list[tuple[int, IntArray]]:
    """See `_Block`: the first relevant candidates of each query in a language are one slot, the second another."""
    occurrence = _place_in_run(row * (language.max(initial=0) + 1) + language)
    slot = np.stack([language, occurrence])
    order = np.lexsort((row, *slot))
    changes = np.flatnonzero(np.diff(slot[:, order], axis=1).any(axis=0)) + 1
    return [(int(language[entries[0]]), entries) for entries in np.split(order, changes) if len(entries)]


def _place_in_run(ascending: IntArray) -> IntArray:
    """0-based place of each element among its equals."""
    return np.arange(len(ascending)) - np.searchsorted(ascending, ascending)


def pair_scores(queries: FloatArray, vectors: FloatArray, rows: IntArray, columns: IntArray) -> NDArray[np.float64]:
    """The scores of pairs of a query and a candidate; the same on every machine, as each is summed in one order."""
    scores = np.empty(len(rows))
    step = max(1, CHUNK_NUMBERS // queries.shape[1])
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        products = queries[rows[chunk]].astype(np.float64) * vectors[columns[chunk]]
        scores[chunk] = products.sum(axis=1)
    return scores


def _distinct_pair_scores(block: _Block, pool: Pool, rows: IntArray, columns: IntArray) -> NDArray[np.float64]:
    """Scores of pairs, each distinct pair of vectors computed once."""
    if pool.first is None:
        return pair_scores(block.queries, pool.vectors, rows, columns)
    pairs, inverse = np.unique(rows * len(pool.vectors) + pool.first[columns], return_inverse=True)
    return pair_scores(block.queries, pool.vectors, *np.divmod(pairs, len(pool.vectors)))[inverse]


def _tiles(pool: Pool) -> Iterator[slice]:
    columns = len(pool.vectors)
    return (slice(start, min(start + TILE_COLUMNS, columns)) for start in range(0, columns, TILE_COLUMNS))


def _rank_block(block: _Block, pool: Pool, top: int, workspace: _Workspace) -> Ranks:
    cell = _position(block.row * len(pool.starts) + block.language, block.score)
    merged = _position(block.row, block.score)
    tops = []

    def count_and_pick(scan: _Scan) -> tuple[IntArray, IntArray, Top]:
        return *_count_outranking(block, pool, scan, workspace), _tile_top(block, pool, scan, top)

    for tile in _tiles(pool):
        own, every, best = _scan_tile(count_and_pick, block, pool, tile, workspace)
        cell += own
        merged += every
        tops.append(best)
    return Ranks(cell, merged, _top_of_all(block, tops, top)[0])


def _position(group: IntArray, score: NDArray[np.float64]) -> IntArray:
    """1-based position of each entry among those of its group, best score first; groups ascend."""
    best_first = np.lexsort((-score, group))
    position = np.empty_like(best_first)
    position[best_first] = _place_in_run(group) + 1
    return position


def _scan_tile(
    work: Callable[[_Scan], Result], block: _Block, pool: Pool, tile: slice, workspace: _Workspace
) -> Result:
    """`work` on the scores of a tile in float32, or in float64 where that leaves too much undecided."""
    try:
        return work(_scan(block, pool, tile, pool.approximate[tile], workspace.scores))
    except _Undecided:
        exact = np.ldexp(pool.vectors[tile].astype(np.float64), -pool.exponent)
        return work(_scan(block, pool, tile, exact, np.empty(len(block.queries) * len(exact))))


def _scan(block: _Block, pool: Pool, tile: slice, candidates: FloatArray, memory: FloatArray) -> _Scan:
    shape = len(block.queries), len(candidates)
    scores = memory[: shape[0] * shape[1]].reshape(shape)
    np.matmul(block.scaled.astype(candidates.dtype), candidates.T, out=scores)
    here = (block.column >= tile.start) & (block.column < tile.stop)
    scores[block.row[here], block.column[here] - tile.start] = -np.inf
    return _Scan(scores, _error_bound(block, pool, candidates.dtype), tile.start)


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
        undivided = np.ldexp(np.finfo(np.float64).tiny, -block.exponent[:, 0] - pool.exponent)
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


def _first_copies(vectors: FloatArray) -> IntArray | None:
    """See Pool.first. Equal vectors have equal sums; vectors whose sums are equal by chance count as different."""
    weights = np.arange(1, vectors.shape[1] + 1, dtype=np.float64)
    step = max(1, CHUNK_NUMBERS // vectors.shape[1])
    sums = [(vectors[start : start + step] * weights).sum(axis=1) for start in range(0, len(vectors), step)]
    _, index, inverse = np.unique(np.concatenate(sums), return_index=True, return_inverse=True)
    first = index[inverse].astype(np.int64)
    copies = np.flatnonzero(first != np.arange(len(first)))
    different = (vectors[copies] != vectors[first[copies]]).any(axis=1)
    first[copies[different]] = copies[different]
    return None if different.all() else first


def _count_outranking(block: _Block, pool: Pool, scan: _Scan, workspace: _Workspace) -> tuple[IntArray, IntArray]:
    """How many non-relevant candidates of the tile score at least as high as each relevant one, int64 [m].

    First those of the relevant candidate's own language, then all.
    """
    counts = np.zeros(len(block.score), dtype=np.int64), np.zeros(len(block.score), dtype=np.int64)
    bounds = _thresholds(block, pool, scan)
    undecided = [_count_in_strip(block, pool, scan, strip, bounds, counts, workspace) for strip in _strips(scan.scores)]
    rows, columns = (np.concatenate(parts) for parts in zip(*undecided, strict=True))
    _check_affordable(len(rows), scan)
    _add_undecided(block, pool, scan, (rows, columns), bounds, counts)
    return counts


def _strips(scores: FloatArray) -> Iterator[slice]:
    return (slice(start, start + STRIP_ROWS) for start in range(0, len(scores), STRIP_ROWS))


def _count_in_strip(
    block: _Block,
    pool: Pool,
    scan: _Scan,
    strip: slice,
    bounds: tuple[FloatArray, FloatArray],
    counts: tuple[IntArray, IntArray],
    workspace: _Workspace,
) -> tuple[IntArray, IntArray]:
    """Add to the counts what is certain; gives rows and columns of the pairs that are not."""
    scores = scan.scores[strip]
    rows, width = scores.shape
    above, near, undecided = (mask[: rows * _word_aligned(width)].reshape(rows, -1) for mask in workspace.masks)
    above[:, width:] = near[:, width:] = False
    undecided[:] = False
    (low, high), (own, every) = bounds, counts
    language_bounds = np.clip(pool.starts - scan.start, 0, width).tolist()
    for language, slot in block.slots:
        entries = slot[slice(*np.searchsorted(block.row[slot], [strip.start, strip.stop]))]
        count = len(entries)
        lines = np.s_[:] if count == rows else block.row[entries] - strip.start
        np.greater(scores[lines], high[entries, None], out=above[:count, :width])
        np.greater_equal(scores[lines], low[entries, None], out=near[:count, :width])
        start, stop = language_bounds[language : language + 2]
        own[entries] += above[:count, start:stop].view(np.uint8).sum(axis=1, dtype=np.int32)
        every[entries] += _true_in_rows(above[:count])
        near[:count] ^= above[:count]
        if count == rows:
            undecided |= near
        else:
            undecided[lines] |= near[:count]
    flat = np.flatnonzero(undecided)
    row = flat // undecided.shape[1]
    return row + strip.start, flat - row * undecided.shape[1]


def _thresholds(block: _Block, pool: Pool, scan: _Scan) -> tuple[FloatArray, FloatArray]:
    """Bounds [m]: an approximate score outside is certainly lower, or higher, than that of a relevant candidate."""
    dtype = scan.scores.dtype
    score = np.ldexp(block.score, -block.exponent[block.row, 0] - pool.exponent)
    error = scan.error[block.row]
    with np.errstate(over="ignore"):
        low, high = (score - error).astype(dtype), (score + error).astype(dtype)
    # Finite, so that relevant candidates, whose scores are -inf, stay below an infinite bound too.
    below = np.maximum(np.nextafter(low, dtype.type(-np.inf)), np.finfo(dtype).min)
    exact = error == 0  # nothing is undecided: what is not below the score outranks it
    return np.where(exact, low, below), np.where(exact, below, np.nextafter(high, dtype.type(np.inf)))


def _true_in_rows(mask: NDArray[np.bool_]) -> IntArray:
    """How many are true in each row of a mask of 64 x (at most 255) columns; adds words, each as eight bytes."""
    words = mask.view(np.uint64).reshape(len(mask), 8, mask.shape[1] // 64).sum(axis=2)
    counts: IntArray = words.view(np.uint8).sum(axis=1, dtype=np.int64)
    return counts


def _add_undecided(
    block: _Block,
    pool: Pool,
    scan: _Scan,
    undecided: tuple[IntArray, IntArray],
    bounds: tuple[FloatArray, FloatArray],
    counts: tuple[IntArray, IntArray],
) -> None:
    """Add to the counts what only the exact scores of pairs of a query and a candidate tell."""
    (low, high), (own, every) = bounds, counts
    entries_of_row = np.diff(block.offsets)
    step = max(1, CHUNK_NUMBERS // max(1, int(entries_of_row.max())))
    for start in range(0, len(undecided[0]), step):
        row, column = (place[start : start + step] for place in undecided)
        exact = _distinct_pair_scores(block, pool, row, column + scan.start)
        pair = np.repeat(np.arange(len(row)), entries_of_row[row])
        entry = block.offsets[row[pair]] + _place_in_run(pair)
        approximate = scan.scores[row, column][pair]
        is_open = (approximate >= low[entry]) & (approximate <= high[entry])
        wins = np.flatnonzero(is_open & (exact[pair] >= block.score[entry]))
        language = np.searchsorted(pool.starts, column[pair[wins]] + scan.start, side="right") - 1
        at_home = wins[language == block.language[entry[wins]]]
        every += np.bincount(entry[wins], minlength=len(every))
        own += np.bincount(entry[at_home], minlength=len(own))


def _check_affordable(pairs: int, scan: _Scan) -> None:
    if scan.scores.dtype == np.float32 and pairs > UNDECIDED_SHARE * scan.scores.size + len(scan.scores):
        raise _Undecided


def _tile_top(block: _Block, pool: Pool, scan: _Scan, k: int) -> Top:
    """The best k non-relevant candidates of a tile for each query; -inf fills the places of those that are missing."""
    picked = [_pick_in_strip(scan, strip, k) for strip in _strips(scan.scores)]
    rows, columns = (np.concatenate(parts) for parts in zip(*picked, strict=True))
    _check_affordable(len(rows) - 2 * k * len(scan.scores), scan)
    columns += scan.start
    scores = _distinct_pair_scores(block, pool, rows, columns)
    return _best(*_in_rows(rows, columns, scores, len(scan.scores)), k)


def _pick_in_strip(scan: _Scan, strip: slice, k: int) -> tuple[IntArray, IntArray]:
    """Rows and columns of all candidates that may be among the best k of a query, and of few others."""
    scores = scan.scores[strip]
    bound = _kth_best_bound(scores, k) - 2 * scan.error[strip]
    with np.errstate(over="ignore"):  # an infinite bound leaves everything to the exact scores
        lowest = np.maximum(np.nextafter(bound.astype(scores.dtype), -np.inf), np.finfo(scores.dtype).min)
    flat = np.flatnonzero(scores >= lowest[:, None])
    row = flat // scores.shape[1]
    return row + strip.start, flat - row * scores.shape[1]


def _kth_best_bound(scores: FloatArray, k: int) -> FloatArray:
    """A score [B] that at least k of each row reach, -inf where a row is too short: the kth best maximum of groups."""
    maxima = scores
    while maxima.shape[1] >= max(16 * k, 128):
        half = maxima.shape[1] // 2
        maxima = np.maximum(maxima[:, :half], maxima[:, half : 2 * half])
    if maxima.shape[1] < k:
        return np.full(len(scores), -np.inf, dtype=scores.dtype)
    kth: FloatArray = np.partition(maxima, maxima.shape[1] - k, axis=1)[:, -k]
    return kth


def _in_rows(rows: IntArray, columns: IntArray, scores: NDArray[np.float64], count: int) -> Top:
    """Lists of pairs, rows ascending, as matrices [count, longest row]; -inf fills the shorter rows."""
    place = _place_in_run(rows)
    shape = count, int(place.max(initial=-1)) + 1
    matrix = np.zeros(shape, dtype=np.int64), np.full(shape, -np.inf)
    matrix[0][rows, place] = columns
    matrix[1][rows, place] = scores
    return matrix


def _best(columns: IntArray, scores: NDArray[np.float64], k: int) -> Top:
    """The best k of each row; what comes first stays first among equals."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _top_of_all(block: _Block, tiles: Sequence[Top], k: int) -> Top:
    """The best k of each query, from the non-relevant ones of each tile and the relevant ones, which lose ties."""
    parts = [*tiles, _in_rows(block.row, block.column, block.score, len(block.queries))]
    columns, scores = (np.concatenate(matrices, axis=1) for matrices in zip(*parts, strict=True))
    return _best(columns, scores, k)
