"""EntityQuestions: template questions on Wikidata facts, with the passages that a retriever found for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.formats.dpr_nq import LANGUAGE, Context, context_pair
from hbt_ray.corpus.formats.tables import files_of, json_rows
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

NO_CONTEXTS = "question has no ctxs"
NO_ANSWER = "no passage of the question holds an answer"


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True)
    question: UsableText
    ctxs: list[Context] | None = None


def read_entity_questions(source: Path, reject: Reject, *, negatives: int = 4) -> Iterator[ParallelPair]:
    """One pair per question of which a retrieved passage holds an answer.

    The published `P17.train.json` and the like hold questions and answers, no passages. DPR's `dense_retriever.py` and
    the set's own `bm25_retriever.py` add `ctxs` to them, best first, each with `has_answer`: the passage is the first
    one that has an answer, hard negatives are the first ones that have none. Passages, ids and groups are as in
    `read_dpr_nq`; `pair_id` is the file's name and the question's number in it, "P17.train.json:1".

    Args:
        source: one file of {question, answers, ctxs: [{id, title, text, score, has_answer}]}, or a folder of them, one
            for each relation; JSON arrays (`.json`) or JSON lines (`.jsonl`).
        reject: called with questions and hard negatives that are left out.
        negatives: hard negatives of a pair, at most.

    Raises:
        CorpusError: a file is absent, empty or damaged, or none of its questions has passages.
    """
    for name, path in files_of(source, ".json", ".jsonl"):
        retrieved = bare = False
        for number, question in json_rows(path, _Question, reject, LANGUAGE):
            row = f"{name}:{number}"
            retrieved, bare = retrieved or question.ctxs is not None, bare or question.ctxs is None
            positive = next((context for context in question.ctxs or () if context.has_answer), None)
            if positive is None:
                reason = NO_CONTEXTS if question.ctxs is None else NO_ANSWER
                reject(RejectedRow(name, row, LANGUAGE, reason, question.question))
                continue
            hard = [context for context in question.ctxs or () if context.has_answer is False][:negatives]
            pair = context_pair(row, question.question, positive, hard, name, reject)
            if pair is not None:
                yield pair
        if bare and not retrieved:
            fix = (
                "Retrieve passages with DPR's dense_retriever.py or the set's bm25_retriever.py, and import its output."
            )
            raise CorpusError(str(path), "questions without ctxs", "questions with retrieved passages", fix)
