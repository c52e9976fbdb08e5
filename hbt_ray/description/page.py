"""Descriptions as rows for a terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hbt_ray.description.describe import BINS_PER_DOUBLING, Description, LanguageDescription, Lengths, Sample
from hbt_ray.evaluation import report
from hbt_ray.evaluation.tables import count_text
from hbt_ray.languages import Language, language

HEADER = (
    *("language", "queries", "missing", "passages", "missing", "pairs"),
    *("query: median", "95%", "longest", "passage: median", "95%", "longest"),
)
BAR_WIDTH, BAR_HEIGHT = 7, 26  # pixels of a histogram
LONG = 400  # characters from which a sample is folded


class Bar(NamedTuple):
    """A bar of a histogram in pixels, and what it says on hover."""

    x: int
    y: float
    height: float
    title: str


class Histogram(NamedTuple):
    """Bars of equal width; all histograms of a column span the same lengths."""

    width: int
    height: int
    bars: list[Bar]


class LanguageRow(NamedTuple):
    """A language of the tables."""

    language: Language
    counts: list[str]
    queries: list[str]
    passages: list[str]
    query_histogram: Histogram
    passage_histogram: Histogram


class Cell(NamedTuple):
    """Query and passage of a sample in one language; None where missing."""

    language: Language
    query: str | None
    passage: str | None
    long: bool


class ShownSample(NamedTuple):
    """A sample with its cells in the order of the dataset's languages."""

    sample: Sample
    cells: list[Cell]


def table_rows(description: Description) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row of text per language, for a terminal."""
    return HEADER, [
        (one.code, *_counts(one), *_three(one.query_lengths), *_three(one.passage_lengths))
        for one in description.languages
    ]


def summary(description: Description) -> list[str]:
    """What the table does not say, a line each."""
    per_document, per_passage = description.passages_per_document, description.pairs_per_passage
    lines = [
        f"{count_text(description.rows)} pairs in {len(description.languages)} languages, "
        f"{_files(description.parts)} each",
        f"{count_text(description.passages)} passages in {count_text(description.documents)} documents; passages per "
        f"document: median {count_text(per_document[0])}, most {count_text(per_document[1])}; pairs per passage: "
        f"median {count_text(per_passage[0])}, most {count_text(per_passage[1])}",
        f"repeated word for word in {description.pivot}: pairs {count_text(description.repeated_pairs)}, "
        f"queries {count_text(description.repeated_queries)}",
    ]
    negatives = sum(one.negatives for one in description.languages)
    return [*lines, f"{count_text(negatives)} hard negatives in all languages"] if negatives else lines


def write_page(descriptions: Sequence[Description], path: Path) -> Path:
    """Write one self-contained HTML page about some datasets; parent folders are made."""
    return report.write_page(
        path,
        "description.html",
        __package__,
        title="Training data" if len(descriptions) > 1 else descriptions[0].name,
        notes=[],
        datasets=[_shown(description) for description in descriptions],
        bar_width=BAR_WIDTH,
    )


def _shown(description: Description) -> dict[str, object]:
    return {
        "name": description.name,
        "address": description.address,
        "summary": summary(description),
        "languages": _language_rows(description.languages),
        "rejected": [(reason, count_text(rows)) for reason, rows in description.rejected.items()],
        "provenance": [(key, _text(value)) for key, value in description.provenance.items()],
        "samples": [_shown_sample(sample, description) for sample in description.samples],
    }


def _language_rows(languages: Sequence[LanguageDescription]) -> list[LanguageRow]:
    queries = _range([one.query_lengths for one in languages])
    passages = _range([one.passage_lengths for one in languages])
    return [
        LanguageRow(
            language(one.code),
            _counts(one),
            _three(one.query_lengths),
            _three(one.passage_lengths),
            _histogram(one.query_lengths, queries),
            _histogram(one.passage_lengths, passages),
        )
        for one in languages
    ]


def _counts(one: LanguageDescription) -> list[str]:
    """Queries, share missing, passages, share missing, pairs."""
    return [
        count_text(one.queries),
        _share(one.missing_queries),
        count_text(one.passages),
        _share(one.missing_passages),
        count_text(one.pairs),
    ]


def _share(share: float) -> str:
    return "0" if share == 0 else "<0.1%" if share < 0.001 else f"{share:.1%}"


def _three(lengths: Lengths) -> list[str]:
    values = (lengths.median, lengths.percentile95, lengths.longest)
    return [count_text(value) if lengths.texts else "–" for value in values]


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count_text(count)} files"


def _range(several: Sequence[Lengths]) -> range:
    """The bins from the first to the last that any of the histograms fills."""
    filled = [bin for lengths in several for bin, texts in enumerate(lengths.histogram) if texts]
    return range(min(filled, default=0), max(filled, default=0) + 1)


def _histogram(lengths: Lengths, bins: range) -> Histogram:
    texts = [lengths.histogram[bin] if bin < len(lengths.histogram) else 0 for bin in bins]
    most = max(texts, default=0) or 1
    bars = []
    for place, (bin, count) in enumerate(zip(bins, texts, strict=True)):
        if count:
            height = max(1.0, round(BAR_HEIGHT * count / most, 1))
            bars.append(Bar(place * BAR_WIDTH, round(BAR_HEIGHT - height, 1), height, _bar_title(bin, count)))
    return Histogram(len(bins) * BAR_WIDTH, BAR_HEIGHT, bars)


def _bar_title(bin: int, count: int) -> str:
    low, high = (2 ** (edge / BINS_PER_DOUBLING) for edge in (bin, bin + 1))
    return f"{low:,.0f} to {high:,.0f} characters: {count_text(count)}"


def _text(value: object) -> str:
    """A value of the manifest in words: lists in a line, entries of a mapping in a line each."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def _shown_sample(sample: Sample, description: Description) -> ShownSample:
    cells = []
    for one in description.languages:
        query, passage = sample.query.get(one.code), sample.passage.get(one.code)
        if query is not None or passage is not None:
            cells.append(Cell(language(one.code), query, passage, len(passage or "") > LONG))
    return ShownSample(sample, cells)
