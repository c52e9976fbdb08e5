"""The best and the worst queries of an evaluation, with the texts that a person needs to see why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbt_ray.evaluation.benchmarks import Collection
from hbt_ray.evaluation.matrix import ALL_LANGUAGES, question_ids, setting_of
from hbt_ray.evaluation.ranking import IntArray, Ranks

SHOWN = 5


class RankedQueries(NamedTuple):
    """The queries of one language with what they found.

    Args:
        collection: where they are from.
        query_language: their language.
        average_precision: float64 [Q], in the merged pool.
        ranks: of their relevant candidates.
        pool_ranks: int64 [Q, L], rank of the best relevant candidate of each language, 0 without one.
    """

    collection: Collection
    query_language: str
    average_precision: NDArray[np.float64]
    ranks: Ranks
    pool_ranks: IntArray


def best_and_worst(groups: Iterable[RankedQueries], shown: int = SHOWN) -> dict[str, list[dict[str, Any]]]:
    """Content of examples.json: `shown` queries of different questions from either end.

    Among queries of equal score a fixed draw decides, so that one language does not take all places.
    """
    listed = list(groups)
    group = np.concatenate([np.full(len(part.average_precision), i) for i, part in enumerate(listed)])
    row = np.concatenate([np.arange(len(part.average_precision)) for part in listed])
    score = np.concatenate([part.average_precision for part in listed])
    questions = [question for part in listed for question in question_ids(part.collection, part.query_language)]

    def chosen(order: IntArray) -> list[dict[str, Any]]:
        first: dict[str, int] = {}
        for place in order:
            first.setdefault(questions[place], int(place))
            if len(first) == shown:
                break
        return [_example(listed[group[place]], int(row[place])) for place in first.values()]

    draw = np.random.default_rng(0).permutation(len(score))
    return {"best": chosen(np.lexsort((draw, -score))), "worst": chosen(np.lexsort((draw, score)))}


def _example(part: RankedQueries, row: int) -> dict[str, Any]:
    collection, language = part.collection, part.query_language
    queries, qrels = collection.queries[language], collection.qrels[language]
    codes = list(collection.candidates)
    entries = slice(int(qrels.offsets[row]), int(qrels.offsets[row + 1]))
    ranks = part.ranks.pool[entries]
    best = entries.start + int(np.argmin(np.where(ranks > 0, ranks, np.iinfo(np.int64).max)))
    relevant_language = codes[qrels.language[best]]
    sizes = np.cumsum([0] + [len(texts) for texts in collection.candidates.values()])
    top = int(part.ranks.top[row, 0])
    top_language = codes[int(np.searchsorted(sizes, top, side="right")) - 1]
    return {
        "query_language": language,
        "query_id": queries.ids[row],
        "query": queries.texts[row],
        "setting": setting_of(language, ALL_LANGUAGES if collection.merged_pool else codes[0]),
        "average_precision": float(part.average_precision[row]),
        "ranks": {code: int(rank) for code, rank in zip(codes, part.pool_ranks[row], strict=True) if rank},
        "top_language": top_language,
        "top_text": collection.candidates[top_language].texts[top - int(sizes[codes.index(top_language)])],
        "relevant_language": relevant_language,
        "relevant_text": collection.candidates[relevant_language].texts[int(qrels.candidate[best])],
    }
