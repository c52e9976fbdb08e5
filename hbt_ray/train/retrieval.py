"""Retrieval at validations: held-out texts encoded by all ranks, measured on rank 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hbt_ray.config import ModelSection
from hbt_ray.model.encoder import pad, token_batches
from hbt_ray.model.gather import gather_values, rank, world_size
from hbt_ray.train.step import Chunk, as_many_as_others, chunk_vectors

FloatArray: TypeAlias = npt.NDArray[np.float32]
PREFIX = "validation/"


@dataclass(frozen=True)
class Retrieval:
    """Texts to encode at every validation, and what their vectors are worth.

    Args:
        queries: without prefix.
        candidates: without prefix.
        measure: vectors of the queries [Q, D] and of the candidates [C, D] -> name -> value.
    """

    queries: tuple[str, ...]
    candidates: tuple[str, ...]
    measure: Callable[[FloatArray, FloatArray], dict[str, float]]


class RetrievalValidation:
    """A rank's share of the texts, every W-th of them, tokenised once."""

    def __init__(
        self, retrieval: Retrieval, tokenizer: Any, model: ModelSection, device: torch.device, budget: int
    ) -> None:
        self._retrieval = retrieval
        ids = _token_ids(tokenizer, retrieval.queries, model.query_prefix, model.max_query_tokens)
        ids += _token_ids(tokenizer, retrieval.candidates, model.passage_prefix, model.max_passage_tokens)
        self._texts = len(ids)
        own = ids[rank() :: world_size()]
        self._chunks = tuple(
            _chunk(rows, own, tokenizer.pad_token_id, device)
            for rows in token_batches([len(row) for row in own], budget)
        )

    @torch.no_grad()
    def metrics(self, engine: Any) -> dict[str, float]:
        """What is measured, under `validation/<name>`; empty on all ranks but the first. Collective."""
        engine.eval()
        chunks = as_many_as_others(engine, self._chunks)
        together = torch.cat([chunk_vectors(engine, chunk) for chunk in chunks])
        order = torch.cat([chunk.rows for chunk in chunks])
        counts = [len(range(r, self._texts, world_size())) for r in range(world_size())]
        gathered = gather_values(torch.empty_like(together).index_copy_(0, order, together), counts)
        engine.train()
        if rank() > 0:
            return {}
        vectors = np.empty(tuple(gathered.shape), dtype=np.float32)
        for r, part in enumerate(torch.split(gathered.cpu(), counts)):
            vectors[r :: world_size()] = part.numpy()
        queries = len(self._retrieval.queries)
        found = self._retrieval.measure(vectors[:queries], vectors[queries:])
        return {f"{PREFIX}{name}": value for name, value in found.items()}


def _token_ids(tokenizer: Any, texts: tuple[str, ...], prefix: str, most: int) -> list[list[int]]:
    tokens = tokenizer(
        [prefix + text for text in texts],
        truncation=True,
        max_length=most,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return tokens["input_ids"]  # type: ignore[no-any-return]


def _chunk(rows: npt.NDArray[np.int64], texts: list[list[int]], pad_id: int, device: torch.device) -> Chunk:
    ids, mask = pad([texts[row] for row in rows], pad_id)
    return Chunk(torch.from_numpy(rows).to(device), ids.to(device), mask.to(device))
