"""Figures of an evaluation as text in rows: what the HTML reports and the model card both show.

Every number is made into text here, so that a page and a card cannot print it differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import (
    Cell,
    hub_language,
    is_matrix,
    language_profile,
    mean_of_defined,
    profile_name,
    score_grid,
)
from hbt_ray.languages import Language, checked_codes, language

NOT_DEFINED = "–"
HEADING_MEASURES = ("mAP", "R@1", "R@10")  # of a language in several settings, where no matrix shows them

Metrics: TypeAlias = Mapping[str, Any]
Column: TypeAlias = Sequence[float | None]
NumberText: TypeAlias = Callable[[float | None], str]


class Setting(NamedTuple):
    """A setting's name, what it means, and what a benchmark without it lacks."""

    name: str
    meaning: str
    lacking: str


SETTINGS = {
    "monolingual": Setting(
        "Monolingual",
        "query and candidates in the same language",
        "no query has candidates in its own language",
    ),
    "cross_lingual": Setting(
        "Cross-lingual",
        "query in one language, candidates in another",
        "no query has candidates in another language",
    ),
    "multilingual": Setting(
        "Multilingual",
        "query in one language, candidates of all languages in one pool",
        "no merged pool of several languages",
    ),
}


class Value(NamedTuple):
    """A number as a table shows it.

    Args:
        text: the number.
        best: whether it is the best of those it is compared with.
        note: what stands below it: an interval, or the difference from the first system.
        bar: its length in percent where a bar shows it too.
    """

    text: str
    best: bool = False
    note: str = ""
    bar: float | None = None


class SettingRow(NamedTuple):
    """One setting of the headline table; `absent` says why it has no values, where it has none."""

    setting: Setting
    values: list[Value]
    cells: str
    queries: str
    absent: str


class BiasRow(NamedTuple):
    """One measure of language bias; `undefined` is the reason where it has no value."""

    label: str
    value: Value
    direction: str
    meaning: str
    undefined: str


class LanguageRow(NamedTuple):
    """A language with its values; `seen` is None where the training languages are not known."""

    language: Language
    seen: bool | None
    values: list[Value]


class MeanRow(NamedTuple):
    """The mean of a group of languages."""

    label: str
    values: list[Value]


class ColumnGroup(NamedTuple):
    """Columns under one heading."""

    name: str
    columns: list[str]


class LanguageTable(NamedTuple):
    """Values per language, then the means of seen and unseen languages where those are known."""

    groups: list[ColumnGroup]
    rows: list[LanguageRow]
    means: list[MeanRow]


RowValues: TypeAlias = Callable[[Column], list[Value]]


# Numbers as text


def score_text(value: float | None) -> str:
    """A score in [0, 1] with the paper's four digits; a dash where it is not defined (None or NaN)."""
    return _text(value, "{:.4f}")


def rank_text(value: float | None) -> str:
    """A number of ranks, with one digit."""
    return _text(value, "{:,.1f}")


def count_text(value: float | None) -> str:
    """A number of things, with thousands separated."""
    return _text(value, "{:,.0f}")


def percent_text(value: float | None) -> str:
    """A share in percent, with one digit and without the sign."""
    return _text(None if value is None else 100 * value, "{:.1f}")


def probability_text(value: float | None) -> str:
    """A p-value, with four digits as far as they go."""
    return "< 0.0001" if defined(value) and value < 0.0001 else score_text(value)


def interval_text(ends: Sequence[float] | None, text: NumberText) -> str:
    """`low – high`, and nothing where there is no interval."""
    return "" if ends is None else f"{text(ends[0])} – {text(ends[1])}"


def difference_text(value: float | None, digits: int) -> str:
    """A difference with its sign, zero being positive."""
    if not defined(value):
        return NOT_DEFINED
    rounded = round(value, digits) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{rounded:+,.{digits}f}".replace("-", "−")


def defined(value: float | None) -> TypeGuard[float]:
    """Whether there is a number."""
    return value is not None and not math.isnan(value)


def _text(value: float | None, pattern: str) -> str:
    return pattern.format(value) if defined(value) else NOT_DEFINED


# What was handed in


def check_metrics(metrics: Metrics, where: str) -> None:
    """Raise BenchmarkError if metrics are not the whole content of a metrics.json with languages."""
    required = ("benchmark", "languages", *SETTINGS, "language_bias", "pool", "queries_without_relevant", "notes")
    _require(metrics, (*required, "signature"), where)
    for key in SETTINGS:
        _require(metrics[key], (*MEASURES, "cells", "queries", "intervals"), f"{where}[{key!r}]")
    if not metrics["languages"]:
        raise BenchmarkError(f"{where}['languages']", "none", "one language or more", "Evaluate at least one language.")
    summaries = ("intervals", "undefined", "by_query_language", "language_share@10")
    _require(metrics["language_bias"], (*BIAS, *summaries), f"{where}['language_bias']")


def _require(mapping: Metrics, keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise BenchmarkError(
            where,
            f"keys {', '.join(mapping) or 'none'}",
            f"also {', '.join(missing)}",
            "Pass metrics.json as the evaluation wrote it.",
        )


# Headline


def setting_rows(metrics: Metrics) -> list[SettingRow]:
    """The three settings with all MEASURES and their intervals; one without cells says so."""
    return [_setting_row(setting, metrics[key]) for key, setting in SETTINGS.items()]


def _setting_row(setting: Setting, measured: Metrics) -> SettingRow:
    intervals = measured["intervals"]
    return SettingRow(
        setting,
        [Value(score_text(measured[m]), note=interval_text(intervals.get(m), score_text)) for m in MEASURES],
        cells=count_text(measured["cells"]),
        queries=count_text(measured["queries"]),
        absent="" if measured["cells"] else f"not defined: {setting.lacking}",
    )


# Language bias


class BiasMeasure(NamedTuple):
    """How to show and to read a measure of language bias; `sign` is -1 where lower is better, 0 where neither is."""

    label: str
    text: NumberText
    direction: str
    sign: int
    meaning: str


_LOWER, _HIGHER = "lower is better", "higher is better"


def _doublings(value: float | None) -> str:
    return _text(value, "{:.2f}")


BIAS = {
    "rank_distance": BiasMeasure(
        "Rank distance",
        rank_text,
        _LOWER,
        -1,
        "Ranks between the first and the last of a query’s relevant passages, one per language. Grows with the pool "
        "and with poor retrieval.",
    ),
    "rank_distance_normalised": BiasMeasure(
        "Rank distance / pool",
        score_text,
        _LOWER,
        -1,
        "The same as a share of the largest distance that the pool allows.",
    ),
    "rank_distance_log2": BiasMeasure(
        "Rank distance, log₂",
        _doublings,
        _LOWER,
        -1,
        "How often the depth of the first relevant passage doubles on the way to the last.",
    ),
    "max@R": BiasMeasure(
        "Max@R", rank_text, _LOWER, -1, "Depth at which every language’s relevant passage has been found, in ranks."
    ),
    "complete@20": BiasMeasure(
        "Complete@20",
        score_text,
        _HIGHER,
        1,
        "Share of queries with every language’s relevant passage in the first 20.",
    ),
    "complete@100": BiasMeasure("Complete@100", score_text, _HIGHER, 1, "The same for the first 100."),
    "lpr": BiasMeasure(
        "LPR",
        score_text,
        "0.5 is neutral",
        0,
        "Language preference: share of the other languages’ relevant passages ranked below that of the query’s own "
        "language.",
    ),
    "kendall_w": BiasMeasure(
        "Kendall’s W",
        score_text,
        _LOWER,
        -1,
        "How far questions agree on an order of candidate languages: 0 not at all, 1 entirely.",
    ),
    "friedman_p": BiasMeasure(
        "Friedman p",
        probability_text,
        "below 0.05: biased",
        0,
        "Probability of so much agreement if no candidate language were preferred.",
    ),
    "mrc": BiasMeasure(
        "MRC",
        score_text,
        _HIGHER,
        1,
        "Mean rank correlation of the rankings that one question gives in different query languages; 1 is no bias.",
    ),
    "peer": BiasMeasure(
        "PEER",
        score_text,
        _HIGHER,
        1,
        "p-value of the hypothesis that every language’s relevant passages are ranked alike; 1 is fair.",
    ),
}


def bias_rows(bias: Metrics) -> list[BiasRow]:
    """Every measure of language bias with its interval, direction and meaning, or the reason why it has no value."""
    return [
        BiasRow(
            measure.label,
            Value(measure.text(bias[key]), note=interval_text(bias["intervals"].get(key), measure.text)),
            measure.direction,
            measure.meaning,
            undefined="" if defined(bias[key]) else f"not defined: {bias['undefined'].get(key, 'no query defines it')}",
        )
        for key, measure in BIAS.items()
    ]


def bias_table(bias: Metrics, codes: Sequence[str]) -> LanguageTable:
    """Measures of language bias per query language; those without a value, and languages without one, left out.

    A last column, where languages share the first ten places, has the share of the query's own language.
    """
    columns: dict[str, tuple[NumberText, Mapping[str, float | None]]] = {
        BIAS[key].label: (BIAS[key].text, values)
        for key, values in bias["by_query_language"].items()
        if any(map(defined, values.values()))
    }
    shares = bias["language_share@10"]
    if shares:
        own = {code: share.get(code) for code, share in shares.items()}
        columns["Own language in first 10, %"] = (percent_text, own)
    rows = [
        LanguageRow(language(code), None, [Value(text(values.get(code))) for text, values in columns.values()])
        for code in codes
        if any(defined(values.get(code)) for _, values in columns.values())
    ]
    return LanguageTable([ColumnGroup(name, [name]) for name in columns], rows, [])


# Languages


def plain(scores: Column) -> list[Value]:
    """Scores that are not compared with each other."""
    return [Value(score_text(score)) for score in scores]


def barred(scores: Column) -> list[Value]:
    """Scores in [0, 1], each with a bar."""
    return [Value(score_text(score), bar=100 * score if defined(score) else 0.0) for score in scores]


def profile_table(
    cells: Sequence[Cell], codes: Sequence[str], seen_languages: Sequence[str] | None = None
) -> LanguageTable:
    """Per language its means in every setting that has cells: mAP beside a matrix, more measures where there is none.

    Where all pairs have one language in common, as bitext has English, that language's own row, the mean of all
    others, is left out, and the rows run from the highest mean mAP to the lowest.
    """
    profiles = {measure: language_profile(score_grid(cells, codes, measure)) for measure in MEASURES}
    used = [name for name, scores in profiles["mAP"].items() if np.isfinite(scores).any()]
    hub = hub_language(cells)
    matrix = is_matrix(cells)
    measures = ("mAP",) if matrix else MEASURES if len(used) == 1 else HEADING_MEASURES
    hub_name = language(hub).name if hub else None
    groups = [ColumnGroup(profile_name(name, hub_name), list(measures)) for name in used]
    columns = [profiles[measure][name] for name in used for measure in measures]
    shown = [i for i, code in enumerate(codes) if code != hub and any(defined(column[i]) for column in columns)]
    if hub:
        shown.sort(key=lambda i: -mean_of_defined(profiles["mAP"][name][i] for name in used))
    return language_table(
        [codes[i] for i in shown],
        groups,
        [[column[i] for i in shown] for column in columns],
        plain if matrix else barred,
        seen_languages,
    )


def language_table(
    codes: Sequence[str],
    groups: Sequence[ColumnGroup],
    columns: Sequence[Column],
    row_values: RowValues,
    seen_languages: Sequence[str] | None,
) -> LanguageTable:
    """A row per code from columns parallel to the codes, and the means of all, seen and unseen languages."""
    seen = None if seen_languages is None else checked_codes(seen_languages, "seen_languages")
    rows = [
        LanguageRow(language(code), None if seen is None else code in seen, row_values([c[i] for c in columns]))
        for i, code in enumerate(codes)
    ]
    means = [
        MeanRow(f"Mean of {label} ({len(group)})", row_values([mean_of_defined(c[i] for i in group) for c in columns]))
        for label, group in _seen_groups(codes, seen)
    ]
    return LanguageTable(list(groups), rows, means)


def _seen_groups(codes: Sequence[str], seen: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Name and row numbers of the groups with a language in them: all, and seen and unseen where known."""
    groups = {"all languages": list(range(len(codes)))}
    if seen is not None:
        groups["languages seen"] = [i for i, code in enumerate(codes) if code in seen]
        groups["languages unseen"] = [i for i, code in enumerate(codes) if code not in seen]
    return [(label, group) for label, group in groups.items() if group]
