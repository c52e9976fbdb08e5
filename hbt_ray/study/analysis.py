"""What a study's evaluations say: values with intervals over questions and seeds, tests against the baseline.

Reads results folders and gives plain dicts of numbers; nothing is trained, encoded or logged here.

Two things vary from one repetition of a study to the next, the questions that are asked and the seeds that are drawn.
The interval of a value is over both. Of a difference from the baseline there are two statements: `compare` on the
seed-averaged values of every query (another set of questions), and a paired t-test over seeds (another set of seeds).

Shapes: S seeds, n rows (a query in a cell), C questions, M measures, L cells, K settings, R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse, stats

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.comparison import compare
from hbt_ray.evaluation.matrix import SETTINGS, setting_of
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.results import METRICS_FILE, PER_QUERY_FILE
from hbt_ray.evaluation.significance import LEVEL, holm

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Sums: TypeAlias = Any  # [C, columns], dense, or sparse where few cells share a question

BIAS = "language_bias"
IDENTITY = ("query_language", "candidate_language", "query_id", "question")
BLOCK = 1 << 22  # float64 entries of one block of resamples, 32 MiB
DENSE = 0.05  # share of filled entries above which the dense product is the faster one
METHOD = {
    "value": "mean over seeds of the macro-average over cells of the mean over a cell's queries",
    "value_interval": (
        f"percentile bootstrap, {LEVEL:.0%}: questions and seeds both drawn with replacement; with few seeds, whose "
        "spread is then known badly, it is rather too narrow"
    ),
    "value_sd": "over seeds, S - 1; null with one seed",
    "tests": (
        "arm - baseline on values averaged over seeds, query by query: whether other questions like these would show "
        "the difference between these trained models"
    ),
    "seed_test": (
        "paired t-test over the seeds that both arms have: whether other seeds would show the difference on these "
        "questions; seed_p_holm is corrected over all arms and measures of settings or of language bias"
    ),
    "monolingual_change": "mAP of each language against the baseline, p_holm corrected over all arms and languages",
}


class Value(TypedDict):
    """A number of an arm: mean over seeds, 95% interval over questions and seeds, spread over seeds, each seed's."""

    mean: float
    low: float
    high: float
    sd: float | None
    seeds: list[float]


class SeedTest(TypedDict):
    """A paired t-test over seeds: 95% interval of the difference and p; null where it cannot be computed."""

    seed_difference_low: float | None
    seed_difference_high: float | None
    seed_p: float | None


Values: TypeAlias = dict[str, dict[str, Value]]  # setting or language_bias -> measure -> value
Evaluated: TypeAlias = Mapping[str, Mapping[int, Path]]  # arm -> seed -> results folder


class _Rows(NamedTuple):
    """The rows of one arm, the same in all seeds.

    Args:
        values: measure -> float64 [S, n], NaN where undefined.
        question: int64 [n].
        cell: int64 [n].
        settings: name -> its cells.
    """

    values: dict[str, FloatArray]
    question: IntArray
    cell: IntArray
    settings: dict[str, list[int]]


class _Totals(NamedTuple):
    """Sums by question of measures that are defined in the same rows; L counts the cells of these rows only.

    Args:
        measures: M names.
        cells: int64 [L], the number of each cell.
        sums: of each seed [C, M * L], the cells of one measure together.
        counts: [C, L] rows of a question in a cell.
    """

    measures: list[str]
    cells: IntArray
    sums: list[Sums]
    counts: Sums


# --- a benchmark -----------------------------------------------------------------------------------------------------


def analyse(
    evaluated: Evaluated,
    averaged: Mapping[str, Path],
    baseline: str,
    *,
    seen_languages: Sequence[str] | None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The table and the tests of one benchmark.

    Args:
        evaluated: results folders of arms and seeds; an arm may lack seeds, and may be there without being tested.
        averaged: arms to test -> folder of their seed-averaged results; the baseline must be one of them.
        baseline: the arm that the others are compared with.
        seen_languages: of the training data, to group by.
        resamples: of every interval and test.
        seed: of the resampling; the same gives the same numbers.

    Returns:
        table, tests, monolingual_change and method of study.json.

    Raises:
        BenchmarkError: results that cannot be compared.
    """
    table = {
        arm: arm_values(list(folders.values()), resamples=resamples, seed=seed) for arm, folders in evaluated.items()
    }
    arms = [arm for arm in averaged if arm != baseline]
    if not arms:
        return {"table": table, "tests": {}, "monolingual_change": {}, "method": dict(METHOD)}
    folders = [averaged[arm] for arm in (baseline, *arms)]
    comparison = compare(folders, resamples=resamples, seed=seed, seen_languages=seen_languages)
    compared = dict(zip(arms, (comparison, *comparison["comparisons"]), strict=True))
    seeds = {arm: list(folders) for arm, folders in evaluated.items()}
    return {
        "table": table,
        "tests": _tests(compared, table, seeds, baseline),
        "monolingual_change": _monolingual_change(compared),
        "method": {**comparison["method"], **METHOD},
    }


def _tests(
    compared: Mapping[str, Mapping[str, Any]],
    table: Mapping[str, Values],
    seeds: Mapping[str, Sequence[int]],
    baseline: str,
) -> dict[str, Any]:
    """What `compare` found, with the t-test over seeds beside each headline row."""
    tests = {
        arm: {
            "settings": {
                setting: rows and {name: row and dict(row) for name, row in rows.items()}
                for setting, rows in found["settings"].items()
            },
            BIAS: {name: row and dict(row) for name, row in found[BIAS].items()},
            "cells": found["cells"],
            "groups": found["groups"],
        }
        for arm, found in compared.items()
    }
    for sections in (SETTINGS, (BIAS,)):
        family = []
        for arm, found in tests.items():
            for section in sections:
                rows = found[BIAS] if section == BIAS else found["settings"][section] or {}
                for name, row in rows.items():
                    if row is not None:
                        ours, theirs = (
                            dict(zip(seeds[other], table[other][section][name]["seeds"], strict=True))
                            for other in (arm, baseline)
                        )
                        row |= seed_test(ours, theirs)
                        family.append(row)
        _correct(family)
    return tests


def _correct(family: Sequence[dict[str, Any]]) -> None:
    """Add Holm's correction of the tests over seeds that could be computed."""
    computed = [row for row in family if row["seed_p"] is not None]
    corrected = iter(holm([row["seed_p"] for row in computed]))
    for row in family:
        row["seed_p_holm"] = None if row["seed_p"] is None else next(corrected)


def _monolingual_change(compared: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arm -> language -> mAP against the baseline where query and candidates are in that language."""
    changes = {
        arm: {
            cell["query_language"]: dict(cell["mAP"])
            for cell in found["cells"]
            if cell["query_language"] == cell["candidate_language"] and cell["mAP"] is not None
        }
        for arm, found in compared.items()
    }
    rows = [row for by_language in changes.values() for row in by_language.values()]
    for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return changes


def seed_test(arm: Mapping[int, float], baseline: Mapping[int, float]) -> SeedTest:
    """Paired t-test over the seeds that both have; null with fewer than two, or differences that do not vary."""
    common = [seed for seed in arm if seed in baseline]
    ours, theirs = (np.array([values[seed] for seed in common]) for values in (arm, baseline))
    differences = ours - theirs
    if len(common) < 2 or np.ptp(differences) <= 1e-12 * np.abs(ours).max():
        return {"seed_difference_low": None, "seed_difference_high": None, "seed_p": None}
    found = stats.ttest_rel(ours, theirs)
    low, high = found.confidence_interval(LEVEL)
    return {"seed_difference_low": float(low), "seed_difference_high": float(high), "seed_p": float(found.pvalue)}


# --- an arm ----------------------------------------------------------------------------------------------------------


def arm_values(folders: Sequence[Path], *, resamples: int = 10_000, seed: int = 0) -> Values:
    """The values of one arm from the results folders of its seeds.

    The interval is a percentile bootstrap in which questions and seeds are drawn with replacement, independently
    (crossed, or pigeonhole, bootstrap: Owen, Annals of Applied Statistics 2007); with one seed it is the interval over
    questions. A measure that is undefined in a row of any seed is left out there; one without a row is absent.

    Raises:
        BenchmarkError: the folders hold different queries.
    """
    rows = _read_rows(folders)
    result: Values = {section: {} for section in (*SETTINGS, BIAS)}
    for totals in _totals(rows):
        members = _members(rows.settings, totals.cells)
        observed = _macro_averages(np.ones((1, totals.counts.shape[0])), totals, members)[:, 0]  # [S, M, K]
        ends = _crossed_interval(totals, members, resamples, seed)
        for m, measure in enumerate(totals.measures):
            for k, setting in enumerate(rows.settings):
                if members[:, k].any() and (measure in MEASURES or setting == "multilingual"):
                    section = setting if measure in MEASURES else BIAS
                    result[section][measure] = _value(observed[:, m, k], ends[m, k])
    order = (*MEASURES, *QUERY_BIAS)
    return {
        section: {name: measures[name] for name in order if name in measures} for section, measures in result.items()
    }


def _value(seeds: FloatArray, ends: FloatArray) -> Value:
    return {
        "mean": float(seeds.mean()),
        "low": float(ends[0]),
        "high": float(ends[1]),
        "sd": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
        "seeds": [float(value) for value in seeds],
    }


def _read_rows(folders: Sequence[Path]) -> _Rows:
    tables = [pq.read_table(folder / PER_QUERY_FILE) for folder in folders]
    check_same_rows(tables, folders)
    first = tables[0]
    pairs, cell = _numbered(first, ("query_language", "candidate_language"))
    _, question = _numbered(first, ("question",))
    return _Rows(
        values={
            name: np.stack([table[name].cast(pa.float64()).to_numpy() for table in tables])
            for name in (*MEASURES, *QUERY_BIAS)
        },
        question=question,
        cell=cell,
        settings={name: [i for i, pair in enumerate(pairs) if setting_of(*pair) == name] for name in SETTINGS},
    )


def _numbered(table: pa.Table, columns: Sequence[str]) -> tuple[list[tuple[str, ...]], IntArray]:
    """The distinct values of columns in order of first appearance, and the number of each row's, int64 [n]."""
    code: IntArray = np.zeros(table.num_rows, dtype=np.int64)
    texts = []
    for column in columns:
        encoded = table[column].combine_chunks().dictionary_encode()
        texts.append(encoded.dictionary.to_pylist())
        code = code * len(texts[-1]) + encoded.indices.to_numpy()
    found, first, number = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    parts = np.unravel_index(found[order], [len(part) for part in texts])
    values = [tuple(texts[i][part[row]] for i, part in enumerate(parts)) for row in range(len(order))]
    return values, place[number]


def check_same_rows(tables: Sequence[pa.Table], folders: Sequence[Path]) -> None:
    """Raise BenchmarkError unless the tables of some folders hold the same queries and cells in the same order."""
    for table, folder in zip(tables[1:], folders[1:], strict=True):
        for name in IDENTITY:
            if not table[name].combine_chunks().equals(tables[0][name].combine_chunks()):
                raise BenchmarkError(
                    f"{folders[0]} and {folder}",
                    f"other values of {name!r}, row by row",
                    "the same queries and cells in every seed",
                    "Delete both and run the study again.",
                )


# --- the crossed bootstrap -------------------------------------------------------------------------------------------


def _totals(rows: _Rows) -> Iterator[_Totals]:
    """Totals of all measures, those defined in the same rows together."""
    together: dict[bytes, list[str]] = {}
    for measure, values in rows.values.items():
        together.setdefault(np.isfinite(values).all(axis=0).tobytes(), []).append(measure)
    for measures in together.values():
        defined = np.isfinite(rows.values[measures[0]]).all(axis=0)
        if not defined.any():
            continue
        _, question = np.unique(rows.question[defined], return_inverse=True)
        cells, column = np.unique(rows.cell[defined], return_inverse=True)
        shape = int(question.max()) + 1, len(cells)
        yield _Totals(
            measures=measures,
            cells=cells,
            sums=[
                _table([rows.values[measure][s, defined] for measure in measures], question, column, shape)
                for s in range(len(rows.values[measures[0]]))
            ],
            counts=_table([np.ones(len(question))], question, column, shape),
        )


def _table(parts: Sequence[FloatArray], row: IntArray, column: IntArray, shape: tuple[int, int]) -> Sums:
    """The sums by (row, column) of each part, parts side by side."""
    columns = np.concatenate([column + shape[1] * part for part in range(len(parts))])
    entries = np.concatenate(parts), (np.tile(row, len(parts)), columns)
    table = sparse.coo_array(entries, shape=(shape[0], shape[1] * len(parts)))
    return table.toarray() if len(row) > DENSE * shape[0] * shape[1] else table.tocsr()


def _members(settings: Mapping[str, Sequence[int]], cells: IntArray) -> FloatArray:
    """Which of the cells belongs to which setting, 0 or 1 [L, K]."""
    return np.stack([np.isin(cells, list(chosen)) for chosen in settings.values()], axis=1).astype(np.float64)


def _crossed_interval(totals: _Totals, members: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Ends of the percentile interval [M, K, 2]; NaN for a setting without cells."""
    questions, seeds = totals.counts.shape[0], len(totals.sums)
    by_question, by_seed = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 2])
    size = max(1, BLOCK // max(questions, seeds * totals.counts.shape[1] * len(totals.measures)))
    values = np.full((resamples, len(totals.measures), members.shape[1]), np.nan)
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        macro = _macro_averages(_drawn(by_question, block, questions), totals, members)  # [S, r, M, K]
        shares = _drawn(by_seed, block, seeds) / seeds
        values[start : start + block] = np.einsum("rs,srmk->rmk", shares, macro)
    tail = (1 - LEVEL) / 2
    ends = np.full((*values.shape[1:], 2), np.nan)
    filled = members.any(axis=0)
    ends[:, filled] = np.moveaxis(np.nanquantile(values[:, :, filled], [tail, 1 - tail], axis=0), 0, -1)
    return ends


def _drawn(random: np.random.Generator, resamples: int, count: int) -> FloatArray:
    """How often each of `count` things was drawn, with replacement, in each resample [r, count]."""
    draws = random.integers(0, count, (resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)


def _macro_averages(weights: FloatArray, totals: _Totals, members: FloatArray) -> FloatArray:
    """Each seed's macro-averages [S, r, M, K] when questions weigh [r, C]; a cell without a row is left out."""
    counts = weights @ totals.counts
    filled = (counts > 0) @ members
    shape = len(weights), len(totals.measures), counts.shape[1]
    with np.errstate(invalid="ignore"):  # 0 / 0: a setting without a row in this resample
        return np.stack(
            [
                ((weights @ sums).reshape(shape) / np.maximum(counts, 1.0)[:, None]) @ members / filled[:, None]
                for sums in totals.sums
            ]
        )


# --- what a benchmark is ---------------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a results folder's metrics.json."""
    return dict(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")))
