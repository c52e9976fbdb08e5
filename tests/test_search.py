"""Search of shards to a depth against full-depth ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbt_ray.errors import ConfigError, EmbeddingError, ResourceError
from hbt_ray.evaluation.ranking import FloatArray, Relevant, Top, candidate_pool, rank_queries, top_candidates
from hbt_ray.evaluation.search import Found, Shard, found_in, merge_tops, ranks_in, search_shard, search_shards

faiss = pytest.importorskip("faiss", reason="the extra hbt_ray[cpu] is not installed")

Retrieval = tuple[FloatArray, list[FloatArray], Relevant]


def retrieval(seed: int, levels: int | None, *, sizes: tuple[int, ...] = (90, 1, 159), dim: int = 6) -> Retrieval:
    """Languages of `sizes`; vectors of a few whole numbers, so with many ties and copies, or of normals."""
    rng = np.random.default_rng(seed)

    def vectors(rows: int) -> FloatArray:
        values = rng.integers(-levels, levels + 1, (rows, dim)) if levels else rng.standard_normal((rows, dim))
        return values.astype(np.float32)

    rows = [np.sort(rng.choice(sum(sizes), rng.integers(0, 6), replace=False)) for _ in range(23)]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return vectors(len(rows)), [vectors(size) for size in sizes], Relevant(offsets, np.concatenate(rows))


def shards_of(candidates: list[FloatArray], size: int) -> list[Shard]:
    starts = np.cumsum([0, *map(len, candidates)])
    return [
        Shard(language, part[at : at + size].astype(np.float32), int(starts[language]) + at)
        for language, part in enumerate(candidates)
        for at in range(0, len(part), size)
    ]


def assert_equals_full_depth(found: Found, queries: FloatArray, candidates: list[FloatArray], relevant: Relevant,
                             depth: int) -> None:  # fmt: skip
    """Ranks are those of full depth, 0 beyond the depth; lists are the best of the merged pool."""
    pool = candidate_pool(candidates)
    full = rank_queries(queries, pool, relevant)
    for got, want in ((found.ranks.cell, full.cell), (found.ranks.pool, full.pool)):
        np.testing.assert_array_equal(got, np.where(want <= depth, want, 0))
    np.testing.assert_array_equal(found.ranks.top, full.top)
    columns, scores = top_candidates(queries, pool, relevant, min(depth, len(pool.vectors)))
    np.testing.assert_array_equal(found.columns, columns)
    np.testing.assert_array_equal(found.scores, scores)


def search_here(queries: FloatArray, shards: list[Shard], relevant: Relevant, depth: int, slack: int) -> Found:
    """What `search_shards` does, without Ray."""
    tops: dict[int, Top] = {}
    for shard in shards:
        top = search_shard(queries, shard, relevant, depth, slack=slack)
        known = tops.get(shard.language)
        tops[shard.language] = top if known is None else merge_tops([known, top], relevant, depth)
    return found_in(tops, relevant, depth)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([None, 1, 2]),
    size=st.sampled_from([7, 40, 500]),
    depth=st.sampled_from([10, 13, 60, 1000]),
    slack=st.sampled_from([0, 1, 32]),
    double=st.booleans(),
)
def test_shards_equal_full_depth(
    seed: int, levels: int | None, size: int, depth: int, slack: int, double: bool
) -> None:
    """Whatever the shards, the depth, the slack and the ties at the cut, ranks and lists are those of full depth."""
    queries, candidates, relevant = retrieval(seed, levels)
    queries = queries.astype(np.float64 if double else np.float32)
    found = search_here(queries, shards_of(candidates, size), relevant, depth, slack)
    assert_equals_full_depth(found, queries, candidates, relevant, depth)


def test_a_tie_across_the_cut_goes_against_the_relevant_candidate() -> None:
    """A hundred copies of one vector, one of them relevant: it is last of them, so beyond a depth of 50."""
    candidates = np.ones((100, 4), dtype=np.float32)
    relevant = Relevant(np.array([0, 1]), np.array([0]))
    queries = np.ones((1, 4), dtype=np.float32)
    shards = shards_of([candidates], 30)
    assert search_here(queries, shards, relevant, 50, slack=5).ranks.pool.tolist() == [0]
    assert search_here(queries, shards, relevant, 100, slack=5).ranks.pool.tolist() == [100]


@pytest.mark.parametrize("depth", [10, 25])
def test_near_ties_below_float32_rounding(depth: int) -> None:
    """FAISS cannot tell candidates apart that differ in a last bit; the ranks do."""
    rng = np.random.default_rng(4)
    part = np.repeat(rng.standard_normal((1, 96)).astype(np.float32), 300, axis=0)
    places = rng.integers(0, 96, 300)
    part[np.arange(300), places] = np.nextafter(part[np.arange(300), places], np.float32(9))
    queries = part[:9] + 0.01 * rng.standard_normal((9, 96)).astype(np.float32)
    relevant = Relevant(np.arange(10), rng.integers(0, 300, 9))
    for slack in (0, 40):
        found = search_here(queries, shards_of([part], 120), relevant, depth, slack)
        assert_equals_full_depth(found, queries, [part], relevant, depth)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_numbers_beyond_a_float32_product(scale: float) -> None:
    """Vectors whose float32 products overflow or vanish are still ranked by their float64 scores."""
    queries, candidates, relevant = retrieval(3, None)
    queries, candidates = queries * np.float32(scale), [part * np.float32(scale) for part in candidates]
    found = search_here(queries, shards_of(candidates, 60), relevant, 12, slack=3)
    assert_equals_full_depth(found, queries, candidates, relevant, 12)


def test_most_queries_do_not_need_the_whole_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ties the answer of FAISS is certain, and no query is scored against the whole shard."""
    queries, candidates, relevant = retrieval(5, None, sizes=(2000,), dim=64)

    def refuse(*_: object, **__: object) -> Top:
        raise AssertionError("scored the whole shard")

    monkeypatch.setattr("hbt_ray.evaluation.search.top_candidates", refuse)
    columns, scores = search_shard(queries, Shard(0, candidates[0], 0), relevant, 100)
    expected = np.sort(queries.astype(np.float64) @ candidates[0].T.astype(np.float64), axis=1)[:, :-101:-1]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert columns.shape == (len(queries), 100)


def test_ranks_in_lists() -> None:
    """Places of relevant candidates, zero where they are not listed."""
    relevant = Relevant(np.array([0, 2, 2, 3]), np.array([4, 9, 1]))
    columns = np.array([[9, 3], [4, 9], [5, 1]])
    assert ranks_in(columns, relevant).tolist() == [0, 1, 2]


def test_wrong_shards_are_refused(tmp_path: Path) -> None:
    """A shard of another dimension or precision is named, with what was expected."""
    np.save(tmp_path / "shard.npy", np.ones((3, 5), dtype=np.float64))
    relevant = Relevant(np.zeros(2, dtype=np.int64), np.empty(0, dtype=np.int64))
    for vectors in (np.ones((3, 4), dtype=np.float32), tmp_path / "shard.npy"):
        with pytest.raises(EmbeddingError, match=r"shard at column 7: got float.*expected float32 \[n, 5\]"):
            search_shard(np.ones((1, 5), dtype=np.float32), Shard(0, vectors, 7), relevant, 10)


@pytest.mark.parametrize(("shards", "depth", "actors"), [(0, 10, 1), (1, 9, 1), (1, 10, 0)])
def test_impossible_searches_are_refused(shards: int, depth: int, actors: int) -> None:
    """No shard, a depth that the measures do not get along with, no actor."""
    relevant = Relevant(np.zeros(2, dtype=np.int64), np.empty(0, dtype=np.int64))
    shard = Shard(0, np.ones((3, 2), dtype=np.float32), 0)
    with pytest.raises(ConfigError):
        search_shards(np.ones((1, 2), dtype=np.float32), [shard] * shards, relevant, depth, actors)


def test_missing_faiss_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FAISS the error says what to install."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    relevant = Relevant(np.zeros(2, dtype=np.int64), np.empty(0, dtype=np.int64))
    shard = Shard(0, np.ones((3, 2), dtype=np.float32), 0)
    with pytest.raises(ResourceError, match=r"hbt_ray\[cpu\].*hbt_ray\[gpu\]"):
        search_shards(np.ones((1, 2), dtype=np.float32), [shard], relevant, 10, 1)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_two_actors_search_files_of_shards(tmp_path: Path) -> None:
    """Shards on disk, searched by two actors in any order, give the ranks and lists of full depth."""
    queries, candidates, relevant = retrieval(8, 2)
    shards = []
    for shard in shards_of(candidates, 40):
        path = tmp_path / f"{shard.start}.npy"
        np.save(path, shard.vectors)
        shards.append(shard._replace(vectors=str(path)))
    found = search_shards(queries, shards, relevant, 20, actors=2)
    assert_equals_full_depth(found, queries, candidates, relevant, 20)
