from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap, permutation_test

from hbt_ray.evaluation import significance
from hbt_ray.evaluation.significance import holm, interval, paired

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SIMULATIONS = 500
QUESTIONS = 60
TRANSLATIONS = 5
EVERYTHING = {"all cells": range(TRANSLATIONS)}


class Rows(NamedTuple):
    """Rows of two systems in a few cells; a cluster may have no row, or several, in a cell."""

    cluster: IntArray
    cell: IntArray
    baseline: FloatArray
    system: FloatArray


def macro_average(values: FloatArray, cell: IntArray, cells: Sequence[int]) -> float:
    """The statistic, from its definition; NaN rows and empty cells are left out."""
    rows = [values[(cell == index) & ~np.isnan(values)] for index in cells]
    return float(np.mean([part.mean() for part in rows if len(part)]))


def by_enumeration(rows: Rows, cells: Sequence[int]) -> float:
    """Exact p-value: every assignment of the two systems' names within clusters, weighed one by one."""
    difference = rows.system - rows.baseline
    clusters = np.unique(rows.cluster)
    statistics = [
        macro_average(difference * np.array(signs)[np.searchsorted(clusters, rows.cluster)], rows.cell, cells)
        for signs in product([1.0, -1.0], repeat=len(clusters))
    ]
    return float(np.mean(np.abs(statistics) >= abs(statistics[0]) - 1e-12))


@st.composite
def unbalanced_rows(draw: st.DrawFn) -> Rows:
    """A few clusters, spread unevenly over three cells, with values that often tie."""
    places = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=14))
    value = st.integers(0, 4).map(lambda number: number / 4)
    values = [np.array(draw(st.lists(value, min_size=len(places), max_size=len(places)))) for _ in range(2)]
    cluster, cell = np.array(places, dtype=np.int64).T
    return Rows(cluster, cell, *values)


def simulated(questions: int, *, effect: float = 0.0, seed: int = 0) -> tuple[Mapping[str, FloatArray], Rows]:
    """SIMULATIONS experiments as so many measures, and where their rows belong.

    Five translations of a question share most of the question's luck. Each row of a translation is a query; a third
    of the questions lacks the last two translations.
    """
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(questions), TRANSLATIONS)
    cell = np.tile(np.arange(TRANSLATIONS), questions)
    kept = (cell < 3) | (cluster % 3 > 0)
    cluster, cell = cluster[kept], cell[kept]
    luck = rng.normal(size=(SIMULATIONS, questions))[:, cluster]
    values = effect + luck + 0.5 * rng.normal(size=(SIMULATIONS, len(cluster)))
    nothing = np.zeros(len(cluster))
    return {str(index): row for index, row in enumerate(values)}, Rows(cluster, cell, nothing, nothing)


def rejections(values: Mapping[str, FloatArray], cluster: IntArray, cell: IntArray) -> int:
    zeros = {measure: np.zeros(len(cell)) for measure in values}
    found = paired(zeros, values, cluster, cell, EVERYTHING, resamples=399)["all cells"]
    return sum(difference.p_value <= 0.05 for difference in found.values())


def plausible(count: int, rate: float) -> bool:
    """Whether a count out of SIMULATIONS is likely at that rate: 99.9 % binomial bounds."""
    low, high = binom.interval(0.999, SIMULATIONS, rate)
    return bool(low <= count <= high)


def test_no_difference_is_rejected_at_the_nominal_rate() -> None:
    """Of 500 pairs of equal systems, the test at 5 % calls about 25 different."""
    values, rows = simulated(QUESTIONS)
    assert plausible(rejections(values, rows.cluster, rows.cell), 0.05)


def test_without_clusters_chance_looks_like_a_difference() -> None:
    """On the same data a test that takes translations for independent queries is wrong several times too often."""
    values, rows = simulated(QUESTIONS)
    assert rejections(values, np.arange(len(rows.cell)), rows.cell) > 0.15 * SIMULATIONS


def test_a_true_difference_is_found() -> None:
    """A difference of half a standard deviation over 60 questions is found nearly always."""
    values, rows = simulated(QUESTIONS, effect=0.55)
    assert rejections(values, rows.cluster, rows.cell) > 0.9 * SIMULATIONS


def covered(values: Mapping[str, FloatArray], cluster: IntArray, cell: IntArray, truth: float) -> int:
    found = interval(values, cluster, cell, EVERYTHING, resamples=500)["all cells"]
    return sum(low <= truth <= high for low, high in found.values())


def test_intervals_cover_the_truth() -> None:
    """95 % of the intervals of one system's value hold the true value; without clusters far fewer do."""
    values, rows = simulated(2 * QUESTIONS, effect=0.3, seed=1)
    assert plausible(covered(values, rows.cluster, rows.cell, 0.3), 0.95)
    assert covered(values, np.arange(len(rows.cell)), rows.cell, 0.3) < 0.8 * SIMULATIONS


def test_intervals_of_a_difference_cover_the_truth() -> None:
    """The same for a difference of two systems, which share the difficulty of each question."""
    values, rows = simulated(2 * QUESTIONS, effect=0.3, seed=2)
    difficulty = 5 * np.random.default_rng(3).normal(size=2 * QUESTIONS)[rows.cluster]
    baseline = dict.fromkeys(values, difficulty)
    system = {measure: difficulty + row for measure, row in values.items()}
    found = paired(baseline, system, rows.cluster, rows.cell, EVERYTHING, resamples=500)["all cells"]
    assert plausible(sum(row.low <= 0.3 <= row.high for row in found.values()), 0.95)


@settings(max_examples=60, deadline=None)
@given(unbalanced_rows(), st.sampled_from([[0], [0, 1], [0, 1, 2]]))
def test_few_clusters_are_enumerated(rows: Rows, cells: list[int]) -> None:
    """With six clusters at most p is that of all sign vectors, also for uneven cells and tied statistics."""
    chosen = np.isin(rows.cell, cells)
    found = paired({"mAP": rows.baseline}, {"mAP": rows.system}, rows.cluster, rows.cell, {"some": cells})["some"]
    assert ("mAP" in found) == chosen.any()
    if found:
        assert found["mAP"].p_value == pytest.approx(by_enumeration(rows, cells), abs=1e-12)


def test_random_sign_vectors_approach_the_enumeration() -> None:
    """Fewer resamples than sign vectors: p within four standard errors of the exact one."""
    rng = np.random.default_rng(0)
    cluster, cell = np.repeat(np.arange(12), 2), np.tile([0, 1], 12)
    rows = Rows(cluster, cell, np.zeros(24), rng.normal(0.4, 1.0, 12)[cluster] + rng.normal(0, 0.2, 24))
    exact = by_enumeration(rows, [0, 1])
    found = paired({"mAP": rows.baseline}, {"mAP": rows.system}, cluster, cell, {"both": [0, 1]}, resamples=4000)
    assert 0.02 < exact < 0.9
    assert found["both"]["mAP"].p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))


@pytest.mark.parametrize("queries", [9, 40])
def test_one_cell_equals_scipy(queries: int) -> None:
    """In one cell of single queries: scipy's permutation test of samples, its bootstrap, and d_z by hand."""
    rng = np.random.default_rng(queries)
    baseline = rng.random(queries)
    system = baseline + rng.normal(0.1, 0.3, queries)
    each, cell = np.arange(queries), np.zeros(queries, dtype=np.int64)
    found = paired({"mAP": baseline}, {"mAP": system}, each, cell, {"cell": [0]}, resamples=20_000)["cell"]["mAP"]

    def mean_difference(a: FloatArray, b: FloatArray, axis: int) -> FloatArray:
        return np.mean(a - b, axis=axis)

    permuted = permutation_test(
        (system, baseline), mean_difference, permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert found.difference == pytest.approx(permuted.statistic)
    exact = queries < 14
    assert found.p_value == pytest.approx(permuted.pvalue, abs=1e-12 if exact else 0.015)
    difference = system - baseline
    ends = bootstrap((difference,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.05 * difference.std())
    assert found.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert (found.baseline, found.system) == pytest.approx((baseline.mean(), system.mean()))
    assert found.clusters == queries


@settings(max_examples=50, deadline=None)
@given(unbalanced_rows(), st.data())
def test_values_are_macro_averages_of_the_rows_both_define(rows: Rows, data: st.DataObject) -> None:
    """A row that one system leaves undefined leaves both; values and clusters are those of the remaining rows."""
    undefined = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows.cell), max_size=len(rows.cell))))
    system = np.where(undefined, np.nan, rows.system)
    cells = [0, 2]
    found = paired(
        {"mAP": rows.baseline, "R@1": rows.baseline},
        {"mAP": system, "R@1": rows.system},
        rows.cluster,
        rows.cell,
        {"some": cells},
        resamples=100,
    )["some"]
    remaining = ~undefined & np.isin(rows.cell, cells)
    assert ("mAP" in found) == remaining.any()
    if "mAP" in found:
        baseline = macro_average(np.where(undefined, np.nan, rows.baseline), rows.cell, cells)
        assert found["mAP"].baseline == pytest.approx(baseline)
        assert found["mAP"].system == pytest.approx(macro_average(system, rows.cell, cells))
        assert found["mAP"].difference == pytest.approx(found["mAP"].system - found["mAP"].baseline, abs=1e-12)
        assert found["mAP"].clusters == len(np.unique(rows.cluster[remaining]))
        assert found["mAP"].low <= found["mAP"].high
    if "R@1" in found:
        assert found["R@1"].system == pytest.approx(macro_average(rows.system, rows.cell, cells))


def test_a_cluster_of_many_queries_weighs_by_its_queries() -> None:
    """The interval resamples ratios: (10 queries of value 1, 1 query of value 0) gives 1, 10/11 or 0, nothing else."""
    cluster = np.array([0] * 10 + [1])
    values = {"mAP": np.array([1.0] * 10 + [0.0])}
    cell = np.zeros(11, dtype=np.int64)
    assert interval(values, cluster, cell, {"cell": [0]})["cell"]["mAP"] == (0.0, 1.0)
    many = np.concatenate([np.repeat(np.arange(200), 10), np.arange(200, 400)])
    value = np.where(many < 200, 1.0, 0.0)
    low, high = interval({"mAP": value}, many, np.zeros(len(many), dtype=np.int64), {"cell": [0]})["cell"]["mAP"]
    assert low < 10 / 11 < high
    assert high - low < 0.05


def test_a_cell_that_a_resample_leaves_empty_is_no_zero() -> None:
    """Every value is 1, so every resample's is, also without the one question of the first cell."""
    values = {"mAP": np.ones(6)}
    found = interval(values, np.arange(6), np.array([0, 1, 1, 1, 1, 1]), {"both": [0, 1], "first": [0]})
    assert found == {"both": {"mAP": (1.0, 1.0)}, "first": {"mAP": (1.0, 1.0)}}


def test_sparse_and_dense_tables_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Languages that share no question (MIRACL) go through sparse tables; the numbers are the same."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(30), 20)
    cluster = np.arange(600)
    baseline = {"mAP": rng.random(600), "R@1": rng.random(600).round()}
    system = {measure: values + rng.normal(0, 0.1, 600) for measure, values in baseline.items()}
    chosen = {"all": range(30), "one": [3]}
    found = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(significance, "_DENSE", share)
        found.append(paired(baseline, system, cluster, cell, chosen, resamples=300))
    for setting, measure in product(chosen, baseline):
        assert tuple(found[0][setting][measure]) == pytest.approx(tuple(found[1][setting][measure]), abs=1e-12)
    assert found[0]["one"]["mAP"].clusters == 20


def test_blocks_of_resamples_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by blocks; with one resample to a block the sums are the same."""
    values, rows = simulated(20)
    chosen = {measure: values[measure] for measure in ("0", "1")}
    zeros = {measure: np.zeros(len(rows.cell)) for measure in chosen}
    found = []
    for chunk in (1 << 22, 1):
        monkeypatch.setattr(significance, "_CHUNK", chunk)
        found.append(paired(zeros, chosen, rows.cluster, rows.cell, EVERYTHING, resamples=200)["all cells"])
    for measure in chosen:
        assert tuple(found[0][measure]) == pytest.approx(tuple(found[1][measure]), abs=1e-12)


def test_the_seed_decides_and_cluster_numbers_do_not() -> None:
    """The same seed gives the same numbers, another seed others; gaps in the numbering are no empty clusters."""
    values, rows = simulated(30)
    one = {"0": values["0"]}

    def found(cluster: IntArray, seed: int) -> tuple[float, float]:
        return interval(one, cluster, rows.cell, EVERYTHING, seed=seed)["all cells"]["0"]

    assert found(rows.cluster, 5) == found(rows.cluster, 5) == found(7 * rows.cluster + 3, 5)
    assert found(rows.cluster, 5) != found(rows.cluster, 6)


def test_equal_systems_and_constant_differences() -> None:
    """No difference at all: p = 1, effect 0. One that never varies: p = 2 / 2^C, and no standard deviation to divide
    by.
    """
    each, cell = np.arange(8), np.zeros(8, dtype=np.int64)
    same = {"mAP": np.linspace(0, 1, 8)}
    equal = paired(same, same, each, cell, {"cell": [0]})["cell"]["mAP"]
    assert equal.difference == equal.low == equal.high == equal.effect_size == 0.0
    assert equal.p_value == 1.0
    shifted = paired(same, {"mAP": same["mAP"] + 0.1}, each, cell, {"cell": [0]})["cell"]["mAP"]
    assert shifted.effect_size is None
    assert shifted.p_value == pytest.approx(2 / 2**8)
    assert (shifted.low, shifted.high) == pytest.approx((0.1, 0.1))


def test_a_setting_without_rows_has_no_measure() -> None:
    """Neither a setting without cells nor one whose rows are all undefined gets a number."""
    values = {"mAP": np.array([0.5, np.nan]), "lpr": np.full(2, np.nan)}
    chosen: dict[str, list[int]] = {"first": [0], "second": [1], "none": []}
    found = interval(values, np.array([0, 1]), np.array([0, 1]), chosen)
    assert found == {"first": {"mAP": (0.5, 0.5)}, "second": {}, "none": {}}


def test_holm_by_hand() -> None:
    """.005 x 4, .01 x 3, .03 x 2, and .04 x 1 raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], level: float) -> None:
    """Holm (1979): from the smallest p on, reject while p_(i) <= level / (m - i + 1)."""
    adjusted = holm(p_values)
    rejected = []
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.append(index)
    assert sorted(rejected) == [index for index, value in enumerate(adjusted) if value <= level]
