"""Every cell of the language matrix, the multilingual setting and rank distance, from one set of embeddings.

Settings of arXiv 2408.10536: monolingual (query language = candidate language), cross-lingual (ordered pairs of
two languages) and multilingual (each query language against the union of all candidates). Each is the
macro-average over its cells.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hbt_ray import __version__
from hbt_ray.errors import ConfigError, ResourceError
from hbt_ray.evaluation.benchmarks import Benchmark
from hbt_ray.evaluation.bias import LanguageBias, language_bias, rank_distance
from hbt_ray.evaluation.embeddings import Embeddings, FloatArray, check_embeddings
from hbt_ray.evaluation.metrics import MEASURES, cell_measures, macro_average, query_measures
from hbt_ray.evaluation.ranking import (
    IntArray,
    Pool,
    Ranks,
    candidate_pool,
    join_ranks,
    query_blocks,
    rank_block,
    rank_queries,
)
from hbt_ray.languages import ordered_pairs

ALL_LANGUAGES = "all"

_PER_QUERY_SCHEMA = pa.schema(
    [
        ("query_language", pa.string()),
        ("query_id", pa.string()),
        ("candidate_language", pa.string()),
        ("relevant", pa.int64()),
        *((measure, pa.float64()) for measure in MEASURES),
        ("rank_distance", pa.float64()),
    ]
)


class Cell(NamedTuple):
    """One query language against one candidate language, or against the whole pool (ALL_LANGUAGES).

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

    def row(self) -> dict[str, str | int | float]:
        """The cell as a line of cells.csv, which is also what reports and plots take."""
        return {
            "query_language": self.query_language,
            "candidate_language": self.candidate_language,
            "queries": self.queries,
            **self.measures,
        }


@dataclass(frozen=True)
class Evaluation:
    """Results of one set of embeddings on one benchmark.

    Args:
        benchmark_name: which benchmark.
        languages: its languages.
        cells: per query language, its cells in the order of `languages`, then the pool. A cell without queries
            (two languages that share no question) is left out; `empty_cells` names it.
        per_query: query_language, query_id, candidate_language, relevant (number of relevant passages), mAP
            (average precision), R@1, R@10, rank_distance (null outside the pool and where undefined).
        bias: rank distance.
        pool: language -> number of candidates.
        signature: what the numbers hold for: version, data, model, depth, ties, sizes, seed.
    """

    benchmark_name: str
    languages: tuple[str, ...]
    cells: list[Cell]
    per_query: pa.Table
    bias: LanguageBias
    pool: dict[str, int]
    signature: str

    @property
    def empty_cells(self) -> list[tuple[str, str]]:
        """(query language, candidate language) of the cross-lingual cells left out for want of a query."""
        present = {(cell.query_language, cell.candidate_language) for cell in self.cells}
        return [pair for pair in ordered_pairs(self.languages) if pair not in present]

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: the three settings, rank distance, pool sizes and signature."""
        multilingual = [cell for cell in self.cells if cell.candidate_language == ALL_LANGUAGES]
        bilingual = [cell for cell in self.cells if cell.candidate_language != ALL_LANGUAGES]
        monolingual = [cell for cell in bilingual if cell.query_language == cell.candidate_language]
        cross_lingual = [cell for cell in bilingual if cell.query_language != cell.candidate_language]
        return {
            "benchmark": self.benchmark_name,
            "languages": list(self.languages),
            "monolingual": _setting(monolingual),
            "cross_lingual": _setting(cross_lingual),
            "multilingual": _setting(multilingual),
            "language_bias": self.bias._asdict(),
            "pool": self.pool,
            "signature": self.signature,
        }


def evaluate_embeddings(
    benchmark: Benchmark, embeddings: Embeddings, *, model: str = "-", seed: int | None = None
) -> Evaluation:
    """Evaluate embeddings in this process.

    Args:
        benchmark: queries, candidates, relevance.
        embeddings: a vector per text, in the order of the benchmark.
        model: hash of the model, for the signature; "-" if unknown.
        seed: training seed, for the signature.

    Raises:
        EmbeddingError: the embeddings do not fit the benchmark.
    """
    check_embeddings(embeddings, benchmark)
    pool = _pool(benchmark, embeddings)
    ranks = {
        language: rank_queries(embeddings.queries[language], pool, benchmark.relevant_indices(language))
        for language in benchmark.languages
    }
    return summarise(benchmark, ranks, _signature(benchmark, model, seed))


def evaluate_on_ray(
    benchmark: Benchmark,
    embeddings: Embeddings,
    actors: int,
    *,
    model: str = "-",
    seed: int | None = None,
) -> Evaluation:
    """As `evaluate_embeddings`, with the query blocks ranked by Ray actors of one CPU each.

    The pool is put once into the object store, and actors on one node share that copy. Ray must be initialised.

    Raises:
        EmbeddingError: the embeddings do not fit the benchmark.
        ConfigError: fewer than one actor.
        ResourceError: Ray is not initialised, or has fewer CPUs than actors.
    """
    import ray
    from ray.util import ActorPool

    check_embeddings(embeddings, benchmark)
    if actors < 1:
        raise ConfigError("actors", actors, "at least 1", "Ask for one actor or more.")
    if not ray.is_initialized():
        raise ResourceError("Ray", "no connection", "an initialised Ray", "Call `ray.init` first.")
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if actors > cpus:  # the actors without a CPU would wait for ever
        raise ResourceError("actors", actors, f"at most {cpus}, the CPUs of the cluster", "Lower `actors`.")

    pool = ray.put(_pool(benchmark, embeddings))
    ranker = ray.remote(num_cpus=1)(_Ranker)
    workers = ActorPool([ranker.remote(pool) for _ in range(actors)])
    relevant = {language: benchmark.relevant_indices(language) for language in benchmark.languages}
    blocks = [
        (language, block)
        for language in benchmark.languages
        for block in query_blocks(len(benchmark.queries[language]))
    ]
    ranked = workers.map(
        lambda worker, at: worker.rank.remote(embeddings.queries[at[0]][at[1]], relevant[at[0]][at[1]]),
        blocks,
    )
    by_language: dict[str, list[Ranks]] = {language: [] for language in benchmark.languages}
    for (language, _), ranks in zip(blocks, ranked, strict=True):
        by_language[language].append(ranks)
    joined = {language: join_ranks(ranks) for language, ranks in by_language.items()}
    return summarise(benchmark, joined, _signature(benchmark, model, seed))


def summarise(benchmark: Benchmark, ranks: Mapping[str, Ranks], signature: str) -> Evaluation:
    """The evaluation of a benchmark from the ranks of each query language's relevant candidates."""
    cells: list[Cell] = []
    tables: list[pa.Table] = []
    distances = {language: rank_distance(ranks[language].pool) for language in benchmark.languages}
    for query_language in benchmark.languages:
        for candidate_language, cell_ranks in _cell_ranks(benchmark.languages, ranks[query_language]):
            rows = np.flatnonzero((cell_ranks > 0).any(axis=1))
            if not len(rows):
                continue
            measures = query_measures(cell_ranks[rows])
            cells.append(Cell(query_language, candidate_language, len(rows), cell_measures(measures)))
            tables.append(
                _per_query_rows(
                    cells[-1],
                    [benchmark.query_ids[query_language][row] for row in rows],
                    (cell_ranks[rows] > 0).sum(axis=1),
                    measures,
                    distances[query_language][rows] if candidate_language == ALL_LANGUAGES else None,
                )
            )
    return Evaluation(
        benchmark_name=benchmark.name,
        languages=benchmark.languages,
        cells=cells,
        per_query=pa.concat_tables(tables),
        bias=language_bias(distances),
        pool={language: len(benchmark.candidates[language]) for language in benchmark.languages},
        signature=signature,
    )


def write_results(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.json, cells.csv and per_query.parquet into `out`, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps(evaluation.metrics(), indent=2, ensure_ascii=False)
    (out / "metrics.json").write_text(metrics + "\n", encoding="utf-8")
    with (out / "cells.csv").open("w", encoding="utf-8", newline="") as file:
        header = ["query_language", "candidate_language", "queries", *MEASURES]
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cell.row() for cell in evaluation.cells)
    pq.write_table(evaluation.per_query, out / "per_query.parquet")


class _Ranker:
    """Actor that ranks query blocks against the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def rank(self, queries: FloatArray, relevant: IntArray) -> Ranks:
        return rank_block(queries, self._pool, relevant)


def _pool(benchmark: Benchmark, embeddings: Embeddings) -> Pool:
    return candidate_pool([embeddings.candidates[language] for language in benchmark.languages])


def _signature(benchmark: Benchmark, model: str, seed: int | None) -> str:
    return "|".join(
        [
            f"hbt_ray {__version__}",
            benchmark.name,
            f"data:{benchmark.data_hash[:12]}",
            f"model:{model}",
            "depth:full",
            "ties:pessimistic",
            f"n:{benchmark.query_count}x{benchmark.candidate_count}",
            f"seed:{'-' if seed is None else seed}",
        ]
    )


def _setting(cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        **macro_average(cell.measures for cell in cells),
        "cells": len(cells),
        "queries": sum(cell.queries for cell in cells),
    }


def _cell_ranks(languages: Sequence[str], ranks: Ranks) -> list[tuple[str, IntArray]]:
    """Candidate language and ranks [Q, relevant] of each cell of one query language; the pool comes last."""
    columns = [(language, ranks.cell[:, [column]]) for column, language in enumerate(languages)]
    return [*columns, (ALL_LANGUAGES, ranks.pool)]


def _per_query_rows(
    cell: Cell,
    query_ids: list[str],
    relevant: IntArray,
    measures: Mapping[str, NDArray[np.float64]],
    distances: NDArray[np.float64] | None,
) -> pa.Table:
    columns = {
        "query_language": pa.repeat(cell.query_language, cell.queries),
        "query_id": pa.array(query_ids),
        "candidate_language": pa.repeat(cell.candidate_language, cell.queries),
        "relevant": pa.array(relevant),
        **{measure: pa.array(values) for measure, values in measures.items()},
        "rank_distance": (
            pa.nulls(cell.queries, pa.float64())
            if distances is None
            else pa.array(distances, from_pandas=True)  # NaN becomes null
        ),
    }
    return pa.table(columns, schema=_PER_QUERY_SCHEMA)
