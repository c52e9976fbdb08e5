"""Cleaning of parallel QA shards: normalised texts, no pair twice, passages that are nearly the same under one id.

A pair repeats another when their passages are the same or nearly so *and* their questions are: two questions about
one long passage share most of their words and are two pairs all the same. Texts are compared in the pivot language,
because translations of one text differ in wording; a row without it, in the first language that it has. The first of
several stays.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from hbt_ray.corpus.documents import document_names
from hbt_ray.corpus.importers import Reject, RejectedRow
from hbt_ray.corpus.near_duplicates import Clusters, ShingleStore, first_of_equal
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import SCHEMA, Manifest, ShardedDataset, WholeReader
from hbt_ray.corpus.shingles import Hashes, Rows, mixed, shingles
from hbt_ray.corpus.spill import local_disk, scratch_folder
from hbt_ray.corpus.writer import Rejections, write_pairs
from hbt_ray.errors import ConfigError
from hbt_ray.settings_file import Section
from hbt_ray.storage import Folder

BLANK = "text is blank once normalised"
NO_PASSAGE = "pair has no passage once normalised"
NO_QUERY = "pair has no query once normalised"
SAME_PAIR = "pair repeats another"
SIMILAR_PAIR = "pair nearly repeats another"

_REASONS = ("", NO_PASSAGE, NO_QUERY, SAME_PAIR, SIMILAR_PAIR)  # why a row goes, by number
_STAYS = 0

_QUERIES, _PASSAGES = "query", "passage"
_ROWS_AT_ONCE = 4096

_BIDI_MARKS = "\u200e\u200f\u061c"
_JOINING = (  # scripts in which a joiner says how letters are drawn, and emoji, which it makes one of
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe0f\ufe70-\ufefe\u2600-\u27bf\U0001f000-\U0001faff"
)
_INVISIBLE = (  # control characters that are not white space, and characters without a width
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060-\u2064\ufeff\ufff9-\ufffb"
)
_JOINERS = "\u200c\u200d"
_UNSEEN = re.compile(f"[{_INVISIBLE}{_JOINERS}]")
_DROPPED = re.compile(f"[{_INVISIBLE}]")
_STRAY_JOINER = re.compile(f"(?<![{_JOINING}])[{_JOINERS}]")


class CleaningSettings(Section):
    """What is compared, and how similar is nearly the same.

    Args:
        pivot: language whose texts are compared.
        near_passage: Jaccard similarity of their shingles from which two passages get one passage_id; None: texts
            that differ in case and white space only.
        near_query: the same for the questions of pairs with one passage_id, of which one stays.
        words: words of a shingle.
        characters: characters of a shingle in scripts without spaces.
        permutations: length of a MinHash signature.
        seed: of the signatures and of the order of the rows.
    """

    pivot: str = "en"
    near_passage: float | None = Field(0.8, gt=0, le=1)
    near_query: float | None = Field(0.9, gt=0, le=1)
    words: int = Field(3, ge=1, le=16)
    characters: int = Field(5, ge=1, le=32)
    permutations: int = Field(128, ge=16, le=1024)
    seed: int = Field(13, ge=0)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean` did.

    Args:
        manifest: of the dataset written.
        rows: pairs of the source.
        merged_passages: passage ids that became another's.
        rejected: reason -> pairs, or cells where a text is blank.
    """

    manifest: Manifest
    rows: int
    merged_passages: int
    rejected: Mapping[str, int]


def normalised(text: str) -> str:
    """The text in Unicode's NFC, on one line, without what cannot be seen.

    White space of any length becomes one space, none at the ends. Control characters, byte order marks, soft hyphens
    and zero-width spaces go; so do left-to-right and right-to-left marks at the ends, and joiners (ZWJ, ZWNJ) except
    behind a letter of a script that needs them, such as Arabic or Devanagari, and inside emoji.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = unicodedata.normalize("NFC", text)
    if _UNSEEN.search(text):
        text = unicodedata.normalize("NFC", _STRAY_JOINER.sub("", _DROPPED.sub("", text)))
    return " ".join(text.split()).strip(f" {_BIDI_MARKS}")


def folded(text: str) -> str:
    """The text as it is compared: normalised, upper and lower case alike."""
    return unicodedata.normalize("NFC", normalised(text).casefold())


def clean(source: ShardedDataset, target: Folder, settings: CleaningSettings) -> Cleaned:
    """Write a cleaned copy of a dataset below the corpus root `target`, under the same name.

    Left out, and written to `rejected/cleaning.jsonl` beside the parts: texts that are blank once normalised (a cell
    less; the pair stays while it has a query and a passage in some language) and pairs that repeat an earlier one.
    Documents keep their names. Memory is about a hundred bytes per row; everything else is in temporary files.

    Raises:
        ConfigError: `target` is where the source is, or the dataset has no language `settings.pivot`.
        CorpusError: a file of the source is missing, or no pair is left.
        ResourceError: the target cannot be written, or local disk is full.
    """
    folder = target / source.name
    if folder.path() == source.folder.path():
        raise ConfigError("out", target.uri, "another folder than the source's", "Choose another folder.")
    if settings.pivot not in source.manifest.languages:
        known = ", ".join(source.manifest.languages)
        raise ConfigError("pivot", repr(settings.pivot), f"one of {known}", "Choose the language to compare texts in.")
    with scratch_folder() as scratch, Rejections(folder, "cleaning") as reject:
        verdict = _verdict(source, settings, scratch)
        record: dict[str, Any] = {
            "settings": settings.model_dump(),
            "rows": source.manifest.rows,
            "merged_passages": verdict.merged_passages,
            "rejected": reject.counts,  # complete when the manifest is written, after the last pair
        }
        manifest = write_pairs(
            target,
            source.name,
            _cleaned_pairs(source, verdict, reject),
            source.manifest.languages,
            {**source.manifest.provenance, "cleaning": record},
            seed=settings.seed,
            rows_per_part=max(source.manifest.rows_per_part),
            rows_per_group=source.manifest.rows_per_group,
            name_documents=document_names(source) is not None,
            rejections=reject,
        )
        return Cleaned(manifest, source.manifest.rows, verdict.merged_passages, dict(reject.counts))


# What goes


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is to become of each row.

    Args:
        passage: the first row with the same passage, or nearly the same.
        is_merged: whether that row's passage id is another one.
        reason: why the row goes, an index into _REASONS.
        merged_passages: passage ids that become another's.
    """

    passage: Rows
    is_merged: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.uint8]
    merged_passages: int


@dataclass(frozen=True, slots=True)
class _KeyTexts:
    """Rows from `start` on: the texts that they are compared by, folded, "" if there is none, and their passage ids."""

    start: int
    queries: list[str]
    passages: list[str]
    passage_ids: list[str]

    @property
    def rows(self) -> Rows:
        return np.arange(self.start, self.start + len(self.queries))


def _verdict(source: ShardedDataset, settings: CleaningSettings, scratch: Path) -> _Verdict:
    ids, queries, passages = _digests(source, settings.pivot, scratch)
    reason = np.zeros(source.manifest.rows, dtype=np.uint8)
    _mark(reason, _is_nothing(passages), NO_PASSAGE)
    _mark(reason, _is_nothing(queries), NO_QUERY)
    _mark(reason, _is_later(first_of_equal(mixed(queries) + passages)), SAME_PAIR)
    clusters = Clusters(len(reason))
    clusters.join_first(first_of_equal(ids))
    clusters.join_first(first_of_equal(passages))
    stores = _stored_shingles(source, settings, ~_is_later(clusters.roots()), reason == _STAYS, scratch)
    if _PASSAGES in stores:
        stores[_PASSAGES].join_similar(clusters)
    passage = clusters.roots()
    _mark(reason, _is_later(first_of_equal(mixed(queries) + mixed(passage.astype(np.uint64))[:, None])), SIMILAR_PAIR)
    if _QUERIES in stores:
        repeated = Clusters(len(reason))
        stores[_QUERIES].join_similar(repeated, scope=passage)
        _mark(reason, _is_later(repeated.roots()), SIMILAR_PAIR)
    is_merged = (ids != ids[passage]).any(axis=1)
    return _Verdict(passage, is_merged, reason, len(np.unique(ids[is_merged], axis=0)))


def _mark(reason: npt.NDArray[np.uint8], rows: npt.NDArray[np.bool_], why: str) -> None:
    """Give the rows a reason to go, where they have none yet."""
    reason[rows & (reason == _STAYS)] = _REASONS.index(why)


def _is_later(first: Rows) -> npt.NDArray[np.bool_]:
    """Which rows are not the first of their kind."""
    return np.not_equal(first, np.arange(len(first)))


def _is_nothing(digests: Hashes) -> npt.NDArray[np.bool_]:
    return np.logical_not(digests.any(axis=1))


def _digests(source: ShardedDataset, pivot: str, scratch: Path) -> list[Hashes]:
    """128 bits, uint64 [rows, 2], of the passage id, the query and the passage of each row; 0 where there is none."""
    paths = [scratch / f"{name}-digests" for name in ("id", _QUERIES, _PASSAGES)]
    with local_disk(str(scratch)), ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for texts in _key_texts(source, pivot):
            for file, column in zip(files, (texts.passage_ids, texts.queries, texts.passages), strict=True):
                file.write(b"".join(map(_digest, column)))
    return [np.memmap(path, dtype=np.uint64, mode="r").reshape(-1, 2) for path in paths]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest() if text else bytes(16)


def _stored_shingles(
    source: ShardedDataset,
    settings: CleaningSettings,
    is_first: npt.NDArray[np.bool_],
    stays: npt.NDArray[np.bool_],
    scratch: Path,
) -> dict[str, ShingleStore]:
    """The shingles of the first row of each passage, and of the queries of the rows that stay so far."""
    thresholds = {_PASSAGES: settings.near_passage, _QUERIES: settings.near_query}
    stores = {
        name: ShingleStore(scratch / name, threshold, settings.permutations, settings.seed)
        for name, threshold in thresholds.items()
        if threshold is not None
    }
    compared = {_PASSAGES: is_first, _QUERIES: stays}
    with ExitStack() as stack:
        for store in stores.values():
            stack.enter_context(store)
        for texts in _key_texts(source, settings.pivot) if stores else ():
            columns = {_PASSAGES: texts.passages, _QUERIES: texts.queries}
            for name, store in stores.items():
                rows = texts.rows[compared[name][texts.rows]]
                chosen = [columns[name][row - texts.start] for row in rows]
                store.add(shingles(chosen, settings.words, settings.characters), rows)
    return stores


def _key_texts(source: ShardedDataset, pivot: str) -> Iterator[_KeyTexts]:
    """All rows, some row groups at a time."""
    languages = [pivot, *(lang for lang in source.manifest.languages if lang != pivot)]
    starts, reader = source.group_starts, WholeReader(source)
    sizes: list[int] = np.diff(starts).tolist()
    at_once = max(1, _ROWS_AT_ONCE // source.manifest.rows_per_group)
    for first in range(0, len(starts) - 1, at_once):
        groups = range(first, min(first + at_once, len(starts) - 1))
        parts = [_key_texts_of_group(reader, group, sizes[group], languages) for group in groups]
        queries, passages, passage_ids = (list(chain.from_iterable(column)) for column in zip(*parts, strict=True))
        yield _KeyTexts(int(starts[first]), queries, passages, passage_ids)


def _key_texts_of_group(
    reader: WholeReader, group: int, rows: int, languages: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Queries, passages and passage ids of a row group; a text is that of the first language that has one."""
    queries, passages, passage_ids = [""] * rows, [""] * rows, [""] * rows
    for lang in languages:
        table = reader.read_group(lang, group, ["query", "passage", "passage_id"])
        passage_ids = table["passage_id"].to_pylist()
        queries = _filled(queries, table["query"])
        passages = _filled(passages, table["passage"])
        if all(queries) and all(passages):
            break
    return queries, passages, passage_ids


def _filled(texts: Sequence[str], column: pa.ChunkedArray) -> list[str]:
    """The texts; where there is none, that of the column, folded."""
    return [text or folded(other or "") for text, other in zip(texts, column.to_pylist(), strict=True)]


# What stays


def _cleaned_pairs(source: ShardedDataset, verdict: _Verdict, reject: Reject) -> Iterator[ParallelPair]:
    """The pairs that stay, normalised, in the order of the source; what goes is handed to `reject`."""
    document_name = _document_name(source)
    documents = source.groups()
    lends = np.zeros(len(verdict.passage), dtype=bool)  # rows whose passage id others get
    lends[verdict.passage[verdict.is_merged]] = True
    lent: dict[int, str] = {}
    for row, (pair_id, passage_id, texts) in enumerate(_rows(source)):
        if lends[row]:
            lent[row] = passage_id  # the first of its passage, so it comes before those that get its id
        if verdict.reason[row] != _STAYS:
            lang, text = next(iter((texts[_QUERIES] or texts[_PASSAGES]).items()))
            reject(RejectedRow(source.name, pair_id, lang, _REASONS[verdict.reason[row]], text))
            continue
        yield ParallelPair(
            pair_id=pair_id,
            passage_id=lent[int(verdict.passage[row])] if verdict.is_merged[row] else passage_id,
            group=document_name(int(documents[row])),
            query=_normalised_cells(texts[_QUERIES], source.name, pair_id, reject),
            passage=_normalised_cells(texts[_PASSAGES], source.name, pair_id, reject),
            negatives=_normalised_negatives(texts["negatives"], source.name, pair_id, reject),
        )


def _rows(source: ShardedDataset) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Of every row the pair id, the passage id, and column -> language -> what the cell holds."""
    reader = WholeReader(source)
    for group in range(len(source.group_starts) - 1):
        tables = {lang: reader.read_group(lang, group, SCHEMA.names).to_pydict() for lang in source.manifest.languages}
        keys = next(iter(tables.values()))
        for i, (pair_id, passage_id) in enumerate(zip(keys["pair_id"], keys["passage_id"], strict=True)):
            yield (
                pair_id,
                passage_id,
                {
                    name: {lang: table[name][i] for lang, table in tables.items() if table[name][i]}
                    for name in (_QUERIES, _PASSAGES, "negatives")
                },
            )


def _normalised_cells(cells: Mapping[str, str], file: str, row: str, reject: Reject) -> dict[str, str]:
    found = {lang: normalised(text) for lang, text in cells.items()}
    for lang in [lang for lang, text in found.items() if not text]:
        reject(RejectedRow(file, row, lang, BLANK, cells[lang]))
        del found[lang]
    return found


def _normalised_negatives(
    cells: Mapping[str, Sequence[str]], file: str, row: str, reject: Reject
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for lang, texts in cells.items():
        found[lang] = [text for text in map(normalised, texts) if text]
        for text in texts if len(found[lang]) < len(texts) else ():
            if not normalised(text):
                reject(RejectedRow(file, row, lang, BLANK, text))
    return found


def _document_name(source: ShardedDataset) -> Callable[[int], str]:
    """Document number -> its name; without names the number, written so that the order of the documents is kept."""
    names = document_names(source)
    if names is None:
        return lambda number: f"{number:010d}"
    return lambda number: str(names[number])
