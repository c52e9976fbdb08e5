"""What all importers share: reading a user's file, naming its faults, and keeping a record of what was left out.

An importer either raises CorpusError, because the file is not what it should be, or leaves a row out and says so
in a RejectedRow. Nothing disappears silently.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.languages import language

_SHOWN_CHARACTERS = 120  # of a faulty value in a message


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A text that an importer left out.

    Args:
        file: name of the file it stands in.
        row: its id, or its number in the file.
        language: code of its language.
        reason: why it was left out.
        text: the text itself.
    """

    file: str
    row: str
    language: str
    reason: str
    text: str


def write_rejected(rejected: Iterable[RejectedRow], path: Path) -> None:
    """Write the rows as JSON lines in UTF-8, one object per row; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rejected:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def usable_pairs(pairs: Sequence[ParallelPair], languages: Sequence[str]) -> npt.NDArray[np.int64]:
    """How many pairs each (query language, passage language) cell can draw from.

    Returns:
        int64 [L, L]: entry [a, b] counts the pairs with a query in `languages[a]` and a passage in `languages[b]`;
        the diagonal is monolingual.
    """
    shape = (len(pairs), len(languages))
    query = np.array([[code in pair.query for code in languages] for pair in pairs], np.int64).reshape(shape)
    passage = np.array([[code in pair.passage for code in languages] for pair in pairs], np.int64).reshape(shape)
    return query.T @ passage


def text_fault(text: str) -> str | None:
    """What makes a text unfit for training, as "is ..." or "holds ...", or None when nothing does."""
    if not text.strip():
        return "is blank"
    if "\0" in text:
        return "holds a NUL character"
    return None


def check_language(code: str, where: str) -> None:
    """Raise CorpusError naming `where` if CLDR does not know the language code."""
    try:
        language(code, where)
    except ConfigError as error:
        raise CorpusError(where, error.received, error.expected, error.fix) from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The file opened for reading bytes, decompressed if its name ends in `.gz`.

    Raises CorpusError if it does not exist or, at any time while it is read, turns out to be damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CorpusError(str(path), "no such file", "an existing file", "Check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        expected = "a readable gzip file" if path.suffix == ".gz" else "a readable file"
        raise CorpusError(str(path), error, expected, "Check the path or copy the file again.") from error


def invalid(where: str, error: ValidationError, fields: Iterable[str] = ()) -> CorpusError:
    """The first fault that pydantic found, as a CorpusError.

    Args:
        where: file, or file and row.
        error: what pydantic raised.
        fields: names that are allowed, from which the nearest is offered for an unknown one.
    """
    fault = error.errors()[0]
    message = fault["msg"]
    if fault["type"] == "json_invalid":
        received = message.replace(" at line 1 column ", " at column ")  # else it reads like a line of a JSONL file
        return CorpusError(where, received, "valid JSON in UTF-8", "Mend the file or save it as UTF-8.")
    where = f"{where}, {_place(fault['loc'])}"
    if fault["type"] == "missing":
        return CorpusError(where, "nothing", "a value", "Add the missing field.")
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        near = get_close_matches(name, list(fields), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Remove it."
        return CorpusError(where, f"unknown field {name!r}", f"only {', '.join(fields)}", hint)
    expected = message.removeprefix("Input should be ")
    return CorpusError(where, shown(fault["input"]), expected, "Correct the value or remove the entry.")


def shown(value: object) -> str:
    """The value as Python writes it, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _place(location: Sequence[str | int]) -> str:
    """A pydantic location as a path into the JSON: `data[3].paragraphs[0].context`."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return steps.removeprefix(".") or "top level"
