"""Import of a user's own parallel data in long form: one row per (pair_id, language), JSON lines or Parquet.

Rows of a pair need not stand together. A small file is joined in memory; the rows of a large one first go to buckets
on local disk by a hash of their pair_id, and each bucket is joined in memory.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.corpus.importers import (
    Reject,
    RejectedRow,
    UsableText,
    check_language,
    invalid,
    invalid_reason,
    lines,
    opened,
    text_hash,
)
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.spill import Spill, scratch_folder
from hbt_ray.errors import CorpusError

BUCKET_BYTES = 64 << 20  # of a source, joined in memory at once
COMPRESSION = 4  # how many times larger the texts of a compressed file are, about
ROWS_AT_ONCE = 8_192

UNKNOWN_LANGUAGE = "language is unknown"
NO_TEXT = "row has neither query nor passage"
REPEATED = "pair_id was seen before in this language"
OTHER_PASSAGE_ID = "passage_id differs from that of the pair's earlier rows"
OTHER_GROUP = "group differs from that of the pair's earlier rows"
NO_QUERY = "pair has no query in any language"
NO_PASSAGE = "pair has no passage in any language"

_SPILLED = pa.schema({"number": pa.int64(), "row": pa.large_string()})


class Record(BaseModel):
    """A row: the texts of one pair in one language."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    pair_id: UsableText
    language: UsableText
    query: UsableText | None = None
    passage: UsableText | None = None
    passage_id: UsableText | None = None
    group: UsableText | None = None
    negatives: list[UsableText] | None = None


Rows = Iterator[tuple[int, Record]]  # number of the row in its file, from 1


def read_records(source: Path, *, reject: Reject) -> Iterator[ParallelPair]:
    """Join the rows of each pair over its languages.

    Columns: `pair_id`, `language`, `query`, `passage`, and optionally `passage_id`, `group`, `negatives` (a list of
    texts in the row's language). All values are text. `query` or `passage` of a row may be null or left out, not both;
    a pair needs a query and a passage in some language. `passage_id` and `group` may stand in any row of a pair.

    Without `passage_id` it is a hash of the pair's passage in the alphabetically first language that has one, so that
    pairs with the same passage share it. Without `group` it is the `passage_id`. Blank lines of a JSON lines file
    are skipped.

    Pairs come in order of first appearance; those of a file above BUCKET_BYTES (a quarter of that, if compressed) in
    the order of their buckets, which is the same in every process. Memory is that of one bucket.

    Rejected: a row that is malformed, lacks a column or has one too many, holds a value that is not usable text, or
    an unknown language; a second row of a (pair_id, language); a row that disagrees with an earlier one of its pair
    on `passage_id` or `group`; the rows of a pair without a query, or without a passage, in any language.

    Args:
        source: a `.jsonl`, `.jsonl.gz` (both UTF-8) or `.parquet` file.
        reject: called with what is left out.

    Raises:
        CorpusError: a missing, empty, damaged or unknown kind of file, or one that holds no usable pair; then the
            first fault is named with its row (counted from 1; a line for JSON lines).
        ResourceError: local disk is full.
    """
    faults = Faults(source, "row" if source.name.endswith(".parquet") else "line", reject)
    yield from joined(_rows(source, faults), faults, source_bytes(source))


@dataclass
class Faults:
    """What is wrong with the rows of a file: each goes to `reject`, the first is kept for when nothing else is left."""

    source: Path
    unit: str
    reject: Reject
    first: CorpusError | None = None

    def add(self, number: int, language: str, text: str, reason: str, error: CorpusError) -> None:
        """Leave a row out."""
        self.first = self.first or error
        self.reject(RejectedRow(self.source.name, str(number), language, reason, text))

    def add_record(self, number: int, record: Record, reason: str, received: str, expected: str, fix: str) -> None:
        """Leave out a row that is well formed."""
        error = CorpusError(self.where(number), received, expected, fix)
        self.add(number, record.language, record.model_dump_json(exclude_none=True), reason, error)

    def where(self, number: int) -> str:
        """Name of a row in messages."""
        return f"{self.source}, {self.unit} {number}"


def source_bytes(path: Path) -> int:
    """About how many bytes of text a file holds; 0 for one that cannot be looked at."""
    if not path.is_file():
        return 0
    return path.stat().st_size * (COMPRESSION if path.suffix in (".gz", ".parquet") else 1)


def joined(rows: Rows, faults: Faults, size: int) -> Iterator[ParallelPair]:
    """The pairs of some rows, joined over languages.

    Args:
        rows: in any order.
        faults: of the file they come from.
        size: bytes of text in them, about; it decides into how many buckets they go.

    Raises:
        CorpusError: there is no usable pair.
        ResourceError: local disk is full.
    """
    found = False
    for bucket in _buckets(rows, -(-size // BUCKET_BYTES)):
        for pair in _joined_in_memory(bucket, faults):
            found = True
            yield pair
    if not found:
        raise faults.first or _no_rows(faults.source)


def _no_rows(source: Path) -> CorpusError:
    return CorpusError(str(source), "no rows", "at least one row", "Check that the file was written to its end.")


def _rows(source: Path, faults: Faults) -> Rows:
    if source.name.endswith((".jsonl", ".jsonl.gz")):
        return _jsonl_rows(source, faults)
    if source.name.endswith(".parquet"):
        return _parquet_rows(source, faults)
    expected = ".jsonl, .jsonl.gz or .parquet"
    raise CorpusError(str(source), f"extension {source.suffix!r}", expected, "Convert the file to one of these.")


def _jsonl_rows(source: Path, faults: Faults) -> Rows:
    for number, text in lines(source, faults.reject, ""):
        try:
            record = Record.model_validate_json(text)
        except ValidationError as error:
            faults.add(number, "", text, invalid_reason(error), invalid(faults.where(number), error, _COLUMNS))
        else:
            yield from _usable(number, record, faults)


def _parquet_rows(source: Path, faults: Faults) -> Rows:
    for number, values in enumerate(_parquet_values(source), start=1):
        yield from checked_row(number, values, faults)


def checked_row(number: int, values: Mapping[str, object], faults: Faults) -> Rows:
    """The row as a Record, or nothing and a fault."""
    try:
        record = Record.model_validate(values)
    except ValidationError as error:
        text = json.dumps(values, ensure_ascii=False, default=str)
        faults.add(number, "", text, invalid_reason(error), invalid(faults.where(number), error, _COLUMNS))
    else:
        yield from _usable(number, record, faults)


def _parquet_values(source: Path) -> Iterator[dict[str, object]]:
    where, row = str(source), 1
    with opened(source) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
                where = f"{source}, row {row} or after"
                batch.validate(full=True)  # else text that is not UTF-8 would surface as a bare decoding error
                yield from batch.to_pylist()
                row += batch.num_rows
        except pa.ArrowException as error:
            raise CorpusError(where, error, "a Parquet file with UTF-8 text", "Write the file again.") from error


def _usable(number: int, record: Record, faults: Faults) -> Rows:
    """The row, if its language is known and it has a text."""
    try:
        check_language(record.language, faults.where(number))
    except CorpusError as error:
        faults.add(number, record.language, record.model_dump_json(exclude_none=True), UNKNOWN_LANGUAGE, error)
        return
    if record.query is None and record.passage is None:
        received, fix = "neither query nor passage", "Fill one in or remove the row."
        faults.add_record(number, record, NO_TEXT, received, "at least one of them", fix)
        return
    yield number, record


# --- the join --------------------------------------------------------------------------------------------------------


def _buckets(rows: Rows, count: int) -> Iterator[Iterable[tuple[int, Record]]]:
    """The rows in `count` buckets, all rows of a pair in the same one, in the order in which they came."""
    if count <= 1:
        yield rows
        return
    with scratch_folder() as scratch, Spill(scratch / "rows") as spill:
        places = [array("q") for _ in range(count)]
        while block := list(islice(rows, 8 * ROWS_AT_ONCE)):
            for bucket, part in _by_bucket(block, count).items():
                places[bucket].append(spill.put(_spilled(part)))
        for where in places:
            yield _read_back(spill, where)


def _by_bucket(rows: Iterable[tuple[int, Record]], count: int) -> dict[int, list[tuple[int, Record]]]:
    buckets: dict[int, list[tuple[int, Record]]] = {}
    for number, record in rows:
        bucket = zlib.crc32(record.pair_id.encode()) % count  # the same in every process
        buckets.setdefault(bucket, []).append((number, record))
    return buckets


def _spilled(rows: Sequence[tuple[int, Record]]) -> pa.RecordBatch:
    texts = [record.model_dump_json(exclude_none=True) for _, record in rows]
    return pa.record_batch({"number": [number for number, _ in rows], "row": texts}, schema=_SPILLED)


def _read_back(spill: Spill, places: Iterable[int]) -> Rows:
    for place in places:
        for row in spill.get(place, _SPILLED).to_pylist():
            yield row["number"], Record.model_validate_json(row["row"])


@dataclass(slots=True)
class _Joined:
    """The rows of a pair, and what they agree on."""

    rows: dict[str, tuple[int, Record]] = field(default_factory=dict)  # language -> (number, row)
    passage_id: str | None = None
    group: str | None = None


def _joined_in_memory(rows: Iterable[tuple[int, Record]], faults: Faults) -> Iterator[ParallelPair]:
    pairs: dict[str, _Joined] = {}
    for number, record in rows:
        pair = pairs.setdefault(record.pair_id, _Joined())
        if _fits(pair, number, record, faults):
            pair.rows[record.language] = number, record
            pair.passage_id = pair.passage_id or record.passage_id
            pair.group = pair.group or record.group
    for pair_id, pair in pairs.items():
        yield from _pair(pair_id, pair, faults)


def _fits(pair: _Joined, number: int, record: Record, faults: Faults) -> bool:
    """Whether a row says nothing against the earlier ones of its pair."""
    if record.language in pair.rows:
        first = faults.where(pair.rows[record.language][0])
        received = f"pair_id {record.pair_id!r} in {record.language!r} again, first in {first}"
        faults.add_record(number, record, REPEATED, received, "one row per pair_id and language", "Remove one of them.")
        return False
    for name, reason, agreed, value in (
        ("passage_id", OTHER_PASSAGE_ID, pair.passage_id, record.passage_id),
        ("group", OTHER_GROUP, pair.group, record.group),
    ):
        if agreed is not None and value is not None and value != agreed:
            received = f"{name} {value!r} of pair_id {record.pair_id!r}"
            faults.add_record(number, record, reason, received, f"{agreed!r} as in its other rows", "Make them agree.")
            return False
    return True


def _pair(pair_id: str, pair: _Joined, faults: Faults) -> Iterator[ParallelPair]:
    """The pair; nothing and a fault for each of its rows if no language has a query, or none a passage."""
    records = {code: record for code, (_, record) in pair.rows.items()}
    query = {code: record.query for code, record in records.items() if record.query is not None}
    passage = {code: record.passage for code, record in records.items() if record.passage is not None}
    if not query or not passage:
        column, reason = ("passage", NO_PASSAGE) if query else ("query", NO_QUERY)
        received = f"pair_id {pair_id!r} without a {column} in any language"
        for number, record in pair.rows.values():
            fix = "Fill one in or remove the pair."
            faults.add_record(number, record, reason, received, f"a {column} in at least one", fix)
        return
    passage_id = pair.passage_id or text_hash(passage[min(passage)])
    yield ParallelPair(
        pair_id=pair_id,
        passage_id=passage_id,
        group=pair.group or passage_id,
        query=query,
        passage=passage,
        negatives={code: tuple(record.negatives) for code, record in records.items() if record.negatives},
    )


_COLUMNS = tuple(Record.model_fields)
