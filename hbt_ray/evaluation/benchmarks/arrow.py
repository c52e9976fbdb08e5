"""Strings in Arrow memory: corpora of tens of millions of passages, few of them Python objects at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK = 4096  # strings turned into Python objects at a time


class Address(NamedTuple):
    """Rows start:stop of the column `name` of the Arrow IPC file at `path`."""

    path: Path
    name: str
    start: int
    stop: int


class ArrowStrings(Sequence[str]):
    """A sequence of strings over an Arrow column; an index gives a str, a slice another such sequence.

    Args:
        column: pyarrow.ChunkedArray of strings without nulls.
        address: where the column is memory-mapped from. With it the sequence is pickled as an address, to be mapped
            again by processes of the same machine; without it the strings themselves travel.
    """

    def __init__(self, column: pa.ChunkedArray, address: Address | None = None) -> None:
        self.column = column
        self._address = address

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> ArrowStrings: ...

    def __getitem__(self, index: int | slice) -> str | ArrowStrings:
        if not isinstance(index, slice):
            return str(self.column[index].as_py())
        start, stop, step = index.indices(len(self))
        if self._address is None or step != 1:
            return ArrowStrings(self.column[index])
        moved = self._address._replace(start=self._address.start + start, stop=self._address.start + max(start, stop))
        return ArrowStrings(self.column[index], moved)

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            for start in range(0, len(chunk), _BLOCK):
                yield from chunk.slice(start, _BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrowStrings) and bool(self.column.equals(other.column))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[object, ...]:
        if self._address is not None:
            return mapped_strings, self._address
        sink = pa.BufferOutputStream()  # IPC, because pickling a sliced Arrow array carries all of what it was cut from
        table = pa.table({"strings": self.column})
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return _unpickled, (sink.getvalue(),)


def mapped_strings(path: Path, name: str, start: int = 0, stop: int | None = None) -> ArrowStrings:
    """Rows start:stop of the column `name` of an Arrow IPC file, memory-mapped."""
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()[name]
    stop = len(column) if stop is None else stop
    return ArrowStrings(column[start:stop], Address(path, name, start, stop))


def find(strings: ArrowStrings, wanted: Sequence[str]) -> dict[str, int]:
    """string -> its first row, of those `wanted` strings that are there; one pass, memory of one chunk."""
    value_set = pa.array(wanted, strings.column.type)
    rows: dict[str, int] = {}
    start = 0
    for chunk in strings.column.chunks:
        hits = pc.index_in(chunk, value_set=value_set)
        for row in np.flatnonzero(hits.is_valid().to_numpy(zero_copy_only=False)).tolist():
            rows.setdefault(wanted[hits[row].as_py()], start + row)
        start += len(chunk)
    return rows


def duplicates(strings: ArrowStrings) -> list[str]:
    """Strings that occur more than once, sorted. Takes 24 bytes per string: equal hashes are found before strings."""
    hashes = np.fromiter(map(hash, strings), np.int64, len(strings))
    in_order = np.sort(hashes)
    repeated = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if not len(repeated):
        return []
    counts = Counter(strings[row] for row in np.flatnonzero(np.isin(hashes, repeated)).tolist())
    return sorted(value for value, count in counts.items() if count > 1)


def _unpickled(stream: pa.Buffer) -> ArrowStrings:
    return ArrowStrings(pa.ipc.open_stream(stream).read_all()["strings"])
