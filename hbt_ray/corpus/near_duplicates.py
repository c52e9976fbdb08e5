"""Near-duplicates among very many shingle sets: MinHash signatures in bands on local disk, candidates checked exactly.

Memory holds a few bytes per text. The sets themselves and the hashes of the bands are in temporary files; the bands
are sorted one after the other, in pieces. Sets that share a band are compared by their real Jaccard similarity, so
a false alarm of MinHash costs time and never a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from datasketch import MinHash  # type: ignore[import-untyped]

from hbt_ray.corpus.shingles import Hashes, Rows, Shingles, jaccard, mixed
from hbt_ray.corpus.spill import local_disk

Number = TypeVar("Number", np.int64, np.uint64)

SORTED_AT_ONCE = 1 << 22  # hashes of one band
COMPARED = 32  # earlier sets of the same bucket that a set is compared with
_RECALL = 0.999  # of pairs that are exactly as similar as asked for


class Clusters:
    """Disjoint sets of the numbers 0 ... n-1; the root of a set is its smallest number."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n, dtype=np.int64)

    def root(self, number: int) -> int:
        """The smallest number of the set that a number is in."""
        parent = self._parent
        while (above := int(parent[number])) != number:
            parent[number] = parent[above]
            number = above
        return number

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def join_first(self, first: Rows) -> None:
        """Join every number i with first[i]."""
        for number in np.flatnonzero(first != np.arange(len(first))).tolist():
            self.join(number, int(first[number]))

    def roots(self) -> Rows:
        """[n]: the root of every number."""
        parent = self._parent
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        self._parent = parent.copy()
        return parent


def rows_per_band(threshold: float, permutations: int) -> int:
    """The longest bands that still find a pair of that Jaccard similarity with a probability of 0.999."""
    lengths = range(1, permutations + 1)
    return max((r for r in lengths if 1 - (1 - threshold**r) ** (permutations // r) >= _RECALL), default=1)


class ShingleStore:
    """Shingle sets and the bands of their signatures, appended to files of a temporary folder.

    A context manager: reading begins after it is left.

    Args:
        folder: an empty local folder.
        threshold: Jaccard similarity from which two sets are near-duplicates, above 0 up to 1.
        permutations: length of a signature.
        seed: of the signatures.
    """

    def __init__(self, folder: Path, threshold: float, permutations: int, seed: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._threshold = threshold
        self._minhash = MinHash(permutations, seed=seed, hashfunc=int, scheme="affine32")
        self._rows = rows_per_band(threshold, permutations)
        self._bands = permutations // self._rows
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> ShingleStore:
        names = ["sets", "sizes", "members", *map(str, range(self._bands))]
        self._files = {name: self._stack.enter_context((self._folder / name).open("wb")) for name in names}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with local_disk(str(self._folder)):
            self._stack.close()

    def add(self, sets: Shingles, members: Rows) -> None:
        """Append sets that stand for `members`; empty ones are left out. Raises ResourceError if local disk is full."""
        filled = np.flatnonzero(sets.sizes)
        self._write("sets", sets.hashes)
        self._write("sizes", sets.sizes[filled])
        self._write("members", members[filled].astype(np.int64))
        signatures = np.empty((len(filled), self._bands * self._rows), dtype=np.uint64)
        for row, i in enumerate(filled):
            signatures[row] = self._signature(sets.hashes[sets.offsets[i] : sets.offsets[i + 1]])
        for band in range(self._bands):
            columns = signatures[:, band * self._rows : (band + 1) * self._rows]
            self._write(str(band), _combined(columns))

    def _write(self, name: str, numbers: Hashes | Rows) -> None:
        with local_disk(str(self._folder / name)):
            self._files[name].write(numbers.tobytes())

    def _signature(self, hashes: Hashes) -> Hashes:
        self._minhash.clear()
        self._minhash.update_batch((hashes >> np.uint64(32)).tolist())
        values: Hashes = self._minhash.hashvalues[: self._bands * self._rows].astype(np.uint64)
        return values

    def join_similar(self, clusters: Clusters, scope: Rows | None = None) -> None:
        """Join the members whose sets are near-duplicates, those with unequal `scope` (by member) left apart."""
        members = _mapped(self._folder / "members", np.int64)
        if not len(members):
            return
        offsets = np.concatenate([[0], np.cumsum(_mapped(self._folder / "sizes", np.int64))])
        sets = _mapped(self._folder / "sets", np.uint64)

        def similar(one: int, other: int) -> bool:
            first, second = (sets[offsets[i] : offsets[i + 1]] for i in (one, other))
            if scope is not None and scope[members[one]] != scope[members[other]]:
                return False
            shorter, longer = sorted((len(first), len(second)))
            return shorter >= self._threshold * longer and jaccard(first, second) >= self._threshold

        places = None if scope is None else mixed(scope[members].astype(np.uint64))
        for band in range(self._bands):
            hashes = _mapped(self._folder / str(band), np.uint64)
            for bucket in buckets(hashes if places is None else hashes ^ places):
                _join_bucket(bucket, members, clusters, similar)


def buckets(hashes: Hashes, sorted_at_once: int = SORTED_AT_ONCE) -> Iterator[Rows]:
    """The places, ascending, of every hash that occurs more than once."""
    pieces = np.uint64(-(-len(hashes) // sorted_at_once))
    for piece in range(int(pieces)):
        places = np.flatnonzero(hashes % pieces == piece)
        values = hashes[places]
        order = np.argsort(values, kind="stable")
        values, places = values[order], places[order]
        edges = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]])
        repeated = np.flatnonzero(np.diff(edges) > 1)
        for start, stop in zip(edges[repeated], edges[repeated + 1], strict=True):
            yield places[start:stop]


def first_of_equal(digests: Hashes, sorted_at_once: int = SORTED_AT_ONCE) -> Rows:
    """[n]: for each row of `digests` [n, 2] the number of the first row that equals it."""
    first = np.empty(len(digests), dtype=np.int64)
    pieces = np.uint64(-(-len(digests) // sorted_at_once))
    for piece in range(int(pieces)):
        rows = np.flatnonzero(digests[:, 0] % pieces == piece)
        if not len(rows):
            continue
        found = digests[rows]
        order = np.lexsort((found[:, 1], found[:, 0]))  # stable: equal rows stay in their order
        found, rows = found[order], rows[order]
        starts = np.flatnonzero(np.append(True, (found[1:] != found[:-1]).any(axis=1)))
        first[rows] = np.repeat(rows[starts], np.diff(np.append(starts, len(rows))))
    return first


def _join_bucket(bucket: Rows, members: Rows, clusters: Clusters, similar: Callable[[int, int], bool]) -> None:
    places: list[int] = bucket.tolist()
    numbers: list[int] = members[bucket].tolist()
    for i in range(1, len(places)):
        for j in range(max(0, i - COMPARED), i):
            apart = clusters.root(numbers[i]) != clusters.root(numbers[j])
            if apart and similar(places[i], places[j]):
                clusters.join(numbers[i], numbers[j])


def _combined(columns: Hashes) -> Hashes:
    """[n]: one hash of each row of `columns` [n, r]."""
    hashes = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        hashes = mixed(hashes + column + np.uint64(1))
    return hashes


def _mapped(path: Path, dtype: type[Number]) -> npt.NDArray[Number]:
    """The numbers of a file, mapped from disk; a file without any cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
