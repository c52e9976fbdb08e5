"""Ranks against an exact sort of scores computed in rational arithmetic or in float64, whatever the path."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hbt_ray.evaluation import ranking
from hbt_ray.evaluation.ranking import (
    BLOCK_QUERIES,
    FloatArray,
    IntArray,
    Ranks,
    Relevant,
    candidate_pool,
    join_ranks,
    query_blocks,
    rank_queries,
    top_candidates,
)

Retrieval = tuple[FloatArray, list[FloatArray], Relevant]


def relevant_of(rows: list[list[int]]) -> Relevant:
    """Relevance from the pool columns of each query."""
    columns = [sorted(row) for row in rows]
    offsets = np.cumsum([0, *map(len, columns)], dtype=np.int64)
    return Relevant(offsets, np.array([column for row in columns for column in row], dtype=np.int64))


def float64_scores(queries: FloatArray, candidates: list[FloatArray]) -> NDArray[np.float64]:
    """Inner products [Q, N], each summed alone, so that equal vectors score equal."""
    pool = np.concatenate(candidates).astype(np.float64)
    return np.array([[(q * x).sum() for x in pool] for q in queries.astype(np.float64)])


def sorted_ranks(scores: NDArray[np.float64], sizes: list[int], relevant: Relevant) -> Ranks:
    """The ranks by sorting (-score, relevant after non-relevant, column)."""
    language = np.repeat(np.arange(len(sizes)), sizes)
    cell, pool, top = [], [], []
    for row, values in enumerate(scores):
        wanted = set(relevant.columns[relevant.offsets[row] : relevant.offsets[row + 1]].tolist())
        order = sorted(range(len(values)), key=lambda n: (-values[n], n in wanted, n))
        top.append(order[: ranking.TOP])
        for column in sorted(wanted):
            pool.append(order.index(column) + 1)
            cell.append([n for n in order if language[n] == language[column]].index(column) + 1)
    return Ranks(np.array(cell, dtype=np.int64), np.array(pool, dtype=np.int64), np.array(top, dtype=np.int64))


def assert_equal(ranks: Ranks, expected: Ranks) -> None:
    for name in Ranks._fields:
        np.testing.assert_array_equal(getattr(ranks, name), getattr(expected, name), err_msg=name)


def assert_ranks_by_sort(retrieval: Retrieval, threads: int = 1) -> None:
    queries, candidates, relevant = retrieval
    expected = sorted_ranks(float64_scores(queries, candidates), [len(part) for part in candidates], relevant)
    assert_equal(rank_queries(queries, candidate_pool(candidates), relevant, threads=threads), expected)


@st.composite
def retrievals(draw: st.DrawFn, numbers: st.SearchStrategy[float], dtype: str) -> Retrieval:
    """Queries, pools down to one candidate, and any number of relevant candidates, with vectors of `numbers`."""
    dim = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))

    def vectors(rows: int) -> FloatArray:
        return draw(arrays(dtype, (rows, dim), elements=numbers))

    queries = vectors(draw(st.integers(1, 5)))
    column = st.integers(0, sum(sizes) - 1)
    rows = [draw(st.lists(column, unique=True, max_size=6)) for _ in queries]
    return queries, [vectors(size) for size in sizes], relevant_of(rows)


TIES = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0])
HARSH = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 1.0 + 2**-23, 1.0 - 2**-24, 0.1, 1 / 3, -1e-30, 1e-38, 1e30])
HARSHER = st.sampled_from([-1.0, 0.0, 1.0, 1.0 + 2**-52, 1 + 2**-30, 1e150, -1e150, 1e-150, 5e-324, 1e-310])


@settings(deadline=None, max_examples=60)
@given(retrievals(TIES, "float32") | retrievals(TIES, "float64"), st.integers(1, 3))
def test_ranks_equal_a_sort_despite_ties(retrieval: Retrieval, threads: int) -> None:
    """Counting gives the ranks and the top of a full sort in which ties put non-relevant candidates first."""
    assert_ranks_by_sort(retrieval, threads)


@settings(deadline=None, max_examples=60)
@given(retrievals(HARSH, "float32") | retrievals(HARSHER, "float64"))
def test_ranks_equal_a_sort_despite_rounding_overflow_and_underflow(retrieval: Retrieval) -> None:
    """Numbers of any magnitude and vectors that differ in their last bit are ranked by their float64 scores."""
    assert_ranks_by_sort(retrieval)


@settings(deadline=None, max_examples=40)
@given(
    retrievals(st.sampled_from([-1.0, 1.0, 127.0, -128.0, 3.0, 2.0**23, 2.0**24 - 1]), "float32")
    | retrievals(st.sampled_from([0.0, 1.0, 2.0**40, 2.0**52 - 1, -(2.0**30)]), "float64")
)
def test_integer_vectors_are_ranked_by_their_exact_sums(retrieval: Retrieval) -> None:
    """Binary and int8 embeddings, and integers so large that their products are rounded after all."""
    assert_ranks_by_sort(retrieval)


@pytest.mark.parametrize("dim", [1, 7, 384, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_near_ties_below_float32_rounding_are_decided_in_float64(dim: int, dtype: str) -> None:
    """Candidates that are the relevant one but for a last bit tie in a float32 product, and rank by float64 scores."""
    rng = np.random.default_rng(dim)
    base = rng.standard_normal(dim).astype(dtype)
    candidates = [np.repeat(base[None], size, axis=0) for size in (60, 40)]
    for part in candidates:
        for row in range(1, len(part)):
            place = rng.integers(dim)
            part[row, place] = np.nextafter(part[row, place], dtype_infinity(rng, dtype))
    queries = (base + 0.01 * rng.standard_normal((6, dim))).astype(dtype)
    rows = [sorted(rng.choice(100, 5, replace=False).tolist()) for _ in queries]
    float32_scores = queries.astype(np.float32) @ np.concatenate(candidates).astype(np.float32).T
    if dim > 1:
        assert len(np.unique(float32_scores[0])) < 60, "not near enough to test anything"
    assert_ranks_by_sort((queries, candidates, relevant_of(rows)))


def dtype_infinity(rng: np.random.Generator, dtype: str) -> np.floating:
    return np.dtype(dtype).type(rng.choice([-np.inf, np.inf]))


def test_scores_are_right_in_rational_arithmetic() -> None:
    """Ranks agree with exact inner products wherever those differ by more than float64 can blur."""
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((3, 24)).astype(np.float32)
    pool = (rng.standard_normal((1, 24)) + 1e-6 * rng.standard_normal((50, 24))).astype(np.float32)
    relevant = relevant_of([[0], [7], [9]])
    exact = np.array([[sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(q, x, strict=True)) for x in pool]
                      for q in queries])  # fmt: skip
    expected = [1 + sum(exact[i, n] >= exact[i, c] for n in range(50) if n != c) for i, c in enumerate([0, 7, 9])]
    assert rank_queries(queries, candidate_pool([pool]), relevant).pool.tolist() == expected


def big_retrieval(levels: int | None, queries: int = 2 * BLOCK_QUERIES + 3, dim: int = 12) -> Retrieval:
    """Three languages, several blocks; vectors of a few whole numbers, so with many ties, or of normals."""
    rng = np.random.default_rng(11)

    def vectors(rows: int) -> FloatArray:
        values = rng.integers(-levels, levels + 1, (rows, dim)) if levels else rng.standard_normal((rows, dim))
        return values.astype(np.float32)

    sizes = [150, 1, 349]
    rows = [sorted(rng.choice(500, rng.integers(0, 6), replace=False).tolist()) for _ in range(queries)]
    return vectors(queries), [vectors(size) for size in sizes], relevant_of(rows)


def ranks_by_float64_product(retrieval: Retrieval) -> Ranks:
    """By sort, with scores of one product: exact for small whole numbers and without near ties for normals."""
    queries, candidates, relevant = retrieval
    scores = queries.astype(np.float64) @ np.concatenate(candidates).astype(np.float64).T
    return sorted_ranks(scores, [len(part) for part in candidates], relevant)


@pytest.mark.parametrize("levels", [1, 3, None])
def test_many_blocks(levels: int | None) -> None:
    """Ranks of several blocks equal a sort, with float64 vectors as with float32 and with any number of threads."""
    queries, candidates, relevant = big_retrieval(levels)
    expected = ranks_by_float64_product((queries, candidates, relevant))
    pool = candidate_pool(candidates)
    for threads in (1, 2, 5):
        assert_equal(rank_queries(queries, pool, relevant, threads=threads), expected)
    double = candidate_pool([part.astype(np.float64) for part in candidates])
    assert_equal(rank_queries(queries.astype(np.float64), double, relevant), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BLOCK_QUERIES", 7),
        ("TILE_COLUMNS", 64),
        ("TILE_COLUMNS", 1),
        ("UNDECIDED_SHARE", -1.0),  # always in float64
        ("UNDECIDED_SHARE", 2.0),  # never
    ],
)
@pytest.mark.parametrize("levels", [1, None])
def test_sizes_of_pieces_change_nothing(
    name: str, value: float, levels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks, tiles across and within languages, float32 or float64: the ranks are the same."""
    retrieval = big_retrieval(levels, queries=30)
    expected = ranks_by_float64_product(retrieval)
    monkeypatch.setattr(ranking, name, value)
    queries, candidates, relevant = retrieval
    assert_equal(rank_queries(queries, candidate_pool(candidates), relevant, threads=2), expected)


def test_blocks_ranked_elsewhere_join() -> None:
    """Blocks of `query_blocks` ranked one by one and joined give the ranks of all at once."""
    queries, candidates, relevant = big_retrieval(2)
    pool = candidate_pool(candidates)
    parts = []
    for block in query_blocks(len(queries)):
        offsets = relevant.offsets[block.start : block.stop + 1]
        of_block = Relevant(offsets - offsets[0], relevant.columns[offsets[0] : offsets[-1]])
        parts.append(rank_queries(queries[block], pool, of_block, threads=1))
    assert_equal(join_ranks(parts), rank_queries(queries, pool, relevant))


def test_hand_worked_ranks() -> None:
    """In the merged order 9 5 3 (3 3) 1 0 the two tied relevant candidates come last among the threes."""
    candidates = [np.array([[5.0], [3.0], [3.0], [1.0]]), np.array([[9.0], [3.0], [0.0]])]
    ranks = rank_queries(np.array([[1.0]]), candidate_pool(candidates), relevant_of([[2, 5]]))
    assert ranks.cell.tolist() == [3, 2]
    assert ranks.pool.tolist() == [4, 5]
    assert ranks.top.tolist() == [[4, 0, 1, 2, 5, 3, 6]]


def test_constant_scorer_gets_the_worst_ranks() -> None:
    """If all scores are equal the relevant candidates take the last ranks, in every cell and in the pool."""
    candidates = [np.ones((400, 3), dtype=np.float32), np.ones((600, 3), dtype=np.float32)]
    ranks = rank_queries(np.ones((70, 3), dtype=np.float32), candidate_pool(candidates), relevant_of([[0, 400]] * 70))
    assert ranks.cell.tolist() == [400, 600] * 70
    assert ranks.pool.tolist() == [999, 1000] * 70
    assert ranks.top[0].tolist() == list(range(1, 11))


def test_collapsed_encoder_is_still_exact() -> None:
    """Vectors that all but coincide, as of an encoder gone wrong, are ranked by what little tells them apart."""
    rng = np.random.default_rng(2)
    base = rng.standard_normal(64)
    candidates = [(base + 1e-7 * rng.standard_normal((300, 64))).astype(np.float32) for _ in range(2)]
    queries = (base + 1e-7 * rng.standard_normal((9, 64))).astype(np.float32)
    assert_ranks_by_sort((queries, candidates, relevant_of([[i, 300 + i] for i in range(9)])))


def test_copies_of_a_candidate_score_bitwise_equal() -> None:
    """A copy of the relevant candidate outranks it wherever it stands, for a -0.0 counts as a 0.0."""
    rng = np.random.default_rng(7)
    part = rng.standard_normal((1003, 384)).astype(np.float32)
    part[:, 0] = 0.0
    part[::17] = part[0]
    part[::34, 0] = -0.0
    copies = len(part[::17])
    queries = rng.standard_normal((40, 384)).astype(np.float32)
    ranks = rank_queries(queries, candidate_pool([part, part[::-1]]), relevant_of([[0]] * 40))
    better = queries.astype(np.float64) @ part.T.astype(np.float64) > queries.astype(np.float64) @ part[:1].T
    better[:, ::17] = False
    np.testing.assert_array_equal(ranks.cell, better.sum(axis=1) + copies)
    np.testing.assert_array_equal(ranks.pool, 2 * better.sum(axis=1) + 2 * copies)


@pytest.mark.parametrize("power", [-140, -17, -16, -1, 0, 1, 40])
def test_the_scale_of_vectors_changes_nothing(power: int) -> None:
    """Vectors times a power of two, scaled back for the float32 product or not, have the same ranks."""
    queries, candidates, relevant = big_retrieval(None, queries=40)
    expected = rank_queries(queries, candidate_pool(candidates), relevant)
    scaled = [np.ldexp(part.astype(np.float64), power) for part in (queries, *candidates)]
    assert_equal(rank_queries(scaled[0], candidate_pool(scaled[1:]), relevant), expected)
    if power > -120:  # in float32 smaller ones lose bits
        single = [part.astype(np.float32) for part in scaled]
        assert_equal(rank_queries(single[0], candidate_pool(single[1:]), relevant), expected)


def test_arrays_that_cannot_be_written_or_are_not_in_one_piece(tmp_path: Path) -> None:
    """Vectors from a file, from Ray's object store or in another order of memory give the same ranks and top."""
    queries, candidates, relevant = big_retrieval(None, queries=40)
    expected = rank_queries(queries, candidate_pool(candidates), relevant)
    np.save(tmp_path / "queries.npy", queries)
    mapped = np.load(tmp_path / "queries.npy", mmap_mode="r")
    fortran = [np.asfortranarray(part) for part in candidates]
    assert_equal(rank_queries(mapped, candidate_pool(fortran), relevant), expected)
    pool = candidate_pool(candidates)
    for array in (pool.vectors, pool.approximate, pool.starts, relevant.offsets, relevant.columns):
        array.flags.writeable = False
    assert_equal(rank_queries(np.asfortranarray(queries), pool, relevant), expected)


def test_scores_are_inner_products_as_given() -> None:
    """Vectors are not normalised: a longer candidate in the same direction ranks higher."""
    pool = candidate_pool([np.array([[1.0, 0.0], [2.0, 0.0]], dtype=np.float32)])
    query = np.array([[0.5, 9.0]], dtype=np.float32)
    assert rank_queries(query, pool, relevant_of([[0]])).cell.tolist() == [2]


def test_queries_without_relevant_candidates() -> None:
    """No relevant candidate, no rank; the top is still there. No query at all is no block."""
    pool = candidate_pool([np.array([[1.0], [2.0]])])
    ranks = rank_queries(np.array([[1.0], [-1.0]]), pool, relevant_of([[], []]))
    assert (ranks.cell.size, ranks.pool.size, ranks.top.tolist()) == (0, 0, [[1, 0], [0, 1]])
    empty = rank_queries(np.empty((0, 1)), pool, relevant_of([]))
    assert (empty.cell.shape, empty.top.shape) == ((0,), (0, 2))


@settings(deadline=None, max_examples=60)
@given(retrievals(TIES, "float32") | retrievals(HARSH, "float32"), st.data())
def test_top_candidates_equal_a_sort(retrieval: Retrieval, data: st.DataObject) -> None:
    """The best k of any depth, with their float64 scores, in the order in which they are ranked."""
    queries, candidates, relevant = retrieval
    pool = candidate_pool(candidates)
    k = data.draw(st.integers(1, len(pool.vectors)))
    columns, scores = top_candidates(queries, pool, relevant, k)
    expected = float64_scores(queries, candidates)
    for row, values in enumerate(expected):
        wanted = relevant.columns[relevant.offsets[row] : relevant.offsets[row + 1]]
        order = np.lexsort((np.arange(len(values)), np.isin(np.arange(len(values)), wanted), -values))[:k]
        np.testing.assert_array_equal(columns[row], order)
        np.testing.assert_array_equal(scores[row], values[order])


@pytest.mark.parametrize("k", [1, 10, 200, 500])
def test_top_candidates_of_a_larger_pool(k: int) -> None:
    """The bound that preselects leaves out none of the best k, and ranks agree with places."""
    queries, candidates, relevant = big_retrieval(2, queries=70)
    pool = candidate_pool(candidates)
    ranks = rank_queries(queries, pool, relevant)
    columns, scores = top_candidates(queries, pool, relevant, k)
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(columns[:, :10], ranks.top[:, :k])
    rows = np.repeat(np.arange(70), np.diff(relevant.offsets))
    for row, column, rank in zip(rows, relevant.columns, ranks.pool, strict=True):
        assert (rank <= k and columns[row, rank - 1] == column) or (rank > k and column not in columns[row])


def test_int64_everywhere() -> None:
    """Ranks, columns and scores have the stated types."""
    queries, candidates, relevant = big_retrieval(2, queries=3)
    ranks = rank_queries(queries, candidate_pool(candidates), relevant)
    columns, scores = top_candidates(queries, candidate_pool(candidates), relevant, 4)
    arrays_of: list[IntArray] = [*ranks, columns]
    assert all(array.dtype == np.int64 for array in arrays_of)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("queries", [0, 1, BLOCK_QUERIES - 1, BLOCK_QUERIES, 2 * BLOCK_QUERIES + 1])
def test_query_blocks_cover_every_query_once(queries: int) -> None:
    """No block is empty and none is larger than BLOCK_QUERIES."""
    rows = [list(range(queries)[block]) for block in query_blocks(queries)]
    assert [row for block in rows for row in block] == list(range(queries))
    assert all(1 <= len(block) <= BLOCK_QUERIES for block in rows)
