"""Answers of a dataset's pairs, from a file beside it: what the gate for answers looks for in translated passages."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.importers import Reject, json_lines, opened
from hbt_ray.corpus.spill import local_disk

_READ_BYTES = 1 << 24
_IDS_AT_ONCE = 500  # of a query; SQLite has a limit


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    pair_id: str
    answers: list[str]


class Answers:
    """Answers by pair id, in a database on local disk.

    Args:
        file: JSON lines {"pair_id": ..., "answers": [...]}; `.gz` too. None for no answers at all.
        language: of the answers.
        database: path of a file that is not there yet.
        reject: takes lines that are no such object.

    Attributes:
        sha256: of the file; of nothing where there is none.

    Raises:
        CorpusError: the file is missing, empty or damaged.
        ResourceError: local disk is full.
    """

    def __init__(self, file: Path | None, language: str, database: Path, reject: Reject) -> None:
        self._database = database
        self.sha256 = _sha256(file)
        with _disk_of(database), closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("CREATE TABLE answers (pair_id TEXT PRIMARY KEY, answers TEXT) WITHOUT ROWID")
            rows = () if file is None else json_lines(file, _Row, reject, language)
            connection.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)",
                ((row.pair_id, json.dumps([a for a in row.answers if a.strip()])) for _, row in rows),
            )

    def texts(self) -> Iterator[str]:
        """Every answer, in the order of pair ids."""
        with closing(sqlite3.connect(self._database)) as connection:
            for (answers,) in connection.execute("SELECT answers FROM answers ORDER BY pair_id"):
                yield from json.loads(answers)

    def of(self, pair_ids: Sequence[str]) -> Mapping[str, list[str]]:
        """The answers of those pairs that have any."""
        found: dict[str, list[str]] = {}
        with closing(sqlite3.connect(self._database)) as connection:
            for start in range(0, len(pair_ids), _IDS_AT_ONCE):
                some = pair_ids[start : start + _IDS_AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT pair_id, answers FROM answers WHERE pair_id IN ({marks})"
                found |= {pair_id: json.loads(answers) for pair_id, answers in connection.execute(query, some)}
        return found


@contextmanager
def _disk_of(database: Path) -> Iterator[None]:
    """SQLite tells of a full disk in its own words."""
    with local_disk(str(database)):
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(str(error)) from error


def _sha256(file: Path | None) -> str:
    digest = hashlib.sha256()
    if file is not None:
        with opened(file) as data:
            while block := data.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
