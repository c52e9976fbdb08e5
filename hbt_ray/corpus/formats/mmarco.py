"""mMARCO: MS MARCO's passage ranking set in fourteen languages, joined by the ids that all of them share.

Fourteen collections of 8.8 million passages and 40 million triples are joined on disk. An index of each text file says
at which bytes the text of an id stands; the triples are dealt into buckets by query, of which one is in memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import numpy.typing as npt

from hbt_ray.corpus.formats.tables import existing, language_of
from hbt_ray.corpus.formats.text_index import Ids, TextIndex, blocks, indexed, is_id, texts_of
from hbt_ray.corpus.importers import MAX_LINE_BYTES, Reject, RejectedRow, opened
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError, ResourceError

NO_TRIPLE = "row is not the ids of a query, a relevant and another passage"
NO_JUDGEMENT = "row is not query, 0, passage and relevance"
NO_QUERY = "query is in no language"
NO_PASSAGE = "passage is in no language"
NO_NEGATIVE = "hard negative is in no language"

TRIPLES, QRELS = "triples.train.ids.small.tsv", "qrels.train.tsv"
COLLECTION, QUERIES = "collections/{}_collection.tsv", "queries/train/{}_queries.train.tsv"

UNDETERMINED = "und"  # language of a row of ids

_NOTHING = -1  # where a pair has no (further) hard negative
_PAIRS_AT_ONCE = 1024  # whose texts, in all languages, are in memory


def read_mmarco(
    source: Path,
    reject: Reject,
    *,
    languages: Collection[str] | None = None,
    negatives: int = 4,
    scratch: Path | None = None,
    buckets: int = 64,
) -> Iterator[ParallelPair]:
    """One pair per query and relevant passage, however often the triples repeat it, in all languages at once.

    `pair_id` is "query:passage" of the ids, `passage_id` and `group` are the passage's. Hard negatives are the first
    distinct ones that the triples name for the pair. A text that a language lacks is a missing cell; an id that all of
    them lack is rejected. Pairs come in an order of their own: by bucket, query, passage.

    Args:
        source: folder with `collections/<language>_collection.tsv` and `queries/train/<language>_queries.train.tsv`
            (id, tab, text; languages by their English names), and in it or in the folder above it, as published,
            `triples.train.ids.small.tsv` (query, relevant, other passage), `qrels.train.tsv` (query, 0, passage,
            relevance), or both. All also with `.gz`.
        reject: called with rows that are left out.
        languages: codes of those to take; all that have a collection by default.
        negatives: hard negatives of a pair, at most.
        scratch: local folder for temporary files, by default the system's: 24 bytes per text and per triple, and the
            texts of the files with `.gz`.
        buckets: parts of the triples; a part is in memory, with 24 bytes per triple several times over.

    Raises:
        CorpusError: no such folder or file, an unknown language, an empty or damaged file.
    """
    files = _files(source, languages)
    with _temporary_folder(scratch) as folder:
        tables = {
            code: (indexed(queries, folder, code, reject), indexed(collection, folder, code, reject))
            for code, (queries, collection) in files.items()
        }
        for bucket in _dealt(source, folder, buckets, reject):
            ids, others = _grouped(np.fromfile(bucket, np.int64).reshape(-1, 3), negatives)
            for start in range(0, len(ids), _PAIRS_AT_ONCE):
                chunk = slice(start, start + _PAIRS_AT_ONCE)
                yield from _joined(ids[chunk], others[chunk], tables, reject)


@contextmanager
def _temporary_folder(parent: Path | None) -> Iterator[Path]:
    try:
        with TemporaryDirectory(dir=parent, prefix="mmarco-") as folder:
            yield Path(folder)
    except OSError as error:
        where = str(parent or gettempdir())
        raise ResourceError(where, error, "space for temporary files", "Name a folder with more room.") from error


def _files(source: Path, languages: Collection[str] | None) -> dict[str, tuple[Path, Path]]:
    """Language code -> its files of queries and passages, English first, then sorted."""
    prefix, suffix = COLLECTION.split("{}")
    names = sorted({path.name.partition(suffix)[0] for path in source.glob(f"{prefix}*{suffix}*")})
    words = {language_of(name, str(source / COLLECTION.format(name))): name for name in names}
    if len(words) < len(names):
        raise CorpusError(str(source), ", ".join(names), "one collection for each language", "Remove one.")
    if missing := sorted(set(languages or ()).difference(words)):
        received = f"no collection in {', '.join(missing)}"
        raise CorpusError(str(source), received, f"one of {', '.join(sorted(words))}", "Correct the languages.")
    if not words:
        expected = COLLECTION.format("<language>")
        raise CorpusError(str(source), "no collection", expected, "Check the path.")
    codes = sorted(languages or words, key=lambda code: (code != "en", code))
    return {
        code: (_file(source, QUERIES.format(words[code])), _file(source, COLLECTION.format(words[code])))
        for code in codes
    }


def _file(folder: Path, name: str) -> Path:
    path = existing(folder, name)
    if path is None:
        raise CorpusError(str(folder / name), "no such file", "an existing file, plain or with .gz", "Add the file.")
    return path


def _dealt(source: Path, folder: Path, buckets: int, reject: Reject) -> list[Path]:
    """Files of int64 [n, 3], (query, relevant passage, other passage or nothing); a query is in one of them."""
    triples = existing(source, TRIPLES) or existing(source.parent, TRIPLES)
    qrels = existing(source, QRELS) or existing(source.parent, QRELS)
    if triples is None and qrels is None:
        raise CorpusError(str(source), f"neither {TRIPLES} nor {QRELS}", "one of them", "Add the file.")
    rows = chain(_triples(triples, reject) if triples else (), _judgements(qrels, reject) if qrels else ())
    paths = [folder / f"bucket-{number}" for number in range(buckets)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for block in blocks(rows):
            bucket = block[:, 0] % buckets
            order = np.argsort(bucket, kind="stable")
            parts = np.split(block[order], np.searchsorted(bucket[order], range(1, buckets)))
            for file, part in zip(files, parts, strict=True):
                part.tofile(file)
    return paths


def _triples(path: Path, reject: Reject) -> Iterator[tuple[int, ...]]:
    for number, line, fields in _fields(path):
        if len(fields) == 3 and all(map(is_id, fields)):
            yield tuple(map(int, fields))
        else:
            reject(RejectedRow(path.name, str(number), UNDETERMINED, NO_TRIPLE, line.decode(errors="replace")))


def _judgements(path: Path, reject: Reject) -> Iterator[tuple[int, ...]]:
    for number, line, fields in _fields(path):
        if len(fields) != 4 or not all(map(is_id, fields)):
            reject(RejectedRow(path.name, str(number), UNDETERMINED, NO_JUDGEMENT, line.decode(errors="replace")))
        elif int(fields[3]) > 0:
            yield int(fields[0]), int(fields[2]), _NOTHING


def _fields(path: Path) -> Iterator[tuple[int, bytes, list[bytes]]]:
    number = 0
    with opened(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if fields := line.removeprefix(codecs.BOM_UTF8).split():
                yield number, line, fields
    if not number:
        raise CorpusError(str(path), "no rows", "rows of ids", "Check that the file was written to its end.")


def _grouped(rows: Ids, negatives: int) -> tuple[Ids, Ids]:
    """The pairs of a bucket, in the order of ids, with their hard negatives.

    Args:
        rows: int64 [n, 3] in the order of the files, with repetitions.
        negatives: columns of the second result.

    Returns:
        int64 [m, 2], query and passage; int64 [m, negatives], the first distinct others, then nothing.
    """
    order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))  # stable: of equal rows the first in the file leads
    rows = rows[np.sort(order[_begins(rows[order])])]
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    begins = _begins(rows[:, :2])
    pairs = rows[begins, :2]
    others = np.full((len(pairs), negatives), _NOTHING, np.int64)
    named = rows[:, 2] != _NOTHING
    pair, other = (np.cumsum(begins) - 1)[named], rows[named, 2]
    rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
    kept = rank < negatives
    others[pair[kept], rank[kept]] = other[kept]
    return pairs, others


def _begins(rows: Ids) -> npt.NDArray[np.bool_]:
    """Where a row is not equal to the one before it."""
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return begins


def _joined(
    pairs: Ids, others: Ids, tables: Mapping[str, tuple[TextIndex, TextIndex]], reject: Reject
) -> Iterator[ParallelPair]:
    """The pairs with their texts in every language that has them."""
    passage_ids = np.concatenate([pairs[:, 1], others[others != _NOTHING]])
    queries = {code: texts_of(index, pairs[:, 0]) for code, (index, _) in tables.items()}
    passages = {code: texts_of(index, passage_ids) for code, (_, index) in tables.items()}
    for (query_id, passage_id), negative_ids in zip(pairs.tolist(), others.tolist(), strict=True):
        pair_id = f"{query_id}:{passage_id}"
        query, passage = _cells(queries, query_id), _cells(passages, passage_id)
        if not query or not passage:
            reject(RejectedRow(TRIPLES, pair_id, UNDETERMINED, NO_PASSAGE if query else NO_QUERY, ""))
            continue
        negatives: dict[str, list[str]] = {}
        for negative_id in negative_ids:
            if negative_id == _NOTHING:
                break
            texts = _cells(passages, negative_id)
            if not texts:
                reject(RejectedRow(TRIPLES, f"{pair_id}:{negative_id}", UNDETERMINED, NO_NEGATIVE, ""))
            for code, text in texts.items():
                negatives.setdefault(code, []).append(text)
        yield ParallelPair(pair_id, str(passage_id), str(passage_id), query, passage, negatives)


def _cells(texts: Mapping[str, Mapping[int, str]], key: int) -> dict[str, str]:
    return {code: found[key] for code, found in texts.items() if key in found}
