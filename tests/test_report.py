"""Heatmaps and HTML reports: what they say, and that they load nothing and let no markup through."""

import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.plots import (
    background,
    grid_scales,
    heatmap,
    ink,
    relative_luminance,
    save_heatmap,
    score_grid,
    short_score,
)
from hbt_ray.evaluation.report import System, compared_ranks, compared_scores, write_comparison, write_report

LANGUAGES = ["ar", "de", "el"]
MARKUP = "<script>alert('x')</script>"


def cell(query_language, candidate_language, score):
    """A cell whose R@1 is half and whose R@10 is the whole of its mAP."""
    return {
        "query_language": query_language,
        "candidate_language": candidate_language,
        "queries": 4,
        "mAP": score,
        "R@1": score / 2,
        "R@10": score,
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


def setting(score, cells, queries):
    return {"mAP": score, "R@1": score, "R@10": score, "cells": cells, "queries": queries}


def metrics_of(languages=LANGUAGES, *, shift=0.0, distance=286.61, signature="hbt_ray 0.1.0|toy|data:abc|model:m"):
    count = len(languages)
    cross = setting(0.6125 + shift, count * (count - 1), 8) if count > 1 else setting(None, 0, 0)
    return {
        "benchmark": "toy",
        "languages": list(languages),
        "monolingual": setting(0.9 + shift, count, 12),
        "cross_lingual": cross,
        "multilingual": setting(0.31 + shift, count, 1234),
        "language_bias": {
            "rank_distance": distance,
            "rank_distance_by_language": dict.fromkeys(languages, distance),
            "queries": 12,
        },
        "pool": {code: 1000 + i for i, code in enumerate(languages)},
        "signature": signature,
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
        self._open = []
        self._section = "page"
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == [], "every element is closed"

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
        elif tag in ("span", "small") and {"td", "th"} & {name for name, _ in self._open}:
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


@pytest.fixture
def report(tmp_path):
    path = write_report(
        tmp_path / "new" / "folder",
        metrics_of(),
        cells_of(),
        title="Toy, α = 0.5",
        notes=["Paragraph-disjoint."],
        seen_languages=["de", "ar", "en"],
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


def test_numbers_are_readable_on_every_colour():
    """Wherever a score falls on the scale, its ink has a contrast of at least 4.5 to 1 with its background."""
    for position in np.linspace(0, 1, 201):
        colour = background(float(position))
        low, high = sorted([relative_luminance(colour), relative_luminance(ink(colour))])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_colours_get_darker_all_the_way():
    """Lightness alone orders the scale, so it survives colour blindness and grey print."""
    lightness = [relative_luminance(background(float(p))) for p in np.linspace(0, 1, 50)]
    assert all(np.diff(lightness) < 0)


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


def test_headline_has_the_three_settings_and_rank_distance(report):
    """The headline table gives each setting's scores, cells and queries, and rank distance where it belongs."""
    _, monolingual, cross_lingual, multilingual = report.rows["headline"]
    assert monolingual[0].startswith("Monolingual query and candidates")
    assert monolingual[1:] == ["0.9000", "0.9000", "0.9000", "", "3", "12"]
    assert cross_lingual[1:] == ["0.6125", "0.6125", "0.6125", "", "6", "8"]
    assert multilingual[1:] == ["0.3100", "0.3100", "0.3100", "286.6", "3", "1,234"]


def test_report_shows_both_heatmaps_as_tables(report):
    """mAP and R@1 of every pair are on the page, the merged pool after a gap."""
    rows = report.rows["pairs"]
    assert rows[0] == ["", "ar", "de", "el", "", "all"]
    assert rows[1] == ["ar", ".900", ".502", ".504", "", ".300"]
    assert rows[5] == ["ar", ".450", ".251", ".252", "", ".150"]
    assert len(rows) == 8


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


def test_report_gives_pool_bias_notes_and_signature(report):
    """Pool sizes, rank distances by language, notes, definitions with sources and the signature are there."""
    assert report.rows["pool"] == [
        ["Arabic ar", "", "1,000"],
        ["German de", "", "1,001"],
        ["Greek el", "", "1,002"],
    ]
    assert [row[2] for row in report.rows["rank-distance"]] == ["286.6"] * 3
    assert "3,003 candidates" in report.text
    for text in ("Paragraph-disjoint.", "arXiv 2004.05484", "arXiv 2408.10536", metrics_of()["signature"]):
        assert text in report.text


def test_training_column_is_left_out_when_unknown(tmp_path):
    """Without training languages nothing is called seen or unseen."""
    page = Page(write_report(tmp_path, metrics_of(), cells_of(), title="Toy"))
    assert page.rows["languages"][0][:4] == ["Language", "Family", "Resource level", "Monolingual"]
    assert "seen" not in page.text


def test_one_language_has_dashes_for_what_is_not_defined(tmp_path):
    """With one language the cross-lingual scores and rank distance read as not defined, never as zero."""
    metrics = metrics_of(["de"], distance=None)
    page = Page(write_report(tmp_path, metrics, cells_of(["de"]), title="German"))
    assert page.rows["headline"][2][1:] == ["–", "–", "–", "", "0", "0"]
    assert page.rows["headline"][3][4] == "–"
    assert page.rows["languages"][1][3:] == ["0.9000", "–", "–", "0.3000"]
    assert page.rows["rank-distance"] == [["German de", "", "–"]]


def test_missing_cell_is_a_dash(tmp_path):
    """A pair of languages that share no question has a dash and no colour, and leaves the means alone."""
    cells = [c for c in cells_of() if (c["query_language"], c["candidate_language"]) != ("ar", "de")]
    page = Page(write_report(tmp_path, metrics_of(), cells, title="Toy"))
    assert page.rows["pairs"][1] == ["ar", ".900", "–", ".504", "", ".300"]
    assert page.rows["languages"][1][4] == "0.5040"


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
    page = Page(write_report(tmp_path, metrics, cells_of(), title=MARKUP, notes=[MARKUP]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(MARKUP) == 5  # title, heading, benchmark, note, signature


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
        ({"pool": {"ar": 1}}, r"metrics\['pool'\]: got keys ar; expected also de, el"),
        ({"monolingual": {}}, r"metrics\['monolingual'\]: got keys none; expected also mAP, R@1"),
        ({"language_bias": {"rank_distance": 1.0}}, r"metrics\['language_bias'\]: .*rank_distance_by_language"),
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
    assert [v.difference for v in values] == ["", "+0.2000", "+0.2000", "–", "+0.0000"]


def test_best_rank_distance_is_the_lowest():
    """Rank distance is marked where it is lowest, and a system first without one leaves no difference."""
    assert [v.best for v in compared_ranks([410.2, 286.6, 295.4])] == [False, True, False]
    assert compared_ranks([410.2, 286.6])[1].difference == "−123.6"
    assert compared_ranks([None, 286.6])[1] == ("286.6", True, "–")
    assert [v.best for v in compared_ranks([None, None])] == [False, False]


def test_comparison_headline_keeps_order_and_marks_the_best(comparison):
    """Systems stay in the order given; every best value is marked, with its difference from the first."""
    *_, untrained, hybrid, again = comparison.rows["headline"]
    assert untrained == ["untrained", *["0.9000"] * 3, *["0.6125"] * 3, *["0.3100"] * 3, "286.6"]
    assert hybrid[:2] == ["hybrid", "0.9100 +0.0100"]
    assert hybrid[-1] == "186.4 −100.2"
    assert again[-1] == "286.6 +0.0"
    assert comparison.marked.count("0.9100") == 3
    assert "186.4" in comparison.marked
    assert "286.6" not in comparison.marked


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
        (System("b", metrics_of(LANGUAGES[:2]), cells_of(LANGUAGES[:2])), "with candidates ar 1000, de 1001;"),
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
