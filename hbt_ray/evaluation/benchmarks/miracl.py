"""MIRACL (Zhang et al. 2023): queries of 18 languages, each searching the Wikipedia of its own language.

Every language is a collection of its own: nobody judged a query against passages of another language, so there is
no merged pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks.arrow import ArrowStrings, find
from hbt_ray.evaluation.benchmarks.collection import (
    Benchmark,
    Collection,
    Texts,
    check_known,
    check_unique,
    chosen_languages,
    judged_queries,
    qrels_of,
)
from hbt_ray.evaluation.benchmarks.lines import judgements_of, present, read_rows
from hbt_ray.evaluation.benchmarks.passages import Keys, read_passages

FULL, SLICE = "miracl", "miracl-slice"

_SPLITS = {"dev": ("dev",), "train": ("train",), "dev+train": ("dev", "train")}
_TOPICS = re.compile(r"topics\.miracl-v1\.0-(?P<language>[a-z]{2,3})-(?P<split>dev|train)\.tsv(\.gz)?")
_FULL_KEYS = Keys("docid", ("title", "text"))  # encoded as "title text", as by the authors' baselines
_SLICE_KEYS = Keys("docid", ("text",))  # the title is already in front of the text


def load_miracl(
    data: Path,
    languages: Sequence[str] | None = None,
    *,
    split: str = "dev",
    scratch: Path | None = None,
    name: str = FULL,
) -> Benchmark:
    """MIRACL v1.0: one collection per language, named by its code.

    Files, in `data` or its subfolder `miracl`, each plain or `.gz`:

        topics/topics.miracl-v1.0-{lang}-{split}.tsv    query id, query
        qrels/qrels.miracl-v1.0-{lang}-{split}.tsv      query id, Q0, docid, grade
        miracl-corpus-v1.0-{lang}/docs-*.jsonl or corpus/{lang}/*.jsonl    docid, title, text
        miracl-slice/{lang}.jsonl                       docid, text (a part of the passages, title included)

    The slice is taken where no language has a full corpus; the benchmark is then called "miracl-slice" and keeps the
    queries that have a relevant passage in the slice. `left_out` counts the queries without a relevant passage.

    Args:
        data: the folder that holds the files.
        languages: by default all that have topics of this split and passages, in alphabetical order.
        split: "dev", "train" or "dev+train" (those of the two that a language has).
        scratch: folder for Arrow files that the passages are memory-mapped from; without it they stay in memory.
        name: "miracl-slice" takes the slice even where full corpora are.

    Raises:
        ConfigError: an unknown split, or a language without topics or passages.
        BenchmarkError: no files, an unreadable or malformed one, ids used twice, topics without qrels, judgements of
            unknown queries or, with full corpora, of unknown passages.
    """
    if split not in _SPLITS:
        raise ConfigError("split", repr(split), f"one of {', '.join(_SPLITS)}", "Choose one of these splits.")
    splits, roots = _SPLITS[split], (data, data / "miracl")
    topics = _topic_files(roots, splits)
    corpora = {} if name == SLICE else _present_only({code: _corpus_files(roots, code) for code in topics})
    if not corpora:
        name, corpora = SLICE, _present_only({code: _slice_files(roots, code) for code in topics})
    if not corpora:
        raise BenchmarkError(
            f"benchmark {name}, split {split}",
            f"no topics or no passages in {' or '.join(map(str, roots))}",
            "topics/, qrels/ and miracl-corpus-v1.0-{lang}/ or miracl-slice/",
            "Give the folder that holds these folders.",
        )
    chosen = chosen_languages(languages, sorted(corpora), f"{name}, split {split}")
    loaded = [_load_language(code, topics[code], corpora[code], scratch, name == SLICE) for code in chosen]
    notes = [] if split == "dev" else [f"Queries of the split {split}; published results are on dev."]
    return Benchmark(
        name=name,
        collections=tuple(collection for collection, _, _ in loaded),
        notes=(*notes, *(_slice_notes(loaded) if name == SLICE else ())),
        left_out={code: without for code, (_, without, _) in zip(chosen, loaded, strict=True) if without},
    )


def read_topics(files: Iterable[Path]) -> Texts:
    """The queries of topic files (query id, query), in file order. Raises BenchmarkError."""
    rows = [(where, *fields) for path in files for where, fields in read_rows(path, ("query id", "query"))]
    check_unique(((where, query) for where, query, _ in rows), "query id")
    return Texts(tuple(query for _, query, _ in rows), tuple(text for _, _, text in rows))


def read_qrels(files: Iterable[Path]) -> Mapping[str, Mapping[str, int]]:
    """query id -> {docid: grade} of qrels files (query id, Q0, docid, grade). Raises BenchmarkError."""
    columns = ("query id", "Q0", "docid", "grade")
    rows = ((where, fields) for path in files for where, fields in read_rows(path, columns))
    return judgements_of((where, query, docid, grade) for where, (query, _, docid, grade) in rows)


_Loaded = tuple[Collection, int, tuple[int, int]]  # queries without relevant passage; judged pairs: outside, all


def _load_language(
    code: str, topics: Sequence[Path], corpus: Sequence[Path], scratch: Path | None, is_slice: bool
) -> _Loaded:
    qrels_files = [_qrels_file(path) for path in topics]
    where = ", ".join(map(str, qrels_files))
    all_queries, judged = read_topics(topics), read_qrels(qrels_files)
    check_known(judged, all_queries.ids, "query", where)
    passages = read_passages(corpus, _SLICE_KEYS if is_slice else _FULL_KEYS, scratch)[None]
    pairs = sum(map(len, judged.values()))
    if is_slice:
        judged = _inside(judged, passages)
    judgements = {
        query: {(code, docid): grade for docid, grade in documents.items()} for query, documents in judged.items()
    }
    queries, without = judged_queries(all_queries, judgements)
    collection = Collection(
        name=code,
        queries={code: queries},
        candidates={code: passages},
        qrels={code: qrels_of(queries, judgements, {code: passages}, where)},
        merged_pool=False,
        parallel=False,
    )
    return collection, without, (pairs - sum(map(len, judged.values())), pairs)


def _inside(judged: Mapping[str, Mapping[str, int]], passages: Texts) -> dict[str, dict[str, int]]:
    """The judgements of passages that are there."""
    assert isinstance(passages.ids, ArrowStrings)
    there = find(passages.ids, list(dict.fromkeys(docid for documents in judged.values() for docid in documents)))
    return {
        query: {docid: grade for docid, grade in documents.items() if docid in there}
        for query, documents in judged.items()
    }


def _slice_notes(loaded: Sequence[_Loaded]) -> tuple[str, ...]:
    kept = sum(
        collection_size for collection, _, _ in loaded for collection_size in map(len, collection.queries.values())
    )
    left_out = sum(without for _, without, _ in loaded)
    outside, pairs = (sum(counts) for counts in zip(*(counts for _, _, counts in loaded), strict=True))
    return (
        "A slice of the MIRACL passages: the numbers are not comparable with results on the full collections.",
        f"{kept} of {kept + left_out} queries have a relevant passage in the slice; the others are left out.",
        f"{outside} of {pairs} judgements are of passages outside the slice and are not counted.",
    )


def _topic_files(roots: Sequence[Path], splits: Sequence[str]) -> dict[str, list[Path]]:
    """language -> its topic files of these splits, in the order of `splits`."""
    for root in roots:
        names = sorted(path.name for path in (root / "topics").glob("topics.miracl-v1.0-*"))
        found = {(match["language"], match["split"]) for match in map(_TOPICS.fullmatch, names) if match}
        files: dict[str, list[Path]] = {}
        for code, split in sorted(found, key=lambda pair: (pair[0], _SPLITS["dev+train"].index(pair[1]))):
            path = present(root / "topics" / f"topics.miracl-v1.0-{code}-{split}.tsv")
            if split in splits and path is not None:
                files.setdefault(code, []).append(path)
        if files:
            return files
    return {}


def _qrels_file(topics: Path) -> Path:
    path = topics.parents[1] / "qrels" / topics.name.replace("topics.", "qrels.", 1).removesuffix(".gz")
    return present(path) or path


def _corpus_files(roots: Sequence[Path], code: str) -> list[Path]:
    for root in roots:
        for folder, pattern in ((root / f"miracl-corpus-v1.0-{code}", "docs-*"), (root / "corpus" / code, "*")):
            files = {path.name.removesuffix(".gz") for path in folder.glob(f"{pattern}.jsonl*")}
            found = [present(folder / name) for name in sorted(files) if name.endswith(".jsonl")]
            if found:
                return [path for path in found if path is not None]
    return []


def _slice_files(roots: Sequence[Path], code: str) -> list[Path]:
    found = (present(root / SLICE / f"{code}.jsonl") for root in roots)
    return [path for path in found if path is not None][:1]


def _present_only(files: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    return {code: paths for code, paths in files.items() if paths}
