"""Check a dataset on disk against its manifest and the promises of the shard format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hbt_ray.corpus.shards import MANIFEST, ShardedDataset, part_name
from hbt_ray.errors import CorpusError
from hbt_ray.storage import sha256


def validate(dataset: ShardedDataset) -> None:
    """Read everything once and raise CorpusError at the first broken promise.

    Checked: every file of the manifest is there with its checksum; parts have the manifest's length and the same
    pair ids in every language; pair ids are unique; presence bits agree with the cells; no text is empty.
    """
    _check_files(dataset)
    seen: set[str] = set()
    for part, rows in enumerate(dataset.manifest.rows_per_part):
        pivot: pa.Table | None = None
        for lang, table in _part_tables(dataset, part):
            name = f"{dataset.folder.uri}/{part_name(lang, part)}"
            if table.num_rows != rows:
                raise CorpusError(
                    name,
                    f"{table.num_rows} rows",
                    f"{rows} as in every language of part {part}",
                    "Import the dataset again.",
                )
            _check_texts(name, table)
            if pivot is None:
                pivot = table
                _check_unique(name, table, seen)
            elif not table["pair_id"].equals(pivot["pair_id"]):
                raise CorpusError(
                    name, "other pair ids", "the same pair in every language of a row", "Import it again."
                )
    _check_presence(dataset)


def _part_tables(dataset: ShardedDataset, part: int) -> Iterator[tuple[str, pa.Table]]:
    for lang in dataset.manifest.languages:
        yield lang, dataset.read_part(lang, part)


def _check_files(dataset: ShardedDataset) -> None:
    for name, expected in dataset.manifest.files.items():
        where = f"{dataset.folder.uri}/{name}"
        try:
            found = sha256(dataset.folder.read(name))
        except OSError as error:
            raise CorpusError(where, error.strerror or error, "a readable file", "Import it again.") from None
        if found != expected:
            raise CorpusError(
                where,
                f"sha256 {found[:12]}…",
                f"{expected[:12]}… as in {MANIFEST}",
                "The file was changed or cut short: copy or import it again.",
            )


def _check_texts(name: str, table: pa.Table) -> None:
    for column in ("query", "passage"):
        lengths = pc.utf8_length(pc.utf8_trim_whitespace(table[column]))
        empty = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(lengths, 0), False)))
        if len(empty):
            raise CorpusError(
                f"{name}, row {empty[0]}",
                f"an empty {column}",
                "text, or null if missing",
                "Import it again.",
            )


def _check_unique(name: str, table: pa.Table, seen: set[str]) -> None:
    for row, pair_id in enumerate(table["pair_id"].to_pylist()):
        if pair_id in seen:
            raise CorpusError(
                f"{name}, row {row}",
                f"pair_id {pair_id!r} a second time",
                "unique pair ids",
                "Import it again.",
            )
        seen.add(pair_id)


def _check_presence(dataset: ShardedDataset) -> None:
    parts = range(len(dataset.manifest.rows_per_part))
    for lang in dataset.manifest.languages:
        tables = [dataset.read_part(lang, part) for part in parts]
        cells = np.concatenate(
            [[np.asarray(t["query"].is_valid()), np.asarray(t["passage"].is_valid())] for t in tables], axis=1
        )
        if not np.array_equal(np.packbits(cells, axis=1), dataset.presence(lang)):
            raise CorpusError(
                f"{dataset.folder.uri}: presence bits of {lang}",
                "bits that differ from the cells",
                "one bit per present cell",
                "Import it again.",
            )
