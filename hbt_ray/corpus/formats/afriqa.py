"""Import of AfriQA's gold passages: African questions, their human translation, and the passage that answers them.

The files are `gold_span_passages.afriqa.<language>.<pivot>.<split>.json`, a JSON object per line; the pivot, the
language of the passage and of the translated question, is English or French.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.importers import Reject, RejectedRow, check_language, json_lines, text_fault, text_hash
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

NO_PASSAGE = "row has no passage"
NO_QUESTION = "row has no question"
REPEATED_ID = "id was seen before in this file"

CODES = {"hau": "ha", "ibo": "ig", "kin": "rw", "swa": "sw", "twi": "tw", "wol": "wo", "yor": "yo", "zul": "zu"}
FILE = re.compile(r"gold_span_passages\.afriqa\.([a-z]+)\.([a-z]+)\.([a-z]+)\.json(\.gz)?")


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    id: str | int
    question_lang: str | None
    question_translated: str | None
    title: str | None = None
    context: str | None


def read_afriqa(source: Path, *, splits: Collection[str] | None = None, reject: Reject) -> Iterator[ParallelPair]:
    """One pair per row with a passage, file by file in alphabetical order; constant memory.

    The query is there in the African language and, translated, in the pivot; the passage in the pivot alone.
    `pair_id` is "<language>-<pivot>-<split>-<id>", since ids are unique in a file only; `passage_id` a hash of the
    passage; `group` the title of its article, or the `passage_id` where there is none.

    Rejected: rows without passage, blank texts, repeated ids, malformed lines.

    Args:
        source: folder of the files, or one of them; `.gz` or not.
        splits: of "train", "dev", "test" those wanted; None for all.
        reject: called with what is left out.

    Raises:
        CorpusError: no such file, an empty or damaged one, an unknown language.
    """
    for path, language, pivot, split in _files(source, splits):
        seen: set[str] = set()
        for _, row in json_lines(path, _Row, reject, language):
            row_id = str(row.id)
            if row_id in seen:
                reject(RejectedRow(path.name, row_id, language, REPEATED_ID, row.question_lang or ""))
                continue
            seen.add(row_id)
            query, passage = _cells(path, row, language, pivot, reject)
            if query and passage:
                passage_id = text_hash(passage[pivot])
                pair_id = f"{language}-{pivot}-{split}-{row_id}"
                yield ParallelPair(pair_id, passage_id, row.title or passage_id, query, passage)


def _files(source: Path, splits: Collection[str] | None) -> list[tuple[Path, str, str, str]]:
    """Path, language, pivot and split of every file."""
    candidates = sorted(source.iterdir()) if source.is_dir() else [source]
    matches = [(path, FILE.fullmatch(path.name)) for path in candidates]
    files = [(path, CODES.get(m[1], m[1]), m[2], m[3]) for path, m in matches if m and (not splits or m[3] in splits)]
    if not files:
        received = "no file of that name" if source.exists() else "no such file"
        expected = "gold_span_passages.afriqa.<language>.<pivot>.<split>.json[.gz]"
        raise CorpusError(str(source), received, expected, "Check the path and the splits.")
    for path, language, pivot, _ in files:
        for code in (language, pivot):
            check_language(code, str(path))
    names = [path.name.removesuffix(".gz") for path, *_ in files]
    for name in names:
        if names.count(name) > 1:
            raise CorpusError(f"{source}/{name}", f"also {name}.gz", "one of them", "Remove one.")
    return files


def _cells(path: Path, row: _Row, language: str, pivot: str, reject: Reject) -> tuple[dict[str, str], dict[str, str]]:
    """The usable query and passage texts of a row by language; the others are rejected."""
    if row.context is None:
        reject(RejectedRow(path.name, str(row.id), language, NO_PASSAGE, row.question_lang or ""))
        return {}, {}
    query = {language: row.question_lang, pivot: row.question_translated}
    for code, text in list(query.items()):
        reason = NO_QUESTION if text is None else text_fault(text, "question")
        if reason:
            reject(RejectedRow(path.name, str(row.id), code, reason, text or ""))
            del query[code]
    if fault := text_fault(row.context, "passage"):
        reject(RejectedRow(path.name, str(row.id), pivot, fault, row.context))
        return {}, {}
    return {code: text for code, text in query.items() if text is not None}, {pivot: row.context}
