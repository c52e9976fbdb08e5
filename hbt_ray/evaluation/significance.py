"""Is a difference between two systems more than chance? Paired tests and intervals over clusters of queries.

The translations of one question are not independent, so the unit that is resampled is the question: a cluster.

Shapes: n rows (a query in a cell), C clusters, M measures, L cells, K settings, R resamples. The statistic of a
setting is the macro-average over its cells of the mean over a cell's queries. Rows where a measure is NaN are left
out for that measure; a cell without a row is left out of the macro-average.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Table: TypeAlias = Any  # [C, columns]: a dense array, or a sparse one where few cells share a cluster

Setting = TypeVar("Setting", bound=Hashable)

LEVEL = 0.95
_DENSE = 0.05  # share of filled entries above which the dense product is the faster one
_CHUNK = 1 << 22  # float64 entries of one block of resamples, 32 MiB


class Difference(NamedTuple):
    """One paired comparison: a system against a baseline in one setting.

    Args:
        difference: system - baseline, in the unit of the measure.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p_value: two-sided p of the randomisation test, not corrected.
        effect_size: mean of the clusters' contributions to the difference, in their standard deviations (Cohen's
            d_z); None where they do not vary.
        baseline: the baseline's value.
        system: the system's value.
        clusters: number of clusters with a row in the setting.
    """

    difference: float
    low: float
    high: float
    p_value: float
    effect_size: float | None
    baseline: float
    system: float
    clusters: int


def interval(
    values: Mapping[str, FloatArray],
    cluster: IntArray,
    cell: IntArray,
    settings: Mapping[Setting, Sequence[int]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[Setting, dict[str, tuple[float, float]]]:
    """95 % intervals of one system's values: percentile bootstrap over clusters (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: measure -> float64 [n], NaN where undefined.
        cluster: int64 [n], the row's cluster; any numbers from 0.
        cell: int64 [n], the row's cell, from 0.
        settings: setting -> its cells, each once.
        resamples: R.
        seed: the same seed gives the same intervals.

    Returns:
        setting -> measure -> (low, high). A measure without a row in a setting is absent there.
    """
    members = _members(settings, cell)
    result: dict[Setting, dict[str, tuple[float, float]]] = {setting: {} for setting in settings}
    for totals in _totals(values, cluster, cell):
        kept, names = _defined_settings(totals, members, list(settings))
        for measure, ends in zip(totals.measures, _interval(totals, kept, resamples, seed), strict=True):
            for setting, (low, high) in zip(names, ends.tolist(), strict=True):
                result[setting][measure] = low, high
    return result


def paired(
    baseline: Mapping[str, FloatArray],
    system: Mapping[str, FloatArray],
    cluster: IntArray,
    cell: IntArray,
    settings: Mapping[Setting, Sequence[int]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[Setting, dict[str, Difference]]:
    """Compare two systems over the same rows: randomisation test, interval and effect size of the difference.

    The test flips the sign of whole clusters' differences (Fisher's randomisation; Smucker, Allan & Carterette, CIKM
    2007). Where all 2^C sign vectors are no more than the resamples, they are enumerated and p is exact.

    Args:
        baseline: measure -> float64 [n], NaN where undefined.
        system: the same measures of the other system; row i is the same query and cell. A row undefined in one of
            the two is left out.
        cluster: int64 [n], the row's cluster; any numbers from 0.
        cell: int64 [n], the row's cell, from 0.
        settings: setting -> its cells, each once.
        resamples: R, of the test and of the interval.
        seed: the same seed gives the same numbers.

    Returns:
        setting -> measure -> Difference. A measure without a row in a setting is absent there.
    """
    members = _members(settings, cell)
    differences = {measure: system[measure] - baseline[measure] for measure in baseline}
    result: dict[Setting, dict[str, Difference]] = {setting: {} for setting in settings}
    for totals in _totals(differences, cluster, cell):
        kept, names = _defined_settings(totals, members, list(settings))
        share = _cell_shares(totals, kept)
        differing, baselines, systems = (_macro(values, totals, share) for values in (differences, baseline, system))
        ends = _interval(totals, kept, resamples, seed)
        p_values = _randomisation(totals, share, resamples, seed)
        clusters = np.asarray(totals.counts @ kept > 0)
        effects = _effect_sizes(totals, share, clusters)
        for row, measure in enumerate(totals.measures):
            for column, setting in enumerate(names):
                at = row, column
                effect = float(effects[at])
                result[setting][measure] = Difference(
                    difference=float(differing[at]),
                    low=float(ends[at][0]),
                    high=float(ends[at][1]),
                    p_value=float(p_values[at]),
                    effect_size=effect if np.isfinite(effect) else None,
                    baseline=float(baselines[at]),
                    system=float(systems[at]),
                    clusters=int(clusters[:, column].sum()),
                )
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family, in the order given (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1; none may fall below a smaller one's, nor exceed 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


class _Totals(NamedTuple):
    """Totals per cluster of the measures that are defined in the same rows; L counts the cells of these rows only.

    Args:
        measures: their names.
        defined: bool [n], the rows.
        cells: int64 [L], the number of each cell.
        column: int64 [rows that are defined], index into `cells`.
        sums: float64 [C, M * L], a cluster's sum of a measure in a cell; the cells of one measure lie together.
        counts: float64 [C, L], a cluster's rows in a cell.
    """

    measures: tuple[str, ...]
    defined: NDArray[np.bool_]
    cells: IntArray
    column: IntArray
    sums: Table
    counts: Table


def _totals(values: Mapping[str, FloatArray], cluster: IntArray, cell: IntArray) -> Iterator[_Totals]:
    """Totals of all measures, those defined in the same rows together."""
    together: dict[bytes, list[str]] = {}
    for measure, rows in values.items():
        together.setdefault(np.isfinite(rows).tobytes(), []).append(measure)
    for measures in together.values():
        defined = np.isfinite(values[measures[0]])
        if not defined.any():
            continue
        row, column = _consecutive(cluster[defined]), _consecutive(cell[defined])
        shape = int(row.max()) + 1, int(column.max()) + 1
        yield _Totals(
            measures=tuple(measures),
            defined=defined,
            cells=np.unique(cell[defined]),
            column=column,
            sums=_table([values[measure][defined] for measure in measures], row, column, shape),
            counts=_table([np.ones(len(row))], row, column, shape),
        )


def _consecutive(numbers: IntArray) -> IntArray:
    """The same numbers without gaps, in the same order: an empty cluster must not be drawn."""
    return (np.cumsum(np.bincount(numbers) > 0) - 1)[numbers]


def _table(parts: Sequence[FloatArray], row: IntArray, column: IntArray, shape: tuple[int, int]) -> Table:
    """The sums by (row, column) of each part, parts side by side."""
    columns = np.concatenate([column + shape[1] * part for part in range(len(parts))])
    entries = np.concatenate(parts), (np.tile(row, len(parts)), columns)
    table = sparse.coo_array(entries, shape=(shape[0], shape[1] * len(parts)))
    return table.toarray() if len(row) > _DENSE * shape[0] * shape[1] else table.tocsr()


def _members(settings: Mapping[Setting, Sequence[int]], cell: IntArray) -> FloatArray:
    """Which cell belongs to which setting, 0 or 1 [L, K]."""
    cells = 1 + max([int(cell.max(initial=-1)), *(max(chosen, default=-1) for chosen in settings.values())])
    members = np.zeros((cells, len(settings)))
    for column, chosen in enumerate(settings.values()):
        members[list(chosen), column] = 1.0
    return members


def _defined_settings(totals: _Totals, members: FloatArray, names: list[Setting]) -> tuple[FloatArray, list[Setting]]:
    """Membership of the cells that have rows, without the settings that have none of them."""
    filled = members[totals.cells]
    kept = np.flatnonzero(filled.any(axis=0))
    return filled[:, kept], [names[column] for column in kept]


def _cell_shares(totals: _Totals, members: FloatArray) -> FloatArray:
    """The weight of one row of a cell in a setting [L, K]: 1 / rows of the cell / cells of the setting."""
    share: FloatArray = members / totals.counts.sum(axis=0)[:, None] / members.sum(axis=0)
    return share


def _macro(values: Mapping[str, FloatArray], totals: _Totals, share: FloatArray) -> FloatArray:
    """The settings' values [M, K]."""
    rows = [values[measure][totals.defined] for measure in totals.measures]
    return np.array([np.bincount(totals.column, weights=row, minlength=len(share)) @ share for row in rows])


def _interval(totals: _Totals, members: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Ends of the percentile interval [M, K, 2].

    A cell is a ratio of two resampled sums, so clusters may have different numbers of queries. A cell that a
    resample leaves empty is left out of that resample's macro-average.
    """
    measures, (cells, settings) = len(totals.measures), members.shape
    values = np.empty((resamples, measures, settings))
    done = 0
    for weights in _resampled_clusters(totals.counts.shape[0], resamples, seed):
        block = slice(done, done := done + len(weights))
        rows = weights @ totals.counts
        sums = (weights @ totals.sums).reshape(len(weights), measures, cells)
        means = sums / np.maximum(rows, 1.0)[:, None]  # an empty cell's sum is 0
        filled = (rows > 0) @ members
        with np.errstate(invalid="ignore"):  # 0 / 0: a setting without a row in this resample
            values[block] = (means @ members) / filled[:, None]
    tail = (1 - LEVEL) / 2
    return np.moveaxis(np.nanquantile(values, [tail, 1 - tail], axis=0), 0, -1)


def _randomisation(totals: _Totals, share: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Two-sided p [M, K] = (1 + sign vectors with |t*| >= |t|) / (1 + sign vectors)."""
    measures, cells = len(totals.measures), len(share)
    observed = np.abs(totals.sums.sum(axis=0).reshape(measures, cells) @ share)
    rounding = 1e-12 * (np.abs(totals.sums).sum(axis=0).reshape(measures, cells) @ share)
    as_extreme, vectors = np.zeros_like(observed), 0
    for signs in _sign_vectors(totals.counts.shape[0], resamples, seed):
        flipped = (signs @ totals.sums).reshape(len(signs), measures, cells) @ share
        as_extreme += (np.abs(flipped) >= observed - rounding).sum(axis=0)
        vectors += len(signs)
    p_values: FloatArray = (1 + as_extreme) / (1 + vectors)
    return p_values


def _effect_sizes(totals: _Totals, share: FloatArray, clusters: NDArray[np.bool_]) -> FloatArray:
    """Mean / standard deviation [M, K] of the contributions of the settings' clusters [C, K]; not finite where they
    do not vary.
    """
    cells = len(share)
    effects = np.empty((len(totals.measures), share.shape[1]))
    for row in range(len(effects)):
        contributions = totals.sums[:, row * cells : (row + 1) * cells] @ share
        size = clusters.sum(axis=0)
        mean = contributions.sum(axis=0) / size
        squares = (np.where(clusters, contributions - mean, 0.0) ** 2).sum(axis=0)
        varies = squares > (1e-12 * np.abs(mean)) ** 2 * size
        with np.errstate(invalid="ignore", divide="ignore"):
            effects[row] = np.where(varies, mean / np.sqrt(squares / (size - 1)), np.where(mean == 0, 0.0, np.nan))
    return effects


def _resampled_clusters(clusters: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each cluster was drawn, with replacement, in each resample: blocks of [r, C]."""
    random = np.random.default_rng([seed, 0])
    for size in _block_sizes(clusters, resamples):
        draws = random.integers(0, clusters, (size, clusters)) + clusters * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * clusters).reshape(size, clusters).astype(np.float64)


def _sign_vectors(clusters: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Signs of the clusters, -1 or 1, in blocks of [r, C]: all but the unchanged one if they are few, else random."""
    if clusters <= np.log2(resamples + 1):
        numbers = np.arange(1, 2**clusters)
        yield _signs(numbers[:, None] >> np.arange(clusters) & 1)
        return
    random = np.random.default_rng([seed, 1])
    for size in _block_sizes(clusters, resamples):
        yield _signs(random.integers(0, 2, (size, clusters), dtype=np.int8))


def _signs(bits: NDArray[np.integer[Any]]) -> FloatArray:
    return 1.0 - 2.0 * bits.astype(np.float64)


def _block_sizes(clusters: int, resamples: int) -> list[int]:
    """Numbers of resamples per block, which bound the memory."""
    size = max(1, _CHUNK // clusters)
    return [min(size, resamples - start) for start in range(0, resamples, size)]
