"""NewsQA: questions of crowd workers on CNN stories, as its scripts put them together, in JSON or CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hbt_ray.corpus.formats.tables import accepted, csv_rows
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, json_items
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError

LANGUAGE = "en"
NO_ANSWER = "story holds no agreed answer"


def _votes(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise PydanticCustomError("votes", "Input should be JSON or nothing") from error


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True)
    q: UsableText
    consensus: Mapping[str, Any]  # {"s": start, "e": end}, {"noAnswer": true} or {"badQuestion": true}


class _Story(BaseModel):
    model_config = ConfigDict(frozen=True)
    story_id: UsableText = Field(alias="storyId")
    text: UsableText
    type: Literal["train", "dev", "test"]
    questions: list[Any]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)
    story_id: UsableText
    question: UsableText
    answer_char_ranges: str  # "294:297|None|12:20,31:35": one worker's selections between bars
    validated_answers: Annotated[
        dict[str, int], BeforeValidator(_votes)
    ]  # {"294:297": 2, "bad_question": 1} or nothing
    story_text: UsableText


def read_newsqa(
    source: Path, reject: Reject, *, split: Literal["train", "dev", "test"] | None = None
) -> Iterator[ParallelPair]:
    """One pair per question to which the workers agreed on an answer in the story; the others are rejected.

    The passage is the whole story as it stands; `passage_id` and `group` are its id. `pair_id` is that and the
    question's number in the story for JSON, the line its row begins in for CSV: "./cnn/stories/42d0.story#3".

    In CSV the agreed answer is what the set's own script takes: among the validated answers the most frequent one if
    at least half of the votes are for it, where nothing was validated the most frequent selection.

    Args:
        source: `combined-newsqa-data-v1.json`, or `combined-newsqa-data-v1.csv`, `train.csv` and the like.
        reject: called with stories and questions that are left out.
        split: the part of the JSON file to take; all by default. The CSV files do not say to which part a row belongs.

    Raises:
        CorpusError: the file is absent, empty or damaged, is no JSON of that form, lacks a column, or a split is asked
            of a CSV file.
    """
    if not source.name.removesuffix(".gz").endswith(".csv"):
        return _from_json(source, reject, split)
    if split is not None:
        fix = "Take the JSON file, or the CSV file of that split alone."
        raise CorpusError(str(source), f"split {split!r}", "no split for a CSV file", fix)
    return _from_csv(source, reject)


def _from_json(source: Path, reject: Reject, split: str | None) -> Iterator[ParallelPair]:
    for _, story in json_items(source, "data.item", _Story, reject, LANGUAGE):
        if split not in (None, story.type):
            continue
        for number, values in enumerate(story.questions):
            row = f"{story.story_id}#{number}"
            question = accepted(_Question, values, source.name, row, LANGUAGE, reject)
            if question is None:
                continue
            if "s" in question.consensus:
                yield _pair(row, story.story_id, question.q, story.text)
            else:
                reject(RejectedRow(source.name, row, LANGUAGE, NO_ANSWER, question.q))


def _from_csv(source: Path, reject: Reject) -> Iterator[ParallelPair]:
    for number, row in csv_rows(source, _Row, reject, LANGUAGE):
        pair_id = f"{row.story_id}#{number}"
        if _has_consensus(row):
            yield _pair(pair_id, row.story_id, row.question, row.story_text)
        else:
            reject(RejectedRow(source.name, pair_id, LANGUAGE, NO_ANSWER, row.question))


def _has_consensus(row: _Row) -> bool:
    if row.validated_answers:
        votes = Counter(row.validated_answers)
        answer, agreeing = votes.most_common(1)[0]
        return ":" in answer and 2 * agreeing >= votes.total()
    selections = row.answer_char_ranges.replace("|", ",").split(",")
    return ":" in Counter(selections).most_common(1)[0][0]


def _pair(pair_id: str, story_id: str, question: str, story: str) -> ParallelPair:
    return ParallelPair(pair_id, story_id, story_id, {LANGUAGE: question}, {LANGUAGE: story})
