"""Measure a dataset of training shards in two passes: ids and repetitions in one language, then lengths in all.

Memory is some twenty bytes per row; texts are read a row group at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hbt_ray.corpus.documents import document_names
from hbt_ray.corpus.shards import ShardedDataset, WholeReader

SAMPLES = 5
BINS_PER_DOUBLING = 2  # of the histograms of lengths

_PIVOT = "en"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of texts in characters.

    Args:
        texts: how many.
        median, percentile95, longest: the smallest length that so large a share of the texts does not exceed; 0
            without texts.
        histogram: texts by length; bin b holds the lengths l with floor(2 * log2(l)) = b.
    """

    texts: int
    median: int
    percentile95: int
    longest: int
    histogram: Sequence[int]


@dataclass(frozen=True, slots=True)
class LanguageDescription:
    """A language of a dataset.

    Args:
        code: of the language.
        queries, passages, pairs: rows with a query, with a passage, with both.
        missing_queries, missing_passages: share of the rows without.
        negatives: hard negatives of all rows.
        query_lengths: of all queries.
        passage_lengths: of the passages, each passage_id once.
    """

    code: str
    queries: int
    passages: int
    pairs: int
    missing_queries: float
    missing_passages: float
    negatives: int
    query_lengths: Lengths
    passage_lengths: Lengths


@dataclass(frozen=True, slots=True)
class Sample:
    """A row in all languages that it has; `document` is its name, or number where documents have no names."""

    pair_id: str
    passage_id: str
    document: str
    query: Mapping[str, str]
    passage: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Description:
    """A dataset.

    Args:
        name: of the dataset.
        address: of its folder.
        rows: pairs.
        parts: files per language.
        documents: groups that a held-out split takes whole.
        passages: distinct passage ids.
        passages_per_document: median and most.
        pairs_per_passage: median and most.
        pivot: the language in which repetitions were counted.
        repeated_queries: rows whose query another row before has word for word.
        repeated_pairs: rows whose query and passage another row before has word for word.
        languages: one entry per language.
        rejected: reason -> rows that were left out when the dataset was made.
        provenance: what the manifest says of the source, without the counts of `rejected`.
        samples: the first rows; rows are shuffled, so they are a random choice.
    """

    name: str
    address: str
    rows: int
    parts: int
    documents: int
    passages: int
    passages_per_document: tuple[int, int]
    pairs_per_passage: tuple[int, int]
    pivot: str
    repeated_queries: int
    repeated_pairs: int
    languages: Sequence[LanguageDescription]
    rejected: Mapping[str, int]
    provenance: Mapping[str, Any]
    samples: Sequence[Sample]


def describe(dataset: ShardedDataset, samples: int = SAMPLES) -> Description:
    """Describe a dataset, reading every text once.

    Raises:
        CorpusError: a file of the dataset is missing or not what it should be.
    """
    manifest = dataset.manifest
    pivot = _PIVOT if _PIVOT in manifest.languages else manifest.languages[0]
    passage_ids, queries, pairs = _hashes(dataset, pivot)
    _, first, per_passage = np.unique(passage_ids, return_index=True, return_counts=True)
    is_first = np.zeros(manifest.rows, dtype=bool)
    is_first[first] = True
    per_document = np.bincount(dataset.groups()[first], minlength=manifest.groups)
    return Description(
        name=dataset.name,
        address=dataset.folder.uri,
        rows=manifest.rows,
        parts=len(manifest.rows_per_part),
        documents=manifest.groups,
        passages=len(first),
        passages_per_document=(_rank(per_document, 0.5), int(per_document.max())),
        pairs_per_passage=(_rank(per_passage, 0.5), int(per_passage.max())),
        pivot=pivot,
        repeated_queries=_repeated(queries),
        repeated_pairs=_repeated(pairs),
        languages=[_language(dataset, code, is_first) for code in manifest.languages],
        rejected=_rejected(dataset),
        provenance={key: value for key, value in manifest.provenance.items() if key != "rejected"},
        samples=_samples(dataset, samples),
    )


# Repetitions


def _hashes(dataset: ShardedDataset, lang: str) -> tuple[npt.NDArray[np.uint64], ...]:
    """uint64 [rows] each: of the passage id, of the query, of query and passage; 0 where there is no text."""
    ids, queries, pairs = (np.zeros(dataset.manifest.rows, dtype=np.uint64) for _ in range(3))
    for start, table in _tables(dataset, lang, ["passage_id", "query", "passage"]):
        columns = [table[name].to_pylist() for name in ("passage_id", "query", "passage")]
        for row, (passage_id, query, passage) in enumerate(zip(*columns, strict=True), start):
            ids[row] = _hash(passage_id)
            if query is not None:
                queries[row] = _hash(query)
                if passage is not None:
                    pairs[row] = _hash(f"{query}\0{passage}")
    return ids, queries, pairs


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _repeated(hashes: npt.NDArray[np.uint64]) -> int:
    """Rows with a text whose text another row before them has."""
    present = hashes[hashes != 0]
    return len(present) - len(np.unique(present))


def _tables(dataset: ShardedDataset, lang: str, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """First row and cells of every row group."""
    reader = WholeReader(dataset)
    for group, start in enumerate(dataset.group_starts[:-1].tolist()):
        yield start, reader.read_group(lang, group, columns)


# Lengths


def _language(dataset: ShardedDataset, code: str, is_first: npt.NDArray[np.bool_]) -> LanguageDescription:
    queries: Counter[int] = Counter()
    passages: Counter[int] = Counter()
    negatives = 0
    for start, table in _tables(dataset, code, ["query", "passage", "negatives"]):
        queries.update(_lengths(table["query"]))
        chosen = pa.array(is_first[start : start + table.num_rows])
        passages.update(_lengths(table["passage"].filter(chosen)))
        negatives += pc.sum(pc.list_value_length(table["negatives"])).as_py() or 0
    usable, rows = dataset.manifest.usable[code], dataset.manifest.rows
    return LanguageDescription(
        code=code,
        queries=usable["queries"],
        passages=usable["passages"],
        pairs=usable["pairs"],
        missing_queries=1 - usable["queries"] / rows,
        missing_passages=1 - usable["passages"] / rows,
        negatives=negatives,
        query_lengths=_summary(queries),
        passage_lengths=_summary(passages),
    )


def _lengths(column: pa.ChunkedArray) -> dict[int, int]:
    """Length in characters -> texts."""
    counts = pc.value_counts(pc.utf8_length(column.drop_null()))
    return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}


def _summary(counts: Mapping[int, int]) -> Lengths:
    if not counts:
        return Lengths(0, 0, 0, 0, ())
    lengths = np.array(sorted(counts))
    texts = np.array([counts[length] for length in lengths.tolist()])
    reached = np.cumsum(texts) / texts.sum()
    bins = np.floor(np.log2(np.maximum(lengths, 1)) * BINS_PER_DOUBLING).astype(np.int64)
    median, percentile95 = (int(lengths[np.searchsorted(reached, share - 1e-12)]) for share in (0.5, 0.95))
    return Lengths(
        int(texts.sum()),
        median,
        percentile95,
        int(lengths[-1]),
        np.bincount(bins, weights=texts).astype(np.int64).tolist(),
    )


def _rank(values: npt.NDArray[np.int64], share: float) -> int:
    return int(np.quantile(values, share, method="inverted_cdf"))


# What else the folder holds


def _rejected(dataset: ShardedDataset) -> dict[str, int]:
    """Reason -> rows: of the manifest, or counted in the files of an older dataset; cleaning counts for itself."""
    provenance = dataset.manifest.provenance
    given = provenance.get("rejected")
    counts = Counter(given) if given is not None else _counted_files(dataset)
    return dict((counts + Counter(provenance.get("cleaning", {}).get("rejected", {}))).most_common())


def _counted_files(dataset: ShardedDataset) -> Counter[str]:
    folder = dataset.folder / "rejected"
    counts: Counter[str] = Counter()
    for name in [name for name in folder.entries() if name.endswith(".jsonl") and name != "cleaning.jsonl"]:
        counts += folder.read_with(name, lambda file: Counter(_reasons(io.TextIOWrapper(file, encoding="utf-8"))))
    return counts


def _reasons(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield json.loads(line)["reason"]


def _samples(dataset: ShardedDataset, count: int) -> list[Sample]:
    columns = ["pair_id", "passage_id", "query", "passage"]
    tables = {
        code: dataset.read_group(code, 0, columns).slice(0, count).to_pylist() for code in dataset.manifest.languages
    }
    names, numbers = document_names(dataset), dataset.groups()
    samples = []
    for row, keys in enumerate(next(iter(tables.values()))):
        texts = {
            name: {code: rows[row][name] for code, rows in tables.items() if rows[row][name] is not None}
            for name in ("query", "passage")
        }
        document = str(numbers[row]) if names is None else str(names[int(numbers[row])])
        samples.append(Sample(keys["pair_id"], keys["passage_id"], document, texts["query"], texts["passage"]))
    return samples
