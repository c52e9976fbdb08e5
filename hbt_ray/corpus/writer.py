"""Write datasets of any size: pairs in, aligned shuffled shards out, in memory that does not grow with them.

Row i of the shards is pair `default_rng(seed).permutation(n)[i]`, and n is known only after the last pair. So pairs
are spilled to local disk as they come, their cells are then scattered to the part and language they belong to, and
each (part, language) is read back, put in order and written. Local disk holds about twice the compressed texts.
In memory stay one block of pairs, one part of one language, and some thirty bytes per row.
"""

from __future__ import annotations

import heapq
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise, zip_longest
from operator import itemgetter
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hbt_ray.corpus.documents import DOCUMENTS, documents_bytes
from hbt_ray.corpus.importers import RejectedRow
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import GROUPS, MANIFEST, SCHEMA, Bits, Manifest, ShardedDataset, part_name, presence_name
from hbt_ray.corpus.spill import Spill, local_disk, scratch_folder
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.languages import checked_codes
from hbt_ray.storage import Folder, sha256

BLOCK_CHARACTERS = 64 << 20  # of text in memory at once; larger blocks make fewer and longer reads later
PAIR_CHARACTERS = 1_000  # what a pair without text costs
NAMES_AT_ONCE = 512  # names of documents that a block has in memory while those of all blocks are merged
PIVOT = "en"

_TEXT = pa.large_string()  # offsets of 64 bits: a part of one language may hold more than 2 GiB
_IDS = pa.schema({"row": pa.int32(), "pair_id": _TEXT, "passage_id": _TEXT})
_CELLS = pa.schema({"row": pa.int32(), "query": _TEXT, "passage": _TEXT, "negatives": pa.large_list(_TEXT)})
_NAMES = pa.schema({"name": _TEXT})

Rows = npt.NDArray[np.int32]


def write_pairs(
    root: Folder,
    dataset: str,
    pairs: Iterable[ParallelPair],
    languages: Sequence[str] | None,
    provenance: Mapping[str, Any],
    *,
    seed: int = 13,
    rows_per_part: int = 65_536,
    rows_per_group: int = 256,
    name_documents: bool = True,
    rejections: Rejections | None = None,
) -> Manifest:
    """Write pairs as aligned shards, rows shuffled once by `seed`; the manifest comes last.

    Nothing is written before the last pair has been seen and all are known to be good. Temporary files are in the
    folder that TMPDIR names.

    Args:
        root: corpus folder; the dataset is the folder `dataset` in it.
        dataset: its name.
        pairs: run through once.
        languages: of the dataset, in this order; None for those found, `en` first, the others sorted.
        provenance: goes into the manifest as it is when the last pair has been seen, so that counts may grow till then.
        seed: of the order of rows.
        rows_per_part: rows of a file.
        rows_per_group: rows of a row group, the smallest unit that is read.
        name_documents: whether `group` is a name to keep, or only tells documents apart.
        rejections: of the source of the pairs, to be written before the manifest.

    Raises:
        CorpusError: no pairs, duplicate pair_id, blank text, a pair without query or passage in any language, or
            with a text in a language that is not among `languages`.
        ConfigError: unknown language code.
        ResourceError: the target cannot be written, or local disk is full.
    """
    wanted = None if languages is None else checked_codes(languages, f"languages of {dataset}")
    with (
        scratch_folder() as scratch,
        Spill(scratch / "pairs") as spilled,
        Spill(scratch / "parts") as sorted_by_part,
    ):
        blocks = [_spilled_block(block, spilled) for block in _blocks(_checked(dataset, pairs, wanted))]
        if not blocks:
            raise CorpusError(dataset, "no pairs", "at least one query-passage pair", "Check the source.")
        _check_unique(dataset, blocks, spilled)
        found = wanted or checked_codes(_ordered({lang for b in blocks for lang in b.cells}), f"languages of {dataset}")
        shards = _scattered(blocks, spilled, sorted_by_part, seed, rows_per_part, name_documents)
        spilled.close()  # its room is needed no longer
        shape = Manifest(dataset, found, shards.rows_per_part, rows_per_group, shards.documents, seed, {}, {})
        return _write_shards(root / dataset, shape, shards, provenance, rejections)


def add_language(
    dataset: ShardedDataset, lang: str, tables: Iterable[pa.Table], provenance: Mapping[str, Any]
) -> Manifest:
    """Add a language to a dataset, or replace one; files of the other languages are not touched.

    The manifest is rewritten last. A language that is replaced is taken out of it first, so a call that is cut short
    leaves a complete dataset without that language.

    Args:
        dataset: as it was opened.
        lang: language code.
        tables: for each part in order, a table with columns query, passage (null: missing cell) and negatives
            (list of texts), row-aligned with the part.
        provenance: goes into the manifest as `provenance["languages"][lang]`.

    Raises:
        CorpusError: too few or too many tables, a table of other length or columns, or a blank text.
        ConfigError: unknown language code, or the only language of the dataset.
        ResourceError: the dataset cannot be written.
    """
    checked_codes([lang], f"{dataset.name}: language to add")
    base = _without_language(dataset.manifest, lang)
    if not base.languages:
        raise ConfigError(lang, f"the only language of {dataset.name}", "another one", "Import the dataset again.")
    if lang in dataset.manifest.languages:
        _write_manifest(dataset.folder, base)
    bits = _no_bits(base.rows)
    files: dict[str, str] = {}
    start = 0
    for part, (rows, table) in enumerate(zip_longest(base.rows_per_part, tables)):
        name = part_name(lang, part)
        if rows is None or table is None:
            received = "a table too many" if rows is None else "no table"
            raise CorpusError(f"{dataset.folder.uri}/{name}", received, "one for each part", "Make it again.")
        cells = _checked_cells(f"{dataset.folder.uri}/{name}", table, rows)
        ids = dataset.read_part(base.languages[0], part)
        files[name] = _put(dataset.folder, name, _parquet_bytes(_shard(ids, cells), base.rows_per_group))
        _set_bits(bits, start, cells)
        start += rows
    files[presence_name(lang)] = _put(dataset.folder, presence_name(lang), _npy_bytes(bits))
    languages = dict(base.provenance.get("languages", {})) | {lang: provenance}
    manifest = replace(
        base,
        languages=_in_place(dataset.manifest.languages, lang),
        files={**base.files, **files},
        usable={**base.usable, lang: _usable(bits)},
        provenance=_plain({**base.provenance, "languages": languages}),
    )
    _write_manifest(dataset.folder, manifest)
    return manifest


class Rejections:
    """A `Reject` that writes what an importer leaves out to `<folder>/rejected/<name>.jsonl`, a JSON object per row.

    A context manager: the file is copied to the folder at the end, if `write` did not do that before, also when a
    CorpusError ends the import. Where nothing was rejected there is no file, nor one of an earlier import.

    Args:
        folder: of the dataset, local or `s3://`.
        name: of the file, without ending.

    Attributes:
        counts: reason -> rows.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._is_written = False
        self._folder = folder / "rejected"
        self._name = f"{name}.jsonl"

    def __enter__(self) -> Rejections:
        with ExitStack() as stack:
            self._scratch = stack.enter_context(scratch_folder())
            with local_disk(str(self._scratch)):
                self._file = (self._scratch / self._name).open("w", encoding="utf-8", newline="\n")
            self._stack = stack.pop_all()
        return self

    def __call__(self, row: RejectedRow) -> None:
        """Record a row. Raises ResourceError if local disk is full."""
        line = json.dumps(asdict(row), ensure_ascii=False).encode(errors="surrogatepass").decode(errors="replace")
        with local_disk(str(self._scratch)):
            self._file.write(line + "\n")
        self.counts[row.reason] += 1

    def write(self) -> None:
        """Copy the file to the folder; nothing more is rejected from then on. Raises ResourceError."""
        with local_disk(str(self._scratch)):
            self._file.close()
        if self.counts:
            self._folder.upload(self._scratch)
        else:
            self._folder.remove(self._name)
        self._is_written = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._stack:
            if not self._is_written and (error is None or isinstance(error, CorpusError)):
                self.write()
            with suppress(OSError):  # of a full disk, which another error has told of
                self._file.close()


# --- pairs as they come ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """Where some consecutive pairs are on local disk."""

    rows: int
    ids: int  # place of their ids; `row` is the number of the pair's document in the block
    cells: Mapping[str, int]  # language -> place of its cells; `row` is the number of the pair in the block
    names: tuple[int, ...]  # places of the names of documents in the block, sorted, none twice
    hashes: npt.NDArray[np.int64]  # of the pair ids


def _checked(dataset: str, pairs: Iterable[ParallelPair], languages: Sequence[str] | None) -> Iterator[ParallelPair]:
    for pair in pairs:
        for name, texts in (("query", pair.query), ("passage", pair.passage)):
            for lang, text in texts.items():
                if languages is not None and lang not in languages:
                    _refuse(dataset, pair, "", f"{name} in {lang!r}", f"one of {', '.join(languages)}", "Add it.")
                if not text or text.isspace():
                    fix = "Leave the cell out instead of empty."
                    _refuse(dataset, pair, f", {lang}", f"an empty {name}", "text", fix)
        if not pair.query or not pair.passage:
            missing = "passage" if pair.query else "query"
            _refuse(dataset, pair, "", f"no {missing}", f"a {missing} in some language", "Drop the pair.")
        for lang in pair.negatives:
            if languages is not None and lang not in languages:
                _refuse(dataset, pair, "", f"negatives in {lang!r}", f"one of {', '.join(languages)}", "Add it.")
        yield pair


def _refuse(dataset: str, pair: ParallelPair, place: str, received: str, expected: str, fix: str) -> NoReturn:
    raise CorpusError(f"{dataset}: pair {pair.pair_id!r}{place}", received, expected, fix)


def _blocks(pairs: Iterable[ParallelPair]) -> Iterator[list[ParallelPair]]:
    """The pairs in lists of about BLOCK_CHARACTERS."""
    block: list[ParallelPair] = []
    characters = 0
    for pair in pairs:
        block.append(pair)
        characters += _characters(pair)
        if characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _characters(pair: ParallelPair) -> int:
    negatives = sum(len(text) for texts in pair.negatives.values() for text in texts)
    return PAIR_CHARACTERS + sum(map(len, pair.query.values())) + sum(map(len, pair.passage.values())) + negatives


def _spilled_block(pairs: Sequence[ParallelPair], spill: Spill) -> _Block:
    names = sorted({pair.group for pair in pairs})
    numbers = {name: number for number, name in enumerate(names)}
    ids = pa.record_batch(
        {
            "row": [numbers[pair.group] for pair in pairs],
            "pair_id": [pair.pair_id for pair in pairs],
            "passage_id": [pair.passage_id for pair in pairs],
        },
        schema=_IDS,
    )
    cells = {lang: spill.put(_cells(pairs, lang)) for lang in _languages(pairs)}
    starts = range(0, len(names), NAMES_AT_ONCE)
    places = [spill.put(pa.record_batch({"name": names[i : i + NAMES_AT_ONCE]}, schema=_NAMES)) for i in starts]
    hashes = np.array([hash(pair.pair_id) for pair in pairs], np.int64)
    return _Block(len(pairs), spill.put(ids), cells, tuple(places), hashes)


def _languages(pairs: Sequence[ParallelPair]) -> list[str]:
    return sorted({lang for pair in pairs for texts in (pair.query, pair.passage, pair.negatives) for lang in texts})


def _cells(pairs: Sequence[ParallelPair], lang: str) -> pa.RecordBatch:
    """The cells of a language, of those pairs that have any."""
    rows = [
        (row, pair)
        for row, pair in enumerate(pairs)
        if lang in pair.query or lang in pair.passage or lang in pair.negatives
    ]
    return pa.record_batch(
        {
            "row": [row for row, _ in rows],
            "query": [pair.query.get(lang) for _, pair in rows],
            "passage": [pair.passage.get(lang) for _, pair in rows],
            "negatives": [list(pair.negatives.get(lang, ())) for _, pair in rows],
        },
        schema=_CELLS,
    )


def _ordered(languages: Iterable[str]) -> list[str]:
    """English first, the others sorted."""
    return sorted(languages, key=lambda lang: (lang != PIVOT, lang))


def _check_unique(dataset: str, blocks: Sequence[_Block], spill: Spill) -> None:
    """Equal hashes are looked into: their pair ids may differ."""
    values, counts = np.unique(np.concatenate([block.hashes for block in blocks]), return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return
    suspects: Counter[str] = Counter()
    for block in blocks:
        rows = np.flatnonzero(np.isin(block.hashes, repeated))
        if len(rows):
            suspects.update(spill.get(block.ids, _IDS)["pair_id"].take(pa.array(rows)).to_pylist())
    twice = [pair_id for pair_id, count in suspects.items() if count > 1]
    if twice:
        received = f"{twice[0]!r} more than once"
        raise CorpusError(f"{dataset}: pair_id", received, "unique pair ids", "Remove or rename one.")


# --- scattered to parts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scattered:
    """Rows by the part they belong to, in any order inside it; `row` is their place in the part."""

    spill: Spill
    rows_per_part: tuple[int, ...]
    groups: Rows  # int32 [rows] in the order of the shards
    documents: int
    names: bytes | None  # of the documents, as a file
    ids: Mapping[int, Sequence[int]]  # part -> places
    cells: Mapping[tuple[int, str], Sequence[int]]  # part, language -> places

    def part_ids(self, part: int) -> pa.Table:
        """The ids of a part in the order of its rows."""
        table = self.spill.table(self.ids[part], _IDS)
        return table.take(pc.sort_indices(table["row"]))

    def part_cells(self, part: int, lang: str) -> pa.Table:
        """The cells of a part in the order of its rows; missing ones are null, without negatives."""
        table = self.spill.table(self.cells.get((part, lang), ()), _CELLS)
        missing = pa.Table.from_pylist([{"row": -1, "negatives": []}], schema=_CELLS)
        place = np.full(self.rows_per_part[part], table.num_rows)
        place[np.asarray(table["row"])] = np.arange(table.num_rows)
        return pa.concat_tables([table, missing]).take(pa.array(place))


def _scattered(
    blocks: Sequence[_Block], source: Spill, target: Spill, seed: int, rows_per_part: int, name_documents: bool
) -> _Scattered:
    rows = sum(block.rows for block in blocks)
    documents, numbers = _document_numbers(blocks, source)
    names = documents_bytes(name for name, _ in _documents(blocks, source)) if name_documents else None
    destination = _destinations(rows, seed)
    groups = np.empty(rows, np.int32)
    ids: dict[int, array[int]] = {}
    cells: dict[tuple[int, str], array[int]] = {}
    start = 0
    for block, document in zip(blocks, numbers, strict=True):
        places = destination[start : start + block.rows]
        batch = source.get(block.ids, _IDS)
        groups[places] = np.asarray(document)[np.asarray(batch["row"])]
        for part, found in _by_part(batch, places, rows_per_part):
            ids.setdefault(part, array("q")).append(target.put(found))
        for lang, place in block.cells.items():
            batch = source.get(place, _CELLS)
            for part, found in _by_part(batch, places[np.asarray(batch["row"])], rows_per_part):
                cells.setdefault((part, lang), array("q")).append(target.put(found))
        start += block.rows
    sizes = tuple(min(rows_per_part, rows - first) for first in range(0, rows, rows_per_part))
    return _Scattered(target, sizes, groups, documents, names, ids, cells)


def _destinations(rows: int, seed: int) -> Rows:
    """int32 [rows]: the row of the shards that each pair becomes."""
    destination = np.empty(rows, np.int32)
    destination[np.random.default_rng(seed).permutation(rows)] = np.arange(rows, dtype=np.int32)
    return destination


def _by_part(batch: pa.RecordBatch, places: Rows, rows_per_part: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a batch that belong to each part, with their place in it, if `places` are those in the shards."""
    order = np.argsort(places)
    parts, rows = np.divmod(places[order], rows_per_part)
    batch = batch.take(pa.array(order)).set_column(0, "row", pa.array(rows, pa.int32()))
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]):
        yield int(parts[start]), batch.slice(start, stop - start)


def _document_numbers(blocks: Sequence[_Block], spill: Spill) -> tuple[int, list[array[int]]]:
    """How many documents there are, and for each block the numbers of its own: their ranks among all names sorted."""
    numbers = [array("i") for _ in blocks]
    count = 0
    for _, holders in _documents(blocks, spill):
        for block in holders:
            numbers[block].append(count)
        count += 1
    return count, numbers


def _documents(blocks: Sequence[_Block], spill: Spill) -> Iterator[tuple[str, Iterator[int]]]:
    """The name of every document in sorted order, with the numbers of the blocks that have pairs of it."""
    runs = [_names(block, number, spill) for number, block in enumerate(blocks)]
    for name, same in groupby(heapq.merge(*runs), key=itemgetter(0)):
        yield name, (block for _, block in same)


def _names(block: _Block, number: int, spill: Spill) -> Iterator[tuple[str, int]]:
    for place in block.names:
        for name in spill.get(place, _NAMES)["name"].to_pylist():
            yield name, number


# --- shards ----------------------------------------------------------------------------------------------------------


def _write_shards(
    folder: Folder,
    shape: Manifest,
    shards: _Scattered,
    provenance: Mapping[str, Any],
    rejections: Rejections | None,
) -> Manifest:
    """Write all files of a dataset; `shape` is its manifest but for files, usable cells and provenance."""
    folder.remove(MANIFEST)  # while an older import is replaced, the folder is not complete
    bits = {lang: _no_bits(shape.rows) for lang in shape.languages}
    files: dict[str, str] = {}
    start = 0
    for part, rows in enumerate(shape.rows_per_part):
        ids = shards.part_ids(part)
        for lang in shape.languages:
            cells = shards.part_cells(part, lang)
            name = part_name(lang, part)
            files[name] = _put(folder, name, _parquet_bytes(_shard(ids, cells), shape.rows_per_group))
            _set_bits(bits[lang], start, cells)
        start += rows
    for lang in shape.languages:
        files[presence_name(lang)] = _put(folder, presence_name(lang), _npy_bytes(bits[lang]))
    files[GROUPS] = _put(folder, GROUPS, _npy_bytes(shards.groups))
    if shards.names is not None:
        files[DOCUMENTS] = _put(folder, DOCUMENTS, shards.names)
    if rejections is not None:
        rejections.write()
    usable = {lang: _usable(bits[lang]) for lang in shape.languages}
    manifest = replace(shape, files=files, usable=usable, provenance=_plain(provenance))
    _write_manifest(folder, manifest)
    return manifest


def _put(folder: Folder, name: str, data: bytes) -> str:
    """Write a file; its sha256."""
    folder.write(name, data)
    return sha256(data)


def _write_manifest(folder: Folder, manifest: Manifest) -> None:
    folder.write(MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False).encode())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a manifest that is read again has them; a Counter is no longer one."""
    return json.loads(json.dumps(dict(values)))  # type: ignore[no-any-return]


def _shard(ids: pa.Table, cells: pa.Table) -> pa.Table:
    columns = {"pair_id": ids, "query": cells, "passage": cells, "passage_id": ids, "negatives": cells}
    return pa.table({name: table[name] for name, table in columns.items()})


def _parquet_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    buffer = io.BytesIO()
    # Nobody asks for the least and the greatest text of a row group; they would make footers five times as large.
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd", write_statistics=False) as writer:
        for start in range(0, table.num_rows, rows_per_group):
            writer.write_table(table.slice(start, rows_per_group).cast(SCHEMA), row_group_size=rows_per_group)
    return buffer.getvalue()


def _npy_bytes(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _no_bits(rows: int) -> Bits:
    return np.zeros((2, -(-rows // 8)), np.uint8)


def _set_bits(bits: Bits, start: int, cells: pa.Table) -> None:
    """Mark which cells of the rows from `start` on are there."""
    present = np.array([cells[column].is_valid().to_numpy() for column in ("query", "passage")])
    packed = np.packbits(np.pad(present, ((0, 0), (start % 8, 0))), axis=1)
    bits[:, start // 8 : start // 8 + packed.shape[1]] |= packed


def _usable(bits: Bits) -> dict[str, int]:
    query, passage = bits
    counts = {"queries": query, "passages": passage, "pairs": query & passage}
    return {name: int(np.bitwise_count(packed).sum()) for name, packed in counts.items()}


# --- one more language -----------------------------------------------------------------------------------------------


def _without_language(manifest: Manifest, lang: str) -> Manifest:
    own = {presence_name(lang), *(part_name(lang, part) for part in range(len(manifest.rows_per_part)))}
    languages = {code: value for code, value in manifest.provenance.get("languages", {}).items() if code != lang}
    return replace(
        manifest,
        languages=tuple(code for code in manifest.languages if code != lang),
        files={name: checksum for name, checksum in manifest.files.items() if name not in own},
        usable={code: counts for code, counts in manifest.usable.items() if code != lang},
        provenance={**manifest.provenance, **({"languages": languages} if "languages" in manifest.provenance else {})},
    )


def _in_place(languages: tuple[str, ...], lang: str) -> tuple[str, ...]:
    return languages if lang in languages else (*languages, lang)


def _checked_cells(where: str, table: pa.Table, rows: int) -> pa.Table:
    """The cells in their types. Raises CorpusError unless they are `rows` rows that the shards may hold."""
    fix = "Make this part again."
    if table.num_rows != rows:
        raise CorpusError(where, f"{table.num_rows} rows", f"{rows} as in the other languages", fix)
    columns = _CELLS.names[1:]
    try:
        cells = table.select(columns).cast(pa.schema([_CELLS.field(name) for name in columns]))
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        expected = "text columns query and passage, and lists of text as negatives"
        raise CorpusError(where, error, expected, fix) from None
    for column in ("query", "passage"):
        lengths = pc.utf8_length(pc.utf8_trim_whitespace(cells[column]))
        blank = np.flatnonzero(pc.fill_null(pc.equal(lengths, 0), False).to_numpy())
        if len(blank):
            raise CorpusError(f"{where}, row {blank[0]}", f"an empty {column}", "text, or null if missing", fix)
    return cells.set_column(2, _CELLS.field("negatives"), _without_nulls(cells["negatives"]))


def _without_nulls(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The lists, empty ones for null."""
    if not lists.null_count:
        return lists
    empty = pa.chunked_array([*lists.chunks, pa.array([[]], lists.type)])
    places = np.where(lists.is_valid().to_numpy(), np.arange(len(lists)), len(lists))
    return empty.take(pa.array(places))
