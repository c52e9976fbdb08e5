"""Figures of a study as text in rows, in the layout of the paper's tables; the page and its Markdown both show these.

A `Value` of study.json is {"mean", "low", "high", "sd", "seeds"}; a `Test` is a row of `comparison.compare`, in the
headline with the interval and p-value of a paired t-test over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from hbt_ray.evaluation.report import SIGNIFICANCE_LEVEL
from hbt_ray.evaluation.tables import (
    BIAS,
    NOT_DEFINED,
    SETTINGS,
    ColumnGroup,
    NumberText,
    Value,
    defined,
    difference_text,
    interval_text,
    probability_text,
    score_text,
)

LANGUAGE_BIAS = "language_bias"
# arXiv 2408.10536: recall is R@1 where one candidate is relevant, R@10 of the relevant set in the merged pool.
RETRIEVAL = (
    ("monolingual", "mAP"),
    ("monolingual", "R@1"),
    ("cross_lingual", "mAP"),
    ("cross_lingual", "R@1"),
    ("multilingual", "mAP"),
    ("multilingual", "R@10"),
)
HEADLINE = (*((setting, "mAP") for setting in SETTINGS), (LANGUAGE_BIAS, "rank_distance"))
_DIGITS = {"rank_distance": 1, "max@R": 1, "rank_distance_log2": 2}

Benchmark: TypeAlias = Mapping[str, Any]
Measure: TypeAlias = tuple[str, str]  # setting or LANGUAGE_BIAS, and the name of the measure


class ArmRow(NamedTuple):
    """An arm and its values, one for each column."""

    arm: str
    values: list[Value]


class ArmTable(NamedTuple):
    """Arms in rows, measures in columns under their settings."""

    groups: list[ColumnGroup]
    rows: list[ArmRow]


class ShownTest(NamedTuple):
    """A difference from the baseline: interval and Holm-corrected p over questions; the same over seeds, with its
    uncorrected p, as empty texts and dashes where there are too few seeds.
    """

    difference: str
    interval: str
    p_holm: str
    seed_p: str
    seed_p_holm: str
    seed_interval: str
    significant: bool


class ShownTests(NamedTuple):
    """A line of differences; None where there is none."""

    label: str
    tests: list[ShownTest | None]


# Looking things up


def value_of(results: Mapping[str, Any], measure: Measure) -> Mapping[str, Any] | None:
    """A Value of an arm's results, or None where it has none or its mean is not defined."""
    section, name = measure
    value = (results.get(section) or {}).get(name)
    return None if value is None or not defined(value["mean"]) else value


def find_test(tests: Mapping[str, Any], measure: Measure) -> Mapping[str, Any] | None:
    """A Test of an arm, or None where there is none."""
    section, name = measure
    found = tests[LANGUAGE_BIAS] if section == LANGUAGE_BIAS else tests["settings"].get(section)
    row: Mapping[str, Any] | None = (found or {}).get(name)
    return row


def defined_measures(benchmark: Benchmark, measures: Iterable[Measure]) -> list[Measure]:
    """Those that an arm has a value of."""
    return [one for one in measures if any(value_of(results, one) for results in benchmark["table"].values())]


def bias_measures(benchmark: Benchmark) -> list[Measure]:
    """The measures of language bias that an arm has a value of, rank distance first."""
    return defined_measures(benchmark, ((LANGUAGE_BIAS, name) for name in BIAS))


def measure_text(measure: Measure) -> NumberText:
    """How a measure is printed: ranks with one digit, scores with four."""
    return BIAS[measure[1]].text if measure[0] == LANGUAGE_BIAS else score_text


def measure_label(measure: Measure) -> str:
    """`Monolingual mAP`, `Rank distance`."""
    section, name = measure
    return BIAS[name].label if section == LANGUAGE_BIAS else f"{SETTINGS[section].name} {name}"


def difference_digits(measure: Measure) -> int:
    """Digits of a difference, as many as the measure is printed with."""
    return _DIGITS.get(measure[1], 4)


def is_significant(test: Mapping[str, Any]) -> bool:
    """Whether the Holm-corrected p over questions is below SIGNIFICANCE_LEVEL."""
    return bool(test["p_holm"] < SIGNIFICANCE_LEVEL)


# The paper's tables


def retrieval_table(benchmark: Benchmark) -> ArmTable:
    """Table 1: mAP and recall in the three settings; a setting without values has no columns."""
    return _arm_table(benchmark, defined_measures(benchmark, RETRIEVAL))


def language_bias_table(benchmark: Benchmark) -> ArmTable:
    """Table 2: rank distance, and beside it the other measures of language bias that have values."""
    return _arm_table(benchmark, bias_measures(benchmark))


def _arm_table(benchmark: Benchmark, measures: Sequence[Measure]) -> ArmTable:
    columns = [_column(benchmark, measure) for measure in measures]
    rows = [ArmRow(arm, [column[i] for column in columns]) for i, arm in enumerate(benchmark["table"])]
    return ArmTable(_groups(measures), rows)


def _groups(measures: Iterable[Measure]) -> list[ColumnGroup]:
    """Measures of one setting under its name; those of language bias stand alone, with their direction."""
    groups: dict[str, list[str]] = {}
    for section, name in measures:
        if section == LANGUAGE_BIAS:
            groups[BIAS[name].label] = [BIAS[name].direction]
        else:
            groups.setdefault(SETTINGS[section].name, []).append(name)
    return [ColumnGroup(name, columns) for name, columns in groups.items()]


def _column(benchmark: Benchmark, measure: Measure) -> list[Value]:
    """A measure of every arm; what prints like the best is best."""
    text = measure_text(measure)
    values = [value_of(results, measure) for results in benchmark["table"].values()]
    sign = BIAS[measure[1]].sign if measure[0] == LANGUAGE_BIAS else 1
    means = [value["mean"] for value in values if value]
    best = text((max if sign > 0 else min)(means)) if sign and len(means) > 1 else None
    return [
        Value(NOT_DEFINED)
        if value is None
        else Value(text(value["mean"]), text(value["mean"]) == best, _note(value, text))
        for value in values
    ]


def _note(value: Mapping[str, Any], text: NumberText) -> str:
    low, high = value["low"], value["high"]
    return interval_text((low, high), text) if defined(low) and defined(high) else ""


def seed_table(benchmark: Benchmark) -> ArmTable:
    """The values of every seed, in the order of the study's seeds, and their standard deviation."""
    measures = defined_measures(benchmark, (*RETRIEVAL, (LANGUAGE_BIAS, "rank_distance")))
    rows = [
        ArmRow(arm, [_seeds(value_of(results, measure), measure_text(measure)) for measure in measures])
        for arm, results in benchmark["table"].items()
    ]
    return ArmTable(_groups(measures), rows)


def _seeds(value: Mapping[str, Any] | None, text: NumberText) -> Value:
    if value is None:
        return Value(NOT_DEFINED)
    spread = f"sd {text(value['sd'])}" if defined(value["sd"]) else ""
    return Value("\n".join(map(text, value["seeds"])), note=spread)


# Differences from the baseline


def difference_rows(benchmark: Benchmark, measures: Sequence[Measure]) -> list[ShownTests]:
    """A line per arm, a test per measure."""
    return [
        ShownTests(arm, [shown_test(find_test(tests, measure), difference_digits(measure)) for measure in measures])
        for arm, tests in benchmark["tests"].items()
    ]


def shown_test(test: Mapping[str, Any] | None, digits: int) -> ShownTest | None:
    """A test as text; dashes for seeds where there are too few."""
    if test is None:
        return None
    ends = [difference_text(test.get(f"seed_difference_{end}"), digits) for end in ("low", "high")]
    return ShownTest(
        difference_text(test["difference"], digits),
        f"{difference_text(test['low'], digits)} to {difference_text(test['high'], digits)}",
        probability_text(test["p_holm"]),
        probability_text(test.get("seed_p")),
        probability_text(test["seed_p_holm"]) if defined(test.get("seed_p_holm")) else "",
        "" if NOT_DEFINED in ends else " to ".join(ends),
        is_significant(test),
    )


# Markdown


def study_markdown(study: Mapping[str, Any], summary: Sequence[str], cautions: Sequence[str]) -> str:
    """The tables of a study in Markdown, with what must be known to read them."""
    parts = [f"# {escaped(study['name'])}", *map(escaped, summary)]
    for name, benchmark in study["benchmarks"].items():
        parts += [f"## {escaped(name)}", *_benchmark_parts(study, benchmark)]
    parts += ["## Runs", markdown_table(*runs_table(study)), "## How to read the tests", bullets(cautions)]
    return "\n\n".join(parts) + "\n"


def _benchmark_parts(study: Mapping[str, Any], benchmark: Benchmark) -> Iterator[str]:
    yield "### Retrieval"
    yield arms_markdown(retrieval_table(benchmark))
    if bias_measures(benchmark):
        yield "### Language bias"
        yield arms_markdown(language_bias_table(benchmark))
    measures = tested_measures(benchmark)
    if measures:
        yield f"### Differences from {escaped(study['baseline'])}"
        yield differences_markdown(benchmark, measures)
    if any(benchmark["monolingual_change"].values()):
        yield f"### Monolingual mAP by language, difference from {escaped(study['baseline'])}"
        yield changes_markdown(benchmark["monolingual_change"])
    if benchmark["notes"]:
        yield bullets(benchmark["notes"])
    yield f"`{benchmark['signature']}`"


def tested_measures(benchmark: Benchmark) -> list[Measure]:
    """The headline measures with a test."""
    return [one for one in HEADLINE if any(find_test(tests, one) for tests in benchmark["tests"].values())]


def arms_markdown(table: ArmTable) -> str:
    """An ArmTable, best values bold, intervals in brackets."""
    header = ["Arm", *(f"{group.name} {column}" for group in table.groups for column in group.columns)]
    return markdown_table(header, [[row.arm, *map(_markdown_value, row.values)] for row in table.rows])


def _markdown_value(value: Value) -> str:
    text = f"**{value.text}**" if value.best else value.text
    return f"{text} [{value.note}]" if value.note else text


def differences_markdown(benchmark: Benchmark, measures: Sequence[Measure]) -> str:
    """Differences with interval, Holm-corrected p over questions and p over seeds; significant ones starred."""
    header = ["Arm"]
    for measure in measures:
        header += [measure_label(measure), "p (Holm)", "p (seeds)"]
    rows = []
    for row in difference_rows(benchmark, measures):
        cells = [row.label]
        for test in row.tests:
            cells += [NOT_DEFINED] * 3 if test is None else [_starred(test), test.p_holm, _seed_p(test)]
        rows.append(cells)
    return markdown_table(header, rows)


def _starred(test: ShownTest) -> str:
    return f"{test.difference}{'*' if test.significant else ''} [{test.interval}]"


def _seed_p(test: ShownTest) -> str:
    return f"{test.seed_p} (Holm {test.seed_p_holm})" if test.seed_p_holm else test.seed_p


def changes_markdown(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Arms in columns, languages in rows."""
    codes = list(dict.fromkeys(code for by_language in changes.values() for code in by_language))
    rows = []
    for code in codes:
        tests = [by_language.get(code) for by_language in changes.values()]
        texts = [shown_test(test, 4) for test in tests]
        rows.append([code, *(NOT_DEFINED if text is None else _starred(text) for text in texts)])
    return markdown_table(["Language", *changes], rows)


def runs_table(study: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row per training run; the reason of a failed one is the last line of its error."""
    header = [
        "Arm",
        "Seed",
        "Share of data",
        "Status",
        "Steps",
        "Best step",
        "Validation loss",
        "Seconds",
        "MLflow run",
    ]
    return header, [_run_row(run) for run in study["runs"]]


def _run_row(run: Mapping[str, Any]) -> list[str]:
    status = f"failed: {reason(run['error'])}" if run["status"] == "failed" else run["status"]
    numbers = [whole(run["steps"]), whole(run["best_step"]), score_text(run["validation_loss"]), whole(run["seconds"])]
    return [run["arm"], str(run["seed"]), f"{run['fraction']:g}", status, *numbers, run["mlflow_run_id"] or NOT_DEFINED]


def whole(value: float | None) -> str:
    """A whole number, thousands separated; a dash where there is none."""
    return f"{value:,.0f}" if defined(value) else NOT_DEFINED


def reason(error: str | None) -> str:
    """The last line of an error."""
    return (error or "").strip().splitlines()[-1] if (error or "").strip() else "no reason was given"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [[escaped(cell) for cell in header], rule, *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(items: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {escaped(item)}" for item in items)


def escaped(text: str) -> str:
    """A text that breaks out of no Markdown table, and into no HTML."""
    flat = " ".join(text.split())
    for character, code in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`")):
        flat = flat.replace(character, code)
    return flat
