"""Queries, candidates and relevance of a benchmark, whatever format they were read from.

A benchmark is one or more collections. In a collection every query is ranked against the candidates of each
candidate language (a cell) and, where that means something, against all of them together (the merged pool).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks.arrow import ArrowStrings, find

# query id -> {(candidate language, candidate id): grade}; a grade of 0 or less says judged and not relevant.
Judgements = Mapping[str, Mapping[tuple[str, str], int]]

_HASH_BLOCK = 4096  # strings serialised at a time: bounds the memory of data_hash
_LISTED = 10  # faulty ids that a message names


@dataclass(frozen=True)
class Texts:
    """Texts under ids.

    Args:
        ids: unique within these texts.
        texts: parallel to `ids`. Both are tuples, or sequences over Arrow memory for large corpora.
    """

    ids: Sequence[str]
    texts: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts):
            raise ValueError(f"{len(self.ids)} ids for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Qrels:
    """Relevance of the queries of one language, in compressed rows; row i belongs to query i of that language.

    Args:
        offsets: int64 [Q + 1]; the relevant candidates of query i are the entries offsets[i]:offsets[i + 1].
        language: int64 [M], index into `tuple(collection.candidates)`.
        candidate: int64 [M], index within the candidates of that language.
        grade: int64 [M], greater than 0.

    The entries of a query are sorted by (language, candidate) and unique.
    """

    offsets: NDArray[np.int64]
    language: NDArray[np.int64]
    candidate: NDArray[np.int64]
    grade: NDArray[np.int64]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Qrels):
            return NotImplemented
        return all(
            np.array_equal(mine, theirs) for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Collection:
    """Queries of some languages and candidates of some.

    Raises BenchmarkError for a language without queries or candidates and for an id used twice.

    Args:
        name: "xquad-r"; "de" for a MIRACL language; "de-en" for a bitext direction.
        queries: query language -> queries, at least one each.
        candidates: candidate language -> candidates, not de-duplicated, at least one each.
        qrels: query language -> relevance; the same languages as `queries`.
        merged_pool: whether ranking against the union of all candidates means something.
        parallel: whether equal query ids in two languages are one question.
    """

    name: str
    queries: Mapping[str, Texts]
    candidates: Mapping[str, Texts]
    qrels: Mapping[str, Qrels]
    merged_pool: bool
    parallel: bool

    def __post_init__(self) -> None:
        where = f"collection {self.name}"
        for kind, texts in (("query", self.queries), ("candidate", self.candidates)):
            empty = [language for language, part in texts.items() if not len(part)]
            if empty or not texts:
                raise BenchmarkError(
                    f"{where}: {', '.join(empty) or 'all languages'}",
                    f"no {kind}",
                    "at least one per language",
                    "Leave the language out or mend its files.",
                )
            for language, part in texts.items():
                if not isinstance(part.ids, ArrowStrings):  # those were checked where they were read
                    check_unique(((f"{where}: {language}", value) for value in part.ids), kind)
        if list(self.queries) != list(self.qrels):
            raise ValueError(f"{where}: queries of {list(self.queries)}, relevance of {list(self.qrels)}")


@dataclass(frozen=True)
class Benchmark:
    """What one evaluation ranks.

    Args:
        name: what results are called: "xquad-r", "xquad-r+context", "miracl-slice", "beir-scifact", "tatoeba".
        collections: at least one.
        notes: what a reader of the results must know.
        left_out: query language -> how many queries have no relevant candidate and are not in the collections; without
            the languages where every query has one.
    """

    name: str
    collections: tuple[Collection, ...]
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages in order of first appearance: queries of all collections, then candidates."""
        queries = [language for collection in self.collections for language in collection.queries]
        candidates = [language for collection in self.collections for language in collection.candidates]
        return tuple(dict.fromkeys(queries + candidates))

    @property
    def query_count(self) -> int:
        """Queries of all collections together."""
        return sum(len(part) for collection in self.collections for part in collection.queries.values())

    @property
    def candidate_count(self) -> int:
        """Candidates of all collections together."""
        return sum(len(part) for collection in self.collections for part in collection.candidates.values())

    @cached_property
    def data_hash(self) -> str:
        """sha256 (hex) of names, ids, texts and relevance; the order in which languages were named does not matter."""
        digest = sha256()

        def add(values: Iterable[object]) -> None:
            digest.update(json.dumps(list(values)).encode() + b"\n")

        def add_texts(texts: Texts) -> None:
            for strings in (texts.ids, texts.texts):
                add([len(strings)])
                for start in range(0, len(strings), _HASH_BLOCK):
                    add(strings[start : start + _HASH_BLOCK])

        add([self.name])
        for collection in sorted(self.collections, key=lambda collection: collection.name):
            add([collection.name, collection.merged_pool, collection.parallel, *sorted(collection.candidates)])
            for language in sorted(collection.candidates):
                add_texts(collection.candidates[language])
            for language in sorted(collection.queries):
                add([language])
                add_texts(collection.queries[language])
                digest.update(_canonical_rows(collection.qrels[language], tuple(collection.candidates)).tobytes())
        return digest.hexdigest()


def judged_queries(queries: Texts, judgements: Judgements) -> tuple[Texts, int]:
    """The queries that have a relevant candidate, in their order, and how many have none."""
    kept = [
        row for row, query in enumerate(queries.ids) if any(grade > 0 for grade in judgements.get(query, {}).values())
    ]
    texts = Texts(tuple(queries.ids[row] for row in kept), tuple(queries.texts[row] for row in kept))
    return texts, len(queries) - len(kept)


def qrels_of(queries: Texts, judgements: Judgements, candidates: Mapping[str, Texts], where: str) -> Qrels:
    """The relevance of `queries`, with candidate ids turned into positions.

    Args:
        queries: a query that `judgements` lacks has no relevant candidate.
        judgements: may hold other queries too: their candidates must exist all the same.
        candidates: candidate language -> candidates.
        where: the file that the judgements come from, for errors.

    Raises:
        BenchmarkError: a judged candidate, of whatever grade, that is not in `candidates`.
    """
    positions = _positions(judgements, candidates, where)
    number = {language: row for row, language in enumerate(candidates)}
    offsets, entries = [0], []
    for query in queries.ids:
        judged = judgements.get(query, {})
        entries += sorted((number[key[0]], positions[key], grade) for key, grade in judged.items() if grade > 0)
        offsets.append(len(entries))
    language, candidate, grade = np.array(entries, dtype=np.int64).reshape(-1, 3).T.copy()
    return Qrels(np.array(offsets, dtype=np.int64), language, candidate, grade)


def check_known(named: Iterable[str], known: Iterable[str], kind: str, where: str) -> None:
    """Raise BenchmarkError listing the `named` ids (first ten and the number) that are not among the `known` ones."""
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise BenchmarkError(
            where,
            f"{len(unknown)} {kind} ids that do not exist: {listed(unknown)}",
            f"ids of the benchmark's {kind} file",
            "Take judgements and texts of the same version.",
        )


def check_unique(ids: Iterable[tuple[str, str]], kind: str) -> None:
    """Raise BenchmarkError at the second place of the first id that stands in two; `ids` are (place, id)."""
    seen: set[str] = set()
    for where, value in ids:
        if value in seen:
            raise BenchmarkError(where, f"{kind} {value!r} a second time", "unique ids", "Remove one.")
        seen.add(value)


def listed(ids: Sequence[str]) -> str:
    """The first ten ids, quoted, and an ellipsis where there are more."""
    return ", ".join(map(repr, ids[:_LISTED])) + (", ..." if len(ids) > _LISTED else "")


def chosen_languages(wanted: Sequence[str] | None, available: Sequence[str], benchmark: str) -> tuple[str, ...]:
    """The languages to load, in the order asked for; all available ones when none are named.

    Raises:
        ConfigError: no language, one that the benchmark lacks or one named twice.
    """
    chosen = tuple(available if wanted is None else wanted)
    lacking = [language for language in chosen if language not in available]
    if lacking or not chosen:
        raise ConfigError(
            "languages",
            listed(lacking) or "none",
            f"at least one of those of {benchmark}: {', '.join(available) or 'none'}",
            "Choose among these.",
        )
    twice = [language for language in dict.fromkeys(chosen) if chosen.count(language) > 1]
    if twice:
        raise ConfigError("languages", f"{listed(twice)} twice", "every language once", "Remove the copies.")
    return chosen


def _positions(judgements: Judgements, candidates: Mapping[str, Texts], where: str) -> dict[tuple[str, str], int]:
    """(candidate language, candidate id) -> index within that language, of everything judged."""
    judged = dict.fromkeys(key for judged in judgements.values() for key in judged)
    positions: dict[tuple[str, str], int] = {}
    for language, texts in candidates.items():
        wanted = [candidate for code, candidate in judged if code == language]
        positions |= {(language, candidate): row for candidate, row in _rows(texts.ids, wanted).items()}
    unknown = [candidate for language, candidate in judged if (language, candidate) not in positions]
    check_known(unknown, (), "candidate", where)
    return positions


def _rows(ids: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    if isinstance(ids, ArrowStrings):
        return find(ids, wanted)
    row_of = {value: row for row, value in enumerate(ids)}
    return {value: row_of[value] for value in wanted if value in row_of}


def _canonical_rows(qrels: Qrels, languages: Sequence[str]) -> NDArray[np.int64]:
    """int64 [M, 4]: query, language in alphabetical order, candidate, grade; sorted."""
    alphabetical = np.argsort(np.argsort(np.array(languages)))
    query = np.repeat(np.arange(len(qrels.offsets) - 1), np.diff(qrels.offsets))
    language = alphabetical[qrels.language]
    order = np.lexsort((qrels.candidate, language, query))
    rows = np.stack([query, language, qrels.candidate, qrels.grade], axis=1)[order]
    return np.ascontiguousarray(rows, dtype="<i8")
