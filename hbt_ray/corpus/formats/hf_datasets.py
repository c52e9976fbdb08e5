"""Import of what Hugging Face's `datasets` leaves on disk: `save_to_disk`, a DatasetDict of it, or Parquet shards.

    <dataset>/state.json           "_data_files": the Arrow streams in order, beside dataset_info.json
    <dataset>/data-00000-of-00002.arrow
    <dict>/dataset_dict.json       "splits": the names of folders like the above
    <folder>/<split>-00000-of-00002.parquet     as the hub has them, also below data/ or <config>/

Read with pyarrow alone; the columns of a dataset are its own, so the caller says which is which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hbt_ray.corpus.importers import Model, Reject, check_language, invalid, opened
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.records import ROWS_AT_ONCE, Faults, Rows, checked_row, joined, source_bytes
from hbt_ray.errors import ConfigError, CorpusError

FIELDS = ("query", "passage", "id", "passage_id", "group", "negatives", "language")
IDS = ("id", "passage_id", "group")  # may be numbers
SHARD = re.compile(r"(.+?)(-\d+-of-\d+.*)?\.parquet")


class _Stream(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    filename: str


class _State(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    data_files: list[_Stream] = Field(alias="_data_files")


class _Dict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    splits: list[str]


def read_hf_datasets(
    source: Path,
    columns: Mapping[str, str],
    language: str | None = None,
    *,
    split: str | None = None,
    reject: Reject,
) -> Iterator[ParallelPair]:
    """Rows of a dataset as pairs, joined over languages by id if a column holds the language; see `read_records`.

    Without a column of ids, a row's is "<split>:<number from 1>". What `read_records` says of `passage_id`, `group`,
    rejected rows, order and memory holds here too; one batch of a file is in memory at a time.

    Args:
        source: folder that `save_to_disk` wrote (Dataset or DatasetDict), or one with Parquet shards at any depth.
        columns: name of FIELDS -> column; "query" and "passage" are needed. "answers.text" is a field of a struct.
        language: of all rows, unless `columns` names one for it.
        split: the only one wanted; None for all.
        reject: called with what is left out.

    Raises:
        ConfigError: `columns` lacks "query" or "passage", knows others than FIELDS, or the language is said twice or
            not at all.
        CorpusError: no dataset there, an absent or damaged file, no such split or column, an unknown language, or no
            usable pair.
        ResourceError: local disk is full.
    """
    _check_columns(columns, language)
    if language is not None:
        check_language(language, str(source))
    files = _files(source)
    if split is not None and split not in files:
        raise CorpusError(str(source), f"no split {split!r}", f"one of {', '.join(files)}", "Correct the split.")
    chosen = files if split is None else {split: files[split]}
    faults = Faults(source, "row", reject)
    size = sum(source_bytes(path) for paths in chosen.values() for path in paths)
    yield from joined(_rows(chosen, columns, language, faults), faults, size)


def _check_columns(columns: Mapping[str, str], language: str | None) -> None:
    missing = [name for name in ("query", "passage") if name not in columns]
    unknown = sorted(set(columns).difference(FIELDS))
    if missing or unknown:
        received = f"no {missing[0]}" if missing else f"{unknown[0]!r}"
        raise ConfigError("columns", received, f"query, passage and others of {', '.join(FIELDS)}", "Correct them.")
    if ("language" in columns) == (language is not None):
        received = "neither" if language is None else "both"
        raise ConfigError("language", received, "a language code or a column of languages", "Give one of them.")


def _files(source: Path) -> dict[str, list[Path]]:
    """Split -> its files in order."""
    if not source.is_dir():
        raise CorpusError(str(source), "no such folder", "a folder that `datasets` wrote", "Check the path.")
    if (source / "state.json").is_file():
        return {source.name: _streams(source)}
    if (source / "dataset_dict.json").is_file():
        return {name: _streams(source / name) for name in _described(source / "dataset_dict.json", _Dict).splits}
    shards: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.parquet")):
        match = SHARD.fullmatch(path.name)
        assert match is not None  # the pattern of rglob
        shards.setdefault(match[1], []).append(path)
    if not shards:
        expected = "state.json or dataset_dict.json of save_to_disk, or Parquet files"
        raise CorpusError(str(source), "neither of them", expected, "Check the path.")
    return shards


def _streams(folder: Path) -> list[Path]:
    return [folder / stream.filename for stream in _described(folder / "state.json", _State).data_files]


def _described(path: Path, model: type[Model]) -> Model:
    with opened(path) as file:
        content = file.read()
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise invalid(str(path), error) from error


def _rows(
    files: Mapping[str, Sequence[Path]], columns: Mapping[str, str], language: str | None, faults: Faults
) -> Rows:
    """The rows of all files, numbered through from 1."""
    number = 0
    for split, paths in files.items():
        in_split = 0
        for path in paths:
            for batch in _batches(path):
                for values in _selected(batch, columns, path).to_pylist():
                    number += 1
                    in_split += 1
                    yield from checked_row(number, _record(values, f"{split}:{in_split}", language), faults)


def _record(values: Mapping[str, Any], default_id: str, language: str | None) -> dict[str, Any]:
    """A row under the names of Record."""
    record = {name: str(value) if name in IDS and isinstance(value, int) else value for name, value in values.items()}
    pair_id = record.pop("id", None)
    return {"language": language, **record, "pair_id": default_id if pair_id is None else pair_id}


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(ROWS_AT_ONCE)
        else:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                yield from stream
    except FileNotFoundError as error:
        raise CorpusError(str(path), "no such file", "the file that state.json lists", "Copy it again.") from error
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(str(path), error, "a whole file of Arrow or Parquet", "Copy it again.") from error


def _selected(batch: pa.RecordBatch, columns: Mapping[str, str], path: Path) -> pa.Table:
    """The wanted columns under their names in FIELDS."""
    table = pa.Table.from_batches([batch])
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    for name, column in columns.items():
        if column not in table.column_names:
            expected = f"one of {', '.join(table.column_names)}"
            raise CorpusError(str(path), f"no column {column!r} for {name}", expected, "Correct the columns.")
    table = pa.table({name: table[column] for name, column in columns.items()})
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise CorpusError(str(path), error, "text in UTF-8", "Write the dataset again.") from error
    return table
