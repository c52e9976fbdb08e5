"""The page of a sweep: its numbers and words against sweep.json, its charts against the data they are drawn from."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import yaml
from test_report import Page

from hbt_ray.evaluation.charts import Frame, axis_of, line, named_axis, series_style, shortened, step_points
from hbt_ray.sweep.report import (
    duration_text,
    metric_label,
    quadratic_band,
    score_formula,
    value_text,
    write_sweep_report,
)

MARKUP = "<script>alert('x')</script>"
WEIGHTS = {"monolingual/mAP": 1, "cross_lingual/mAP": 1, "multilingual/mAP": 1}
PARETO = {"multilingual/mAP": "max", "language_bias/rank_distance": "min"}
CONFIG = {"run": {"name": "best"}, "mix": {"alpha": 0.5}, "train": {"steps": 300, "temperature": 0.05}}


def metrics_at(alpha, temperature, step, noise=0.0):
    """Monolingual rises with α, cross-lingual falls, multilingual is best at .5; all rise with steps."""
    learnt = 1 - math.exp(-step / 90)
    close = 0.03 * math.log(temperature / 0.06) ** 2
    scores = {
        "monolingual": 0.62 + 0.15 * alpha - 0.08 * alpha**2,
        "cross_lingual": 0.55 + 0.10 * alpha - 0.16 * alpha**2,
        "multilingual": 0.44 + 0.20 * alpha - 0.22 * alpha**2,
    }
    found = {}
    for setting, score in scores.items():
        value = (score - close + noise) * learnt
        for measure, share in (("mAP", 1.0), ("R@1", 0.8), ("R@10", 1.2), ("nDCG@10", 1.05)):
            found[f"{setting}/{measure}"] = value * share
        found |= {f"{setting}/mAP/low": value - 0.018, f"{setting}/mAP/high": value + 0.02}
    distance = 190 + 160 * (alpha - 0.1) ** 2 + 900 * close - 1500 * noise
    bias = {"rank_distance": distance, "rank_distance/low": distance - 11, "rank_distance/high": distance + 13}
    found |= {f"language_bias/{name}": value for name, value in bias.items()}
    return found | {"language_bias/lpr": 0.61, "validation_loss": 1.1 - learnt}


def score_of(metrics):
    return sum(weight * metrics[name] for name, weight in WEIGHTS.items())


def trial_of(index, settings, status="finished", step=300, noise=0.0):
    """A trial that reports every 50 steps up to `step`."""
    values = settings["mix.alpha"], settings.get("train.temperature", 0.05)
    alpha = values[0]["points"][-1][1] if isinstance(values[0], dict) else values[0]
    rows = [
        {"step": at, "score": score_of(found), "metrics": found}
        for at in range(50, step + 1, 50)
        for found in [metrics_at(alpha, values[1], at, noise)]
    ]
    failed = status == "failed"
    return {
        "trial_id": f"9f3ab_{index:05d}",
        "run_name": f"sample-sweep-9f3ab_{index:05d}",
        "settings": settings,
        "status": status,
        "step": rows[-1]["step"],
        "score": None if failed else rows[-1]["score"],
        "metrics": {} if failed else rows[-1]["metrics"],
        "curve": rows,
        "seconds": 61.4 + index,
        "mlflow_run_id": None if failed else f"{index:08x}{'0123456789abcdef' * 2}"[:32],
        "model_dir": f"runs/sample-sweep/trials/{index}/model" if status == "finished" else None,
        "error": "Traceback:\n  line 3\nTrainingError: the loss is not a number" if failed else None,
    }


def front_of(trials):
    """Finished trials that no other beats in both, in plain loops."""
    points = {
        t["trial_id"]: (t["metrics"]["multilingual/mAP"], -t["metrics"]["language_bias/rank_distance"])
        for t in trials
        if t["status"] == "finished"
    }
    return [
        one
        for one, (a, b) in points.items()
        if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in points.values())
    ]


def sweep_of(trials, space, **changes):
    finished = [trial for trial in trials if trial["status"] == "finished"]
    best = max(finished, key=lambda trial: trial["score"], default=None)
    return {
        "name": "sample-sweep",
        "benchmark": "held-out",
        "questions": 300,
        "languages": ["ar", "de", "en", "es", "ru"],
        "steps": 300,
        "space": space,
        "search": {"algorithm": "tpe", "trials": len(trials), "seed": 13, "concurrent": None, "over": "score"},
        "scheduler": {"name": "asha", "grace_steps": 100, "reduction_factor": 3},
        "concurrent": 2,
        "objective": {"weights": WEIGHTS, "pareto": PARETO},
        "trials": trials,
        "pareto": front_of(trials),
        "best": best
        and {
            **{key: best[key] for key in ("trial_id", "settings", "metrics", "score", "model_dir")},
            "config": CONFIG,
            "model_version": 4,
            "retrained": False,
            "reports": {},
        },
        "seconds": 1260.0,
        "mlflow_run_id": "c0ffee",
        "tracking_uri": "sqlite:///runs/mlflow.db",
    } | changes


SPACE = {"mix.alpha": {"uniform": [0.0, 1.0]}, "train.temperature": {"log_uniform": [0.02, 0.2]}}


def random_sweep(count=14, seed=3):
    """A third of the trials stopped early, the last failed."""
    random = np.random.default_rng(seed)
    trials = []
    for index in range(count):
        settings = {
            "mix.alpha": float(random.uniform()),
            "train.temperature": float(0.02 * 10 ** random.uniform()),
        }
        status = "failed" if index == count - 1 else "stopped" if index % 3 == 2 else "finished"
        step = 300 if status == "finished" else 100
        trials.append(trial_of(index, settings, status, step, noise=float(random.normal(scale=0.006))))
    return sweep_of(trials, SPACE)


def pbt_sweep():
    trials = []
    for index, alphas in enumerate([(0.2, 0.3, 0.45), (0.9, 0.72, 0.6), (0.5, 0.5, 0.5), (0.1, 0.2, 0.45)]):
        points = [[50 * place, alpha] for place, alpha in enumerate(alphas)]
        trials.append(trial_of(index, {"mix.alpha": {"points": points, "interpolation": "step"}}))
    return sweep_of(trials, {"mix.alpha": {"uniform": [0.0, 1.0]}}, scheduler={"name": "pbt", "interval_steps": 50})


def page_of(tmp_path, sweep):
    return Page(write_sweep_report(sweep, tmp_path / "new" / "folder"))


def charts_of(page, section):
    """Drawings of a section, as the text between <svg> and </svg>."""
    text = page.source.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    return re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL)


def dots(chart, css):
    """Places of the dots of a class."""
    found = re.findall(rf'<circle class="{css}" cx="([\d.]+)" cy="([\d.]+)"', chart)
    return [(float(x), float(y)) for x, y in found]


@pytest.fixture(scope="module")
def sweep():
    return random_sweep()


@pytest.fixture(scope="module")
def page(tmp_path_factory, sweep):
    return page_of(tmp_path_factory.mktemp("sweep"), sweep)


# Words and numbers


def test_header_says_what_was_done(page):
    """Trials by how they ended, budget, search, validation set and score, as in the input."""
    assert "14 trials: 9 finished, 4 stopped early, 1 failed" in page.words
    assert "300 steps each at most, 2 at a time, 21 min in all" in page.words
    assert "search tpe, scheduler asha" in page.words
    assert "validated on held-out: 300 questions in 5 languages (ar, de, en, es, ru)" in page.words
    assert "Score: Monolingual mAP + Cross-lingual mAP + Multilingual mAP" in page.words


def test_best_configuration_has_settings_metrics_and_yaml(page, sweep):
    """The headline is the trial with the highest score, its YAML reads back as the configuration."""
    best = sweep["best"]
    assert f"mix.alpha {best['settings']['mix.alpha']:.4g}" in page.words
    header, monolingual, *_ = page.rows["best"]
    assert header == ["held-out", "mAP", "R@1", "R@10", "nDCG@10"]
    value, low, high = (best["metrics"][f"monolingual/mAP{end}"] for end in ("", "/low", "/high"))
    assert monolingual[:2] == ["Monolingual", f"{value:.4f} {low:.4f} – {high:.4f}"]
    distance = next(row for row in page.rows["best"] if row[0] == "Rank distance")
    assert distance[1].startswith(f"{best['metrics']['language_bias/rank_distance']:.1f} ")
    written = page.source.partition("<pre><code>")[2].partition("</code>")[0]
    assert yaml.safe_load(written) == CONFIG
    assert "registered as version 4" in page.words


def test_every_trial_is_in_the_table(page, sweep):
    """Finished trials by score, then stopped ones, then the failed one with its error; numbers are the input's."""
    header, *rows = page.rows["trials"]
    assert header[:6] == ["Trial", "Status", "mix.alpha", "train.temperature", "Step", "Score"]
    assert [row[1] for row in rows if len(row) > 1] == [
        "finished, best",
        *["finished"] * 8,
        *["stopped early"] * 4,
        "failed",
    ]
    scores = [float(row[5]) for row in rows[:9]]
    assert scores == sorted(scores, reverse=True)
    for trial in sweep["trials"][:-1]:
        row = next(row for row in rows if row[0].split()[0] == trial["trial_id"])
        metrics = trial["metrics"]
        assert row[4:6] == [str(trial["step"]), f"{trial['score']:.4f}"]
        assert row[6:9] == [f"{metrics[name]:.4f}" for name in WEIGHTS]
        assert row[9:] == [
            f"{metrics['language_bias/rank_distance']:.1f}",
            f"{trial['seconds']:,.0f}",
            trial["mlflow_run_id"][:8],
        ]
        assert ("◆" in row[0]) == (trial["trial_id"] in sweep["pareto"])
    assert rows[-1] == [
        "9f3ab_00013:TrainingError: the loss is not a numberTraceback: line 3 TrainingError: the loss is not a number"
    ]


def test_names_of_metrics_values_and_formula():
    """Keys of sweep.json in plain words."""
    assert metric_label("cross_lingual/R@1") == "Cross-lingual R@1"
    assert metric_label("language_bias/rank_distance_normalised") == "Rank distance / pool"
    assert metric_label("validation_loss") == "Validation loss"
    weights = {"monolingual/mAP": 1, "multilingual/mAP": 0.5, "language_bias/rank_distance": -0.001}
    assert score_formula(weights) == "Monolingual mAP + 0.5 × Multilingual mAP − 0.001 × Rank distance"
    assert [value_text(value) for value in (0.0512345, 3, True, "X-Y", None)] == ["0.05123", "3", "true", "X-Y", "null"]
    schedule = {"points": [[0, 1.0], [250, 0.0]], "interpolation": "step"}
    assert value_text(schedule) == "1 → 0 at step 250"
    assert [duration_text(seconds) for seconds in (45.2, 754, 12_060)] == ["45 s", "13 min", "3 h 21 min"]


def test_reports_on_other_benchmarks(tmp_path, sweep):
    """What the best model reaches elsewhere, in the paper's columns with intervals."""

    def setting(score):
        return {"mAP": score, "R@1": score / 2, "R@10": 0.9, "intervals": {"mAP": [score - 0.01, score + 0.01]}}

    metrics = {name: setting(score) for name, score in zip(("monolingual", "cross_lingual"), (0.8, 0.7), strict=True)}
    metrics["multilingual"] = {"mAP": None, "R@10": None, "intervals": {}}
    metrics["language_bias"] = {"rank_distance": 286.61, "intervals": {"rank_distance": [270.0, 300.04]}}
    best = sweep["best"] | {"reports": {"xquad-r": metrics}}
    rows = page_of(tmp_path, sweep | {"best": best}).rows["reports"]
    assert rows[-1] == [
        "xquad-r",
        *("0.8000 0.7900 – 0.8100", "0.4000"),
        *("0.7000 0.6900 – 0.7100", "0.3500"),
        *("–", "–"),
        "286.6 270.0 – 300.0",
    ]


# Charts


def test_alpha_has_a_chart_per_metric_and_a_point_per_trial(page):
    """Score and the four metrics of the objective; finished filled, stopped hollow, the best apart, failed absent."""
    charts = charts_of(page, "curve-1")
    assert re.findall(r'aria-label="([^"]*) against mix.alpha: 13 trials', "".join(charts)) == [
        "Score",
        "Monolingual mAP",
        "Cross-lingual mAP",
        "Multilingual mAP",
        "Rank distance",
    ]
    for chart in charts:
        assert [len(dots(chart, css)) for css in ("finished", "stopped", "chosen")] == [8, 4, 1]
    assert 'class="whisker"' not in charts[0], "the score has no interval"
    assert charts[1].count('class="whisker"') == 12


def test_points_stand_where_their_values_are(page, sweep):
    """Across the finished trials pixels are linear in α, and in the logarithm of τ; downwards, in the metric."""
    finished = [trial for trial in sweep["trials"] if trial["status"] == "finished"]
    finished.sort(key=lambda trial: trial["trial_id"] == sweep["best"]["trial_id"])
    for section, key, warp in (("curve-1", "mix.alpha", float), ("curve-2", "train.temperature", math.log)):
        chart = charts_of(page, section)[3]
        places = np.array([*dots(chart, "finished"), *dots(chart, "chosen")])
        x = [warp(trial["settings"][key]) for trial in finished]
        y = [trial["metrics"]["multilingual/mAP"] for trial in finished]
        assert np.corrcoef(x, places[:, 0])[0, 1] == pytest.approx(1, abs=1e-5)
        assert np.corrcoef(y, places[:, 1])[0, 1] == pytest.approx(-1, abs=1e-5)


def test_curve_is_fitted_only_through_enough_trials(page, tmp_path):
    """Nine finished trials get a curve and say so; seven get none and say how many are needed."""
    assert "quadratic least squares through 9 finished trials, with its pointwise 95% band" in page.words
    assert "quadratic least squares through 9 finished trials, in the logarithm" in page.words
    assert all('class="smooth"' in chart for chart in charts_of(page, "curve-1"))
    trials = [trial_of(i, {"mix.alpha": i / 7, "train.temperature": 0.05}) for i in range(7)]
    few = page_of(tmp_path, sweep_of(trials, SPACE))
    assert "No curve is fitted: 7 finished trials at 7 values, where 8 trials at 4 values are the least." in few.words
    assert 'class="smooth"' not in few.source


def test_quadratic_band_is_least_squares_with_the_right_cover():
    """The fit is numpy's; over 200 experiments the 95% band covers the true curve about that often."""
    random = np.random.default_rng(0)
    x, at = np.linspace(0, 1, 15), np.array([0.1, 0.5, 0.8])
    truth = np.polynomial.Polynomial([0.5, 0.4, -0.5])
    covered = []
    for _ in range(200):
        y = truth(x) + random.normal(scale=0.02, size=len(x))
        fit, low, high = quadratic_band(x, y, at)
        np.testing.assert_allclose(fit, np.polyval(np.polyfit(x, y, 2), at))
        covered.append((low < truth(at)) & (truth(at) < high))
    assert 0.88 < np.mean(covered) < 0.98


def test_surface_stays_inside_the_hull(page):
    """Interpolated regions lie within the rectangle of the finished points, which carry their own colour."""
    (chart,) = charts_of(page, "surface")
    finished = np.array(dots(chart, "spot"))
    assert len(finished) == 9
    assert len(dots(chart, "stopped")) == 4
    assert len(dots(chart, "ring")) == 1
    regions = re.findall(r'class="region" d="([^"]*)"', chart)
    corners = np.array([pair.split() for path in regions for pair in re.findall(r"[\d.]+ [\d.]+", path)], dtype=float)
    assert len(regions) > 3
    assert (corners.min(axis=0) >= finished.min(axis=0) - 0.2).all()
    assert (corners.max(axis=0) <= finished.max(axis=0) + 0.2).all()


def test_pareto_front_connects_its_trials(page, sweep):
    """The trials on the front are coloured, named on hover, and lie on the line that connects them."""
    (chart,) = charts_of(page, "pareto")
    front = dots(chart, "chosen")
    assert len(front) == len(sweep["pareto"])
    (path,) = re.findall(r'class="front" d="([^"]*)"', chart)
    corners = [tuple(map(float, corner.split())) for corner in path.removeprefix("M").split("L")]
    assert set(front) <= set(corners)
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners)), "a staircase"
    for trial_id in sweep["pareto"]:
        assert f"<title>{trial_id};" in chart
    assert "Rank distance (lower is better)" in chart


def test_parallel_coordinates_and_learning_curves_show_every_trial(page):
    """A line per trial with a score, the failed one's learning curve included; the best once in each."""
    (parallel,) = charts_of(page, "parallel")
    assert len(re.findall(r'class="path(?: cut| chosen)?"', parallel)) == 13
    assert parallel.count('class="path cut"') == 4
    (learning,) = charts_of(page, "learning")
    assert len(re.findall(r'class="path(?: chosen)?"', learning)) == 14
    assert learning.count('class="path chosen"') == 1


def test_other_keys_get_one_chart_each(tmp_path):
    """A listed key stands on an axis of its values, by name; without τ there is no surface."""
    random = np.random.default_rng(1)
    trials = [
        trial_of(i, {"mix.alpha": float(random.uniform()), "mix.mixed": ("X-Y", "X-X")[i % 2], "run.flag": i % 2 == 0})
        for i in range(9)
    ]
    space = {"mix.alpha": {"uniform": [0, 1]}, "mix.mixed": {"choice": ["X-Y", "X-X"]}, "run.flag": {"choice": [True]}}
    page = page_of(tmp_path, sweep_of(trials, space))
    (chart,) = charts_of(page, "curve-2")
    assert re.findall(r'class="tick"[^>]*>(X-.)<', chart) == ["X-Y", "X-X"]
    assert len({x for x, _ in (*dots(chart, "finished"), *dots(chart, "chosen"))}) == 2
    assert 'class="smooth"' not in chart
    assert "surface" not in page.rows


def test_population_based_training_shows_schedules(tmp_path):
    """α as a step line per trial; a curve over α and a surface would mean nothing."""
    page = page_of(tmp_path, pbt_sweep())
    (chart,) = charts_of(page, "schedules")
    paths = re.findall(r'class="path(?: chosen)?" d="M([^"]*)"', chart)
    assert len(paths) == 4
    assert all(len(path.split("L")) == 6 for path in paths), "two ends for each of three levels"
    assert {"curve-1", "surface", "parallel"}.isdisjoint(page.rows)
    assert "0.2 → 0.3 at step 50 → 0.45 at step 100" in page.words


def test_one_trial_is_enough(tmp_path):
    """The smallest sweep has its numbers, and no fit, no surface of points on a line, no front to connect."""
    page = page_of(tmp_path, sweep_of([trial_of(0, {"mix.alpha": 0.5, "train.temperature": 0.05})], SPACE))
    assert "1 trial: 1 finished, 0 stopped early, 0 failed" in page.words
    assert "No curve is fitted: 1 finished trial at 1 value" in page.words
    assert 'class="region"' not in page.source
    assert len(dots(charts_of(page, "surface")[0], "spot")) == 1


def test_no_trial_finished(tmp_path):
    """A sweep that failed throughout says so and shows why."""
    failed = [trial_of(i, {"mix.alpha": 0.5}, "failed", 50) | {"curve": []} for i in range(2)]
    page = page_of(tmp_path, sweep_of(failed, {"mix.alpha": {"uniform": [0, 1]}}, pareto=[]))
    assert "No trial finished." in page.words
    assert page.words.count("TrainingError: the loss is not a number") == 4
    assert {"curve-1", "pareto", "learning", "reports"}.isdisjoint(page.rows)


def test_markup_is_escaped_and_nothing_is_loaded(tmp_path, sweep):
    """Names and errors are text, in tables and in hover titles; the page has no script and no address to load."""
    trials = [trial | {"trial_id": MARKUP + trial["trial_id"]} for trial in sweep["trials"]]
    trials[-1] |= {"error": MARKUP}
    best = sweep["best"] | {"trial_id": trials[0]["trial_id"], "config": {"run": {"name": MARKUP}}}
    page = page_of(
        tmp_path, sweep | {"name": MARKUP, "trials": trials, "best": best, "pareto": [], "benchmark": MARKUP}
    )
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    attributes = {name for _, named in page.tags for name in named}
    assert not {name for name in attributes if name in ("src", "href") or name.startswith("on")}
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert page.words.count(MARKUP) > 20


# Geometry


def test_axes_have_round_ticks_inside_their_ends():
    """Ticks of linear, logarithmic and named axes, and values at their share of the way."""
    alpha, tau = axis_of("α", [0, 1]), axis_of("τ", [0.02, 0.2], log=True)
    assert alpha.ticks() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert tau.ticks() == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert tau.share(math.sqrt(0.02 * 0.2)) == pytest.approx(0.5)
    assert named_axis("", ["a", "b"], downwards=True).share(0) == 0.75
    assert [axis_of("", [5.0]).clipped(value) for value in (4.9, -9, 99)] == pytest.approx([4.9, 4.7, 5.3])


def test_frame_places_values_in_pixels():
    """The low corner is at the lower left of the plot, the high one at the upper right."""
    frame = Frame(axis_of("", [0, 1]), axis_of("", [10, 20]))
    assert frame.place(frame.x.low, frame.y.low) == (52, 204)
    assert frame.place(frame.x.high, frame.y.high) == (346, 10)
    assert line(frame, [(0.5, 15)], "smooth").path == "M199 107"


def test_steps_labels_and_series():
    """A step function holds each value up to the next; long labels are cut; the ninth series is dashed."""
    assert step_points([(0, 0.2), (50, 0.4)], 80) == [(0, 0.2), (50, 0.2), (50, 0.4), (80, 0.4)]
    assert shortened("monolingual first", 66) == "monolingu…"
    assert series_style(1) == "--series: var(--series-1)"
    assert "stroke-dasharray" in series_style(8)
