"""Read and tokenise one rank's slices of a run of plan steps (no Ray here: the tasks of the stream call it)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.mixing.plan import BatchSpec
from hbt_ray.mixing.source import PlanSource


@dataclass(frozen=True)
class Tokenisation:
    """What becomes of texts: prefixes, lengths to truncate to (special tokens included), hard negatives per query."""

    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int
    hard_negatives: int = 0


@dataclass(frozen=True)
class SliceReader:
    """Turns step numbers into the tokenised slices of one rank."""

    source: PlanSource
    tokens: Tokenisation
    rank: int
    world_size: int

    def read(self, steps: Sequence[int], tokenizer: Tokenizer) -> pa.Table:
        """One row per step; its texts are the slice's b queries, then its b (1 + k) candidates.

        Candidates of a query: its positive, then its k hard negatives. Columns: step, mode, dataset, `ids` (token ids
        of all texts, one after the other), `lengths` (tokens of each text, 0 for a negative that the pair does not
        have), `keys` (passage key and text key of each candidate). Every (dataset, language, row group) cell that the
        steps need is read once.
        """
        opened = self.source.open()
        specs = [opened.plan[int(step)].part(self.rank, self.world_size) for step in steps]
        cells = _CellReader(opened.datasets, opened.plan.languages, self.tokens.hard_negatives, self.source.seed)
        slices = [cells.texts(spec) for spec in specs]
        token_ids = [self._token_ids(tokenizer, texts) for texts in slices]
        return pa.table(
            {
                "step": pa.array([spec.step for spec in specs], pa.int64()),
                "mode": pa.array([spec.mode for spec in specs]),
                "dataset": pa.array([spec.dataset for spec in specs]),
                "ids": pa.array([[i for ids in texts for i in ids] for texts in token_ids], pa.list_(pa.int32())),
                "lengths": pa.array([[len(ids) for ids in texts] for texts in token_ids], pa.list_(pa.int32())),
                "keys": pa.array([texts.keys.reshape(-1) for texts in slices], pa.list_(pa.int64())),
            }
        )

    def _token_ids(self, tokenizer: Tokenizer, texts: SliceTexts) -> list[list[int]]:
        """Token ids of queries and candidates; none for a missing candidate."""
        tokens = self.tokens
        queries = [tokens.query_prefix + text for text in texts.queries]
        passages = [tokens.passage_prefix + text for text in texts.candidates if text is not None]
        encoded = iter(_encoded(tokenizer, passages, tokens.max_passage_tokens))
        candidates = [[] if text is None else next(encoded) for text in texts.candidates]
        return _encoded(tokenizer, queries, tokens.max_query_tokens) + candidates


def _encoded(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()  # many a tokenizer.json pads to a fixed length; pads would pass for tokens
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@dataclass(frozen=True)
class StepRow:
    """One step of one rank: int32 `ids` of all its texts, int32 `lengths` [b + n], int64 `keys` [n, 2]; see read()."""

    step: int
    mode: str
    dataset: str
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int64]


def step_rows(table: pa.Table) -> Iterator[StepRow]:
    """The rows of a table that `SliceReader.read` made."""
    for row in range(table.num_rows):
        ids, lengths, keys = (
            table[name][row].values.to_numpy(zero_copy_only=True) for name in ("ids", "lengths", "keys")
        )
        step, mode, dataset = (table[name][row].as_py() for name in ("step", "mode", "dataset"))
        yield StepRow(step, mode, dataset, ids, lengths, keys.reshape(-1, 2))


@dataclass(frozen=True)
class SliceTexts:
    """The texts of one slice.

    Args:
        queries: [b].
        candidates: [b (1 + k)], of each query its positive and its hard negatives; None where there is none.
        keys: int64 [b (1 + k), 2]: equal passage keys mean the same passage id of the same dataset, equal text keys
            the same text; those of a missing candidate say nothing.
    """

    queries: list[str]
    candidates: list[str | None]
    keys: npt.NDArray[np.int64]


class _CellReader:
    """Reads each (dataset, language, row group) cell once."""

    def __init__(
        self, datasets: Mapping[str, ShardedDataset], languages: Sequence[str], hard_negatives: int, seed: int
    ) -> None:
        self._datasets = datasets
        self._languages = languages
        self._hard_negatives = hard_negatives
        self._seed = seed
        self._columns = ["query", "passage", "passage_id"] + ["negatives"] * (hard_negatives > 0)
        # Not lru_cache: it would refer back to the reader, and the tables stay in memory until the garbage collector.
        self._cells: dict[tuple[str, str, int], pa.Table] = {}

    def texts(self, spec: BatchSpec) -> SliceTexts:
        passages = self._column(spec, spec.passage_language, "passage")
        passage_ids = self._column(spec, spec.passage_language, "passage_id")
        candidates: list[str | None] = []
        keys: list[tuple[int, int]] = []
        for passage, passage_id, negatives in zip(passages, passage_ids, self._negatives(spec), strict=True):
            candidates += [passage, *negatives]
            keys.append((passage_key(spec.dataset, passage_id), text_key(passage)))
            keys += [(0, 0) if text is None else (text_key(text), text_key(text)) for text in negatives]
        return SliceTexts(
            queries=self._column(spec, spec.query_language, "query"),
            candidates=candidates,
            keys=np.array(keys, dtype=np.int64),
        )

    def _negatives(self, spec: BatchSpec) -> list[list[str | None]]:
        """Of each pair a choice of its hard negatives, drawn anew at every step; None for those that it lacks."""
        if self._hard_negatives == 0:
            return [[] for _ in spec.rows]
        found = self._column(spec, spec.passage_language, "negatives")
        return [self._drawn(texts, spec.step, int(row)) for texts, row in zip(found, spec.rows, strict=True)]

    def _drawn(self, texts: list[str], step: int, row: int) -> list[str | None]:
        count = self._hard_negatives
        if len(texts) > count:
            drawn = np.random.default_rng((self._seed, step, row)).choice(len(texts), count, replace=False)
            return [texts[i] for i in drawn]
        return [*texts, *[None] * (count - len(texts))]

    def _column(self, spec: BatchSpec, languages: npt.NDArray[np.int8], column: str) -> list[Any]:
        starts = self._datasets[spec.dataset].group_starts
        groups = np.searchsorted(starts, spec.rows, side="right") - 1
        return [
            self._cell(spec.dataset, self._languages[code], int(group))[column][int(row - starts[group])].as_py()
            for code, group, row in zip(languages, groups, spec.rows, strict=True)
        ]

    def _cell(self, dataset: str, lang: str, group: int) -> pa.Table:
        key = (dataset, lang, group)
        if key not in self._cells:
            self._cells[key] = self._datasets[dataset].read_group(lang, group, self._columns)
        return self._cells[key]


def passage_key(dataset: str, passage_id: str) -> int:
    """A 64-bit key of a passage; passages of different datasets never count as the same."""
    return _key(f"{dataset}\0{passage_id}")


def text_key(text: str) -> int:
    """A 64-bit key of a text, whatever dataset it comes from."""
    return _key(f"\0{text}")


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
