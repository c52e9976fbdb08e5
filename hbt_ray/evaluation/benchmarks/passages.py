"""JSON lines with an id and a text, read by Arrow into memory or, for large corpora, into a memory-mapped file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as paj

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.benchmarks.arrow import ArrowStrings, duplicates, mapped_strings
from hbt_ray.evaluation.benchmarks.collection import Texts, listed
from hbt_ray.evaluation.benchmarks.lines import read_lines, shown, unreadable

_BLOCK_BYTES = 8 << 20  # of JSON parsed at a time; also the longest line
_STORED = pa.schema([("id", pa.string()), ("text", pa.string()), ("language", pa.string())])


class Keys(NamedTuple):
    """Keys of the objects of a file: that of the id, others that every line has, others that a line may have.

    All values are strings. `text` is required; `title` and `language` mean what they say.
    """

    id: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def read_passages(files: Sequence[Path], keys: Keys, scratch: Path | None = None) -> dict[str | None, Texts]:
    """Texts of JSON lines files by the value of their key `language`, or all under None where no line has it.

    A text is the value of `text`, behind that of `title` and one space where there is a title.

    Args:
        files: read in this order, plain or `.gz`.
        keys: which keys the lines have; others are ignored.
        scratch: folder for Arrow IPC files that the texts are then memory-mapped from, so that memory stays bounded;
            without it they are kept in memory.

    Raises:
        BenchmarkError: an unreadable file; a line that is no JSON object with strings under these keys, an id used
            twice, a `language` on some lines only (each naming file and line).
    """
    stem = scratch / f"passages-{_fingerprint(files)}" if scratch else None
    table, texts = _stored((batch for file in files for batch in _batches(file, keys)), stem, "all")
    repeated = duplicates(ArrowStrings(table["id"]))
    if repeated:
        raise _first_fault(files, keys, repeated) or _changed(files[0], f"ids twice: {listed(repeated)}")
    if table["language"].null_count == len(table):
        return {None: texts}
    if table["language"].null_count:
        strict = Keys(keys.id, (*keys.required, "language"))
        raise _first_fault(files, strict) or _changed(files[0], "lines without language")
    codes = pc.unique(table["language"]).to_pylist()
    parts = {code: _stored(_of_language(table, code), stem, code)[1] for code in codes}
    if stem is not None:
        stem.with_name(f"{stem.name}-all.arrow").unlink()
    return parts


def _batches(path: Path, keys: Keys) -> Iterator[pa.RecordBatch]:
    """Batches (id, text, language) of one file."""
    names = (keys.id, *keys.required, *keys.optional)
    schema = pa.schema([(name, pa.string()) for name in names])
    parse = paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        for batch in paj.open_json(path, paj.ReadOptions(block_size=_BLOCK_BYTES), parse):
            batch.validate(full=True)  # else bytes that are not UTF-8 would surface far from here
            if any(batch[name].null_count for name in (keys.id, *keys.required)):
                raise pa.ArrowInvalid("missing key")
            yield _passages(batch, keys)
    except OSError as error:
        raise unreadable(path, error) from error
    except pa.ArrowInvalid as error:
        raise _first_fault([path], keys) or _changed(path, str(error)) from error


def _passages(batch: pa.RecordBatch, keys: Keys) -> pa.RecordBatch:
    texts = batch["text"]
    if "title" in batch.schema.names:
        titles = pc.fill_null(batch["title"], "")
        texts = pc.if_else(pc.equal(titles, ""), texts, pc.binary_join_element_wise(titles, texts, " "))
    given = "language" in batch.schema.names
    languages = batch["language"] if given else pa.nulls(len(batch), pa.string())
    return pa.record_batch([batch[keys.id], texts, languages], schema=_STORED)


def _of_language(table: pa.Table, code: str) -> Iterator[pa.RecordBatch]:
    for batch in table.to_batches():
        yield batch.filter(pc.equal(batch["language"], code))


def _stored(batches: Iterable[pa.RecordBatch], stem: Path | None, part: str) -> tuple[pa.Table, Texts]:
    """The batches as a table and its texts, in memory or, with `stem`, mapped from `<stem>-<part>.arrow`."""
    if stem is None:
        table = pa.Table.from_batches(batches, _STORED)
        return table, Texts(ArrowStrings(table["id"]), ArrowStrings(table["text"]))
    path = stem.with_name(f"{stem.name}-{part}.arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with pa.ipc.new_file(str(unfinished), _STORED) as file:
        for batch in batches:
            file.write_batch(batch)
    os.replace(unfinished, path)  # atomic: a file of that name is complete, and maps of an older one stay valid
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table, Texts(mapped_strings(path, "id"), mapped_strings(path, "text"))


def _fingerprint(files: Sequence[Path]) -> str:
    return sha256("\n".join(str(file.absolute()) for file in files).encode()).hexdigest()[:12]


def _first_fault(files: Sequence[Path], keys: Keys, repeated: Collection[str] = ()) -> BenchmarkError | None:
    """The first fault of the files, found line by line: Arrow says that there is one, not on which line."""
    seen: set[str] = set()
    for file in files:
        for where, line in read_lines(file):
            if not line.strip():
                continue
            fault = _line_fault(where, line, keys)
            if fault:
                return fault
            value = json.loads(line)[keys.id]
            if value in seen:
                return BenchmarkError(f"{where}: {keys.id}", f"{value!r} a second time", "unique ids", "Remove one.")
            if value in repeated:
                seen.add(value)
    return None


def _line_fault(where: str, line: str, keys: Keys) -> BenchmarkError | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return BenchmarkError(where, error, "a JSON object on one line", "Mend this line.")
    if not isinstance(record, dict):
        return BenchmarkError(where, shown(record), "a JSON object", "Mend this line.")
    for key in (keys.id, *keys.required, *keys.optional):
        value = record.get(key)
        if value is None and key in keys.optional:
            continue
        if key not in record:
            return BenchmarkError(f"{where}: {key}", "no such key", "a string", f"Add the key {key!r}.")
        if not isinstance(value, str):
            return BenchmarkError(f"{where}: {key}", shown(value), "a string", "Mend this value.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            return BenchmarkError(f"{where}: {key}", shown(value), "no half of a surrogate pair", "Mend this value.")
    return None


def _changed(path: Path, fault: str) -> BenchmarkError:
    """The error for what Arrow rejects and a reading line by line does not."""
    return BenchmarkError(str(path), fault, "one JSON object per line, each key once", "Mend the file.")
