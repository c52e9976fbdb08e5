from __future__ import annotations

from itertools import combinations
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, friedmanchisquare, kruskal, spearmanr

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.bias import (
    QUERY_BIAS,
    SAMPLED_CANDIDATES,
    friedman,
    language_share,
    no_bias,
    peer,
    query_bias,
    question_blocks,
    rank_correlation,
    sampled_columns,
    summarise_bias,
)
from hbt_ray.evaluation.metrics import Judged

NAN = float("nan")


def assert_equal(measures: dict[str, NDArray[np.float64]], expected: dict[str, list[float]]) -> None:
    assert tuple(measures) == QUERY_BIAS
    for name, values in expected.items():
        np.testing.assert_allclose(measures[name], values, rtol=1e-15, err_msg=name)


# The document side


def test_hand_worked_query_bias() -> None:
    """Four queries of a pool of 201 candidates in three languages; the queries are in the first language."""
    ranks = np.array([[4, 1, 9], [64, 0, 16], [0, 5, 120], [20, 100, 21]])
    assert_equal(
        query_bias(ranks, 0, 201),
        {
            "rank_distance": [8, 48, 115, 80],
            "rank_distance_normalised": [8 / 200, 48 / 200, 115 / 200, 80 / 200],
            "rank_distance_log2": [log2(9), 2, log2(120) - log2(5), log2(100) - log2(20)],
            "max@R": [9, 64, 120, 100],
            "complete@20": [1, 0, 0, 0],
            "complete@100": [1, 1, 0, 1],
            "lpr": [1 / 2, 0, NAN, 1],
        },
    )


def test_one_relevant_language_has_no_bias() -> None:
    """With one language, or none, there is nothing to compare: NaN, not a distance of zero."""
    for values in query_bias(np.array([[7, 0], [0, 0]]), 0, 10).values():
        np.testing.assert_array_equal(values, [NAN, NAN])


def test_a_query_language_outside_the_pool_has_no_preference() -> None:
    """Queries in a language without candidates have distances but no LPR."""
    measures = query_bias(np.array([[7, 3]]), None, 10)
    np.testing.assert_array_equal(measures["lpr"], [NAN])
    assert measures["rank_distance"].tolist() == [4]


@settings(deadline=None)
@given(st.permutations(range(1, 31)), st.integers(2, 11), st.data())
def test_query_bias_equals_its_definition(order: list[int], languages: int, data: st.DataObject) -> None:
    """On any ranks the measures are what their words say, query by query."""
    ranks = [rank if data.draw(st.booleans()) else 0 for rank in order[:languages]]
    own = data.draw(st.integers(0, languages - 1))
    present = [rank for rank in ranks if rank]
    measures = {name: values[0] for name, values in query_bias(np.array([ranks]), own, 30).items()}
    if len(present) < 2:
        assert all(np.isnan(value) for value in measures.values())
        return
    assert measures["rank_distance"] == max(abs(a - b) for a, b in combinations(present, 2))
    assert 0 < measures["rank_distance_normalised"] <= 1
    assert 2 ** measures["rank_distance_log2"] == pytest.approx(max(present) / min(present))
    assert measures["max@R"] == next(depth for depth in range(31) if all(rank <= depth for rank in present))
    assert measures["complete@20"] == all(rank <= 20 for rank in present)
    if not ranks[own]:
        assert np.isnan(measures["lpr"])
    else:
        others = [rank for column, rank in enumerate(ranks) if rank and column != own]
        assert measures["lpr"] == sum(ranks[own] < rank for rank in others) / len(others)


def test_language_share() -> None:
    """Columns count for the language they belong to, over all queries; a language that never appears has share 0."""
    starts = np.array([0, 3, 4, 9, 12])
    shares = language_share(np.array([[0, 2, 3, 4], [1, 8, 2, 0]]), starts)
    assert shares.tolist() == [5 / 8, 1 / 8, 2 / 8, 0]


# Friedman


def test_question_blocks_average_the_query_languages_that_ask() -> None:
    """Rows are questions in order of appearance, columns candidate languages, values mean log2 ranks."""
    blocks = question_blocks(
        {"en": np.array([[1, 4], [8, 0]]), "de": np.array([[16, 1], [2, 0], [1, 2]])},
        {"en": ["a", "b"], "de": ["b", "c", "a"]},
    )
    np.testing.assert_array_equal(blocks, [[0, 1.5], [3.5, 0], [1, NAN]])


def test_question_blocks_tie_where_ranks_do() -> None:
    """Three query languages that give two candidate languages the same ranks in another order make a tie."""
    orders = [(2, 2), (5, 10), (10, 5)]
    blocks = question_blocks(
        {language: np.array([order]) for language, order in zip("abc", orders, strict=True)},
        {language: ["q"] for language in "abc"},
    )
    assert blocks[0, 0] == blocks[0, 1]


@settings(deadline=None)
@given(st.integers(3, 6), st.integers(2, 12), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_friedman_and_kendall(languages: int, questions: int, values: int, seed: int) -> None:
    """The test is scipy's on the complete rows alone, and W is the variance of rank sums over its largest value."""
    blocks = np.random.default_rng(seed).integers(0, values, (questions, languages)).astype(np.float64)
    if (blocks == blocks[:, :1]).all():
        return
    incomplete = np.full((1, languages), 3.0)
    incomplete[0, 1] = NAN
    test, reason = friedman(np.concatenate([incomplete, blocks, incomplete]))
    assert test is not None
    assert reason is None
    truth = friedmanchisquare(*blocks.T)
    assert test.statistic == pytest.approx(truth.statistic)
    assert test.p_value == pytest.approx(truth.pvalue)
    assert test.kendall_w == pytest.approx(kendall_w(blocks), abs=1e-9)
    assert test.questions == questions


def kendall_w(blocks: NDArray[np.float64]) -> float:
    """Kendall's W with the correction for ties, from ranks made by counting."""
    questions, languages = blocks.shape
    below = (blocks[:, None, :] < blocks[:, :, None]).sum(axis=2)
    equal = (blocks[:, None, :] == blocks[:, :, None]).sum(axis=2)
    sums = (below + (equal + 1) / 2).sum(axis=0)
    ties = sum(
        (np.unique(row, return_counts=True)[1] ** 3 - np.unique(row, return_counts=True)[1]).sum() for row in blocks
    )
    spread = ((sums - sums.mean()) ** 2).sum()
    return float(12 * spread / (questions**2 * (languages**3 - languages) - questions * ties))


def test_kendall_w_is_one_for_the_same_order_in_every_question() -> None:
    """Whatever the values, one order of languages throughout is full agreement, and cyclic orders are none."""
    same, _ = friedman(np.array([[1.0, 2, 3], [0.1, 0.2, 9], [5, 6, 7]]))
    cyclic, _ = friedman(np.array([[1.0, 2, 3], [2, 3, 1], [3, 1, 2]]))
    assert same is not None
    assert cyclic is not None
    assert (same.kendall_w, same.p_value) == (pytest.approx(1), pytest.approx(chi2.sf(6, 2)))
    assert (cyclic.kendall_w, cyclic.p_value) == (pytest.approx(0, abs=1e-12), pytest.approx(1))


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([[1.0, 2], [2, 1], [1, 2]], "three candidate languages, the pool has 2"),
        ([[1.0, 2, 3], [NAN, 1, 2]], "two questions that have every candidate language, there is 1"),
        ([[2.0, 2, 2], [7, 7, 7]], "ranks all candidate languages alike"),
    ],
)
def test_friedman_says_why_it_is_undefined(blocks: list[list[float]], why: str) -> None:
    """Too few languages, too few complete questions or nothing but ties give a reason, not a NaN."""
    test, reason = friedman(np.array(blocks))
    assert test is None
    assert reason is not None
    assert why in reason


# MRC


def test_rank_correlation_of_hand_worked_rankings() -> None:
    """Equal rankings correlate 1, opposite ones -1, whatever the scale of the scores."""
    scores = {"en": np.array([[0.1, 0.2, 0.9], [3, 2, 1]]), "de": np.array([[-5.0, 0, 70], [1, 2, 3]])}
    assert rank_correlation(scores, {"en": ["a", "b"], "de": ["a", "c"]})[0] == pytest.approx(1)
    assert rank_correlation(scores, {"en": ["a", "b"], "de": ["c", "b"]})[0] == pytest.approx(-1)
    mean, by_language = rank_correlation(scores, {"en": ["a", "b"], "de": ["a", "b"]})
    assert mean == pytest.approx(0, abs=1e-6)
    assert by_language == pytest.approx({"en": 0, "de": 0}, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from([2, 3, 1000]))
def test_rank_correlation_equals_spearman(seed: int, languages: int, values: int) -> None:
    """With ties or without, it is the mean of scipy's Spearman over all pairs of queries that ask one question."""
    generator = np.random.default_rng(seed)
    names = "abcd"[:languages]
    asked = {name: generator.permutation(6)[: generator.integers(1, 6)] for name in names}
    scores = {name: generator.integers(-values, values, (len(asked[name]), 9)) / 8 for name in names}
    pairs = [
        (first, second, spearmanr(scores[first][i], scores[second][j]).statistic)
        for first, second in combinations(names, 2)
        for i, question in enumerate(asked[first])
        for j, other in enumerate(asked[second])
        if question == other and np.ptp(scores[first][i]) > 0 and np.ptp(scores[second][j]) > 0
    ]
    mean, by_language = rank_correlation(scores, {name: [str(q) for q in asked[name]] for name in names})
    if not pairs:
        assert mean is None
    else:
        assert mean == pytest.approx(np.mean([value for *_, value in pairs]), abs=1e-6)
    truth = {name: [value for first, second, value in pairs if name in (first, second)] for name in names}
    assert by_language == pytest.approx({name: np.mean(own) for name, own in truth.items() if own}, abs=1e-6)


def test_rank_correlation_without_pairs_is_undefined() -> None:
    """One query language, no common question, or constant scores leave no pair of rankings."""
    ranked, constant = np.array([[1.0, 2, 3]]), np.array([[2.0, 2, 2]])
    assert rank_correlation({"en": ranked}, {"en": ["a"]}) == (None, {})
    assert rank_correlation({"en": ranked, "de": ranked}, {"en": ["a"], "de": ["b"]}) == (None, {})
    assert rank_correlation({"en": ranked, "de": constant}, {"en": ["a"], "de": ["a"]}) == (None, {})


def test_a_question_asked_twice_in_a_language_is_refused() -> None:
    """Which of the two would pair with the other language is not known."""
    scores = {"en": np.eye(3), "de": np.eye(3)}
    with pytest.raises(BenchmarkError, match="2 queries that ask question 'b'"):
        rank_correlation(scores, {"en": ["a", "b", "c"], "de": ["b", "a", "b"]})


def test_sampled_columns_are_even_over_languages() -> None:
    """Languages take turns until theirs are used up; the draw is fixed by its seed, sorted and without repeats."""
    starts = np.array([0, 1000, 1003, 1900, 5000])
    columns = sampled_columns(starts, 503, seed=4)
    counts = np.histogram(columns, starts)[0]
    assert counts.tolist() == [167, 3, 167, 166]
    assert (np.diff(columns) > 0).all()
    assert (columns == sampled_columns(starts, 503, seed=4)).all()
    assert (columns != sampled_columns(starts, 503, seed=5)).any()


def test_a_small_pool_is_sampled_whole() -> None:
    """Where the pool is not larger than the sample, nothing is left out."""
    assert sampled_columns(np.array([0, 5, 9]), 9).tolist() == list(range(9))
    assert sampled_columns(np.array([0, 5, 9])).tolist() == list(range(9))


def parallel_retrieval(seed: int) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64], NDArray[np.int64]]:
    """Queries [60, 32] of three languages that share a question's meaning, a pool of 4 x 2,000, and its starts."""
    generator = np.random.default_rng(seed)
    meaning = generator.standard_normal((60, 32))
    accent = {language: generator.standard_normal(32) for language in ("en", "de", "th")}
    queries = {language: meaning + accent[language] + generator.standard_normal(meaning.shape) for language in accent}
    pool = generator.standard_normal((8000, 32)) + np.repeat(generator.standard_normal((4, 32)), 2000, axis=0)
    return queries, pool, np.arange(0, 8001, 2000)


def test_the_sample_gives_the_correlation_of_the_full_pool() -> None:
    """500 of 8,000 candidates estimate MRC without bias and with a standard error below 0.01."""
    queries, pool, starts = parallel_retrieval(seed=11)
    questions = {language: [str(row) for row in range(60)] for language in queries}
    full, _ = rank_correlation({language: vectors @ pool.T for language, vectors in queries.items()}, questions)
    sampled = []
    for seed in range(20):
        part = pool[sampled_columns(starts, SAMPLED_CANDIDATES, seed)]
        scores = {language: vectors @ part.T for language, vectors in queries.items()}
        sampled.append(rank_correlation(scores, questions)[0])
    errors = np.array(sampled, dtype=np.float64) - full
    assert 0.2 < full < 0.9  # neither trivial end
    assert 0 < errors.std(ddof=1) < 0.01
    assert abs(errors.mean()) < 3 * errors.std(ddof=1) / np.sqrt(len(errors))


# PEER


def test_hand_worked_peer() -> None:
    """Two languages of three candidates each, all of the one before all of the other: scipy's Kruskal-Wallis test."""
    values, reason = peer(
        Judged(np.array([0, 6]), np.array([1, 40, 2, 50, 7, 60]), np.ones(6, dtype=np.int64)),
        np.array([0, 1, 0, 1, 0, 1]),
    )
    assert reason is None
    assert values.tolist() == pytest.approx([kruskal([1, 2, 7], [40, 50, 60]).pvalue])
    assert values.tolist() == pytest.approx([chi2.sf(27 / 7, 1)])  # H = 12 / (6 * 7) * 3 * (1.5**2 + 1.5**2)


def test_peer_refuses_one_candidate_per_language() -> None:
    """There the p-value would be a constant: chi2.sf(10, 10) = .4405 for the best and the worst ranking of eleven."""
    language = np.arange(11)
    offsets, grades = np.array([0, 11]), np.ones(11, dtype=np.int64)
    for ranks in (np.arange(1, 12), np.arange(1, 12) ** 3, np.arange(12, 1, -1)):
        values, reason = peer(Judged(offsets, ranks, grades), language)
        assert np.isnan(values).all()
        assert reason is not None
        assert "a constant, chi2.sf(L - 1, L - 1)" in reason
        assert (
            kruskal(*[[rank] for rank in ranks]).pvalue
            == pytest.approx(chi2.sf(10, 10))
            == pytest.approx(0.4405, abs=1e-4)
        )


@st.composite
def judged_rows(draw: st.DrawFn) -> list[list[tuple[int, int, int]]]:
    """(rank, grade, language) of the relevant candidates of each query, some not retrieved."""

    def query() -> list[tuple[int, int, int]]:
        ranks = draw(st.lists(st.integers(1, 40), unique=True, max_size=14)) + [0] * draw(st.integers(0, 4))
        return [(rank, draw(st.integers(1, 2)), draw(st.integers(0, 2))) for rank in draw(st.permutations(ranks))]

    return [query() for _ in range(draw(st.integers(1, 4)))]


@settings(deadline=None)
@given(judged_rows())
def test_peer_equals_kruskal_wallis(rows: list[list[tuple[int, int, int]]]) -> None:
    """Per query the mean, over grades that count, of scipy's p-value; what was not retrieved ties at the end."""
    flat = np.array([entry for row in rows for entry in row], dtype=np.int64).reshape(-1, 3)
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    values, reason = peer(Judged(offsets, flat[:, 0], flat[:, 1]), flat[:, 2])
    expected = [kruskal_by_grade(row) for row in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert (reason is None) == (not np.isnan(expected).all())


def kruskal_by_grade(row: list[tuple[int, int, int]]) -> float:
    p_values = []
    for wanted in (1, 2):
        groups = [[rank or 99 for rank, grade, own in row if (grade, own) == (wanted, n)] for n in range(3)]
        if sum(len(group) >= 2 for group in groups) < 2:
            continue
        ranks = [rank for group in groups for rank in group]
        p_values.append(kruskal(*filter(None, groups)).pvalue if len(set(ranks)) > 1 else 1.0)
    return float(np.mean(p_values)) if p_values else NAN


# The summary


def bias_of(ranks: dict[str, list[list[int]]], columns: dict[str, int]) -> dict[str, dict[str, NDArray[np.float64]]]:
    return {language: query_bias(np.array(rows), columns[language], 100) for language, rows in ranks.items()}


def test_summary_averages_queries_then_languages() -> None:
    """Languages weigh the same whatever their number of queries; undefined queries and languages are left out."""
    ranks = {"en": [[1, 3, 2], [10, 14, 11], [5, 0, 0]], "de": [[10, 1, 10]], "th": [[0, 0, 7]]}
    questions = {"en": ["a", "b", "c"], "de": ["a"], "th": ["c"]}
    bias = summarise_bias(
        bias_of(ranks, {"en": 0, "de": 1, "th": 2}),
        blocks=question_blocks({language: np.array(rows) for language, rows in ranks.items()}, questions),
        correlation=0.25,
        peers={language: (np.full(len(rows), NAN), "why") for language, rows in ranks.items()},
        shares={"en": {"en": 0.75, "de": 0.25}},
    )
    assert bias["rank_distance"] == (3 + 9) / 2
    assert bias["by_query_language"]["rank_distance"] == {"en": 3.0, "de": 9.0, "th": None}
    assert bias["by_query_language"]["lpr"] == {"en": 1.0, "de": 1.0, "th": None}
    assert bias["queries"] == 3
    assert bias["mrc"] == 0.25
    assert bias["language_share@10"] == {"en": {"en": 0.75, "de": 0.25}}
    test, _ = friedman(np.array([[log2(10) / 2, log2(3) / 2, log2(20) / 2], [log2(10), log2(14), log2(11)]]))
    assert test is not None
    assert (bias["kendall_w"], bias["friedman_p"]) == (test.kendall_w, test.p_value)
    assert bias["peer"] is None
    assert set(bias["undefined"]) == {"peer"}


def test_summary_gives_a_reason_for_everything_undefined() -> None:
    """A pool of one language has no bias: every value None, each with its reason."""
    ranks = {"en": [[1], [4]]}
    bias = summarise_bias(
        bias_of(ranks, {"en": 0}),
        blocks=question_blocks({"en": np.array(ranks["en"])}, {"en": ["a", "b"]}),
        correlation=None,
        peers={"en": (np.full(2, NAN), "why")},
        shares={"en": {"en": 1.0}},
    )
    values = (*QUERY_BIAS, "kendall_w", "friedman_p", "mrc", "peer")
    assert [bias[name] for name in values] == [None] * len(values)
    assert set(bias["undefined"]) == set(values)
    assert bias["queries"] == 0
    assert "the pool has 1" in bias["undefined"]["kendall_w"]


def test_summary_averages_peer_where_it_is_defined() -> None:
    """PEER is averaged like the rest, over the queries and languages that have it."""
    ranks = {"en": [[1, 3], [2, 9]], "de": [[3, 1]], "th": [[4, 6]]}
    bias = summarise_bias(
        bias_of(ranks, {"en": 0, "de": 1, "th": 1}),
        blocks=np.array([[1.0, 2], [2, 1]]),
        correlation=0.5,
        peers={"en": (np.array([0.2, NAN]), None), "de": (np.array([0.6]), None), "th": (np.array([NAN]), "why")},
        shares={},
    )
    assert bias["peer"] == pytest.approx(0.4)
    assert set(bias["undefined"]) == {"kendall_w", "friedman_p"}


def test_no_bias_has_the_shape_of_a_summary() -> None:
    """Readers of metrics.json find the same names whether or not there is a merged pool."""
    summary = summarise_bias(
        bias_of({"en": [[1, 2]]}, {"en": 0}),
        blocks=np.array([[0.0, 1.0]]),
        correlation=None,
        peers={"en": (np.array([NAN]), "why")},
        shares={},
    )
    absent = no_bias("no merged pool")
    assert list(absent) == list(summary)
    assert {name for name, value in absent.items() if value is None} == set(absent["undefined"])
    assert set(absent["undefined"].values()) == {"no merged pool"}
