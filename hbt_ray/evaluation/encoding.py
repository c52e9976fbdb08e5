"""Encode the texts of a collection: each distinct text once, on actors over the cluster, with what is known kept.

    texts -> keys -> first rows of distinct texts -> from the cache, or in chunks to the encoders -> vectors -> cache

Which process computes the vectors is hidden behind `EncodeChunks`: `in_process` for a function, `EncodingPool` for
actors. Memory of the driving process, beside the vectors (which are in a file if one is given): 32 bytes per text, 56
for a moment while repeated texts are found, and the cache's table. For 33 million texts that is under 2 GB.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from hbt_ray.errors import ConfigError, EmbeddingError, HbtError, ResourceError
from hbt_ray.evaluation.benchmarks import Collection
from hbt_ray.evaluation.cache import EmbeddingCache, Keys, Vectors, text_keys
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.model.encoder import EncoderSettings, TextEncoder
from hbt_ray.session import SPARE_CPUS

WINDOW = 100_000  # texts sorted by length together, and rows taken from the cache together
CPU_CHUNK = 16_384  # characters of a call: seconds of work on a core, so that actors end at nearly the same time
GPU_CHUNK = 1_048_576
CHARACTERS_PER_TEXT = 16  # added to a text's length, so that a chunk of very short texts is bounded too
CALLS_PER_ACTOR = 2  # one at work and one waiting, so that an actor need not wait for the driver

Rows = NDArray[np.int64]
OnProgress: TypeAlias = Callable[[int, int], None]


class Chunk(NamedTuple):
    """Texts to be encoded in one call, and where their vectors go.

    Args:
        rows: int64 [n].
        texts: n texts, prompts before them.
    """

    rows: Rows
    texts: list[str]


EncodeChunks: TypeAlias = Callable[[Iterable[Chunk]], Iterator[tuple[Chunk, Vectors]]]
"""Takes chunks as it has room for them and gives each back with its vectors, float32 [n, D], in any order."""


def in_process(encode: Callable[[list[str]], Vectors]) -> EncodeChunks:
    """Chunks encoded one after the other by a function."""
    return lambda chunks: ((chunk, encode(chunk.texts)) for chunk in chunks)


# --- texts -> vectors ------------------------------------------------------------------------------------------------


def encode_texts(
    texts: Sequence[str],
    encode_chunks: EncodeChunks,
    width: int,
    *,
    prompt: str = "",
    cache: EmbeddingCache | None = None,
    out: Path | None = None,
    chunk_characters: int = CPU_CHUNK,
    on_progress: OnProgress = lambda done, total: None,
) -> Vectors:
    """The vectors of `texts`, float32 [len(texts), width]; each distinct text is encoded once.

    However this ends, the cache has what was encoded (all but the last seconds, if the process was killed), and the
    same call encodes the rest.

    Args:
        texts: read one at a time, so they may lie on disk.
        encode_chunks: turns chunks of texts into vectors.
        width: D.
        prompt: put before each text.
        cache: of this model and prompt; texts that it has are not encoded.
        out: .npy file for the vectors, which are then memory-mapped; it has its name once it is complete.
        chunk_characters: characters of the texts handed over in one call, about.
        on_progress: told (distinct texts done, distinct texts in all); those from the cache are done at once.

    Raises:
        EmbeddingError: the cache is damaged, or of another prompt or dimension.
    """
    keys = text_keys(texts)
    first = first_rows(keys)
    missing = np.flatnonzero(first == np.arange(len(first)))
    total = len(missing)
    vectors = _new_vectors(len(texts), width, out)
    if cache is not None:
        missing = _take_cached(vectors, keys, missing, cache, prompt)
    done = total - len(missing)
    on_progress(done, total)
    try:
        for chunk, encoded in encode_chunks(length_sorted_chunks(texts, missing, prompt, chunk_characters)):
            vectors[chunk.rows] = encoded
            if cache is not None:
                cache.add(keys[chunk.rows], encoded)
            done += len(chunk.rows)
            on_progress(done, total)
    finally:
        if cache is not None:
            cache.flush()
    _copy_repeated(vectors, first)
    return vectors if out is None else _finished(vectors, out)


def first_rows(keys: Keys) -> Rows:
    """For each key the row where it occurs first, int64 [len(keys)]."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1])[: len(keys)])
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = np.repeat(order[starts], np.diff(starts, append=len(keys)))
    return first


def length_sorted_chunks(texts: Sequence[str], rows: Rows, prompt: str, chunk_characters: int) -> Iterator[Chunk]:
    """Chunks of the texts at `rows`, the longest texts of every WINDOW first; one window is in memory at a time."""
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        strings = [prompt + texts[row] for row in window.tolist()]
        lengths = np.array([len(string) for string in strings], dtype=np.int64) + CHARACTERS_PER_TEXT
        order = np.argsort(-lengths, kind="stable")
        before = np.cumsum(lengths[order]) - lengths[order]
        cuts = np.flatnonzero(np.diff(before // chunk_characters)) + 1
        for part in np.split(order, cuts):
            yield Chunk(window[part], [strings[i] for i in part.tolist()])


def _take_cached(vectors: Vectors, keys: Keys, rows: Rows, cache: EmbeddingCache, prompt: str) -> Rows:
    """Fill in what the cache has of `rows`; the others."""
    if cache.prompt != prompt:
        raise EmbeddingError(str(cache.folder), repr(prompt), f"the cache's prompt {cache.prompt!r}", "Open its own.")
    cache.refresh()
    if not len(cache):
        return rows
    if cache.width != vectors.shape[1]:
        raise EmbeddingError(
            str(cache.folder),
            f"vectors of {cache.width} dimensions",
            f"{vectors.shape[1]}, the model's",
            "Delete this folder; its texts will be encoded again.",
        )
    missing = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        at = cache.find(keys[window])
        vectors[window[at >= 0]] = cache.read(at[at >= 0])
        missing.append(window[at < 0])
    return np.concatenate(missing)


def _copy_repeated(vectors: Vectors, first: Rows) -> None:
    repeated = np.flatnonzero(first != np.arange(len(first)))
    for start in range(0, len(repeated), WINDOW):
        window = repeated[start : start + WINDOW]
        vectors[window] = vectors[first[window]]


def _new_vectors(rows: int, width: int, out: Path | None) -> Vectors:
    if out is None:
        return np.empty((rows, width), dtype=np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(_partial(out), mode="w+", dtype=np.float32, shape=(rows, width))


def _finished(vectors: Vectors, out: Path) -> Vectors:
    vectors.flush()  # type: ignore[attr-defined]  # a memory-map
    _partial(out).replace(out)
    mapped: Vectors = np.load(out, mmap_mode="r")
    return mapped


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


# --- the actors ------------------------------------------------------------------------------------------------------


class EncodingPool:
    """Actors that hold one model; made by `encoding_pool`.

    Args:
        actors: handles of _EncodingActor.
        width: D of the model.
        chunk_characters: characters of a call that keep an actor busy.
    """

    def __init__(self, actors: Sequence[Any], width: int, chunk_characters: int) -> None:
        self.width = width
        self.chunk_characters = chunk_characters
        self._actors = actors

    def encode_chunks(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Vectors]]:
        """Each chunk with its vectors as they come; at most CALLS_PER_ACTOR chunks per actor are out at a time."""
        free = deque([*self._actors] * CALLS_PER_ACTOR)
        calls: dict[Any, tuple[Any, Chunk]] = {}
        for chunk in chunks:
            if not free:
                yield _first_done(calls, free)
            actor = free.popleft()
            calls[actor.encode.remote(chunk.texts)] = actor, chunk
        while calls:
            yield _first_done(calls, free)


def _first_done(calls: dict[Any, tuple[Any, Chunk]], free: deque[Any]) -> tuple[Chunk, Vectors]:
    (done,), _ = ray.wait(list(calls), num_returns=1)
    actor, chunk = calls.pop(done)
    free.append(actor)
    return chunk, ray.get(done)


@contextmanager
def encoding_pool(model_dir: str, actors: int | None = None) -> Iterator[EncodingPool]:
    """Actors with the model loaded, ended with their GPUs freed at the end; Ray must be initialised.

    Each takes one CPU and, where the cluster has GPUs, one of them. An actor lost with its node is started again
    elsewhere and its chunk encoded again.

    Args:
        model_dir: exported model folder, at this path on all nodes.
        actors: at most so many, and never more than GPUs where there are any; None: one per GPU, or one per CPU but
            those that a session leaves for other tasks.

    Raises:
        ConfigError: fewer than one actor.
        ResourceError: Ray is not initialised, or has fewer CPUs than actors.
        ModelError: a node cannot load the model.
    """
    gpu, count = _placement(actors)
    remote: Any = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=3, max_task_retries=3)(_EncodingActor)
    handles = [remote.remote(model_dir, "cuda" if gpu else "cpu") for _ in range(count)]
    try:
        yield EncodingPool(handles, _width(handles), GPU_CHUNK if gpu else CPU_CHUNK)
    finally:
        for handle in handles:
            ray.kill(handle)


def _width(actors: Sequence[Any]) -> int:
    """D, once every actor has loaded the model."""
    try:
        return int(ray.get([actor.width.remote() for actor in actors])[0])
    except RayTaskError as error:
        if isinstance(error.cause, HbtError):
            raise error.cause from None
        raise


def _placement(actors: int | None) -> tuple[bool, int]:
    """Whether actors take a GPU each, and how many there are."""
    if actors is not None and actors < 1:
        raise ConfigError("actors", actors, "at least 1", "Ask for one actor or more.")
    if not ray.is_initialized():
        raise ResourceError("Ray", "no connection", "an initialised Ray", "Call `ray.init` first.")
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    count = actors or gpus or max(1, cpus - SPARE_CPUS)
    count = min(count, gpus) if gpus else count
    if count > cpus:
        raise ResourceError("actors", count, f"at most {cpus}, the CPUs of the cluster", "Lower `actors`.")
    return gpus > 0, count


class _EncodingActor:
    """A process that holds the model; loaded at the first call, so that a restarted actor loads it again."""

    def __init__(self, folder: str, device: str) -> None:
        self._folder = folder
        self._device = device
        if device == "cpu":  # one core each: torch and the tokenizer would each start a thread per core of the node
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._folder, self._device)

    def width(self) -> int:
        return self._encoder.width

    def encode(self, texts: list[str]) -> Vectors:
        return self._encoder.encode(texts)


# --- a collection ----------------------------------------------------------------------------------------------------


def encode_collection(
    collection: Collection,
    pool: EncodingPool,
    settings: EncoderSettings,
    *,
    model_hash: str,
    cache: Path | None = None,
    scratch: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Embeddings:
    """Unit-length float32 embeddings of all queries and candidates, with the prompts of the model's settings.

    Texts behind the same prompt are encoded together, whatever their language and side, so that one that occurs in
    several is encoded once.

    Args:
        collection: the texts.
        pool: actors with the model.
        settings: the model folder's settings.
        model_hash: the model's hash, under which the cache keeps its vectors.
        cache: folder of the caches; None for no cache.
        scratch: folder for the vectors, which are then memory-mapped (the caller deletes it); None for memory.
        on_progress: told (done, total) distinct texts, for the queries and then for the candidates if their prompts
            differ.

    Raises:
        EmbeddingError: the cache is damaged.
    """
    sides = {"queries": collection.queries, "candidates": collection.candidates}
    prompts = {"queries": settings.query_prefix, "candidates": settings.passage_prefix}
    vectors: dict[str, dict[str, Vectors]] = {side: {} for side in sides}
    for prompt in dict.fromkeys(prompts.values()):
        groups = {
            (side, language): texts.texts
            for side, of_side in sides.items()
            if prompts[side] == prompt
            for language, texts in of_side.items()
        }
        name = f"{collection.name}.{'.'.join(side for side in sides if prompts[side] == prompt)}.npy"
        together = encode_texts(
            JoinedTexts([*groups.values()]),
            pool.encode_chunks,
            pool.width,
            prompt=prompt,
            cache=EmbeddingCache(cache, model_hash, prompt) if cache else None,
            out=scratch / name if scratch else None,
            chunk_characters=pool.chunk_characters,
            on_progress=on_progress,
        )
        ends = accumulate((len(texts) for texts in groups.values()), initial=0)
        for (side, language), (start, end) in zip(groups, pairwise(ends), strict=True):
            vectors[side][language] = together[start:end]
    return Embeddings(**vectors)


class JoinedTexts(Sequence[str]):
    """Several sequences of texts as one, without copying them."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - int(self._ends[part]) + len(self._parts[part])]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)
