"""The names of a dataset's documents, such as the titles of articles: groups.npy numbers them, this file names them.

    <dataset>/documents.parquet     column "group": row n names document number n

A dataset written before there was this file has documents without names.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.errors import CorpusError

DOCUMENTS = "documents.parquet"
COLUMN = "group"
NAMES_AT_ONCE = 65_536


def documents_bytes(names: Iterable[str]) -> bytes:
    """The content of the file, from names in the order of their documents; in memory stay a block and the result."""
    buffer = io.BytesIO()
    schema = pa.schema([pa.field(COLUMN, pa.string(), nullable=False)])
    names = iter(names)
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while block := list(islice(names, NAMES_AT_ONCE)):
            writer.write_table(pa.table({COLUMN: block}, schema=schema))
    return buffer.getvalue()


def document_names(dataset: ShardedDataset) -> pa.Array | None:
    """string [documents]: the name of each document, or None where the dataset has no names.

    Raises CorpusError if the file does not name every document once.
    """
    if not dataset.folder.exists(DOCUMENTS):
        return None
    where = f"{dataset.folder.uri}/{DOCUMENTS}"
    try:
        table = pq.read_table(io.BytesIO(dataset.folder.read(DOCUMENTS)), columns=[COLUMN])
    except pa.ArrowException as error:
        raise CorpusError(where, error, f"a Parquet file with a column {COLUMN!r}", "Run the import again.") from error
    if table.num_rows != dataset.manifest.groups:
        expected = f"{dataset.manifest.groups} as in the manifest"
        raise CorpusError(where, f"{table.num_rows} names", expected, "Run the import again.")
    return table[COLUMN].combine_chunks()
