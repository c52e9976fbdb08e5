"""The grid of language pairs as numbers, colours and a figure.

Rows are query languages, columns candidate languages; the merged pool is a last column with a colour scale of
its own. One scale for both would flatten the pairs: with eleven relevant passages R@1 cannot exceed 1/11 there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.matrix import ALL_LANGUAGES

Cell: TypeAlias = Mapping[str, object]
Grid: TypeAlias = npt.NDArray[np.float64]

COLOUR_MAP = "YlGnBu"  # one direction of lightness: safe for colour-blind readers and in grey print
DOTS_PER_INCH = 150
CELL_INCHES = (0.62, 0.42)
MARGIN_INCHES = (1.8, 1.8)
SMALLEST_INCHES = (6.4, 2.6)  # room for title and scale note where there are few languages


class Scale(NamedTuple):
    """Lowest and highest value of a colour scale."""

    low: float
    high: float

    def position(self, value: float) -> float:
        """Place of a value from 0 (low) to 1 (high); 0 where the scale has a single value."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0


class GridScales(NamedTuple):
    """Colour scale of the language pairs, and that of the merged pool."""

    pairs: Scale
    merged: Scale


def score_grid(cells: Sequence[Cell], languages: Sequence[str], metric: str = "mAP") -> Grid:
    """Cells as a float64 array (L, L + 1): query language x candidate language, the merged pool last.

    A pair without a cell, or with the value None, is NaN.
    Raises BenchmarkError for a cell of an unknown language, a cell given twice, or a value that is no number.
    """
    row_of = {code: row for row, code in enumerate(languages)}
    column_of = {code: column for column, code in enumerate((*languages, ALL_LANGUAGES))}
    grid = np.full((len(languages), len(languages) + 1), np.nan)
    filled: set[tuple[int, int]] = set()
    for index, cell in enumerate(cells):
        where = f"cells[{index}]"
        row = _place(cell, "query_language", row_of, where)
        column = _place(cell, "candidate_language", column_of, where)
        if (row, column) in filled:
            pair = f"{cell['query_language']}-{cell['candidate_language']} a second time"
            raise BenchmarkError(where, pair, "every language pair once", "Remove the repeated cell.")
        filled.add((row, column))
        grid[row, column] = _number(cell, metric, where)
    return grid


def _place(cell: Cell, key: str, place_of: Mapping[str, int], where: str) -> int:
    code = cell.get(key)
    if not isinstance(code, str) or code not in place_of:
        expected = f"one of {', '.join(place_of)}"
        raise BenchmarkError(f"{where}[{key!r}]", repr(code), expected, "Pass the languages of the cells.")
    return place_of[code]


def _number(cell: Cell, metric: str, where: str) -> float:
    if metric not in cell:
        keys = ", ".join(map(str, cell))
        raise BenchmarkError(where, f"keys {keys}", f"the key {metric!r}", "Name a metric of the cells.")
    value = cell[metric]
    if value is None:
        return float("nan")
    if not isinstance(value, (int, float)):
        raise BenchmarkError(f"{where}[{metric!r}]", repr(value), "a number or None", "Pass scores, not their text.")
    return float(value)


def grid_scales(grids: Iterable[Grid]) -> GridScales:
    """Scales that cover every grid, so that systems drawn side by side share their colours."""
    stacked = np.concatenate(list(grids))
    return GridScales(_scale(stacked[:, :-1]), _scale(stacked[:, -1]))


def _scale(scores: Grid) -> Scale:
    finite = scores[np.isfinite(scores)]
    return Scale(float(finite.min()), float(finite.max())) if finite.size else Scale(0.0, 1.0)


def short_score(value: float) -> str:
    """A score in a grid: `.792`, `1.000`, and an empty text for NaN."""
    if np.isnan(value):
        return ""
    text = f"{value:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def background(position: float) -> str:
    """Colour, as `#rrggbb`, of a place on a scale from 0 to 1."""
    return str(to_hex(colormaps[COLOUR_MAP](position)))


def ink(colour: str) -> str:
    """Black or white, whichever has the higher WCAG 2 contrast on `#rrggbb`; never less than 4.5 to 1."""
    luminance = relative_luminance(colour)
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def relative_luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` from 0 (black) to 1 (white); WCAG 2.1, section 'Relative luminance'."""
    encoded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def heatmap(
    cells: Sequence[Cell],
    languages: Sequence[str],
    metric: str = "mAP",
    title: str = "Language pairs",
) -> Figure:
    """Figure of the grid of one metric, every value written in its cell; colours from grid_scales.

    Raises BenchmarkError as score_grid does, and for an empty list of languages.
    """
    if not languages:
        raise BenchmarkError("languages", "none", "one language or more", "Pass the benchmark's languages.")
    grid = score_grid(cells, languages, metric)
    scales = grid_scales([grid])
    count = len(languages)
    size = np.maximum(np.add(MARGIN_INCHES, np.multiply(CELL_INCHES, count + 1)), SMALLEST_INCHES)
    figure = Figure(figsize=tuple(size), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    pairs, merged = figure.subplots(1, 2, sharey=True, width_ratios=[count, 1])
    _draw(pairs, grid[:, :-1], scales.pairs, languages)
    _draw(merged, grid[:, -1:], scales.merged, [ALL_LANGUAGES])
    pairs.set_yticks(np.arange(count) + 0.5, languages)
    pairs.invert_yaxis()  # shared with the merged pool: first language on top of both
    pairs.set_ylabel("query language")
    pairs.set_xlabel("candidate language")
    merged.set_xlabel("merged\npool")
    figure.suptitle(f"{title}: {metric}", wrap=True, parse_math=False)
    figure.supxlabel(_scale_note(scales), fontsize="small", color="dimgray")
    return figure


def _draw(axes: Axes, scores: Grid, scale: Scale, columns: Sequence[str]) -> None:
    axes.pcolormesh(
        np.ma.masked_invalid(scores),
        cmap=COLOUR_MAP,
        vmin=scale.low,
        vmax=scale.high,
        edgecolors="white",
        linewidth=1.0,
    )
    for (row, column), value in np.ndenumerate(scores):
        if np.isfinite(value):
            colour = ink(background(scale.position(float(value))))
            axes.text(column + 0.5, row + 0.5, short_score(value), color=colour, ha="center", va="center", fontsize=9)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#eeeeee")


def _scale_note(scales: GridScales) -> str:
    pairs, merged = (f"{short_score(scale.low)} to {short_score(scale.high)}" for scale in scales)
    return f"colour: pairs {pairs}; merged pool, on a scale of its own, {merged}"


def save_heatmap(
    cells: Sequence[Cell],
    languages: Sequence[str],
    path: Path,
    metric: str = "mAP",
    title: str = "Language pairs",
) -> Path:
    """Write the heatmap as a PNG at `path`, whose folder must exist, and return the path."""
    heatmap(cells, languages, metric, title).savefig(path, format="png", dpi=DOTS_PER_INCH)
    return path
