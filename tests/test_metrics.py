from __future__ import annotations

from math import log2

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from hbt_ray.evaluation.metrics import MEASURES, Judged, cell_measures, macro_average, query_measures

TREC_EVAL = {"mAP": "map", "R@1": "recall_1", "R@10": "recall_10", "R@100": "recall_100", "nDCG@10": "ndcg_cut_10"}


def judged(*queries: dict[int, int] | list[int]) -> Judged:
    """Rows of {rank: grade}, or of ranks whose grades are all 1."""
    rows = [query if isinstance(query, dict) else dict.fromkeys(query, 1) for query in queries]
    return from_pairs([list(row.items()) for row in rows])


def from_pairs(queries: list[list[tuple[int, int]]]) -> Judged:
    pairs = np.array([pair for query in queries for pair in query], dtype=np.int64).reshape(-1, 2)
    offsets = np.cumsum([0, *(len(query) for query in queries)])
    return Judged(offsets, pairs[:, 0], pairs[:, 1])


def trec_eval(queries: list[list[tuple[int, int]]], depth: int) -> dict[str, list[float]]:
    """The measures of trec_eval on runs of `depth` candidates; a relevant candidate of rank 0 is not in the run."""
    run, qrels = {}, {}
    for row, query in enumerate(queries):
        run[f"q{row}"] = {f"d{rank}": float(depth - rank) for rank in range(1, depth + 1)}
        qrels[f"q{row}"] = {f"d{rank}" if rank else f"unretrieved{n}": grade for n, (rank, grade) in enumerate(query)}
    results = pytrec_eval.RelevanceEvaluator(qrels, {"map", "recall.1,10,100", "ndcg_cut.10", "recip_rank"}).evaluate(
        run
    )
    values = {ours: [results[f"q{row}"][theirs] for row in range(len(queries))] for ours, theirs in TREC_EVAL.items()}
    reciprocal = [results[f"q{row}"]["recip_rank"] for row in range(len(queries))]
    return values | {"MRR@10": [value if value > 1 / 10.5 else 0.0 for value in reciprocal]}


@st.composite
def graded_queries(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], int]:
    """(rank, grade) of the relevant candidates of each query, in any order, some of them not retrieved; and a depth."""
    depth = draw(st.integers(12, 140))

    def query() -> list[tuple[int, int]]:
        ranks = draw(st.lists(st.integers(1, depth), unique=True, max_size=16))
        ranks += [0] * draw(st.integers(0 if ranks else 1, 3))
        return [(rank, draw(st.integers(1, 4))) for rank in draw(st.permutations(ranks))]

    return [query() for _ in range(draw(st.integers(1, 5)))], depth


@settings(deadline=None)
@given(graded_queries())
def test_measures_equal_trec_eval(retrieval: tuple[list[list[tuple[int, int]]], int]) -> None:
    """Every measure of every query is that of trec_eval, with graded relevance and relevance that is not retrieved."""
    queries, depth = retrieval
    ours = query_measures(from_pairs(queries))
    theirs = trec_eval(queries, depth)
    assert tuple(ours) == MEASURES
    assert set(theirs) == set(MEASURES)
    for name in MEASURES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9, err_msg=name)


def test_hand_worked_measures() -> None:
    """AP and R@k divide by all relevant candidates; MRR@10 is 0 when the first comes eleventh."""
    measures = query_measures(judged([4, 1], [20, 10, 5], [2, 0, 3], [11, 150]))
    expected = {
        "mAP": [(1 + 2 / 4) / 2, (1 / 5 + 2 / 10 + 3 / 20) / 3, (1 / 2 + 2 / 3) / 3, (1 / 11 + 2 / 150) / 2],
        "R@1": [1 / 2, 0, 0, 0],
        "R@10": [1, 2 / 3, 2 / 3, 0],
        "R@100": [1, 1, 2 / 3, 1 / 2],
        "MRR@10": [1, 1 / 5, 1 / 2, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measures[name], values, rtol=1e-15, err_msg=name)


def test_hand_worked_ndcg() -> None:
    """Gain is the grade itself, and the ideal holds every relevant candidate, retrieved or not, up to ten."""
    graded, deep, many = query_measures(judged({3: 1, 1: 2, 0: 3}, [11], list(range(2, 14))))["nDCG@10"]
    assert graded == pytest.approx((2 / log2(2) + 1 / log2(4)) / (3 / log2(2) + 2 / log2(3) + 1 / log2(4)), rel=1e-15)
    assert deep == 0
    ideal = sum(1 / log2(rank + 1) for rank in range(1, 11))
    assert many == pytest.approx((ideal - 1) / ideal, rel=1e-12)  # ranks 2 to 10 of the ideal ten


def test_the_perfect_ranking_scores_one() -> None:
    """Relevant candidates in front, by falling grade, make every measure 1 but R@k, which k relevant ones fill."""
    measures = query_measures(judged({1: 3, 2: 2, 3: 2, 4: 1}))
    np.testing.assert_allclose([measures[name][0] for name in MEASURES], [1, 1 / 4, 1, 1, 1, 1], rtol=1e-15)


def test_recall_at_1_of_eleven_translations_is_at_most_an_eleventh() -> None:
    """The trap of the merged pool: one candidate is first, and there are eleven."""
    assert query_measures(judged(list(range(1, 12))))["R@1"].tolist() == [1 / 11]


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_one_relevant_candidate_makes_ap_the_reciprocal_rank(ranks: list[int]) -> None:
    """In a cell with one relevant candidate AP is 1/rank, whatever the grade, and R@k is 0 or 1."""
    measures = query_measures(from_pairs([[(rank, 1 + rank % 3)] for rank in ranks]))
    assert measures["mAP"].tolist() == [1 / rank if rank else 0.0 for rank in ranks]
    assert measures["R@10"].tolist() == [float(1 <= rank <= 10) for rank in ranks]
    assert measures["MRR@10"].tolist() == [1 / rank if 1 <= rank <= 10 else 0.0 for rank in ranks]
    gains = [1 / log2(rank + 1) if 1 <= rank <= 10 else 0.0 for rank in ranks]
    np.testing.assert_allclose(measures["nDCG@10"], gains, rtol=1e-15)


def test_a_query_without_relevant_candidates_is_undefined() -> None:
    """It gets NaN, not a zero that would enter a mean unseen, and does not touch its neighbours."""
    alone = query_measures(judged([3, 7]))
    between = query_measures(judged([], [3, 7], [], []))
    for name in MEASURES:
        np.testing.assert_array_equal(between[name], [np.nan, alone[name][0], np.nan, np.nan])
    assert all(np.isnan(values).all() for values in query_measures(judged([], [])).values())


def test_no_queries_give_no_values() -> None:
    """An empty block has empty measures."""
    assert {name: values.shape for name, values in query_measures(judged()).items()} == dict.fromkeys(MEASURES, (0,))


def test_a_cell_is_the_mean_of_its_queries() -> None:
    """A cell measure is the plain mean over queries, as a Python float for JSON."""
    cell = cell_measures(query_measures(judged([1], [4])))
    assert cell["mAP"] == (1 + 1 / 4) / 2
    assert all(type(value) is float for value in cell.values())


def test_macro_average_counts_cells_not_queries() -> None:
    """A setting is the mean of its cells whatever their size, and None without a cell."""
    large, small = (cell_measures(query_measures(judged(*rows))) for rows in ([[1]] * 30, [[2]]))
    ndcg = (1 + 1 / log2(3)) / 2
    average = macro_average([large, small])
    assert average == pytest.approx(
        {"mAP": 0.75, "R@1": 0.5, "R@10": 1.0, "R@100": 1.0, "nDCG@10": ndcg, "MRR@10": 0.75}, rel=1e-15
    )
    assert macro_average([]) == dict.fromkeys(MEASURES)
