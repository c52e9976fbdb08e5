"""Language bias of a multilingual ranking: how much the language of a text, not its meaning, decides its place.

Seen from the candidates: how far apart one query ranks passages that say the same in different languages. Seen from
the queries: how differently one question, asked in several languages, ranks the same candidates.

Q queries of one language, L candidate languages, M relevant (query, candidate) pairs, all ranks 1-based and in the
merged pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, friedmanchisquare, rankdata

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.counting import spread_ranks
from hbt_ray.evaluation.metrics import FloatArray, IntArray, Judged

COMPLETE_DEPTHS = (20, 100)
QUERY_BIAS = (
    "rank_distance",
    "rank_distance_normalised",
    "rank_distance_log2",
    "max@R",
    *(f"complete@{depth}" for depth in COMPLETE_DEPTHS),
    "lpr",
)
SAMPLED_CANDIDATES = 500
_COLUMN_BITS = 29  # of a float64 that a float32 leaves free


class Friedman(NamedTuple):
    """Whether candidate languages are ranked alike.

    Args:
        statistic: Friedman's chi-square, corrected for ties.
        p_value: of the hypothesis that no language is ranked better than another.
        kendall_w: size of the effect, 0 (no language preferred) to 1 (the same order of languages in every question).
        questions: complete blocks that entered.
    """

    statistic: float
    p_value: float
    kendall_w: float
    questions: int


def query_bias(pool_ranks: IntArray, query_column: int | None, pool_size: int) -> dict[str, FloatArray]:
    """Every measure of QUERY_BIAS, per query, each float64 [Q]; NaN where it is undefined.

    With best and worst the smallest and largest of a query's ranks over languages:

    - rank_distance: worst - best, in ranks (arXiv 2408.10536, after Huang et al., SIGIR 2023).
    - rank_distance_normalised: the same divided by pool_size - 1, its largest possible value.
    - rank_distance_log2: log2(worst) - log2(best), in doublings of the rank.
    - max@R: worst, the depth at which every language has been met (arXiv 2604.05684).
    - complete@k: 1.0 if worst <= k, else 0.0 (arXiv 2604.05684).
    - lpr: share of the other languages that rank below the query's own language (MLAIRE, arXiv 2605.07249).

    Args:
        pool_ranks: int64 [Q, L], rank of the best relevant candidate of each language; 0 where a language has none,
            or none within the depth of the search.
        query_column: which column is the language of the queries; None if the pool lacks that language.
        pool_size: number of candidates in the pool.

    A query with a rank in fewer than two languages has no bias; lpr also needs one in the query's own language.
    """
    present = pool_ranks > 0
    compared = present.sum(axis=1) >= 2
    worst = np.where(compared, pool_ranks.max(axis=1), np.nan)
    best = np.where(compared, np.where(present, pool_ranks, np.iinfo(np.int64).max).min(axis=1), np.nan)
    return {
        "rank_distance": worst - best,
        "rank_distance_normalised": (worst - best) / max(pool_size - 1, 1),
        "rank_distance_log2": np.log2(worst) - np.log2(best),
        "max@R": worst,
        **{f"complete@{depth}": np.where(compared, worst <= depth, np.nan) for depth in COMPLETE_DEPTHS},
        "lpr": _language_preference(pool_ranks, query_column),
    }


def language_share(top: IntArray, starts: IntArray) -> FloatArray:
    """Share of each language among the first K candidates, the mean over queries, float64 [L]; sums to 1.

    Args:
        top: int64 [Q, K], pool columns of the first K candidates; at least one query and one candidate.
        starts: int64 [L + 1], language l has the columns starts[l]:starts[l + 1].
    """
    languages = np.searchsorted(starts, top.ravel(), side="right") - 1
    return np.bincount(languages, minlength=len(starts) - 1) / top.size


def question_blocks(ranks_by_language: Mapping[str, IntArray], questions: Mapping[str, Sequence[str]]) -> FloatArray:
    """Mean log2 rank of each candidate language for each question, float64 [questions, L].

    The mean is over the query languages that ask the question and have a rank there; NaN if none has. Logarithms,
    because a mean of ranks is that of the few deep ones. Questions stand in order of first appearance.

    Args:
        ranks_by_language: query language -> pool_ranks [Q, L] of `query_bias`.
        questions: query language -> the question of each query, equal for translations of one question.
    """
    numbers = _question_numbers({language: questions[language] for language in ranks_by_language})
    question, count = np.concatenate(list(numbers.values())), _count(numbers)
    ranks = np.concatenate(list(ranks_by_language.values()))
    present = ranks > 0
    logarithms = np.log2(np.where(present, ranks, 1))
    blocks = np.full((count, ranks.shape[1]), np.nan)
    for column in range(ranks.shape[1]):
        totals = np.bincount(question, weights=logarithms[:, column], minlength=count)
        known = np.bincount(question, weights=present[:, column], minlength=count)
        np.divide(totals, known, out=blocks[:, column], where=known > 0)
    return blocks.round(9)  # the same ranks added up in another order must tie


def friedman(ranks_by_question: FloatArray) -> tuple[Friedman | None, str | None]:
    """Friedman's test and Kendall's W with questions as blocks and candidate languages as treatments.

    One block per question, however many query languages ask it, since translations of a question are not independent.

    Args:
        ranks_by_question: float64 [questions, L], lower is better, NaN where a question lacks a language, as
            `question_blocks` gives them. Only complete rows enter.

    Returns:
        The test; or None and why: fewer than three languages, fewer than two complete questions, nothing but ties.
    """
    complete = ranks_by_question[~np.isnan(ranks_by_question).any(axis=1)]
    questions, languages = complete.shape
    if languages < 3:
        return None, f"the Friedman test needs three candidate languages, the pool has {languages}"
    if questions < 2:
        return None, f"the Friedman test needs two questions that have every candidate language, there is {questions}"
    if (complete == complete[:, :1]).all():
        return None, "every question ranks all candidate languages alike, so the Friedman test has nothing to order"
    test = friedmanchisquare(*complete.T)
    statistic = float(test.statistic)
    return Friedman(statistic, float(test.pvalue), statistic / (questions * (languages - 1)), questions), None


def sampled_columns(starts: IntArray, size: int = SAMPLED_CANDIDATES, seed: int = 0) -> IntArray:
    """Sorted pool columns for `rank_correlation`, int64 [min(size, N)]: a fixed draw, even over languages.

    Languages take turns, each drawing from its own candidates until it has none left, so a pool that is not larger
    than `size` is taken whole.

    Args:
        starts: int64 [L + 1], language l has the columns starts[l]:starts[l + 1].
        size: how many candidates to draw at most.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    sizes = np.diff(starts)
    columns = np.concatenate([start + generator.permutation(n) for start, n in zip(starts, sizes, strict=False)])
    turns = np.concatenate([np.arange(n) for n in sizes])
    return np.sort(columns[np.argsort(turns, kind="stable")[:size]])


def rank_correlation(
    scores: Mapping[str, NDArray[np.floating[Any]]], questions: Mapping[str, Sequence[str]]
) -> tuple[float | None, dict[str, float]]:
    """MRC: the mean Spearman correlation of the rankings that one question gets in two languages (arXiv 2509.06195).

    The mean is over all pairs of queries in two languages that ask one question. A query that gives every candidate
    the same score has no ranking and is left out.

    Args:
        scores: query language -> scores [Q, S] of the same S candidates, higher is better; equal scores take the
            mean of their ranks. Compared in float32.
        questions: query language -> the question of each query, at most once in a language.

    Returns:
        The mean, None without a pair, and the mean over the pairs that a query language takes part in, without the
        languages that take part in none.

    Raises:
        BenchmarkError: a language asks a question twice.
    """
    _check_asked_once(questions)
    rows = _question_numbers({language: questions[language] for language in scores})
    with ThreadPoolExecutor() as workers:  # sorting does not hold the interpreter's lock
        rankings = dict(zip(scores, workers.map(_unit_rankings, scores.values()), strict=True))
    ranked = {language: ranking.any(axis=1) for language, ranking in rankings.items()}
    asked = np.zeros(_count(rows), dtype=np.int64)
    sums = np.zeros((_count(rows), next(iter(rankings.values())).shape[1]), dtype=np.float32)
    for language, ranking in rankings.items():
        asked[rows[language]] += ranked[language]
        sums[rows[language]] += ranking

    totals, pairs = {}, {}
    for language, ranking in rankings.items():
        # The inner product of two unit rankings is their Spearman correlation, and 1 for a ranking and itself.
        with_itself = int(ranked[language].sum())
        totals[language] = float(np.vdot(sums[rows[language]], ranking)) - with_itself
        pairs[language] = int(asked[rows[language][ranked[language]]].sum()) - with_itself
    by_language = {language: totals[language] / pairs[language] for language in rankings if pairs[language]}
    return (sum(totals.values()) / sum(pairs.values()) if by_language else None), by_language


def peer(judged: Judged, language: IntArray) -> tuple[FloatArray, str | None]:
    """PEER, the probability of equal expected rank, per query (Yang et al., SIGIR 2024).

    For each grade the p-value of the Kruskal-Wallis test (ties corrected, chi-square approximation) that the ranks of
    the candidates of that grade come from one distribution whatever their language; the mean over grades. 1 is fair.
    Candidates that were not retrieved tie behind all others; where all tie the p-value is 1.

    A grade counts where two languages or more have two candidates of it or more. With one candidate per language the
    statistic is always L - 1 and the p-value chi2.sf(L - 1, L - 1), whatever the ranking, so no number is given.

    Args:
        judged: ranks and grades of the relevant candidates of Q queries.
        language: int64 [M], candidate language of each.

    Returns:
        float64 [Q], NaN for a query without a grade that counts; and why, if that is every query.
    """
    queries = len(judged.offsets) - 1
    # a test is a query and a grade, a group the candidates of one language in a test
    grades = judged.grades.max(initial=0) + 1
    languages = language.max(initial=0) + 1
    tests, test = np.unique(judged.rows * grades + judged.grades, return_inverse=True)
    groups, group = np.unique(test * languages + language, return_inverse=True)
    test_of_group = groups // languages
    counts = np.bincount(test_of_group, weights=np.bincount(group) >= 2, minlength=len(tests)) >= 2
    if not counts.any():
        return np.full(queries, np.nan), _NO_PEER

    p_values = _kruskal_wallis(_ranks_within(test, judged.ranks), test, group, test_of_group)
    query = tests[counts] // grades
    totals = np.bincount(query, weights=p_values[counts], minlength=queries)
    counted = np.bincount(query, minlength=queries)
    return np.divide(totals, counted, out=np.full(queries, np.nan), where=counted > 0), None


def summarise_bias(
    per_query: Mapping[str, Mapping[str, FloatArray]],
    *,
    blocks: FloatArray,
    correlation: float | None,
    peers: Mapping[str, tuple[FloatArray, str | None]],
    shares: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The language bias of a benchmark: means over queries, then over query languages, each counting once.

    Args:
        per_query: query language -> `query_bias` of its queries.
        blocks: `question_blocks`, for the Friedman test.
        correlation: the mean of `rank_correlation`; None if no two languages share a question.
        peers: query language -> `peer` of its queries.
        shares: query language -> candidate language -> `language_share`.

    Returns:
        Each of QUERY_BIAS, kendall_w, friedman_p, mrc and peer, a float or None; `undefined`, name -> why it is None;
        `queries`, how many have a rank distance; `by_query_language`, name of QUERY_BIAS -> query language -> mean or
        None; `language_share@10`.
    """
    by_language = {
        name: {language: _mean_defined(measures[name]) for language, measures in per_query.items()}
        for name in QUERY_BIAS
    }
    values = {name: _mean_of_languages(means.values()) for name, means in by_language.items()}
    undefined = {name: _NO_PREFERENCE if name == "lpr" else _NO_COMPARISON for name in values if values[name] is None}
    test, reason = friedman(blocks)
    values |= {"kendall_w": test.kendall_w if test else None, "friedman_p": test.p_value if test else None}
    if reason:
        undefined |= {"kendall_w": reason, "friedman_p": reason}
    values["mrc"] = correlation
    if correlation is None:
        undefined["mrc"] = _NO_PARALLEL_QUERIES
    values["peer"] = _mean_of_languages(_mean_defined(of_queries) for of_queries, _ in peers.values())
    if values["peer"] is None:
        undefined["peer"] = _NO_PEER
    return {
        **values,
        "queries": sum(int((~np.isnan(measures["rank_distance"])).sum()) for measures in per_query.values()),
        "undefined": undefined,
        "by_query_language": by_language,
        "language_share@10": {language: dict(share) for language, share in shares.items()},
    }


def no_bias(reason: str) -> dict[str, Any]:
    """What `summarise_bias` gives for a benchmark without a merged pool: every measure None, for this reason."""
    values: dict[str, float | None] = dict.fromkeys((*QUERY_BIAS, "kendall_w", "friedman_p", "mrc", "peer"))
    return {
        **values,
        "queries": 0,
        "undefined": dict.fromkeys(values, reason),
        "by_query_language": {name: {} for name in QUERY_BIAS},
        "language_share@10": {},
    }


_NO_COMPARISON = "no query has a relevant candidate in two languages of the pool"
_NO_PREFERENCE = "no query has a relevant candidate in its own language and in another"
_NO_PARALLEL_QUERIES = "no question is asked in two languages, or every query gives all candidates the same score"
_NO_PEER = (
    "no query has two relevant candidates of one grade in each of two languages; with one per language the "
    "Kruskal-Wallis p-value is a constant, chi2.sf(L - 1, L - 1) for L languages, whatever the ranking"
)


def _language_preference(pool_ranks: IntArray, query_column: int | None) -> FloatArray:
    """Share [Q] of the other languages' candidates that rank below that of `query_column`."""
    shares = np.full(len(pool_ranks), np.nan)
    if query_column is None:
        return shares
    own = pool_ranks[:, [query_column]]
    others = (pool_ranks > 0).sum(axis=1) - 1  # its own is not among the others
    np.divide((pool_ranks > own).sum(axis=1), others, out=shares, where=(own[:, 0] > 0) & (others > 0))
    return shares


def _question_numbers(questions: Mapping[str, Sequence[str]]) -> dict[str, IntArray]:
    """Query language -> number of the question of each query, counted from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return {
        language: np.array([numbers.setdefault(question, len(numbers)) for question in asked], dtype=np.int64)
        for language, asked in questions.items()
    }


def _count(numbers: Mapping[str, IntArray]) -> int:
    return 1 + max(int(values.max(initial=-1)) for values in numbers.values())


def _check_asked_once(questions: Mapping[str, Sequence[str]]) -> None:
    for language, asked in questions.items():
        if len(set(asked)) < len(asked):
            question = Counter(asked).most_common(1)[0]
            raise BenchmarkError(
                f"questions in {language}",
                f"{question[1]} queries that ask question {question[0]!r}",
                "a question at most once in a language, so that rankings pair off",
                "Give queries that are not translations of one another different questions.",
            )


def _unit_rankings(scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Ranks [Q, S] of each row's scores, centred and of length 1; zeros for a row of equal scores."""
    candidates = scores.shape[1]
    # With the column in the bits that float32 leaves free one sort, eight times faster than argsort,
    # gives scores and order. Adding 0 makes a -0.0 a 0.0.
    keys = scores.astype(np.float32).astype(np.float64) + 0.0
    bits = keys.view(np.int64)
    bits |= np.arange(candidates)
    keys.sort(axis=1)
    ranks = np.empty(scores.shape, dtype=np.float32)
    spread_ranks(bits, _COLUMN_BITS, ranks)
    ranks -= (candidates + 1) / 2
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    np.divide(ranks, lengths, out=ranks, where=lengths > 0)
    return ranks


def _ranks_within(test: IntArray, ranks: IntArray) -> FloatArray:
    """Mid ranks [M] of the candidates of each test among themselves, up to a constant per test; 0 ranks last."""
    last = ranks.max() + 1
    mid_ranks: FloatArray = rankdata(test * (last + 1) + np.where(ranks > 0, ranks, last))
    return mid_ranks


def _kruskal_wallis(ranks: FloatArray, test: IntArray, group: IntArray, test_of_group: IntArray) -> FloatArray:
    """p-value of each test: H = (n - 1) * sum of squares between groups / total sum of squares, ties included."""
    members = np.bincount(test)
    centred = ranks - (np.bincount(test, weights=ranks) / members)[test]
    total = np.bincount(test, weights=centred**2)
    between = np.bincount(test_of_group, weights=np.bincount(group, weights=centred) ** 2 / np.bincount(group))
    statistic = np.divide((members - 1) * between, total, out=np.zeros(len(total)), where=total > 0)
    p_values: FloatArray = chi2.sf(statistic, np.bincount(test_of_group) - 1)
    return p_values


def _mean_defined(values: FloatArray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _mean_of_languages(means: Iterable[float | None]) -> float | None:
    defined = [mean for mean in means if mean is not None]
    return float(np.mean(defined)) if defined else None
