"""Embeddings of a collection, in memory and at rest.

<folder>/queries.<lang>.npy      float32 or float64 [queries, dim], rows in the order of the collection
<folder>/candidates.<lang>.npy   float32 or float64 [candidates, dim], likewise

A benchmark of several collections has a folder of that kind for each, named by the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbt_ray.errors import EmbeddingError
from hbt_ray.evaluation.benchmarks import Benchmark, Collection

FloatArray = NDArray[np.floating[Any]]

# Inner products of values up to this size stay finite in float64 at any dimension that fits in memory. A numpy
# scalar, because a Python float would be cast down to the dtype of a float32 array and overflow there.
LARGEST_VALUE = np.float64(1e150)
CHECKED_ROWS = 65_536  # rows looked at together, so that checking a memory-mapped file needs no copy of it


@dataclass(frozen=True)
class Embeddings:
    """Query and candidate vectors per language; the score of a pair is the inner product of its vectors as given.

    Args:
        queries: language -> float32 or float64 [queries, dim].
        candidates: language -> float32 or float64 [candidates, dim].
    """

    queries: Mapping[str, FloatArray]
    candidates: Mapping[str, FloatArray]


def collection_folder(folder: Path, benchmark: Benchmark, collection: Collection) -> Path:
    """Where the embeddings of one collection are, below the folder of its benchmark."""
    return folder if len(benchmark.collections) == 1 else folder / collection.name


def save_embeddings(folder: Path, embeddings: Embeddings) -> None:
    """Write one file per language and side into `folder`, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, values in embeddings.queries.items():
        np.save(_file(folder, "queries", language), values, allow_pickle=False)
    for language, values in embeddings.candidates.items():
        np.save(_file(folder, "candidates", language), values, allow_pickle=False)


def load_embeddings(folder: Path, collection: Collection) -> Embeddings:
    """The embeddings of a collection from `folder`: memory-mapped, checked, with their dtype kept.

    Raises:
        EmbeddingError: a file is missing or is not a .npy array, or as `check_embeddings`.
    """
    embeddings = Embeddings(
        queries={code: _load(_file(folder, "queries", code)) for code in collection.queries},
        candidates={code: _load(_file(folder, "candidates", code)) for code in collection.candidates},
    )
    check_embeddings(embeddings, collection, where=f"{folder}: ")
    return embeddings


def check_embeddings(embeddings: Embeddings, collection: Collection, where: str = "") -> None:
    """Hold the embeddings against the collection; `where` goes before the name of an array in messages.

    Raises:
        EmbeddingError: a language is missing, an array is not float32 or float64 [texts, dim], the number of
            rows is not the number of texts, dimensions differ, or a value is not finite or above LARGEST_VALUE.
    """
    dim: int | None = None
    for name, values, rows in _arrays(embeddings, collection, where):
        _check_type(name, values)
        dim = values.shape[1] if dim is None else dim
        _check_shape(name, values, (rows, dim))
        for start in range(0, rows, CHECKED_ROWS):
            _check_values(name, values[start : start + CHECKED_ROWS], start)


def _file(folder: Path, side: str, language: str) -> Path:
    return folder / f"{side}.{language}.npy"


def _load(path: Path) -> FloatArray:
    try:
        values: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise EmbeddingError(
            str(path), "no such file", "a .npy array", "Encode this language or leave it out of the languages."
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(str(path), error, "a .npy array of floats", "Write it with numpy.save.") from error
    return values


def _arrays(embeddings: Embeddings, collection: Collection, where: str) -> Iterator[tuple[str, FloatArray, int]]:
    """Name, array and expected number of rows of every part that the collection needs."""
    sides = (
        ("queries", embeddings.queries, collection.queries),
        ("candidates", embeddings.candidates, collection.candidates),
    )
    for side, vectors, texts in sides:
        for language, expected in texts.items():
            name = f"{where}{side}.{language}"
            if language not in vectors:
                raise EmbeddingError(name, "nothing", f"{len(expected.ids)} rows", "Encode this language.")
            yield name, vectors[language], len(expected.ids)


def _check_type(name: str, values: FloatArray) -> None:
    if values.dtype not in (np.float32, np.float64):
        raise EmbeddingError(name, values.dtype, "float32 or float64", "Convert with `astype(numpy.float32)`.")
    if values.ndim != 2 or values.shape[1] == 0:
        raise EmbeddingError(name, f"shape {values.shape}", "shape (texts, dim)", "Give one vector per text.")


def _check_shape(name: str, values: FloatArray, expected: tuple[int, int]) -> None:
    if values.shape != expected:
        raise EmbeddingError(
            name,
            f"shape {values.shape}",
            f"shape {expected}",
            "Encode every text of the benchmark once, in file order, with one model.",
        )


def _check_values(name: str, values: FloatArray, first_row: int) -> None:
    bad = ~(np.abs(values) <= LARGEST_VALUE)  # negated, so that NaN is bad too
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        raise EmbeddingError(
            f"{name}: row {first_row + row}",
            f"the value {values[row][bad[row]][0]}",
            f"finite values of at most {LARGEST_VALUE:g}",
            "Look at the text of this row and at the model's precision.",
        )
