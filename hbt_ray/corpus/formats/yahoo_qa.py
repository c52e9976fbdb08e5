"""Yahoo! Answers: a question's title with the answer that was voted or chosen the best."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.formats.tables import REPEATED_ID, UNKNOWN_LANGUAGE, accepted, csv_rows, is_known, json_rows
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, lines, text_hash
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

LANGUAGE = "en"
NOT_XML = "document is not XML"
UNCLOSED = "document has no end"

_OPENING, _CLOSING = "<vespaadd>", "</vespaadd>"
_BREAK = re.compile(r"<br\s*/?>\n?")


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)
    id: UsableText
    question: UsableText
    answer: UsableText
    language: str = LANGUAGE


def read_yahoo_qa(source: Path, reject: Reject) -> Iterator[ParallelPair]:
    """One pair per question; its id is the `pair_id`, and the hash of the answer is `passage_id` and `group`.

    The texts of the XML files are HTML within XML: line breaks and character references are decoded, and nothing else.
    Their language is that of `<qlang>`, else of `<language>`; the other files are English. Ids are kept in memory.

    Args:
        source: by its ending (`.gz` allowed): `.xml`, the files of the collections L5 and L6, `<vespaadd>` elements
            with `<uri>`, `<subject>` and `<bestanswer>`; `.json`, the array `nfL6.json` of {id, question, answer,
            nbestanswers, main_category}; `.jsonl` or `.csv` with the same fields.
        reject: called with questions that are left out.

    Raises:
        CorpusError: the file is absent, empty or damaged, has another ending, lacks a column, or is no JSON array.
    """
    kind = source.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "xml":
        return _pairs(_from_xml(source, reject), source.name, reject)
    if kind == "csv":
        return _pairs(csv_rows(source, _Question, reject, LANGUAGE), source.name, reject)
    if kind in ("json", "jsonl"):
        return _pairs(json_rows(source, _Question, reject, LANGUAGE), source.name, reject)
    raise CorpusError(str(source), f"ending {source.suffix!r}", ".xml, .json, .jsonl or .csv", "Convert the file.")


def _pairs(questions: Iterator[tuple[int, _Question]], file: str, reject: Reject) -> Iterator[ParallelPair]:
    seen: set[str] = set()
    for _, question in questions:
        if question.id in seen or not is_known(question.language):
            reason = REPEATED_ID if question.id in seen else UNKNOWN_LANGUAGE
            reject(RejectedRow(file, question.id, question.language, reason, question.question))
            continue
        seen.add(question.id)
        language, passage_id = question.language, text_hash(question.answer)
        yield ParallelPair(
            question.id, passage_id, passage_id, {language: question.question}, {language: question.answer}
        )


def _from_xml(path: Path, reject: Reject) -> Iterator[tuple[int, _Question]]:
    """Documents are parsed one by one, so that a malformed one costs nothing but itself."""
    start, block = 0, list[str]()
    for number, line in lines(path, reject, LANGUAGE):
        if _OPENING in line:
            if block:
                reject(RejectedRow(path.name, str(start), LANGUAGE, UNCLOSED, "\n".join(block)))
            start, block = number, [line[line.index(_OPENING) :]]
        elif block:
            block.append(line)
        if block and _CLOSING in line:
            if question := _document("\n".join(block), path.name, str(start), reject):
                yield start, question
            block = []
    if block:
        reject(RejectedRow(path.name, str(start), LANGUAGE, UNCLOSED, "\n".join(block)))
    if not start:
        raise CorpusError(
            str(path), f"no {_OPENING} in it", "documents of L5 or L6", "Check that this is the right file."
        )


def _document(block: str, file: str, row: str, reject: Reject) -> _Question | None:
    try:
        document = ElementTree.fromstring(block)
    except ElementTree.ParseError:
        reject(RejectedRow(file, row, LANGUAGE, NOT_XML, block))
        return None
    values = {
        "id": document.findtext(".//uri"),
        "question": _decoded(document.findtext(".//subject")),
        "answer": _decoded(document.findtext(".//bestanswer")),
        "language": _language(document),
    }
    given = {name: value for name, value in values.items() if value is not None}
    return accepted(_Question, given, file, row, LANGUAGE, reject)


def _language(document: ElementTree.Element) -> str:
    """The code without the country: "en" of "en-us"; English where the document does not say."""
    tag = document.findtext(".//qlang") or document.findtext(".//language") or LANGUAGE
    return tag.partition("-")[0].lower()


def _decoded(text: str | None) -> str | None:
    return text and html.unescape(_BREAK.sub("\n", text))
