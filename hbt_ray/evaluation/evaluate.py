"""A benchmark from embeddings to every number: cells, merged pool, language bias, intervals, examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hbt_ray.evaluation.benchmarks import Benchmark, Collection
from hbt_ray.evaluation.bias import (
    QUERY_BIAS,
    language_share,
    no_bias,
    peer,
    question_blocks,
    rank_correlation,
    sampled_columns,
    summarise_bias,
)
from hbt_ray.evaluation.embeddings import Embeddings, FloatArray, check_embeddings
from hbt_ray.evaluation.examples import RankedQueries, best_and_worst
from hbt_ray.evaluation.matrix import (
    SETTINGS,
    Cell,
    Evaluation,
    QueryLanguageResult,
    query_language_result,
    question_ids,
    signature,
)
from hbt_ray.evaluation.metrics import MEASURES, Judged
from hbt_ray.evaluation.rankers import Ranker, rank_here
from hbt_ray.evaluation.ranking import IntArray, Ranks
from hbt_ray.evaluation.significance import interval

INTERVAL_RESAMPLES = 1000
NO_MERGED_POOL = "the benchmark has no merged pool: its relevance judgements are for one candidate language"
NO_FULL_DEPTH = "the search kept the best candidates only; language bias needs ranks at full depth"

Embed: TypeAlias = Callable[[Collection], Embeddings]


class CollectionResult(NamedTuple):
    """One collection ranked and measured: per query language its cells and rows, the ranks, the language bias."""

    collection: Collection
    results: dict[str, QueryLanguageResult]
    ranks: dict[str, Ranks]
    bias: dict[str, Any]


def evaluate_embeddings(
    benchmark: Benchmark,
    embeddings: Mapping[str, Embeddings],
    rank: Ranker = rank_here,
    *,
    model: str = "-",
    seed: int | None = None,
) -> Evaluation:
    """Evaluate embeddings at hand at full depth.

    Args:
        benchmark: queries, candidates, relevance.
        embeddings: name of a collection -> a vector per text, in the order of the collection.
        rank: in this process, or on Ray actors.
        model: hash of the model, for the signature; "-" if unknown.
        seed: training seed, for the signature.

    Raises:
        EmbeddingError: the embeddings do not fit the benchmark.
    """
    results = [
        evaluate_collection(collection, embeddings[collection.name], rank) for collection in benchmark.collections
    ]
    return summarise(benchmark, results, signature(benchmark, model=model, depth=None, seed=seed))


def evaluate_collection(
    collection: Collection, embeddings: Embeddings, rank: Ranker, *, full_depth: bool = True
) -> CollectionResult:
    """Rank and measure one collection; without `full_depth` there is no language bias. Raises EmbeddingError."""
    check_embeddings(embeddings, collection)
    ranks = rank(collection, embeddings)
    results = {
        language: query_language_result(collection, language, ranks[language], full_depth=full_depth)
        for language in collection.queries
    }
    if not collection.merged_pool:
        bias = no_bias(NO_MERGED_POOL)
    elif not full_depth:
        bias = no_bias(NO_FULL_DEPTH)
    else:
        bias = _language_bias(collection, embeddings, ranks, results)
    return CollectionResult(collection, results, ranks, bias)


def summarise(benchmark: Benchmark, collections: list[CollectionResult], signature_line: str) -> Evaluation:
    """The evaluation of a benchmark from its collections' results."""
    results = [result for part in collections for result in part.results.values()]
    cells = [cell for result in results for cell in result.cells]
    per_query = pa.concat_tables([result.per_query for result in results])
    intervals = setting_intervals(cells, per_query)
    # A merged pool is that of a benchmark's only collection.
    bias = dict(collections[0].bias)
    merged = intervals.get("multilingual", {})
    bias["intervals"] = {name: list(merged.pop(name)) for name in QUERY_BIAS if name in merged}
    return Evaluation(
        benchmark=benchmark.name,
        languages=benchmark.languages,
        cells=cells,
        per_query=per_query,
        bias=bias,
        intervals=intervals,
        pool=_pool_sizes(benchmark),
        left_out=dict(benchmark.left_out),
        notes=benchmark.notes,
        examples=best_and_worst(
            RankedQueries(
                part.collection,
                language,
                _average_precision(result, part.collection, language),
                part.ranks[language],
                result.pool_ranks,
            )
            for part in collections
            for language, result in part.results.items()
        ),
        signature=signature_line,
    )


def setting_intervals(cells: list[Cell], per_query: pa.Table) -> dict[str, dict[str, tuple[float, float]]]:
    """95% intervals by setting and measure, bootstrapped over questions (`significance.interval`)."""
    members = {setting: [i for i, cell in enumerate(cells) if cell.setting == setting] for setting in SETTINGS}
    question = per_query["question"].combine_chunks().dictionary_encode().indices.to_numpy()
    cell = np.repeat(np.arange(len(cells)), [cell.queries for cell in cells])
    values = {name: _floats(per_query, name) for name in (*MEASURES, *QUERY_BIAS)}
    ends = interval(
        values,
        question.astype(np.int64),
        cell,
        {setting: places for setting, places in members.items() if places},
        resamples=INTERVAL_RESAMPLES,
    )
    return {
        setting: {name: (float(low), float(high)) for name, (low, high) in found.items()}
        for setting, found in ends.items()
    }


def _language_bias(
    collection: Collection,
    embeddings: Embeddings,
    ranks: Mapping[str, Ranks],
    results: Mapping[str, QueryLanguageResult],
) -> dict[str, Any]:
    codes = list(collection.candidates)
    starts = np.cumsum([0] + [len(texts) for texts in collection.candidates.values()], dtype=np.int64)
    questions = {language: question_ids(collection, language) for language in collection.queries}
    sample = _sampled_vectors(embeddings, codes, starts)
    correlation, _ = rank_correlation(
        {language: embeddings.queries[language] @ sample.T for language in collection.queries}, questions
    )
    peers = {}
    for language, qrels in collection.qrels.items():
        peers[language] = peer(Judged(qrels.offsets, ranks[language].pool, qrels.grade), qrels.language)
    return summarise_bias(
        {language: result.bias for language, result in results.items()},
        blocks=question_blocks({language: result.pool_ranks for language, result in results.items()}, questions),
        correlation=correlation,
        peers=peers,
        shares={
            language: dict(zip(codes, language_share(ranks[language].top, starts).tolist(), strict=True))
            for language in collection.queries
        },
    )


def _sampled_vectors(embeddings: Embeddings, codes: list[str], starts: IntArray) -> FloatArray:
    """The candidates on which rankings of parallel queries are correlated."""
    columns = sampled_columns(starts)
    language = np.searchsorted(starts, columns, side="right") - 1
    return np.concatenate(
        [embeddings.candidates[code][columns[language == i] - starts[i]] for i, code in enumerate(codes)]
    )


def _average_precision(result: QueryLanguageResult, collection: Collection, language: str) -> NDArray[np.float64]:
    """AP of every query in the last cell: the merged pool, or the only candidate language."""
    values: NDArray[np.float64] = _floats(result.per_query, "mAP")[-len(collection.queries[language]) :]
    return values


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64; null becomes NaN."""
    values: NDArray[np.float64] = table[name].combine_chunks().to_numpy(zero_copy_only=False)
    return values


def _pool_sizes(benchmark: Benchmark) -> dict[str, int]:
    """Candidates per language."""
    sizes = dict.fromkeys(benchmark.languages, 0)
    for collection in benchmark.collections:
        for language, texts in collection.candidates.items():
            sizes[language] += len(texts)
    return sizes
