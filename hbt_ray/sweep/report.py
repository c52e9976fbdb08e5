"""The page of a sweep, drawn from sweep.json alone: what was best, how scores depend on the settings, every trial.

Curves and surface describe the trials that finished, on the validation questions they were chosen by; trials stopped
early are shown hollow and enter no fit, because they trained for less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from hbt_ray.evaluation.charts import (
    WIDE,
    Axis,
    Chart,
    Frame,
    Margins,
    Mark,
    area,
    axis_of,
    dot,
    line,
    named_axis,
    shortened,
    step_points,
    tick_text,
)
from hbt_ray.evaluation.heatmaps import LEGEND_STOPS, Legend
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import COLOUR_MAP, Scale, background
from hbt_ray.evaluation.report import write_page
from hbt_ray.evaluation.tables import (
    BIAS,
    NOT_DEFINED,
    SETTINGS,
    NumberText,
    Value,
    count_text,
    defined,
    interval_text,
    rank_text,
    score_text,
)

SWEEP_FILE = "sweep.html"
ALPHA, TEMPERATURE = "mix.alpha", "train.temperature"
SYMBOLS = {ALPHA: "α", TEMPERATURE: "τ"}
SCORE = "score"
FITTED_TRIALS, FITTED_VALUES = 8, 4  # a quadratic through fewer says little
BAND_RESAMPLES = 2000
LOG_RATIO = 8  # listed values that span this much are shown on a logarithmic axis
SURFACE_LEVELS = 9
TALL, LOW = 300, 280  # heights of the wide charts, in pixels
STATUS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
HEADINGS = {  # the paper's columns, for the best model's other benchmarks
    "monolingual": ("mAP", "R@1"),
    "cross_lingual": ("mAP", "R@1"),
    "multilingual": ("mAP", "R@10"),
}

Trial: TypeAlias = Mapping[str, Any]
Sweep: TypeAlias = Mapping[str, Any]
Array: TypeAlias = npt.NDArray[np.float64]


class MeasuredRow(NamedTuple):
    """A setting and its measures."""

    name: str
    values: list[Value]


class Curves(NamedTuple):
    """The charts of one searched key, and what is said about their fit."""

    heading: str
    charts: list[Chart]
    fit: str


class Surface(NamedTuple):
    """Score over α and τ, and its colours."""

    chart: Chart
    legends: list[Legend]


class TrialRow(NamedTuple):
    """A trial as the table shows it; `reason` is the last line of an error, `error` all of it."""

    trial_id: str
    status: str
    failed: bool
    best: bool
    on_front: bool
    settings: list[str]
    numbers: list[str]
    run: str
    reason: str
    error: str


class Reported(NamedTuple):
    """The best model on a benchmark that did not choose it."""

    benchmark: str
    values: list[Value]


def write_sweep_report(sweep: Sweep, out: Path) -> Path:
    """Write `sweep.html` into the folder `out` and return its path.

    Args:
        sweep: content of sweep.json.
        out: folder, made if it does not exist.
    """
    best = sweep["best"]
    columns = objective_metrics(sweep)
    return write_page(
        out / SWEEP_FILE,
        "sweep.html",
        __package__,
        title=sweep["name"],
        notes=[],
        summary=_summary(sweep),
        sweep=sweep,
        formula=score_formula(sweep["objective"]["weights"]),
        best=best,
        best_settings=[] if best is None else [(key, value_text(value)) for key, value in best["settings"].items()],
        best_score="" if best is None else score_text(best["score"]),
        best_yaml="" if best is None else yaml.safe_dump(best["config"], sort_keys=False, allow_unicode=True),
        measures=[] if best is None else _measures(best["metrics"]),
        settings=[] if best is None else _setting_rows(best["metrics"]),
        bias=[] if best is None else _bias_rows(best["metrics"]),
        validation_loss=None if best is None else _number(best["metrics"], "validation_loss"),
        heading_settings=[(SETTINGS[key].name, measures) for key, measures in HEADINGS.items()],
        reports=[] if best is None else [_reported(name, found) for name, found in best["reports"].items()],
        curves=[found for key in sweep["space"] if (found := _curves(sweep, key))],
        surface=_surface(sweep),
        fronts=_fronts(sweep),
        parallel=_parallel(sweep),
        schedules=_schedules(sweep),
        learning=_learning(sweep),
        keys=list(sweep["space"]),
        columns=[metric_label(name) for name in columns],
        trials=[_trial_row(sweep, trial, columns) for trial in _ranked(sweep["trials"])],
    )


# Names and numbers as text


def metric_label(name: str) -> str:
    """`multilingual/mAP` as `Multilingual mAP`, `language_bias/rank_distance` as `Rank distance`."""
    if name == SCORE:
        return "Score"
    section, _, measure = name.partition("/")
    if section in SETTINGS:
        return f"{SETTINGS[section].name} {measure}"
    return BIAS[measure].label if measure in BIAS else name.replace("_", " ").capitalize()


def metric_text(name: str) -> NumberText:
    """How a metric is printed: ranks with one digit, scores and losses with four."""
    measure = name.partition("/")[2]
    return BIAS[measure].text if measure in BIAS else score_text


def value_text(value: object) -> str:
    """A setting's value: a number with four significant digits, a schedule of α as `1 → 0 at step 250`."""
    if isinstance(value, Mapping) and "points" in value:
        return _schedule_text(value)
    if is_number(value):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _schedule_text(schedule: Mapping[str, Any]) -> str:
    (_, first), *later = schedule["points"]
    arrow = "⇢" if schedule.get("interpolation", "linear") == "linear" else "→"
    return " ".join([value_text(first), *(f"{arrow} {value_text(alpha)} at step {step}" for step, alpha in later)])


def is_number(value: object) -> bool:
    """Whether a setting can stand on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration_text(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def score_formula(weights: Mapping[str, float]) -> str:
    """`Monolingual mAP + 2 × Multilingual mAP − 0.001 × Rank distance`."""
    terms = []
    for name, weight in weights.items():
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} × "
        terms.append(("− " if weight < 0 else "+ ") + factor + metric_label(name))
    return " ".join(terms).removeprefix("+ ")


def objective_metrics(sweep: Sweep) -> list[str]:
    """The metrics that decided: those of the score, then those of the Pareto front."""
    return list(dict.fromkeys((*sweep["objective"]["weights"], *sweep["objective"]["pareto"])))


def _summary(sweep: Sweep) -> list[str]:
    trials, languages = sweep["trials"], sweep["languages"]
    counts = {status: sum(trial["status"] == status for trial in trials) for status in STATUS}
    how_many = ", ".join(f"{count} {STATUS[status]}" for status, count in counts.items())
    scheduler = sweep["scheduler"]["name"]
    return [
        f"{_counted(len(trials), 'trial')}: {how_many}",
        f"{_counted(sweep['steps'], 'step')} each at most, {sweep['concurrent']} at a time, "
        f"{duration_text(sweep['seconds'])} in all",
        f"search {sweep['search']['algorithm']}, {'no scheduler' if scheduler == 'none' else f'scheduler {scheduler}'}",
        f"validated on {sweep['benchmark']}: {_counted(sweep['questions'], 'question')} in "
        f"{_counted(len(languages), 'language')} ({', '.join(languages)})",
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count_text(count)} {noun}" + ("" if count == 1 else "s")


# The best configuration


def _number(metrics: Mapping[str, float | None], name: str) -> Value:
    """A metric with its interval, where there is one."""
    low, high = (metrics.get(f"{name}/{end}") for end in ("low", "high"))
    text = metric_text(name)
    note = interval_text((low, high), text) if defined(low) and defined(high) else ""
    return Value(text(metrics.get(name)), note=note)


def _measures(metrics: Mapping[str, float]) -> list[str]:
    return [name for name in MEASURES if any(defined(metrics.get(f"{setting}/{name}")) for setting in SETTINGS)]


def _setting_rows(metrics: Mapping[str, float]) -> list[MeasuredRow]:
    rows = [
        MeasuredRow(setting.name, [_number(metrics, f"{key}/{measure}") for measure in _measures(metrics)])
        for key, setting in SETTINGS.items()
    ]
    return [row for row in rows if any(value.text != NOT_DEFINED for value in row.values)]


def _bias_rows(metrics: Mapping[str, float]) -> list[tuple[str, Value, str]]:
    """Label, value and direction of every measure of language bias with a value."""
    names = {f"language_bias/{key}": measure for key, measure in BIAS.items()}
    return [
        (measure.label, _number(metrics, name), measure.direction)
        for name, measure in names.items()
        if defined(metrics.get(name))
    ]


def _reported(benchmark: str, metrics: Mapping[str, Any]) -> Reported:
    values = []
    for key, measures in HEADINGS.items():
        ends = metrics[key]["intervals"]
        values += [Value(score_text(metrics[key][m]), note=interval_text(ends.get(m), score_text)) for m in measures]
    bias = metrics["language_bias"]
    distance = interval_text(bias["intervals"].get("rank_distance"), rank_text)
    return Reported(benchmark, [*values, Value(rank_text(bias["rank_distance"]), note=distance)])


# A metric against a searched key


def _curves(sweep: Sweep, key: str) -> Curves | None:
    """Score and, for α and τ, the metrics of the objective against a key; None where its values are schedules."""
    if not any(_has(trial, key) for trial in sweep["trials"]) or _is_scheduled(sweep, key):
        return None
    metrics = [SCORE, *objective_metrics(sweep)] if key in SYMBOLS else [SCORE]
    charts = [chart for metric in metrics if (chart := _key_chart(sweep, key, metric))]
    if not charts:
        return None
    heading = f"{SYMBOLS[key]} ({key})" if key in SYMBOLS else key
    return Curves(heading, charts, _fit_text(sweep, key))


def _has(trial: Trial, key: str) -> bool:
    return key in trial["settings"] and trial["status"] != "failed"


def _is_scheduled(sweep: Sweep, key: str) -> bool:
    """Whether a scheduler wrote the values of this key while trials ran."""
    return bool(sweep["scheduler"]["name"] == "pbt" and key == ALPHA)


def _settings_axis(sweep: Sweep, key: str) -> tuple[Axis, Callable[[Trial], float]]:
    """The axis of a searched key, and the place of a trial on it."""
    trials = [trial for trial in sweep["trials"] if _has(trial, key)]
    values = [trial["settings"][key] for trial in trials]
    label = SYMBOLS.get(key, key)
    if all(map(is_number, values)):
        log = _is_log(key, sweep["space"][key], values)
        return axis_of(label, values, log=log), lambda trial: float(trial["settings"][key])
    names = list(dict.fromkeys(map(value_text, values)))
    return named_axis(label, names), lambda trial: float(names.index(value_text(trial["settings"][key])))


def _is_log(key: str, space: Mapping[str, Any], values: Sequence[float]) -> bool:
    if min(values) <= 0:
        return False
    listed = "choice" in space or "grid" in space
    return key == TEMPERATURE or "log_uniform" in space or (listed and max(values) / min(values) >= LOG_RATIO)


def _metric(trial: Trial, name: str) -> Any:
    """A float, or None where the trial has none."""
    return trial[SCORE] if name == SCORE else trial["metrics"].get(name)


def _key_chart(sweep: Sweep, key: str, metric: str) -> Chart | None:
    shown = [trial for trial in sweep["trials"] if _has(trial, key) and defined(_metric(trial, metric))]
    if not shown:
        return None
    x_axis, place = _settings_axis(sweep, key)
    finished = [trial for trial in shown if trial["status"] == "finished"]
    framed = [
        _metric(trial, name) for trial in finished or shown for name in (metric, f"{metric}/low", f"{metric}/high")
    ]
    frame = Frame(x_axis, axis_of(metric_label(metric), filter(defined, framed)))
    marks = _smooth(frame, finished, place, metric)
    for trial in sorted(shown, key=lambda trial: _is_best(sweep, trial)):
        marks += _trial_marks(frame, trial, place(trial), metric, best=_is_best(sweep, trial))
    low, high = (metric_text(metric)(end(_metric(trial, metric) for trial in shown)) for end in (min, max))
    words = f"{metric_label(metric)} against {key}: {_counted(len(shown), 'trial')}, from {low} to {high}"
    return Chart(metric_label(metric), words, frame, marks)


def _is_best(sweep: Sweep, trial: Trial) -> bool:
    return bool(sweep["best"] is not None and trial["trial_id"] == sweep["best"]["trial_id"])


def _trial_marks(frame: Frame, trial: Trial, x: float, metric: str, *, best: bool) -> list[Mark]:
    """The dot of a trial, hollow if it was stopped, and its interval over questions."""
    value, low, high = (_metric(trial, name) for name in (metric, f"{metric}/low", f"{metric}/high"))
    marks = []
    if defined(low) and defined(high):
        ends = [(x, frame.y.clipped(end)) for end in (low, high)]
        marks.append(line(frame, ends, "whisker chosen" if best else "whisker"))
    css, radius = ("chosen", 5.5) if best else (trial["status"], 4.5)
    return [*marks, dot(frame, x, frame.y.clipped(value), css, trial_title(trial, metric), radius=radius)]


def trial_title(trial: Trial, *metrics: str) -> str:
    """What a mark of a trial says on hover."""
    settings = ", ".join(f"{key} {value_text(value)}" for key, value in trial["settings"].items())
    numbers = [f"{metric_label(name)} {metric_text(name)(_metric(trial, name))}" for name in metrics]
    return "; ".join([trial["trial_id"], settings, *numbers, f"{STATUS[trial['status']]}, step {trial['step']}"])


def _fitted(trials: Sequence[Trial], place: Callable[[Trial], float]) -> bool:
    return len(trials) >= FITTED_TRIALS and len({place(trial) for trial in trials}) >= FITTED_VALUES


def _fit_text(sweep: Sweep, key: str) -> str:
    trials = [trial for trial in sweep["trials"] if _has(trial, key) and trial["status"] == "finished"]
    axis, place = _settings_axis(sweep, key)
    if axis.names:
        return ""
    values = len({place(trial) for trial in trials})
    if not _fitted(trials, place):
        return (
            f"No curve is fitted: {_counted(len(trials), 'finished trial')} at {_counted(values, 'value')}, where "
            f"{FITTED_TRIALS} trials at {FITTED_VALUES} values are the least."
        )
    scatter = " The other settings vary too, and are part of the scatter." if len(sweep["space"]) > 1 else ""
    return (
        f"Curve: quadratic least squares through {len(trials)} finished trials"
        f"{', in the logarithm' if axis.log else ''}, with its pointwise 95% band (residuals resampled "
        f"{BAND_RESAMPLES:,} times).{scatter}"
    )


def _smooth(frame: Frame, finished: Sequence[Trial], place: Callable[[Trial], float], metric: str) -> list[Mark]:
    """Quadratic and band, cut at the edges of the plot, where there are trials enough for them."""
    if frame.x.names or not _fitted(finished, place):
        return []
    warp, back = (np.log, np.exp) if frame.x.log else (np.asarray, np.asarray)
    x = warp(np.array([place(trial) for trial in finished], dtype=np.float64))
    y = np.array([_metric(trial, metric) for trial in finished], dtype=np.float64)
    at = np.linspace(x.min(), x.max(), 60)
    fit, low, high = (map(frame.y.clipped, curve) for curve in quadratic_band(x, y, at))
    xs = back(at)
    ring = [*zip(xs, low, strict=True), *reversed(list(zip(xs, high, strict=True)))]
    return [area(frame, [ring], "band"), line(frame, zip(xs, fit, strict=True), "smooth")]


def quadratic_band(x: Array, y: Array, at: Array, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """Quadratic least squares of y [n] on x [n] at the places `at` [k], and its pointwise 95% band, each float64 [k].

    The band is a bootstrap with fixed x: residuals, each divided by the square root of 1 − its leverage and centred,
    are drawn anew BAND_RESAMPLES times.
    """
    centre, spread = x.mean(), x.std()
    design, wanted = (np.vander((places - centre) / spread, 3) for places in (x, at))
    solve = np.linalg.pinv(design)
    fitted = design @ (solve @ y)
    leverage = np.einsum("ij,ji->i", design, solve)
    residuals = (y - fitted) / np.sqrt(np.maximum(1 - leverage, 1e-9))
    drawn = np.random.default_rng(seed).choice(residuals - residuals.mean(), (BAND_RESAMPLES, len(y)))
    curves = (fitted + drawn) @ solve.T @ wanted.T
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return wanted @ (solve @ y), low, high


# Score over α and τ


def _surface(sweep: Sweep) -> Surface | None:
    """Every trial coloured by its score, and linear interpolation inside the hull of those that finished."""
    keys = (ALPHA, TEMPERATURE)
    shown = [t for t in sweep["trials"] if all(_has(t, key) for key in keys) and defined(t[SCORE])]
    if not shown or not all(is_number(trial["settings"][key]) for trial in shown for key in keys):
        return None
    (x_axis, x), (y_axis, y) = (_settings_axis(sweep, key) for key in keys)
    frame = Frame(x_axis, y_axis, WIDE, 420)
    finished = [trial for trial in shown if trial["status"] == "finished"]
    scores = [trial[SCORE] for trial in finished or shown]
    scale = Scale(min(scores), max(scores))
    marks = _regions([(*frame.place(x(t), y(t)), t[SCORE]) for t in finished], scale)
    for trial in shown:
        marks += _spot(frame, x(trial), y(trial), trial, scale)
        if _is_best(sweep, trial):
            marks.append(dot(frame, x(trial), y(trial), "ring", radius=10))
    stops = [background(float(position)) for position in np.linspace(0, 1, LEGEND_STOPS)]
    legend = Legend("score", score_text(scale.low), score_text(scale.high), stops)
    words = f"Score over α and τ: {_counted(len(shown), 'trial')}, from {legend.low} to {legend.high}"
    return Surface(Chart("Score; τ upwards", words, frame, marks), [legend])


def _spot(frame: Frame, x: float, y: float, trial: Trial, scale: Scale) -> list[Mark]:
    """A finished trial in the colour of its score, with a rim that tells it from the area; a stopped one hollow."""
    title = trial_title(trial, SCORE)
    if trial["status"] != "finished":
        return [dot(frame, x, y, "stopped", title)]
    colour = f"fill: {_score_colour(scale, trial[SCORE])}"
    return [dot(frame, x, y, "rim", radius=7.5), dot(frame, x, y, "spot", title, radius=6, style=colour)]


def _score_colour(scale: Scale, score: float) -> str:
    return background(min(max(scale.position(score), 0.0), 1.0), COLOUR_MAP)


def _regions(places: Sequence[tuple[float, float, float]], scale: Scale) -> list[Mark]:
    """Filled bands of equal score from points (x, y, score) in pixels; none where the points span no area."""
    found: dict[tuple[float, float], list[float]] = {}
    for across, down, score in places:
        found.setdefault((across, down), []).append(score)
    points = np.array(list(found), dtype=np.float64).reshape(-1, 2)
    if len(points) < 3 or scale.high == scale.low:
        return []
    if np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[-1] < 1:  # all on one line, to a pixel
        return []
    scores = np.array([np.mean(same) for same in found.values()])
    levels = MaxNLocator(SURFACE_LEVELS).tick_values(scores.min(), scores.max())
    contours = Figure().subplots().tricontourf(Triangulation(*points.T), scores, levels=levels)
    marks = []
    for low, high, path in zip(levels, levels[1:], contours.get_paths(), strict=False):
        rings = path.to_polygons(closed_only=True)
        text = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings)
        colour = _score_colour(scale, (low + high) / 2)
        if text:
            title = f"score {tick_text(low)} to {tick_text(high)}, interpolated"
            marks.append(Mark("path", "region", title, path=text, style=f"fill: {colour}; stroke: {colour}"))
    return marks


# Pareto front


def _fronts(sweep: Sweep) -> list[Chart]:
    """The first metric of the front upwards against each other one; connected where there are just two."""
    pareto = sweep["objective"]["pareto"]
    if len(pareto) < 2:
        return []
    up, *others = pareto
    return [chart for other in others if (chart := _front(sweep, other, up, connected=len(pareto) == 2))]


def _front(sweep: Sweep, x: str, y: str, *, connected: bool) -> Chart | None:
    shown = [t for t in sweep["trials"] if t["status"] != "failed" and all(defined(_metric(t, m)) for m in (x, y))]
    if not shown:
        return None
    framed = [trial for trial in shown if trial["status"] == "finished"] or shown
    across, up = (axis_of(_directed(sweep, name), [_metric(trial, name) for trial in framed]) for name in (x, y))
    frame = Frame(across, up, WIDE, 380)
    where = {t["trial_id"]: (across.clipped(t["metrics"][x]), up.clipped(t["metrics"][y])) for t in shown}
    front = [one for one in sweep["pareto"] if one in where]
    marks = []
    if connected and front:
        sign = 1 if sweep["objective"]["pareto"][x] == "min" else -1
        corners = sorted((where[one] for one in front), key=lambda place: sign * place[0])
        marks.append(line(frame, _stairs(corners), "front"))
    for trial in sorted(shown, key=lambda trial: trial["trial_id"] in front):
        css = "chosen" if trial["trial_id"] in front else trial["status"]
        marks.append(dot(frame, *where[trial["trial_id"]], css, trial_title(trial, y, x), radius=5))
        if _is_best(sweep, trial):
            marks.append(dot(frame, *where[trial["trial_id"]], "ring", radius=9.5))
    words = f"{metric_label(y)} against {metric_label(x)}: {_counted(len(shown), 'trial')}, {len(front)} on the front"
    return Chart(up.label, words, frame, marks)


def _stairs(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The edge of what some trial reaches: at the worse x of the next corner, still the y of this one."""
    stairs = [corners[0]]
    for (_, y), (x, following) in pairwise(corners):
        stairs += [(x, y), (x, following)]
    return stairs


def _directed(sweep: Sweep, metric: str) -> str:
    better = {"max": "higher", "min": "lower"}[sweep["objective"]["pareto"][metric]]
    return f"{metric_label(metric)} ({better} is better)"


# All searched keys at once


def _parallel(sweep: Sweep) -> Chart | None:
    """A line per trial through its settings to its score; None where one key was searched."""
    keys = list(sweep["space"])
    shown = [t for t in sweep["trials"] if defined(t[SCORE]) and all(_has(t, key) for key in keys)]
    if len(keys) < 2 or not shown:
        return None
    axes = [_settings_axis(sweep, key) for key in keys]
    finished = [trial for trial in shown if trial["status"] == "finished"]
    scores = axis_of("score", [trial[SCORE] for trial in finished or shown])
    axes.append((scores, lambda trial: scores.clipped(trial[SCORE])))
    rails = named_axis("", [axis.label for axis, _ in axes])
    frame = Frame(rails, Axis("", 0, 1), WIDE, TALL, Margins(left=-10, right=-10, top=40, bottom=16))
    marks = []
    for trial in sorted(shown, key=lambda trial: (_is_best(sweep, trial), trial[SCORE])):
        points = [(float(i), axis.share(place(trial))) for i, (axis, place) in enumerate(axes)]
        css = "path chosen" if _is_best(sweep, trial) else "path cut" if trial["status"] == "stopped" else "path"
        strength = (
            ""
            if _is_best(sweep, trial)
            else f"opacity: {0.15 + 0.75 * scores.share(scores.clipped(trial[SCORE])) ** 2:.2f}"
        )
        marks.append(line(frame, points, css, trial_title(trial, SCORE), strength))
    for i, (axis, _) in enumerate(axes):
        marks += _rail(frame, i, axis, room=(frame.right - frame.margins.left) / len(axes) - 12)
    words = f"Settings and score of {_counted(len(shown), 'trial')}, one line each"
    return Chart("Settings and score", words, frame, marks, grid=False)


def _rail(frame: Frame, index: int, axis: Axis, room: float) -> list[Mark]:
    """One of several parallel axes: its name on top, its ticks at the right."""
    across, top = frame.place(index, 1)
    marks = [line(frame, [(index, 0), (index, 1)], "rail")]
    name = shortened(axis.label, room)
    marks.append(Mark("text", "axis", axis.label if name != axis.label else "", x=across, y=top - 16, text=name))
    for tick in axis.ticks():
        text = axis.names[int(tick)] if axis.names else axis.text(tick)
        down = frame.place(index, axis.share(tick))[1] + 4
        marks.append(Mark("text", "halo", text, x=across + 7, y=down, text=shortened(text, room), anchor="start"))
    return marks


# Over steps


def _learning(sweep: Sweep) -> Chart | None:
    """Score by step of every trial that reported one."""
    curves = {
        trial["trial_id"]: [(row["step"], row[SCORE]) for row in trial["curve"] if defined(row[SCORE])]
        for trial in sweep["trials"]
    }
    reported = [trial for trial in sweep["trials"] if curves[trial["trial_id"]]]
    if not reported:
        return None
    points = [point for curve in curves.values() for point in curve]
    frame = Frame(
        axis_of("step", [0, *(step for step, _ in points)]),
        axis_of("score", [score for _, score in points]),
        WIDE,
        TALL,
    )
    marks = []
    for trial in sorted(reported, key=lambda trial: _is_best(sweep, trial)):
        curve, best = curves[trial["trial_id"]], _is_best(sweep, trial)
        title = trial_title(trial, SCORE)
        marks.append(line(frame, curve, "path chosen" if best else "path", title))
        css = "chosen" if best else "finished" if trial["status"] == "finished" else "stopped"
        marks.append(dot(frame, *curve[-1], css, title, radius=4))
    return Chart("Score by step", f"Score by step of {_counted(len(reported), 'trial')}", frame, marks)


def _schedules(sweep: Sweep) -> Chart | None:
    """α by step of trials whose α is a schedule."""
    scheduled = [
        trial
        for trial in sweep["trials"]
        if trial["status"] != "failed" and isinstance(trial["settings"].get(ALPHA), Mapping)
    ]
    if not scheduled:
        return None
    frame = Frame(axis_of("step", [0, sweep["steps"]]), axis_of("α", [0, 1]), WIDE, LOW)
    marks = []
    for trial in sorted(scheduled, key=lambda trial: _is_best(sweep, trial)):
        schedule, end = trial["settings"][ALPHA], max(trial["step"], 1)
        points = [(step, alpha) for step, alpha in schedule["points"] if step < end] or schedule["points"][:1]
        linear = schedule.get("interpolation", "linear") == "linear"
        corners = [*points, (end, points[-1][1])] if linear else step_points(points, end)
        css = "path chosen" if _is_best(sweep, trial) else "path"
        marks.append(line(frame, corners, css, trial_title(trial, SCORE)))
    return Chart("α by step", f"α by step of {_counted(len(scheduled), 'trial')}", frame, marks)


# Every trial


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Finished before stopped before failed, the higher score first."""
    order = list(STATUS)
    return sorted(trials, key=lambda t: (order.index(t["status"]), -t[SCORE] if defined(t[SCORE]) else np.inf))


def _trial_row(sweep: Sweep, trial: Trial, columns: Sequence[str]) -> TrialRow:
    error = (trial["error"] or "").strip()
    numbers = [count_text(trial["step"]), score_text(trial[SCORE])]
    numbers += [metric_text(name)(trial["metrics"].get(name)) for name in columns]
    return TrialRow(
        trial["trial_id"],
        STATUS[trial["status"]],
        failed=trial["status"] == "failed",
        best=_is_best(sweep, trial),
        on_front=trial["trial_id"] in sweep["pareto"],
        settings=[value_text(trial["settings"][key]) if key in trial["settings"] else "" for key in sweep["space"]],
        numbers=[*numbers, count_text(trial["seconds"])],
        run=trial["mlflow_run_id"] or "",
        reason=error.splitlines()[-1] if error else "",
        error=error,
    )
