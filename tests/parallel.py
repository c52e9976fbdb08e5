"""Parallel benchmarks for tests: one relevant candidate per question and language, as in LAReQA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hbt_ray.evaluation.benchmarks import Benchmark, Collection, Qrels, Texts
from hbt_ray.evaluation.embeddings import Embeddings


@dataclass(frozen=True)
class Parallel:
    """Queries, candidates and relevance in plain dictionaries, and the benchmark that they make.

    Args:
        query_ids: language -> question ids.
        candidates: language -> candidate texts.
        relevant: language -> question id -> index of its relevant candidate.
        name: of the benchmark and its collection.
    """

    query_ids: Mapping[str, tuple[str, ...]]
    candidates: Mapping[str, tuple[str, ...]]
    relevant: Mapping[str, Mapping[str, int]]
    name: str = "synthetic"

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.query_ids)

    @cached_property
    def benchmark(self) -> Benchmark:
        texts = {code: tuple(f"{code} {i}?" for i in ids) for code, ids in self.query_ids.items()}
        collection = Collection(
            name=self.name,
            queries={code: Texts(ids, texts[code]) for code, ids in self.query_ids.items()},
            candidates={
                code: Texts(tuple(f"{code}_{i}" for i in range(len(group))), group)
                for code, group in self.candidates.items()
            },
            qrels={code: self._qrels(code) for code in self.query_ids},
            merged_pool=True,
            parallel=True,
        )
        return Benchmark(self.name, (collection,))

    def _qrels(self, query_language: str) -> Qrels:
        entries = [
            [(column, self.relevant[code][query_id]) for column, code in enumerate(self.languages)
             if query_id in self.relevant[code]]
            for query_id in self.query_ids[query_language]
        ]  # fmt: skip
        offsets = np.cumsum([0] + [len(row) for row in entries], dtype=np.int64)
        flat = np.array([entry for row in entries for entry in row], dtype=np.int64).reshape(-1, 2)
        return Qrels(offsets, flat[:, 0].copy(), flat[:, 1].copy(), np.ones(len(flat), dtype=np.int64))


def as_parallel(benchmark: Benchmark) -> Parallel:
    """The dictionaries of a benchmark with one relevant candidate per question and language."""
    (collection,) = benchmark.collections
    codes = list(collection.candidates)
    relevant: dict[str, dict[str, int]] = {code: {} for code in codes}
    for language, qrels in collection.qrels.items():
        ids = np.repeat(np.array(collection.queries[language].ids), np.diff(qrels.offsets))
        for query_id, column, index in zip(ids, qrels.language, qrels.candidate, strict=True):
            relevant[codes[column]][str(query_id)] = int(index)
    query_ids = {code: tuple(texts.ids) for code, texts in collection.queries.items()}
    candidates = {code: tuple(texts.texts) for code, texts in collection.candidates.items()}
    parallel = Parallel(query_ids, candidates, relevant, benchmark.name)
    vars(parallel)["benchmark"] = benchmark  # the one that was loaded, not one made again
    return parallel


def synthetic(sizes: dict[str, int], questions: int, missing: float, seed: int) -> Parallel:
    """A benchmark with random relevance, in which a language lacks a question with probability `missing`."""
    rng = np.random.default_rng(seed)
    ids = {code: tuple(f"q{i}" for i in range(questions) if i == 0 or rng.random() >= missing) for code in sizes}
    return Parallel(
        query_ids=ids,
        candidates={code: tuple(f"{code} {i}." for i in range(size)) for code, size in sizes.items()},
        relevant={code: {i: int(rng.integers(size)) for i in ids[code]} for code, size in sizes.items()},
    )


def integer_embeddings(benchmark: Parallel, dim: int, seed: int) -> Embeddings:
    """Vectors of -1, 0 and 1: exact scores, few distinct ones, many equal candidates."""
    rng = np.random.default_rng(seed)
    return Embeddings(
        *(
            {code: rng.integers(-1, 2, (len(texts[code]), dim)).astype(np.float32) for code in texts}
            for texts in (benchmark.query_ids, benchmark.candidates)
        )
    )


def normal_embeddings(benchmark: Parallel, dim: int, seed: int) -> Embeddings:
    """Normally distributed vectors in which a relevant candidate is near its query, so that ranks vary."""
    rng = np.random.default_rng(seed)
    topic: dict[str, NDArray[np.float64]] = {}
    queries, candidates = {}, {}
    for code in benchmark.languages:
        candidates[code] = rng.standard_normal((len(benchmark.candidates[code]), dim))
        for query_id, index in benchmark.relevant[code].items():
            topic.setdefault(query_id, rng.standard_normal(dim))
            candidates[code][index] = topic[query_id] + 0.7 * rng.standard_normal(dim)
        noise = rng.standard_normal((len(benchmark.query_ids[code]), dim))
        queries[code] = np.array([topic[query_id] for query_id in benchmark.query_ids[code]]) + 0.7 * noise
    as_float32 = [{code: v.astype(np.float32) for code, v in part.items()} for part in (queries, candidates)]
    return Embeddings(*as_float32)
