"""MFAQ: frequently asked questions with their answers from web pages in 21 languages, one page per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hbt_ray.corpus.formats.tables import UNKNOWN_LANGUAGE, accepted, files_of, is_known
from hbt_ray.corpus.importers import Reject, RejectedRow, UsableText, json_lines, text_hash
from hbt_ray.corpus.pairs import ParallelPair


class _Faq(BaseModel):
    model_config = ConfigDict(frozen=True)
    question: UsableText
    answer: UsableText
    language: str | None = None


class _Page(BaseModel):
    model_config = ConfigDict(frozen=True)
    domain: UsableText
    language: str | None = None
    qa_pairs: list[Any]


def read_mfaq(source: Path, reject: Reject) -> Iterator[ParallelPair]:
    """One pair per question, in the language of the question, else of its page; no two languages are parallel.

    The passage is the answer, `passage_id` its hash, `group` the web domain. `pair_id` is file, line and number of the
    question on the page, counted from 0: "train.jsonl:12:0".

    Args:
        source: JSON lines of {id, language, num_pairs, domain, qa_pairs: [{question, answer, language}]}, or a folder
            of such files.
        reject: called with pages and questions that are left out.

    Raises:
        CorpusError: a file is absent, empty or damaged.
    """
    for name, path in files_of(source, ".jsonl"):
        for line, page in json_lines(path, _Page, reject, "und"):
            for number, values in enumerate(page.qa_pairs):
                pair_id = f"{name}:{line}:{number}"
                faq = accepted(_Faq, values, name, pair_id, page.language or "und", reject)
                if faq is None:
                    continue
                language = faq.language or page.language or ""
                if not is_known(language):
                    reject(RejectedRow(name, pair_id, language, UNKNOWN_LANGUAGE, faq.question))
                    continue
                yield ParallelPair(
                    pair_id, text_hash(faq.answer), page.domain, {language: faq.question}, {language: faq.answer}
                )
