"""A results folder: what an evaluation leaves for people, reports, comparisons and other tools.

<out>/metrics.json        settings with intervals, language bias, pool sizes, signature
<out>/cells.csv           one line per cell
<out>/per_query.parquet   one row per query and cell: what tests of significance start from
<out>/examples.json       best and worst queries with their texts
<out>/runs/<q>-<c>.trec, <out>/qrels/<q>-<c>.trec   on request: rankings and relevance, c = all is the merged pool
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import Collection, Qrels
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.evaluation.matrix import ALL_LANGUAGES, Evaluation, relevant_columns
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.rankers import rows_of_relevant
from hbt_ray.evaluation.ranking import Relevant, candidate_pool, query_blocks, top_candidates
from hbt_ray.evaluation.trec import qrels_writer, run_writer

METRICS_FILE = "metrics.json"
CELLS_FILE = "cells.csv"
PER_QUERY_FILE = "per_query.parquet"
EXAMPLES_FILE = "examples.json"
DEFAULT_TREC_DEPTH = 100


def write_results(evaluation: Evaluation, metrics: Mapping[str, Any], out: Path) -> None:
    """Write metrics.json, cells.csv, per_query.parquet and examples.json into `out`, made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / METRICS_FILE, metrics)
    _write_json(out / EXAMPLES_FILE, evaluation.examples)
    with (out / CELLS_FILE).open("w", encoding="utf-8", newline="") as file:
        header = ["query_language", "candidate_language", "queries", *MEASURES]
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cell.row() for cell in evaluation.cells)
    pq.write_table(evaluation.per_query, out / PER_QUERY_FILE)


def read_cells(out: Path) -> list[dict[str, Any]]:
    """The rows of cells.csv."""
    return [dict(row) for row in arrow_csv.read_csv(out / CELLS_FILE).to_pylist()]


def check_trec_depth(collection: Collection, depth: int) -> None:
    """Refuse a depth that no pool of the collection has. Raises ConfigError."""
    sizes = list(map(len, collection.candidates.values()))
    largest = sum(sizes) if collection.merged_pool else max(sizes)
    if depth > largest:
        raise ConfigError(
            "--trec-depth",
            depth,
            f"at most {largest}, the candidates of the largest pool of {collection.name}",
            "Lower it; pools that are smaller are written whole.",
        )


def write_trec(collection: Collection, embeddings: Embeddings, out: Path, tag: str, depth: int | None = None) -> None:
    """Write a run and a qrels file for every cell of a collection, and for the merged pool.

    Args:
        collection: what was ranked.
        embeddings: its vectors.
        out: results folder; files go to `runs/` and `qrels/` in it.
        tag: name of the run.
        depth: candidates per query, by default 100; the whole pool where that is smaller.

    Raises:
        ConfigError: a depth greater than every pool.
        BenchmarkError: an id with whitespace in it.
    """
    if depth is not None:
        check_trec_depth(collection, depth)
    for folder in ("runs", "qrels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    pools = {language: [language] for language in collection.candidates}
    if collection.merged_pool:
        pools[ALL_LANGUAGES] = list(collection.candidates)
    for name, languages in pools.items():
        _write_trec_of_pool(collection, embeddings, out, name, languages, tag, depth or DEFAULT_TREC_DEPTH)


def _write_trec_of_pool(
    collection: Collection,
    embeddings: Embeddings,
    out: Path,
    name: str,
    languages: list[str],
    tag: str,
    depth: int,
) -> None:
    pool = candidate_pool([embeddings.candidates[language] for language in languages])
    ids = np.array([candidate for code in languages for candidate in collection.candidates[code].ids], dtype=object)
    for query_language, queries in collection.queries.items():
        qrels = _restricted(collection, query_language, languages)
        relevant = relevant_columns(qrels, pool.starts)
        answerable = np.flatnonzero(np.diff(qrels.offsets))
        if not len(answerable):
            continue
        file = f"{query_language}-{name}.trec"
        vectors = embeddings.queries[query_language]
        with run_writer(out / "runs" / file, tag) as write_run, qrels_writer(out / "qrels" / file) as write_qrels:
            for block in query_blocks(len(queries)):
                rows = answerable[(answerable >= block.start) & (answerable < block.stop)]
                if not len(rows):
                    continue
                part = rows_of_relevant(relevant, block)
                columns, scores = top_candidates(vectors[block], pool, part, min(depth, len(ids)))
                named = [queries.ids[row] for row in rows]
                inside = rows - block.start
                write_run(named, ids[columns[inside]].tolist(), scores[inside])
                found = [_entries(part, qrels, block, row) for row in inside]
                write_qrels(named, [ids[entry].tolist() for entry, _ in found], [grades for _, grades in found])


def _entries(part: Relevant, qrels: Qrels, block: slice, row: int) -> tuple[Any, Any]:
    """Pool columns and grades of the relevant candidates of a row of a block."""
    start, stop = int(part.offsets[row]), int(part.offsets[row + 1])
    first = int(qrels.offsets[block.start])
    return part.columns[start:stop], qrels.grade[first + start : first + stop]


def _restricted(collection: Collection, query_language: str, languages: list[str]) -> Qrels:
    """The qrels of one query language with candidates of `languages` only, numbered in that order."""
    qrels = collection.qrels[query_language]
    codes = list(collection.candidates)
    number = np.array([languages.index(code) if code in languages else -1 for code in codes])[qrels.language]
    inside = number >= 0
    offsets = np.concatenate(([0], np.cumsum(inside)))[qrels.offsets]
    return Qrels(offsets, number[inside], qrels.candidate[inside], qrels.grade[inside])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
