"""WikiQA: questions of Bing users with every sentence of a Wikipedia article's summary, labelled as answer or not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hbt_ray.corpus.formats.tables import REPEATED_ID, tsv_rows
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText
from hbt_ray.corpus.pairs import ParallelPair

LANGUAGE = "en"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)
    question_id: UsableText = Field(alias="QuestionID")
    question: UsableText = Field(alias="Question")
    document_id: UsableText = Field(alias="DocumentID")
    sentence_id: UsableText = Field(alias="SentenceID")
    sentence: UsableText = Field(alias="Sentence")
    label: Literal["0", "1"] = Field(alias="Label")


def read_wikiqa(source: Path, reject: Reject, *, negatives: int = 4) -> Iterator[ParallelPair]:
    """One pair per sentence with label 1; a question without such a sentence gives none, as in the published counts.

    `pair_id` is "QuestionID:SentenceID", `passage_id` the SentenceID, `group` the DocumentID. Hard negatives are the
    first sentences of the same question with label 0. The rows of a question stand together in the file.

    Args:
        source: `WikiQA-train.tsv` and the like: QuestionID, Question, DocumentID, DocumentTitle, SentenceID, Sentence,
            Label, with tabs, without quotes.
        reject: called with rows that are left out.
        negatives: hard negatives of a pair, at most.

    Raises:
        CorpusError: the file is absent, empty or damaged, or a column is missing.
    """
    seen: set[str] = set()
    for _, group in groupby(tsv_rows(source, _Row, reject, LANGUAGE), lambda row: row[1].question_id):
        rows = list(group)
        others = tuple(row.sentence for _, row in rows if row.label == "0")[:negatives]
        for number, row in rows:
            if row.label == "0":
                continue
            pair_id = f"{row.question_id}:{row.sentence_id}"
            if pair_id in seen:
                reject(RejectedRow(source.name, str(number), LANGUAGE, REPEATED_ID, row.sentence))
                continue
            seen.add(pair_id)
            yield ParallelPair(
                pair_id=pair_id,
                passage_id=row.sentence_id,
                group=row.document_id,
                query={LANGUAGE: row.question},
                passage={LANGUAGE: row.sentence},
                negatives={LANGUAGE: others} if others else {},
            )
