"""Exact full-depth ranks of relevant candidates by counting what outranks them; no sort, no top-k cut.

Shapes: B queries of a block, Q queries, N candidates of all languages, L languages, D dimensions. A query has
at most one relevant candidate per language, so "its relevant candidate in language g" is a column g of [Q, L].

Ties are broken pessimistically: among equal scores every non-relevant candidate comes before the relevant ones.
That is a real permutation, the worst one, so a constant scorer gets no credit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]

BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Pool:
    """The candidates of all languages, in columns grouped by language.

    Args:
        vectors: float64 [N, D].
        starts: int64 [L], the first column of each language.
        copies: int64 [K], the candidates whose vector occurs earlier in the pool.
        originals: int64 [K], where each of them occurs first.
    """

    vectors: NDArray[np.float64]
    starts: IntArray
    copies: IntArray
    originals: IntArray


class Ranks(NamedTuple):
    """1-based ranks of relevant candidates; 0 where a query has none in that language.

    Args:
        cell: int64 [Q, L], rank among the candidates of the relevant candidate's own language.
        pool: int64 [Q, L], rank in the merged pool of all languages.
    """

    cell: IntArray
    pool: IntArray


def candidate_pool(candidates: Sequence[FloatArray]) -> Pool:
    """The pool of finite candidate vectors [n_l, D], n_l >= 1, one array per language."""
    starts = np.cumsum([0] + [len(vectors) for vectors in candidates[:-1]], dtype=np.int64)
    # Adding zero turns -0.0 into 0.0, so that equal vectors have equal bytes.
    vectors = np.concatenate([np.asarray(part, dtype=np.float64) for part in candidates]) + 0.0
    return Pool(vectors, starts, *_duplicates(vectors))


def rank_queries(queries: FloatArray, pool: Pool, relevant: IntArray) -> Ranks:
    """Ranks of the relevant candidates of queries [Q, D]; `relevant` [Q, L] as in `rank_block`.

    Blocks of BLOCK_QUERIES rows bound the memory at BLOCK_QUERIES x N x 9 bytes (float64 scores and one mask)
    beside the pool: 30 MB for the 13,014 candidates of XQuAD-R.
    """
    blocks = query_blocks(len(queries))
    return join_ranks([rank_block(queries[block], pool, relevant[block]) for block in blocks])


def query_blocks(queries: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK_QUERIES rows that cover `queries` rows."""
    bounds = [*range(0, queries, BLOCK_QUERIES), queries]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def join_ranks(blocks: Sequence[Ranks]) -> Ranks:
    """The ranks of consecutive blocks as one."""
    return Ranks(np.concatenate([b.cell for b in blocks]), np.concatenate([b.pool for b in blocks]))


def rank_block(queries: FloatArray, pool: Pool, relevant: IntArray) -> Ranks:
    """Ranks of the relevant candidates of one block of queries.

    Args:
        queries: float32 or float64 [B, D], finite; scored as given, not normalised.
        pool: all candidates.
        relevant: int64 [B, L], index within its language of the relevant candidate, -1 where there is none.

    Returns:
        The ranks, [B, L] each. In the merged pool, relevant candidates with equal scores take consecutive ranks
        in the order of the languages.
    """
    scores = score_pool(queries, pool)
    present = relevant >= 0
    relevant_scores = _relevant_scores(scores, pool, relevant)
    outranking = count_outranking(scores, pool, relevant_scores, present)
    own_language = np.diagonal(outranking, axis1=1, axis2=2)
    position = _descending_position(relevant_scores, present)
    return Ranks(
        cell=np.where(present, own_language + 1, 0),
        pool=np.where(present, outranking.sum(axis=2) + position, 0),
    )


def score_pool(queries: FloatArray, pool: Pool) -> NDArray[np.float64]:
    """Inner products [B, N] in float64; equal candidate vectors get bitwise equal scores."""
    scores: NDArray[np.float64] = np.asarray(queries, dtype=np.float64) @ pool.vectors.T
    # A matrix product may round equal columns differently, depending on their position.
    scores[:, pool.copies] = scores[:, pool.originals]
    return scores


def count_outranking(
    scores: NDArray[np.float64],
    pool: Pool,
    relevant_scores: NDArray[np.float64],
    present: NDArray[np.bool_],
) -> IntArray:
    """How many non-relevant candidates of each language outrank or equal each relevant candidate.

    Args:
        scores: [B, N].
        pool: all candidates.
        relevant_scores: [B, L], infinite where `present` is False.
        present: [B, L], whether the query has a relevant candidate in that language.

    Returns:
        int64 [B, L, L]: of query b, for its relevant candidate in language g, the number of non-relevant
        candidates of language l with a score at least as high; 0 where there is no such relevant candidate.
    """
    counts = np.empty((*relevant_scores.shape, len(pool.starts)), dtype=np.int64)
    mask = np.empty(scores.shape, dtype=np.bool_)
    for g in range(relevant_scores.shape[1]):
        np.greater_equal(scores, relevant_scores[:, g, None], out=mask)
        # Summing bytes is several times faster than summing booleans.
        counts[:, g] = np.add.reduceat(mask.view(np.uint8), pool.starts, axis=1, dtype=np.int32)
    relevant_counted = relevant_scores[:, None, :] >= relevant_scores[:, :, None]
    counts -= relevant_counted & present[:, None, :]
    return counts


def _duplicates(vectors: NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    rows = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.itemsize * vectors.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    original = first[inverse].astype(np.int64)
    copies = np.flatnonzero(original != np.arange(len(original))).astype(np.int64)
    return copies, original[copies]


def _relevant_scores(scores: NDArray[np.float64], pool: Pool, relevant: IntArray) -> NDArray[np.float64]:
    columns = pool.starts + np.maximum(relevant, 0)
    return np.where(relevant >= 0, np.take_along_axis(scores, columns, axis=1), np.inf)


def _descending_position(relevant_scores: NDArray[np.float64], present: NDArray[np.bool_]) -> IntArray:
    """1-based position [B, L] of each relevant candidate among those of its query, best score first."""
    best_first = np.argsort(np.where(present, -relevant_scores, np.inf), axis=1, kind="stable")
    return np.argsort(best_first, axis=1) + 1
