"""The page of a study and its Markdown, drawn from study.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.charts import (
    Chart,
    Frame,
    Mark,
    axis_of,
    dot,
    line,
    name_margins,
    named_axis,
    series_style,
    tick_text,
)
from hbt_ray.evaluation.heatmaps import LEGEND_STOPS, Legend, short_difference
from hbt_ray.evaluation.plots import DIFFERENCE_COLOURS, Scale, background, ink
from hbt_ray.evaluation.report import GROUPINGS, SIGNIFICANCE_LEVEL, write_page
from hbt_ray.evaluation.tables import (
    BIAS,
    NOT_DEFINED,
    SETTINGS,
    count_text,
    defined,
    difference_text,
)
from hbt_ray.languages import language
from hbt_ray.study.tables import (
    HEADLINE,
    LANGUAGE_BIAS,
    ArmTable,
    Benchmark,
    Measure,
    ShownTests,
    bias_measures,
    defined_measures,
    difference_digits,
    difference_rows,
    find_test,
    is_significant,
    language_bias_table,
    measure_label,
    measure_text,
    reason,
    retrieval_table,
    runs_table,
    seed_table,
    shown_test,
    study_markdown,
    tested_measures,
    value_of,
)

STUDY_FILE, MARKDOWN_FILE = "study.html", "study.md"
ALPHA = "mix.alpha"
UNTRAINED = "untrained"
GROUP_MEASURE = "mAP"
ROW_HEIGHT = 30  # of an arm in a forest plot, in pixels
SEEDS_BELOW = 0.24  # how far below the interval over questions that over seeds is drawn, in rows
SEED_ASIDE = 7  # how far right of its arm the dot of a seed stands, in pixels
LOG_RATIO = 8  # shares of the data that span this much are shown on a logarithmic axis

Study: TypeAlias = Mapping[str, Any]
Results: TypeAlias = Mapping[str, Any]


class ArmTests(NamedTuple):
    """All tests of an arm: a row per measure with a test per setting, and those of language bias."""

    arm: str
    settings: list[ShownTests]
    bias: list[ShownTests]


class ChangeCell(NamedTuple):
    """A difference with its colours; `title` is its interval and p-value."""

    text: str
    background: str = ""
    ink: str = ""
    significant: bool = False
    title: str = ""


class ChangeRow(NamedTuple):
    """A language or group, its code if it has one, and a cell per arm."""

    label: str
    code: str
    cells: list[ChangeCell]


class ChangeSection(NamedTuple):
    """Rows of one kind."""

    name: str
    rows: list[ChangeRow]


class Changes(NamedTuple):
    """Differences from the baseline in one setting, arms in columns."""

    setting: str
    arms: list[str]
    sections: list[ChangeSection]
    legends: list[Legend]


class Series(NamedTuple):
    """A series of a chart in its legend."""

    name: str
    style: str


class Curves(NamedTuple):
    """Charts that share their series."""

    charts: list[Chart]
    series: list[Series]


class BenchmarkView(NamedTuple):
    """All that a page shows of one benchmark."""

    name: str
    about: str
    retrieval: ArmTable
    bias: ArmTable | None
    seeds: ArmTable
    tested: list[str]
    differences: list[ShownTests]
    forest: list[Chart]
    every: list[ArmTests]
    alpha: Curves | None
    changes: list[Changes]
    fractions: Curves | None
    notes: list[str]
    method: list[tuple[str, str]]


class RunRow(NamedTuple):
    """A training run; `error` is the whole of what failed it."""

    cells: list[str]
    failed: bool
    run: str
    error: str
    reason: str


def write_study_report(study: Study, out: Path) -> Path:
    """Write `study.html` and `study.md` into the folder `out` and return the path of the page.

    Args:
        study: content of study.json.
        out: folder, made if it does not exist.
    """
    summary, cautions = _summary(study), list(_cautions(study))
    path = write_page(
        out / STUDY_FILE,
        "study.html",
        __package__,
        title=study["name"],
        notes=[],
        summary=summary,
        study=study,
        missing=_missing(study),
        arms=[(arm, settings_text(found["settings"])) for arm, found in study["arms"].items()],
        several_seeds=len(study["seeds"]) > 1,
        benchmarks=[_view(name, study, benchmark) for name, benchmark in study["benchmarks"].items()],
        headers=runs_table(study)[0],
        runs=_runs(study),
        cautions=cautions,
        level=SIGNIFICANCE_LEVEL,
        settings=list(SETTINGS.values()),
    )
    (out / MARKDOWN_FILE).write_text(study_markdown(study, [*summary, *_missing(study)], cautions), encoding="utf-8")
    return path


# In words


def settings_text(settings: Mapping[str, Any]) -> str:
    """`mix.alpha: 0.5, mix.mixed: X-X`; what an arm without settings says is that it changes none."""
    texts = [f"{key}: {_setting_text(value)}" for key, value in settings.items()]
    return ", ".join(texts) or "the configuration as it is"


def _setting_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _summary(study: Study) -> list[str]:
    runs = study["runs"]
    finished = sum(run["status"] == "finished" for run in runs)
    data = f" on {_shares(study['fractions'])}" if study["fractions"] != [1.0] else ""
    seeds = ", ".join(map(str, study["seeds"]))
    return [
        f"{_counted(len(study['arms']), 'arm')}, {'seeds' if len(study['seeds']) > 1 else 'seed'} {seeds}{data}: "
        f"{_counted(finished, 'run')} finished, {len(runs) - finished} failed",
        f"{_counted(study['steps'], 'step')} of {count_text(study['batch_size'])} pairs, from {study['backbone']}",
        f"compared with {study['baseline']}",
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count_text(count)} {noun}" + ("" if count == 1 else "s")


def _shares(fractions: Sequence[float]) -> str:
    return f"{', '.join(f'{fraction:.4g}' for fraction in fractions)} of the training documents"


def _missing(study: Study) -> list[str]:
    """A sentence for every arm that lacks runs."""
    failed: dict[tuple[str, int], list[float]] = {}
    for run in study["runs"]:
        if run["status"] == "failed":
            failed.setdefault((run["arm"], run["seed"]), []).append(run["fraction"])
    several = len(study["fractions"]) > 1
    return [
        f"{arm} is without seed {seed}{f' on {_shares(shares)}' if several else ''}: training failed."
        for (arm, seed), shares in failed.items()
    ]


def _cautions(study: Study) -> Iterator[str]:
    """What the intervals and tests say, and what they do not."""
    seeds = len(study["seeds"])
    if seeds > 1:
        yield (
            "An interval below a value draws both questions and seeds anew: it holds for other questions like these "
            "and other seeds. With few seeds, whose spread is then known badly, it is rather too narrow."
        )
        yield (
            "p (Holm) compares arms averaged over their seeds, question by question. A small one says that these "
            "trained models differ on questions like these; it does not say whether models of other seeds would."
        )
        yield (
            f"p over seeds is that of a paired t-test over {seeds} seeds, {_counted(seeds - 1, 'degree')} of freedom "
            "where none failed. A small one says that the difference is larger than the luck of a seed, on these same "
            "questions. Few seeds reveal only large differences. It stands uncorrected, then after Holm’s correction."
        )
        yield "A difference is well supported where both corrected p-values are small."
    else:
        yield "An interval below a value draws questions anew: one seed cannot say what another would have given."
        yield (
            "p (Holm) compares two trained models question by question. A small one says that these models differ on "
            "questions like these, not that one way of training is better: that takes several seeds."
        )
    yield "A large p-value is no evidence that arms are equal: the interval shows which differences remain possible."
    yield "Languages are given, not sampled: nothing follows for languages outside of the benchmark."


# One benchmark


def _view(name: str, study: Study, benchmark: Benchmark) -> BenchmarkView:
    tested = tested_measures(benchmark)
    codes = benchmark["languages"]
    return BenchmarkView(
        name,
        about=f"{_counted(len(codes), 'language')}: {', '.join(codes)}",
        retrieval=retrieval_table(benchmark),
        bias=language_bias_table(benchmark) if bias_measures(benchmark) else None,
        seeds=seed_table(benchmark),
        tested=[measure_label(measure) for measure in tested],
        differences=difference_rows(benchmark, tested),
        forest=[_forest(benchmark, measure, study["baseline"]) for measure in tested],
        every=[_arm_tests(arm, tests) for arm, tests in benchmark["tests"].items()],
        alpha=_alpha_curves(study, benchmark),
        changes=list(_changes(benchmark)),
        fractions=_fraction_curves(study, benchmark),
        notes=list(benchmark["notes"]),
        method=[
            (key.replace("_", " "), value if isinstance(value, str) else tick_text(value))
            for key, value in benchmark["method"].items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)
        ],
    )


def _arm_tests(arm: str, tests: Results) -> ArmTests:
    measures = dict.fromkeys(name for found in tests["settings"].values() for name in found or {})
    rows = [
        ShownTests(name, [shown_test(find_test(tests, (setting, name)), 4) for setting in SETTINGS])
        for name in measures
    ]
    bias = [
        ShownTests(BIAS[name].label, [shown_test(test, difference_digits((LANGUAGE_BIAS, name)))])
        for name, test in (tests[LANGUAGE_BIAS] or {}).items()
        if test is not None
    ]
    return ArmTests(arm, [row for row in rows if any(row.tests)], bias)


def _forest(benchmark: Benchmark, measure: Measure, baseline: str) -> Chart:
    """Differences of all arms in one measure: the interval over questions, and thinner below it that over seeds."""
    tests = {arm: test for arm, found in benchmark["tests"].items() if (test := find_test(found, measure))}
    keys = ("difference", "low", "high", "seed_difference_low", "seed_difference_high")
    ends = [test.get(key) for test in tests.values() for key in keys]
    frame = Frame(
        axis_of(f"difference from {baseline}", [0.0, *filter(defined, ends)]),
        named_axis("", list(tests), downwards=True),
        height=56 + ROW_HEIGHT * len(tests),
        margins=name_margins(tests),
    )
    marks = [line(frame, [(0, -0.5), (0, len(tests) - 0.5)], "zero")]
    for row, (arm, test) in enumerate(tests.items()):
        marks += _forest_row(frame, row, arm, test, difference_digits(measure))
    words = f"{measure_label(measure)}: differences of {_counted(len(tests), 'arm')} from {baseline}"
    return Chart(measure_label(measure), words, frame, marks)


def _forest_row(frame: Frame, row: int, arm: str, test: Mapping[str, Any], digits: int) -> list[Mark]:
    text = shown_test(test, digits)
    assert text is not None
    title = f"{arm}: {text.difference}, {text.interval}, p {text.p_holm}"
    marks = [line(frame, [(test["low"], row), (test["high"], row)], "interval", title)]
    low, high = (test.get(f"seed_difference_{end}") for end in ("low", "high"))
    if defined(low) and defined(high):
        below = row + SEEDS_BELOW
        seeds = f"{arm}, over seeds: {text.seed_interval}, p {text.seed_p}"
        marks.append(line(frame, [(low, below), (high, below)], "seeds", seeds))
    return [*marks, dot(frame, test["difference"], row, "finished" if text.significant else "open", title)]


# α


def _alpha_curves(study: Study, benchmark: Benchmark) -> Curves | None:
    """Measures over the arms that differ in nothing but a constant α; a series for each set of other settings."""
    families: dict[str, list[tuple[float, str]]] = {}
    for arm, found in study["arms"].items():
        alpha = found["settings"].get(ALPHA)
        if arm in benchmark["table"] and isinstance(alpha, int | float):
            others = {key: value for key, value in found["settings"].items() if key != ALPHA}
            families.setdefault(settings_text(others) if others else "", []).append((float(alpha), arm))
    curves = {name: sorted(arms) for name, arms in families.items() if len({alpha for alpha, _ in arms}) > 1}
    measures = defined_measures(benchmark, HEADLINE)
    if not curves or not measures:
        return None
    labels = {name: name or "constant α" for name in curves}
    places = {
        labels[name]: [(alpha, benchmark["table"][arm], arm) for alpha, arm in found] for name, found in curves.items()
    }
    return _curves(places, measures, "α")


def _fraction_curves(study: Study, benchmark: Benchmark) -> Curves | None:
    """Measures over the share of the training documents, a series per arm; None with one share."""
    if len(study["fractions"]) < 2 or not benchmark["by_fraction"]:
        return None
    largest = max(study["fractions"])
    places = {}
    for arm, by_fraction in benchmark["by_fraction"].items():
        found = {largest: benchmark["table"].get(arm, {})} | {float(share): one for share, one in by_fraction.items()}
        places[arm] = [(share, found[share], f"{arm}, {share:g} of the documents") for share in sorted(found)]
    measures = defined_measures(benchmark, HEADLINE)
    log = largest / min(study["fractions"]) >= LOG_RATIO
    return _curves(places, measures, "share of the training documents", log=log) if measures else None


def _curves(
    places: Mapping[str, Sequence[tuple[float, Results, str]]],
    measures: Sequence[Measure],
    label: str,
    *,
    log: bool = False,
) -> Curves:
    """Charts of measures over x, from series -> (x, results, name); intervals, and a dot per seed."""
    series = [Series(name, series_style(index)) for index, name in enumerate(places)]
    charts = [_curve_chart(places, series, measure, label, log=log) for measure in measures]
    return Curves(charts, series if len(series) > 1 else [])


def _curve_chart(
    places: Mapping[str, Sequence[tuple[float, Results, str]]],
    series: Sequence[Series],
    measure: Measure,
    label: str,
    *,
    log: bool,
) -> Chart:
    found = {
        name: [(x, value, who) for x, results, who in points if (value := value_of(results, measure))]
        for name, points in places.items()
    }
    values = [value for points in found.values() for _, value, _ in points]
    ends = [end for value in values for end in (value["mean"], value["low"], value["high"], *value["seeds"])]
    xs = [x for points in found.values() for x, _, _ in points]
    frame = Frame(axis_of(label, xs, log=log), axis_of("", filter(defined, ends)))
    marks = [mark for one in series for mark in _series_marks(frame, found[one.name], one.style, measure)]
    words = f"{measure_label(measure)} over {label}, {_counted(len(values), 'value')}"
    return Chart(_directed(measure), words, frame, marks)


def _series_marks(
    frame: Frame, points: Sequence[tuple[float, Mapping[str, Any], str]], style: str, measure: Measure
) -> Iterator[Mark]:
    text = measure_text(measure)
    if len(points) > 1:
        yield line(frame, [(x, value["mean"]) for x, value, _ in points], "series", style=style)
    for x, value, who in points:
        low, high = value["low"], value["high"]
        title = f"{who}: {text(value['mean'])}"
        if defined(low) and defined(high):
            title += f", {text(low)} to {text(high)}"
            yield line(frame, [(x, low), (x, high)], "interval", title, style)
        for seed in value["seeds"] if len(value["seeds"]) > 1 else ():
            one = dot(frame, x, seed, "seed", f"{who}, one seed: {text(seed)}", radius=3, style=style)
            yield one._replace(x=one.x + SEED_ASIDE)
        yield dot(frame, x, value["mean"], "mean", title, style=style)


def _directed(measure: Measure) -> str:
    direction = BIAS[measure[1]].direction if measure[0] == LANGUAGE_BIAS else ""
    return measure_label(measure) + (f" ({direction})" if direction else "")


# By language and group


def _changes(benchmark: Benchmark) -> Iterator[Changes]:
    """Differences from the baseline in mAP: by language where queries are monolingual, and by group in each setting."""
    for key, setting in SETTINGS.items():
        arms = list(benchmark["tests"])
        kinds = {name: _groups(benchmark, grouping, key) for grouping, name in GROUPINGS.items()}
        if key == "monolingual":
            kinds = {"language": _by_language(benchmark)} | kinds
        tests = [test for rows in kinds.values() for found in rows.values() for test in found if test]
        if not tests:
            continue
        largest = max(abs(test["difference"]) for test in tests) or 1.0
        scale = Scale(-largest, largest)
        sections = [
            ChangeSection(f"by {kind}", [_change_row(kind, label, found, scale) for label, found in rows.items()])
            for kind, rows in kinds.items()
            if rows
        ]
        yield Changes(setting.name, arms, sections, [_legend(scale)])


def _by_language(benchmark: Benchmark) -> dict[str, list[Mapping[str, Any] | None]]:
    """Language -> the test of each arm; languages without any left out."""
    by_arm = [benchmark["monolingual_change"].get(arm) or {} for arm in benchmark["tests"]]
    found = {code: [tests.get(code) for tests in by_arm] for code in benchmark["languages"]}
    return {code: tests for code, tests in found.items() if any(tests)}


def _groups(benchmark: Benchmark, grouping: str, setting: str) -> dict[str, list[Mapping[str, Any] | None]]:
    """Group -> the test of each arm in a setting; groups without any left out."""
    by_arm = [(tests["groups"] or {}).get(grouping) or {} for tests in benchmark["tests"].values()]
    names = dict.fromkeys(name for groups in by_arm for name in groups)
    found = {name: [(groups.get(name) or {}).get(setting) for groups in by_arm] for name in names}
    return {name: tests for name, tests in found.items() if any(tests)}


def _change_row(kind: str, label: str, tests: Sequence[Mapping[str, Any] | None], scale: Scale) -> ChangeRow:
    name, code = (_language_name(label), label) if kind == "language" else (label, "")
    return ChangeRow(name, code, [_change_cell(test, scale) for test in tests])


def _language_name(code: str) -> str:
    """The English name of a language; its code where CLDR lacks it."""
    try:
        return language(code).name
    except ConfigError:
        return code


def _change_cell(test: Mapping[str, Any] | None, scale: Scale) -> ChangeCell:
    text = shown_test(test, 4)
    if test is None or text is None:
        return ChangeCell(NOT_DEFINED)
    colour = background(scale.position(test["difference"]), DIFFERENCE_COLOURS)
    title = f"{text.difference}, {text.interval}, p {text.p_holm}"
    return ChangeCell(short_difference(test["difference"]), colour, ink(colour), is_significant(test), title)


def _legend(scale: Scale) -> Legend:
    stops = [background(place / (LEGEND_STOPS - 1), DIFFERENCE_COLOURS) for place in range(LEGEND_STOPS)]
    return Legend("difference in mAP", difference_text(scale.low, 3), difference_text(scale.high, 3), stops)


# Runs


def _runs(study: Study) -> list[RunRow]:
    rows = []
    for run, cells in zip(study["runs"], runs_table(study)[1], strict=True):
        failed = run["status"] == "failed"
        error = (run["error"] or "").strip() if failed else ""
        shown = [*cells[:3], run["status"], *cells[4:-1]]
        rows.append(RunRow(shown, failed, run["mlflow_run_id"] or "", error, reason(run["error"]) if failed else ""))
    return rows
