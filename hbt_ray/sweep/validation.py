"""What a sweep chooses by: retrieval at every validation, on held-out documents of the corpus or on a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from hbt_ray.config import Config
from hbt_ray.corpus.shards import ShardedDataset, open_corpus
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark, Collection, Texts, judged_queries, qrels_of
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.evaluation.matrix import SETTINGS
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.mixing.source import dataset_rows, plan_languages, training_source
from hbt_ray.storage import Folder
from hbt_ray.train.retrieval import FloatArray, Retrieval

HELD_OUT = "held-out"
BIAS = "language_bias"
HIGHER_IS_BETTER = {
    **{f"{setting}/{measure}": True for setting in SETTINGS for measure in MEASURES},
    **{f"{BIAS}/{name}": name.startswith("complete") for name in QUERY_BIAS if name != "lpr"},
    f"{BIAS}/mrc": True,
}
METRICS = (*HIGHER_IS_BETTER, f"{BIAS}/lpr")  # of lpr neither more nor less is better: 0.5 is
WITH_INTERVAL = ("mAP", "rank_distance")

_Candidates = dict[str, dict[str, str]]  # language -> candidate id -> text
_Queries = dict[str, dict[str, str]]
_Relevant = dict[str, dict[tuple[str, str], int]]  # query id -> (language, candidate id) -> grade


def held_out_benchmark(config: Config, root: str, questions: int) -> Benchmark:
    """Questions of held-out documents against their passages, in every language that a pair has.

    Args:
        config: says which documents are held out, of which datasets and languages.
        root: resolved corpus folder.
        questions: at most so many, from all datasets in proportion to what they hold out.

    Raises:
        ConfigError: nothing is held out, or too little for a benchmark.
    """
    source = replace(training_source(config, root), split="validation")
    if source.hold_out.fraction == 0:
        raise ConfigError(
            "data.hold_out.fraction",
            0,
            "held-out documents to choose by",
            "Raise it, or name a benchmark to choose by.",
        )
    datasets = open_corpus(Folder(root), source.datasets)
    languages = plan_languages(datasets, source.languages)
    held_out = {
        dataset.name: _rows(dataset_rows(dataset, languages, source).kept, dataset.manifest.rows)
        for dataset in datasets
    }
    share = min(1.0, questions / sum(map(len, held_out.values())))
    queries: _Queries = defaultdict(dict)
    candidates: _Candidates = defaultdict(dict)
    relevant: _Relevant = defaultdict(dict)
    for dataset in datasets:
        rows = held_out[dataset.name]
        # Rows were shuffled when they were written, so the first are as good as any.
        for language in (code for code in languages if code in dataset.manifest.languages):
            for pair in _pairs(dataset, language, rows[: max(1, round(share * len(rows)))]):
                question, passage = f"{dataset.name}/{pair['pair_id']}", f"{dataset.name}/{pair['passage_id']}"
                if pair["query"] is not None:
                    queries[language][question] = pair["query"]
                if pair["passage"] is not None:
                    candidates[language][passage] = pair["passage"]
                    relevant[question][language, passage] = 1
    return _benchmark(queries, candidates, relevant)


def _rows(bits: npt.NDArray[np.uint8], rows: int) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(bits, count=rows))


def _pairs(dataset: ShardedDataset, language: str, rows: npt.NDArray[np.int64]) -> Iterator[Mapping[str, str | None]]:
    """The pairs of rows in one language, missing texts None."""
    starts = dataset.group_starts
    groups = np.searchsorted(starts, rows, side="right") - 1
    for group in np.unique(groups):
        cell = dataset.read_group(language, int(group), ["pair_id", "query", "passage", "passage_id"])
        yield from cell.take(rows[groups == group] - starts[group]).to_pylist()


def _benchmark(queries: _Queries, candidates: _Candidates, relevant: _Relevant) -> Benchmark:
    pools = {language: _texts(found) for language, found in candidates.items()}
    judged = {language: judged_queries(_texts(found), relevant) for language, found in queries.items()}
    asked = {language: texts for language, (texts, _) in judged.items() if len(texts)}
    collection = Collection(
        name=HELD_OUT,
        queries=asked,
        candidates=pools,
        qrels={language: qrels_of(texts, relevant, pools, HELD_OUT) for language, texts in asked.items()},
        merged_pool=len(pools) > 1,
        parallel=True,
    )
    left_out = {language: count for language, (_, count) in judged.items() if count}
    return Benchmark(HELD_OUT, (collection,), ("Held-out documents of the training corpus.",), left_out)


def _texts(found: Mapping[str, str]) -> Texts:
    return Texts(tuple(found), tuple(found.values()))


def retrieval(benchmark: Benchmark) -> Retrieval:
    """The texts of a benchmark and the measures of METRICS that it defines, some with their interval.

    Raises:
        ConfigError: a benchmark of several collections, which have no common language matrix.
    """
    if len(benchmark.collections) > 1:
        raise ConfigError(
            "validation.benchmark",
            f"{benchmark.name} with {len(benchmark.collections)} collections",
            "a benchmark of one collection, such as held-out, xquad-r or mlqa-r",
            "Choose by another one, and report on this one.",
        )
    (collection,) = benchmark.collections
    return Retrieval(
        queries=tuple(text for texts in collection.queries.values() for text in texts.texts),
        candidates=tuple(text for texts in collection.candidates.values() for text in texts.texts),
        measure=Measure(benchmark),
    )


@dataclass(frozen=True)
class Measure:
    """Vectors of a benchmark's texts, language after language -> its measures; picklable."""

    benchmark: Benchmark

    def __call__(self, queries: FloatArray, candidates: FloatArray) -> dict[str, float]:
        """Names are those of METRICS, and `<name>/low` and `<name>/high` for the 95% intervals of WITH_INTERVAL."""
        (collection,) = self.benchmark.collections
        embeddings = Embeddings(
            _by_language(queries, collection.queries), _by_language(candidates, collection.candidates)
        )
        metrics = evaluate_embeddings(self.benchmark, {collection.name: embeddings}).metrics()
        found: dict[str, float] = {}
        for section in (*SETTINGS, BIAS):
            for name, value in metrics[section].items():
                if f"{section}/{name}" in METRICS and isinstance(value, float):
                    found[f"{section}/{name}"] = value
            for name, (low, high) in metrics[section]["intervals"].items():
                if name in WITH_INTERVAL:
                    found |= {f"{section}/{name}/low": low, f"{section}/{name}/high": high}
        return found


def _by_language(vectors: FloatArray, texts: Mapping[str, Texts]) -> dict[str, FloatArray]:
    ends = list(accumulate(len(part) for part in texts.values()))
    return dict(zip(texts, np.split(vectors, ends[:-1]), strict=True))


def defined_metrics(benchmark: Benchmark) -> tuple[str, ...]:
    """Those of METRICS that a benchmark can have, by its languages and its pool."""
    (collection,) = benchmark.collections
    settings = set()
    for query_language in collection.queries:
        for language in collection.candidates:
            settings.add("monolingual" if language == query_language else "cross_lingual")
    if collection.merged_pool:
        settings |= {"multilingual", BIAS}
    return tuple(name for name in METRICS if name.partition("/")[0] in settings)
