"""Rankings and relevance as TREC files, for trec_eval, pytrec_eval, ir_measures and whatever else reads them.

trec_eval takes no order from a file: it sorts the candidates of a query by score, held as a 32-bit float, and
breaks ties by document id, from high to low. A score that two candidates share, or that two have once rounded to
32 bits, would lose the order it was written in. Scores are therefore written as 32-bit numbers that fall strictly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt

from hbt_ray.errors import BenchmarkError

Ids: TypeAlias = Sequence[str]
WriteRun: TypeAlias = Callable[[Ids, Sequence[Ids], npt.ArrayLike], None]
WriteQrels: TypeAlias = Callable[[Ids, Sequence[Ids], Sequence[Sequence[int]]], None]

DIGITS = 9  # significant digits that tell any two 32-bit floats apart
LARGEST_SCORE = 1e38  # what a 32-bit float holds, with room for the steps between equal scores
_TINY_BITS = int(np.finfo(np.float32).tiny.view(np.int32))


@contextmanager
def run_writer(path: Path, tag: str) -> Iterator[WriteRun]:
    """Give a function that appends the rankings of some queries, as write_run takes them, to a run file.

    For runs that do not fit in memory: a call needs memory for its own queries only. The file appears at `path`,
    whose folder must exist, once the block has ended without an error.
    """
    _check_id(tag, "tag")
    written: set[str] = set()
    with _appearing(path) as file:

        def write(query_ids: Ids, candidate_ids: Sequence[Ids], scores: npt.ArrayLike) -> None:
            values = np.asarray(scores, dtype=np.float64)
            _check_scores(values, query_ids, candidate_ids, path)
            for query, candidates, row in zip(query_ids, candidate_ids, falling_scores(values).tolist(), strict=True):
                _check_ids(query, candidates, written, path)
                file.writelines(
                    f"{query} Q0 {candidate} {rank} {score:.{DIGITS}g} {tag}\n"
                    for rank, (candidate, score) in enumerate(zip(candidates, row, strict=True), 1)
                )

        yield write


@contextmanager
def qrels_writer(path: Path) -> Iterator[WriteQrels]:
    """Give a function that appends the relevance of some queries, as write_qrels takes it, to a qrels file."""
    written: set[str] = set()
    with _appearing(path) as file:

        def write(query_ids: Ids, candidate_ids: Sequence[Ids], grades: Sequence[Sequence[int]]) -> None:
            for query, candidates, row in zip(query_ids, candidate_ids, grades, strict=True):
                _check_ids(query, candidates, written, path)
                file.writelines(
                    f"{query} 0 {candidate} {int(grade)}\n" for candidate, grade in zip(candidates, row, strict=True)
                )

        yield write


def write_run(path: Path, query_ids: Ids, candidate_ids: Sequence[Ids], scores: npt.ArrayLike, tag: str) -> Path:
    """Write rankings as lines `query Q0 candidate rank score tag` and return the path.

    Args:
        path: file, replaced if it exists, in a folder that does.
        query_ids: Q ids.
        candidate_ids: per query its K candidates, best first.
        scores: [Q, K], parallel to candidate_ids; not rising within a query.
        tag: name of the run.

    Raises:
        BenchmarkError: an id that is empty or has whitespace in it, a query or a candidate of a query given
            twice, scores that rise, are not finite or are not of the shape of candidate_ids.
    """
    with run_writer(path, tag) as write:
        write(query_ids, candidate_ids, scores)
    return path


def write_qrels(path: Path, query_ids: Ids, candidate_ids: Sequence[Ids], grades: Sequence[Sequence[int]]) -> Path:
    """Write relevance as lines `query 0 candidate grade` and return the path.

    Per query its relevant candidates and their grades (> 0), in parallel. Raises BenchmarkError for ids as write_run.
    """
    with qrels_writer(path) as write:
        write(query_ids, candidate_ids, grades)
    return path


def falling_scores(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Scores [Q, K] that do not rise within a row, as float32 that fall strictly; changed no more than that takes.

    The order is that of the columns also for a reader who rounds to 32 bits. Numbers below the smallest normal one
    count as zero, because some readers flush them to it.
    """
    keys = _keys(scores.astype(np.float32))
    column = np.arange(scores.shape[1])
    # key[j] - (i - j) is the highest that place i may have under place j: the lowest of these falls strictly.
    return _scores(np.minimum.accumulate(keys + column, axis=1) - column)


def _keys(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Place of a float32 on the list of all normal float32: neighbours differ by 1, zero is 0."""
    magnitude = np.abs(scores).view(np.int32).astype(np.int64) - _TINY_BITS + 1
    return np.where(np.signbit(scores), -1, 1) * np.maximum(magnitude, 0)


def _scores(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    magnitude = np.where(keys == 0, 0, np.abs(keys) + _TINY_BITS - 1).astype(np.int32)
    return np.where(keys < 0, np.float32(-1), np.float32(1)) * magnitude.view(np.float32)


def _check_scores(scores: npt.NDArray[np.float64], queries: Ids, candidates: Sequence[Ids], path: Path) -> None:
    received = (len(candidates), len(candidates[0]) if candidates else 0)
    if scores.ndim != 2 or scores.shape != received or len(queries) != len(candidates):
        raise BenchmarkError(
            f"{path}: scores",
            f"shape {scores.shape}",
            f"{(len(queries), received[1])}, as queries and candidates",
            "Pass a score for each candidate of each query.",
        )
    rising = np.diff(scores, axis=1, prepend=np.inf) > 0
    for bad, what in ((~(np.abs(scores) < LARGEST_SCORE), "not finite, or above 1e38"), (rising, "rising")):
        if np.any(bad):
            row, column = np.argwhere(bad)[0]
            where = f"{path}: query {queries[row]!r}, place {column + 1}"
            raise BenchmarkError(where, f"a score that is {what}", "finite scores, best first", "Sort by score.")


@contextmanager
def _appearing(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its name when it is complete."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_ids(query: str, candidates: Ids, before: set[str], path: Path) -> None:
    """Refuse what the format cannot hold; adds the query to those written `before`."""
    _check_id(query, f"{path}: query")
    if query in before:
        raise BenchmarkError(f"{path}: query", f"{query!r} twice", "every query once", "Write each query once.")
    before.add(query)
    distinct = set(candidates)
    for candidate in distinct:
        _check_id(candidate, f"{path}: candidate of query {query!r}")
    if len(distinct) < len(candidates):
        again = next(candidate for candidate in candidates if candidates.count(candidate) > 1)
        where = f"{path}: candidates of query {query!r}"
        raise BenchmarkError(where, f"{again!r} twice", "every candidate once", "Give the candidates ids of their own.")


def _check_id(text: str, where: str) -> None:
    if not text or any(character.isspace() for character in text):
        raise BenchmarkError(
            where, repr(text), "an id without whitespace", "TREC files separate by whitespace: rename it."
        )
