"""The record every importer produces and the shard writer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ParallelPair:
    """One query-passage pair in every language that has it.

    Query and passage of a language are present or missing independently: a question without a translation can
    still be paired with the translated passage, so cross-lingual batches use it.

    Args:
        pair_id: unique within the dataset.
        passage_id: shared by all pairs with the same passage, for the false-negative mask.
        group: document or article of the passage; held-out splits take whole groups.
        query: language code -> query text; a language left out is a missing cell.
        passage: language code -> passage text; likewise.
        negatives: language code -> hard negative passages, may be empty.
    """

    pair_id: str
    passage_id: str
    group: str
    query: Mapping[str, str]
    passage: Mapping[str, str]
    negatives: Mapping[str, Sequence[str]] = field(default_factory=dict)
