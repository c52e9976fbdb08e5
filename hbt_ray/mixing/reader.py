"""Read and tokenise one rank's slices of a run of plan steps (no Ray here: the tasks of the stream call it)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.mixing.plan import BatchSpec
from hbt_ray.mixing.source import PlanSource


@dataclass(frozen=True)
class Tokenisation:
    """What becomes of texts: prefixes, and lengths to truncate to (special tokens included)."""

    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int


@dataclass(frozen=True)
class SliceReader:
    """Turns step numbers into the tokenised slices of one rank."""

    source: PlanSource
    tokens: Tokenisation
    rank: int
    world_size: int

    def read(self, steps: Sequence[int], tokenizer: Tokenizer) -> pa.Table:
        """One row per step: step, mode, dataset, ragged query_ids and passage_ids (int32), passage_keys (int64 [b]).

        Every (dataset, language, row group) cell that the steps need is read once.
        """
        opened = self.source.open()
        specs = [opened.plan[int(step)].part(self.rank, self.world_size) for step in steps]
        cells = _CellReader(opened.datasets, opened.plan.languages)
        texts = [cells.texts(spec) for spec in specs]
        tokens = self.tokens
        queries = [tokens.query_prefix + text for batch in texts for text in batch.queries]
        passages = [tokens.passage_prefix + text for batch in texts for text in batch.passages]
        size = len(specs[0].rows)
        return pa.table(
            {
                "step": pa.array([spec.step for spec in specs], pa.int64()),
                "mode": pa.array([spec.mode for spec in specs]),
                "dataset": pa.array([spec.dataset for spec in specs]),
                "query_ids": _ragged(tokenizer, queries, tokens.max_query_tokens, size),
                "passage_ids": _ragged(tokenizer, passages, tokens.max_passage_tokens, size),
                "passage_keys": pa.array([batch.passage_keys for batch in texts], pa.list_(pa.int64())),
            }
        )


def _ragged(tokenizer: Tokenizer, texts: list[str], max_tokens: int, size: int) -> pa.Array:
    """list<list<int32>>: the token ids of each text, `size` texts a row."""
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()  # many a tokenizer.json pads to a fixed length; pads would pass for tokens
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    rows = [ids[start : start + size] for start in range(0, len(ids), size)]
    return pa.array(rows, pa.list_(pa.list_(pa.int32())))


@dataclass(frozen=True)
class BatchTexts:
    """The texts of one slice, and an int64 key per pair that is equal exactly for equal passage ids of a dataset."""

    queries: list[str]
    passages: list[str]
    passage_keys: npt.NDArray[np.int64]


class _CellReader:
    """Reads each (dataset, language, row group) cell once."""

    def __init__(self, datasets: Mapping[str, ShardedDataset], languages: Sequence[str]) -> None:
        self._datasets = datasets
        self._languages = languages
        self._cell = lru_cache(maxsize=None)(self._read)

    def texts(self, spec: BatchSpec) -> BatchTexts:
        keys = self._column(spec, spec.passage_language, "passage_id")
        return BatchTexts(
            queries=self._column(spec, spec.query_language, "query"),
            passages=self._column(spec, spec.passage_language, "passage"),
            passage_keys=np.array([passage_key(spec.dataset, key) for key in keys], dtype=np.int64),
        )

    def _column(self, spec: BatchSpec, languages: npt.NDArray[np.int8], column: str) -> list[str]:
        starts = self._datasets[spec.dataset].group_starts
        groups = np.searchsorted(starts, spec.rows, side="right") - 1
        return [
            self._cell(spec.dataset, self._languages[code], int(group))[column][int(row - starts[group])].as_py()
            for code, group, row in zip(languages, groups, spec.rows, strict=True)
        ]

    def _read(self, dataset: str, lang: str, group: int) -> pa.Table:
        return self._datasets[dataset].read_group(lang, group, ["query", "passage", "passage_id"])


def passage_key(dataset: str, passage_id: str) -> int:
    """A 64-bit key of a passage; passages of different datasets never count as the same."""
    digest = hashlib.blake2b(f"{dataset}\0{passage_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
