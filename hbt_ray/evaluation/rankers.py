"""Where the ranking of a collection runs: in this process, as query blocks on Ray actors, or as FAISS shards there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.evaluation.benchmarks import Collection
from hbt_ray.evaluation.embeddings import Embeddings, FloatArray
from hbt_ray.evaluation.matrix import relevant_columns
from hbt_ray.evaluation.ranking import (
    IntArray,
    Pool,
    Ranks,
    Relevant,
    candidate_pool,
    join_ranks,
    query_blocks,
    rank_queries,
)

if TYPE_CHECKING:
    from hbt_ray.evaluation.search import Shard

RANKINGS = ("auto", "scores", "faiss")
SHARD_CANDIDATES = 250_000  # of one FAISS index: 384 MB at 384 dimensions

Ranker: TypeAlias = Callable[[Collection, Embeddings], dict[str, Ranks]]


def rank_here(collection: Collection, embeddings: Embeddings) -> dict[str, Ranks]:
    """Ranks of every query language's relevant candidates, in this process with all its cores."""
    pool = merged_pool(collection, embeddings)
    queries, relevant = _all_queries(collection, embeddings, pool.starts)
    return _by_language(collection, rank_queries(queries, pool, relevant))


def merged_pool(collection: Collection, embeddings: Embeddings) -> Pool:
    """The candidates of all languages, in the collection's order of languages."""
    return candidate_pool([embeddings.candidates[language] for language in collection.candidates])


def check_actors(actors: int) -> None:
    """Refuse what would wait for ever. Raises ConfigError (no actor), ResourceError (no Ray, too few CPUs)."""
    import ray

    if actors < 1:
        raise ConfigError("actors", actors, "at least 1", "Ask for one actor or more.")
    if not ray.is_initialized():
        raise ResourceError("Ray", "no connection", "an initialised Ray", "Call `ray.init` first.")
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if actors > cpus:
        raise ResourceError("actors", actors, f"at most {cpus}, the CPUs of the cluster", "Lower `actors`.")


def ray_ranker(actors: int) -> Ranker:
    """A ranker that spreads query blocks over Ray actors of one thread each; Ray must be initialised.

    The pool is put once into the object store, and actors on one node share that copy.

    Raises:
        ConfigError: fewer than one actor.
        ResourceError: Ray is not initialised, or has fewer CPUs than actors.
    """
    check_actors(actors)

    def rank(collection: Collection, embeddings: Embeddings) -> dict[str, Ranks]:
        return _rank_on_ray(collection, embeddings, actors)

    return rank


def faiss_ranker(actors: int, depth: int) -> Ranker:
    """A ranker that searches FAISS shards on Ray actors and knows ranks up to `depth`; Ray must be initialised.

    Raises:
        ConfigError: fewer than one actor, or as `search_shards`.
        ResourceError: Ray is not initialised, has fewer CPUs than actors, or FAISS is not installed.
    """
    from hbt_ray.evaluation.search import import_faiss

    check_actors(actors)
    import_faiss()

    def rank(collection: Collection, embeddings: Embeddings) -> dict[str, Ranks]:
        return _rank_with_faiss(collection, embeddings, actors, depth)

    return rank


def check_depth(collection: Collection, depth: int) -> None:
    """Refuse a search depth that a pool does not have. Raises ConfigError."""
    size = sum(map(len, collection.candidates.values()))
    if depth > size:
        raise ConfigError("--depth", depth, f"at most {size}, the candidates of {collection.name}", "Lower it.")


class _RankingActor:
    """Ranks query blocks against the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def rank(self, queries: FloatArray, relevant: Relevant) -> Ranks:
        return rank_queries(queries, self._pool, relevant, threads=1)


def _rank_on_ray(collection: Collection, embeddings: Embeddings, actors: int) -> dict[str, Ranks]:
    import ray
    from ray.util import ActorPool

    pool = merged_pool(collection, embeddings)
    reference = ray.put(pool)
    # No logical CPU: they work while the encoding actors, which keep theirs for the next collection, do nothing.
    workers: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_RankingActor)
    queries, relevant = _all_queries(collection, embeddings, pool.starts)
    blocks = list(query_blocks(len(queries)))
    ranked = ActorPool([workers.remote(reference) for _ in range(min(actors, len(blocks)))]).map(
        lambda actor, block: actor.rank.remote(queries[block], rows_of_relevant(relevant, block)), blocks
    )
    return _by_language(collection, join_ranks(list(ranked)))


def rows_of_relevant(relevant: Relevant, block: slice) -> Relevant:
    """The relevant candidates of a block of queries."""
    offsets = relevant.offsets[block.start : block.stop + 1]
    return Relevant(offsets - offsets[0], relevant.columns[offsets[0] : offsets[-1]])


def _rank_with_faiss(collection: Collection, embeddings: Embeddings, actors: int, depth: int) -> dict[str, Ranks]:
    """One search for the queries of all languages, so that each shard is indexed once."""
    from hbt_ray.evaluation.search import search_shards

    starts = np.array([0, *accumulate(map(len, collection.candidates.values()))], dtype=np.int64)
    queries, relevant = _all_queries(collection, embeddings, starts)
    return _by_language(
        collection, search_shards(queries, _shards(collection, embeddings), relevant, depth, actors).ranks
    )


def _all_queries(collection: Collection, embeddings: Embeddings, starts: IntArray) -> tuple[FloatArray, Relevant]:
    """The queries of all languages, one after the other, with their relevant candidates."""
    parts = [relevant_columns(qrels, starts) for qrels in collection.qrels.values()]
    first = accumulate((len(part.columns) for part in parts[:-1]), initial=0)
    offsets = [part.offsets[1:] + entries for part, entries in zip(parts, first, strict=True)]
    queries: FloatArray = np.concatenate([embeddings.queries[language] for language in collection.queries])
    return queries, Relevant(np.concatenate([[0], *offsets]), np.concatenate([part.columns for part in parts]))


def _by_language(collection: Collection, ranks: Ranks) -> dict[str, Ranks]:
    """The ranks of all queries, as `_all_queries` puts them together, by query language."""
    entries = pairwise(accumulate((len(qrels.candidate) for qrels in collection.qrels.values()), initial=0))
    rows = pairwise(accumulate(map(len, collection.queries.values()), initial=0))
    return {
        language: Ranks(ranks.cell[slice(*entry)], ranks.pool[slice(*entry)], ranks.top[slice(*row)])
        for language, entry, row in zip(collection.queries, entries, rows, strict=True)
    }


def _shards(collection: Collection, embeddings: Embeddings) -> list[Shard]:
    from hbt_ray.evaluation.search import Shard

    shards, first = [], 0
    for number, language in enumerate(collection.candidates):
        vectors = embeddings.candidates[language]
        for start in range(0, len(vectors), SHARD_CANDIDATES):
            shards.append(Shard(number, vectors[start : start + SHARD_CANDIDATES], first + start))
        first += len(vectors)
    return shards
