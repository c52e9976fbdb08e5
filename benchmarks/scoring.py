"""Time and memory of exact evaluation beside the bare matrix product, pytrec_eval and ranx.

    python benchmarks/scoring.py [--dim 384 768] [--queries 13090] [--repeats 5] [--sample 44] [--json FILE]

Synthetic embeddings in the shape of XQuAD-R: 1,190 questions in 11 languages against 13,014 sentences, one relevant
sentence per language. A text is its question's topic, a paragraph's topic shared by five questions, its language,
and noise, added and normalised; how deep the relevant sentences then lie is printed. The product is `queries @ pool.T`
in float32, on all cores: as written, with the memory of its result, as the evaluation is timed with the memory that it
takes; and, stricter, into memory that is at hand already. The product in float64, which is what the exact scores would
take, is made in blocks. Products, ranks and the whole evaluation take turns within a repeat, after a first call of each
that compiles; a ratio is the median of the ratios of the repeats. CPU seconds are those of all threads: on a machine
with other work they say more than seconds. pytrec_eval and ranx get full-depth runs of all 121 cells and the
merged pool for a random sample of queries, and their seconds are scaled to all queries (--all-queries to run them all).
Peak memory is that of a process of its own, with everything it imports; bare imports and data are the row "data".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hbt_ray.evaluation.benchmarks import Benchmark, Collection, Qrels, Texts
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.evaluation.metrics import Judged, query_measures
from hbt_ray.evaluation.ranking import Pool, Ranks, Relevant, candidate_pool, query_blocks, rank_queries

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
CANDIDATES = (1183,) * 10 + (1184,)
QUESTIONS_PER_PARAGRAPH = 5
TREC_MEASURES = {"map": "mAP", "recall_1": "R@1", "recall_10": "R@10", "recall_100": "R@100", "ndcg_cut_10": "nDCG@10"}
PRODUCT, INTO_MEMORY = "product", "product into memory"
OURS = (PRODUCT, INTO_MEMORY, "product in float64", "ranks", "evaluation")
OTHERS = ("pytrec_eval", "ranx")


def synthetic(queries: int, dim: int) -> tuple[Benchmark, Embeddings]:
    """The benchmark, with as many questions in each language as make `queries`, and its embeddings."""
    rng = np.random.default_rng(13)
    questions = -(-queries // len(LANGUAGES))
    size = max(questions, *CANDIDATES)
    paragraphs = rng.standard_normal((size, dim))[np.arange(size) // QUESTIONS_PER_PARAGRAPH]
    topics = rng.standard_normal((size, dim)) + 1.2 * paragraphs

    def texts_of_language(rows: int, tone: np.ndarray) -> np.ndarray:
        vectors = topics[:rows] + tone + 3.5 * rng.standard_normal((rows, dim))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    tones = {language: rng.standard_normal(dim) for language in LANGUAGES}
    embeddings = Embeddings(
        {language: texts_of_language(questions, tone) for language, tone in tones.items()},
        {language: texts_of_language(n, tones[language]) for language, n in zip(LANGUAGES, CANDIDATES, strict=True)},
    )
    relevant = np.minimum(np.arange(questions)[:, None], np.array(CANDIDATES) - 1)
    qrels = Qrels(
        np.arange(questions + 1) * len(LANGUAGES),
        np.tile(np.arange(len(LANGUAGES)), questions),
        relevant.ravel(),
        np.ones(relevant.size, dtype=np.int64),
    )
    collection = Collection(
        "synthetic",
        {language: _texts("q", questions) for language in LANGUAGES},
        {language: _texts("c", n) for language, n in zip(LANGUAGES, CANDIDATES, strict=True)},
        dict.fromkeys(LANGUAGES, qrels),
        merged_pool=True,
        parallel=True,
    )
    return Benchmark("synthetic", (collection,)), embeddings


def _texts(prefix: str, count: int) -> Texts:
    names = tuple(f"{prefix}{i}" for i in range(count))
    return Texts(names, names)


def matrices(benchmark: Benchmark, embeddings: Embeddings) -> tuple[np.ndarray, Pool, Relevant]:
    """All queries as one matrix, the pool, and the relevant columns."""
    (collection,) = benchmark.collections
    pool = candidate_pool(list(embeddings.candidates.values()))
    queries = np.concatenate(list(embeddings.queries.values()))
    columns = [pool.starts[qrels.language] + qrels.candidate for qrels in collection.qrels.values()]
    offsets = np.arange(len(queries) + 1) * len(LANGUAGES)
    return queries, pool, Relevant(offsets, np.concatenate(columns))


def ways(benchmark: Benchmark, embeddings: Embeddings) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    queries, pool, relevant = matrices(benchmark, embeddings)
    scores: list[np.ndarray] = []

    def product() -> None:
        queries @ pool.vectors.T

    def product_into_memory() -> None:
        if not scores:
            scores.append(np.empty((len(queries), len(pool.vectors)), dtype=np.float32))
        np.matmul(queries, pool.vectors.T, out=scores[0])

    def product_in_float64() -> None:
        candidates = pool.vectors.astype(np.float64).T
        for block in query_blocks(len(queries)):  # as a whole it would not fit the memory that ranks may take
            queries[block].astype(np.float64) @ candidates

    return {
        PRODUCT: product,
        INTO_MEMORY: product_into_memory,
        "product in float64": product_in_float64,
        "ranks": lambda: rank_queries(queries, pool, relevant),
        "evaluation": lambda: evaluate_embeddings(benchmark, {"synthetic": embeddings}),
    }


def runs_of_sample(
    queries: np.ndarray, pool: Pool, relevant: Relevant, rows: np.ndarray
) -> list[tuple[dict[str, dict[str, float]], dict[str, dict[str, int]], np.ndarray]]:
    """For each of the 11 languages and the pool: run and qrels as dictionaries, and entries of `relevant`.

    The scores in a run are minus the place in the order of the float64 scores, because trec_eval keeps float32.
    """
    entries = relevant.offsets[rows][:, None] + np.arange(len(LANGUAGES))
    places = [*zip(pool.starts[:-1], pool.starts[1:], strict=True), (0, len(pool.vectors))]
    scores = queries[rows].astype(np.float64) @ pool.vectors.astype(np.float64).T
    made = []
    for number, (start, stop) in enumerate(places):
        here = entries if number == len(LANGUAGES) else entries[:, number : number + 1]
        order = np.argsort(-scores[:, start:stop], axis=1) + start
        names = [f"c{column}" for column in range(start, stop)]
        run = {
            f"q{row}": {names[column - start]: -float(place) for place, column in enumerate(ranking.tolist())}
            for row, ranking in zip(rows, order, strict=True)
        }
        qrels = {
            f"q{row}": {f"c{column}": 1 for column in relevant.columns[of_row].tolist()}
            for row, of_row in zip(rows, here, strict=True)
        }
        made.append((run, qrels, here))
    return made


def with_pytrec_eval(runs: list[Any]) -> list[dict[str, dict[str, float]]]:
    """Per-query measures of each run."""
    import pytrec_eval

    measures = {*TREC_MEASURES, "recip_rank"}
    return [pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run) for run, qrels, _ in runs]


def with_ranx(runs: list[Any]) -> None:
    """The same measures with ranx."""
    import ranx

    for run, qrels, _ in runs:
        ranx.evaluate(
            ranx.Qrels(qrels),
            ranx.Run(run),
            ["map", "recall@1", "recall@10", "recall@100", "ndcg@10", "mrr@10"],
            return_mean=False,
        )


def largest_difference(ranks: Ranks, runs: list[Any], results: list[dict[str, dict[str, float]]]) -> float:
    """Between the per-query values of pytrec_eval and ours, over all measures and cells."""
    worst = 0.0
    for number, ((_, _, entries), result) in enumerate(zip(runs, results, strict=True)):
        of_run = (ranks.pool if number == len(LANGUAGES) else ranks.cell)[entries]
        offsets = np.arange(len(entries) + 1) * entries.shape[1]
        ours = query_measures(Judged(offsets, of_run.ravel(), np.ones(entries.size, dtype=np.int64)))
        theirs = list(result.values())
        for trec, name in TREC_MEASURES.items():
            worst = max(worst, float(np.abs(ours[name] - [values[trec] for values in theirs]).max()))
        reciprocal = np.array([values["recip_rank"] for values in theirs])
        reciprocal[reciprocal < 1 / 10.5] = 0
        worst = max(worst, float(np.abs(ours["MRR@10"] - reciprocal).max()))
    return worst


def time_others(benchmark: Benchmark, embeddings: Embeddings, sample: int) -> dict[str, Any]:
    """Seconds of pytrec_eval and ranx scaled to all queries, dictionaries included, and the largest difference."""
    queries, pool, relevant = matrices(benchmark, embeddings)
    rows = np.sort(np.random.default_rng(5).choice(len(queries), min(sample, len(queries)), replace=False))
    blocks = np.array_split(rows, -(-len(rows) // 11))
    ranks = rank_queries(queries, pool, relevant)
    seconds, differences = dict.fromkeys(OTHERS, 0.0), []
    missing = set()
    try:
        with_ranx(runs_of_sample(queries, pool, relevant, rows[:1]))  # compiles, which is not what is compared
    except ImportError:
        missing.add("ranx")
    for block in blocks:
        start = time.perf_counter()
        runs = runs_of_sample(queries, pool, relevant, block)
        making = time.perf_counter() - start
        results = with_pytrec_eval(runs)
        seconds["pytrec_eval"] += time.perf_counter() - start
        differences.append(largest_difference(ranks, runs, results))
        start = time.perf_counter()
        if "ranx" not in missing:
            with_ranx(runs)
        seconds["ranx"] += time.perf_counter() - start + making
    scaled = {name: None if name in missing else seconds[name] * len(queries) / len(rows) for name in OTHERS}
    return {"seconds": scaled, "sample": len(rows), "largest_difference": max(differences)}


def peak_mib(way: str, queries: int, dim: int) -> float:
    """Peak resident memory of one call in a process of its own."""
    command = [sys.executable, __file__, "--only", way, "--queries", str(queries), "--dim", str(dim)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def run_only(way: str, queries: int, dim: int) -> None:
    """One call, then the peak memory of this process."""
    benchmark, embeddings = synthetic(queries, dim)
    if way == "pytrec_eval":
        with_pytrec_eval(runs_of_sample(*matrices(benchmark, embeddings), np.arange(11)))
    elif way != "data":
        ways(benchmark, embeddings)[way]()
    # Not getrusage: its peak includes what the parent held when it started this process.
    print(int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024)


def measure(queries: int, dim: int, repeats: int, sample: int) -> dict[str, Any]:
    """All numbers for one dimension."""
    benchmark, embeddings = synthetic(queries, dim)
    timed = ways(benchmark, embeddings)
    ranks = timed["ranks"]()
    timed[INTO_MEMORY]()
    timed["evaluation"]()
    seconds: dict[str, list[float]] = {name: [] for name in OURS}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in OURS}
    for _ in range(repeats):
        for name in OURS:
            start, start_cpu = time.perf_counter(), time.process_time()
            timed[name]()
            cpu_seconds[name].append(time.process_time() - start_cpu)
            seconds[name].append(time.perf_counter() - start)
    return {
        "dim": dim,
        "pool_rank_quantiles": np.quantile(ranks.pool, [0.1, 0.5, 0.9, 0.99]).tolist(),
        "pool_rank_mean": float(ranks.pool.mean()),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio_to_product": _ratios(seconds, PRODUCT),
        "ratio_to_product_into_memory": _ratios(seconds, INTO_MEMORY),
        "cpu_seconds": {name: statistics.median(values) for name, values in cpu_seconds.items()},
        "peak_mib": {name: peak_mib(name, queries, dim) for name in ("data", *OURS, "pytrec_eval")},
        "others": time_others(benchmark, embeddings, sample),
    }


def _ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """The median, over the repeats, of what each takes against `base`."""
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[base], strict=True))
        for name, values in seconds.items()
    }


def show(result: dict[str, Any]) -> None:
    """A plain table."""
    quantiles = ", ".join(f"{value:.0f}" for value in result["pool_rank_quantiles"])
    print(f"\n{result['dim']} dimensions; ranks in the pool: mean {result['pool_rank_mean']:.0f}, "
          f"10/50/90/99%: {quantiles}")  # fmt: skip
    print(f"{'':20}{'seconds':>10}{'x product':>11}{'x into memory':>15}{'CPU s':>10}{'peak MiB':>10}")
    for name in ("data", *OURS, *OTHERS):
        seconds = result["seconds"].get(name) or result["others"]["seconds"].get(name)
        ratios = [
            seconds and result[f"ratio_to_{key}"].get(name, seconds / result["seconds"][base])
            for key, base in (("product", PRODUCT), ("product_into_memory", INTO_MEMORY))
        ]
        cells = [(seconds, 10, ".2f"), (ratios[0], 11, ".2f"), (ratios[1], 15, ".2f"),
                 (result["cpu_seconds"].get(name), 10, ".2f"), (result["peak_mib"].get(name), 10, ".0f")]  # fmt: skip
        print(f"{name:20}" + "".join(f"{'-' if value is None else format(value, how):>{width}}"
                                     for value, width, how in cells))  # fmt: skip
    others = result["others"]
    print(f"pytrec_eval and ranx: {others['sample']} random queries, scaled to all; memory of pytrec_eval: 11 queries")
    print(f"largest difference of a per-query value from pytrec_eval: {others['largest_difference']:.1e}")
    if others["seconds"]["ranx"] is None:
        print("ranx is not installed; left out")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--queries", type=int, default=13_090)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=44)
    parser.add_argument("--all-queries", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("data", *OURS, "pytrec_eval"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run_only(args.only, args.queries, args.dim[0])
        return
    sample = args.queries if args.all_queries else args.sample
    results = [measure(args.queries, dim, args.repeats, sample) for dim in args.dim]
    for result in results:
        show(result)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
