"""Self-contained HTML reports: one system on one benchmark, or several systems side by side.

Everything a page shows is made into text and colour before; the templates only lay it out. A page has no script,
and no font or image to load, so it opens offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from babel import Locale, UnknownLocaleError
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.heatmaps import Heatmap, difference_heatmap, score_heatmap, share_heatmap
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import (
    MATRIX_LANGUAGES,
    Cell,
    grid_scales,
    hub_language,
    is_matrix,
    language_profile,
    profile_name,
    score_grid,
)
from hbt_ray.evaluation.tables import (
    BIAS,
    NOT_DEFINED,
    SETTINGS,
    Column,
    ColumnGroup,
    LanguageTable,
    Metrics,
    NumberText,
    Value,
    bias_rows,
    bias_table,
    check_metrics,
    count_text,
    defined,
    difference_text,
    language_table,
    percent_text,
    probability_text,
    profile_table,
    rank_text,
    score_text,
    setting_rows,
)
from hbt_ray.languages import Language, language

REPORT_FILE = "report.html"
TEMPLATES = "hbt_ray.evaluation"  # the package whose templates every page shares
SIGNIFICANCE_LEVEL = 0.05
CLAMPED_CHARACTERS = 240  # texts longer than about three lines open on demand
RANK_MEASURES = ("rank_distance", "max@R")  # in ranks, not in [0, 1]
GROUPINGS = {"family": "family", "resource_level": "resource level", "seen": "whether training had the language"}
# By what a comparison describes languages: multilingual if there is a merged pool, else what there is.
PROFILE_ORDER = ("Multilingual", "Cross-lingual, as query", "Monolingual")


@dataclass(frozen=True, slots=True)
class System:
    """One system of a comparison.

    Args:
        name: what the report calls it.
        metrics: content of its metrics.json.
        cells: its cells, as write_report takes them.
        details: what tells it from the others (alpha, steps, validation loss, model folder), as text.
    """

    name: str
    metrics: Metrics
    cells: Sequence[Cell]
    details: Mapping[str, str] = field(default_factory=dict)


class Bar(NamedTuple):
    """A language, its number and share in percent, and the bar's length in percent of the longest."""

    language: Language
    text: str
    share: str
    percent: float


class Text(NamedTuple):
    """A text as a page shows it: with its language, its direction, and whether it opens on demand."""

    text: str
    language: Language
    direction: str
    long: bool


class ExampleRank(NamedTuple):
    """Where the first relevant candidate of a language was ranked."""

    language: Language
    text: str


class ShownExample(NamedTuple):
    """One query: what it asked, what came first, and the relevant candidate that came first of all those."""

    query: Text
    query_id: str
    setting: str
    average_precision: str
    ranks: list[ExampleRank]
    top: Text
    relevant: Text
    found: bool


class ComparedRow(NamedTuple):
    """A measure with a value per system."""

    label: str
    direction: str
    values: list[Value]


class ComparedGroup(NamedTuple):
    """The measures of one setting, or those of language bias; `absent` says why there is none."""

    name: str
    meaning: str
    rows: list[ComparedRow]
    absent: str


class Tested(NamedTuple):
    """A difference with its interval, corrected p-value and effect size; `significant` below SIGNIFICANCE_LEVEL."""

    difference: str
    interval: str
    p_holm: str
    effect_size: str
    significant: bool


class TestedRow(NamedTuple):
    """A line of differences; None where there is none."""

    label: str
    direction: str
    tests: list[Tested | None]


class TestedGroup(NamedTuple):
    """Differences of one grouping of languages."""

    name: str
    rows: list[TestedRow]


class Significance(NamedTuple):
    """The differences of one system from the first.

    Args:
        name: of the system.
        settings: a row per measure, a difference per setting.
        bias: a row per measure of language bias.
        counts: cells tested, significantly higher and significantly lower.
        heatmap: differences of language pairs, where a matrix shows them.
        pairs: the significant cells by size, where it does not.
        groups: of languages.
    """

    name: str
    settings: list[TestedRow]
    bias: list[TestedRow]
    counts: tuple[int, int, int]
    heatmap: Heatmap | None
    pairs: list[TestedRow]
    groups: list[TestedGroup]


def write_report(
    out: Path,
    metrics: Metrics,
    cells: Sequence[Cell],
    *,
    title: str,
    notes: Sequence[str] = (),
    seen_languages: Sequence[str] | None = None,
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write `report.html`, the report of one system, into the folder `out` and return its path.

    Args:
        out: folder, made if it does not exist.
        metrics: content of metrics.json; None stands for a value that is not defined.
        cells: rows of cells.csv: query_language, candidate_language ("all" is the merged pool), queries, MEASURES.
        title: heading of the page.
        notes: what a reader must know to judge the numbers, a sentence each, beside the notes of the metrics.
        seen_languages: languages of the training data; None leaves seen and unseen out.
        examples: content of examples.json; None leaves them out.

    Raises:
        BenchmarkError: metrics lack a key, or cells do not fit the languages.
        ConfigError: a language code that CLDR does not know.
    """
    check_metrics(metrics, "metrics")
    codes = metrics["languages"]
    bias = metrics["language_bias"]
    shares = bias["language_share@10"]
    hub = hub_language(cells)
    left_out = {code: count for code, count in metrics["queries_without_relevant"].items() if count}
    return write_page(
        out / REPORT_FILE,
        "report.html",
        title=title,
        notes=list(dict.fromkeys((*metrics["notes"], *notes))),
        metrics=metrics,
        measures=MEASURES,
        settings=setting_rows(metrics),
        lead=_lead(metrics),
        merged_pool=metrics["multilingual"]["cells"] > 0,
        heatmaps=_heatmaps(cells, codes),
        table=profile_table(cells, codes, seen_languages),
        hub=language(hub).name if hub else "",
        bias=bias_rows(bias),
        bias_queries=count_text(bias["queries"]),
        bias_reason=_common_reason(bias),
        bias_table=bias_table(bias, codes),
        share_map=share_heatmap(shares, metrics["pool"]) if 0 < len(shares) <= MATRIX_LANGUAGES else None,
        pool=_bars(metrics["pool"]),
        left_out=[(language(code), count_text(count)) for code, count in left_out.items()],
        left_out_total=count_text(sum(left_out.values())),
        examples={kind: [_example(one) for one in examples[kind]] for kind in ("best", "worst")} if examples else {},
        signatures={title: metrics["signature"]},
    )


def write_comparison(
    out: Path,
    systems: Sequence[System],
    *,
    title: str,
    notes: Sequence[str] = (),
    seen_languages: Sequence[str] | None = None,
    significance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html`, comparing systems on one benchmark, into the folder `out` and return its path.

    Systems stay in the order given and differences are taken from the first. `significance` is what
    comparison.compare returns for the same systems in the same order; without it no difference is called
    significant. Other arguments and errors are those of write_report; BenchmarkError also for no system, a name
    given twice, systems evaluated on different data, or a significance of other systems.
    """
    _check_systems(systems)
    if significance is not None:
        _check_significance(significance, systems)
    codes = systems[0].metrics["languages"]
    grids = {system.name: score_grid(system.cells, codes, "mAP") for system in systems}
    scales = grid_scales(grids.values())
    profile = _comparison_profile(grids.values())
    matrix = is_matrix(systems[0].cells)
    hub = hub_language(systems[0].cells)
    names = [system.name for system in systems]
    return write_page(
        out / REPORT_FILE,
        "comparison.html",
        title=title,
        notes=_compared_notes(systems, notes),
        metrics=systems[0].metrics,
        measures=MEASURES,
        settings=SETTINGS,
        systems=systems,
        headline=_headline([system.metrics for system in systems]),
        details=list(dict.fromkeys(key for system in systems for key in system.details)),
        heatmaps=[score_heatmap(name, grid, codes, scales) for name, grid in grids.items()] if matrix else [],
        profile=profile_name(profile, language(hub).name if hub else None),
        table=_compared_languages(grids, codes, hub, profile, seen_languages),
        significance=[] if significance is None else _significance(significance, names, codes),
        method={} if significance is None else significance["method"],
        level=SIGNIFICANCE_LEVEL,
        signatures={system.name: system.metrics["signature"] for system in systems},
    )


def write_page(path: Path, template: str, package: str = TEMPLATES, **content: object) -> Path:
    """Write the page that a template of `package` makes of `content`, and return its path.

    A template may extend and import those of this package, whose base it shares.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, TEMPLATES))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(not_defined=NOT_DEFINED, **content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


# One system


def _lead(metrics: Metrics) -> str:
    queries = max(metrics[key]["queries"] for key in ("monolingual", "multilingual"))
    queries = queries or metrics["cross_lingual"]["queries"]
    return f"{count_text(queries)} queries, {count_text(sum(metrics['pool'].values()))} candidates"


def _heatmaps(cells: Sequence[Cell], codes: Sequence[str]) -> list[Heatmap]:
    """One per measure, where a matrix shows the pairs."""
    if not is_matrix(cells):
        return []
    grids = {measure: score_grid(cells, codes, measure) for measure in MEASURES}
    return [score_heatmap(measure, grid, codes, grid_scales([grid])) for measure, grid in grids.items()]


def _common_reason(bias: Metrics) -> str:
    """The reason that all measures of language bias have in common for not being defined; empty if any is defined."""
    reasons = set(bias["undefined"].values())
    return reasons.pop() if len(reasons) == 1 and not any(defined(bias[key]) for key in BIAS) else ""


def _bars(counts: Mapping[str, int]) -> list[Bar]:
    total, longest = sum(counts.values()), max(counts.values(), default=0)
    return [
        Bar(language(code), count_text(count), f"{percent_text(count / total)}%", percent=100 * count / longest)
        for code, count in counts.items()
    ]


def _example(example: Mapping[str, Any]) -> ShownExample:
    ranks = example["ranks"]
    best = ranks.get(example["relevant_language"])
    return ShownExample(
        query=shown_text(example["query"], example["query_language"]),
        query_id=example["query_id"],
        setting=SETTINGS[example["setting"]].name,
        average_precision=score_text(example["average_precision"]),
        ranks=[ExampleRank(language(code), count_text(rank)) for code, rank in ranks.items()],
        top=shown_text(example["top_text"], example["top_language"]),
        relevant=shown_text(example["relevant_text"], example["relevant_language"]),
        found=best == 1,
    )


def shown_text(text: str, code: str) -> Text:
    """A text with the direction of its language; `auto`, the browser's own choice, where CLDR does not know it."""
    try:
        direction = {"right-to-left": "rtl", "left-to-right": "ltr"}[Locale.parse(code).character_order]
    except (UnknownLocaleError, ValueError):
        direction = "auto"
    return Text(text, language(code), direction, len(text) > CLAMPED_CHARACTERS)


# Several systems


def _check_systems(systems: Sequence[System]) -> None:
    names = [system.name for system in systems]
    if not names:
        raise BenchmarkError("systems", "none", "one system or more", "Name the systems to compare.")
    for index, system in enumerate(systems):
        where = f"systems[{index}] ({system.name})"
        if system.name in names[:index]:
            raise BenchmarkError(where, "a name used before", "a name of its own", "Rename one of the two.")
        check_metrics(system.metrics, f"{where} metrics")
        received, expected = _evaluation_data(system.metrics), _evaluation_data(systems[0].metrics)
        if received != expected:
            raise BenchmarkError(
                where, received, f"{expected}, as {names[0]} has", "Compare systems evaluated on the same data."
            )


def _compared_notes(systems: Sequence[System], notes: Sequence[str]) -> list[str]:
    """All notes, each once; where systems differ in what they may be called, the lines say which they are about."""
    named: dict[str, list[str]] = {}
    own: list[str] = []
    for system in systems:
        line = system.metrics.get("zero_shot", {}).get("why")
        own += [note for note in system.metrics["notes"] if note != line]
        if line:
            named.setdefault(line, []).append(system.name)
    alike = [names for names in named.values() if len(names) == len(systems)]
    lines = [line if alike else f"{', '.join(names)}: {line}" for line, names in named.items()]
    return list(dict.fromkeys([*own, *(note for note in notes if note not in named), *lines]))


def _evaluation_data(metrics: Metrics) -> str:
    """What two systems must share for their numbers to be comparable: benchmark, data hash, languages, pool."""
    data = [part for part in metrics["signature"].split("|") if part.startswith("data:")]
    pool = [f"{code} {count}" for code, count in metrics["pool"].items()]
    languages = ", ".join(metrics["languages"])
    return f"{metrics['benchmark']} {' '.join(data)} in {languages} with candidates {', '.join(pool)}"


def _check_significance(significance: Mapping[str, Any], systems: Sequence[System]) -> None:
    received = [system["signature"] for system in significance["systems"]]
    expected = [system.metrics["signature"] for system in systems]
    if received != expected:
        raise BenchmarkError(
            "significance",
            f"systems {', '.join(received)}",
            ", ".join(expected),
            "Compare the results folders of the same systems, in the same order.",
        )


def compared_scores(scores: Column) -> list[Value]:
    """Scores of several systems: the highest is best."""
    return _compared(scores, score_text, max, digits=4)


def compared_ranks(distances: Column) -> list[Value]:
    """Rank distances of several systems: the lowest is best."""
    return _compared(distances, rank_text, min, digits=1)


def _compared(
    values: Column,
    text: NumberText,
    best_of: Callable[[Iterable[float]], float] | None,
    digits: int,
) -> list[Value]:
    """Values of several systems with their difference from the first; none is best where `best_of` is None."""
    numbers = [value for value in values if defined(value)]
    best = text(best_of(numbers)) if numbers and best_of else None  # as text: what prints alike is best together
    differences = ["", *(_difference(value, values[0], digits) for value in values[1:])]
    return [
        Value(text(value), text(value) == best, difference)
        for value, difference in zip(values, differences, strict=True)
    ]


def _difference(value: float | None, first: float | None, digits: int) -> str:
    return difference_text(value - first, digits) if defined(value) and defined(first) else NOT_DEFINED


def _headline(metrics: Sequence[Metrics]) -> list[ComparedGroup]:
    """A row per measure of each setting, then per measure of language bias, with a value per system."""
    groups = []
    for key, setting in SETTINGS.items():
        rows = [ComparedRow(name, "", compared_scores([system[key][name] for system in metrics])) for name in MEASURES]
        absent = "" if metrics[0][key]["cells"] else f"not defined: {setting.lacking}"
        groups.append(ComparedGroup(setting.name, setting.meaning, [] if absent else rows, absent))
    biases = [system["language_bias"] for system in metrics]
    rows = [_compared_bias(key, biases) for key in BIAS if any(defined(bias[key]) for bias in biases)]
    reason = _common_reason(biases[0]) or "no measure has a value"
    groups.append(ComparedGroup("Language bias", "", rows, "" if rows else f"not defined: {reason}"))
    return groups


def _compared_bias(key: str, biases: Sequence[Metrics]) -> ComparedRow:
    measure = BIAS[key]
    numbers = [bias[key] for bias in biases]
    if key == "friedman_p":  # p-values have no difference worth printing
        return ComparedRow(measure.label, measure.direction, [Value(measure.text(number)) for number in numbers])
    best_of = {-1: min, 1: max, 0: None}[measure.sign]
    return ComparedRow(measure.label, measure.direction, _compared(numbers, measure.text, best_of, _bias_digits(key)))


def _bias_digits(key: str) -> int:
    return 1 if key in RANK_MEASURES else 2 if key == "rank_distance_log2" else 4


def _comparison_profile(grids: Iterable[np.ndarray]) -> str:
    """The first column of PROFILE_ORDER in which a system has scores."""
    profiles = [language_profile(grid) for grid in grids]
    return next(
        (name for name in PROFILE_ORDER if any(np.isfinite(profile[name]).any() for profile in profiles)),
        PROFILE_ORDER[0],
    )


def _compared_languages(
    grids: Mapping[str, np.ndarray],
    codes: Sequence[str],
    hub: str | None,
    profile: str,
    seen_languages: Sequence[str] | None,
) -> LanguageTable:
    columns = [language_profile(grid)[profile] for grid in grids.values()]
    shown = [i for i, code in enumerate(codes) if code != hub and any(defined(column[i]) for column in columns)]
    return language_table(
        [codes[i] for i in shown],
        [ColumnGroup(name, [name]) for name in grids],
        [[column[i] for i in shown] for column in columns],
        compared_scores,
        seen_languages,
    )


# Significance


def _significance(significance: Mapping[str, Any], names: Sequence[str], codes: Sequence[str]) -> list[Significance]:
    compared = (significance, *significance["comparisons"])
    return [_system_significance(one, name, codes) for name, one in zip(names[1:], compared, strict=True)]


def _system_significance(compared: Mapping[str, Any], name: str, codes: Sequence[str]) -> Significance:
    cells = compared["cells"]
    tested = [cell["mAP"] for cell in cells if cell["mAP"] is not None]
    higher, lower = (sum(_is_significant(row) and sign * row["difference"] > 0 for row in tested) for sign in (1, -1))
    matrix = is_matrix(cells)
    return Significance(
        name,
        settings=[
            TestedRow(measure, "", [_tested((compared["settings"][key] or {}).get(measure)) for key in SETTINGS])
            for measure in MEASURES
        ],
        bias=[
            TestedRow(BIAS[key].label, BIAS[key].direction, [_tested(row, _bias_digits(key))])
            for key, row in compared["language_bias"].items()
            if row is not None
        ],
        counts=(len(tested), higher, lower),
        heatmap=_difference_map(cells, codes, name) if matrix else None,
        pairs=[] if matrix else _significant_pairs(cells),
        groups=[
            TestedGroup(GROUPINGS[grouping], rows)
            for grouping, groups in compared["groups"].items()
            if (rows := _group_rows(groups))
        ],
    )


def _tested(row: Mapping[str, Any] | None, digits: int = 4) -> Tested | None:
    if row is None:
        return None
    low, high = (difference_text(row[end], digits) for end in ("low", "high"))
    effect = row["effect_size"]
    return Tested(
        difference_text(row["difference"], digits),
        f"{low} to {high}",
        probability_text(row["p_holm"]),
        NOT_DEFINED if effect is None else difference_text(effect, 2),
        _is_significant(row),
    )


def _is_significant(row: Mapping[str, Any]) -> bool:
    return bool(row["p_holm"] < SIGNIFICANCE_LEVEL)


def _difference_map(cells: Sequence[Mapping[str, Any]], codes: Sequence[str], name: str) -> Heatmap:
    def grid(value: Callable[[Mapping[str, Any]], float]) -> np.ndarray:
        rows = [{**cell, "mAP": None if cell["mAP"] is None else value(cell["mAP"])} for cell in cells]
        return score_grid(rows, codes, "mAP")

    marked = grid(lambda row: float(_is_significant(row))) == 1
    return difference_heatmap(name, grid(lambda row: row["difference"]), codes, marked)


def _significant_pairs(cells: Sequence[Mapping[str, Any]]) -> list[TestedRow]:
    significant = [cell for cell in cells if cell["mAP"] is not None and _is_significant(cell["mAP"])]
    significant.sort(key=lambda cell: -abs(cell["mAP"]["difference"]))
    return [
        TestedRow(f"{cell['query_language']} → {cell['candidate_language']}", "", [_tested(cell["mAP"])])
        for cell in significant
    ]


def _group_rows(groups: Mapping[str, Mapping[str, Any]]) -> list[TestedRow]:
    rows = [
        TestedRow(group, "", [_tested(by_setting[key]) for key in SETTINGS]) for group, by_setting in groups.items()
    ]
    return [row for row in rows if any(row.tests)]
