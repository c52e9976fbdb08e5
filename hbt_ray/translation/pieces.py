"""The work list: every distinct piece of a dataset's texts once, in units that are translated as a whole.

    <work>/pieces/bucket-00000.parquet     key, text; a row group is a unit
    <work>/pieces/work.json                pieces of every unit; written last

Pieces go to buckets by their hash, so that repeats meet in one bucket, which fits in memory. Within a bucket the
longest come first, and units are cut by characters. All this is a function of the texts and the settings alone: so are
the batches that are made of a unit, whoever translates it and whenever.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hbt_ray.corpus.shards import ShardedDataset, part_name
from hbt_ray.corpus.spill import local_disk, scratch_folder
from hbt_ray.storage import Folder
from hbt_ray.translation.sentences import Split, split
from hbt_ray.translation.settings import PieceSection, TranslationSettings

KEY_BYTES = 16
ROWS_PER_BUCKET = 131_072  # of the dataset: a bucket's pieces take some hundred MB at most
MOST_BUCKETS = 256  # each has a file open while pieces are collected
ROWS_AT_ONCE = 4_096
VERSION = 1  # of the rules by which texts become pieces and pieces units
WORK = "work.json"

_PIECES = pa.schema({"key": pa.binary(KEY_BYTES), "text": pa.large_string()})

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Unit:
    """Pieces that one actor translates in one go: a row group of a bucket."""

    bucket: int
    number: int

    @property
    def name(self) -> str:
        """Name of its file of results."""
        return f"bucket-{self.bucket:05d}-unit-{self.number:05d}.parquet"


@dataclass(frozen=True)
class WorkList:
    """All units of a source language.

    Args:
        folder: where they are.
        key: what they are a function of, as a hash.
        units: for each bucket the pieces of its units.
    """

    folder: Folder
    key: str
    units: tuple[tuple[int, ...], ...]

    @property
    def pieces(self) -> int:
        """Distinct pieces."""
        return sum(map(sum, self.units))

    def all_units(self) -> Iterator[Unit]:
        """In order."""
        for bucket, units in enumerate(self.units):
            for number in range(len(units)):
                yield Unit(bucket, number)

    def texts(self, unit: Unit) -> list[str]:
        """The pieces of a unit, longest first."""
        return self.folder.read_with(
            bucket_name(unit.bucket),
            lambda file: pq.ParquetFile(file).read_row_group(unit.number, columns=["text"])["text"].to_pylist(),
        )

    def keys(self, bucket: int) -> Keys:
        """Keys of a bucket's pieces, in the order of its units."""
        return self.folder.read_with(
            bucket_name(bucket), lambda file: as_keys(pq.read_table(file, columns=["key"])["key"])
        )


def bucket_name(bucket: int) -> str:
    """Name of a bucket's file."""
    return f"bucket-{bucket:05d}.parquet"


def split_text(text: str, settings: PieceSection) -> Split:
    """The pieces of a text as the work list has them."""
    return split(text, settings.sentences, settings.max_characters)


def is_translatable(piece: str) -> bool:
    """Whether there is a letter in it; numbers and signs are taken over as they are, models only make them worse."""
    return any(map(str.isalpha, piece))


def key_of(piece: str) -> bytes:
    """128 bits that stand for a piece."""
    return hashlib.blake2b(piece.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()


def as_keys(column: pa.ChunkedArray) -> Keys:
    """A column of keys as bytes of fixed length."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    buffer = array.buffers()[1]
    if buffer is None:
        return np.empty(0, dtype=f"S{KEY_BYTES}")
    return np.frombuffer(buffer, dtype=f"S{KEY_BYTES}")[array.offset : array.offset + len(array)]


def bucket_of(key: bytes, buckets: int) -> int:
    """The bucket of a key."""
    return int.from_bytes(key[:4], "big") * buckets >> 32


def work_key(dataset: ShardedDataset, settings: TranslationSettings, further_sha256: str) -> str:
    """Hash of everything the work list depends on; `further_sha256` is that of the further texts."""
    parts = range(len(dataset.manifest.rows_per_part))
    files = [dataset.manifest.files[part_name(settings.source, part)] for part in parts]
    content = [VERSION, settings.source, files, settings.texts, settings.pieces.model_dump(), further_sha256]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def work_list(
    dataset: ShardedDataset, settings: TranslationSettings, folder: Folder, key: str, further: Iterable[str] = ()
) -> WorkList:
    """The work list in `folder`, made if it is not there; `further` are texts beside those of the dataset.

    Raises:
        CorpusError: a part is missing.
        ResourceError: the folder cannot be written.
    """
    if folder.exists(WORK):
        units = json.loads(folder.read(WORK))["units"]
        return WorkList(folder, key, tuple(map(tuple, units)))
    buckets = min(MOST_BUCKETS, max(1, -(-dataset.manifest.rows // ROWS_PER_BUCKET)))
    with scratch_folder() as scratch, local_disk(str(scratch)):
        paths = [scratch / str(bucket) for bucket in range(buckets)]
        _spill(_pieces(dataset, settings, further), paths)
        made = [_write_bucket(folder, bucket, path, settings.pieces) for bucket, path in enumerate(paths)]
    folder.write(WORK, json.dumps({"key": key, "units": made}).encode())
    return WorkList(folder, key, tuple(map(tuple, made)))


def source_texts(table: pa.Table, columns: Sequence[str]) -> Iterator[str]:
    """All texts of some columns, row by row within a column; missing cells have none."""
    for column in columns:
        values = table[column]
        if column == "negatives":
            values = pc.list_flatten(values)
        yield from values.drop_null().to_pylist()


def _pieces(dataset: ShardedDataset, settings: TranslationSettings, further: Iterable[str]) -> Iterator[list[str]]:
    """The pieces of a run of texts, repeats included."""
    for part in range(len(dataset.manifest.rows_per_part)):
        table = dataset.read_part(settings.source, part)
        for start in range(0, table.num_rows, ROWS_AT_ONCE):
            texts = source_texts(table.slice(start, ROWS_AT_ONCE), settings.texts)
            yield _pieces_of(texts, settings.pieces)
    batch: list[str] = []
    for text in further:
        batch.append(text)
        if len(batch) == ROWS_AT_ONCE:
            yield _pieces_of(batch, settings.pieces)
            batch = []
    yield _pieces_of(batch, settings.pieces)


def _pieces_of(texts: Iterable[str], settings: PieceSection) -> list[str]:
    distinct = dict.fromkeys(piece for text in texts for piece in split_text(text, settings).pieces)
    return [piece for piece in distinct if is_translatable(piece)]


def _spill(batches: Iterable[list[str]], paths: Sequence[Path]) -> None:
    """Write each piece to the file of its bucket."""
    with ExitStack() as stack:
        files = [stack.enter_context(pa.ipc.new_stream(path, _PIECES)) for path in paths]
        for pieces in batches:
            keys = [key_of(piece) for piece in pieces]
            own: list[list[int]] = [[] for _ in paths]
            for row, key in enumerate(keys):
                own[bucket_of(key, len(paths))].append(row)
            for file, rows in zip(files, own, strict=True):
                if rows:
                    columns: Any = [[keys[row] for row in rows], [pieces[row] for row in rows]]
                    file.write_batch(pa.record_batch(columns, schema=_PIECES))


def _write_bucket(folder: Folder, bucket: int, path: Path, settings: PieceSection) -> list[int]:
    """Write the distinct pieces of a bucket; how many each of its units has."""
    with pa.ipc.open_stream(path) as stream:
        table = stream.read_all()
    path.unlink()
    keys, first = np.unique(as_keys(table["key"]), return_index=True)
    table = table.take(pa.array(first))
    lengths = pc.utf8_length(table["text"]).to_numpy().astype(np.int64)
    order = np.lexsort((keys, -lengths))
    before = np.cumsum(lengths[order]) - lengths[order]
    cuts = np.flatnonzero(np.diff(before // settings.characters_per_unit)) + 1
    table = table.take(pa.array(order))
    edges = [0, *cuts.tolist(), len(order)] if len(order) else [0]
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, _PIECES, compression="zstd") as writer:
        for start, stop in pairwise(edges):
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
    folder.write_final(bucket_name(bucket), buffer.getvalue())
    return np.diff(edges).tolist()
