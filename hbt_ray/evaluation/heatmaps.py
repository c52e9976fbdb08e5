"""Grids of numbers as coloured tables of an HTML page: scores, differences, shares of languages.

Every cell carries its number as text, so that colour is never the only way to read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from hbt_ray.evaluation.plots import (
    COLOUR_MAP,
    DIFFERENCE_COLOURS,
    Grid,
    GridScales,
    Scale,
    background,
    ink,
    matrix_sides,
    short_score,
)
from hbt_ray.evaluation.tables import NOT_DEFINED, percent_text
from hbt_ray.languages import language

LEGEND_STOPS = 5  # colours in the gradient that explains a scale


class HeatLabel(NamedTuple):
    """Heading of a row or column, and what it stands for."""

    text: str
    title: str


class HeatCell(NamedTuple):
    """A cell of a heatmap; background and ink are `#rrggbb`, empty where there is no number."""

    text: str
    background: str = ""
    ink: str = ""
    marked: bool = False


class HeatRow(NamedTuple):
    """A row; `apart` sets it off from those above."""

    label: HeatLabel
    cells: list[HeatCell]
    apart: bool = False


class Legend(NamedTuple):
    """What a colour scale is for, its ends, and its colours from low to high."""

    label: str
    low: str
    high: str
    colours: list[str]


class Heatmap(NamedTuple):
    """A coloured table with the legends of its scales; `apart` sets the last column off."""

    caption: str
    columns: list[HeatLabel]
    rows: list[HeatRow]
    legends: list[Legend]
    apart: bool

    @property
    def longest(self) -> int:
        """Characters of the longest number, for which every column needs room."""
        return max((len(cell.text) + cell.marked for row in self.rows for cell in row.cells), default=1)


MERGED_POOL = HeatLabel("all", "merged pool")
NumberText: TypeAlias = Callable[[float], str]


def score_heatmap(caption: str, grid: Grid, codes: Sequence[str], scales: GridScales) -> Heatmap:
    """Scores of language pairs and of the merged pool, from a grid (L, L + 1); empty rows and columns left out."""
    return _pairs_heatmap(caption, grid, codes, scales, short_score, COLOUR_MAP, np.zeros(grid.shape, dtype=bool))


def difference_heatmap(caption: str, grid: Grid, codes: Sequence[str], marked: np.ndarray) -> Heatmap:
    """Differences of two systems, from a grid (L, L + 1); zero is the middle of both scales, `marked` bool alike."""
    scales = GridScales(_around_zero(grid[:, :-1]), _around_zero(grid[:, -1]))
    return _pairs_heatmap(caption, grid, codes, scales, short_difference, DIFFERENCE_COLOURS, marked)


def share_heatmap(shares: Mapping[str, Mapping[str, float]], pool: Mapping[str, int]) -> Heatmap:
    """Percent of the first ten places by query and candidate language, above the share that each has of the pool."""
    candidates = list(dict.fromkeys(code for share in shares.values() for code in share))
    total = sum(pool[code] for code in candidates)
    of_pool = {code: pool[code] / total for code in candidates}
    scale = Scale(0.0, max(max(share.values()) for share in (*shares.values(), of_pool)))

    def row(label: HeatLabel, share: Mapping[str, float], apart: bool = False) -> HeatRow:
        cells = [_cell(share.get(code, math.nan), scale, percent_text, COLOUR_MAP) for code in candidates]
        return HeatRow(label, cells, apart)

    rows = [row(_label(code), share) for code, share in shares.items()]
    rows.append(row(HeatLabel("pool", "share of the merged pool"), of_pool, apart=True))
    legend = _legend("percent", scale, percent_text, COLOUR_MAP)
    return Heatmap("", [_label(code) for code in candidates], rows, [legend], apart=False)


def short_difference(value: float) -> str:
    """A difference in a grid: `+.012`, `−.120`, and an empty text for NaN."""
    if math.isnan(value):
        return ""
    size = short_score(abs(value))
    return f"+{size}" if value >= 0 or size == ".000" else f"−{size}"


def _pairs_heatmap(
    caption: str,
    grid: Grid,
    codes: Sequence[str],
    scales: GridScales,
    text: NumberText,
    colours: str,
    marked: np.ndarray,
) -> Heatmap:
    rows, columns, merged = matrix_sides(grid)
    places = [*columns, len(codes)] if merged else columns
    labels = [_label(codes[column]) for column in columns]
    legends = [_legend("language pairs", scales.pairs, text, colours)]
    if merged:
        labels.append(MERGED_POOL)
        legends.append(_legend("merged pool “all”", scales.merged, text, colours))

    def cell(row: int, column: int) -> HeatCell:
        scale = scales.merged if column == len(codes) else scales.pairs
        return _cell(float(grid[row, column]), scale, text, colours, bool(marked[row, column]))

    heat_rows = [HeatRow(_label(codes[row]), [cell(row, column) for column in places]) for row in rows]
    return Heatmap(caption, labels, heat_rows, legends, apart=merged)


def _label(code: str) -> HeatLabel:
    return HeatLabel(code, language(code).name)


def _cell(value: float, scale: Scale, text: NumberText, colours: str, marked: bool = False) -> HeatCell:
    if math.isnan(value):
        return HeatCell(NOT_DEFINED)
    colour = background(scale.position(value), colours)
    return HeatCell(text(value), colour, ink(colour), marked)


def _around_zero(values: Grid) -> Scale:
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    return Scale(-largest, largest)


def _legend(label: str, scale: Scale, text: NumberText, colours: str) -> Legend:
    stops = [background(float(position), colours) for position in np.linspace(0, 1, LEGEND_STOPS)]
    return Legend(label, text(scale.low), text(scale.high), stops)
