"""Import of Belebele: parallel questions on short passages, in two layouts that are joined by the English question.

    <language>_belebele.jsonl   a line per question: {"id": 7, "prompts": [{"text": passage, "question": ...}]}
    <FLORES code>.jsonl         a line per passage: {"text": passage, "items": [{"question": ...}, ...]}

In the first layout the questions of all languages share their ids; in the second, line and item of all files are
translations of each other. A folder may hold either, or both if each has English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from babel.core import get_global
from pydantic import BaseModel, ConfigDict, Field

from hbt_ray.corpus.importers import Reject, RejectedRow, check_language, json_lines, text_fault, text_hash
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

PIVOT = "en"

REPEATED_ID = "id was seen before"
NOT_IN_OTHER_LAYOUT = "question is not in the English file of the other layout"

# The Chinese scripts are languages of their own here; Simplified goes by the plain code.
CODES = {"zh-s": "zh", "zh-t": "zh_Hant", "zho_Hans": "zh", "zho_Hant": "zh_Hant"}
BY_QUESTION = re.compile(r"([a-z-]+)_belebele\.jsonl(\.gz)?")
BY_PASSAGE = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})\.jsonl(\.gz)?")


class _Prompt(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    text: str
    question: str


class _ByQuestion(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    id: int
    prompts: list[_Prompt] = Field(min_length=1, max_length=1)


class _Item(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    question: str


class _ByPassage(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    text: str
    items: list[_Item]


class _Cell(NamedTuple):
    file: str
    question: str
    passage: str


Cells = dict[str, dict[str, _Cell]]  # language -> question id -> its texts


def read_belebele(source: Path, *, reject: Reject) -> Iterator[ParallelPair]:
    """One pair per question, in the order of ids; the whole set (900 questions per language) is in memory.

    `pair_id` is the id of the first layout, else "line:item" counted from 0; `passage_id` and `group` are a hash of
    the passage, the English one where there is English, so one or two pairs share each. Where a language is in both
    layouts, the first counts.

    Rejected: blank texts (a missing cell), repeated ids, malformed lines, and questions of the second layout whose
    English is not in the first.

    Args:
        source: folder of the files, `.gz` or not; others in it are ignored.
        reject: called with what is left out.

    Raises:
        CorpusError: no such folder or file, an empty or damaged one, an unknown language, or two layouts without
            English in both.
    """
    cells, others = _read(source, reject)
    if not cells:
        cells = others
    elif others:
        ids = _ids_of_questions(source, cells, others)
        for lang, questions in others.items():
            if lang not in cells:
                cells[lang] = _renamed(questions, ids, lang, reject)
            else:
                _renamed(questions, ids, lang, reject)  # its texts are there already, what they lack is rejected
    for question_id in sorted({i for questions in cells.values() for i in questions}, key=_position):
        found = {lang: questions[question_id] for lang, questions in cells.items() if question_id in questions}
        yield from _pair(question_id, found, reject)


def _read(source: Path, reject: Reject) -> tuple[Cells, Cells]:
    """The cells of each layout."""
    if not source.is_dir():
        raise CorpusError(str(source), "no such folder", "a folder of Belebele's files", "Check the path.")
    first: Cells = {}
    second: Cells = {}
    for path in sorted(source.iterdir()):
        by_question, by_passage = BY_QUESTION.fullmatch(path.name), BY_PASSAGE.fullmatch(path.name)
        match = by_question or by_passage
        if match is None:
            continue
        lang, layout = _language(match[1], path), first if by_question else second
        if lang in layout:
            raise CorpusError(str(path), f"a second file of {lang!r}", "one per language and layout", "Remove one.")
        layout[lang] = _by_question(path, lang, reject) if by_question else _by_passage(path, lang, reject)
    if not first and not second:
        expected = "<language>_belebele.jsonl[.gz] or <FLORES code>.jsonl[.gz]"
        raise CorpusError(str(source), "no such file in it", expected, "Check the path.")
    return first, second


def _language(name: str, path: Path) -> str:
    """CLDR's code of the language in a file's name."""
    code = CODES.get(name) or get_global("language_aliases").get(name[:3] if "_" in name else name)
    code = code or name.partition("_")[0]
    check_language(code, str(path))
    return str(code)


def _by_question(path: Path, lang: str, reject: Reject) -> dict[str, _Cell]:
    questions: dict[str, _Cell] = {}
    for _, row in json_lines(path, _ByQuestion, reject, lang):
        (prompt,) = row.prompts
        if str(row.id) in questions:
            reject(RejectedRow(path.name, str(row.id), lang, REPEATED_ID, prompt.question))
        else:
            questions[str(row.id)] = _Cell(path.name, prompt.question, prompt.text)
    return questions


def _by_passage(path: Path, lang: str, reject: Reject) -> dict[str, _Cell]:
    return {
        f"{number - 1}:{item}": _Cell(path.name, question.question, row.text)
        for number, row in json_lines(path, _ByPassage, reject, lang)
        for item, question in enumerate(row.items)
    }


def _ids_of_questions(source: Path, first: Cells, second: Cells) -> dict[str, str]:
    """Place ("line:item") in the second layout -> id in the first, by the English question, white space collapsed."""
    for name, layout in (("<language>_belebele.jsonl", first), ("<FLORES code>.jsonl", second)):
        if PIVOT not in layout:
            received = f"files {name} without an English one"
            raise CorpusError(str(source), received, "English in both layouts", "Add it, or import the layouts apart.")
    ids = {_collapsed(cell.question): question_id for question_id, cell in first[PIVOT].items()}
    found = {place: ids.get(_collapsed(cell.question)) for place, cell in second[PIVOT].items()}
    return {place: question_id for place, question_id in found.items() if question_id is not None}


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _renamed(questions: Mapping[str, _Cell], ids: Mapping[str, str], lang: str, reject: Reject) -> dict[str, _Cell]:
    for place, cell in questions.items():
        if place not in ids:
            reject(RejectedRow(cell.file, place, lang, NOT_IN_OTHER_LAYOUT, cell.question))
    return {ids[place]: cell for place, cell in questions.items() if place in ids}


def _position(question_id: str) -> tuple[int, ...]:
    return tuple(int(number) for number in question_id.split(":"))


def _pair(question_id: str, cells: Mapping[str, _Cell], reject: Reject) -> Iterator[ParallelPair]:
    """The pair of the usable texts, or nothing if no question or no passage is."""
    query: dict[str, str] = {}
    passage: dict[str, str] = {}
    for lang, cell in cells.items():
        for name, text, usable in (("question", cell.question, query), ("passage", cell.passage, passage)):
            if fault := text_fault(text, name):
                reject(RejectedRow(cell.file, question_id, lang, fault, text))
            else:
                usable[lang] = text
    if query and passage:
        passage_id = text_hash(passage[PIVOT if PIVOT in passage else min(passage)])
        yield ParallelPair(question_id, passage_id, passage_id, query, passage)
