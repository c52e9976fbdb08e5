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
DIFFERENCE_COLOURS = "PuOr"  # two hues that colour-blind readers tell apart, pale in the middle
MATRIX_LANGUAGES = 24  # as many numbers as stand side by side on a page
MATRIX_FILLED = 0.5  # share of the pairs with a cell below which a matrix is mostly holes
DOTS_PER_INCH = 150
CELL_INCHES = (0.62, 0.42)
LINE_INCHES = (3.4, 0.22)  # a language in one setting, where there is no matrix
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


def is_matrix(cells: Sequence[Cell]) -> bool:
    """Whether a matrix shows the language pairs well: some cross languages, few lack a cell, and it fits a page.

    Otherwise (monolingual cells only, pairs with one language, a hundred languages) a line per language does.
    """
    pairs = {(cell["query_language"], cell["candidate_language"]) for cell in cells}
    pairs = {pair for pair in pairs if pair[1] != ALL_LANGUAGES}
    queries, candidates = ({pair[side] for pair in pairs} for side in (0, 1))
    crossed = any(query != candidate for query, candidate in pairs)
    fits = max(len(queries), len(candidates)) <= MATRIX_LANGUAGES
    return crossed and fits and len(pairs) >= MATRIX_FILLED * len(queries) * len(candidates)


def matrix_sides(grid: Grid) -> tuple[list[int], list[int], bool]:
    """Rows and columns of a grid (L, L + 1) with a score in them, and whether the merged pool has one."""
    scored = np.isfinite(grid)
    rows, columns = scored.any(axis=1), scored[:, :-1].any(axis=0)
    return list(np.flatnonzero(rows)), list(np.flatnonzero(columns)), bool(scored[:, -1].any())


def language_profile(grid: Grid) -> dict[str, list[float]]:
    """Per language (L) the means of its cells in each setting, from a grid (L, L + 1); NaN where it has none.

    Cross-lingual are the means over the other languages, with the language as query and as candidate language.
    """
    pairs = grid[:, :-1]
    cross_lingual = np.where(np.eye(len(pairs), dtype=bool), np.nan, pairs)
    return {
        "Monolingual": list(np.diagonal(pairs)),
        "Cross-lingual, as query": [mean_of_defined(row) for row in cross_lingual],
        "Cross-lingual, as candidates": [mean_of_defined(column) for column in cross_lingual.T],
        "Multilingual": list(grid[:, -1]),
    }


def hub_language(cells: Sequence[Cell]) -> str | None:
    """The one language that is in every pair, as English is in bitext; None where cells are not of that kind."""
    pairs = [{cell["query_language"], cell["candidate_language"]} for cell in cells]
    in_all = set.intersection(*pairs) if pairs else set()
    alone = len(in_all) == 1 and len(set.union(*pairs)) > 2 and all(len(pair) == 2 for pair in pairs)
    return str(in_all.pop()) if alone else None


def profile_name(name: str, hub: str | None) -> str:
    """A column of language_profile as a heading; where all pairs share the language `hub`, what that leaves of it."""
    if hub is None:
        return name
    return f"Queries in {hub}" if name == "Cross-lingual, as candidates" else f"Candidates in {hub}"


def mean_of_defined(scores: Iterable[float | None]) -> float:
    """Mean of the scores that are defined; NaN if none is."""
    defined = [score for score in scores if score is not None and not np.isnan(score)]
    return sum(defined) / len(defined) if defined else float("nan")


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


def background(position: float, colours: str = COLOUR_MAP) -> str:
    """Colour, as `#rrggbb`, of a place on a scale from 0 to 1."""
    return str(to_hex(colormaps[colours](position)))


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
    """Figure of the cells of one metric: a matrix of language pairs, or a bar per language where is_matrix says no.

    Raises BenchmarkError as score_grid does, and for an empty list of languages.
    """
    if not languages:
        raise BenchmarkError("languages", "none", "one language or more", "Pass the benchmark's languages.")
    grid = score_grid(cells, languages, metric)
    figure = _matrix(grid, languages) if is_matrix(cells) else _lines(grid, languages, hub_language(cells))
    figure.suptitle(f"{title}: {metric}", wrap=True, parse_math=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    size = np.maximum((width, height), SMALLEST_INCHES)
    figure = Figure(figsize=tuple(size), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _matrix(grid: Grid, languages: Sequence[str]) -> Figure:
    """Every value written in its cell, the merged pool apart; colours from grid_scales."""
    scales = grid_scales([grid])
    rows, columns, merged = matrix_sides(grid)
    counts = [len(columns), 1] if merged else [len(columns)]
    figure = _figure(*np.add(MARGIN_INCHES, np.multiply(CELL_INCHES, (sum(counts), len(rows) + 1))))
    pairs, *pool = figure.subplots(1, len(counts), sharey=True, width_ratios=counts, squeeze=False)[0]
    _draw(pairs, grid[np.ix_(rows, columns)], scales.pairs, [languages[i] for i in columns])
    for axes in pool:
        _draw(axes, grid[rows, -1:], scales.merged, [ALL_LANGUAGES])
        axes.set_xlabel("merged\npool")
    pairs.set_yticks(np.arange(len(rows)) + 0.5, [languages[i] for i in rows])
    pairs.invert_yaxis()  # shared with the merged pool: first language on top of both
    pairs.set_ylabel("query language")
    pairs.set_xlabel("candidate language")
    figure.supxlabel(_scale_note(scales, merged), fontsize="small", color="dimgray")
    return figure


def _lines(grid: Grid, languages: Sequence[str], hub: str | None) -> Figure:
    """A bar per language in each setting that has cells, from 0 to 1; a hub, the mean of all others, is left out."""
    profile = {name: scores for name, scores in language_profile(grid).items() if np.isfinite(scores).any()}
    shown = [i for i, code in enumerate(languages) if code != hub]
    columns = max(len(profile), 1)
    figure = _figure(*np.add(MARGIN_INCHES, np.multiply(LINE_INCHES, (columns, len(shown)))))
    all_axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axes, (name, scores) in zip(all_axes, profile.items(), strict=False):
        values = np.array([scores[i] for i in shown])
        axes.barh(np.arange(len(shown)), np.nan_to_num(values), color=background(0.6))
        for row, value in enumerate(values):
            axes.text(np.nan_to_num(value) + 0.01, row, short_score(value), va="center", fontsize=8)
        axes.set_title(profile_name(name, hub), fontsize="medium")
        axes.set_xlim(0, 1.12)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(np.arange(len(shown)), [languages[i] for i in shown])
    all_axes[0].set_ylim(len(shown) - 0.4, -0.6)
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


def _scale_note(scales: GridScales, merged_pool: bool) -> str:
    pairs, merged = (f"{short_score(scale.low)} to {short_score(scale.high)}" for scale in scales)
    return f"colour: pairs {pairs}" + (f"; merged pool, on a scale of its own, {merged}" if merged_pool else "")


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
