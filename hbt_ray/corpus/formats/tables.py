"""What the published sets' formats share: their files, tables with named columns, and rows inside rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from babel import Locale
from pydantic import BaseModel, ValidationError

from hbt_ray.corpus.importers import (
    MAX_TEXT_CHARACTERS,
    Reject,
    RejectedRow,
    check_language,
    invalid_reason,
    json_items,
    json_lines,
    lines,
    opened,
)
from hbt_ray.errors import CorpusError

REPEATED_ID = "id was seen before"
UNKNOWN_LANGUAGE = "language is not known"
NOT_UTF8 = "row is not UTF-8"
OTHER_WIDTH = "row has more or fewer columns than the header"

_FIELD_CHARACTERS = 16 * MAX_TEXT_CHARACTERS  # of a CSV field: the passages that are too long are still read as fields
_NAMES_OUTSIDE_CLDR = {"bengali": "bn"}

Model = TypeVar("Model", bound=BaseModel)


def tsv_rows(path: Path, model: type[Model], reject: Reject, language: str) -> Iterator[tuple[int, Model]]:
    """Rows of a table with tabs and without quotes whose first line names the columns, with their line numbers.

    Columns that the model does not know are ignored; rows that are no `model` are rejected and the others go on.

    Raises:
        CorpusError: the file is absent, empty or damaged, or a column is missing.
    """
    records = ((number, line.split("\t")) for number, line in lines(path, reject, language))
    return _rows(path, records, model, reject, language)


def csv_rows(path: Path, model: type[Model], reject: Reject, language: str) -> Iterator[tuple[int, Model]]:
    """Rows of a CSV file with quotes as RFC 4180 has them, with the line each begins in; otherwise as `tsv_rows`."""
    return _rows(path, _csv_records(path, reject, language), model, reject, language)


def json_rows(path: Path, model: type[Model], reject: Reject, language: str) -> Iterator[tuple[int, Model]]:
    """Rows of JSON lines, `.jsonl`, or of one big array, `.json`; both also with `.gz`."""
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return json_lines(path, model, reject, language)
    return json_items(path, "item", model, reject, language)


def accepted(model: type[Model], values: Any, file: str, row: str, language: str, reject: Reject) -> Model | None:
    """The values as a `model`, or None where they are none, which is handed to `reject`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        reject(RejectedRow(file, row, language, invalid_reason(error), json.dumps(values, ensure_ascii=False)))
        return None


def titled(title: str | None, text: str) -> str:
    """A passage behind the title of its article and one space, as the evaluation encodes such passages."""
    return f"{title} {text}" if title else text


def files_of(source: Path, *suffixes: str) -> list[tuple[str, Path]]:
    """The file itself, or those with one of the suffixes (`.gz` allowed) at any depth of a folder, sorted.

    Returns:
        each with its name, relative to the folder. Raises CorpusError if there is none.
    """
    if not source.is_dir():
        return [(source.name, source)]
    paths = sorted(path for path in source.rglob("*") if path.name.removesuffix(".gz").endswith(suffixes))
    if not paths:
        raise CorpusError(str(source), "no such file in it", " or ".join(suffixes), "Check the path.")
    return [(path.relative_to(source).as_posix(), path) for path in paths]


def existing(folder: Path, *names: str) -> Path | None:
    """The first of the files that is there, plain or with `.gz`."""
    candidates = (folder / name for plain in names for name in (plain, f"{plain}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def language_of(word: str, where: str) -> str:
    """Code of a language named in English ("german") or by its code. Raises CorpusError naming `where`."""
    code = _codes_by_name().get(word.lower(), word.lower())
    check_language(code, where)
    return code


@lru_cache(maxsize=1024)
def is_known(language: str) -> bool:
    """Whether CLDR has the code: one row in an unknown language is no reason to refuse its file."""
    try:
        check_language(language, "language")
    except CorpusError:
        return False
    return True


@cache
def _codes_by_name() -> dict[str, str]:
    return {name.lower(): code for code, name in Locale("en").languages.items()} | _NAMES_OUTSIDE_CLDR


def _rows(
    path: Path, records: Iterator[tuple[int, list[str]]], model: type[Model], reject: Reject, language: str
) -> Iterator[tuple[int, Model]]:
    header = next(records)[1]
    _check_columns(path, header, model)
    for number, values in records:
        if len(values) != len(header):
            reject(RejectedRow(path.name, str(number), language, OTHER_WIDTH, "\t".join(values)))
        elif row := accepted(model, dict(zip(header, values, strict=True)), path.name, str(number), language, reject):
            yield number, row


def _check_columns(path: Path, header: list[str], model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        column = field.alias or name
        if field.is_required() and column not in header:
            near = get_close_matches(column, header, n=1)
            hint = f"Is it {near[0]!r}?" if near else "Check that this is the right file."
            raise CorpusError(f"{path}, line 1", f"columns {', '.join(header)}", f"also {column}", hint)


def _csv_records(path: Path, reject: Reject, language: str) -> Iterator[tuple[int, list[str]]]:
    """Every record that is CSV in UTF-8, the header first."""
    csv.field_size_limit(_FIELD_CHARACTERS)
    usable = False
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(iter(lambda: text.readline(_FIELD_CHARACTERS), ""), strict=True)
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                reject(RejectedRow(path.name, str(number), language, f"row is not CSV: {error}", ""))
                continue
            if any(not value.isascii() and _has_stray_bytes(value) for value in record):
                shown = "\t".join(record).encode(errors="surrogateescape").decode(errors="replace")
                reject(RejectedRow(path.name, str(number), language, NOT_UTF8, shown))
            elif record:
                usable = True
                yield number, record
    if not usable:
        raise CorpusError(str(path), "no rows", "CSV in UTF-8", "Check that the file was written to its end.")


def _has_stray_bytes(text: str) -> bool:
    """Whether bytes that are not UTF-8 were read into the text, as halves of surrogate pairs."""
    return any("\udc80" <= character <= "\udcff" for character in text)
