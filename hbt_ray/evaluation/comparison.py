"""Compare systems by the results folders that their evaluations wrote: what differs by more than chance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.matrix import ALL_LANGUAGES, SETTINGS, setting_of
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.results import METRICS_FILE, PER_QUERY_FILE
from hbt_ray.evaluation.significance import LEVEL, Difference, FloatArray, holm, paired
from hbt_ray.languages import UNLISTED, Language, checked_codes, language

GROUP_MEASURE = "mAP"
FEW_CLUSTERS = 30
LEAST_RESAMPLES = 100

_IDENTITY = ("query_language", "candidate_language", "query_id")
_COLUMNS = (*_IDENTITY, "question", "relevant", *MEASURES, *QUERY_BIAS)
_SAME_IN_SIGNATURE = {
    "data": "Evaluate both on the same copy of the benchmark.",
    "depth": "Evaluate both to the same search depth.",
    "ties": "Evaluate both with the same rule for ties.",
}

Pair: TypeAlias = tuple[str, str]  # query language, candidate language or ALL_LANGUAGES
# ("settings", setting, measure), ("language_bias", measure), ("cells", query language, candidate language, measure) or
# ("groups", grouping, group, setting, measure)
Key: TypeAlias = tuple[str, ...]


class Row(TypedDict):
    """One comparison of a system with the baseline, as in the JSON; the fields are those of `Difference`, and
    `p_holm`, the p-value corrected for its family.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    effect_size: float | None
    baseline: float
    system: float
    clusters: int


class HeadlineRow(NamedTuple):
    """A line of the printed table: a system, what was measured (a setting, or `language_bias`) and the comparison."""

    system: str
    setting: str
    measure: str
    row: Row


def compare(
    folders: Sequence[Path],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    seen_languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare the systems of results folders with the first of them.

    Args:
        folders: results folders of one benchmark; the first is the baseline.
        resamples: of the randomisation test and of the bootstrap.
        seed: of both.
        seen_languages: languages of the training data, to group by; None where not known.

    Returns:
        The JSON object that docs/significance.md describes. Differences are system - baseline.

    Raises:
        ConfigError: fewer than two folders, one folder twice, too few resamples, an unknown language.
        BenchmarkError: a folder without results, or folders whose results cannot be compared.
    """
    _check_arguments(folders, resamples)
    seen = None if seen_languages is None else frozenset(checked_codes(seen_languages, "seen_languages"))
    baseline, *others = (_read_results(Path(folder)) for folder in folders)
    cells, cell = _cells(baseline)
    aligned = [_aligned(baseline, other) for other in others]
    question = pc.dictionary_encode(baseline.rows["question"].combine_chunks())
    design = _Design(
        cells=cells,
        cell=cell,
        cluster=np.asarray(question.indices, dtype=np.int64),
        groups={name: _group_cells(cells, group_of) for name, group_of in _groupings(cells, seen).items()},
        resamples=resamples,
        seed=seed,
    )
    corrected = _corrected([_differences(design, baseline.rows, rows) for rows in aligned])
    compared = [
        {"system": str(other.folder), **_tables(design, rows)} for other, rows in zip(others, corrected, strict=True)
    ]
    return {
        "benchmark": baseline.metrics["benchmark"],
        "systems": [
            {"folder": str(results.folder), "signature": results.metrics["signature"]}
            for results in (baseline, *others)
        ],
        "baseline": str(baseline.folder),
        **compared[0],
        "method": _method(design, corrected, len(question.dictionary), seen),
        "comparisons": compared[1:],
    }


def headline_rows(comparison: Mapping[str, Any]) -> list[HeadlineRow]:
    """The settings and language bias of every compared system, as lines of a table, from what `compare` returns."""
    return [
        HeadlineRow(compared["system"], setting, measure, row)
        for compared in (comparison, *comparison["comparisons"])
        for setting, measures in {**compared["settings"], "language_bias": compared["language_bias"]}.items()
        for measure, row in (measures or {}).items()
        if row is not None
    ]


@dataclass(frozen=True)
class _Results:
    """What a results folder holds: metrics.json and the columns _COLUMNS of per_query.parquet."""

    folder: Path
    metrics: dict[str, Any]
    rows: pa.Table


@dataclass(frozen=True)
class _Design:
    """What all comparisons share.

    Args:
        cells: the cells, in the order of the languages, the merged pool last.
        cell: int64 [n], index into `cells` of each row.
        cluster: int64 [n], the question of each row.
        groups: grouping -> group -> setting -> indices into `cells`.
        resamples: of test and bootstrap.
        seed: of both.
    """

    cells: list[Pair]
    cell: NDArray[np.int64]
    cluster: NDArray[np.int64]
    groups: dict[str, dict[str, dict[str, list[int]]]]
    resamples: int
    seed: int


def _check_arguments(folders: Sequence[Path], resamples: int) -> None:
    if len(folders) < 2:
        received = f"{len(folders)} ({', '.join(map(str, folders)) or 'none'})"
        raise ConfigError("results folders", received, "two or more", "Name the baseline first, then the systems.")
    places = [Path(folder).resolve() for folder in folders]
    twice = [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError("results folders", " and ".join(twice), "different folders", "Name every folder once.")
    if resamples < LEAST_RESAMPLES:
        raise ConfigError("resamples", resamples, f"at least {LEAST_RESAMPLES}", "Leave it out for 10,000.")


def _read_results(folder: Path) -> _Results:
    metrics = _read_metrics(folder / METRICS_FILE)
    path = folder / PER_QUERY_FILE
    try:
        missing = [name for name in _COLUMNS if name not in pq.read_schema(path).names]
        if missing:
            raise BenchmarkError(
                str(path), f"no column {', '.join(missing)}", "a column per measure", "Evaluate the model again."
            )
        rows = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowInvalid) as error:
        raise _no_results(path, error) from error
    if not rows.num_rows:
        raise BenchmarkError(str(path), "no row", "a row per query and cell", "Evaluate the model again.")
    repeated = rows.num_rows - pc.count_distinct(_keys(rows)).as_py()
    if repeated:
        raise BenchmarkError(
            str(path), f"{repeated} repeated row(s)", "one row per query and cell", "Evaluate the model again."
        )
    return _Results(folder, metrics, rows)


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_results(path, error) from error
    keys = {"benchmark", "languages", "signature"}
    if not isinstance(metrics, dict) or not keys <= metrics.keys():
        raise BenchmarkError(str(path), "something else", f"an object with {sorted(keys)}", "Evaluate the model again.")
    return metrics


def _no_results(path: Path, error: Exception) -> BenchmarkError:
    received = "no such file" if isinstance(error, FileNotFoundError) else error
    return BenchmarkError(str(path), received, "the results of an evaluation", "Name a folder of `hbt-ray evaluate`.")


def _aligned(baseline: _Results, other: _Results) -> pa.Table:
    """The other's rows in the order of the baseline's.

    Raises:
        BenchmarkError: another benchmark, other languages, data, depth, cells or queries.
    """
    first, second = baseline.metrics, other.metrics
    if first["benchmark"] != second["benchmark"]:
        names = first["benchmark"], second["benchmark"]
        raise _differ(baseline, other, "benchmark", names, "Evaluate both on the same benchmark.")
    if set(first["languages"]) != set(second["languages"]):
        languages = first["languages"], second["languages"]
        raise _differ(baseline, other, "languages", languages, "Evaluate both in the same languages.")
    for field, fix in _SAME_IN_SIGNATURE.items():
        values = _signature_field(baseline, field), _signature_field(other, field)
        if values[0] != values[1]:
            raise _differ(baseline, other, field, values, fix)
    return other.rows.take(_positions(baseline, other))


def _signature_field(results: _Results, field: str) -> str | None:
    fields = dict(part.partition(":")[::2] for part in results.metrics["signature"].split("|"))
    return fields.get(field)


def _positions(baseline: _Results, other: _Results) -> pa.Array:
    """Where the other has each row of the baseline."""
    fix = "Evaluate both anew on the same data."
    cells, other_cells = _pairs(baseline.rows), _pairs(other.rows)
    if cells != other_cells:
        only = _arrows(cells - other_cells), _arrows(other_cells - cells)
        raise _differ(baseline, other, "cells that the other lacks:", only, fix)
    positions = pc.index_in(_keys(baseline.rows), value_set=_keys(other.rows))
    if baseline.rows.num_rows != other.rows.num_rows or positions.null_count:
        counts = f"{baseline.rows.num_rows} rows", f"{other.rows.num_rows} rows, {positions.null_count} not found"
        raise _differ(baseline, other, "queries:", counts, fix)
    for column in ("question", "relevant"):
        theirs = other.rows[column].take(positions)
        if not theirs.equals(baseline.rows[column]):
            at = pc.index(pc.equal(theirs, baseline.rows[column]), False).as_py()
            values = baseline.rows[column][at].as_py(), theirs[at].as_py()
            query = baseline.rows["query_id"][at].as_py()
            raise _differ(baseline, other, f"{column!r} of query {query!r}:", values, fix)
    return positions


def _differ(baseline: _Results, other: _Results, what: str, values: tuple[object, object], fix: str) -> BenchmarkError:
    return BenchmarkError(
        f"{baseline.folder} and {other.folder}",
        f"{what} {_short(values[0])} in the first, {_short(values[1])} in the second",
        "two systems on the same queries and candidates",
        fix,
    )


def _short(value: object) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _keys(rows: pa.Table) -> pa.Array:
    """One string per row that names its query and cell."""
    return pc.binary_join_element_wise(*(rows[name].combine_chunks() for name in _IDENTITY), "\x1f")


def _pairs(rows: pa.Table) -> set[Pair]:
    columns = ["query_language", "candidate_language"]
    distinct = rows.select(columns).group_by(columns).aggregate([])
    return set(zip(*(distinct[column].to_pylist() for column in columns), strict=True))


def _arrows(pairs: set[Pair]) -> str:
    return ", ".join("→".join(pair) for pair in sorted(pairs)) or "none"


def _cells(results: _Results) -> tuple[list[Pair], NDArray[np.int64]]:
    """The cells in the order of the benchmark's languages, the merged pool last; and the cell of each row, int64 [n].

    Raises:
        BenchmarkError: a row in a language that metrics.json does not name.
    """
    order = [*results.metrics["languages"], ALL_LANGUAGES]
    codes = []
    for column in ("query_language", "candidate_language"):
        places = pc.index_in(results.rows[column].combine_chunks(), value_set=pa.array(order))
        if places.null_count:
            unknown = results.rows[column].filter(pc.is_null(places))[0].as_py()
            raise BenchmarkError(
                str(results.folder / PER_QUERY_FILE),
                f"{column} {unknown!r}",
                f"a language of metrics.json: {', '.join(order)}",
                "Evaluate the model again.",
            )
        codes.append(np.asarray(places, dtype=np.int64))
    present, cell = np.unique(codes[0] * len(order) + codes[1], return_inverse=True)
    return [(order[code // len(order)], order[code % len(order)]) for code in present], cell


def _groupings(cells: Sequence[Pair], seen: frozenset[str] | None) -> dict[str, dict[str, str]]:
    """Grouping -> language -> group; no group where it is not known which languages were seen."""
    codes = dict.fromkeys(code for pair in cells for code in pair if code != ALL_LANGUAGES)
    known = {code: _known_language(code) for code in codes}
    return {
        "family": {code: found.family if found else UNLISTED for code, found in known.items()},
        "resource_level": {code: found.resource_level if found else UNLISTED for code, found in known.items()},
        "seen": {} if seen is None else {code: "seen" if code in seen else "unseen" for code in codes},
    }


def _known_language(code: str) -> Language | None:
    """The language of a code; None for those of a benchmark that CLDR lacks, which have no group to be listed in."""
    try:
        return language(code)
    except ConfigError:
        return None


def _group_cells(cells: Sequence[Pair], group_of: Mapping[str, str]) -> dict[str, dict[str, list[int]]]:
    """Group -> setting -> cells whose languages all belong to it; in the merged pool the query language decides."""
    result: dict[str, dict[str, list[int]]] = {
        group: {setting: [] for setting in SETTINGS} for group in dict.fromkeys(group_of.values())
    }
    for index, pair in enumerate(cells):
        groups = {group_of.get(code) for code in pair if code != ALL_LANGUAGES}
        group = groups.pop()
        if group is not None and not groups:
            result[group][setting_of(*pair)].append(index)
    return result


def _differences(design: _Design, baseline: pa.Table, system: pa.Table) -> dict[Key, Difference]:
    """Every comparison of two systems under a key that ends with its measure."""
    settings = {
        setting: [index for index, pair in enumerate(design.cells) if setting_of(*pair) == setting]
        for setting in SETTINGS
    }
    cells_of: list[tuple[Sequence[str], dict[Key, list[int]]]] = [
        (
            MEASURES,
            {("settings", setting): chosen for setting, chosen in settings.items()}
            | {("cells", *pair): [index] for index, pair in enumerate(design.cells)},
        ),
        (QUERY_BIAS, {("language_bias",): settings["multilingual"]}),
        (
            [GROUP_MEASURE],
            {
                ("groups", grouping, group, setting): chosen
                for grouping, by_group in design.groups.items()
                for group, by_setting in by_group.items()
                for setting, chosen in by_setting.items()
            },
        ),
    ]
    return {
        (*key, measure): difference
        for measures, chosen in cells_of
        for key, by_measure in paired(
            _columns(baseline, measures),
            _columns(system, measures),
            design.cluster,
            design.cell,
            chosen,
            resamples=design.resamples,
            seed=design.seed,
        ).items()
        for measure, difference in by_measure.items()
    }


def _columns(rows: pa.Table, measures: Sequence[str]) -> dict[str, FloatArray]:
    """Measure -> float64 [n], NaN where null."""
    return {name: rows[name].cast(pa.float64()).to_numpy() for name in measures}


def _family(key: Key) -> Key:
    """Which comparisons are corrected together; each family spans all compared systems."""
    match key:
        case ("cells", _, _, measure):
            return "cells", measure
        case ("groups", grouping, _, setting, _):
            return "groups", grouping, setting
    return key[:1]


def _corrected(compared: Sequence[Mapping[Key, Difference]]) -> list[dict[Key, Row]]:
    """The rows of each system, with Holm's correction in each family."""
    families: dict[Key, list[tuple[int, Key]]] = {}
    for system, differences in enumerate(compared):
        for key in differences:
            families.setdefault(_family(key), []).append((system, key))
    result: list[dict[Key, Row]] = [{} for _ in compared]
    for members in families.values():
        corrected = holm([compared[system][key].p_value for system, key in members])
        for (system, key), p_holm in zip(members, corrected, strict=True):
            result[system][key] = _row(compared[system][key], p_holm)
    return result


def _row(found: Difference, p_holm: float) -> Row:
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "p_holm": p_holm,
        "effect_size": found.effect_size,
        "baseline": found.baseline,
        "system": found.system,
        "clusters": found.clusters,
    }


def _tables(design: _Design, rows: Mapping[Key, Row]) -> dict[str, Any]:
    """The JSON object of one system; null where there is nothing to compare."""
    by_setting = {setting: {name: rows.get(("settings", setting, name)) for name in MEASURES} for setting in SETTINGS}
    return {
        "settings": {setting: found if any(found.values()) else None for setting, found in by_setting.items()},
        "language_bias": {name: rows.get(("language_bias", name)) for name in QUERY_BIAS},
        "cells": [
            {
                "query_language": pair[0],
                "candidate_language": pair[1],
                **{name: rows.get(("cells", *pair, name)) for name in MEASURES},
            }
            for pair in design.cells
        ],
        "groups": {
            grouping: {
                group: {setting: rows.get(("groups", grouping, group, setting, GROUP_MEASURE)) for setting in SETTINGS}
                for group in by_group
            }
            for grouping, by_group in design.groups.items()
        },
    }


def _method(
    design: _Design, corrected: Sequence[Mapping[Key, Row]], clusters: int, seen: frozenset[str] | None
) -> dict[str, Any]:
    families = Counter(" ".join(_family(key)) for rows in corrected for key in rows)
    method = {
        "difference": "system - baseline",
        "unit": "question: its translations are one cluster",
        "clusters": clusters,
        "test": "two-sided paired randomisation test, signs flipped by cluster",
        "interval": f"percentile bootstrap over clusters, {LEVEL:.0%}",
        "effect_size": "Cohen's d_z of the clusters' contributions",
        "correction": "Holm, within each family, over all compared systems",
        "families": dict(families),
        "group_measure": GROUP_MEASURE,
        "seen_languages": None if seen is None else sorted(seen),
        "resamples": design.resamples,
        "seed": design.seed,
    }
    warning = " ".join(_warnings(corrected, families, design.resamples))
    return method | ({"warning": warning} if warning else {})


def _warnings(corrected: Sequence[Mapping[Key, Row]], families: Mapping[str, int], resamples: int) -> Iterator[str]:
    """What keeps the comparison from showing what it is meant to show."""
    fewest = min(row["clusters"] for rows in corrected for row in rows.values())
    if fewest < FEW_CLUSTERS:
        yield (
            f"The smallest comparison rests on {fewest} clusters. Below {FEW_CLUSTERS}, an interval is too narrow and "
            "a test finds little: read `clusters` of each row."
        )
    tests = max(families.values())
    if tests / (resamples + 1) > 1 - LEVEL:
        yield (
            f"With {resamples} resamples no p_holm of a family of {tests} tests falls below "
            f"{tests / (resamples + 1):.2g}: take more resamples."
        )
