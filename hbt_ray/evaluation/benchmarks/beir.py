"""Folders in BEIR format (Thakur et al. 2021), in one language or, with a key `language` per line, in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks.arrow import ArrowStrings, find
from hbt_ray.evaluation.benchmarks.collection import (
    Benchmark,
    Collection,
    Judgements,
    Texts,
    check_known,
    chosen_languages,
    judged_queries,
    qrels_of,
)
from hbt_ray.evaluation.benchmarks.lines import judgements_of, present, read_rows, shown
from hbt_ray.evaluation.benchmarks.passages import Keys, read_passages
from hbt_ray.languages import language

_DOCUMENT_KEYS = Keys("_id", ("text",), ("title", "language"))
_QUERY_KEYS = Keys("_id", ("text",), ("language",))
_QRELS_COLUMNS = ("query-id", "corpus-id", "score")


def load_beir(
    folder: Path, languages: Sequence[str] | None = None, *, split: str = "test", scratch: Path | None = None
) -> Benchmark:
    """A BEIR folder, named "beir-<folder name>"; one collection with graded relevance.

    Files, each plain or `.gz`:

        corpus.jsonl         _id, text, optionally title and language; the text is "title text"
        queries.jsonl        _id, text, optionally language
        qrels/{split}.tsv    query-id, corpus-id, score (with this header)

    With `language` on every line of both files the folder is multilingual: every query searches every language's
    documents and their union. Queries without a relevant document in this split are left out and counted. A document
    whose id equals that of the query is a document like any other.

    Args:
        folder: the folder with these files.
        languages: the languages to load, by default all in alphabetical order; judgements of documents in others do
            not count. Where the files name no language, the one language that they are in (default "en").
        split: the qrels file to take.
        scratch: folder for Arrow files that the documents are memory-mapped from; without it they stay in memory.

    Raises:
        ConfigError: a language that the folder lacks.
        BenchmarkError: an absent, unreadable or malformed file, an id used twice, `language` in one of the two files
            only or unknown to CLDR, qrels that name unknown queries or documents, no query with a relevant document.
    """
    name = f"beir-{folder.resolve().name}"
    qrels_file = _qrels_file(folder, split)
    documents = read_passages([_file(folder, "corpus.jsonl")], _DOCUMENT_KEYS, scratch)
    all_queries = read_passages([_file(folder, "queries.jsonl")], _QUERY_KEYS)
    if (None in documents) != (None in all_queries):
        raise BenchmarkError(
            str(folder),
            f"a language per line in {'queries' if None in documents else 'corpus'}.jsonl only",
            "the key language on all lines of both files or on none",
            "Add the key to the other file.",
        )
    only = languages[0] if languages is not None and len(languages) == 1 else "en"
    corpus = {code or only: texts for code, texts in documents.items()}
    asked = {code or only: _in_memory(texts) for code, texts in all_queries.items()}
    available = sorted({*asked, *corpus})
    _check_languages(available, folder)
    chosen = chosen_languages(languages, available, name)

    judged = judgements_of(_qrels_rows(qrels_file))
    check_known(judged, (query for texts in asked.values() for query in texts.ids), "query", str(qrels_file))
    judgements = _with_languages(judged, corpus, chosen, str(qrels_file))
    candidates = {code: corpus[code] for code in chosen if code in corpus}
    split_queries = {code: judged_queries(asked[code], judgements) for code in chosen if code in asked}
    queries = {code: texts for code, (texts, _) in split_queries.items() if len(texts)}
    collection = Collection(
        name=name,
        queries=queries,
        candidates=candidates,
        qrels={code: qrels_of(texts, judgements, candidates, str(qrels_file)) for code, texts in queries.items()},
        merged_pool=len(candidates) > 1,
        parallel=False,
    )
    notes = () if split == "test" else (f"Queries of the split {split}.",)
    return Benchmark(
        name, (collection,), notes, {code: without for code, (_, without) in split_queries.items() if without}
    )


def _check_languages(codes: Sequence[str], folder: Path) -> None:
    for code in codes:
        try:
            language(code, f"{folder}: language")
        except ConfigError as error:
            raise BenchmarkError(error.where, error.received, error.expected, error.fix) from error


def _with_languages(
    judged: Mapping[str, Mapping[str, int]], corpus: Mapping[str, Texts], chosen: Sequence[str], where: str
) -> Judgements:
    """The judgements of documents in the chosen languages; raises BenchmarkError if a document is in none at all."""
    named = list(dict.fromkeys(document for documents in judged.values() for document in documents))
    language_of = {document: code for code, texts in corpus.items() for document in _found(texts, named)}
    check_known(named, language_of, "document", where)
    return {
        query: {
            (language_of[document], document): grade
            for document, grade in documents.items()
            if language_of[document] in chosen
        }
        for query, documents in judged.items()
    }


def _found(texts: Texts, wanted: Sequence[str]) -> dict[str, int]:
    assert isinstance(texts.ids, ArrowStrings)
    return find(texts.ids, wanted)


def _in_memory(texts: Texts) -> Texts:
    return Texts(tuple(texts.ids), tuple(texts.texts))


def _qrels_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    rows = read_rows(path, _QRELS_COLUMNS)
    where, header = next(rows, (f"{path}:1", []))
    if tuple(header) != _QRELS_COLUMNS:
        raise BenchmarkError(where, shown(header), f"the header {' '.join(_QRELS_COLUMNS)}", "Add this first line.")
    yield from ((where, query, document, score) for where, (query, document, score) in rows)


def _file(folder: Path, name: str) -> Path:
    path = present(folder / name)
    if path is None:
        raise BenchmarkError(str(folder), f"no {name}", f"{name} or {name}.gz", "Give a folder in BEIR format.")
    return path


def _qrels_file(folder: Path, split: str) -> Path:
    path = present(folder / "qrels" / f"{split}.tsv")
    if path is None:
        names = sorted({path.name.removesuffix(".gz").removesuffix(".tsv") for path in folder.glob("qrels/*.tsv*")})
        raise BenchmarkError(
            str(folder / "qrels"),
            f"no split {split!r}",
            f"one of the splits there: {', '.join(names) or 'none'}",
            "Choose one of these splits.",
        )
    return path
