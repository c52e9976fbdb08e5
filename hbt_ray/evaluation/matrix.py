"""Every cell of the language matrix, the merged pool and language bias, from the ranks of relevant candidates.

Settings of arXiv 2408.10536: monolingual (query language = candidate language), cross-lingual (ordered pairs of
two languages) and multilingual (each query language against the union of all candidates). Each is the
macro-average over its cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hbt_ray import __version__
from hbt_ray.evaluation.benchmarks import Benchmark, Collection, Qrels
from hbt_ray.evaluation.bias import QUERY_BIAS, query_bias
from hbt_ray.evaluation.metrics import MEASURES, Judged, cell_measures, macro_average, query_measures
from hbt_ray.evaluation.ranking import IntArray, Ranks, Relevant

ALL_LANGUAGES = "all"
SETTINGS = ("monolingual", "cross_lingual", "multilingual")

FloatColumns = Mapping[str, NDArray[np.float64]]

PER_QUERY_SCHEMA = pa.schema(
    [
        ("query_language", pa.string()),
        ("query_id", pa.string()),
        ("question", pa.string()),
        ("candidate_language", pa.string()),
        ("relevant", pa.int64()),
        *((measure, pa.float64()) for measure in MEASURES),
        *((measure, pa.float64()) for measure in QUERY_BIAS),
    ]
)


class Cell(NamedTuple):
    """One query language against one candidate language, or against the merged pool (ALL_LANGUAGES).

    Args:
        query_language: language of the queries.
        candidate_language: language of the candidates.
        queries: number of queries with a relevant candidate there, at least one.
        measures: measure of MEASURES -> mean over those queries.
    """

    query_language: str
    candidate_language: str
    queries: int
    measures: dict[str, float]

    @property
    def setting(self) -> str:
        """Which of SETTINGS it belongs to."""
        return setting_of(self.query_language, self.candidate_language)

    def row(self) -> dict[str, str | int | float]:
        """The cell as a line of cells.csv, which is also what reports and plots take."""
        return {
            "query_language": self.query_language,
            "candidate_language": self.candidate_language,
            "queries": self.queries,
            **self.measures,
        }


class QueryLanguageResult(NamedTuple):
    """What the queries of one language give in one collection.

    Args:
        cells: the cells in the order of the candidate languages, then the merged pool if there is one; a cell
            without a query that has a relevant candidate is left out.
        per_query: rows of PER_QUERY_SCHEMA.
        pool_ranks: int64 [Q, L], rank in the merged pool of the best relevant candidate of each language, 0 where
            there is none.
        bias: measure of QUERY_BIAS -> float64 [Q]; empty without a merged pool or full depth.
    """

    cells: list[Cell]
    per_query: pa.Table
    pool_ranks: IntArray
    bias: FloatColumns


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one benchmark.

    Args:
        benchmark: name of the benchmark.
        languages: its languages.
        cells: of all collections and query languages.
        per_query: rows of PER_QUERY_SCHEMA.
        bias: `language_bias` of metrics.json.
        intervals: setting -> measure -> (low, high), 95%.
        pool: language -> number of candidates.
        left_out: query language -> queries without a relevant candidate.
        notes: what a reader must know to judge the numbers.
        examples: the best and the worst queries with their texts.
        signature: what the numbers hold for: version, data, model, depth, ties, sizes, seed.
    """

    benchmark: str
    languages: tuple[str, ...]
    cells: list[Cell]
    per_query: pa.Table
    bias: dict[str, Any]
    intervals: dict[str, dict[str, tuple[float, float]]]
    pool: dict[str, int]
    left_out: dict[str, int]
    notes: tuple[str, ...]
    examples: dict[str, list[dict[str, Any]]]
    signature: str

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return {
            "benchmark": self.benchmark,
            "languages": list(self.languages),
            **{setting: self._setting(setting) for setting in SETTINGS},
            "language_bias": self.bias,
            "pool": self.pool,
            "queries_without_relevant": self.left_out,
            "notes": list(self.notes),
            "signature": self.signature,
        }

    def _setting(self, setting: str) -> dict[str, Any]:
        cells = [cell for cell in self.cells if cell.setting == setting]
        return {
            **macro_average(cell.measures for cell in cells),
            "cells": len(cells),
            "queries": sum(cell.queries for cell in cells),
            "intervals": {measure: list(ends) for measure, ends in self.intervals.get(setting, {}).items()},
        }


def setting_of(query_language: str, candidate_language: str) -> str:
    """Which of SETTINGS a pair of languages belongs to."""
    if candidate_language == ALL_LANGUAGES:
        return "multilingual"
    return "monolingual" if query_language == candidate_language else "cross_lingual"


def relevant_columns(qrels: Qrels, starts: IntArray) -> Relevant:
    """The relevant candidates as columns of a pool whose languages begin at `starts`, int64 [L] or [L + 1]."""
    return Relevant(qrels.offsets, starts[qrels.language] + qrels.candidate)


def question_ids(collection: Collection, query_language: str) -> Sequence[str]:
    """The question of each query, the unit of every test: translations of a question are one, in all languages."""
    ids = collection.queries[query_language].ids
    return ids if collection.parallel else [f"{collection.name}:{query_language}:{query_id}" for query_id in ids]


def query_language_result(
    collection: Collection, query_language: str, ranks: Ranks, *, full_depth: bool
) -> QueryLanguageResult:
    """Cells, rows and pool ranks of one query language from its ranks; bias needs `full_depth`."""
    qrels, languages = collection.qrels[query_language], list(collection.candidates)
    identity = _identity_columns(collection, query_language)
    in_cells = _judged_by_language(qrels, ranks.cell, len(languages))
    cells, rows = _measured(query_language, identity, languages, in_cells, {})
    pool_ranks = best_rank_per_language(qrels, ranks.pool, len(languages))
    if not collection.merged_pool:
        return QueryLanguageResult(cells, rows, pool_ranks, {})
    own = languages.index(query_language) if query_language in languages else None
    size = sum(len(texts.ids) for texts in collection.candidates.values())
    bias = query_bias(pool_ranks, own, size) if full_depth else {}
    in_pool = Judged(qrels.offsets, ranks.pool, qrels.grade)
    pool_cell, pool_rows = _measured(query_language, identity, [ALL_LANGUAGES], in_pool, bias)
    return QueryLanguageResult([*cells, *pool_cell], pa.concat_tables([rows, pool_rows]), pool_ranks, bias)


def best_rank_per_language(qrels: Qrels, pool_ranks: IntArray, languages: int) -> IntArray:
    """int64 [Q, languages]: the smallest rank of a query's relevant candidates of each language, 0 without one."""
    queries = len(qrels.offsets) - 1
    unset = np.iinfo(np.int64).max
    best = np.full(queries * languages, unset)
    place = np.repeat(np.arange(queries), np.diff(qrels.offsets)) * languages + qrels.language
    np.minimum.at(best, place, np.where(pool_ranks > 0, pool_ranks, unset))
    return np.where(best == unset, 0, best).reshape(queries, languages)


def signature(benchmark: Benchmark, *, model: str, depth: int | None, seed: int | None) -> str:
    """One line that says what the numbers of an evaluation hold for; `depth` None is the full depth."""
    return "|".join(
        [
            f"hbt_ray {__version__}",
            benchmark.name,
            f"data:{benchmark.data_hash[:12]}",
            f"model:{model}",
            f"depth:{depth or 'full'}",
            "ties:pessimistic",
            f"n:{benchmark.query_count}x{benchmark.candidate_count}",
            f"seed:{'-' if seed is None else seed}",
        ]
    )


def _judged_by_language(qrels: Qrels, ranks: IntArray, languages: int) -> Judged:
    """The relevant candidates by language and query: row language * Q + query has those of one cell and query."""
    queries = len(qrels.offsets) - 1
    row = qrels.language * queries + np.repeat(np.arange(queries), np.diff(qrels.offsets))
    offsets = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=languages * queries))))
    order = np.argsort(row, kind="stable")
    return Judged(offsets, ranks[order], qrels.grade[order])


def _measured(
    query_language: str,
    identity: Mapping[str, pa.Array],
    candidate_languages: Sequence[str],
    judged: Judged,
    bias: FloatColumns,
) -> tuple[list[Cell], pa.Table]:
    """Cells and rows of PER_QUERY_SCHEMA from the relevant candidates by candidate language and query.

    A query without a relevant candidate in a cell has no row there, a cell without a row is left out.
    """
    relevant = np.diff(judged.offsets)
    known = np.flatnonzero(relevant)
    measures = {name: values[known] for name, values in query_measures(judged).items()}
    language, query = np.divmod(known, len(relevant) // len(candidate_languages))
    bounds = np.searchsorted(language, np.arange(len(candidate_languages) + 1)).tolist()
    cells = [
        Cell(query_language, name, stop - start, cell_measures({m: v[start:stop] for m, v in measures.items()}))
        for name, (start, stop) in zip(candidate_languages, pairwise(bounds), strict=True)
        if stop > start
    ]
    undefined = pa.nulls(len(known), pa.float64())
    columns = {
        **{name: values.take(pa.array(query)) for name, values in identity.items()},
        "candidate_language": pa.array(candidate_languages, pa.string()).take(pa.array(language)),
        "relevant": pa.array(relevant[known]),
        **{name: pa.array(values) for name, values in measures.items()},
        # NaN, undefined for this query, becomes null.
        **{name: pa.array(bias[name][query], from_pandas=True) if name in bias else undefined for name in QUERY_BIAS},
    }
    return cells, pa.table(columns, schema=PER_QUERY_SCHEMA)


def _identity_columns(collection: Collection, query_language: str) -> dict[str, pa.Array]:
    ids = collection.queries[query_language].ids
    return {
        "query_language": pa.repeat(query_language, len(ids)),
        "query_id": pa.array(ids, pa.string()),
        "question": pa.array(question_ids(collection, query_language), pa.string()),
    }
