"""Import of the SQuAD family in one language: SQuAD v1.1 and v2.0, SQuADShifts, files in XQuAD's or MLQA's layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.corpus.importers import Reject, RejectedRow, check_language, invalid_reason, json_items, text_fault
from hbt_ray.corpus.pairs import ParallelPair

UNANSWERABLE = "question is marked is_impossible"
REPEATED_ID = "question id was seen before"


class _Article(BaseModel):
    """One entry of `data`; what is inside is looked at paragraph by paragraph."""

    model_config = ConfigDict(strict=True, frozen=True)
    title: str | None = None
    paragraphs: list[dict[str, Any]]


class _Paragraph(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    context: str
    qas: list[dict[str, Any]]


class _Question(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    id: str | int
    question: str
    is_impossible: bool = False


def read_squad(
    source: Path, language: str, *, question_language: str | None = None, reject: Reject
) -> Iterator[ParallelPair]:
    """One pair per answerable question, in file order. One article is in memory at a time, and all question ids.

    `pair_id` is the question's id, `passage_id` "article:paragraph", the position in the file counted from 0, `group`
    the title, or the `passage_id` where an article has none. Files in several languages that share question ids, such
    as XQuAD's, are joined by `squad_mt.read_squad_mt`.

    Rejected: questions marked `is_impossible`, blank texts (a paragraph with all its questions), repeated ids,
    articles, paragraphs and questions in which a field is missing or of another type.

    Args:
        source: a `.json` or `.json.gz` file.
        language: of the paragraphs.
        question_language: of the questions, where it is another (MLQA).
        reject: called with what is left out.

    Raises:
        CorpusError: the file is missing, damaged, no JSON, or has no articles; an unknown language.
    """
    asked_in = question_language or language
    for code in {language, asked_in}:
        check_language(code, str(source))
    seen: set[str] = set()
    for number, article in json_items(source, "data.item", _Article, reject, language):
        for p, content in enumerate(article.paragraphs):
            position = f"{number - 1}:{p}"
            try:
                paragraph = _Paragraph.model_validate(content)
            except ValidationError as error:
                reject(RejectedRow(source.name, position, language, invalid_reason(error), str(content)))
                continue
            fault = text_fault(paragraph.context, "paragraph")
            if fault:
                reject(RejectedRow(source.name, position, language, fault, paragraph.context))
            for q, question in enumerate(paragraph.qas):
                row = f"{position}:{q}"
                usable = _usable_question(question, row, fault, seen, source, asked_in, reject)
                if usable is None:
                    continue
                question_id, text = usable
                passage, group = {language: paragraph.context}, article.title or position
                yield ParallelPair(question_id, position, group, {asked_in: text}, passage)


def _usable_question(
    content: dict[str, Any],
    row: str,
    unusable: str | None,
    seen: set[str],
    source: Path,
    language: str,
    reject: Reject,
) -> tuple[str, str] | None:
    """Id and text of a question, or None if it is rejected; `unusable` is the reason why its paragraph is."""
    try:
        question = _Question.model_validate(content)
    except ValidationError as error:
        reject(RejectedRow(source.name, row, language, invalid_reason(error), str(content)))
        return None
    question_id = str(question.id)
    reason = UNANSWERABLE if question.is_impossible else unusable or text_fault(question.question, "question")
    if reason is None and question_id in seen:
        reason = REPEATED_ID
    if reason is not None:
        reject(RejectedRow(source.name, question_id, language, reason, question.question))
        return None
    seen.add(question_id)
    return question_id, question.question
