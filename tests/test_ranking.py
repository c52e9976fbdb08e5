from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hbt_ray.evaluation.bias import language_bias, rank_distance
from hbt_ray.evaluation.metrics import average_precision, cell_measures, macro_average, query_measures, recall
from hbt_ray.evaluation.ranking import (
    BLOCK_QUERIES,
    candidate_pool,
    count_outranking,
    query_blocks,
    rank_block,
    rank_queries,
    score_pool,
)

# Hand-worked: one-dimensional vectors, so that scores are the candidates' own numbers for the query 1.
# language a: 5 3 3 1, relevant is the second 3      language b: 9 3 0, relevant is the 3
HAND_CANDIDATES = [np.array([[5.0], [3.0], [3.0], [1.0]]), np.array([[9.0], [3.0], [0.0]])]
HAND_RELEVANT = np.array([[2, 1]])


def sorted_ranks(scores: list[NDArray[np.float64]], relevant: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Cell and pool ranks of one query by sorting (-score, relevant after non-relevant); 0 where absent."""
    entries = [
        (-score, index == relevant[language], language)
        for language, values in enumerate(scores)
        for index, score in enumerate(values)
    ]
    cell, pool = [0] * len(scores), [0] * len(scores)
    for language in range(len(scores)):
        for rank, entry in enumerate(sorted(e for e in entries if e[2] == language), start=1):
            if entry[1]:
                cell[language] = rank
    for rank, entry in enumerate(sorted(entries), start=1):
        if entry[1]:
            pool[entry[2]] = rank
    return cell, pool


@st.composite
def tied_retrieval(
    draw: st.DrawFn,
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]], NDArray[np.int64]]:
    """Queries, candidates and relevance with few distinct scores and relevant candidates that may be absent."""
    dim = draw(st.integers(1, 2))
    value = st.integers(-1, 1).map(float)

    def vectors(rows: int) -> NDArray[np.float64]:
        return np.array(draw(st.lists(value, min_size=rows * dim, max_size=rows * dim))).reshape(rows, dim)

    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    queries = vectors(draw(st.integers(1, 5)))
    relevant = np.array([[draw(st.integers(-1, size - 1)) for size in sizes] for _ in queries], dtype=np.int64)
    return queries, [vectors(size) for size in sizes], relevant


@given(tied_retrieval())
def test_ranks_equal_a_sort(
    retrieval: tuple[NDArray[np.float64], list[NDArray[np.float64]], NDArray[np.int64]],
) -> None:
    """Counting gives the ranks of a full sort in which ties put non-relevant candidates first."""
    queries, candidates, relevant = retrieval
    ranks = rank_queries(queries, candidate_pool(candidates), relevant)
    for row, query in enumerate(queries):
        cell, pool = sorted_ranks([part @ query for part in candidates], relevant[row])
        assert ranks.cell[row].tolist() == cell
        assert ranks.pool[row].tolist() == pool


def test_hand_worked_ranks() -> None:
    """In the merged order 9 5 3 (3 3) 1 0 the two tied relevant candidates come last among the threes."""
    ranks = rank_block(np.array([[1.0]]), candidate_pool(HAND_CANDIDATES), HAND_RELEVANT)
    assert ranks.cell.tolist() == [[3, 2]]
    assert ranks.pool.tolist() == [[4, 5]]


def test_hand_worked_counts() -> None:
    """Outranking counts tell per language how many non-relevant candidates are at least as good."""
    pool = candidate_pool(HAND_CANDIDATES)
    scores = score_pool(np.array([[1.0]]), pool)
    counts = count_outranking(scores, pool, np.array([[3.0, 3.0]]), np.array([[True, True]]))
    assert counts.tolist() == [[[2, 1], [2, 1]]]


def test_absent_relevant_candidate_has_rank_zero() -> None:
    """A language without the question gets rank 0, and all its candidates count as non-relevant."""
    ranks = rank_block(np.array([[1.0]]), candidate_pool(HAND_CANDIDATES), np.array([[2, -1]]))
    assert ranks.cell.tolist() == [[3, 0]]
    assert ranks.pool.tolist() == [[5, 0]]


def test_constant_scorer_gets_the_worst_ranks() -> None:
    """If all scores are equal the relevant candidates take the last ranks, in every cell and in the pool."""
    candidates = [np.ones((4, 3)), np.ones((6, 3))]
    relevant = np.array([[0, 0], [3, -1]])
    ranks = rank_block(np.ones((2, 3)), candidate_pool(candidates), relevant)
    assert ranks.cell.tolist() == [[4, 6], [4, 0]]
    assert ranks.pool.tolist() == [[9, 10], [10, 0]]


def test_equal_candidates_score_bitwise_equal() -> None:
    """Copies of a candidate get its very score wherever they stand, so a copy always outranks the relevant one."""
    rng = np.random.default_rng(7)
    vector = rng.standard_normal(384)
    part = rng.standard_normal((1003, 384))
    part[::17] = vector
    pool = candidate_pool([part, part[::-1]])
    scores = score_pool(rng.standard_normal((129, 384)), pool)
    copies = [*range(0, 1003, 17), *range(1003 + 1002, 1002, -17)]
    assert (scores[:, copies] == scores[:, :1]).all()


def test_signed_zeros_are_equal() -> None:
    """A candidate that differs from another only in the sign of a zero is its copy, with the same score."""
    pool = candidate_pool([np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[2.0, -0.0]])])
    assert (pool.copies.tolist(), pool.originals.tolist()) == ([2], [1])


def test_blocks_cover_every_query_once() -> None:
    """Blocks are consecutive, bounded, and give the ranks of the queries taken one by one."""
    rng = np.random.default_rng(3)
    queries = rng.integers(-2, 3, (BLOCK_QUERIES + 3, 4)).astype(np.float32)
    candidates = [rng.integers(-2, 3, (size, 4)).astype(np.float32) for size in (9, 5)]
    relevant = np.stack([rng.integers(-1, size, len(queries)) for size in (9, 5)], axis=1)
    pool = candidate_pool(candidates)
    ranks = rank_queries(queries, pool, relevant)
    for row in range(len(queries)):
        alone = rank_block(queries[row : row + 1], pool, relevant[row : row + 1])
        assert (ranks.cell[row] == alone.cell[0]).all()
        assert (ranks.pool[row] == alone.pool[0]).all()
    sizes = [block.stop - block.start for block in query_blocks(len(queries))]
    assert sizes == [BLOCK_QUERIES, 3]


def test_scores_are_inner_products_as_given() -> None:
    """Vectors are not normalised: a longer candidate in the same direction ranks higher."""
    pool = candidate_pool([np.array([[1.0, 0.0], [2.0, 0.0]], dtype=np.float32)])
    assert rank_block(np.array([[0.5, 9.0]], dtype=np.float32), pool, np.array([[0]])).cell.tolist() == [[2]]


def test_hand_worked_measures() -> None:
    """AP divides by all relevant candidates, R@k is the share of them in the first k."""
    ranks = np.array([[4, 1, 0], [20, 10, 5], [1, 2, 3]])
    np.testing.assert_allclose(
        average_precision(ranks), [(1 + 2 / 4) / 2, (1 / 5 + 2 / 10 + 3 / 20) / 3, 1.0], rtol=1e-15
    )
    np.testing.assert_allclose(recall(ranks, 1), [1 / 2, 0, 1 / 3], rtol=1e-15)
    np.testing.assert_allclose(recall(ranks, 10), [1, 2 / 3, 1], rtol=1e-15)


def test_measures_of_a_query_without_relevant_candidates_are_undefined() -> None:
    """A query without relevant candidates gets NaN, not a zero that would enter a mean unseen."""
    assert all(np.isnan(values).all() for values in query_measures(np.array([[0, 0]])).values())


def test_one_relevant_candidate_makes_ap_the_reciprocal_rank() -> None:
    """In a cell with one relevant candidate AP is 1/rank and R@k is 0 or 1."""
    measures = query_measures(np.array([[1], [4], [11]]))
    assert measures["mAP"].tolist() == [1.0, 1 / 4, 1 / 11]
    assert measures["R@1"].tolist() == [1.0, 0.0, 0.0]
    assert measures["R@10"].tolist() == [1.0, 1.0, 0.0]


def test_macro_average_counts_cells_not_queries() -> None:
    """A setting is the mean of its cells whatever their size, and None without a cell."""
    large = cell_measures(query_measures(np.full((30, 1), 1)))
    small = cell_measures(query_measures(np.array([[2]])))
    assert macro_average([large, small]) == {"mAP": 0.75, "R@1": 0.5, "R@10": 1.0}
    assert macro_average([]) == {"mAP": None, "R@1": None, "R@10": None}


def test_rank_distance() -> None:
    """Rank distance is the largest minus the smallest rank, and undefined below two relevant passages."""
    distances = rank_distance(np.array([[4, 1, 9], [7, 0, 2], [0, 5, 0]]))
    np.testing.assert_array_equal(distances, [8.0, 5.0, np.nan])


def test_language_bias_averages_queries_then_languages() -> None:
    """Languages weigh the same whatever their number of queries; those without a distance are left out."""
    bias = language_bias({"en": np.array([2.0, 4.0, np.nan]), "de": np.array([9.0]), "th": np.array([np.nan])})
    assert bias.rank_distance == 6.0
    assert bias.rank_distance_by_language == {"en": 3.0, "de": 9.0, "th": None}
    assert bias.queries == 3


def test_language_bias_without_any_distance() -> None:
    """With one language there is nothing to compare: the distance is None, not zero."""
    assert language_bias({"en": np.array([np.nan, np.nan])}).rank_distance is None


@pytest.mark.parametrize("queries", [1, BLOCK_QUERIES - 1, BLOCK_QUERIES, 2 * BLOCK_QUERIES])
def test_block_bounds(queries: int) -> None:
    """No block is empty and none is larger than BLOCK_QUERIES."""
    rows = [list(range(queries)[block]) for block in query_blocks(queries)]
    assert [row for block in rows for row in block] == list(range(queries))
    assert all(1 <= len(block) <= BLOCK_QUERIES for block in rows)
