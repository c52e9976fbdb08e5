"""Text files, plain or gzipped, line by line; every fault is reported with its file and line."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hbt_ray.errors import BenchmarkError

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


def present(path: Path) -> Path | None:
    """The file, or the file with `.gz` behind its name; the plain one wins. None where there is neither."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text without its line end) of every line; only line feeds end a line.

    Raises:
        BenchmarkError: a file that is absent, no gzip, cut off, or not UTF-8.
    """
    name = str(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                where = f"{name}:{number}"
                yield where, _decoded(raw, where).removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """("file:line", fields) of every line of a tab-separated file without quoting.

    Raises:
        BenchmarkError: as `read_lines`; a line with more or fewer fields than `columns`, or with an empty one.
    """
    for where, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != len(columns) or not all(map(str.strip, fields)):
            raise BenchmarkError(
                where, shown(line), f"{len(columns)} fields between tabs: {', '.join(columns)}", "Mend this line."
            )
        yield where, fields


def judgements_of(rows: Iterable[tuple[str, str, str, str]]) -> Mapping[str, Mapping[str, int]]:
    """query id -> {candidate id: grade}, from rows ("file:line", query id, candidate id, grade).

    Raises:
        BenchmarkError: a grade that is no integer, or a pair that is judged twice.
    """
    judgements: dict[str, dict[str, int]] = {}
    for where, query, candidate, grade in rows:
        if not _INTEGER.fullmatch(grade):
            raise BenchmarkError(where, shown(grade), "an integer grade", "Mend this line.")
        judged = judgements.setdefault(query, {})
        if candidate in judged:
            raise BenchmarkError(
                where, f"query {query!r}, candidate {candidate!r} twice", "one judgement per pair", "Remove one."
            )
        judged[candidate] = int(grade)
    return judgements


def shown(value: object) -> str:
    """The value as Python writes it, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def unreadable(path: Path, error: BaseException) -> BenchmarkError:
    """The error for a file that cannot be opened or decompressed to its end."""
    expected = "a readable gzip file" if path.suffix == ".gz" else "a readable file"
    return BenchmarkError(str(path), error, expected, "Check the path or fetch the file again.")


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BenchmarkError(where, error, "UTF-8", "Save the file as UTF-8.") from error
