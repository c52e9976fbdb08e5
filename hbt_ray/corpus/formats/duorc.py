"""DuoRC: questions on the plots of films, asked on one telling of the plot (SelfRC) or on another (ParaphraseRC)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.formats.tables import REPEATED_ID, accepted
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, json_items
from hbt_ray.corpus.pairs import ParallelPair

LANGUAGE = "en"
NO_ANSWER = "question is marked no_answer"


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True)
    id: UsableText
    question: UsableText
    no_answer: bool


class _Film(BaseModel):
    model_config = ConfigDict(frozen=True)
    id: UsableText
    plot: UsableText
    qa: list[Any]


def read_duorc(source: Path, reject: Reject) -> Iterator[ParallelPair]:
    """One pair per question that the plot answers.

    The passage is the whole plot as it stands, several hundred words, of which an encoder sees the beginning.
    `pair_id` is the question's id, `passage_id` and `group` are the film's. Questions marked `no_answer` are rejected.

    Args:
        source: `SelfRC_train.json` and the like, an array of {id, title, plot, qa: [{id, question, answers,
            no_answer}]}.
        reject: called with films and questions that are left out.

    Raises:
        CorpusError: the file is absent, empty or damaged, or is no JSON array.
    """
    seen: set[str] = set()
    for _, film in json_items(source, "item", _Film, reject, LANGUAGE):
        for number, values in enumerate(film.qa):
            question = accepted(_Question, values, source.name, f"{film.id}, question {number}", LANGUAGE, reject)
            if question is None:
                continue
            if question.no_answer or question.id in seen:
                reason = NO_ANSWER if question.no_answer else REPEATED_ID
                reject(RejectedRow(source.name, question.id, LANGUAGE, reason, question.question))
                continue
            seen.add(question.id)
            yield ParallelPair(question.id, film.id, film.id, {LANGUAGE: question.question}, {LANGUAGE: film.plot})
