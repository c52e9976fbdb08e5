"""Texts of tables too large for memory, found by their numbers: where each stands in its file is noted on disk."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from hbt_ray.corpus.formats.tables import REPEATED_ID
from hbt_ray.corpus.importers import MAX_LINE_BYTES, NOT_UTF8, Reject, RejectedRow, opened, text_fault
from hbt_ray.errors import CorpusError

NO_ID = "row is not a number, a tab and a text"

_NO_KEY = -1
_ROWS_AT_ONCE = 1 << 20

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextIndex:
    """Where the text of an id stands in a file.

    Args:
        data: the file, uncompressed.
        keys: int64 [n] on disk, the ids, rising.
        spans: int64 [n, 2] on disk, first byte and number of bytes of each text.
    """

    data: Path
    keys: Path
    spans: Path


def indexed(path: Path, folder: Path, language: str, reject: Reject) -> TextIndex:
    """Read a file of rows (number, tab, text) once, reject those that cannot be used, and note where the others stand.

    Args:
        path: the file, UTF-8, maybe with `.gz`.
        folder: local, for the index (24 bytes per row) and the uncompressed text of a file with `.gz`.
        language: of the file, for `reject`.
        reject: called with what is left out, such as the second row of a number.

    Raises:
        CorpusError: the file is absent or damaged, or has no such row.
    """
    index = TextIndex(_plain(path, folder), folder / f"{path.name}.keys", folder / f"{path.name}.spans")
    rising, last = True, _NO_KEY
    with index.keys.open("wb") as keys, index.spans.open("wb") as spans:
        for block in blocks(_places(index.data, path.name, language, reject)):
            rising = rising and block[0, 0] > last and bool((np.diff(block[:, 0]) > 0).all())
            last = block[-1, 0]
            block[:, 0].tofile(keys)
            block[:, 1:].tofile(spans)
    if last == _NO_KEY:
        expected = "rows of a number, a tab and a text"
        raise CorpusError(str(path), "no rows", expected, "Check that the file was written to its end.")
    if not rising:  # never so in the published files
        _sort(index, path.name, language, reject)
    return index


def _plain(path: Path, folder: Path) -> Path:
    """The file itself, or a copy of one with `.gz`, in which bytes can be found again."""
    if path.suffix != ".gz":
        return path
    plain = folder / path.name.removesuffix(".gz")
    with plain.open("wb") as copy:
        for block in _bytes(path):
            copy.write(block)
    return plain


def _bytes(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        while block := file.read(1 << 20):
            yield block


def _places(data: Path, name: str, language: str, reject: Reject) -> Iterator[tuple[int, int, int]]:
    """Id, first byte and number of bytes of every usable text."""
    number = offset = 0
    with opened(data) as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            row = line.rstrip(b"\r\n")
            key, tab, text = row.partition(b"\t")
            key = key.removeprefix(codecs.BOM_UTF8)
            if reason := _fault(key, tab, text):
                if row:
                    reject(RejectedRow(name, str(number), language, reason, row.decode(errors="replace")))
            else:
                yield int(key), offset + len(row) - len(text), len(text)
            offset += len(line)


def _fault(key: bytes, tab: bytes, text: bytes) -> str | None:
    if not tab or not is_id(key):
        return NO_ID
    try:
        return text_fault(text.decode())
    except UnicodeDecodeError:
        return NOT_UTF8


def is_id(field: bytes) -> bool:
    """Whether the field is a number that 64 bits hold."""
    return field.isdigit() and len(field) < 19


def _sort(index: TextIndex, name: str, language: str, reject: Reject) -> None:
    """Bring the index into the order of ids; of rows with the same id the first counts. All keys are in memory."""
    keys, spans = np.fromfile(index.keys, np.int64), np.fromfile(index.spans, np.int64).reshape(-1, 2)
    order = np.argsort(keys, kind="stable")
    again = np.concatenate([[False], np.diff(keys[order]) == 0])
    with index.data.open("rb") as data:
        for row in order[again]:
            reject(RejectedRow(name, str(keys[row]), language, REPEATED_ID, _read(data, *spans[row])))
    keys[order[~again]].tofile(index.keys)
    spans[order[~again]].tofile(index.spans)


def _read(data: BinaryIO, start: int, size: int) -> str:
    return os.pread(data.fileno(), size, start).decode()


def texts_of(index: TextIndex, ids: Ids) -> dict[int, str]:
    """The texts of those ids that the file has, read in the order of ids, which is the order of the file."""
    keys, wanted = np.memmap(index.keys, np.int64, "r"), np.unique(ids)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    found = keys[place] == wanted
    spans = np.memmap(index.spans, np.int64, "r").reshape(-1, 2)[place[found]]
    with index.data.open("rb") as data:
        return {
            key: _read(data, start, size)
            for key, (start, size) in zip(wanted[found].tolist(), spans.tolist(), strict=True)
        }


def blocks(rows: Iterator[tuple[int, ...]]) -> Iterator[Ids]:
    """The rows, of three numbers each, as int64 [n, 3], many at a time."""
    triple = np.dtype((np.int64, 3))
    while (block := np.fromiter(islice(rows, _ROWS_AT_ONCE), triple).astype(np.int64, copy=False)).size:
        yield block
