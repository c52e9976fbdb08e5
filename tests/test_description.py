"""Descriptions of datasets: counts against NumPy's, and the page."""

import random
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hbt_ray.corpus.importers import RejectedRow
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.corpus.writer import Rejections, write_pairs
from hbt_ray.description import Description, describe, table_rows, write_page
from hbt_ray.description.page import summary
from hbt_ray.errors import CorpusError
from hbt_ray.storage import Folder

ARABIC = "أين ينتهي نهر الراين؟"
ROWS, PASSAGES = 300, 90


def made_up(seed: int = 3) -> list[ParallelPair]:
    """300 pairs about 90 passages of 30 documents; Arabic lacks some queries and all passages of a third of them."""
    rng = random.Random(seed)
    pairs = []
    for i in range(ROWS):
        number = i % PASSAGES
        text = {"en": f"passage {number} " + "x" * (37 * number % 1000), "ar": "ف" * (number + 1)}
        passage = text if number % 3 else {"en": text["en"]}
        query = {"en": f"question {i} " + "?" * rng.randrange(60)}
        if rng.random() < 0.6:
            query["ar"] = ARABIC + "!" * rng.randrange(9)
        negatives = {"en": ["one", "two"]} if i % 10 == 0 else {}
        pairs.append(ParallelPair(f"q{i}", f"p{number}", f"document {number % 30:02d}", query, passage, negatives))
    return pairs


def written(
    tmp_path: Path, pairs: list[ParallelPair], provenance: dict[str, object] | None = None, *, named: bool = True
) -> ShardedDataset:
    root = Folder(str(tmp_path))
    given = {"source": "made up"} if provenance is None else provenance
    sizes = {"rows_per_part": 128, "rows_per_group": 16}
    write_pairs(root, "rivers", iter(pairs), ("en", "ar"), given, **sizes, name_documents=named)
    return ShardedDataset.open(root / "rivers")


def quantile(lengths: list[int], share: float) -> int:
    return int(np.quantile(lengths, share, method="inverted_cdf"))


def test_counts_and_lengths_are_those_of_the_pairs(tmp_path: Path) -> None:
    """Computed another way: from the pairs themselves, with NumPy's quantiles."""
    pairs = made_up()
    found = describe(written(tmp_path, pairs))
    assert (found.rows, found.parts, found.documents, found.passages) == (ROWS, 3, 30, PASSAGES)
    assert found.passages_per_document == (3, 3)
    assert found.pairs_per_passage == (3, 4)
    passages = {pair.passage_id: pair.passage for pair in pairs}
    for one in found.languages:
        queries = [len(pair.query[one.code]) for pair in pairs if one.code in pair.query]
        texts = [len(passage[one.code]) for passage in passages.values() if one.code in passage]
        assert one.queries == one.query_lengths.texts == len(queries)
        assert one.missing_queries == pytest.approx(1 - len(queries) / ROWS)
        assert one.passages == sum(one.code in pair.passage for pair in pairs)
        for lengths, measured in ((queries, one.query_lengths), (texts, one.passage_lengths)):
            assert measured.texts == len(lengths)
            assert measured.median == quantile(lengths, 0.5)
            assert measured.percentile95 == quantile(lengths, 0.95)
            assert measured.longest == max(lengths)
            bins = np.floor(2 * np.log2(lengths)).astype(int)
            assert list(measured.histogram) == np.bincount(bins).tolist()
    assert [one.negatives for one in found.languages] == [60, 0]


def test_repetitions_are_counted_in_english(tmp_path: Path) -> None:
    """A query that several passages are asked is repeated, a pair only together with its passage."""
    passage = {"en": "The Rhine.", "ar": "الراين"}
    pairs = [ParallelPair(str(i), "p", "g", {"en": "Where?", "ar": f"{ARABIC} {i}"}, passage) for i in range(3)]
    pairs.append(ParallelPair("other", "o", "g", {"en": "Where?"}, {"en": "The Nile."}))
    pairs.append(ParallelPair("arabic", "o", "g", {"ar": ARABIC}, {"en": "The Nile."}))
    found = describe(written(tmp_path, pairs))
    assert (found.pivot, found.repeated_queries, found.repeated_pairs) == ("en", 3, 2)


def test_samples_are_rows_in_all_their_languages(tmp_path: Path) -> None:
    """With the names of their documents, or without names their numbers; a missing cell is left out."""
    pairs = made_up()
    numbers = describe(written(tmp_path / "numbers", pairs, named=False)).samples
    assert {sample.document for sample in numbers} <= set(map(str, range(30)))
    found = describe(written(tmp_path, pairs), samples=4)
    by_id = {pair.pair_id: pair for pair in pairs}
    assert len(found.samples) == 4
    for sample in found.samples:
        pair = by_id[sample.pair_id]
        assert (sample.query, sample.passage) == (pair.query, pair.passage)
        assert (sample.document, sample.passage_id) == (pair.group, pair.passage_id)


def test_rejected_rows_are_counted_by_reason(tmp_path: Path) -> None:
    """From the manifest, with those of cleaning; in an older dataset from the files themselves."""
    provenance = {"rejected": {"text is blank": 2}, "cleaning": {"rejected": {"pair repeats another": 5}}}
    assert describe(written(tmp_path / "new", made_up(), provenance)).rejected == {
        "pair repeats another": 5,
        "text is blank": 2,
    }
    old = written(tmp_path / "old", made_up())
    with Rejections(old.folder, "rejected") as reject:
        for i in range(4):
            reject(RejectedRow("en.json", str(i), "en", "id again" if i else "no id", "text"))
    assert describe(old).rejected == {"id again": 3, "no id": 1}


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """No silent half of a description."""
    dataset = written(tmp_path, made_up())
    (tmp_path / "rivers" / "ar" / "part-00001.parquet").unlink()
    with pytest.raises(CorpusError, match=r"ar/part-00001\.parquet"):
        describe(dataset)


def test_the_table_has_a_row_per_language(tmp_path: Path) -> None:
    """Every row as wide as the header; numbers are the description's."""
    found = describe(written(tmp_path, made_up()))
    header, rows = table_rows(found)
    assert [len(row) for row in rows] == [len(header)] * 2
    assert [row[0] for row in rows] == ["en", "ar"]
    english = dict(zip(header[:3], rows[0], strict=False))
    assert english == {"language": "en", "queries": "300", "missing": "0"}
    assert rows[1][4] == "33.3%"
    assert "60 hard negatives" in " ".join(summary(found))


class Page(HTMLParser):
    """Elements that carry a text, the scripts and links of a page, and the bars of its histograms."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[dict[str, str | None]] = []
        self.directions: dict[str, str | None] = {}
        self.outside: list[str] = []
        self.bars = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.bars += tag == "rect"
        if tag not in ("meta", "br", "rect"):
            self.open.append(found)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value]
        self.outside += ["script"] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "br", "rect"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.directions[data.strip()] = self.open[-1].get("dir")


def test_the_page_stands_alone_and_shows_texts_their_way(tmp_path: Path) -> None:
    """One file without links; Arabic and English each in the direction that they are read; markup in a text is text."""
    query = {"en": "<b>Where</b> & why?", "ar": ARABIC}
    pairs = [ParallelPair("q", "p", "g", query, {"ar": "ينتهي نهر الراين في بحر الشمال. " * 20})]
    page = Page(write_page([describe(written(tmp_path, pairs))], tmp_path / "out" / "page.html").read_text("utf-8"))
    assert page.directions[ARABIC] == "auto"
    assert page.directions["<b>Where</b> & why?"] == "auto"
    assert (
        page.directions["ينتهي نهر الراين في بحر الشمال. ".strip() + " ينتهي نهر الراين في بحر الشمال." * 19] == "auto"
    )
    assert page.directions["no passage"] is None
    assert page.outside == []
    assert page.open == []
    assert page.bars == 3  # two queries, one passage: a bar each


def test_one_page_for_several_datasets(tmp_path: Path) -> None:
    """Each with its name and its own numbers."""
    found: list[Description] = []
    for name, count in (("first", 200), ("second", 40)):
        root = Folder(str(tmp_path))
        write_pairs(root, name, iter(made_up()[:count]), None, {"notes": {"xquad-r": ["a", "b"]}})
        found.append(describe(ShardedDataset.open(root / name)))
    page = Page(write_page(found, tmp_path / "page.html").read_text("utf-8"))
    assert {"first", "second", "200 pairs in 2 languages, 1 file each.", "xquad-r: a, b"} <= set(page.directions)
    assert [one.rows for one in found] == [200, 40]
