"""Import of SQuAD translated into several languages, aligned by question id.

Translators rewrote titles, dropped questions and lost paragraphs, so nothing lines up by position; only the
question id survives. The English file is the pivot: a translated paragraph belongs to the English paragraph that
holds its question ids, and one that holds no such id cannot be placed, nor be told apart from evaluation data.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.corpus.importers import Reject, RejectedRow, check_language, invalid, opened, shown, text_fault
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

PIVOT = "en"

UNANSWERABLE = "question is marked is_impossible"
UNKNOWN_ID = "question id is not in the English file"
REPEATED_ID = "question id was seen before in this language"
UNPLACED = "paragraph holds no question of the English file"
AMBIGUOUS = "paragraph holds questions of several English paragraphs"
EXCLUDED = "paragraph holds a question of an excluded file"
SECOND_TRANSLATION = "paragraph was translated before, in other words"


def read_squad_mt(
    source: Path, english: Path, exclude: Sequence[Path] = (), *, reject: Reject
) -> Iterator[ParallelPair]:
    """Join SQuAD-format translations to the English file by question id; pairs come in the order of that file.

    Every English question outside the excluded paragraphs becomes one pair. A language has its `query` if it has the
    question, and its `passage` if it has the paragraph, each independently of the other. Texts are kept as they
    stand in the file. `passage_id` is "article:paragraph", the position in the English file counted from 0;
    `group` is the English title.

    Rejected: questions marked `is_impossible`, questions and paragraphs that no id ties to exactly
    one English paragraph, excluded paragraphs with their questions, blank texts. Where a language has a question id
    twice, or two wordings of one paragraph, the first counts; `xx.json` is read before `xx-suffix.json`, suffixes
    in alphabetical order. A paragraph repeated word for word is not a loss and is not rejected.

    The texts of all languages are in memory until they are joined, and one file while it is read, as any question may
    stand anywhere: a few hundred MB for the whole of SQuAD in ten languages.

    Args:
        source: folder of `<language>.json`, `<language>-<suffix>.json`, either also with `.gz`.
        english: the pivot, in the same format.
        exclude: files whose question ids mark English paragraphs to leave out in every language, such as the
            English file of a benchmark.
        reject: called with what is left out, in file order within a language, English first.

    Raises:
        CorpusError: a file is missing, damaged or not in SQuAD format, a language code is unknown, or the
            pivot has a blank text or a question id twice.
    """
    pivot = _read_pivot(english, exclude)
    files = {PIVOT: [english], **_translations(source, english)}
    cells = {language: _read_language(language, paths, pivot, reject) for language, paths in files.items()}
    for question_id, passage_id in pivot.passage_id.items():
        if passage_id not in pivot.excluded:
            yield ParallelPair(
                pair_id=question_id,
                passage_id=passage_id,
                group=pivot.title[passage_id],
                query={code: c.query[question_id] for code, c in cells.items() if question_id in c.query},
                passage={code: c.passage[passage_id] for code, c in cells.items() if passage_id in c.passage},
            )


class _Question(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    id: str
    question: str
    is_impossible: bool = False


class _Paragraph(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    context: str
    qas: list[_Question]


class _Article(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    title: str
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    """The part of the SQuAD format that retrieval needs; other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)
    data: list[_Article]


@dataclass(frozen=True, slots=True)
class _Pivot:
    passage_id: Mapping[str, str]  # answerable question id -> passage id
    title: Mapping[str, str]  # passage id -> article title
    excluded: frozenset[str]  # passage ids


@dataclass(frozen=True, slots=True)
class _Cells:
    """The texts of one language, gathered over its files."""

    query: dict[str, str] = field(default_factory=dict)  # question id -> text
    passage: dict[str, str] = field(default_factory=dict)  # passage id -> text


def _read_squad(path: Path) -> _Squad:
    with opened(path) as file:
        content = file.read()
    try:
        return _Squad.model_validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise invalid(str(path), error) from error


def _paragraphs(squad: _Squad) -> Iterator[tuple[str, str, _Paragraph]]:
    """Every paragraph with its "article:paragraph" position and its article's title."""
    for a, article in enumerate(squad.data):
        for p, paragraph in enumerate(article.paragraphs):
            yield f"{a}:{p}", article.title, paragraph


def _read_pivot(path: Path, exclude: Sequence[Path]) -> _Pivot:
    excluded_ids = {q.id for file in exclude for _, _, p in _paragraphs(_read_squad(file)) for q in p.qas}
    passage_id: dict[str, str] = {}
    titles: dict[str, str] = {}
    excluded: set[str] = set()
    for position, title, paragraph in _paragraphs(_read_squad(path)):
        where = f"{path}, paragraph {position}"
        _check_pivot_text(paragraph.context, "context", where)
        titles[position] = title
        for question in paragraph.qas:
            _check_pivot_text(question.question, f"question {question.id}", where)
            if question.id in passage_id:
                raise CorpusError(where, f"question id {question.id!r} again", "every id once", "Remove one of them.")
            if question.id in excluded_ids:
                excluded.add(position)
            if not question.is_impossible:
                passage_id[question.id] = position
    return _Pivot(passage_id, titles, frozenset(excluded))


def _check_pivot_text(text: str, what: str, where: str) -> None:
    if fault := text_fault(text):
        expected = f"usable text ({fault})"
        raise CorpusError(f"{where}, {what}", shown(text), expected, "Mend the English file, it is the pivot.")


def _translations(source: Path, english: Path) -> dict[str, list[Path]]:
    """Language code -> its files, codes sorted; a file without suffix comes before those with one."""
    if not source.is_dir():
        raise CorpusError(str(source), "no such folder", "a folder of <language>.json[.gz] files", "Check the path.")
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(source.iterdir()):
        if not path.name.endswith((".json", ".json.gz")) or path.name.startswith("."):
            continue
        if path.resolve() == english.resolve():
            continue
        language, _, suffix = path.name.removesuffix(".gz").removesuffix(".json").partition("-")
        check_language(language, str(path))
        if language == PIVOT:
            raise CorpusError(str(path), "a second English file", f"only {english}", "Move it out of the folder.")
        if (language, suffix) in files:
            raise CorpusError(str(path), f"also {files[language, suffix].name}", "one of them", "Remove one.")
        files[language, suffix] = path
    if not files:
        raise CorpusError(str(source), "no such file in it", "<language>.json[.gz] files", "Check the path.")
    by_language: dict[str, list[Path]] = {}
    for (language, _), path in sorted(files.items()):
        by_language.setdefault(language, []).append(path)
    return by_language


def _read_language(language: str, paths: Sequence[Path], pivot: _Pivot, reject: Reject) -> _Cells:
    cells = _Cells()
    for path in paths:
        for position, _, paragraph in _paragraphs(_read_squad(path)):
            for row, reason, text in _add_paragraph(cells, position, paragraph, pivot):
                reject(RejectedRow(path.name, row, language, reason, text))
    return cells


def _add_paragraph(
    cells: _Cells, position: str, paragraph: _Paragraph, pivot: _Pivot
) -> Iterator[tuple[str, str, str]]:
    """Take over what the language has of a paragraph and its questions; row, reason and text of what is left out."""
    homes = {pivot.passage_id[q.id] for q in paragraph.qas if _question_fault(q, pivot) is None}
    unusable = _paragraph_fault(homes, pivot)
    for question in paragraph.qas:
        reason = _question_fault(question, pivot) or unusable or text_fault(question.question, "question")
        if reason is None and question.id in cells.query:
            reason = REPEATED_ID
        if reason is None:
            cells.query[question.id] = question.question
        else:
            yield question.id, reason, question.question
    reason = unusable or text_fault(paragraph.context, "paragraph")
    if reason is None:
        (home,) = homes
        if cells.passage.setdefault(home, paragraph.context) != paragraph.context:
            reason = SECOND_TRANSLATION
    if reason is not None:
        yield position, reason, paragraph.context


def _question_fault(question: _Question, pivot: _Pivot) -> str | None:
    if question.is_impossible:
        return UNANSWERABLE
    return None if question.id in pivot.passage_id else UNKNOWN_ID


def _paragraph_fault(homes: set[str], pivot: _Pivot) -> str | None:
    """Why a paragraph whose questions belong to the English paragraphs `homes` is left out, or None."""
    if not homes:
        return UNPLACED
    if homes & pivot.excluded:
        return EXCLUDED
    return AMBIGUOUS if len(homes) > 1 else None
