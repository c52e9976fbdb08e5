"""Mr. TyDi: questions of TyDi QA with Wikipedia passages in eleven languages, as published by castorini."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from hbt_ray.corpus.formats.tables import REPEATED_ID, existing, language_of, titled
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, json_lines, lines, text_fault
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

NO_TAB = "row is not an id, a tab and a text"
NO_JUDGEMENT = "row is not query, Q0, docid and relevance"
NO_QUERY = "query of the judgement is not among the topics"
NO_PASSAGE = "passage of the judgement is not in the collection"

Split = Literal["train", "dev", "test"]


class _Passage(BaseModel):
    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)
    docid: UsableText
    title: str | None = None
    text: UsableText


class _Document(BaseModel):
    """A line of either published collection: `docs.jsonl` has the title in front of its contents."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)
    docid: UsableText = Field(validation_alias=AliasChoices("docid", "id"))
    title: str | None = None
    text: UsableText = Field(validation_alias=AliasChoices("text", "contents"))


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)
    query_id: UsableText
    query: UsableText
    positive_passages: list[_Passage]
    negative_passages: list[_Passage] = []


def read_mr_tydi(source: Path, reject: Reject, *, split: Split = "train", negatives: int = 4) -> Iterator[ParallelPair]:
    """One pair per question and relevant passage, in one language each: nothing is parallel.

    `pair_id` is "language:query:docid", `passage_id` "language:docid", `group` "language:article", the part of the
    docid before "#". A passage of title and text is both with one space between; `contents` stay as they are.

    Args:
        source: the folder of a language, named by it ("mrtydi-v1.1-english", "english", "en"), or a folder of those.
            In it stand, first of these, `train.jsonl`: {query_id, query, positive_passages, negative_passages}, each
            passage {docid, title, text}; or `topic.train.tsv`, `qrels.train.txt` (TREC) and `collection/docs.jsonl`
            {id, contents}; or the same as `ir-format-data/topics.train.txt`, `ir-format-data/qrels.train.txt` and
            `corpus.jsonl` {docid, title, text}. All also with `.gz`.
        reject: called with rows that are left out.
        split: `train`, `dev` or `test`; the files of another split are named by it.
        negatives: hard negatives of a pair, at most; only `train.jsonl` has any.

    Raises:
        CorpusError: no such folder or file, an unknown language, an empty or damaged file.
    """
    for folder in _folders(source, split):
        language = language_of(folder.name.rpartition("-")[2], str(folder))
        if questions := existing(folder, f"{split}.jsonl"):
            yield from _from_questions(questions, language, negatives, reject)
        else:
            yield from _from_judgements(folder, language, split, reject)


def _folders(source: Path, split: Split) -> list[Path]:
    """The source, if it is the folder of a language, else those inside it."""
    folders = [source] if _has_split(source, split) else sorted(f for f in source.glob("*/") if _has_split(f, split))
    if not folders:
        expected = f"{split}.jsonl or topic.{split}.tsv in it, or in folders named by language"
        raise CorpusError(str(source), "no questions", expected, "Check the path and the split.")
    return folders


def _has_split(folder: Path, split: Split) -> bool:
    return existing(folder, f"{split}.jsonl", *_topics(split)) is not None


def _topics(split: Split) -> tuple[str, str]:
    return f"topic.{split}.tsv", f"ir-format-data/topics.{split}.txt"


def _from_questions(path: Path, language: str, negatives: int, reject: Reject) -> Iterator[ParallelPair]:
    seen: set[str] = set()
    for _, question in json_lines(path, _Question, reject, language):
        others = [titled(passage.title, passage.text) for passage in question.negative_passages[:negatives]]
        for passage in question.positive_passages:
            text = titled(passage.title, passage.text)
            pair = _pair(language, question.query_id, question.query, passage.docid, text, others)
            if pair.pair_id in seen:
                reject(RejectedRow(path.name, pair.pair_id, language, REPEATED_ID, question.query))
            else:
                seen.add(pair.pair_id)
                yield pair


def _from_judgements(folder: Path, language: str, split: Split, reject: Reject) -> Iterator[ParallelPair]:
    """Join topics, judgements and the collection; of the collection only the relevant passages are in memory."""
    topics = _file(folder, *_topics(split))
    qrels = _file(folder, f"qrels.{split}.txt", f"ir-format-data/qrels.{split}.txt")
    collection = _file(folder, "collection/docs.jsonl", "corpus.jsonl")
    queries = _queries(topics, language, reject)
    judgements = list(_judgements(qrels, language, reject))
    wanted = {docid for _, docid in judgements}
    passages: dict[str, str] = {}
    for number, document in json_lines(collection, _Document, reject, language):
        if document.docid in passages:
            reject(RejectedRow(collection.name, str(number), language, REPEATED_ID, document.text))
        elif document.docid in wanted:
            passages[document.docid] = titled(document.title, document.text)
    for query_id, docid in judgements:
        if query_id in queries and docid in passages:
            yield _pair(language, query_id, queries[query_id], docid, passages[docid])
        else:
            reason = NO_PASSAGE if query_id in queries else NO_QUERY
            reject(RejectedRow(qrels.name, f"{query_id} {docid}", language, reason, queries.get(query_id, "")))


def _file(folder: Path, *names: str) -> Path:
    path = existing(folder, *names)
    if path is None:
        raise CorpusError(str(folder), "no such file in it", " or ".join(names), "Add the file.")
    return path


def _queries(path: Path, language: str, reject: Reject) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, line in lines(path, reject, language):
        query_id, tab, text = line.partition("\t")
        reason = text_fault(text) if tab else NO_TAB
        if reason or query_id in queries:
            reject(RejectedRow(path.name, str(number), language, reason or REPEATED_ID, line))
        else:
            queries[query_id] = text
    return queries


def _judgements(path: Path, language: str, reject: Reject) -> Iterator[tuple[str, str]]:
    """Query and docid of every relevant passage, each once."""
    seen: set[tuple[str, str]] = set()
    for number, line in lines(path, reject, language):
        fields = line.split()
        if len(fields) != 4 or not fields[3].isdecimal() or (fields[0], fields[2]) in seen:
            reason = REPEATED_ID if len(fields) == 4 and fields[3].isdecimal() else NO_JUDGEMENT
            reject(RejectedRow(path.name, str(number), language, reason, line))
        elif int(fields[3]) > 0:
            seen.add((fields[0], fields[2]))
            yield fields[0], fields[2]


def _pair(
    language: str, query_id: str, query: str, docid: str, passage: str, negatives: Sequence[str] = ()
) -> ParallelPair:
    return ParallelPair(
        pair_id=f"{language}:{query_id}:{docid}",
        passage_id=f"{language}:{docid}",
        group=f"{language}:{docid.partition('#')[0]}",
        query={language: query},
        passage={language: passage},
        negatives={language: negatives} if negatives else {},
    )
