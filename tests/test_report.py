"""Heatmaps and HTML reports: what they say, and that they load nothing and let no markup through."""

import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.heatmaps import short_difference
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.plots import (
    COLOUR_MAP,
    DIFFERENCE_COLOURS,
    background,
    grid_scales,
    heatmap,
    hub_language,
    ink,
    is_matrix,
    relative_luminance,
    save_heatmap,
    score_grid,
    short_score,
)
from hbt_ray.evaluation.report import (
    System,
    compared_ranks,
    compared_scores,
    shown_text,
    write_comparison,
    write_report,
)
from hbt_ray.evaluation.tables import BIAS, probability_text

LANGUAGES = ["ar", "de", "el"]
MARKUP = "<script>alert('x')</script>"


def cell(query_language, candidate_language, score):
    """A cell whose R@1 is half of its mAP; the other measures equal it."""
    return {
        "query_language": query_language,
        "candidate_language": candidate_language,
        "queries": 4,
        **dict.fromkeys(MEASURES, score),
        "R@1": score / 2,
    }


def cells_of(languages=LANGUAGES, shift=0.0):
    """Monolingual .9, cross-lingual .50 + .01 per row and .002 per column, merged pool .3 + .01 per row."""
    cells = []
    for row, query_language in enumerate(languages):
        for column, candidate_language in enumerate(languages):
            cross = 0.5 + 0.01 * row + 0.002 * column
            cells.append(cell(query_language, candidate_language, shift + (0.9 if row == column else cross)))
        cells.append(cell(query_language, "all", shift + 0.3 + 0.01 * row))
    return cells


def monolingual_cells(languages):
    """A cell per language, no merged pool, as MIRACL has: .4, .41, ..."""
    return [cell(code, code, 0.4 + 0.01 * i) for i, code in enumerate(languages)]


def bitext_cells(languages):
    """Both directions between English and each language: .5, .51, ... to English, .1 less from it."""
    return [
        one
        for i, code in enumerate(languages)
        for one in (cell(code, "en", 0.5 + 0.01 * i), cell("en", code, 0.4 + 0.01 * i))
    ]


def setting(score, cells, queries):
    """Every measure has the same score, and the interval from .01 below to .02 above; none without cells."""
    if not cells:
        return {**dict.fromkeys(MEASURES), "cells": 0, "queries": 0, "intervals": {}}
    intervals = {measure: [score - 0.01, score + 0.02] for measure in MEASURES}
    return {**dict.fromkeys(MEASURES, score), "cells": cells, "queries": queries, "intervals": intervals}


REASON = "no merged pool"


def no_bias(reason=REASON):
    return {
        **dict.fromkeys(BIAS),
        "queries": 0,
        "intervals": {},
        "undefined": dict.fromkeys(BIAS, reason),
        "by_query_language": {},
        "language_share@10": {},
    }


def bias_of(languages, distance):
    """PEER is not defined; of the rest, rank distance has an interval. Every language takes its own first places."""
    return {
        **dict.fromkeys(BIAS, 0.25),
        "rank_distance": distance,
        "friedman_p": 1e-12,
        "peer": None,
        "queries": 12,
        "intervals": {"rank_distance": [distance - 20, distance + 30]},
        "undefined": {"peer": "one relevant candidate per language"},
        "by_query_language": {
            **{name: dict.fromkeys(languages, 0.25) for name in QUERY_BIAS},
            "rank_distance": {code: distance + i for i, code in enumerate(languages)},
        },
        "language_share@10": {
            query: {code: 0.8 if code == query else 0.2 / (len(languages) - 1) for code in languages}
            for query in languages
        },
    }


def metrics_of(languages=LANGUAGES, *, shift=0.0, distance=286.61, signature="hbt_ray 0.1.0|toy|data:abc|model:m"):
    """Monolingual .9, cross-lingual .6125, multilingual .31; with one language, only the first."""
    count = len(languages)
    several = count > 1
    return {
        "benchmark": "toy",
        "languages": list(languages),
        "monolingual": setting(0.9 + shift, count, 12),
        "cross_lingual": setting(0.6125 + shift, count * (count - 1), 8),
        "multilingual": setting(0.31 + shift, count if several else 0, 1234),
        "language_bias": bias_of(languages, distance) if several else no_bias(),
        "pool": {code: 1000 + i for i, code in enumerate(languages)},
        "queries_without_relevant": {},
        "notes": [],
        "signature": signature,
    }


def example(**changes):
    """A query whose relevant candidate was ranked fourth."""
    return {
        "query_language": "de",
        "query_id": "q-17",
        "query": "Wo?",
        "setting": "multilingual",
        "average_precision": 0.25,
        "ranks": {"ar": 1204, "de": 4},
        "top_language": "el",
        "top_text": "Εκεί.",
        "relevant_language": "de",
        "relevant_text": "Dort.",
    } | changes


def compared_row(difference, p_holm):
    """A row of a comparison, its interval .01 to either side."""
    return {
        "difference": difference,
        "low": difference - 0.01,
        "high": difference + 0.01,
        "p_value": p_holm / 2,
        "p_holm": p_holm,
        "effect_size": 0.5,
        "baseline": 0.5,
        "system": 0.5 + difference,
        "clusters": 30,
    }


def compared(cells, languages=LANGUAGES):
    """One system against the first: higher and significant in the pool and in Arabic cells, nothing elsewhere."""
    return {
        "system": "runs/hybrid",
        "settings": {
            "monolingual": None,
            "cross_lingual": dict.fromkeys(MEASURES, compared_row(0.002, 0.4)),
            "multilingual": dict.fromkeys(MEASURES, compared_row(0.0312, 0.0004)),
        },
        "language_bias": {**dict.fromkeys(QUERY_BIAS), "rank_distance": compared_row(-100.2, 0.01)},
        "cells": [
            {
                "query_language": one["query_language"],
                "candidate_language": one["candidate_language"],
                **dict.fromkeys(
                    MEASURES, compared_row(*((0.02, 0.03) if one["query_language"] == "ar" else (-0.01, 0.5)))
                ),
            }
            for one in cells
        ],
        "groups": {
            "family": {
                "Semitic": {"monolingual": None, "cross_lingual": None, "multilingual": compared_row(0.05, 0.02)}
            },
            "resource_level": {"low": dict.fromkeys(("monolingual", "cross_lingual", "multilingual"))},
            "seen": {},
        },
    }


def significance_of(signatures, cells):
    first, *rest = [compared(cells) for _ in signatures[1:]]
    return {
        "benchmark": "toy",
        "systems": [{"folder": f"runs/{i}", "signature": one} for i, one in enumerate(signatures)],
        "baseline": "runs/0",
        **first,
        "method": {
            "unit": "question",
            "clusters": 1190,
            "test": "randomisation",
            "interval": "bootstrap",
            "effect_size": "Cohen's d_z",
            "group_measure": "mAP",
            "resamples": 10_000,
            "seed": 0,
            "warning": "Some rows rest on 12 clusters.",
        },
        "comparisons": rest,
    }


class Page(HTMLParser):
    """A parsed page: tags with attributes, and per section id its table rows as lists of texts."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.rows = {}
        self.text = ""
        self.marked = []  # texts of elements of class "best"
        self.captions = []  # of heatmaps
        self._open = []
        self._section = "page"
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == [], "every element is closed"
        self.words = " ".join(self.text.replace("\n", " ").split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self._open.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"]
        rows = self.rows.setdefault(self._section, [])
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th"):
            rows[-1].append("")
        elif tag in ("span", "small"):
            self.text += " "
            if {"td", "th"} & {name for name, _ in self._open}:
                rows[-1][-1] += " "

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        open_tags = [tag for tag, _ in self._open]
        if "style" in open_tags:
            return
        self.text += data
        if "td" in open_tags or "th" in open_tags:
            self.rows[self._section][-1][-1] = " ".join((self.rows[self._section][-1][-1] + data).split())
        if self._open and self._open[-1][1].get("class") == "best":
            self.marked.append(data)
        if self._open and self._open[-1][0] == "figcaption":
            self.captions.append(data)


@pytest.fixture
def report(tmp_path):
    path = write_report(
        tmp_path / "new" / "folder",
        metrics_of(),
        cells_of(),
        title="Toy, α = 0.5",
        notes=["Paragraph-disjoint."],
        seen_languages=["de", "ar", "en"],
        examples={"best": [example(query="Was?", average_precision=1.0)], "worst": [example()]},
    )
    return Page(path)


@pytest.fixture
def comparison(tmp_path):
    """The second system is 0.01 better and 100.2 ranks less biased; the third equals the first."""
    systems = [
        System("untrained", metrics_of(), cells_of(), {"alpha": "-"}),
        System("hybrid", metrics_of(shift=0.01, distance=186.41), cells_of(shift=0.01), {"steps": "20"}),
        System("again", metrics_of(), cells_of()),
    ]
    return Page(write_comparison(tmp_path, systems, title="Batches", seen_languages=["ar", "de"]))


# Grid, colours and figure


def test_grid_has_queries_in_rows_and_the_merged_pool_last():
    """Cell (query, candidate) lands in that row and column whatever the order of the cells; a gap is NaN."""
    cells = [cell("de", "all", 0.3), cell("de", "ar", 0.2), cell("ar", "de", 0.1)]
    expected = [[np.nan, 0.1, np.nan], [0.2, np.nan, 0.3]]
    np.testing.assert_array_equal(score_grid(cells, ["ar", "de"]), expected)


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        ([cell("ar", "fr", 0.1)], r"cells\[0\]\['candidate_language'\]: got 'fr'; expected one of ar, de, el, all"),
        ([cell("all", "ar", 0.1)], r"cells\[0\]\['query_language'\]: got 'all'"),
        ([cell("ar", "de", 0.1)] * 2, r"cells\[1\]: got ar-de a second time"),
        ([cell("ar", "de", 0.1) | {"mAP": "0.1"}], r"cells\[0\]\['mAP'\]: got '0.1'; expected a number or None"),
        ([{"query_language": "ar", "candidate_language": "de"}], r"cells\[0\]: .*expected the key 'mAP'"),
    ],
)
def test_cells_that_do_not_fit_are_refused(cells, where):
    """A cell of a foreign language, twice, or without a number is an error that names it, never dropped."""
    with pytest.raises(BenchmarkError, match=where):
        score_grid(cells, LANGUAGES)


def test_scales_cover_all_grids_and_keep_the_pool_apart():
    """Systems share their colour scales, and the low scores of the merged pool do not stretch that of the pairs."""
    scales = grid_scales([score_grid(cells_of(), LANGUAGES), score_grid(cells_of(shift=0.05), LANGUAGES)])
    assert scales.pairs == pytest.approx((0.502, 0.95))
    assert scales.merged == pytest.approx((0.3, 0.37))


def test_scale_of_one_value_or_none_has_a_position():
    """A single score, or no score at all, is coloured without dividing by zero."""
    assert grid_scales([np.array([[0.7, np.nan]])]) == ((0.7, 0.7), (0.0, 1.0))
    assert grid_scales([np.array([[0.7, np.nan]])]).pairs.position(0.7) == 0.0


def test_luminance_of_known_colours():
    """Relative luminance is 0 for black, 1 for white, 0.2126 for pure red (WCAG 2.1)."""
    assert [relative_luminance(c) for c in ("#000000", "#ffffff", "#ff0000")] == pytest.approx([0, 1, 0.2126])


@pytest.mark.parametrize("colours", [COLOUR_MAP, DIFFERENCE_COLOURS])
def test_numbers_are_readable_on_every_colour(colours):
    """Wherever a score falls on the scale, its ink has a contrast of at least 4.5 to 1 with its background."""
    for position in np.linspace(0, 1, 201):
        colour = background(float(position), colours)
        low, high = sorted([relative_luminance(colour), relative_luminance(ink(colour))])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_colours_get_darker_all_the_way():
    """Lightness alone orders the scale, so it survives colour blindness and grey print."""
    lightness = [relative_luminance(background(float(p))) for p in np.linspace(0, 1, 50)]
    assert all(np.diff(lightness) < 0)


def test_differences_are_palest_at_zero():
    """Lightness falls to either side of the middle, and the two sides have hues of their own."""
    lightness = [relative_luminance(background(float(p), DIFFERENCE_COLOURS)) for p in np.linspace(0, 1, 51)]
    assert all(np.diff(lightness[:26]) > 0)
    assert all(np.diff(lightness[25:]) < 0)
    low, high = (background(p, DIFFERENCE_COLOURS) for p in (0.1, 0.9))
    assert int(low[1:3], 16) > int(low[5:7], 16), "low is more red than blue"
    assert int(high[1:3], 16) < int(high[5:7], 16), "high is more blue than red"


def test_short_difference():
    """Differences carry their sign, and zero is positive however it was reached."""
    assert [short_difference(v) for v in (0.0123, -0.5, 0.0, -0.0001, float("nan"))] == [
        "+.012",
        "−.500",
        "+.000",
        "+.000",
        "",
    ]


@pytest.mark.parametrize(
    ("cells", "matrix", "hub"),
    [
        (cells_of(), True, None),
        (cells_of(["de", "en"]), True, None),
        (cells_of(["de"]), False, None),
        (monolingual_cells(LANGUAGES), False, None),
        (bitext_cells(LANGUAGES), False, "en"),
        (bitext_cells(["de"]), True, None),
        ([cell(q, "en", 0.5) for q in LANGUAGES], True, "en"),
        ([cell(f"q{i}", f"c{j}", 0.5) for i in range(25) for j in range(2)], False, None),
        ([], False, None),
    ],
)
def test_what_a_matrix_shows_well(cells, matrix, hub):
    """Crossed pairs without many holes, on a page; and the one language that is in all pairs."""
    assert is_matrix(cells) is matrix
    assert hub_language(cells) == hub


def test_short_score():
    """Scores in a grid drop the leading zero, and only that."""
    assert [short_score(v) for v in (0.0626, 0.0, 1.0, 0.99996, float("nan"))] == [
        ".063",
        ".000",
        "1.000",
        "1.000",
        "",
    ]


def test_heatmap_writes_each_number_in_its_cell():
    """The figure shows a score at the centre of its row and column, the first language on top, the pool apart."""
    figure = heatmap(cells_of(), LANGUAGES, "R@1", "Toy")
    pairs, merged = figure.axes
    written = {text.get_position(): text.get_text() for text in pairs.texts}
    assert len(written) == 9
    assert written[(1.5, 0.5)] == ".251"  # ar queries, de candidates: (.5 + .002) / 2
    assert written[(0.5, 0.5)] == ".450"
    assert [text.get_text() for text in merged.texts] == [".150", ".155", ".160"]
    assert [label.get_text() for label in pairs.get_yticklabels()] == LANGUAGES
    assert pairs.get_ylim()[0] > pairs.get_ylim()[1]
    assert figure.get_suptitle() == "Toy: R@1"


def test_heatmap_without_a_merged_pool_has_no_column_for_it():
    """Languages without cells and a pool that is none take no room."""
    cells = [one for one in cells_of(["ar", "de"]) if one["candidate_language"] != "all"]
    (pairs,) = heatmap(cells, LANGUAGES).axes
    assert [label.get_text() for label in pairs.get_yticklabels()] == ["ar", "de"]
    assert [label.get_text() for label in pairs.get_xticklabels()] == ["ar", "de"]


def test_monolingual_cells_become_bars():
    """Where a matrix would be a diagonal, each language has a bar of its score, the first on top."""
    (axes,) = heatmap(monolingual_cells(LANGUAGES), LANGUAGES).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 0.41, 0.42])
    assert [text.get_text() for text in axes.texts] == [".400", ".410", ".420"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_bitext_becomes_bars_in_both_directions():
    """English, the other side of every pair, has no bar of its own."""
    to_english, from_english = heatmap(bitext_cells(LANGUAGES), ["en", *LANGUAGES]).axes
    assert [bar.get_width() for bar in to_english.patches] == pytest.approx([0.5, 0.51, 0.52])
    assert [bar.get_width() for bar in from_english.patches] == pytest.approx([0.4, 0.41, 0.42])
    assert [label.get_text() for label in to_english.get_yticklabels()] == LANGUAGES
    assert (to_english.get_title(), from_english.get_title()) == ("Candidates in en", "Queries in en")


def test_heatmap_of_no_language_is_refused():
    """An empty list of languages is an error, not an empty picture."""
    with pytest.raises(BenchmarkError, match="languages: got none"):
        heatmap([], [])


def test_saved_heatmap_is_a_png_of_the_figure_size(tmp_path):
    """heatmap.png has a PNG header and the pixels of 11 languages: (1.8 + 12 x .62) x (1.8 + 12 x .42) inch."""
    languages = ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"]
    path = save_heatmap(cells_of(languages), languages, tmp_path / "heatmap.png", title="50$ and $x")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert struct.unpack(">II", content[16:24]) == (1386, 1026)


# One system


def test_headline_has_every_measure_of_the_three_settings(report):
    """The headline table gives each setting's measures with their intervals, cells and queries."""
    header, monolingual, cross_lingual, multilingual = report.rows["headline"]
    assert header == ["Setting", *MEASURES, "Cells", "Queries"]
    assert monolingual[0].startswith("Monolingual query and candidates")
    assert monolingual[1:] == [*["0.9000 0.8900 – 0.9200"] * 6, "3", "12"]
    assert cross_lingual[1:] == [*["0.6125 0.6025 – 0.6325"] * 6, "6", "8"]
    assert multilingual[1:] == [*["0.3100 0.3000 – 0.3300"] * 6, "3", "1,234"]


def test_report_shows_a_heatmap_per_measure(report):
    """Every measure of every pair is on the page, the merged pool after a gap."""
    rows = report.rows["pairs"]
    assert rows[0] == ["", "ar", "de", "el", "", "all"]
    assert rows[1] == ["ar", ".900", ".502", ".504", "", ".300"]
    assert rows[5] == ["ar", ".450", ".251", ".252", "", ".150"]
    assert len(rows) == 4 * len(MEASURES)
    assert [text for text in MEASURES if text in report.captions] == list(MEASURES)


def test_report_profiles_each_language(report):
    """A language's row has family, level, training, and the means over the OTHER languages in both roles."""
    header, arabic, german, greek, *means = report.rows["languages"]
    assert header[:4] == ["Language", "Family", "Resource level", "In training"]
    assert arabic == ["Arabic ar", "Semitic", "high", "seen", "0.9000", "0.5030", "0.5150", "0.3000"]
    assert german[3:] == ["seen", "0.9000", "0.5120", "0.5120", "0.3100"]
    assert greek[:4] == ["Greek el", "Hellenic", "medium", "unseen"]
    assert means == [
        ["Mean of all languages (3)", "0.9000", "0.5120", "0.5120", "0.3100"],
        ["Mean of languages seen (2)", "0.9000", "0.5075", "0.5135", "0.3050"],
        ["Mean of languages unseen (1)", "0.9000", "0.5210", "0.5090", "0.3200"],
    ]


def test_report_knows_every_measure_of_language_bias():
    """A measure added to the evaluation is added to the report."""
    assert list(BIAS)[: len(QUERY_BIAS)] == list(QUERY_BIAS)


def test_report_gives_every_measure_of_language_bias(report):
    """Value, interval, direction and meaning stand in a row; one that is not defined says why."""
    header, *rows = report.rows["bias"]
    assert header == ["Measure", "Value", "Direction", "Meaning"]
    assert [row[0] for row in rows] == [measure.label for measure in BIAS.values()]
    values = dict(zip(BIAS, rows, strict=True))
    assert values["rank_distance"][1:3] == ["286.6 266.6 – 316.6", "lower is better"]
    assert values["friedman_p"][1] == "< 0.0001"
    assert values["complete@20"][1:3] == ["0.2500", "higher is better"]
    assert values["peer"][1] == "–"
    assert values["peer"][3].endswith("not defined: one relevant candidate per language")
    assert all(len(row[3]) > 20 for row in rows)


def test_report_gives_bias_and_shares_by_query_language(report):
    """Every query language has its own bias, and the languages of its first ten places beside those of the pool."""
    header, arabic, *_ = report.rows["bias-languages"]
    assert header == ["Language", *(BIAS[name].label for name in QUERY_BIAS), "Own language in first 10, %"]
    assert (arabic[0], arabic[1], arabic[-1]) == ("Arabic ar", "286.6", "80.0")
    assert report.rows["share"] == [
        ["", "ar", "de", "el"],
        ["ar", "80.0", "10.0", "10.0"],
        ["de", "10.0", "80.0", "10.0"],
        ["el", "10.0", "10.0", "80.0"],
        ["pool", "33.3", "33.3", "33.4"],
    ]


def test_report_gives_pool_notes_and_signature(report):
    """Pool sizes with their shares, notes, definitions with sources and the signature are there."""
    for text in ("Arabic ar 1,000 33.3%", "Greek el 1,002 33.4%", "3,003 candidates", "1,234 queries"):
        assert text in report.words
    for text in ("Paragraph-disjoint.", "arXiv 2004.05484", "arXiv 2408.10536", metrics_of()["signature"]):
        assert text in report.text


def test_notes_and_queries_left_out_are_said(tmp_path):
    """Notes of the metrics and of the caller stand once each; queries without a relevant candidate are counted."""
    metrics = metrics_of() | {"notes": ["One.", "Two."], "queries_without_relevant": {"de": 3, "ar": 0, "el": 1200}}
    page = Page(write_report(tmp_path, metrics, cells_of(), title="Toy", notes=["Two.", "Three."]))
    assert [page.text.count(note) for note in ("One.", "Two.", "Three.")] == [1, 1, 1]
    assert "1,203 queries without a relevant candidate are left out: German 3, Greek 1,200." in page.words


def test_best_and_worst_queries_show_their_texts(report):
    """Query, what came first, the relevant candidate and the ranks per language, in the order of the file."""
    assert report.words.index("Was?") < report.words.index("Wo?")
    for text in ("AP 1.0000", "AP 0.2500", "q-17", "First, not relevant: Greek", "Best-ranked relevant: German"):
        assert text in report.words
    assert "ar 1,204 de 4" in report.words


def test_relevant_first_is_shown_once(tmp_path):
    """Where the best relevant candidate came first, it is not shown a second time."""
    found = example(ranks={"de": 1}, top_language="de", top_text="Dort.")
    page = Page(write_report(tmp_path, metrics_of(), cells_of(), title="Toy", examples={"best": [found], "worst": []}))
    assert page.text.count("Dort.") == 1
    assert "First, and relevant: German" in page.words


@pytest.mark.parametrize(
    ("code", "direction"),
    [("ar", "rtl"), ("fa", "rtl"), ("he", "rtl"), ("ur", "rtl"), ("th", "ltr"), ("zh", "ltr"), ("arz", "auto")],
)
def test_texts_carry_language_and_direction(tmp_path, code, direction):
    """Every example text names its language, and runs right to left where the language does."""
    shown = example(query_language=code, query="NFL?", relevant_language="en")
    page = Page(write_report(tmp_path, metrics_of(), cells_of(), title="Toy", examples={"best": [shown], "worst": []}))
    texts = [attrs for tag, attrs in page.tags if attrs.get("class") == "text"]
    assert [(text["lang"], text["dir"]) for text in texts] == [(code, direction), ("el", "ltr"), ("en", "ltr")]


def test_long_texts_open_on_demand():
    """A paragraph is clamped, a sentence is not."""
    assert shown_text("word " * 100, "en").long
    assert not shown_text("A sentence.", "en").long


def test_training_column_is_left_out_when_unknown(tmp_path):
    """Without training languages nothing is called seen or unseen."""
    page = Page(write_report(tmp_path, metrics_of(), cells_of(), title="Toy"))
    assert page.rows["languages"][0][:4] == ["Language", "Family", "Resource level", "Monolingual"]
    assert "seen" not in page.text


def test_settings_without_cells_are_not_defined(tmp_path):
    """With one language and no merged pool the other settings and the bias say so, never blank, never zero."""
    page = Page(write_report(tmp_path, metrics_of(["de"]), monolingual_cells(["de"]), title="German"))
    _, _, cross_lingual, multilingual = page.rows["headline"]
    assert cross_lingual[1:] == ["not defined: no query has candidates in another language"]
    assert multilingual[1:] == ["not defined: no merged pool of several languages"]
    assert f"Not defined: {REASON}" in page.words
    assert page.rows["bias"] == []
    assert "share" not in page.rows


def test_missing_cell_is_a_dash(tmp_path):
    """A pair of languages that share no question has a dash and no colour, and leaves the means alone."""
    cells = [c for c in cells_of() if (c["query_language"], c["candidate_language"]) != ("ar", "de")]
    page = Page(write_report(tmp_path, metrics_of(), cells, title="Toy"))
    assert page.rows["pairs"][1] == ["ar", ".900", "–", ".504", "", ".300"]
    assert page.rows["languages"][1][4] == "0.5040"


def test_monolingual_benchmark_has_a_table_of_all_measures(tmp_path):
    """Without pairs there is no matrix: a language's row has every measure, with bars."""
    metrics = metrics_of() | {"cross_lingual": setting(None, 0, 0), "multilingual": setting(None, 0, 0)}
    page = Page(
        write_report(tmp_path, metrics | {"language_bias": no_bias()}, monolingual_cells(LANGUAGES), title="Toy")
    )
    assert "pairs" not in page.rows
    groups, header, _, german, *_ = page.rows["languages"]
    assert groups == ["Language", "Family", "Resource level", "Monolingual"]
    assert header == list(MEASURES)
    assert german[3:] == ["0.4100", "0.2050", *["0.4100"] * 4]
    lengths = [attrs["style"] for _, attrs in page.tags if "barred" in attrs.get("class", "")]
    assert lengths[6:8] == ["--bar-length: 0.410", "--bar-length: 0.205"]


def test_bitext_has_a_line_per_language_from_best_to_worst(tmp_path):
    """Both directions stand in one row; English, the mean of all others, has none; the means are over the rows."""
    codes = ["en", *LANGUAGES]
    metrics = metrics_of(codes) | {"multilingual": setting(None, 0, 0), "language_bias": no_bias()}
    page = Page(write_report(tmp_path, metrics, bitext_cells(LANGUAGES), title="Toy"))
    groups, header, *rows = page.rows["languages"]
    assert groups[3:] == ["Candidates in English", "Queries in English"]
    assert header == ["mAP", "R@1", "R@10"] * 2
    assert [row[0] for row in rows] == ["Greek el", "German de", "Arabic ar", "Mean of all languages (3)"]
    assert rows[0][3:] == ["0.5200", "0.2600", "0.5200", "0.4200", "0.2100", "0.4200"]
    assert rows[-1][1:] == ["0.5100", "0.2550", "0.5100", "0.4100", "0.2050", "0.4100"]


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_pages_load_nothing(page, request):
    """A report opens offline: no script, link, image or frame, and no address in any attribute or style."""
    parsed = request.getfixturevalue(page)
    assert {"html", "style", "table"} <= {tag for tag, _ in parsed.tags}
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    assert not {"src", "href", "srcset"} & {name for _, attributes in parsed.tags for name in attributes}
    for loader in ("http://", "https://", "url(", "@import"):
        assert loader not in parsed.source


def test_markup_in_texts_is_escaped(tmp_path):
    """Title, notes, benchmark name and signature are shown as text, whatever they contain."""
    metrics = metrics_of(signature=MARKUP) | {"benchmark": MARKUP}
    texts = dict.fromkeys(("query", "query_id", "top_text", "relevant_text"), MARKUP)
    examples = {"best": [example(**texts)], "worst": []}
    page = Page(write_report(tmp_path, metrics, cells_of(), title=MARKUP, notes=[MARKUP], examples=examples))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(MARKUP) == 9  # title, heading, benchmark, note, signature; four texts of the example


def test_markup_in_system_texts_is_escaped(tmp_path):
    """Names and details of systems are shown as text too."""
    systems = [System(MARKUP, metrics_of(), cells_of(), {MARKUP: MARKUP}), System("b", metrics_of(), cells_of())]
    page = Page(write_comparison(tmp_path, systems, title="Toy"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.rows["systems"][1] == [MARKUP, MARKUP, "–"]


def test_unknown_language_is_refused(tmp_path):
    """A language code that is no code, markup above all, is an error and writes no page."""
    with pytest.raises(ConfigError, match="script"):
        write_report(tmp_path, metrics_of([MARKUP]), cells_of([MARKUP]), title="Toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": []}, r"metrics\['languages'\]: got none"),
        ({"monolingual": {}}, r"metrics\['monolingual'\]: got keys none; expected also mAP, R@1"),
        ({"language_bias": {"rank_distance": 1.0}}, r"metrics\['language_bias'\]: .*expected also .*lpr, .*undefined"),
    ],
)
def test_incomplete_metrics_are_refused(tmp_path, change, message):
    """Metrics that lack something name the missing key."""
    with pytest.raises(BenchmarkError, match=message):
        write_report(tmp_path, metrics_of() | change, cells_of(), title="Toy")


# Several systems


def test_best_and_difference_of_scores():
    """The highest score is marked, ties at the digits shown together; differences are from the first."""
    values = compared_scores([0.5, 0.70001, 0.70004, None, 0.49996])
    assert [v.text for v in values] == ["0.5000", "0.7000", "0.7000", "–", "0.5000"]
    assert [v.best for v in values] == [False, True, True, False, False]
    assert [v.note for v in values] == ["", "+0.2000", "+0.2000", "–", "+0.0000"]


def test_best_rank_distance_is_the_lowest():
    """Rank distance is marked where it is lowest, and a system first without one leaves no difference."""
    assert [v.best for v in compared_ranks([410.2, 286.6, 295.4])] == [False, True, False]
    assert compared_ranks([410.2, 286.6])[1].note == "−123.6"
    assert compared_ranks([None, 286.6])[1][:3] == ("286.6", True, "–")
    assert [v.best for v in compared_ranks([None, None])] == [False, False]


def test_probabilities_are_not_rounded_to_zero():
    """A p-value below the digits shown is said to be below them."""
    assert [probability_text(p) for p in (0.0, 0.00009, 0.0004, 0.05, None)] == [
        "< 0.0001",
        "< 0.0001",
        "0.0004",
        "0.0500",
        "–",
    ]


def test_comparison_headline_keeps_order_and_marks_the_best(comparison):
    """Systems stay in the order given; every best value is marked, with its difference from the first."""
    header, heading, first, *rest = comparison.rows["headline"]
    assert header == ["Measure", "untrained", "hybrid", "again"]
    assert heading == ["Monolingual query and candidates in the same language"]
    assert first == ["mAP", "0.9000", "0.9100 +0.0100", "0.9000 +0.0000"]
    distance = next(row for row in rest if row[0].startswith("Rank distance lower"))
    assert distance[1:] == ["286.6", "186.4 −100.2", "286.6 +0.0"]
    assert comparison.marked.count("0.9100") == len(MEASURES)
    assert "186.4" in comparison.marked
    assert "286.6" not in comparison.marked


def test_comparison_has_no_test_where_it_was_given_none(comparison):
    """Without a comparison of the results folders nothing is called significant."""
    assert "without a significance test" in comparison.words
    assert "significance" not in comparison.rows


def test_comparison_shows_what_is_significant(tmp_path):
    """Differences, intervals and corrected p-values; those below .05 are marked, in the matrix with a star."""
    signatures = ["data:abc|model:a", "data:abc|model:b"]
    systems = [
        System(name, metrics_of(signature=one), cells_of())
        for name, one in zip(("first", "second"), signatures, strict=True)
    ]
    significance = significance_of(signatures, cells_of())
    page = Page(write_comparison(tmp_path, systems, title="Toy", significance=significance))
    rows = page.rows["significance"]
    higher = ["+0.0312 +0.0212 to +0.0412", "0.0004 d +0.50"]
    assert rows[2] == ["mAP", "–", "–", "+0.0020 −0.0080 to +0.0120", "0.4000 d +0.50", *higher]
    assert ["Semitic", "–", "–", "–", "–", "+0.0500 +0.0400 to +0.0600", "0.0200 d +0.50"] in rows
    assert "low" not in {row[0] for row in rows}, "a group without cells has no row"
    assert ["Rank distance", "−100.2 −100.2 to −100.2", "0.0100 d +0.50", "lower is better"] in rows
    assert rows[-3:] == [
        ["ar", "+.020*", "+.020*", "+.020*", "", "+.020*"],
        ["de", "−.010", "−.010", "−.010", "", "−.010"],
        ["el", "−.010", "−.010", "−.010", "", "−.010"],
    ]
    significant = [attrs for _, attrs in page.tags if attrs.get("class") == "significant"]
    assert len(significant) == 1 + len(MEASURES) + 1 + 1  # the key, the merged pool, a family, rank distance
    assert "12 cells tested together: 4 significantly higher, 0 significantly lower" in page.words
    assert "Some rows rest on 12 clusters." in page.words


def test_significance_of_sparse_pairs_is_a_list(tmp_path):
    """Where a matrix would be mostly holes, the significant cells are listed."""
    codes = ["en", *LANGUAGES]
    cells = bitext_cells(LANGUAGES)
    metrics = metrics_of(codes) | {"multilingual": setting(None, 0, 0), "language_bias": no_bias()}
    systems = [System(name, metrics, cells) for name in ("first", "second")]
    significance = significance_of([metrics["signature"]] * 2, cells)
    page = Page(write_comparison(tmp_path, systems, title="Toy", significance=significance))
    assert page.rows["significance"][-1][:2] == ["ar → en", "+0.0200 +0.0100 to +0.0300"]
    assert "pairs" not in page.rows
    assert [row[0] for row in page.rows["languages"][1:4]] == ["Arabic ar", "German de", "Greek el"]


def test_significance_of_other_systems_is_refused(tmp_path):
    """A comparison of other results folders, or in another order, is an error."""
    systems = [System(name, metrics_of(signature=f"data:abc|model:{name}"), cells_of()) for name in "ab"]
    significance = significance_of(["data:abc|model:b", "data:abc|model:a"], cells_of())
    with pytest.raises(BenchmarkError, match=r"got systems .*model:b.*expected .*model:a"):
        write_comparison(tmp_path, systems, title="Toy", significance=significance)


def test_comparison_heatmaps_share_their_colours(comparison):
    """One heatmap per system; the same score has the same colour in each, a higher one another."""
    rows = comparison.rows["pairs"]
    assert [rows[i][1] for i in (1, 5, 9)] == [".900", ".910", ".900"]
    coloured = [attrs["style"] for tag, attrs in comparison.tags if tag == "td" and "style" in attrs]
    assert len(coloured) == 3 * 12
    assert coloured[:12] == coloured[24:]
    assert coloured[0] != coloured[12]


def test_comparison_lists_languages_details_and_signatures(comparison):
    """Multilingual mAP per language and system, the details of every system, and each signature."""
    header, arabic, *_ = comparison.rows["languages"]
    assert header[3:] == ["In training", "untrained", "hybrid", "again"]
    assert arabic[3:] == ["seen", "0.3000", "0.3100 +0.0100", "0.3000 +0.0000"]
    assert comparison.rows["languages"][-1][:2] == ["Mean of languages unseen (1)", "0.3200"]
    assert comparison.rows["systems"][1:] == [["alpha", "-", "–", "–"], ["steps", "–", "20", "–"]]
    assert comparison.text.count(metrics_of()["signature"]) == 3


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (System("a", metrics_of(), cells_of()), "a name used before"),
        (System("b", metrics_of() | {"benchmark": "other"}, cells_of()), "got other data:abc .*expected toy data:abc"),
        (System("b", metrics_of(signature="data:def"), cells_of()), "got toy data:def"),
        (
            System("b", metrics_of(LANGUAGES[:2]), cells_of(LANGUAGES[:2])),
            "in ar, de with candidates ar 1000, de 1001;",
        ),
    ],
)
def test_systems_that_cannot_be_compared_are_refused(tmp_path, second, message):
    """Systems need names of their own and the same benchmark, data and candidates."""
    with pytest.raises(BenchmarkError, match=message):
        write_comparison(tmp_path, [System("a", metrics_of(), cells_of()), second], title="Toy")


def test_comparison_of_no_system_is_refused(tmp_path):
    """There is nothing to compare without a system."""
    with pytest.raises(BenchmarkError, match="systems: got none"):
        write_comparison(tmp_path, [], title="Toy")
