"""Import of a user's own parallel data in long form: one row per (pair_id, language), JSON lines or Parquet."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from hbt_ray.corpus.importers import check_language, invalid, opened, text_fault
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError


def read_records(source: Path) -> list[ParallelPair]:
    """Join the rows of each pair over its languages; pairs come in order of first appearance.

    Columns: `pair_id`, `language`, `query`, `passage`, and optionally `passage_id`, `group`, `negatives` (a list of
    texts in the row's language). All values are text. `query` or `passage` of a row may be null or left out, not both;
    a pair needs a query and a passage in some language. `passage_id` and `group` may stand in any row of a pair.

    Without `passage_id` it is a hash of the pair's passage in the alphabetically first language that has one, so that
    pairs with the same passage share it. Without `group` it is the `passage_id`. Blank lines of a JSON lines file
    are skipped.

    Args:
        source: a `.jsonl`, `.jsonl.gz` (both UTF-8) or `.parquet` file.

    Raises:
        CorpusError: naming file and row (counted from 1; a line for JSON lines) for a missing, empty, damaged or
            unknown kind of file, a malformed row, a missing or unknown column, a value that is not text, is blank or
            holds a NUL character, an unknown language, a (pair_id, language) that comes twice, or rows of one pair
            that disagree on `passage_id` or `group`.
    """
    pairs: dict[str, _Languages] = {}
    for where, row in _rows(source):
        check_language(row.language, where)
        languages = pairs.setdefault(row.pair_id, {})
        if row.language in languages:
            first = languages[row.language][0]
            received = f"pair_id {row.pair_id!r} in {row.language!r} again, first in {first}"
            raise CorpusError(where, received, "one row per pair_id and language", "Remove one of the rows.")
        languages[row.language] = where, row
    if not pairs:
        raise CorpusError(str(source), "no rows", "at least one row", "Check that the file was written to its end.")
    return [_pair(pair_id, languages) for pair_id, languages in pairs.items()]


def _checked_text(text: str) -> str:
    if fault := text_fault(text):
        raise PydanticCustomError("text", "usable text (this {fault})", {"fault": fault})
    return text


_Text = Annotated[str, AfterValidator(_checked_text)]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    pair_id: _Text
    language: _Text
    query: _Text | None = None
    passage: _Text | None = None
    passage_id: _Text | None = None
    group: _Text | None = None
    negatives: list[_Text] | None = None


_Languages = dict[str, tuple[str, _Row]]  # language code -> (where the row stands, row)


def _rows(source: Path) -> Iterator[tuple[str, _Row]]:
    """Every row with its place, "file, row n"."""
    if source.name.endswith((".jsonl", ".jsonl.gz")):
        return _jsonl_rows(source)
    if source.name.endswith(".parquet"):
        return _parquet_rows(source)
    expected = ".jsonl, .jsonl.gz or .parquet"
    raise CorpusError(str(source), f"extension {source.suffix!r}", expected, "Convert the file to one of these.")


def _jsonl_rows(source: Path) -> Iterator[tuple[str, _Row]]:
    with opened(source) as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8).rstrip()
            if not content:
                continue
            where = f"{source}, line {number}"
            try:
                row = _Row.model_validate_json(content)
            except ValidationError as error:
                raise invalid(where, error, _Row.model_fields) from error
            yield where, _with_text(row, where)


def _parquet_rows(source: Path) -> Iterator[tuple[str, _Row]]:
    for number, values in enumerate(_parquet_values(source), start=1):
        where = f"{source}, row {number}"
        try:
            row = _Row.model_validate(values)
        except ValidationError as error:
            raise invalid(where, error, _Row.model_fields) from error
        yield where, _with_text(row, where)


def _parquet_values(source: Path) -> Iterator[dict[str, object]]:
    where, row = str(source), 1
    with opened(source) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches():
                where = f"{source}, row {row} or after"
                batch.validate(full=True)  # else text that is not UTF-8 would surface as a bare decoding error
                yield from batch.to_pylist()
                row += batch.num_rows
        except pa.ArrowException as error:
            raise CorpusError(where, error, "a Parquet file with UTF-8 text", "Write the file again.") from error


def _with_text(row: _Row, where: str) -> _Row:
    if row.query is None and row.passage is None:
        raise CorpusError(where, "neither query nor passage", "at least one of them", "Fill one in or remove the row.")
    return row


def _pair(pair_id: str, languages: _Languages) -> ParallelPair:
    rows = {code: row for code, (_, row) in languages.items()}
    query = {code: row.query for code, row in rows.items() if row.query is not None}
    passage = {code: row.passage for code, row in rows.items() if row.passage is not None}
    _check_has_cell(query, "query", pair_id, languages)
    _check_has_cell(passage, "passage", pair_id, languages)
    passage_id = _agreed("passage_id", languages) or _text_hash(passage[min(passage)])
    return ParallelPair(
        pair_id=pair_id,
        passage_id=passage_id,
        group=_agreed("group", languages) or passage_id,
        query=query,
        passage=passage,
        negatives={code: tuple(row.negatives) for code, row in rows.items() if row.negatives},
    )


def _check_has_cell(cells: Mapping[str, str], column: str, pair_id: str, languages: _Languages) -> None:
    """A pair without any query, or without any passage, could never be drawn."""
    if not cells:
        where = next(iter(languages.values()))[0]
        received = f"pair_id {pair_id!r} without a {column} in any language"
        raise CorpusError(where, received, f"a {column} in at least one", "Fill one in or remove the pair.")


def _agreed(column: Literal["passage_id", "group"], languages: _Languages) -> str | None:
    """The one value that the rows of a pair give for a column, None if none gives one."""
    agreed: str | None = None
    for where, row in languages.values():
        value = row.passage_id if column == "passage_id" else row.group
        if agreed is not None and value is not None and value != agreed:
            received = f"{column} {value!r} of pair_id {row.pair_id!r}"
            raise CorpusError(where, received, f"{agreed!r} as in its other rows", "Make the rows agree.")
        agreed = value if agreed is None else agreed
    return agreed


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
