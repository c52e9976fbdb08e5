"""Ranks of relevant candidates in corpora too large for a score matrix: FAISS over shards, in Ray actors.

The order is that of `ranking`, cut at a depth: float64 scores, ties to the disadvantage of relevant candidates.
FAISS scores in float32, so a shard is asked for a few candidates more than the depth, what it returns is scored in
float64, and the shard's best are certain if what it did not return cannot come near them, by the error bound of
`ranking`. Queries for which that fails, because scores tie at the cut, are scored against the whole shard.

Q queries, N candidates of all shards, n of one shard, D dimensions, M relevant pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbt_ray.errors import ConfigError, EmbeddingError, ResourceError
from hbt_ray.evaluation.ranking import (
    TOP,
    FloatArray,
    IntArray,
    Ranks,
    Relevant,
    Top,
    candidate_pool,
    norm_bound,
    pair_scores,
    product_error,
    query_blocks,
    top_candidates,
)

SLACK = 32  # candidates asked of FAISS beyond the depth, so that near ties at the cut rarely need the whole shard
GPU_DEPTH = 2048  # FAISS on GPU returns at most so many


class Shard(NamedTuple):
    """Candidates of one language.

    Args:
        language: its index.
        vectors: float32 [n, D], or the path of an .npy file of them that every node can read.
        start: the pool column of the first; shards of one pool do not overlap.
    """

    language: int
    vectors: NDArray[np.float32] | str | Path
    start: int


class Found(NamedTuple):
    """What a search to a depth found.

    Args:
        ranks: of the relevant candidates; 0 for what is deeper than the depth, in the language or in the pool.
        columns: int64 [Q, min(depth, N)], the best candidates of the merged pool, best first.
        scores: float64, theirs.
    """

    ranks: Ranks
    columns: IntArray
    scores: NDArray[np.float64]


def search_shards(
    queries: FloatArray,
    shards: Sequence[Shard],
    relevant: Relevant,
    depth: int,
    actors: int,
    *,
    cpus_per_actor: int = 1,
) -> Found:
    """Search all shards with Ray actors, to the ranks that `rank_queries` would give, up to a depth.

    An actor holds one shard twice (the file's pages and the index; once more where ties need all of it) and
    Q x (depth + SLACK) x 32 bytes; this process holds Q x depth x 16 bytes for each language and for each actor.

    Args:
        queries: float32 or float64 [Q, D], finite.
        shards: at least one.
        relevant: of these queries, in columns of the pool.
        depth: of the search in each language and in the pool, at least 10.
        actors: shards searched at the same time. Each takes a GPU where the cluster has that many.
        cpus_per_actor: CPUs and FAISS threads of each.

    Raises:
        ConfigError: no shard, or the depth or the number of actors is too small.
        ResourceError: FAISS is not installed.
        EmbeddingError: a shard's dimension differs from that of the queries.
    """
    _check(shards, depth, actors)
    import ray
    from ray.util import ActorPool

    gpu = ray.cluster_resources().get("GPU", 0) >= actors
    actor: Any = ray.remote(num_cpus=cpus_per_actor, num_gpus=1 if gpu else 0)(_SearchActor)
    workers = [actor.remote(cpus_per_actor) for _ in range(actors)]
    task = ray.put((queries, relevant))
    found: dict[int, Top] = {}
    results = ActorPool(workers).map_unordered(
        lambda worker, number: worker.search.remote(task, number, shards[number], depth), range(len(shards))
    )
    for number, top in results:
        language = shards[number].language
        known = found.get(language)
        found[language] = top if known is None else merge_tops([known, top], relevant, depth)
    return found_in(found, relevant, depth)


def _check(shards: Sequence[Shard], depth: int, actors: int) -> None:
    if not shards:
        raise ConfigError("shards", "none", "at least one", "Name the shards of the corpus.")
    if depth < TOP:
        raise ConfigError("depth", depth, f"at least {TOP}", "Measures need the first ten ranks; search deeper.")
    if actors < 1:
        raise ConfigError("actors", actors, "at least 1", "Ask for one actor or more.")
    import_faiss()


def import_faiss() -> Any:
    """The FAISS module. Raises ResourceError, with the extras to install, where there is none."""
    try:
        import faiss
    except ImportError:
        raise ResourceError(
            "FAISS", "no module faiss", "one of the extras cpu and gpu", "Install hbt_ray[cpu] or hbt_ray[gpu]."
        ) from None
    return faiss


class _SearchActor:
    """A worker that searches one shard after the other."""

    def __init__(self, threads: int) -> None:
        import_faiss().omp_set_num_threads(threads)
        self._threads = threads

    def search(self, task: tuple[FloatArray, Relevant], number: int, shard: Shard, depth: int) -> tuple[int, Top]:
        queries, relevant = task
        return number, search_shard(queries, shard, relevant, depth, threads=self._threads)


def search_shard(
    queries: FloatArray, shard: Shard, relevant: Relevant, depth: int, *, slack: int = SLACK, threads: int | None = None
) -> Top:
    """The best min(depth, n) candidates of a shard for each query, exact and in the order of `top_candidates`.

    Args:
        queries: float32 or float64 [Q, D], finite.
        shard: see `Shard`.
        relevant: of these queries, in columns of the pool.
        depth: of the search.
        slack: candidates asked of FAISS beyond the depth.
        threads: for the queries that need the whole shard.

    Returns:
        Pool columns int64 and scores float64, [Q, min(depth, n)].

    Raises:
        ResourceError: FAISS is not installed.
        EmbeddingError: the dimensions differ.
    """
    vectors = _vectors_of(shard, queries.shape[1])
    here = _relevant_in(relevant, shard.start, shard.start + len(vectors))
    asked = min(depth + slack, len(vectors))
    depth = min(depth, len(vectors))
    columns = np.empty((len(queries), depth), dtype=np.int64)
    scores = np.empty((len(queries), depth))
    certain = np.zeros(len(queries), dtype=np.bool_)
    longest = norm_bound(vectors).max()
    if longest < np.sqrt(np.finfo(np.float32).max) / 2:  # longer vectors could overflow a float32 product
        index = _index(vectors, asked)
        for block in query_blocks(len(queries)):
            columns[block], scores[block], certain[block] = _search_block(
                queries[block],
                index,
                vectors,
                longest,
                _rows_of(here, np.arange(block.start, block.stop)),
                depth,
                asked,
            )
        del index
    rows = np.flatnonzero(~certain)
    if len(rows):
        pool = candidate_pool([vectors])
        columns[rows], scores[rows] = top_candidates(queries[rows], pool, _rows_of(here, rows), depth, threads=threads)
    return columns + shard.start, scores


def _vectors_of(shard: Shard, dim: int) -> NDArray[np.float32]:
    vectors = np.load(shard.vectors, mmap_mode="r") if isinstance(shard.vectors, str | Path) else shard.vectors
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32 or not len(vectors):
        raise EmbeddingError(
            f"shard at column {shard.start}",
            f"{vectors.dtype} {list(vectors.shape)}",
            f"float32 [n, {dim}] with n >= 1",
            "Encode queries and candidates with one model and keep both in float32.",
        )
    return vectors


def _index(vectors: NDArray[np.float32], asked: int) -> Any:
    faiss = import_faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    if faiss.get_num_gpus() > 0 and asked <= GPU_DEPTH:
        return faiss.index_cpu_to_all_gpus(index)
    return index


def _search_block(
    queries: FloatArray,
    index: Any,
    vectors: NDArray[np.float32],
    longest: float,
    relevant: Relevant,
    depth: int,
    asked: int,
) -> tuple[IntArray, NDArray[np.float64], NDArray[np.bool_]]:
    """The best `depth` of what FAISS returns for a block, and for which queries they are certainly the shard's best."""
    norms = norm_bound(queries)
    fits = norms < np.sqrt(np.finfo(np.float32).max) / 2
    approximate, columns = index.search(np.where(fits[:, None], queries, 0).astype(np.float32), asked)
    rows = np.repeat(np.arange(len(queries)), asked)
    scores = pair_scores(queries, vectors, rows, columns.ravel()).reshape(columns.shape)
    best_columns, best_scores = merge_tops([(columns, scores)], relevant, depth)
    if asked == len(vectors):
        return best_columns, best_scores, fits
    dim = queries.shape[1]
    relative = product_error(dim + 3, np.dtype(np.float32)) + product_error(dim, np.dtype(np.float64))
    underflow = 4 * dim * float(np.finfo(np.float32).tiny) * (1 + norms + longest)
    unseen = approximate[:, -1] + relative * norms * longest + underflow
    return best_columns, best_scores, fits & (unseen < best_scores[:, -1])


def merge_tops(tops: Sequence[Top], relevant: Relevant, depth: int) -> Top:
    """The best `depth` of several lists of each query: by score, relevant ones after their equals, then by column.

    Args:
        tops: columns and scores [Q, any width]; no column twice for a query.
        relevant: of these queries, in the same columns.
        depth: width of the result, or less where the lists hold less.
    """
    columns, scores = (np.concatenate(parts, axis=1) for parts in zip(*tops, strict=True))
    order = np.lexsort((columns, _is_relevant(columns, relevant), -scores), axis=-1)[:, :depth]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)


def found_in(languages: dict[int, Top], relevant: Relevant, depth: int) -> Found:
    """Ranks and merged list from the best candidates of each language (language index -> columns and scores)."""
    tops = [languages[language] for language in sorted(languages)]
    cell = sum((ranks_in(columns, relevant) for columns, _ in tops), np.zeros(len(relevant.columns), dtype=np.int64))
    columns, scores = merge_tops(tops, relevant, depth)
    return Found(Ranks(cell, ranks_in(columns, relevant), columns[:, :TOP]), columns, scores)


def ranks_in(columns: IntArray, relevant: Relevant) -> IntArray:
    """1-based places [M] of the relevant candidates in lists of columns [Q, K], 0 for those that are not listed."""
    rows, stride = _rows_and_stride(columns, relevant)
    listed = (np.arange(len(columns))[:, None] * stride + columns).ravel()
    wanted = rows * stride + relevant.columns
    order = np.argsort(listed)
    place = order[np.minimum(np.searchsorted(listed, wanted, sorter=order), len(order) - 1)]
    return np.where(listed[place] == wanted, place % columns.shape[1] + 1, 0)


def _is_relevant(columns: IntArray, relevant: Relevant) -> NDArray[np.bool_]:
    rows, stride = _rows_and_stride(columns, relevant)
    return np.isin(np.arange(len(columns))[:, None] * stride + columns, rows * stride + relevant.columns)


def _rows_and_stride(columns: IntArray, relevant: Relevant) -> tuple[IntArray, int]:
    """The query of each relevant candidate, and a number by which query and column make one key."""
    rows = np.repeat(np.arange(len(columns)), np.diff(relevant.offsets))
    return rows, int(max(columns.max(initial=0), relevant.columns.max(initial=0))) + 1


def _relevant_in(relevant: Relevant, start: int, stop: int) -> Relevant:
    """The relevant candidates of a range of columns, counted from its start."""
    inside = (relevant.columns >= start) & (relevant.columns < stop)
    before = np.concatenate([[0], np.cumsum(inside)])
    return Relevant(before[relevant.offsets], relevant.columns[inside] - start)


def _rows_of(relevant: Relevant, rows: IntArray) -> Relevant:
    """The relevant candidates of some queries."""
    parts = [relevant.columns[relevant.offsets[row] : relevant.offsets[row + 1]] for row in rows]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return Relevant(offsets, np.concatenate([np.empty(0, dtype=np.int64), *parts]))
