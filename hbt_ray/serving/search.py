"""A question to a model and a file of passages, for a person to see what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.cache import EmbeddingCache
from hbt_ray.evaluation.encoding import encode_texts, in_process
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.serving.models import find_model
from hbt_ray.serving.passages import Passage, read_passages

TABLE_HEADER = ["rank", "cosine", "id", "language", "passage"]
SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Args:
        rank: from 1.
        score: cosine of question and passage.
        passage: with its id, text and language.
    """

    rank: int
    score: float
    passage: Passage


@dataclass(frozen=True)
class Found:
    """An answered question.

    Args:
        question: as it was asked.
        model: address.
        model_hash: of its files.
        passages: how many were searched.
        hits: the best, best first.
    """

    question: str
    model: str
    model_hash: str
    passages: int
    hits: list[Hit]

    def table(self) -> list[list[object]]:
        """A row per hit, under TABLE_HEADER; long texts are cut."""
        return [
            [
                str(hit.rank),
                f"{hit.score:.4f}",
                _shown(hit.passage.id),
                hit.passage.language or "",
                _shown(hit.passage.text),
            ]
            for hit in self.hits
        ]

    def summary(self) -> dict[str, Any]:
        """The last line of `hbt-ray search`."""
        hits = [{"rank": hit.rank, "score": hit.score, **asdict(hit.passage)} for hit in self.hits]
        return {**vars(self), "hits": hits}


def search(
    model: str,
    passages: Path,
    question: str,
    *,
    k: int = 10,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """The k passages that are nearest to a question, each with its own prompt before it.

    Args:
        model: folder, `package:NAME` or `models:/` address.
        passages: a .jsonl, .tsv or .txt file.
        question: in any language.
        k: at most so many.
        cache: folder of embeddings by model, text and prompt; the next question finds the passages encoded.
        on_progress: told (distinct passages encoded, distinct passages in all).

    Raises:
        ConfigError: a blank question.
        CorpusError: a file that holds something else than passages.
        ModelError: no such model.
        EmbeddingError: a damaged cache.
    """
    if not question.strip():
        raise ConfigError("question", repr(question), "some words", "Ask something.")
    read = read_passages(passages)
    served = find_model(model)
    encoder = TextEncoder(str(served.folder), "cuda" if torch.cuda.is_available() else "cpu")
    prefix = encoder.settings.passage_prefix
    vectors = encode_texts(
        [passage.text for passage in read],
        in_process(encoder.encode),
        encoder.width,
        prompt=prefix,
        cache=EmbeddingCache(cache, served.model_hash, prefix) if cache else None,
        on_progress=on_progress,
    )
    scores = vectors @ encoder.encode([question], encoder.settings.query_prefix)[0]
    best = np.argsort(-scores, kind="stable")[:k]
    hits = [Hit(rank, float(scores[row]), read[row]) for rank, row in enumerate(best.tolist(), start=1)]
    return Found(question, served.address, served.model_hash, len(read), hits)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return escape(
        line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
    )  # rich reads [brackets]
