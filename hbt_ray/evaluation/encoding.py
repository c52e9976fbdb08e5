"""Encode the texts of a benchmark with Ray actors, each distinct text once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import ray
from ray.util import ActorPool

from hbt_ray.evaluation.benchmarks import Benchmark
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.model.encoder import EncoderSettings, TextEncoder

TEXTS_PER_CALL = 512

Vectors = npt.NDArray[np.float32]


class _EncodingActor:
    """A worker that holds the model."""

    def __init__(self, folder: str, gpu: bool) -> None:
        self._encoder = TextEncoder(folder, "cuda" if gpu else "cpu")

    def encode(self, texts: list[str]) -> Vectors:
        return self._encoder.encode(texts)


def encode_benchmark(
    benchmark: Benchmark,
    model_dir: str,
    settings: EncoderSettings,
    actors: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """Unit-length float32 embeddings of all queries and candidates, with the prefixes of the model's settings.

    Args:
        benchmark: the texts.
        model_dir: exported model folder that all nodes can read.
        settings: the folder's settings.
        actors: encoders at work at the same time; each takes a GPU where the cluster has that many, else one CPU.
        on_progress: told (texts done, texts in all).
    """
    gpu = ray.cluster_resources().get("GPU", 0) >= actors
    actor = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0)(_EncodingActor)
    pool = ActorPool([actor.remote(model_dir, gpu) for _ in range(actors)])
    queries = _prefixed(settings.query_prefix, benchmark.queries)
    candidates = _prefixed(settings.passage_prefix, benchmark.candidates)
    distinct = sorted({text for group in (*queries.values(), *candidates.values()) for text in group}, key=len)
    chunks = [distinct[start : start + TEXTS_PER_CALL] for start in range(0, len(distinct), TEXTS_PER_CALL)]
    vectors: dict[str, Vectors] = {}
    for chunk, rows in zip(chunks, pool.map(lambda worker, texts: worker.encode.remote(texts), chunks), strict=True):
        vectors.update(zip(chunk, rows, strict=True))
        on_progress(len(vectors), len(distinct))
    return Embeddings(queries=_stacked(queries, vectors), candidates=_stacked(candidates, vectors))


def _prefixed(prefix: str, texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {lang: [prefix + text for text in group] for lang, group in texts.items()}


def _stacked(texts: Mapping[str, Sequence[str]], vectors: Mapping[str, Vectors]) -> dict[str, Vectors]:
    return {lang: np.stack([vectors[text] for text in group]) for lang, group in texts.items()}
