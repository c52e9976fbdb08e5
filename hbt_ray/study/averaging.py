"""The results folders of an arm's seeds as one: every query's values averaged, in the layout of an evaluation.

`evaluation.comparison.compare` takes such a folder as it takes any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.evaluate import setting_intervals
from hbt_ray.evaluation.matrix import Cell, Evaluation
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.results import PER_QUERY_FILE, read_cells, write_results
from hbt_ray.study.analysis import check_same_rows, read_metrics

OF_ONE_MODEL = "a p-value belongs to one model; this is the mean of several"


def write_averaged(folders: Sequence[Path], out: Path) -> None:
    """Average the results of an arm's seeds into `out`, which is replaced; with one seed, they are its own.

    A value that is undefined in one seed is undefined. Examples belong to one model and are left out.

    Raises:
        BenchmarkError: the folders hold different queries.
    """
    tables = [pq.read_table(folder / PER_QUERY_FILE) for folder in folders]
    check_same_rows(tables, folders)
    metrics = [read_metrics(folder) for folder in folders]
    cells = _mean_cells([read_cells(folder) for folder in folders])
    rows = _mean_rows(tables)
    intervals = setting_intervals(cells, rows)
    merged = intervals.get("multilingual", {})
    bias = _mean_bias([found["language_bias"] for found in metrics])
    bias["intervals"] = {name: list(merged.pop(name)) for name in QUERY_BIAS if name in merged}
    first = metrics[0]
    evaluation = Evaluation(
        benchmark=first["benchmark"],
        languages=tuple(first["languages"]),
        cells=cells,
        per_query=rows,
        bias=bias,
        intervals=intervals,
        pool=first["pool"],
        left_out=first["queries_without_relevant"],
        notes=tuple(dict.fromkeys(note for found in metrics for note in found["notes"])),
        examples={"best": [], "worst": []},
        signature=joined_signature([found["signature"] for found in metrics]),
    )
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_results(evaluation, evaluation.metrics() | {"seen_languages": first.get("seen_languages")}, unfinished)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def joined_signature(signatures: Sequence[str]) -> str:
    """One signature for several: a field in which they differ holds all of its values, as in seed:13+14+15."""
    columns = zip(*(signature.split("|") for signature in signatures), strict=True)
    return "|".join(_joined(list(column)) for column in columns)


def _joined(fields: list[str]) -> str:
    name, colon, _ = fields[0].partition(":")
    values = dict.fromkeys(field.partition(":")[2] for field in fields)
    return f"{name}{colon}{'+'.join(values)}"


def _mean_rows(tables: Sequence[pa.Table]) -> pa.Table:
    rows = tables[0]
    for name in (*MEASURES, *QUERY_BIAS):
        mean = np.mean([table[name].cast(pa.float64()).to_numpy() for table in tables], axis=0)
        # NaN, undefined in some seed, becomes null.
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(mean, from_pandas=True))
    return rows


def _mean_cells(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Cell]:
    return [
        Cell(
            same[0]["query_language"],
            same[0]["candidate_language"],
            same[0]["queries"],
            {name: float(np.mean([cell[name] for cell in same])) for name in MEASURES},
        )
        for same in zip(*seeds, strict=True)
    ]


def _mean_bias(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number of `language_bias`; null where a seed has none, and no p-value of several models."""
    several = len(seeds) > 1
    undefined = {name: reason for bias in seeds for name, reason in bias["undefined"].items()}
    values = {name: _mean([bias[name] for bias in seeds]) for name in (*QUERY_BIAS, "kendall_w", "mrc", "peer")}
    return {
        **values,
        "friedman_p": None if several else seeds[0]["friedman_p"],
        "queries": seeds[0]["queries"],
        "undefined": undefined | ({"friedman_p": OF_ONE_MODEL} if several else {}),
        "by_query_language": _mean([bias["by_query_language"] for bias in seeds]),
        "language_share@10": _mean([bias["language_share@10"] for bias in seeds]),
    }


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of the numbers of like mappings; None if one is None."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return None if any(value is None for value in values) else float(np.mean(values))
