"""DPR's training format: `biencoder-nq-train.json` and its kin for TriviaQA, WebQuestions, CuratedTREC and SQuAD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from hbt_ray.corpus.formats.tables import json_rows, titled
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, text_fault, text_hash
from hbt_ray.corpus.pairs import ParallelPair

LANGUAGE = "en"
NO_POSITIVE = "question has no positive passage"


class Context(BaseModel):
    """A passage in DPR's files; the id is that of `psgs_w100.tsv`, where the file gives one."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)
    title: str | None = None
    text: str
    id: str | None = Field(None, validation_alias=AliasChoices("passage_id", "psg_id", "id"))
    has_answer: bool | None = None

    @property
    def passage(self) -> str:
        """The text behind its article's title."""
        return titled(self.title, self.text)

    @property
    def passage_id(self) -> str:
        """The source's own id, else a hash of the passage."""
        return self.id or text_hash(self.passage)


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True)
    question: UsableText
    positive_ctxs: list[Context]
    hard_negative_ctxs: list[Context] = []


def read_dpr_nq(source: Path, reject: Reject, *, negatives: int = 4) -> Iterator[ParallelPair]:
    """One pair per question, with its first positive passage, which is the one DPR trains on.

    A passage is its text behind the article's title and one space. `pair_id` is the question's number in the file,
    counted from 1, for it has no id; `passage_id` is DPR's, else a hash; `group` is the title. Hard negatives are the
    first of `hard_negative_ctxs`; questions without a positive passage are rejected.

    Args:
        source: one JSON array of {question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}.
        reject: called with questions and hard negatives that are left out.
        negatives: hard negatives of a pair, at most.

    Raises:
        CorpusError: the file is absent, empty or damaged, or is no JSON array.
    """
    for number, question in json_rows(source, _Question, reject, LANGUAGE):
        if not question.positive_ctxs:
            reject(RejectedRow(source.name, str(number), LANGUAGE, NO_POSITIVE, question.question))
            continue
        hard = question.hard_negative_ctxs[:negatives]
        pair = context_pair(str(number), question.question, question.positive_ctxs[0], hard, source.name, reject)
        if pair is not None:
            yield pair


def context_pair(
    pair_id: str, query: str, positive: Context, hard: Sequence[Context], file: str, reject: Reject
) -> ParallelPair | None:
    """The question with passages in DPR's form, or None if the positive one cannot be used; it is rejected then."""
    usable = [context for context in (positive, *hard) if _is_usable(context, file, pair_id, reject)]
    if positive not in usable:
        return None
    others = tuple(context.passage for context in usable if context is not positive)
    return ParallelPair(
        pair_id=pair_id,
        passage_id=positive.passage_id,
        group=positive.title or positive.passage_id,
        query={LANGUAGE: query},
        passage={LANGUAGE: positive.passage},
        negatives={LANGUAGE: others} if others else {},
    )


def _is_usable(context: Context, file: str, row: str, reject: Reject) -> bool:
    reason = text_fault(context.text) or text_fault(context.passage)
    if reason:
        reject(RejectedRow(file, row, LANGUAGE, f"passage: {reason}", context.passage))
    return reason is None
