"""From a piece to its translation: a language's results sorted by key, memory-mapped on local disk.

Cells ask for pieces in any order and from everywhere, so results are copied once, bucket by bucket, to where a search
costs no request. The operating system keeps in memory what is asked for often and drops the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hbt_ray.corpus.spill import local_disk
from hbt_ray.errors import CorpusError
from hbt_ray.storage import Folder
from hbt_ray.translation.pieces import KEY_BYTES, Keys, Unit, WorkList, as_keys, bucket_of, key_of
from hbt_ray.translation.pipeline import RESULTS

_SORTED = pa.schema([pa.field("key", pa.binary(KEY_BYTES)), *RESULTS])


class Found(NamedTuple):
    """What was made of a piece: translation, what is wrong with it or None, its translation back or None."""

    text: str
    fault: str | None
    back: str | None


class Lookup:
    """The results of one language.

    Args:
        work: the units.
        results: folder with a file for each unit.
        scratch: an empty local folder.

    Raises:
        CorpusError: a unit's results are missing or of another length.
        ResourceError: local disk is full.
    """

    def __init__(self, work: WorkList, results: Folder, scratch: Path) -> None:
        self._buckets: list[tuple[Keys, pa.Table]] = []
        for bucket in range(len(work.units)):
            table = _bucket_results(work, results, bucket)
            path = scratch / f"{bucket}.arrow"
            with local_disk(str(path)), pa.ipc.new_file(path, _SORTED) as writer:
                writer.write_table(table.combine_chunks())
            mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            self._buckets.append((as_keys(mapped["key"]), mapped))

    def find(self, pieces: Sequence[str]) -> list[Found]:
        """The results of pieces that are in the work list, in their order. Raises KeyError for one that is not."""
        keys = [key_of(piece) for piece in pieces]
        rows: dict[int, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(bucket_of(key, len(self._buckets)), []).append(row)
        found: list[Any] = [None] * len(pieces)
        for bucket, of_bucket in rows.items():
            sorted_keys, table = self._buckets[bucket]
            wanted = np.array([keys[row] for row in of_bucket], dtype=sorted_keys.dtype)
            at = np.searchsorted(sorted_keys, wanted)
            _check_found(sorted_keys, at, wanted)
            columns = table.take(pa.array(at)).select(RESULTS.names).to_pydict()
            for row, *values in zip(of_bucket, *columns.values(), strict=True):
                found[row] = Found(*values)
        return found


def _check_found(sorted_keys: Keys, at: npt.NDArray[np.int64], wanted: Keys) -> None:
    """Raise KeyError unless the keys at those places are the wanted ones."""
    if not len(sorted_keys) or (sorted_keys[np.minimum(at, len(sorted_keys) - 1)] != wanted).any():
        raise KeyError("a piece that the work list does not have")


def _bucket_results(work: WorkList, results: Folder, bucket: int) -> pa.Table:
    """Keys and results of a bucket's pieces, sorted by key."""
    keys = work.keys(bucket)
    tables = [_unit_results(results, Unit(bucket, number), count) for number, count in enumerate(work.units[bucket])]
    table = pa.concat_tables(tables) if tables else RESULTS.empty_table()
    order = np.argsort(keys, kind="stable")
    sorted_keys = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys[order].tobytes())]
    )
    return table.take(pa.array(order)).add_column(0, _SORTED.field(0), sorted_keys)


def _unit_results(results: Folder, unit: Unit, pieces: int) -> pa.Table:
    where = f"{results.uri}/{unit.name}"
    try:
        table = results.read_with(unit.name, lambda file: pq.read_table(file, schema=RESULTS))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise CorpusError(where, error, "the results of a unit", "Delete it and translate again.") from None
    if table.num_rows != pieces:
        received, expected = f"{table.num_rows} results", f"{pieces}, one for each piece"
        raise CorpusError(where, received, expected, "Delete it and translate again.")
    return table
