"""Passages that a person has in a file: JSON lines, tab-separated lines, or plain lines of text (each `.gz` too)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, json_lines, lines
from hbt_ray.errors import CorpusError

TEXT_KEYS = ("text", "passage")
ID_KEYS = ("id", "_id", "passage_id")
COLUMNS = {1: ("text",), 2: ("id", "text"), 3: ("id", "text", "language")}  # of a file without a header
FORMS = ".jsonl (text, perhaps id and language), .tsv (text; id, text; or id, text, language) or .txt"


@dataclass(frozen=True)
class Passage:
    """A text that can be found.

    Args:
        id: its own, or the number of its line.
        text: what is searched.
        language: code, None where the file has none.
    """

    id: str
    text: str
    language: str | None


class _Line(BaseModel):
    """An object of a JSON lines file; other keys are left alone."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    text: UsableText = Field(validation_alias=AliasChoices(*TEXT_KEYS))
    id: str | None = Field(None, validation_alias=AliasChoices(*ID_KEYS))
    title: str | None = None
    language: str | None = None


def read_passages(path: Path) -> list[Passage]:
    """All passages of a file; the text of an object with a title is both, as in an evaluation.

    Raises CorpusError, naming file and line, for what is no passage.
    """
    kinds = {".jsonl": _json_passages, ".tsv": _table_passages, ".txt": _plain_passages}
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in kinds:
        raise CorpusError(str(path), f"a name that ends in {kind or 'nothing'}", FORMS, "Rename or convert the file.")
    return list(kinds[kind](path))


def _json_passages(path: Path) -> Iterator[Passage]:
    for number, line in json_lines(path, _Line, _refused(path), ""):
        text = f"{line.title} {line.text}" if line.title else line.text
        yield Passage(line.id or str(number), text, line.language)


def _plain_passages(path: Path) -> Iterator[Passage]:
    for number, text in lines(path, _refused(path), ""):
        yield Passage(str(number), text, None)


def _table_passages(path: Path) -> Iterator[Passage]:
    """Lines of one to three cells; a first line with a cell `text` names them."""
    columns: tuple[str, ...] | None = None
    for number, line in lines(path, _refused(path), ""):
        cells = tuple(line.split("\t"))
        if columns is None:
            columns = cells if "text" in cells else COLUMNS.get(len(cells), ())
            if columns is cells:
                continue
        if len(cells) != len(columns):
            expected = f"{len(columns)}, as in the lines before" if columns else "1 to 3"
            raise CorpusError(f"{path}, line {number}", f"{len(cells)} cells", expected, "Mend the line.")
        found = dict(zip(columns, cells, strict=True))
        if not found["text"].strip():
            raise CorpusError(f"{path}, line {number}", "a blank text", "a passage", "Mend or remove the line.")
        yield Passage(found.get("id") or str(number), found["text"], found.get("language") or None)


def _refused(path: Path) -> Reject:
    """Every line must be a passage: a person searches what the file holds, not what was left of it."""

    def refuse(row: RejectedRow) -> None:
        raise CorpusError(f"{path}, line {row.row}", row.reason, FORMS, "Mend or remove the line.")

    return refuse
