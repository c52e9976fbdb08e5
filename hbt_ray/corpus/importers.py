"""What all importers share: reading a user's file, naming its faults, and keeping a record of what was left out.

An importer either raises CorpusError, because the file is not what it should be, or leaves a row out and hands it to
its `reject` as a RejectedRow. Nothing disappears silently.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar
from urllib.parse import unquote

import ijson  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.spill import scratch_folder
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.languages import language
from hbt_ray.storage import Folder

MAX_TEXT_CHARACTERS = 1_000_000  # of one question or passage; more is a file that was read in a wrong way
MAX_LINE_BYTES = 64 << 20  # a file without line ends must not end up in memory
MAX_NESTING = 64  # brackets around a value of JSON; ijson's memory grows with the square of their number

NOT_UTF8 = "line is not UTF-8"
NOT_JSON = "line is not JSON"
UNUSABLE = "unusable_text"  # pydantic type of this fault
LONG_LINE = f"line is longer than {MAX_LINE_BYTES:,} bytes"

_SHOWN_CHARACTERS = 120  # of a faulty value in a message

Model = TypeVar("Model", bound=BaseModel)


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


Reject = Callable[[RejectedRow], None]


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


def text_fault(text: str, what: str = "text") -> str | None:
    """The reason to reject a text, which is called `what` in it: "text is blank"; None when there is none."""
    if not text or text.isspace():
        return f"{what} is blank"
    if "\0" in text:
        return f"{what} holds a NUL character"
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"{what} is longer than {MAX_TEXT_CHARACTERS:,} characters"
    if not text.isascii() and not _is_unicode(text):
        return f"{what} holds half a surrogate pair"
    return None


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON can escape what is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_text(text: str) -> str:
    if fault := text_fault(text):
        raise PydanticCustomError(UNUSABLE, "usable text ({fault})", {"fault": fault})
    return text


UsableText = Annotated[str, AfterValidator(_checked_text)]  # for pydantic models of rows


def text_hash(text: str) -> str:
    """A name for a passage without one: 32 hexadecimal digits, the same for the same text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_language(code: str, where: str) -> None:
    """Raise CorpusError naming `where` if CLDR does not know the language code."""
    try:
        language(code, where)
    except ConfigError as error:
        raise CorpusError(where, error.received, error.expected, error.fix) from error


@contextmanager
def local_source(source: str) -> Iterator[Path]:
    """The file or folder to import as a local path; what is at an `s3://` address is copied to local disk for a while.

    Raises:
        CorpusError: nothing is at the address.
        ResourceError: a storage that cannot be read, or local disk is full.
    """
    if "://" not in source:
        yield Path(source)
        return
    address, question_mark, options = source.partition("?")
    parent, _, name = address.rstrip("/").rpartition("/")
    with scratch_folder() as scratch:
        copy = scratch / unquote(name)
        Folder(source).download(copy)
        if not copy.exists():  # a file, or nothing
            try:
                Folder(f"{parent}{question_mark}{options}").download(scratch, [copy.name])
            except FileNotFoundError:
                raise CorpusError(source, "nothing there", "a file or folder", "Correct the address.") from None
        yield copy


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


def lines(path: Path, reject: Reject, language: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file (`.gz` too), numbered from 1, without line end and byte order mark.

    Blank lines are skipped. A line that is not UTF-8, or longer than MAX_LINE_BYTES, is rejected and the others go on.

    Args:
        path: the file.
        reject: called with what is left out.
        language: of the file, for `reject`.

    Raises:
        CorpusError: the file is absent, damaged, or has no line of text.
    """
    usable = False
    with opened(path) as file:
        for number, (line, cut) in enumerate(_byte_lines(file), start=1):
            try:
                text = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").decode()
            except UnicodeDecodeError:
                reason = LONG_LINE if cut else NOT_UTF8
                reject(RejectedRow(path.name, str(number), language, reason, line.decode(errors="replace")))
                continue
            if cut:
                reject(RejectedRow(path.name, str(number), language, LONG_LINE, text))
            elif text and not text.isspace():
                usable = True
                yield number, text
    if not usable:
        raise CorpusError(str(path), "no rows", "lines of text in UTF-8", "Check that the file was written to its end.")


def _byte_lines(file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[bytes, bool]]:
    """Every line, cut at MAX_LINE_BYTES, and whether it was cut."""
    while line := file.readline(MAX_LINE_BYTES):
        cut = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        rest = line
        while cut and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line, cut


def json_lines(path: Path, model: type[Model], reject: Reject, language: str) -> Iterator[tuple[int, Model]]:
    """The lines of a JSON lines file that pydantic takes for a `model`, with their numbers; see `lines`.

    The others are rejected as "line is not JSON" or "field <name>: <what pydantic says>".
    """
    for number, text in lines(path, reject, language):
        try:
            row = model.model_validate_json(text)
        except ValidationError as error:
            reject(RejectedRow(path.name, str(number), language, invalid_reason(error), text))
        else:
            yield number, row


def json_items(
    path: Path, prefix: str, model: type[Model], reject: Reject, language: str
) -> Iterator[tuple[int, Model]]:
    """The items of an array in one big JSON file (`.gz` too) that pydantic takes for a `model`, numbered from 1.

    One item is in memory at a time. Items that are no `model` are rejected and the others go on.

    Args:
        path: the file.
        prefix: where the items stand, as ijson writes it: "item" in `[...]`, "data.item" in `{"data": [...]}`.
        model: of one item.
        reject: called with what is left out.
        language: of the file, for `reject`.

    Raises:
        CorpusError: the file is absent, damaged, no JSON, or has no item there.
    """
    number = 0
    with opened(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        try:
            events = ijson.parse(_flat(ijson.basic_parse(file, use_float=True)))
            for number, item in enumerate(ijson.items(events, prefix), start=1):
                try:
                    row = model.model_validate(item)
                except ValidationError as error:
                    text = json.dumps(item, ensure_ascii=False)
                    reject(RejectedRow(path.name, str(number), language, invalid_reason(error), text))
                else:
                    yield number, row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            where = f"{path}, after item {number}" if number else str(path)
            fault = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            received = fault.partition("\n")[0]
            raise CorpusError(where, received, "valid JSON in UTF-8", "Mend the file or save it as UTF-8.") from error
    if not number:
        raise CorpusError(str(path), f"nothing at {prefix}", "items there", "Check that this is the right file.")


def _flat(events: Iterable[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """The events of a parser. Raises ijson.JSONError where brackets stand deeper than in any format."""
    depth = 0
    for event in events:
        kind = event[0]
        if kind in ("start_map", "start_array"):
            depth += 1
            if depth > MAX_NESTING:
                raise ijson.JSONError(f"brackets {depth} deep")
        elif kind in ("end_map", "end_array"):
            depth -= 1
        yield event


def invalid_reason(error: ValidationError) -> str:
    """The first fault that pydantic found as the reason of a RejectedRow; equal faults give equal reasons."""
    fault = error.errors(include_url=False)[0]
    if fault["type"] == "json_invalid":
        return NOT_JSON
    fields = ".".join(str(step) for step in fault["loc"] if isinstance(step, str))
    message = fault["ctx"]["fault"] if fault["type"] == UNUSABLE else fault["msg"]
    return f"field {fields or 'top level'}: {message}"


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
