"""Search training shards for the texts and articles of a benchmark, one pass over each text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hbt_ray.corpus.cleaning import folded
from hbt_ray.corpus.documents import document_names
from hbt_ray.corpus.shards import ShardedDataset, WholeReader
from hbt_ray.evaluation.benchmarks import Benchmark
from hbt_ray.leakage.articles import shared_documents, untitled_documents
from hbt_ray.leakage.index import CANDIDATE, QUESTION, BenchmarkIndex, LeakageSettings, index_benchmark
from hbt_ray.leakage.report import Article, Finding, LeakageReport, Searched, Share

SAME_ID = "same id"
LISTED = 100  # findings of each kind, and names of documents, in the report itself

_ROWS_AT_ONCE = 4096


def find_leakage(
    datasets: Sequence[ShardedDataset],
    benchmark: Benchmark,
    titles: Collection[str] | None,
    settings: LeakageSettings | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> LeakageReport:
    """Compare every query, passage and negative of all languages with every question and candidate of all languages.

    A finding is one text of the benchmark in one training text; a passage of several pairs counts once. Where the
    benchmark asks one question in several languages under one id, a question found in one of them is found in all.

    Args:
        datasets: training data.
        benchmark: evaluation data; its index is in memory.
        titles: of the benchmark's articles, from `read_titles`; None if it has none.
        settings: thresholds; None for the defaults.
        on_finding: called with every finding of a text; the report lists the first hundred of each kind.

    Raises:
        ConfigError: a benchmark too large to index.
        CorpusError: a missing file of a dataset.
    """
    settings = settings or LeakageSettings()
    index = index_benchmark(benchmark, settings)
    tally = _Tally(on_finding)
    searched: list[Searched] = []
    articles: list[Article] = []
    for dataset in datasets:
        leaked = np.zeros(dataset.manifest.rows, dtype=bool)
        for row, finding in chain(_shared_ids(dataset, benchmark, settings), _repeated_texts(dataset, index)):
            leaked[row] = True
            tally.add(finding)
        articles += _shared_articles(dataset, titles)
        searched.append(_searched(dataset, leaked))
    return LeakageReport(
        benchmark=benchmark.name,
        benchmark_hash=benchmark.data_hash,
        settings=settings,
        datasets=searched,
        questions=_question_shares(benchmark, tally),
        candidates=_candidate_shares(benchmark, tally),
        findings=dict(tally.counts),
        listed=list(chain.from_iterable(tally.listed.values())),
        articles=articles,
        has_titles=titles is not None,
        untitled={} if titles is None else _untitled(datasets),
    )


@dataclass
class _Tally:
    """What has been found so far; `ids` are those of the benchmark's texts, by kind and language."""

    on_finding: Callable[[Finding], None]
    ids: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Finding]] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def add(self, finding: Finding) -> None:
        if finding.key in self._seen:
            return
        self._seen.add(finding.key)
        self.ids.setdefault((finding.kind, finding.benchmark_language), set()).add(finding.benchmark_id)
        name = f"{finding.kind}, {finding.match}"
        self.counts[name] += 1
        listed = self.listed.setdefault(name, [])
        if len(listed) < LISTED:
            listed.append(finding)
        self.on_finding(finding)


# Texts


def _shared_ids(
    dataset: ShardedDataset, benchmark: Benchmark, settings: LeakageSettings
) -> Iterator[tuple[int, Finding]]:
    """Row and finding of every pair whose id is that of a question, if ids are so long that it cannot be chance."""
    questions = {
        question: (lang, text)
        for collection in benchmark.collections
        for lang, texts in collection.queries.items()
        for question, text in zip(texts.ids, texts.texts, strict=True)
        if len(question) >= settings.id_characters
    }
    lang = dataset.manifest.languages[0]
    for start, table in _tables(dataset, lang) if questions else ():
        for i, pair_id in enumerate(table["pair_id"].to_pylist()):
            if pair_id in questions:
                found_in, text = questions[pair_id]
                place = _place(dataset.name, lang, "query", table, i)
                training_text = table["query"][i].as_py() or ""
                yield start + i, Finding(QUESTION, SAME_ID, 1.0, found_in, pair_id, text, **place, text=training_text)


def _repeated_texts(dataset: ShardedDataset, index: BenchmarkIndex) -> Iterator[tuple[int, Finding]]:
    """Row and finding of every training text that repeats one of the benchmark's."""
    for lang in dataset.manifest.languages:
        for start, table in _tables(dataset, lang):
            for column in ("query", "passage", "negatives"):
                rows, texts = _cells(table[column])
                for match in index.matches([folded(text) for text in texts], whole=column == "query"):
                    row = rows[match.text]
                    place = _place(dataset.name, lang, column, table, row)
                    item = index.item(match.item)
                    yield (
                        start + row,
                        Finding(
                            *(item.kind, match.how, match.score, item.language, item.id, item.text),
                            **place,
                            text=texts[match.text],
                        ),
                    )


def _tables(dataset: ShardedDataset, lang: str) -> Iterator[tuple[int, pa.Table]]:
    """First row and cells of some row groups at a time."""
    columns = ["pair_id", "passage_id", "query", "passage", "negatives"]
    reader = WholeReader(dataset)
    starts = dataset.group_starts
    at_once = max(1, _ROWS_AT_ONCE // dataset.manifest.rows_per_group)
    for first in range(0, len(starts) - 1, at_once):
        groups = range(first, min(first + at_once, len(starts) - 1))
        yield int(starts[first]), pa.concat_tables(reader.read_group(lang, group, columns) for group in groups)


def _cells(column: pa.ChunkedArray) -> tuple[list[int], list[str]]:
    """Row and text of every text of a column, of one or of several in each row."""
    cells = column.to_pylist()
    found = [
        (row, text)
        for row, cell in enumerate(cells)
        for text in ([cell] if isinstance(cell, str) else cell or ())
        if text is not None
    ]
    return [row for row, _ in found], [text for _, text in found]


def _place(dataset: str, lang: str, column: str, table: pa.Table, row: int) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "language": lang,
        "column": column,
        "pair_id": table["pair_id"][row].as_py(),
        "passage_id": table["passage_id"][row].as_py(),
    }


# Sums


def _question_shares(benchmark: Benchmark, tally: _Tally) -> dict[str, Share]:
    """By language; where translations of a question have its id, finding one of them finds all."""
    shares: dict[str, Share] = {}
    for collection in benchmark.collections:
        found = {lang: tally.ids.get((QUESTION, lang), set()) for lang in collection.queries}
        anywhere = set().union(*found.values())
        for lang, texts in collection.queries.items():
            ids = anywhere if collection.parallel else found[lang]
            shares[lang] = _plus(shares.get(lang), sum(question in ids for question in texts.ids), len(texts))
    return shares


def _candidate_shares(benchmark: Benchmark, tally: _Tally) -> dict[str, Share]:
    shares: dict[str, Share] = {}
    for collection in benchmark.collections:
        for lang, texts in collection.candidates.items():
            ids = tally.ids.get((CANDIDATE, lang), set())
            found = sum(candidate in ids for candidate in texts.ids) if ids else 0
            shares[lang] = _plus(shares.get(lang), found, len(texts))
    return shares


def _plus(share: Share | None, found: int, of: int) -> Share:
    return Share(found, of) if share is None else Share(share.found + found, share.of + of)


def _searched(dataset: ShardedDataset, leaked: npt.NDArray[np.bool_]) -> Searched:
    """The dataset and what in it was found; the names of documents only where it has any."""
    numbers = np.unique(dataset.groups()[leaked])
    names = document_names(dataset)
    documents = [] if names is None else names.take(pa.array(numbers[:LISTED])).to_pylist()
    return Searched(dataset.name, dataset.data_hash, dataset.manifest.rows, int(leaked.sum()), len(numbers), documents)


def _shared_articles(dataset: ShardedDataset, titles: Collection[str] | None) -> list[Article]:
    if titles is None:
        return []
    shared = shared_documents(dataset, titles) or []
    rows = np.bincount(dataset.groups(), minlength=dataset.manifest.groups)
    return [Article(dataset.name, name, int(rows[number])) for number, name in shared]


def _untitled(datasets: Sequence[ShardedDataset]) -> dict[str, int]:
    """Dataset -> documents without a title, where there are any."""
    counts = {dataset.name: untitled_documents(dataset) for dataset in datasets}
    return {name: count for name, count in counts.items() if count}
