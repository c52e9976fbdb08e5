"""Importers: what they share, SQuAD translations joined by question id, a user's own records in long form."""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from hbt_ray.corpus import importers, records, squad_mt
from hbt_ray.corpus.importers import (
    RejectedRow,
    json_items,
    json_lines,
    lines,
    text_fault,
    text_hash,
    usable_pairs,
)
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.records import read_records
from hbt_ray.corpus.squad_mt import read_squad_mt
from hbt_ray.errors import CorpusError

SHARED_DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"


@dataclass
class Found:
    """What an importer gave and what it left out."""

    pairs: list[ParallelPair] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)

    @property
    def languages(self) -> set[str]:
        return {code for pair in self.pairs for code in (*pair.query, *pair.passage)}

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(row.row, row.reason) for row in self.rejected]


def squad_mt_found(source: Path, english: Path, exclude: Sequence[Path] = ()) -> Found:
    found = Found()
    found.pairs.extend(read_squad_mt(source, english, exclude, reject=found.rejected.append))
    return found


def records_found(source: Path) -> Found:
    found = Found()
    found.pairs.extend(read_records(source, reject=found.rejected.append))
    return found


Paragraph = tuple[str, dict[str, str]]  # context, question id -> question


def squad(*articles: tuple[str, list[Paragraph]], impossible: tuple[str, ...] = ()) -> dict[str, Any]:
    """A SQuAD file as a dict; ids in `impossible` carry the v2.0 mark."""

    def question(id: str, text: str) -> dict[str, Any]:
        return {"id": id, "question": text, "answers": [], "is_impossible": id in impossible}

    return {
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {"context": context, "qas": [question(id, text) for id, text in questions.items()]}
                    for context, questions in paragraphs
                ],
            }
            for title, paragraphs in articles
        ]
    }


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ENGLISH = squad(
    ("Rivers", [("The Rhine is long.", {"q1": "How long?", "q2": "Which river?"}), ("The Nile.", {"q3": "Where?"})]),
    ("Kings", [("George was king.", {"q4": "Who was king?"})]),
)


@pytest.fixture
def english(tmp_path: Path) -> Path:
    return write_json(tmp_path / "dev.json.gz", ENGLISH)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mt"
    folder.mkdir()
    return folder


def reasons(found: Found, language: str) -> dict[str, str]:
    return {row.row: row.reason for row in found.rejected if row.language == language}


class TestReadSquadMt:
    def test_joins_by_question_id(self, english: Path, source: Path) -> None:
        """Texts are joined by question id, whatever the order and the titles of the translation."""
        write_json(
            source / "es.json",
            squad(("Reyes", [("Jorge era rey.", {"q4": "¿Quién?"})]), ("Ríos", [("El Rin.", {"q2": "¿Qué río?"})])),
        )

        found = squad_mt_found(source, english)

        assert found.languages == {"en", "es"}
        assert found.pairs == [
            ParallelPair("q1", "0:0", "Rivers", {"en": "How long?"}, {"en": "The Rhine is long.", "es": "El Rin."}),
            ParallelPair(
                "q2",
                "0:0",
                "Rivers",
                {"en": "Which river?", "es": "¿Qué río?"},
                {"en": "The Rhine is long.", "es": "El Rin."},
            ),
            ParallelPair("q3", "0:1", "Rivers", {"en": "Where?"}, {"en": "The Nile."}),
            ParallelPair(
                "q4",
                "1:0",
                "Kings",
                {"en": "Who was king?", "es": "¿Quién?"},
                {"en": "George was king.", "es": "Jorge era rey."},
            ),
        ]
        assert found.rejected == []

    def test_english_inside_the_folder(self, source: Path) -> None:
        """English may be in the folder; files of other names are no data."""
        for language in ("zh", "da", "es"):
            write_json(source / f"{language}.json.gz", ENGLISH)
        (source / "README.md").write_text("not data")
        inside = write_json(source / "en.json.gz", ENGLISH)

        assert squad_mt_found(source, inside).languages == {"en", "da", "es", "zh"}

    def test_excluded_paragraphs_leave_every_language(self, english: Path, source: Path, tmp_path: Path) -> None:
        """A paragraph with an excluded question id goes in every language, with all its other questions."""
        write_json(source / "da.json", squad(("R", [("Rhinen.", {"q2": "Hvilken?"}), ("Nilen.", {"q3": "Hvor?"})])))
        benchmark = write_json(tmp_path / "xquad.json", squad(("Rivers", [("The Rhine is long.", {"q1": "?"})])))

        found = squad_mt_found(source, english, [benchmark])

        assert [pair.pair_id for pair in found.pairs] == ["q3", "q4"]
        assert reasons(found, "en") == {"q1": squad_mt.EXCLUDED, "q2": squad_mt.EXCLUDED, "0:0": squad_mt.EXCLUDED}
        assert reasons(found, "da") == {"q2": squad_mt.EXCLUDED, "0:0": squad_mt.EXCLUDED}

    def test_what_no_id_places_is_left_out_and_recorded(self, english: Path, source: Path) -> None:
        """Unanswerable and unknown questions, and paragraphs without a known one, are rejected with their text."""
        content = squad(
            ("R", [("Rhinen.", {"q1": "Hvor lang?", "q2": "Hvilken?", "d7": "Ukendt?"}), ("Tabt.", {"v2": "Umulig?"})]),
            impossible=("q2", "v2"),
        )
        write_json(source / "da.json", content)

        found = squad_mt_found(source, english)

        assert found.rejected == [
            RejectedRow("da.json", "q2", "da", squad_mt.UNANSWERABLE, "Hvilken?"),
            RejectedRow("da.json", "d7", "da", squad_mt.UNKNOWN_ID, "Ukendt?"),
            RejectedRow("da.json", "v2", "da", squad_mt.UNANSWERABLE, "Umulig?"),
            RejectedRow("da.json", "0:1", "da", squad_mt.UNPLACED, "Tabt."),
        ]
        assert {p.pair_id: p.query["da"] for p in found.pairs if "da" in p.query} == {"q1": "Hvor lang?"}

    def test_ambiguous_paragraph_is_left_out(self, english: Path, source: Path) -> None:
        """A paragraph whose questions belong to two English paragraphs is no translation of either."""
        write_json(source / "da.json", squad(("R", [("Begge.", {"q1": "En?", "q3": "To?"})])))

        found = squad_mt_found(source, english)

        assert dict.fromkeys(("q1", "q3", "0:0"), squad_mt.AMBIGUOUS) == reasons(found, "da")
        assert not any("da" in pair.passage or "da" in pair.query for pair in found.pairs)

    def test_suffixed_file_adds_to_its_language(self, english: Path, source: Path) -> None:
        """`tr-excluded` is Turkish and read after `tr`: its questions count, and of two wordings the first."""
        write_json(source / "tr-excluded.json.gz", squad(("N", [("Ren 2.", {"q2": "Hangi?"}), ("Nil.", {"q3": "?"})])))
        write_json(source / "tr.json.gz", squad(("N", [("Ren 1.", {"q1": "Ne kadar?"})])))

        found = squad_mt_found(source, english)

        assert found.languages == {"en", "tr"}
        assert [pair.query.get("tr") for pair in found.pairs] == ["Ne kadar?", "Hangi?", "?", None]
        assert [pair.passage.get("tr") for pair in found.pairs] == ["Ren 1.", "Ren 1.", "Nil.", None]
        assert found.rejected == [
            RejectedRow("tr-excluded.json.gz", "0:0", "tr", squad_mt.SECOND_TRANSLATION, "Ren 2.")
        ]

    def test_same_words_again_are_no_loss(self, english: Path, source: Path) -> None:
        """A paragraph that comes twice word for word is merged without a rejected row."""
        write_json(source / "tr.json", squad(("N", [("Ren.", {"q1": "Ne kadar?"})])))
        write_json(source / "tr-excluded.json", squad(("N", [("Ren.", {"q2": "Hangi?"})])))

        assert squad_mt_found(source, english).rejected == []

    def test_repeated_question_id(self, english: Path, source: Path) -> None:
        """Of two questions with one id the first counts, within a file and over the files of a language."""
        content = squad(("R", [("Rhinen.", {"q1": "først"})]))
        content["data"][0]["paragraphs"][0]["qas"].append({"id": "q1", "question": "igen"})
        write_json(source / "da.json", content)
        write_json(source / "da-more.json", squad(("R", [("Rhinen.", {"q1": "tredje"})])))

        found = squad_mt_found(source, english)

        assert found.pairs[0].query["da"] == "først"
        assert [(r.file, r.text) for r in found.rejected] == [("da.json", "igen"), ("da-more.json", "tredje")]
        assert {squad_mt.REPEATED_ID} == {row.reason for row in found.rejected}

    def test_blank_texts_are_missing_cells(self, english: Path, source: Path) -> None:
        """A blank question or paragraph, or one with a NUL, is a missing cell; the other side of the pair stays."""
        write_json(
            source / "da.json",
            squad(("R", [(" \n", {"q1": "Hvor lang?", "q2": ""}), ("Nilen.", {"q3": "Hv\0or?"})])),
        )

        found = squad_mt_found(source, english)

        assert [pair.query.get("da") for pair in found.pairs[:3]] == ["Hvor lang?", None, None]
        assert [pair.passage.get("da") for pair in found.pairs[:3]] == [None, None, "Nilen."]
        assert reasons(found, "da") == {
            "q2": "question is blank",
            "0:0": "paragraph is blank",
            "q3": "question holds a NUL character",
        }

    def test_unanswerable_english_questions_make_no_pair(self, tmp_path: Path, source: Path) -> None:
        """A v2.0 English file is a valid pivot: its unanswerable questions are left out in all languages."""
        content = squad(("Rivers", [("The Rhine.", {"q1": "How?", "q2": "Why?"})]), impossible=("q2",))
        english = write_json(tmp_path / "dev.json", content)
        write_json(source / "da.json", squad(("R", [("Rhinen.", {"q1": "Hvor?", "q2": "Hvorfor?"})])))

        found = squad_mt_found(source, english)

        assert [pair.pair_id for pair in found.pairs] == ["q1"]
        assert reasons(found, "en") == {"q2": squad_mt.UNANSWERABLE}
        assert reasons(found, "da") == {"q2": squad_mt.UNKNOWN_ID}

    def test_excluded_unanswerable_question_excludes_its_paragraph(self, tmp_path: Path, source: Path) -> None:
        """An excluded id keeps its paragraph out even where the pivot marks that question unanswerable."""
        content = squad(("Rivers", [("The Rhine.", {"q1": "How?", "q2": "Why?"})]), impossible=("q2",))
        english = write_json(tmp_path / "dev.json", content)
        write_json(source / "da.json", squad(("R", [("Rhinen.", {"q1": "Hvor?"})])))
        benchmark = write_json(tmp_path / "xquad.json", squad(("Rivers", [("The Rhine.", {"q2": "Why?"})])))

        assert squad_mt_found(source, english, [benchmark]).pairs == []


class TestReadSquadMtErrors:
    @pytest.mark.parametrize(
        ("content", "place", "expected"),
        [
            ({"version": "1.1"}, "data", "a value"),
            ([1], "top level", "an object"),
            ({"data": [{"title": "R"}]}, "data[0].paragraphs", "a value"),
            ({"data": [{"title": "R", "paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0].context", "a value"),
            (
                {"data": [{"title": "R", "paragraphs": [{"context": "c", "qas": [{"id": 7, "question": "q"}]}]}]},
                "data[0].paragraphs[0].qas[0].id",
                "a valid string",
            ),
        ],
    )
    def test_not_squad_format(self, english: Path, source: Path, content: object, place: str, expected: str) -> None:
        """A file that is not in SQuAD format names the article, paragraph and question at fault."""
        path = write_json(source / "da.json", content)

        with pytest.raises(CorpusError) as caught:
            squad_mt_found(source, english)

        assert (f"{path}, {place}", expected) == (caught.value.where, caught.value.expected)

    @pytest.mark.parametrize(
        ("name", "data", "expected"),
        [
            ("da.json", b"{", "valid JSON in UTF-8"),
            ("da.json", b"", "valid JSON in UTF-8"),
            ("da.json", '{"data": "ø"}'.encode("latin-1"), "valid JSON in UTF-8"),
            ("da.json.gz", b"not gzip", "a readable gzip file"),
            ("da.json.gz", gzip.compress(b"{}" * 999)[:-9], "a readable gzip file"),
            ("da.json.gz", gzip.compress(b"{}")[:10] + b"\xff" * 20, "a readable gzip file"),
        ],
        # Named, as gzip writes the time into its bytes: the same test must have one name in every process of a run.
        ids=["cut off", "empty", "latin-1", "not gzip", "gzip cut off", "gzip broken"],
    )
    def test_damaged_file(self, english: Path, source: Path, name: str, data: bytes, expected: str) -> None:
        """A file that is no JSON, no UTF-8 or no whole gzip is named."""
        (source / name).write_bytes(data)

        with pytest.raises(CorpusError) as caught:
            squad_mt_found(source, english)

        assert (str(source / name), expected) == (caught.value.where, caught.value.expected)

    @pytest.mark.parametrize(
        ("names", "received"),
        [
            (["xx.json"], "'xx'"),
            (["en.json"], "a second English file"),
            (["da.json", "da.json.gz"], "also da.json"),
            (["notes.txt"], "no such file in it"),
        ],
    )
    def test_files_of_the_folder(self, english: Path, source: Path, names: list[str], received: str) -> None:
        """A file name that is no language, English or a language twice is refused, and a folder without data."""
        for name in names:
            write_json(source / name, ENGLISH)

        with pytest.raises(CorpusError) as caught:
            squad_mt_found(source, english)

        assert str(caught.value.received).startswith(received)

    def test_missing_paths(self, english: Path, source: Path, tmp_path: Path) -> None:
        """A missing folder, English file or excluded file is named."""
        write_json(source / "da.json", ENGLISH)
        gone = tmp_path / "gone.json"
        for arguments in ((gone, english, []), (source, gone, []), (source, english, [gone])):
            with pytest.raises(CorpusError) as caught:
                squad_mt_found(*arguments)
            assert caught.value.where == str(gone)

    @pytest.mark.parametrize(
        ("content", "place", "received"),
        [
            (squad(("R", [("c", {"q1": " "})])), "paragraph 0:0, question q1", "' '"),
            (squad(("R", [("ok", {"q1": "q"}), ("", {"q2": "q"})])), "paragraph 0:1, context", "''"),
            (squad(("R", [("a", {"q1": "q"}), ("b", {"q1": "q"})])), "paragraph 0:1", "question id 'q1' again"),
        ],
    )
    def test_pivot_must_be_whole(
        self, tmp_path: Path, source: Path, content: object, place: str, received: str
    ) -> None:
        """The English file decides everything, so a blank text or a repeated id in it is an error, not a rejection."""
        english = write_json(tmp_path / "dev.json", content)
        write_json(source / "da.json", ENGLISH)

        with pytest.raises(CorpusError) as caught:
            squad_mt_found(source, english)

        assert (f"{english}, {place}", received) == (caught.value.where, caught.value.received)


class TestUsablePairs:
    def test_counts_query_and_passage_independently(self) -> None:
        """Entry [a, b] counts pairs with a query in language a and a passage in language b."""
        pairs = [
            ParallelPair("1", "p", "g", {"en": "q"}, {"en": "p", "de": "p"}),
            ParallelPair("2", "p", "g", {"en": "q", "de": "q"}, {"de": "p"}),
        ]

        counts = usable_pairs(pairs, ("en", "de", "fr"))

        assert counts.dtype == np.int64
        assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]

    def test_no_pairs(self) -> None:
        """No pairs give a square of zeros."""
        assert usable_pairs([], ("en", "de")).tolist() == [[0, 0], [0, 0]]


Rows = list[dict[str, Any]]
Writer = Callable[[Path, Rows], Path]


def write_jsonl(folder: Path, rows: Rows) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_jsonl_gz(folder: Path, rows: Rows) -> Path:
    path = folder / "data.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(folder, rows).read_bytes()))
    return path


def write_parquet(folder: Path, rows: Rows) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(params=[write_jsonl, write_jsonl_gz, write_parquet])
def write(request: pytest.FixtureRequest) -> Writer:
    writer: Writer = request.param
    return writer


class TestReadRecords:
    def test_joins_languages(self, tmp_path: Path, write: Writer) -> None:
        """Rows of one pair_id are joined over its languages, in order of first appearance, from all three formats."""
        full = {"passage_id": "doc#1", "group": "doc", "negatives": ["falsch", "auch falsch"]}
        none = dict.fromkeys(full)
        source = write(
            tmp_path,
            [
                {"pair_id": "b", "language": "de", "query": "Wer?", "passage": "Er.", **full},
                {"pair_id": "a", "language": "en", "query": "What?", "passage": "It.", **none},
                {"pair_id": "b", "language": "tr", "query": None, "passage": "O.", **none},
                {"pair_id": "b", "language": "en", "query": "Who?", "passage": None, **none},
            ],
        )

        pairs = records_found(source).pairs

        assert [pair.pair_id for pair in pairs] == ["b", "a"]
        assert pairs[0] == ParallelPair(
            pair_id="b",
            passage_id="doc#1",
            group="doc",
            query={"de": "Wer?", "en": "Who?"},
            passage={"de": "Er.", "tr": "O."},
            negatives={"de": ("falsch", "auch falsch")},
        )
        assert pairs[1].negatives == {}

    def test_same_passage_shares_its_default_id(self, tmp_path: Path, write: Writer) -> None:
        """Without passage_id, pairs share one exactly if their alphabetically first passage is the same text."""
        source = write(
            tmp_path,
            [
                {"pair_id": "1", "language": "en", "query": "a", "passage": "The Rhine."},
                {"pair_id": "1", "language": "de", "query": "a", "passage": "Der Rhein."},
                {"pair_id": "2", "language": "de", "query": "b", "passage": "Der Rhein."},
                {"pair_id": "3", "language": "de", "query": "c", "passage": "Der Nil."},
            ],
        )

        first, second, third = records_found(source).pairs

        assert first.passage_id == second.passage_id != third.passage_id
        assert [first.passage_id, third.passage_id] == [first.group, third.group]

    def test_blank_lines_and_byte_order_mark(self, tmp_path: Path) -> None:
        """A byte order mark and blank lines are no content, and lines keep their numbers."""
        source = tmp_path / "data.jsonl"
        row = '{"pair_id": "1", "language": "en", "query": "q", "passage": "p"}'
        source.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n\n  \nbroken\n")

        found = records_found(source)

        assert [pair.pair_id for pair in found.pairs] == ["1"]
        assert found.rejected == [RejectedRow("data.jsonl", "4", "", "line is not JSON", "broken")]

    def test_line_separators_inside_a_text(self, tmp_path: Path) -> None:
        """Unicode line separators inside a text do not end a JSON line."""
        text = "a\u2028b\u0085c"
        source = write_jsonl(tmp_path, [{"pair_id": "1", "language": "en", "query": text, "passage": text}])

        assert text == records_found(source).pairs[0].query["en"]


GOOD = {"pair_id": "1", "language": "en", "query": "q", "passage": "p"}
TOO_LONG = "field query: text is longer than 1,000,000 characters"


class TestReadRecordsErrors:
    @pytest.mark.parametrize(
        ("change", "place", "received", "fix"),
        [
            ({"pair_id": 7}, ", pair_id", "7", "Correct"),
            ({"query": " \t"}, ", query", r"' \t'", "Correct"),
            ({"passage": ""}, ", passage", "''", "Correct"),
            ({"passage": "a\0b"}, ", passage", r"'a\x00b'", "Correct"),
            ({"negatives": "n"}, ", negatives", "'n'", "Correct"),
            ({"negatives": ["n", ""]}, ", negatives[1]", "''", "Correct"),
            ({"language": "xx"}, "", "'xx'", ""),
            ({"language": None}, ", language", "None", "Correct"),
            ({"passge_id": "d"}, ", passge_id", "unknown field 'passge_id'", "Did you mean 'passage_id'?"),
            ({"query": None, "passage": None}, "", "neither query nor passage", "Fill one in"),
        ],
    )
    def test_faulty_row(
        self, tmp_path: Path, write: Writer, change: dict[str, Any], place: str, received: str, fix: str
    ) -> None:
        """A row with a wrong, blank, unknown or missing value is named with its number, column and value."""
        source = write(tmp_path, [{**GOOD, **change}])
        unit = "row" if source.suffix == ".parquet" else "line"

        with pytest.raises(CorpusError) as caught:
            records_found(source)

        assert (f"{source}, {unit} 1{place}", received) == (caught.value.where, caught.value.received)
        assert caught.value.fix.startswith(fix)

    @pytest.mark.parametrize("column", ["pair_id", "language"])
    def test_missing_column(self, tmp_path: Path, write: Writer, column: str) -> None:
        """A row without pair_id or language says which is missing."""
        source = write(tmp_path, [{name: value for name, value in GOOD.items() if name != column}])

        with pytest.raises(CorpusError, match=rf" 1, {column}: got nothing"):
            records_found(source)

    @pytest.mark.parametrize("column", ["query", "passage"])
    def test_pair_without_query_or_passage(self, tmp_path: Path, write: Writer, column: str) -> None:
        """The rows of a pair that has no query, or no passage, in any language are rejected; other pairs stay."""
        lacking = {**GOOD, "pair_id": "2", column: None}
        found = records_found(write(tmp_path, [GOOD, lacking, {**lacking, "language": "de"}]))

        assert [pair.pair_id for pair in found.pairs] == ["1"]
        assert found.reasons == [(row, f"pair has no {column} in any language") for row in ("2", "3")]

    @pytest.mark.parametrize("column", ["query", "passage"])
    def test_only_pair_without_query_or_passage(self, tmp_path: Path, write: Writer, column: str) -> None:
        """Where no other pair is left, it is named."""
        with pytest.raises(CorpusError, match=rf" 1: got pair_id '1' without a {column} in any language"):
            records_found(write(tmp_path, [{**GOOD, column: None}]))

    def test_duplicate(self, tmp_path: Path, write: Writer) -> None:
        """Of two rows of one pair in one language the first counts, the second is rejected with its text."""
        found = records_found(write(tmp_path, [GOOD, {**GOOD, "language": "de"}, {**GOOD, "query": "again"}]))

        assert found.pairs[0].query == {"en": "q", "de": "q"}
        assert found.reasons == [("3", records.REPEATED)]
        assert json.loads(found.rejected[0].text) == {**GOOD, "query": "again"}

    @pytest.mark.parametrize("column", ["passage_id", "group"])
    def test_rows_that_disagree(self, tmp_path: Path, write: Writer, column: str) -> None:
        """A row that gives its pair a second passage_id or group is rejected; one that gives none is not."""
        rows = [
            {**GOOD, column: "a"},
            {**GOOD, "language": "de", column: "b"},
            {**GOOD, "language": "tr", column: None},
        ]
        found = records_found(write(tmp_path, rows))

        assert found.reasons == [("2", f"{column} differs from that of the pair's earlier rows")]
        assert set(found.pairs[0].query) == {"en", "tr"}
        assert "a" in (found.pairs[0].passage_id, found.pairs[0].group)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"pair_id": "2",', "line is not JSON"),
            ('{"pair_id": "ø"}'.encode("latin-1"), "line is not UTF-8"),
            (json.dumps(GOOD).encode("utf-16"), "line is not UTF-8"),
            (b'{"pair_id": "\\ud800"}', "line is not JSON"),
            (b"[" * 100_000, "line is not JSON"),
            (b'{"pair_id": "2", "language": "en", "query": "' + b"a" * 10_000_000 + b'"}', TOO_LONG),
            (b'{"pair_id": "2", "language": "xx", "query": "a", "passage": "b"}', "language is unknown"),
            (b'{"pair_id": "2", "language": "en"}', "row has neither query nor passage"),
            (b'{"pair_id": "2", "language": "en", "query": "a\\u0000"}', "field query: text holds a NUL character"),
            (b'{"pair_id": "2", "language": "en", "nagatives": []}', "field nagatives: Extra inputs are not permitted"),
        ],
        ids=range(10),
    )
    def test_malformed_line(self, tmp_path: Path, line: bytes, reason: str) -> None:
        """A line that is no JSON, no UTF-8 or no usable row is rejected with its number; the others go on."""
        source = tmp_path / "data.jsonl"
        good = json.dumps(GOOD).encode()
        source.write_bytes(good + b"\n" + line + b"\n" + good.replace(b'"1"', b'"3"') + b"\n")

        found = records_found(source)

        assert [pair.pair_id for pair in found.pairs] == ["1", "3"]
        assert found.reasons == [("2", reason)]

    def test_all_lines_in_another_encoding(self, tmp_path: Path) -> None:
        """A file in UTF-16 has no usable line: it is refused, and its lines are rejected with the reason."""
        source = tmp_path / "data.jsonl"
        source.write_bytes("".join(json.dumps(GOOD) + "\n" for _ in range(3)).encode("utf-16"))
        rejected: list[RejectedRow] = []

        with pytest.raises(CorpusError, match="expected valid JSON in UTF-8"):
            list(read_records(source, reject=rejected.append))
        assert "line is not UTF-8" in {row.reason for row in rejected}

    def test_order_of_rows_does_not_matter_to_large_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Joined in buckets on disk, pairs and rejected rows are those of a join in memory, in another order."""
        rows = [
            {**GOOD, "pair_id": f"p{n % 50}", "language": code, "query": f"{code} {n % 50}", "group": f"g{n % 50 // 3}"}
            for code in ("en", "de", "th")
            for n in range(60)
        ]
        rows[70]["group"] = "another"
        source = write_jsonl(tmp_path, rows)
        small = records_found(source)
        monkeypatch.setattr(records, "BUCKET_BYTES", source.stat().st_size // 7)
        monkeypatch.setattr(records, "ROWS_AT_ONCE", 2)
        large = records_found(source)

        assert [pair.pair_id for pair in small.pairs] == [f"p{n}" for n in range(50)]
        assert [pair.pair_id for pair in large.pairs] != [f"p{n}" for n in range(50)]
        assert sorted(large.pairs, key=lambda pair: int(pair.pair_id[1:])) == small.pairs
        assert sorted(large.reasons) == sorted(small.reasons)
        assert Counter(reason for _, reason in small.reasons) == {records.REPEATED: 30, records.OTHER_GROUP: 1}

    @pytest.mark.parametrize(
        ("name", "data", "received"),
        [
            ("data.jsonl", b"", "no rows"),
            ("data.jsonl", b"\n\n", "no rows"),
            ("data.csv", b"a,b", "extension '.csv'"),
            ("data.json", b"[]", "extension '.json'"),
            ("data.jsonl.gz", b"plain", "Not a gzipped file"),
            ("data.parquet", b"", "Parquet file size is 0 bytes"),
            ("data.parquet", b"PAR1 and then nothing of use PAR1", "Parquet"),
        ],
    )
    def test_unusable_file(self, tmp_path: Path, name: str, data: bytes, received: str) -> None:
        """An empty, damaged or unknown kind of file is named, with what is wrong."""
        source = tmp_path / name
        source.write_bytes(data)

        with pytest.raises(CorpusError) as caught:
            records_found(source)

        assert caught.value.where == str(source)
        assert received in str(caught.value.received)

    @pytest.mark.parametrize("name", ["gone.jsonl", "gone.jsonl.gz", "gone.parquet"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        """A file that does not exist is named."""
        with pytest.raises(CorpusError, match=rf"{name}: got no such file"):
            records_found(tmp_path / name)

    def test_folder_instead_of_file(self, tmp_path: Path) -> None:
        """A folder with the right extension is refused."""
        (tmp_path / "data.parquet").mkdir()

        with pytest.raises(CorpusError, match="directory"):
            records_found(tmp_path / "data.parquet")

    def test_parquet_without_rows(self, tmp_path: Path) -> None:
        """A Parquet file with columns but no rows is refused."""
        source = tmp_path / "data.parquet"
        pq.write_table(pa.Table.from_pylist([GOOD]).slice(0, 0), source)

        with pytest.raises(CorpusError, match="no rows"):
            records_found(source)

    def test_parquet_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        """Bytes in a Parquet text column that are not UTF-8 are refused with their place."""
        source = tmp_path / "data.parquet"
        table = pa.Table.from_pylist([GOOD, {**GOOD, "pair_id": "2"}])
        broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"q", b"\xff"], pa.binary()).buffers())
        pq.write_table(table.set_column(2, "query", broken), source)

        with pytest.raises(CorpusError, match=r"row 1 or after: got .* Invalid UTF8 sequence at string index 1;"):
            records_found(source)


class Row(BaseModel):
    name: str
    tags: list[int] = []


class TestLines:
    def test_lines_of_a_text_file(self, tmp_path: Path) -> None:
        """Lines keep their numbers and tabs; byte order mark, line ends and blank lines go, also in a gzip file."""
        data = "\ufeffa\t\r\n\n \t\nb\u2028c".encode()
        for name, content in (("x.tsv", data), ("x.tsv.gz", gzip.compress(data))):
            (tmp_path / name).write_bytes(content)
            assert list(lines(tmp_path / name, pytest.fail, "en")) == [(1, "a\t"), (4, "b\u2028c")]

    def test_line_that_is_not_utf8(self, tmp_path: Path) -> None:
        """It is rejected with what can be read of it; the others go on."""
        (tmp_path / "x").write_bytes("naïve\n".encode("latin-1") + b"ok\n")
        rejected: list[RejectedRow] = []
        assert list(lines(tmp_path / "x", rejected.append, "fr")) == [(2, "ok")]
        assert rejected == [RejectedRow("x", "1", "fr", "line is not UTF-8", "na\ufffdve\n")]

    def test_line_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line above the limit is cut and rejected, one that just fits is not; numbers go on."""
        monkeypatch.setattr(importers, "MAX_LINE_BYTES", 8)
        (tmp_path / "x").write_bytes(b"1234567\n" + b"a" * 30 + b"\n" + b"12345678\n" + b"last")
        rejected: list[RejectedRow] = []
        assert list(lines(tmp_path / "x", rejected.append, "")) == [(1, "1234567"), (4, "last")]
        assert [(row.row, row.reason, row.text) for row in rejected] == [
            ("2", importers.LONG_LINE, "a" * 8),
            ("3", importers.LONG_LINE, "12345678"),
        ]

    @pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\n"])
    def test_file_without_lines(self, tmp_path: Path, data: bytes) -> None:
        """A file without a usable line is refused by name."""
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(CorpusError, match="/x: got no rows"):
            list(lines(tmp_path / "x", lambda row: None, ""))


class TestJson:
    CONTENT = ({"name": "a"}, {"name": 7}, {"tags": []}, {"name": "b", "tags": [1, "x"]}, {"name": "c", "more": 1})
    REASONS = (
        ("2", "field name: Input should be a valid string"),
        ("3", "field name: Field required"),
        ("4", "field tags: Input should be a valid integer, unable to parse string as an integer"),
    )

    def test_lines(self, tmp_path: Path) -> None:
        """Lines that are a row come with their number; the others are rejected, equal faults for equal reasons."""
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join(map(json.dumps, self.CONTENT)) + "\n{", encoding="utf-8")
        found = Found()
        rows = list(json_lines(path, Row, found.rejected.append, "en"))
        assert [(number, row.name) for number, row in rows] == [(1, "a"), (5, "c")]
        assert found.reasons == [*self.REASONS, ("6", "line is not JSON")]

    @pytest.mark.parametrize("packed", [False, True])
    def test_items(self, tmp_path: Path, packed: bool) -> None:
        """The same for the items of an array inside one big file, byte order mark or not, compressed or not."""
        data = b"\xef\xbb\xbf" + json.dumps({"version": 1.5, "data": {"rows": self.CONTENT}}).encode()
        path = tmp_path / ("x.json.gz" if packed else "x.json")
        path.write_bytes(gzip.compress(data) if packed else data)
        found = Found()
        rows = list(json_items(path, "data.rows.item", Row, found.rejected.append, "en"))
        assert [(number, row.name) for number, row in rows] == [(1, "a"), (5, "c")]
        assert found.reasons == list(self.REASONS)
        assert json.loads(found.rejected[0].text) == {"name": 7}

    @pytest.mark.parametrize("opening", [b"[", b'{"a": ', b'[{"name": "a", "more": '])
    def test_brackets_without_end(self, tmp_path: Path, opening: bytes) -> None:
        """A hundred thousand brackets inside one another are a faulty file, or row, in little memory."""
        depth = 100_000
        deep = opening * depth
        (tmp_path / "x.json").write_bytes(b'[{"name": "first"}, ' + deep)
        with pytest.raises(CorpusError, match=r"after item 1: got brackets 65 deep; expected valid JSON"):
            list(json_items(tmp_path / "x.json", "item", Row, pytest.fail, "en"))
        (tmp_path / "x.jsonl").write_bytes(b'{"name": "first"}\n{"name": "second", "more": ' + deep + b"\n")
        found = Found()
        rows = list(json_lines(tmp_path / "x.jsonl", Row, found.rejected.append, "en"))
        assert [row.name for _, row in rows] == ["first"]
        assert found.reasons == [("2", "line is not JSON")]

    @pytest.mark.parametrize(
        ("data", "where", "received"),
        [
            (b"", "x.json", "premature EOF"),
            (b'[{"name": "a"}, {"na', "x.json, after item 1", "premature EOF"),
            (b'[{"name": "\xff"}]', "x.json", "invalid bytes in UTF8"),
            (b'[{"name": "a"}] and more', "x.json, after item 1", "trailing garbage"),
            (b"[]", "x.json", "nothing at item"),
            (b'{"data": [{"name": "a"}]}', "x.json", "nothing at item"),
        ],
    )
    def test_file_that_is_no_array(self, tmp_path: Path, data: bytes, where: str, received: str) -> None:
        """A file that breaks off, is no JSON or has no items there is named, with the last item that was read."""
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(CorpusError) as caught:
            list(json_items(tmp_path / "x.json", "item", Row, pytest.fail, "en"))
        assert caught.value.where.endswith(where)
        assert received in str(caught.value.received)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\u202eabc", None),  # right-to-left marks are text
        ("a" * 1_000_000, None),
        ("a" * 1_000_001, "text is longer than 1,000,000 characters"),
        ("\u3000\t", "text is blank"),
        ("", "text is blank"),
        ("a\0", "text holds a NUL character"),
        ("a\ud800", "text holds half a surrogate pair"),
        ("😀", None),
    ],
    ids=range(8),
)
def test_text_fault(text: str, reason: str | None) -> None:
    """Blank, cut or endless texts have a reason to be rejected, marks and emoji have none."""
    assert text_fault(text) == reason


def test_text_hash() -> None:
    """Equal texts have one name, others another; it is BLAKE2b's of 16 bytes, as it always was."""
    assert text_hash("ü") == hashlib.blake2b("ü".encode(), digest_size=16).hexdigest() != text_hash("u")


# The tables of the data's own description, counted there by a separate script.
TABLE_LANGUAGES = ("en", "es", "zh", "it", "da", "tr", "sv", "id")
ANSWERABLE = (10570, 6583, 7192, 6895, 7599, 5928, 5211, 4402)
IN_FILES = (10570, 6583, 7192, 7609, 7599, 8291 + 3582, 11156, 8170)
USABLE_QUESTIONS = (9380, 5851, 6387, 6117, 6740, 5111, 4492, 3770)
USABLE_PARAGRAPHS = (1827, 1766, 1807, 1614, 1807, 1031, 1029, 1019)
USABLE_PAIRS = [  # row: language of the question, column: language of the passage
    [9380, 9137, 9296, 8011, 9308, 5162, 5158, 5120],
    [5851, 5851, 5798, 5014, 5813, 3389, 3386, 3369],
    [6387, 6244, 6387, 5448, 6345, 3529, 3526, 3502],
    [6117, 5961, 6053, 6117, 6073, 3367, 3364, 3348],
    [6740, 6581, 6683, 5730, 6740, 3682, 3680, 3665],
    [5111, 4996, 5063, 4462, 5079, 5111, 5107, 5071],
    [4492, 4396, 4447, 3921, 4466, 4492, 4492, 4460],
    [3770, 3697, 3729, 3332, 3751, 3770, 3766, 3770],
]


@pytest.fixture(scope="module")
def published() -> Found:
    if not SHARED_DATASETS.is_dir():
        pytest.skip("needs the SQuAD translations in ../shared/datasets")
    return squad_mt_found(
        SHARED_DATASETS / "squad-dev-mt",
        SHARED_DATASETS / "squad-en" / "dev.json.gz",
        [SHARED_DATASETS / "xquad-r" / "en.json.gz"],
    )


class TestPublishedTranslations:
    def test_all_64_usable_pair_counts(self, published: Found) -> None:
        """The published translations give every number of their table of usable pairs."""
        counts = usable_pairs(published.pairs, TABLE_LANGUAGES)

        assert counts.tolist() == USABLE_PAIRS
        assert (counts.trace(), counts.sum() - counts.trace()) == (47_848, 281_215)

    def test_usable_questions_and_paragraphs(self, published: Found) -> None:
        """Usable questions and distinct paragraphs per language are those of the table."""
        pairs = published.pairs
        passages = [{p.passage_id for p in pairs if code in p.passage} for code in TABLE_LANGUAGES]

        assert published.languages == set(TABLE_LANGUAGES)
        assert tuple(sum(code in p.query for p in pairs) for code in TABLE_LANGUAGES) == USABLE_QUESTIONS
        assert tuple(map(len, passages)) == USABLE_PARAGRAPHS
        assert len({pair.group for pair in pairs}) == 48

    def test_questions_in_several_languages(self, published: Found) -> None:
        """9,253 questions exist in at least two languages, 1,127 in all eight."""
        languages = Counter(len(pair.query) for pair in published.pairs)

        assert (sum(languages.values()) - languages[1], languages[8]) == (9253, 1127)

    def test_nothing_is_lost_silently(self, published: Found) -> None:
        """Per language, kept and rejected questions add up to the questions in its files."""
        kept = Counter(code for pair in published.pairs for code in pair.query)
        questions = Counter(row.language for row in published.rejected if ":" not in row.row)
        unanswerable = Counter(
            row.language for row in published.rejected if row.reason in {squad_mt.UNANSWERABLE, squad_mt.UNKNOWN_ID}
        )

        assert tuple(kept[code] + questions[code] for code in TABLE_LANGUAGES) == IN_FILES
        assert tuple(kept[c] + questions[c] - unanswerable[c] for c in TABLE_LANGUAGES) == ANSWERABLE

    def test_unplaced_paragraphs(self, published: Found) -> None:
        """Paragraphs without a known id are rejected: the published counts, and Turkish ones left without questions."""
        unplaced = Counter(row.language for row in published.rejected if row.reason == squad_mt.UNPLACED)

        assert unplaced == {"it": 184, "zh": 21, "id": 10, "sv": 3, "tr": 562}

    def test_no_benchmark_text_is_left(self, published: Found) -> None:
        """No XQuAD question id and no XQuAD paragraph survives in any language that XQuAD has."""
        for code in ("en", "es", "tr", "zh"):
            content = json.loads(gzip.decompress((SHARED_DATASETS / "xquad-r" / f"{code}.json.gz").read_bytes()))
            paragraphs = [p for article in content["data"] for p in article["paragraphs"]]
            ids = {q["id"] for p in paragraphs for q in p["qas"]}
            assert len(ids) == 1190
            assert not ids & {pair.pair_id for pair in published.pairs}
            assert not {p["context"] for p in paragraphs} & {pair.passage.get(code) for pair in published.pairs}
