"""Parquet files of texts, local or on S3: what they hold, in units of consecutive rows that are read by themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hbt_ray.errors import CorpusError
from hbt_ray.settings_file import nearest
from hbt_ray.storage import Folder

SUFFIX = ".parquet"
READ_ROWS = 4_096  # decoded at a time

_MEND = "Write the file again, or leave it out."


@dataclass(frozen=True)
class Unit:
    """Rows start:stop of a file, which become one file of the output.

    Args:
        number: of the unit, in the order of the files and rows.
        file: path of the input file in its folder.
        start: first row.
        stop: one behind the last row.
    """

    number: int
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class ParquetTexts:
    """One or more Parquet files of one schema.

    Args:
        folder: in which they are.
        rows: file -> number of its rows.
        schema: of all files.
        column: with the texts.
        sha256: of the footers: names and sizes of the files, row groups, columns and their statistics.
    """

    folder: Folder
    rows: dict[str, int]
    schema: pa.Schema
    column: str
    sha256: str

    def units(self, size: int) -> list[Unit]:
        """All rows, in units of `size` rows; the last one of each file may have fewer."""
        places = [
            (file, start, min(start + size, rows)) for file, rows in self.rows.items() for start in range(0, rows, size)
        ]
        return [Unit(number, *place) for number, place in enumerate(places)]

    def read(self, unit: Unit) -> tuple[pa.Table, list[str]]:
        """All columns of a unit's rows, and its texts. Raises CorpusError."""
        with opened(self.folder, unit.file) as file:
            ends = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))]).tolist()
            groups = [i for i, (first, end) in enumerate(pairwise(ends)) if first < unit.stop and end > unit.start]
            rows = _rows(file, groups, unit.start - ends[groups[0]], unit.stop - ends[groups[0]])
            table = pa.Table.from_batches(rows, schema=self.schema)
        return table, self._texts(table, unit)

    def _texts(self, table: pa.Table, unit: Unit) -> list[str]:
        texts = table[self.column]
        if texts.null_count:
            row = unit.start + pc.index(pc.is_null(texts), True).as_py()
            raise null_text(self.folder, unit.file, self.column, row)
        return texts.to_pylist()  # type: ignore[no-any-return]


def null_text(folder: Folder, file: str, column: str, row: int) -> CorpusError:
    """What is said of a row without a text, counted from 0."""
    where = f"{folder.path(file)}, row {row}, column {column!r}"
    return CorpusError(where, "null", "a text in every row", "Fill it in, or leave the row out.")


def open_texts(address: str, column: str) -> ParquetTexts:
    """The file or folder of files at an address; every footer is read, no text.

    In a folder, files count whose name ends in `.parquet`, at any depth, unless a part of their path begins with
    `_` or `.`.

    Raises:
        CorpusError: nothing there; an unreadable file, files that differ in schema, no such column, no texts in it,
            no row, a null where the statistics tell of one.
        ResourceError: a storage that fails.
    """
    folder, files = _located(address)
    rows: dict[str, int] = {}
    schema: pa.Schema | None = None
    digest = hashlib.sha256()
    for name in files:
        with opened(folder, name) as file:
            schema = schema or _checked_schema(file.schema_arrow, folder.path(name), column)
            if not file.schema_arrow.equals(schema):
                difference = _difference(schema, file.schema_arrow)
                raise CorpusError(folder.path(name), difference, f"the columns of {files[0]}", _MEND)
            rows[name] = file.metadata.num_rows
            digest.update(f"{name} {json.dumps(file.metadata.to_dict(), default=str)}".encode())
            _refuse_known_nulls(folder, name, file, column)
    if schema is None or not sum(rows.values()):
        raise CorpusError(address, "no row", "at least one text", "Check that this is the right file.")
    return ParquetTexts(folder, rows, schema, column, digest.hexdigest())


@contextmanager
def opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file. Raises CorpusError if it turns out, at any time, not to be a whole one."""
    try:
        with pq.ParquetFile(folder.path(name), filesystem=folder.filesystem) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(folder.path(name), reason, "a readable Parquet file", _MEND) from None


def _located(address: str) -> tuple[Folder, list[str]]:
    """The folder of a file or folder, and the names of the Parquet files."""
    folder = Folder(address)
    info = folder.filesystem.get_file_info(folder.path())
    if info.type == pafs.FileType.File:
        path, _, options = address.partition("?") if "://" in address else (address, "", "")
        parent, _, name = path.rpartition("/")
        return Folder(f"{parent}?{options}" if options else parent or "/"[: path.startswith("/")] or "."), [name]
    names = sorted(
        name
        for name in folder.sizes()
        if name.endswith(SUFFIX) and not any(part.startswith(("_", ".")) for part in name.split("/"))
    )
    if not names:
        received = "nothing" if info.type == pafs.FileType.NotFound else f"no {SUFFIX} file"
        raise CorpusError(address, received, "a Parquet file or a folder of them", "Check the address.")
    return folder, names


def _checked_schema(schema: pa.Schema, where: str, column: str) -> pa.Schema:
    if column not in schema.names:
        raise CorpusError(f"{where}, --column", repr(column), *nearest(column, schema.names))
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise CorpusError(f"{where}, column {column!r}", str(kind), "a column of strings", "Name another --column.")
    return schema


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    """The first column by which two schemas differ."""
    for name in dict.fromkeys([*first.names, *other.names]):
        kinds = [schema.field(name).type if name in schema.names else "nothing" for schema in (first, other)]
        if kinds[0] != kinds[1]:
            return f"{kinds[1]} as column {name!r}, and not {kinds[0]}"
    return "other metadata or another order of columns"


def _refuse_known_nulls(folder: Folder, name: str, file: pq.ParquetFile, column: str) -> None:
    """A null that a footer tells of is named at once, and not after hours of work."""
    first = 0
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        chunk = next(c for c in map(metadata.column, range(metadata.num_columns)) if c.path_in_schema == column)
        if chunk.statistics is not None and chunk.statistics.null_count:
            nulls = pc.is_null(file.read_row_group(group, columns=[column])[column])
            raise null_text(folder, name, column, first + pc.index(nulls, True).as_py())
        first += metadata.num_rows


def _rows(file: pq.ParquetFile, groups: Sequence[int], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows start:stop, counted from the first of the groups."""
    at = 0
    for batch in file.iter_batches(READ_ROWS, row_groups=groups):
        first, end = max(start - at, 0), min(stop - at, batch.num_rows)
        if first < end:
            yield batch.slice(first, end - first)
        at += batch.num_rows
        if at >= stop:
            return
