"""Aligned Parquet shards: row i of part k is the same pair in every language of a dataset.

    <root>/<dataset>/manifest.json                 written last: its existence means complete
    <root>/<dataset>/<lang>/part-00000.parquet     pair_id, query, passage, passage_id, negatives
    <root>/<dataset>/presence.<lang>.npy           uint8 [2, ceil(rows / 8)]: packed bits, queries then passages
    <root>/<dataset>/groups.npy                    int32 [rows]: number of the document a row comes from

Parts and row groups have the same boundaries in every language, so a new language is added without rewriting
another and a batch reads only the (row group, language) cells it uses. A missing translation is a null cell.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hbt_ray.errors import CorpusError
from hbt_ray.languages import language
from hbt_ray.storage import Folder, sha256

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GROUPS = "groups.npy"
READ_AHEAD = 8 << 20  # bytes of one request where the numbers of documents are read in blocks
SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("passage", pa.string()),
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
    ]
)

Bits = npt.NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds; `files` maps relative paths to sha256, `usable` counts cells per language."""

    dataset: str
    languages: tuple[str, ...]
    rows_per_part: tuple[int, ...]
    rows_per_group: int
    groups: int
    seed: int
    files: Mapping[str, str]
    usable: Mapping[str, Mapping[str, int]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> int:
        """Pairs per language, missing cells included."""
        return sum(self.rows_per_part)


def part_name(lang: str, part: int) -> str:
    """Relative path of a part file."""
    return f"{lang}/part-{part:05d}.parquet"


def presence_name(lang: str) -> str:
    """Relative path of a language's presence bits."""
    return f"presence.{lang}.npy"


@dataclass(frozen=True)
class ShardedDataset:
    """A complete dataset on disk, opened by its manifest."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, folder: Folder) -> ShardedDataset:
        """Open a dataset folder. Raises CorpusError if the manifest is missing, broken or of another version."""
        if not folder.exists(MANIFEST):
            raise CorpusError(
                folder.uri,
                f"no {MANIFEST}",
                "a complete dataset folder",
                "The writer puts the manifest last: run the import again.",
            )
        where = f"{folder.uri}/{MANIFEST}"
        try:
            raw = json.loads(folder.read(MANIFEST))
            version = raw.get("schema_version")
            if version != SCHEMA_VERSION:
                raise CorpusError(where, f"schema_version {version}", f"{SCHEMA_VERSION}", "Import the data again.")
            raw["languages"] = tuple(raw["languages"])
            raw["rows_per_part"] = tuple(raw["rows_per_part"])
            manifest = Manifest(**raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorpusError(where, repr(error), "a manifest", "Run the import again.") from None
        for lang in manifest.languages:
            language(lang, where)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.manifest.dataset

    @property
    def data_hash(self) -> str:
        """sha256 (hex) over the checksums of the files; its first 12 digits stand in a run's record."""
        return sha256(json.dumps(sorted(self.manifest.files.items())).encode())

    @cached_property
    def group_starts(self) -> npt.NDArray[np.int64]:
        """int64 [row groups + 1]: first row of each row group over all parts, and the number of rows."""
        size = self.manifest.rows_per_group
        parts = [np.arange(first, stop, size) for first, stop in pairwise(self._part_starts)]
        return np.concatenate([*parts, self._part_starts[-1:]], dtype=np.int64)

    @cached_property
    def _part_starts(self) -> npt.NDArray[np.int64]:
        """int64 [parts + 1]: first row of each part, and the number of rows."""
        return np.cumsum((0, *self.manifest.rows_per_part), dtype=np.int64)

    def location(self, group: int) -> tuple[int, int]:
        """(part, row group inside the part) of a row group."""
        row = self.group_starts[group]
        part = int(np.searchsorted(self._part_starts, row, side="right")) - 1
        return part, int(row - self._part_starts[part]) // self.manifest.rows_per_group

    def presence(self, lang: str) -> Bits:
        """uint8 [2, ceil(rows / 8)]: packed presence of queries and passages.

        Raises CorpusError if the file is missing or not of this shape.
        """
        name = presence_name(lang)
        bits: Bits = self._array(name)
        expected = (2, -(-self.manifest.rows // 8))
        if bits.shape != expected or bits.dtype != np.uint8:
            raise self._broken(name, f"{bits.dtype} {list(bits.shape)}", f"uint8 {list(expected)}")
        return bits

    def groups(self) -> npt.NDArray[np.int32]:
        """int32 [rows]: number of the document each row comes from. Raises CorpusError as `map_groups` does."""
        return np.concatenate(self.map_groups(lambda block: block))

    def map_groups(self, function: Callable[[npt.NDArray[np.int32]], Result], block_rows: int = 65_536) -> list[Result]:
        """A function of `groups()` in blocks of so many rows (the last may be smaller), which are never held together.

        Raises CorpusError if the file is missing, has not one number per row, or a number that is no document's.
        """
        try:
            return self.folder.read_with(
                GROUPS, lambda file: [function(block) for block in self._group_blocks(file, block_rows)]
            )
        except FileNotFoundError:
            raise self._missing(GROUPS) from None

    def _group_blocks(self, file: pa.NativeFile, block_rows: int) -> Iterator[npt.NDArray[np.int32]]:
        stream = pa.BufferedInputStream(file, READ_AHEAD)
        try:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        except ValueError as error:
            raise self._broken(GROUPS, error, "an array of NumPy") from None
        if shape != (self.manifest.rows,) or dtype != np.int32:
            raise self._broken(GROUPS, f"{dtype} {list(shape)}", f"int32 [{self.manifest.rows}]")
        for start in range(0, self.manifest.rows, block_rows):
            rows = min(block_rows, self.manifest.rows - start)
            data = stream.read(4 * rows)
            if len(data) < 4 * rows:
                raise self._broken(GROUPS, f"no more than {start + len(data) // 4} rows", f"{self.manifest.rows}")
            block = np.frombuffer(data, dtype=np.int32)
            if block.view(np.uint32).max() >= self.manifest.groups:  # a negative number is a large one here
                received = f"a document number of {block.min()} ... {block.max()}"
                raise self._broken(GROUPS, received, f"numbers 0 ... {self.manifest.groups - 1}")
            yield block

    def _array(self, name: str) -> npt.NDArray[Any]:
        try:
            data = self.folder.read(name)
        except FileNotFoundError:
            raise self._missing(name) from None
        return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]

    def read_group(self, lang: str, group: int, columns: Sequence[str]) -> pa.Table:
        """One (row group, language) cell. Raises CorpusError if its file is missing."""
        part, index = self.location(group)
        name = part_name(lang, part)

        def cell(file: pa.NativeFile) -> pa.Table:
            return pq.ParquetFile(file, pre_buffer=True).read_row_group(index, columns=list(columns))

        try:
            return self.folder.read_with(name, cell)
        except FileNotFoundError:
            raise self._missing(name) from None

    def read_part(self, lang: str, part: int) -> pa.Table:
        """One whole part of a language. Raises CorpusError if its file is missing."""
        return pq.read_table(io.BytesIO(self.part_bytes(lang, part)), schema=SCHEMA)

    def part_bytes(self, lang: str, part: int) -> bytes:
        """The file of a part. Raises CorpusError if it is missing."""
        name = part_name(lang, part)
        try:
            return self.folder.read(name)
        except FileNotFoundError:
            raise self._missing(name) from None

    def _broken(self, name: str, received: object, expected: str) -> CorpusError:
        return CorpusError(f"{self.folder.uri}/{name}", received, expected, "Run the import again.")

    def _missing(self, name: str) -> CorpusError:
        return CorpusError(
            f"{self.folder.uri}/{name}",
            "no such file",
            "the file the manifest lists",
            "Run the import again.",
        )


class WholeReader:
    """Cells of a dataset for those who read all of them in order: a part is fetched once, as a whole.

    In memory stays a file of each language that is read.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset
        self._open: dict[str, tuple[int, pq.ParquetFile]] = {}  # language -> number of the part, and the part

    def read_group(self, lang: str, group: int, columns: Sequence[str]) -> pa.Table:
        """One (row group, language) cell. Raises CorpusError if its file is missing."""
        part, index = self._dataset.location(group)
        if lang not in self._open or self._open[lang][0] != part:
            self._open[lang] = part, pq.ParquetFile(io.BytesIO(self._dataset.part_bytes(lang, part)))
        return self._open[lang][1].read_row_group(index, columns=list(columns))


def open_corpus(root: Folder, names: Sequence[str] | None = None) -> list[ShardedDataset]:
    """The datasets below a corpus root (or the one dataset that `root` itself is), in the order of their names.

    Raises:
        CorpusError: no such folder, no dataset in it, a dataset folder without manifest, an unknown name, a name
            that two folders have.
    """
    if root.exists(MANIFEST):
        found = [ShardedDataset.open(root)]
    else:
        found = [ShardedDataset.open(root / name) for name in root.folders() if _looks_like_dataset(root / name)]
    if not found:
        received = "no dataset inside" if root.exists() else "no such folder"
        raise CorpusError(
            root.uri,
            received,
            f"<dataset>/{MANIFEST} below it",
            "Import a corpus first (hbt-ray data import).",
        )
    by_name = _by_name(found)
    if names is None:
        return found
    for name in names:
        if name not in by_name:
            raise CorpusError(
                root.uri, f"no dataset {name!r}", f"one of {', '.join(by_name)}", "Correct data.datasets."
            )
    return [by_name[name] for name in names]


def _by_name(datasets: Sequence[ShardedDataset]) -> dict[str, ShardedDataset]:
    by_name: dict[str, ShardedDataset] = {}
    for dataset in datasets:
        if dataset.name in by_name:
            raise CorpusError(
                dataset.folder.uri,
                f"dataset {dataset.name!r}, which {by_name[dataset.name].folder.uri} is too",
                "one folder per dataset",
                "Remove the copy, or import it under another name.",
            )
        by_name[dataset.name] = dataset
    return by_name


def _looks_like_dataset(folder: Folder) -> bool:
    """A manifest, or parts without one: an import that was cut short must not pass for an empty folder."""
    if folder.exists(MANIFEST):
        return True
    return any(
        name.startswith("part-") and name.endswith(".parquet")
        for child in folder.folders()
        for name in (folder / child).entries()
    )
