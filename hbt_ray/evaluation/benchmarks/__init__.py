"""Evaluation data: queries, candidates and relevance of the benchmarks that hbt_ray knows.

`load_benchmark` loads one by name; docs/benchmarks.md says what the files look like and how to add another.
"""

from hbt_ray.evaluation.benchmarks.beir import load_beir
from hbt_ray.evaluation.benchmarks.bitext import load_tatoeba
from hbt_ray.evaluation.benchmarks.catalog import BENCHMARKS, load_benchmark
from hbt_ray.evaluation.benchmarks.collection import (
    Benchmark,
    Collection,
    Judgements,
    Qrels,
    Texts,
    judged_queries,
    qrels_of,
)
from hbt_ray.evaluation.benchmarks.lareqa import load_lareqa
from hbt_ray.evaluation.benchmarks.miracl import load_miracl

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Collection",
    "Judgements",
    "Qrels",
    "Texts",
    "judged_queries",
    "load_beir",
    "load_benchmark",
    "load_lareqa",
    "load_miracl",
    "load_tatoeba",
    "qrels_of",
]
