"""Self-contained HTML reports: one system on one benchmark, or several systems side by side.

Everything a page shows is made into text and colour here; the templates only lay it out. A page has no script,
and no font or image to load, so it opens offline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import (
    Cell,
    Grid,
    GridScales,
    Scale,
    background,
    grid_scales,
    ink,
    score_grid,
    short_score,
)
from hbt_ray.languages import Language, checked_codes, language

REPORT_FILE = "report.html"
NOT_DEFINED = "–"
HEATMAP_MEASURES = ("mAP", "R@1")
LEGEND_STOPS = 5  # colours in the gradient that explains a scale

SETTINGS = {
    "monolingual": ("Monolingual", "query and candidates in the same language"),
    "cross_lingual": ("Cross-lingual", "query in one language, candidates in another"),
    "multilingual": ("Multilingual", "query in one language, candidates of all languages in one pool"),
}


@dataclass(frozen=True, slots=True)
class System:
    """One system of a comparison.

    Args:
        name: what the report calls it.
        metrics: content of its metrics.json.
        cells: its cells, as write_report takes them.
        details: what tells it from the others (alpha, steps, validation loss, model folder), as text.
    """

    name: str
    metrics: Mapping[str, Any]
    cells: Sequence[Cell]
    details: Mapping[str, str] = field(default_factory=dict)


class Value(NamedTuple):
    """A number as a table shows it: its text, whether it is the best, its difference from the first system."""

    text: str
    best: bool = False
    difference: str = ""


class SettingRow(NamedTuple):
    """One setting of the headline table; rank distance belongs to the multilingual ranking alone."""

    name: str
    meaning: str
    scores: list[str]
    rank_distance: str
    cells: str
    queries: str


class LanguageRow(NamedTuple):
    """A language with its values; `seen` is None where the training languages are not known."""

    language: Language
    seen: bool | None
    values: list[Value]


class MeanRow(NamedTuple):
    """The mean of a group of languages."""

    label: str
    values: list[Value]


class LanguageTable(NamedTuple):
    """Values per language, then the means of seen and unseen languages where those are known."""

    headers: list[str]
    rows: list[LanguageRow]
    means: list[MeanRow]


class HeatCell(NamedTuple):
    """A cell of a heatmap; background and ink are `#rrggbb`, empty where there is no score."""

    text: str
    background: str = ""
    ink: str = ""


class HeatRow(NamedTuple):
    """A query language: a cell per candidate language, then the merged pool."""

    language: Language
    cells: list[HeatCell]


class Legend(NamedTuple):
    """The ends of a colour scale, and its colours from low to high."""

    low: str
    high: str
    colours: list[str]


class Heatmap(NamedTuple):
    """A grid of scores as coloured rows, with the legends of the pairs and of the merged pool."""

    caption: str
    rows: list[HeatRow]
    pairs: Legend
    merged: Legend


class Bar(NamedTuple):
    """A language, its value, and the bar's length in percent of the longest."""

    language: Language
    text: str
    percent: float


Column: TypeAlias = Sequence[float | None]
RowValues: TypeAlias = Callable[[Column], list[Value]]
NumberText: TypeAlias = Callable[[float | None], str]


def write_report(
    out: Path,
    metrics: Mapping[str, Any],
    cells: Sequence[Cell],
    *,
    title: str,
    notes: Sequence[str] = (),
    seen_languages: Sequence[str] | None = None,
) -> Path:
    """Write `report.html`, the report of one system, into the folder `out` and return its path.

    Args:
        out: folder, made if it does not exist.
        metrics: content of metrics.json; None stands for a value that is not defined.
        cells: per cell query_language, candidate_language ("all" is the merged pool), queries, mAP, R@1, R@10.
        title: heading of the page.
        notes: what a reader must know to judge the numbers, a sentence each.
        seen_languages: languages of the training data; None leaves seen and unseen out.

    Raises:
        BenchmarkError: metrics lack a key, or cells do not fit the languages.
        ConfigError: a language code that CLDR does not know.
    """
    _check_metrics(metrics, "metrics")
    codes = metrics["languages"]
    grids = {measure: score_grid(cells, codes, measure) for measure in HEATMAP_MEASURES}
    bias = metrics["language_bias"]
    return _write(
        out,
        "report.html",
        title=title,
        notes=notes,
        metrics=metrics,
        measures=MEASURES,
        settings=[_setting_row(metrics, key) for key in SETTINGS],
        heatmaps=[_heatmap(measure, grid, codes, grid_scales([grid])) for measure, grid in grids.items()],
        candidates=count_text(sum(metrics["pool"][code] for code in codes)),
        pool=_bars(metrics["pool"], codes, count_text),
        rank_distance=_bars(bias["rank_distance_by_language"], codes, rank_text),
        table=_language_table(codes, _profile(grids["mAP"]), _plain, seen_languages),
        signatures={title: metrics["signature"]},
    )


def write_comparison(
    out: Path,
    systems: Sequence[System],
    *,
    title: str,
    notes: Sequence[str] = (),
    seen_languages: Sequence[str] | None = None,
) -> Path:
    """Write `report.html`, comparing systems on one benchmark, into the folder `out` and return its path.

    Systems stay in the order given and differences are taken from the first. Arguments and errors are those of
    write_report; BenchmarkError also for no system, a name given twice, or systems evaluated on different data.
    """
    _check_systems(systems)
    codes = systems[0].metrics["languages"]
    grids = {system.name: score_grid(system.cells, codes, "mAP") for system in systems}
    scales = grid_scales(grids.values())
    multilingual = {name: list(grid[:, -1]) for name, grid in grids.items()}
    return _write(
        out,
        "comparison.html",
        title=title,
        notes=notes,
        metrics=systems[0].metrics,
        measures=MEASURES,
        settings=SETTINGS.values(),
        systems=systems,
        headline=_headline([system.metrics for system in systems]),
        details=list(dict.fromkeys(key for system in systems for key in system.details)),
        heatmaps=[_heatmap(name, grid, codes, scales) for name, grid in grids.items()],
        table=_language_table(codes, multilingual, compared_scores, seen_languages),
        signatures={system.name: system.metrics["signature"] for system in systems},
    )


def _write(out: Path, template: str, **content: object) -> Path:
    environment = Environment(
        loader=PackageLoader("hbt_ray.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(not_defined=NOT_DEFINED, **content)
    out.mkdir(parents=True, exist_ok=True)
    path = out / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


# What was handed in


def _check_metrics(metrics: Mapping[str, Any], where: str) -> None:
    _require(metrics, ("benchmark", "languages", *SETTINGS, "language_bias", "pool", "signature"), where)
    for key in SETTINGS:
        _require(metrics[key], (*MEASURES, "cells", "queries"), f"{where}[{key!r}]")
    codes = metrics["languages"]
    if not codes:
        raise BenchmarkError(f"{where}['languages']", "none", "one language or more", "Evaluate at least one language.")
    bias = metrics["language_bias"]
    _require(bias, ("rank_distance", "rank_distance_by_language", "queries"), f"{where}['language_bias']")
    _require(metrics["pool"], codes, f"{where}['pool']")
    _require(bias["rank_distance_by_language"], codes, f"{where}['language_bias']['rank_distance_by_language']")


def _require(mapping: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise BenchmarkError(
            where,
            f"keys {', '.join(mapping) or 'none'}",
            f"also {', '.join(missing)}",
            "Pass metrics.json as the evaluation wrote it.",
        )


def _check_systems(systems: Sequence[System]) -> None:
    names = [system.name for system in systems]
    if not names:
        raise BenchmarkError("systems", "none", "one system or more", "Name the systems to compare.")
    for index, system in enumerate(systems):
        where = f"systems[{index}] ({system.name})"
        if system.name in names[:index]:
            raise BenchmarkError(where, "a name used before", "a name of its own", "Rename one of the two.")
        _check_metrics(system.metrics, f"{where} metrics")
        received, expected = _evaluation_data(system.metrics), _evaluation_data(systems[0].metrics)
        if received != expected:
            raise BenchmarkError(
                where, received, f"{expected}, as {names[0]} has", "Compare systems evaluated on the same data."
            )


def _evaluation_data(metrics: Mapping[str, Any]) -> str:
    """What two systems must share for their numbers to be comparable: benchmark, data hash, languages, pool."""
    data = [part for part in metrics["signature"].split("|") if part.startswith("data:")]
    pool = [f"{code} {metrics['pool'][code]}" for code in metrics["languages"]]
    return f"{metrics['benchmark']} {' '.join(data)} with candidates {', '.join(pool)}"


# Numbers as text


def score_text(value: float | None) -> str:
    """A score in [0, 1] with the paper's four digits; a dash where it is not defined (None or NaN)."""
    return _text(value, "{:.4f}")


def rank_text(value: float | None) -> str:
    """A rank distance, in ranks, with one digit."""
    return _text(value, "{:,.1f}")


def count_text(value: float | None) -> str:
    """A number of things, with thousands separated."""
    return _text(value, "{:,.0f}")


def _text(value: float | None, pattern: str) -> str:
    return pattern.format(value) if _defined(value) else NOT_DEFINED


def _defined(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def _plain(scores: Column) -> list[Value]:
    return [Value(score_text(score)) for score in scores]


def compared_scores(scores: Column) -> list[Value]:
    """Scores of several systems: the highest is best."""
    return _compared(scores, score_text, max, digits=4)


def compared_ranks(distances: Column) -> list[Value]:
    """Rank distances of several systems: the lowest is best."""
    return _compared(distances, rank_text, min, digits=1)


def _compared(
    values: Column,
    text: NumberText,
    best_of: Callable[[Iterable[float]], float],
    digits: int,
) -> list[Value]:
    defined = [value for value in values if _defined(value)]
    best = text(best_of(defined)) if defined else None  # as text: values that print alike are best together
    differences = ["", *(_difference(value, values[0], digits) for value in values[1:])]
    return [
        Value(text(value), text(value) == best, difference)
        for value, difference in zip(values, differences, strict=True)
    ]


def _difference(value: float | None, first: float | None, digits: int) -> str:
    if not _defined(value) or not _defined(first):
        return NOT_DEFINED
    rounded = round(value - first, digits) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{rounded:+,.{digits}f}".replace("-", "−")


# Tables


def _setting_row(metrics: Mapping[str, Any], key: str) -> SettingRow:
    name, meaning = SETTINGS[key]
    setting = metrics[key]
    return SettingRow(
        name,
        meaning,
        scores=[score_text(setting[measure]) for measure in MEASURES],
        rank_distance=rank_text(metrics["language_bias"]["rank_distance"]) if key == "multilingual" else "",
        cells=count_text(setting["cells"]),
        queries=count_text(setting["queries"]),
    )


def _headline(metrics: Sequence[Mapping[str, Any]]) -> list[list[Value]]:
    """A row per system: each measure of each setting, then rank distance."""
    columns = [
        compared_scores([system[key][measure] for system in metrics]) for key in SETTINGS for measure in MEASURES
    ]
    columns.append(compared_ranks([system["language_bias"]["rank_distance"] for system in metrics]))
    return [list(row) for row in zip(*columns, strict=True)]


def _profile(grid: Grid) -> dict[str, list[float]]:
    """Columns of the per-language table from the mAP grid (L, L + 1)."""
    pairs = grid[:, :-1]
    cross_lingual = np.where(np.eye(len(pairs), dtype=bool), np.nan, pairs)
    return {
        "Monolingual": list(np.diagonal(pairs)),
        "Cross-lingual, as query": [_mean(row) for row in cross_lingual],
        "Cross-lingual, as candidates": [_mean(column) for column in cross_lingual.T],
        "Multilingual": list(grid[:, -1]),
    }


def _mean(scores: Iterable[float | None]) -> float:
    """Mean of the scores that are defined; NaN if none is."""
    defined = [score for score in scores if _defined(score)]
    return sum(defined) / len(defined) if defined else math.nan


def _language_table(
    codes: Sequence[str],
    columns: Mapping[str, Column],
    row_values: RowValues,
    seen_languages: Sequence[str] | None,
) -> LanguageTable:
    seen = None if seen_languages is None else checked_codes(seen_languages, "seen_languages")
    rows = [
        LanguageRow(
            language(code), None if seen is None else code in seen, row_values([c[i] for c in columns.values()])
        )
        for i, code in enumerate(codes)
    ]
    means = []
    for label, group in _groups(codes, seen):
        values = [_mean(column[i] for i in group) for column in columns.values()]
        means.append(MeanRow(f"Mean of {label} ({len(group)})", row_values(values)))
    return LanguageTable(list(columns), rows, means)


def _groups(codes: Sequence[str], seen: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Name and row numbers of the groups with a language in them: all, and seen and unseen where known."""
    groups = {"all languages": list(range(len(codes)))}
    if seen is not None:
        groups["languages seen"] = [i for i, code in enumerate(codes) if code in seen]
        groups["languages unseen"] = [i for i, code in enumerate(codes) if code not in seen]
    return [(label, group) for label, group in groups.items() if group]


def _bars(values: Mapping[str, float | None], codes: Sequence[str], text: NumberText) -> list[Bar]:
    longest = max((value or 0.0 for value in values.values()), default=0.0)
    return [
        Bar(
            language(code),
            text(values[code]),
            percent=100 * (values[code] or 0.0) / longest if longest else 0.0,
        )
        for code in codes
    ]


# Heatmaps


def _heatmap(caption: str, grid: Grid, codes: Sequence[str], scales: GridScales) -> Heatmap:
    row_scales = [*[scales.pairs] * len(codes), scales.merged]
    rows = [
        HeatRow(
            language(code),
            [_heat_cell(float(v), scale) for v, scale in zip(scores, row_scales, strict=True)],
        )
        for code, scores in zip(codes, grid, strict=True)
    ]
    return Heatmap(caption, rows, _legend(scales.pairs), _legend(scales.merged))


def _heat_cell(value: float, scale: Scale) -> HeatCell:
    if math.isnan(value):
        return HeatCell(NOT_DEFINED)
    colour = background(scale.position(value))
    return HeatCell(short_score(value), colour, ink(colour))


def _legend(scale: Scale) -> Legend:
    colours = [background(float(position)) for position in np.linspace(0, 1, LEGEND_STOPS)]
    return Legend(short_score(scale.low), short_score(scale.high), colours)
