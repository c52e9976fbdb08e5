"""The page and the Markdown of a study: numbers and words against study.json, for full and for minimal studies."""

import re

import numpy as np
import pytest
from test_report import Page

from hbt_ray.evaluation.matrix import SETTINGS
from hbt_ray.languages import language
from hbt_ray.study.report import write_study_report
from hbt_ray.study.tables import escaped

MARKUP = "<script>alert('x')</script>"
LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"]
ARMS = {
    "X-X-mono": {"mix.alpha": 1.0},
    "X-Y": {"mix.alpha": 0.0},
    "X-X": {"mix.alpha": 0.0, "mix.mixed": "X-X"},
    "En-En": {"data.languages": ["en"], "mix.alpha": 1.0},
    "hybrid 0.25": {"mix.alpha": 0.25},
    "hybrid 0.5": {"mix.alpha": 0.5},
    "hybrid 0.75": {"mix.alpha": 0.75},
    "mono→cross": {"mix.alpha": {"points": [[0, 1.0], [250, 0.0]], "interpolation": "step"}},
    "cross→mono": {"mix.alpha": {"points": [[0, 0.0], [250, 1.0]], "interpolation": "step"}},
    "linear": {"mix.alpha": {"points": [[0, 1.0], [500, 0.0]], "interpolation": "linear"}},
}
BASE = {"monolingual": 0.79, "cross_lingual": 0.67, "multilingual": 0.55}
SHARE = {"mAP": 1.0, "R@1": 0.86, "R@10": 1.1, "nDCG@10": 1.05}


def value_of(mean, width, seeds, random):
    values = [mean + width / 3 * float(random.normal()) for _ in range(seeds)]
    mean = float(np.mean(values))
    return {
        "mean": mean,
        "low": mean - width,
        "high": mean + width,
        "sd": float(np.std(values, ddof=1)) if seeds > 1 else None,
        "seeds": values,
    }


def results_of(place, seeds, random, several=True, scale=1.0):
    """An arm's values; with one language only monolingual ones."""
    shift = {"monolingual": -0.004, "cross_lingual": 0.004, "multilingual": 0.006}
    results = {
        setting: {
            measure: value_of(scale * share * (score + place * shift[setting]), 0.006, seeds, random)
            for measure, share in SHARE.items()
        }
        for setting, score in BASE.items()
        if several or setting == "monolingual"
    }
    if several:
        results["language_bias"] = {
            "rank_distance": value_of((410 - 12 * place) / scale, 9, seeds, random),
            "rank_distance_normalised": value_of(0.031 - 0.001 * place, 0.001, seeds, random),
            "rank_distance_log2": value_of(5.8 - 0.1 * place, 0.05, seeds, random),
            "complete@100": value_of(0.55 + 0.01 * place, 0.01, seeds, random),
            "lpr": value_of(0.62 - 0.01 * place, 0.01, seeds, random),
        }
    return results


def difference_of(difference, width, p_holm, seeds=None):
    """A row of a comparison; with `seeds` its t-test, whose interval is twice as wide."""
    row = {
        "difference": difference,
        "low": difference - width,
        "high": difference + width,
        "p_value": p_holm / 4,
        "p_holm": p_holm,
        "effect_size": 0.2,
        "baseline": 0.5,
        "system": 0.5 + difference,
        "clusters": 1190,
    }
    if seeds is None:
        return row
    several = seeds > 1
    return row | {
        "seed_difference_low": difference - 2 * width if several else None,
        "seed_difference_high": difference + 2 * width if several else None,
        "seed_p": min(1.0, 2 * p_holm) if several else None,
        "seed_p_holm": min(1.0, 10 * p_holm) if several else None,
    }


def groups_of(names, place, several):
    settings = SETTINGS if several else ("monolingual",)
    return {
        name: {
            setting: difference_of(0.002 * place - 0.001 * i, 0.004, 0.01 if i == 0 else 0.4)
            if setting in settings
            else None
            for setting in SETTINGS
        }
        for i, name in enumerate(dict.fromkeys(names))
    }


def comparisons_of(table, codes, baseline, seeds, groups):
    several = len(codes) > 1
    tests = {}
    for place, (arm, results) in enumerate(table.items()):
        if arm in (baseline, "untrained"):
            continue
        settings = {}
        for setting in SETTINGS:
            settings[setting] = None
            if setting in results:
                settings[setting] = {
                    name: difference_of(
                        value["mean"] - table[baseline][setting][name]["mean"],
                        0.005,
                        min(1.0, 0.0004 * 3**place),
                        seeds,
                    )
                    for name, value in results[setting].items()
                }
        bias = {
            name: difference_of(value["mean"] - table[baseline]["language_bias"][name]["mean"], 8, 0.003, seeds)
            for name, value in results.get("language_bias", {}).items()
        }
        families = [language(code).family for code in codes]
        levels = [language(code).resource_level for code in codes]
        by_group = {
            "family": groups_of(families, place, several),
            "resource_level": groups_of(levels, place, several),
            "seen": groups_of(["seen", "unseen"], place, several),
        }
        tests[arm] = {
            "settings": settings,
            "language_bias": bias or {"rank_distance": None},
            "cells": [],
            "groups": by_group if groups else {"family": {}, "resource_level": {}, "seen": {}},
        }
    return tests


def benchmark_of(arms, codes, seeds, *, groups=True, untrained=True, fractions=(1.0,), seed=0):
    random = np.random.default_rng(seed)
    several = len(codes) > 1
    table = {arm: results_of(place, seeds, random, several) for place, arm in enumerate(arms)}
    if untrained:
        table["untrained"] = results_of(-30, 1, random, several)
    baseline = next(iter(arms))
    tests = comparisons_of(table, codes, baseline, seeds, groups)
    return {
        "languages": codes,
        "seen_languages": codes[:9],
        "notes": ["Zero-shot: no text of it was seen in training."],
        "signature": "hbt_ray 0.1.0|bench|data:abc|depth:full",
        "table": table,
        "tests": tests,
        "method": {"unit": "question: its translations are one cluster", "resamples": 10_000, "families": {"a": 3}},
        "monolingual_change": {
            arm: {
                code: difference_of(0.003 * i - 0.012, 0.006, 0.01 if i == 0 else 0.3) for i, code in enumerate(codes)
            }
            for arm in tests
        },
        "by_fraction": {
            arm: {f"{share:g}": results_of(place, seeds, random, several, 0.8 + 0.2 * share) for share in fractions}
            for place, arm in enumerate(arms)
        }
        if len(fractions) > 1
        else {},
    }


def study_of(benchmarks, *, arms=ARMS, seeds=(13, 14, 15), fractions=(1.0,), failed=(), **changes):
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "fraction": fraction,
            "name": f"{arm}-{seed}",
            "status": "failed" if (arm, seed) in failed else "finished",
            "error": "Traceback\nTrainingError: worker 0 was lost <3 times>" if (arm, seed) in failed else None,
            "steps": None if (arm, seed) in failed else 500,
            "validation_loss": None if (arm, seed) in failed else 0.4321,
            "best_step": None if (arm, seed) in failed else 450,
            "model_dir": f"runs/{arm}-{seed}/model",
            "seconds": 1234.5,
            "mlflow_run_id": f"{seed:032x}",
        }
        for arm in arms
        for seed in seeds
        for fraction in fractions
    ]
    return {
        "name": "sample-study",
        "baseline": next(iter(arms)),
        "seeds": list(seeds),
        "fractions": list(fractions),
        "steps": 500,
        "batch_size": 64,
        "backbone": "scratch",
        "untrained": True,
        "arms": {arm: {"settings": settings} for arm, settings in arms.items()},
        "benchmarks": benchmarks,
        "runs": runs,
        "seconds": 3600.0,
        "mlflow_run_id": "c0ffee",
        "tracking_uri": "sqlite:///runs/mlflow.db",
    } | changes


def full_study():
    shares = (0.1, 0.25, 0.5, 1.0)
    return study_of(
        {
            "xquad-r": benchmark_of(ARMS, LANGUAGES, 3, fractions=shares),
            "mlqa-r": benchmark_of(ARMS, ["ar", "de", "en", "es", "hi", "vi", "zh"], 3, seed=1),
        },
        failed={("X-Y", 14)},
        fractions=shares,
    )


def small_study():
    """Two arms, one seed, one language, no groups, nothing untrained."""
    arms = {name: ARMS[name] for name in ("X-X-mono", "X-Y")}
    one = benchmark_of(arms, ["en"], 1, groups=False, untrained=False)
    return study_of({"english": one}, arms=arms, seeds=(13,), untrained=False)


def page_of(tmp_path, study):
    return Page(write_study_report(study, tmp_path / "new" / "folder"))


def markdown_tables(text):
    """Tables of a Markdown text under their headings, as lists of cells."""
    tables, heading = {}, ""
    for row in text.splitlines():
        if row.startswith("#"):
            heading = (
                row.lstrip("# ") if row.startswith("## ") else f"{heading.partition(' / ')[0]} / {row.lstrip('# ')}"
            )
        elif row.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            tables.setdefault(heading, []).append(cells)
    return tables


def charts_of(page, section):
    text = page.source.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    return re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def study():
    return full_study()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, study):
    out = tmp_path_factory.mktemp("study")
    write_study_report(study, out)
    return out


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "study.html")


@pytest.fixture(scope="module")
def markdown(folder):
    return (folder / "study.md").read_text(encoding="utf-8")


HEADLINE = [
    ("monolingual", "mAP"),
    ("monolingual", "R@1"),
    ("cross_lingual", "mAP"),
    ("cross_lingual", "R@1"),
    ("multilingual", "mAP"),
    ("multilingual", "R@10"),
]


def test_header_says_what_was_trained(page):
    """Arms, seeds, shares of the data, runs by how they ended, budget, start and baseline."""
    assert "10 arms, seeds 13, 14, 15 on 0.1, 0.25, 0.5, 1 of the training documents" in page.words
    assert "116 runs finished, 4 failed · 500 steps of 64 pairs, from scratch · compared with X-X-mono" in page.words
    assert "X-Y is without seed 14 on 0.1, 0.25, 0.5, 1 of the training documents: training failed." in page.words


def test_retrieval_has_the_papers_columns(page, study):
    """A row per arm; R@1 of single candidates, R@10 of the merged pool; every number with its interval."""
    settings, measures, *rows = page.rows["retrieval"]
    assert settings == ["Arm", "Monolingual", "Cross-lingual", "Multilingual"]
    assert measures == ["mAP", "R@1", "mAP", "R@1", "mAP", "R@10"]
    for benchmark, start in (("xquad-r", 0), ("mlqa-r", 13)):
        table = study["benchmarks"][benchmark]["table"]
        for row, (arm, results) in zip(rows[start : start + 11], table.items(), strict=True):
            values = [results[setting][measure] for setting, measure in HEADLINE]
            assert row == [arm, *(f"{v['mean']:.4f} {v['low']:.4f} – {v['high']:.4f}" for v in values)]


def test_best_value_of_each_column_is_marked(page, study):
    """The largest score, the smallest rank distance; neither end of what is best in the middle."""
    best = set()
    for benchmark in study["benchmarks"].values():
        table = benchmark["table"].values()
        best |= {f"{max(one[s][m]['mean'] for one in table):.4f}" for s, m in HEADLINE}
        bias = [one["language_bias"] for one in table]
        best.add(f"{min(one['rank_distance']['mean'] for one in bias):.1f}")
        best.add(f"{min(one['rank_distance_normalised']['mean'] for one in bias):.4f}")
        best.add(f"{min(one['rank_distance_log2']['mean'] for one in bias):.2f}")
        best.add(f"{max(one['complete@100']['mean'] for one in bias):.4f}")
    assert set(page.marked) - {"Bold"} == best


def test_language_bias_has_every_defined_measure(page, study):
    """Rank distance first, then those of the other measures that have values, each with its direction."""
    names, directions, first, *_ = page.rows["bias"]
    assert names == ["Arm", "Rank distance", "Rank distance / pool", "Rank distance, log₂", "Complete@100", "LPR"]
    assert directions == [*["lower is better"] * 3, "higher is better", "0.5 is neutral"]
    value = study["benchmarks"]["xquad-r"]["table"]["X-X-mono"]["language_bias"]["rank_distance"]
    assert first[:2] == ["X-X-mono", f"{value['mean']:.1f} {value['low']:.1f} – {value['high']:.1f}"]


def test_differences_have_both_tests(page, study):
    """Difference, interval and corrected p over questions, and the same of the t-test over seeds."""
    row = page.rows["differences"][2]
    test = study["benchmarks"]["xquad-r"]["tests"]["X-Y"]["settings"]["monolingual"]["mAP"]

    def signed(value):
        return f"{value:+.4f}".replace("-", "−")

    ends = (signed(test[key]) for key in ("difference", "low", "high", "seed_difference_low", "seed_difference_high"))
    assert row[:3] == [
        "X-Y",
        "{} {} to {} seeds {} to {}".format(*ends),
        f"{test['p_holm']:.4f} seeds {test['seed_p']:.4f} Holm {test['seed_p_holm']:.4f}",
    ]
    distance = study["benchmarks"]["xquad-r"]["tests"]["X-Y"]["language_bias"]["rank_distance"]["difference"]
    assert row[7].startswith(f"{distance:+.1f} ".replace("-", "−"))


def test_forest_plot_has_both_intervals_of_every_arm(page, study):
    """A panel per headline measure and benchmark; dots are filled where the corrected p is below .05."""
    charts = charts_of(page, "differences")
    assert len(charts) == 8
    tests = study["benchmarks"]["xquad-r"]["tests"]
    significant = [arm for arm, one in tests.items() if one["settings"]["monolingual"]["mAP"]["p_holm"] < 0.05]
    assert 0 < len(significant) < 9
    assert charts[0].count('class="interval"') == charts[0].count('class="seeds"') == 9
    assert charts[0].count('class="finished"') == len(significant)
    assert charts[0].count('class="open"') == 9 - len(significant)
    assert re.findall(r'text-anchor="end">([^<]*)<', charts[0]) == list(tests)


def test_alpha_curve_joins_arms_that_differ_in_alpha_only(page):
    """Five of ten arms: schedules, one language and X-X batches are other things; a pale dot per seed."""
    charts = charts_of(page, "alpha")
    assert len(charts) == 8
    (path,) = re.findall(r'class="series" d="([^"]*)"', charts[0])
    assert len(path.split("L")) == 5
    assert charts[0].count('class="seed"') == 15
    for arm in ("X-Y", "hybrid 0.25", "hybrid 0.5", "hybrid 0.75", "X-X-mono"):
        assert f"<title>{arm}: 0." in charts[0]
    assert "En-En" not in charts[0]


def test_changes_by_language_and_group(page, study):
    """Monolingual differences per language, family, resource level and seen or unseen, significant ones marked."""
    rows = page.rows["changes"]
    tests = study["benchmarks"]["xquad-r"]["tests"]
    assert rows[0] == ["", *tests]
    assert [row[0] for row in rows if row[0].startswith("by ")][:4] == [
        "by language",
        "by family",
        "by resource level",
        "by whether training had the language",
    ]
    assert rows[2] == ["Arabic ar", *["−.012"] * 9]
    assert rows[5] == ["English en", *["−.003"] * 9]
    assert next(row for row in rows if row[0] == "Semitic")[1:4] == ["+.002", "+.004", "+.006"]
    marked = [attributes for _, attributes in page.tags if attributes.get("class") == "significant"]
    assert len(marked) > 18, "Arabic, and the first group of each grouping"
    colours = dict(re.findall(r'background: (#\w{6}); color: #\w{6}" title="([+−.\d]+),', page.source))
    assert len(colours) > 5


def test_data_curves_and_runs(page):
    """A line per arm through four shares of the data; failed runs give their reason."""
    charts = charts_of(page, "fractions")
    charts = [chart for chart in charts if "share of the training documents" in chart]
    assert len(charts) == 4, "the second benchmark has no smaller shares"
    paths = re.findall(r'class="series" d="([^"]*)"', charts[0])
    assert [len(path.split("L")) for path in paths] == [4] * 10
    header, first, *rows = page.rows["runs"]
    assert header[:4] == ["Arm", "Seed", "Share of data", "Status"]
    assert first[:-1] == ["X-X-mono", "13", "0.1", "finished", "500", "450", "0.4321", "1,234"]
    assert len([row for row in rows if len(row) == 1]) == 4
    assert "TrainingError: worker 0 was lost <3 times>" in page.words


def test_page_says_what_the_tests_do_not_say(page):
    """Questions and seeds are told apart; the method and the notes of the benchmark are printed."""
    assert "paired t-test over 3 seeds, 2 degrees of freedom" in page.words
    assert "it does not say whether models of other seeds would" in page.words
    assert "question: its translations are one cluster" in page.words
    assert "Zero-shot: no text of it was seen in training." in page.words
    assert "hbt_ray 0.1.0|bench|data:abc|depth:full" in page.words


def test_seeds_are_listed_with_their_spread(page, study):
    """Every seed's value and the standard deviation; the untrained weights have one value."""
    value = study["benchmarks"]["xquad-r"]["table"]["X-Y"]["monolingual"]["mAP"]
    row = next(row for row in page.rows["seeds"] if row[0] == "X-Y")
    assert row[1] == " ".join([*(f"{one:.4f}" for one in value["seeds"]), f"sd {value['sd']:.4f}"])
    assert len(next(row for row in page.rows["seeds"] if row[0] == "untrained")[1].split()) == 1


def test_markdown_has_the_same_numbers(markdown, page, study):
    """Retrieval, bias, differences and runs; the best in bold, intervals in brackets."""
    tables = markdown_tables(markdown)
    header, rule, first, *rest = tables["xquad-r / Retrieval"]
    assert header[:3] == ["Arm", "Monolingual mAP", "Monolingual R@1"]
    assert rule == ["---", *["---:"] * 6]
    shown = page.rows["retrieval"][2]
    assert first == [shown[0], *(f"{cell[:6]} [{cell[7:]}]" for cell in shown[1:])]
    bold = [cell for row in (first, *rest) for cell in row if cell.startswith("**")]
    assert len(bold) >= 6
    assert len(tables["mlqa-r / Language bias"]) == 2 + 11
    test = study["benchmarks"]["xquad-r"]["tests"]["X-Y"]["settings"]["monolingual"]["mAP"]
    cells = tables["xquad-r / Differences from X-X-mono"][2]
    assert cells[0] == "X-Y"
    assert cells[1].startswith(f"{test['difference']:+.4f}*".replace("-", "−"))
    assert cells[3] == f"{test['seed_p']:.4f} (Holm {test['seed_p_holm']:.4f})"
    assert len(tables["Runs"]) == 2 + 120
    assert tables["Runs"][2][-1] == study["runs"][0]["mlflow_run_id"]
    assert "failed: TrainingError: worker 0 was lost &lt;3 times>" in markdown


# Small studies


def test_one_language_and_one_seed(tmp_path):
    """Only what is defined is shown: no other settings, no bias, no groups, no word of a test over seeds."""
    page = page_of(tmp_path, small_study())
    settings, measures, *rows = page.rows["retrieval"]
    assert settings == ["Arm", "Monolingual"]
    assert measures == ["mAP", "R@1"]
    assert [row[0] for row in rows] == ["X-X-mono", "X-Y"]
    assert {"bias", "fractions", "seeds"}.isdisjoint(page.rows)
    assert "seeds −" not in page.words
    assert "t-test" not in page.words
    assert "one seed cannot say what another would have given" in page.words
    assert [row[0] for row in page.rows["changes"]] == ["", "by language", "English en"]
    assert 'class="seed"' not in page.source
    assert "training failed" not in page.words


def test_one_arm_has_no_differences(tmp_path):
    """The baseline alone gives its values, and neither tests nor an α curve."""
    arms = {"X-X-mono": ARMS["X-X-mono"]}
    one = benchmark_of(arms, ["en", "de"], 2, groups=False, untrained=False)
    page = page_of(tmp_path, study_of({"two": one}, arms=arms, seeds=(1, 2), untrained=False))
    assert {"differences", "alpha", "changes"}.isdisjoint(page.rows)
    assert len(page.rows["retrieval"]) == 3
    assert not page.marked[1:], "there is nothing to be best of"


def test_arm_without_finished_runs_is_named(tmp_path):
    """An arm whose runs all failed is in no table, and the page says so first."""
    arms = {name: ARMS[name] for name in ("X-X-mono", "X-Y", "hybrid 0.5")}
    kept = {name: arms[name] for name in ("X-X-mono", "hybrid 0.5")}
    benchmark = benchmark_of(kept, ["en", "de"], 1, groups=False, untrained=False)
    study = study_of({"b": benchmark}, arms=arms, seeds=(13,), failed={("X-Y", 13)})
    page = page_of(tmp_path, study)
    assert "X-Y is without seed 13: training failed." in page.words
    assert [row[0] for row in page.rows["retrieval"][2:]] == ["X-X-mono", "hybrid 0.5"]


def test_markup_is_escaped_and_nothing_is_loaded(tmp_path):
    """Names of arms, benchmarks, notes and errors are text on the page and in Markdown."""
    name = f"{MARKUP}|`x`"
    arms = {name: {"mix.alpha": 1.0}, f"{MARKUP} b": {"mix.alpha": 0.0, "model.backbone": MARKUP}}
    benchmark = benchmark_of(arms, ["en", "de"], 2) | {"notes": [MARKUP]}
    study = study_of({MARKUP: benchmark}, arms=arms, seeds=(1, 2), failed={(name, 1)}, name=MARKUP)
    page = page_of(tmp_path, study)
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    attributes = {key for _, named in page.tags for key in named}
    assert not {key for key in attributes if key in ("src", "href") or key.startswith("on")}
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert page.words.count(MARKUP) > 10
    text = (tmp_path / "new" / "folder" / "study.md").read_text(encoding="utf-8")
    assert "<script" not in text
    widths = {len(row) for rows in markdown_tables(text).values() for row in rows[:1]}
    assert all(len(row) in widths for rows in markdown_tables(text).values() for row in rows)
    assert escaped("a|b\n`c` <d> &") == "a\\|b \\`c\\` &lt;d> &amp;"
