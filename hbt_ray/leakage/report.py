"""What a search for leakage found, as a JSON file that stands for exactly these data on both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hbt_ray.errors import ConfigError
from hbt_ray.leakage.index import LeakageSettings
from hbt_ray.storage import write_whole

CLEAN, LEAKAGE, INCOMPLETE, ACCEPTED = "clean", "leakage", "incomplete", "accepted"
EXIT_CODES = {CLEAN: 0, ACCEPTED: 0, LEAKAGE: 3, INCOMPLETE: 3}

_DERIVED = ("status", "severity", "not_comparable")  # in the file for those who read it; made anew from the rest


@dataclass(frozen=True, slots=True)
class Finding:
    """A text of the benchmark in a training text.

    Args:
        kind: "question" or "candidate" of the benchmark.
        match: "same id", "same text", "near-duplicate" or "contained".
        score: 1 for the same; the Jaccard similarity of near-duplicates; the share of the shorter text's shingles.
        benchmark_language, benchmark_id, benchmark_text: the benchmark's text.
        dataset, language, column, pair_id, passage_id, text: the training text; `column` is "query", "passage" or
            "negatives".
    """

    kind: str
    match: str
    score: float
    benchmark_language: str
    benchmark_id: str
    benchmark_text: str
    dataset: str
    language: str
    column: str
    pair_id: str
    passage_id: str
    text: str

    @property
    def key(self) -> int:
        """The same for findings of one text that several pairs share, in one process."""
        place = self.pair_id if self.column == "query" else self.passage_id
        own = (self.kind, self.match, self.benchmark_language, self.benchmark_id)
        return hash((*own, self.dataset, self.language, self.column, place))


@dataclass(frozen=True, slots=True)
class Article:
    """A training document with the title of one of the benchmark's articles, and its pairs."""

    dataset: str
    document: str
    rows: int


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many."""

    found: int
    of: int


@dataclass(frozen=True, slots=True)
class Searched:
    """A training dataset.

    Args:
        name: of the dataset.
        hash: `ShardedDataset.data_hash`.
        rows: its pairs.
        leaked_rows: pairs with a text of the benchmark in any language.
        leaked_documents: documents of those pairs.
        documents: the first hundred names of those documents, where documents have names.
    """

    name: str
    hash: str
    rows: int
    leaked_rows: int
    leaked_documents: int
    documents: Sequence[str]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Why leakage is accepted, and how much of it there was: findings of texts, and articles."""

    reason: str
    text: int
    article: int


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """What a search found.

    Args:
        benchmark: its name.
        benchmark_hash: as evaluation signs it.
        settings: thresholds.
        datasets: the training data.
        questions: language -> questions of the benchmark that were found.
        candidates: language -> candidates of the benchmark that were found.
        findings: "kind, match" -> findings of texts.
        listed: the first of each kind.
        articles: training documents that are articles of the benchmark.
        has_titles: whether the benchmark's articles have titles; without them articles cannot be compared.
        untitled: dataset -> documents that have no title to compare with those, where there are any.
        accepted: why what was found is accepted.
    """

    benchmark: str
    benchmark_hash: str
    settings: LeakageSettings
    datasets: Sequence[Searched]
    questions: Mapping[str, Share]
    candidates: Mapping[str, Share]
    findings: Mapping[str, int]
    listed: Sequence[Finding]
    articles: Sequence[Article]
    has_titles: bool
    untitled: Mapping[str, int]
    accepted: Sequence[Acceptance] = ()

    @property
    def text_findings(self) -> int:
        """Questions and candidates in training texts: severity "text"."""
        return sum(self.findings.values())

    @property
    def status(self) -> str:
        """`clean`, `leakage`, `incomplete` (nothing found, articles not comparable) or, with a reason, `accepted`.

        For a benchmark whose articles have no titles, `clean` is about texts; `not_comparable` says so.
        """
        if self.text_findings or self.articles:
            return ACCEPTED if self.accepted else LEAKAGE
        if self.untitled:
            return ACCEPTED if self.accepted else INCOMPLETE
        return CLEAN

    @property
    def not_comparable(self) -> str:
        """Why articles, or some of them, could not be compared; empty if all were."""
        if not self.has_titles:
            return f"{self.benchmark} gives no titles"
        return ", ".join(
            f"{counted(count, 'document')} of {name} {'has' if count == 1 else 'have'} no title"
            for name, count in self.untitled.items()
        )

    @property
    def exit_code(self) -> int:
        """0 clean or accepted, 3 leakage or incomplete."""
        return EXIT_CODES[self.status]

    def accept(self, reasons: Sequence[str]) -> LeakageReport:
        """The report with reasons to live with what it found or could not compare; a clean one stays as it is.

        Raises ConfigError for a reason without a word.
        """
        check_reasons(reasons)
        if self.status == CLEAN:
            return self
        accepted = [Acceptance(reason, self.text_findings, len(self.articles)) for reason in reasons]
        return replace(self, accepted=[*self.accepted, *accepted])

    def to_json(self) -> str:
        """The report with what follows from it (_DERIVED)."""
        totals = {"text": self.text_findings, "article": len(self.articles)}
        derived = dict(zip(_DERIVED, (self.status, totals, self.not_comparable), strict=True))
        content = derived | asdict(replace(self, settings=None))  # type: ignore[arg-type]
        return json.dumps(content | {"settings": self.settings.model_dump()}, indent=2, ensure_ascii=False)

    def write(self, path: Path) -> None:
        """Write the report; parent folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.to_json())


def counted(count: int, noun: str) -> str:
    """A number of things: 1 text, 2 texts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_reasons(reasons: Sequence[str]) -> None:
    """Raise ConfigError for a reason without a word."""
    for reason in reasons:
        if not reason.strip():
            raise ConfigError("--accept", repr(reason), "why what is found may be there", "Give the reason.")


def read_report(path: Path) -> LeakageReport:
    """A report from its file. Raises ConfigError if it is none."""
    expected = "a report of hbt-ray data leakage"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content = {name: value for name, value in content.items() if name not in _DERIVED}
        return TypeAdapter(LeakageReport).validate_python(content)
    except OSError as error:
        raise ConfigError(str(path), error.strerror, expected, "Check the path.") from None
    except (ValueError, AttributeError, ValidationError) as error:
        raise ConfigError(str(path), " ".join(str(error).split()), expected, "Write the report again.") from None
