"""Importers of the paper's training sets: golden files in the published formats, damaged ones, and joins on disk."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbt_ray.corpus.formats import mmarco, text_index
from hbt_ray.corpus.formats.dpr_nq import read_dpr_nq
from hbt_ray.corpus.formats.duorc import read_duorc
from hbt_ray.corpus.formats.entity_questions import read_entity_questions
from hbt_ray.corpus.formats.mfaq import read_mfaq
from hbt_ray.corpus.formats.mmarco import read_mmarco
from hbt_ray.corpus.formats.mr_tydi import read_mr_tydi
from hbt_ray.corpus.formats.newsqa import read_newsqa
from hbt_ray.corpus.formats.wikiqa import read_wikiqa
from hbt_ray.corpus.formats.yahoo_qa import read_yahoo_qa
from hbt_ray.corpus.importers import MAX_TEXT_CHARACTERS, RejectedRow, text_hash
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.errors import CorpusError, ResourceError

GOLDEN = Path(__file__).parent / "data" / "formats"

Reader = Callable[..., Iterator[ParallelPair]]

FILES: dict[str, tuple[Reader, Path]] = {
    "wikiqa": (read_wikiqa, GOLDEN / "wikiqa/WikiQA-train.tsv"),
    "duorc": (read_duorc, GOLDEN / "duorc/SelfRC_train.json"),
    "dpr-nq": (read_dpr_nq, GOLDEN / "dpr_nq/biencoder-nq-train.json"),
    "entity-questions": (read_entity_questions, GOLDEN / "entity_questions/P36.train.json"),
    "newsqa-json": (read_newsqa, GOLDEN / "newsqa/combined-newsqa-data-v1.json"),
    "newsqa-csv": (read_newsqa, GOLDEN / "newsqa/combined-newsqa-data-v1.csv"),
    "mfaq": (read_mfaq, GOLDEN / "mfaq/train.jsonl"),
    "yahoo-json": (read_yahoo_qa, GOLDEN / "yahoo_qa/nfL6.json"),
    "yahoo-xml": (read_yahoo_qa, GOLDEN / "yahoo_qa/small_sample.xml"),
    "yahoo-csv": (read_yahoo_qa, GOLDEN / "yahoo_qa/yahoo_answers_qa.csv"),
}
QUESTION = {  # a question that stands in the golden file, whose pair the damaged files lose
    "wikiqa": "how are dunes formed ?",
    "duorc": "What does the miller find?",
    "dpr-nq": "who built the stone bridge",
    "entity-questions": "What is the capital of Nordmark?",
    "newsqa-json": "What ran aground?",
    "newsqa-csv": "What ran aground?",
    "mfaq": "Wo ist der Laden?",
    "yahoo-json": "How to dry mint?",
    "yahoo-xml": "¿Cómo se seca la menta?",
    "yahoo-csv": "How to dry mint?",
}


def read(reader: Reader, source: Path, **options: Any) -> tuple[list[ParallelPair], list[RejectedRow]]:
    """What a reader yields and what it rejects."""
    rejected: list[RejectedRow] = []
    return list(reader(source, rejected.append, **options)), rejected


def english(
    pair_id: str, passage_id: str, group: str, query: str, passage: str, negatives: tuple[str, ...] = ()
) -> ParallelPair:
    return ParallelPair(
        pair_id, passage_id, group, {"en": query}, {"en": passage}, {"en": negatives} if negatives else {}
    )


def reasons(rejected: list[RejectedRow]) -> list[tuple[str, str]]:
    return [(row.row, row.reason) for row in rejected]


class TestWikiQA:
    def test_golden(self) -> None:
        """A pair for each sentence labelled 1; a question without one gives none, and loses nothing else."""
        pairs, rejected = read(*FILES["wikiqa"])
        dunes = ("A dune is a hill of loose sand .", 'The word " dune " is old .')
        assert pairs == [
            english("Q1:D1-1", "D1-1", "D1", "how are dunes formed ?", "Dunes are formed by wind or water .", dunes),
            english("Q6:D6-0", "D6-0", "D6", "what is a moraine", "A moraine is what a glacier leaves ."),
            english("Q6:D6-1", "D6-1", "D6", "what is a moraine", "It is made of stones ."),
        ]
        assert rejected == []

    def test_fewer_negatives(self) -> None:
        """`negatives` bounds them, from the first sentence on."""
        pairs, _ = read(*FILES["wikiqa"], negatives=1)
        assert pairs[0].negatives == {"en": ("A dune is a hill of loose sand .",)}

    def test_row_faults(self, tmp_path: Path) -> None:
        """A row too narrow, one with a third label and one that comes twice are rejected by line and reason."""
        path = tmp_path / "WikiQA-train.tsv"
        golden = FILES["wikiqa"][1].read_text()
        path.write_text(
            f"{golden}Q7\tshort\nQ8\tq\tD8\tT\tD8-0\tA sentence .\t2\n"
            "Q6\twhat is a moraine\tD6\tMoraine\tD6-1\tIt is made of stones .\t1\n"
        )
        pairs, rejected = read(read_wikiqa, path)
        assert pairs == read(*FILES["wikiqa"])[0]
        assert reasons(rejected) == [
            ("8", "row has more or fewer columns than the header"),
            ("9", "field Label: Input should be '0' or '1'"),
            ("10", "id was seen before"),
        ]


class TestDuoRC:
    def test_golden(self) -> None:
        """A pair for each question that is answered, on the plot as it stands."""
        pairs, rejected = read(*FILES["duorc"])
        plot = "A miller finds a letter.\nHe burns it.\n\nHis daughter reads the ashes."
        assert pairs == [
            english("a1-1", "/m/01", "/m/01", "What does the miller find?", plot),
            english("a1-3", "/m/01", "/m/01", "Who reads the ashes?", plot),
            english("b2-1", "/m/02", "/m/02", "What do the pilots wait for?", "Two pilots wait for the fog to lift."),
        ]
        assert rejected == [
            RejectedRow("SelfRC_train.json", "a1-2", "en", "question is marked no_answer", "Who wrote the letter?")
        ]

    def test_one_question_of_a_film(self, tmp_path: Path) -> None:
        """A question without its fields, or with the id of another, leaves the film's others in place."""
        films = json.loads(FILES["duorc"][1].read_text())
        del films[0]["qa"][0]["no_answer"]
        films[1]["qa"].append(films[1]["qa"][0])
        path = tmp_path / "SelfRC_train.json"
        path.write_text(json.dumps(films))
        pairs, rejected = read(read_duorc, path)
        assert [pair.pair_id for pair in pairs] == ["a1-3", "b2-1"]
        assert reasons(rejected) == [
            ("/m/01, question 0", "field no_answer: Field required"),
            ("a1-2", "question is marked no_answer"),
            ("b2-1", "id was seen before"),
        ]


class TestDprNq:
    def test_golden(self) -> None:
        """The first positive passage behind its title, hard negatives in their order, ids of DPR's passages."""
        pairs, rejected = read(*FILES["dpr-nq"], negatives=2)
        mine = "Salt mine The mine is in Upper Vale."
        assert pairs == [
            english(
                "1",
                "811",
                "Stone Bridge",
                "who built the stone bridge",
                "Stone Bridge was built by Anna Holm in 1820.",
                ("Wooden Bridge The wooden bridge fell.", "Bridge A bridge spans a river."),
            ),
            english("3", text_hash(mine), "Salt mine", "where is the salt mine", mine),
        ]
        assert reasons(rejected) == [("2", "question has no positive passage")]

    def test_blank_passages(self, tmp_path: Path) -> None:
        """A blank hard negative is left out alone, a blank positive passage takes its question along."""
        questions = json.loads(FILES["dpr-nq"][1].read_text())
        questions[0]["hard_negative_ctxs"][1]["text"] = " "
        questions[2]["positive_ctxs"][0]["text"] = ""
        path = tmp_path / "biencoder-nq-train.json"
        path.write_text(json.dumps(questions))
        pairs, rejected = read(read_dpr_nq, path)
        assert [pair.negatives["en"] for pair in pairs] == [
            ("Wooden Bridge The wooden bridge fell.", "Stone A stone is hard.")
        ]
        assert reasons(rejected) == [
            ("1", "passage: text is blank"),
            ("2", "question has no positive passage"),
            ("3", "passage: text is blank"),
        ]


class TestEntityQuestions:
    def test_golden_folder(self) -> None:
        """Of a folder of relations: the best passage with an answer, against the best ones without."""
        pairs, rejected = read(read_entity_questions, GOLDEN / "entity_questions", negatives=2)
        assert pairs == [
            english(
                "P36.train.json:1",
                "wiki:9",
                "Eikby",
                "What is the capital of Nordmark?",
                "Eikby Eikby is the capital of Nordmark.",
                ("Nordmark Nordmark is a county.", "Nordmark Its rivers are short."),
            ),
            english(
                "P50.train.json:1",
                "wiki:31",
                "Grey Winter",
                "Who is the author of Grey Winter?",
                "Grey Winter Grey Winter is a novel by Ida Lund.",
            ),
        ]
        assert reasons(rejected) == [("P36.train.json:2", "no passage of the question holds an answer")]

    def test_questions_alone(self, tmp_path: Path) -> None:
        """The published files, which have no passages, are refused with the way to get some."""
        path = tmp_path / "P36.train.json"
        path.write_text('[{"question": "What is the capital of Nordmark?", "answers": ["Eikby"]}]')
        with pytest.raises(CorpusError, match=r"questions without ctxs.*dense_retriever"):
            read(read_entity_questions, path)

    def test_empty_folder(self, tmp_path: Path) -> None:
        """A folder without JSON names what was looked for."""
        with pytest.raises(CorpusError, match=r"no such file in it; expected .json or .jsonl"):
            read(read_entity_questions, tmp_path)


FERRY = "(CNN) -- The ferry Alma ran aground near Port Isa on Monday.\n\n\n\nAll 212 passengers were brought ashore."
BRIDGE = 'LIMA, Peru (CNN) -- A "second" bridge, the longest, opened.'
STORIES = ("./cnn/stories/aa01.story", "./cnn/stories/bb02.story")


class TestNewsQA:
    def test_golden_json(self) -> None:
        """A pair for each question with an agreed answer; what workers found bad or unanswered is rejected."""
        pairs, rejected = read(*FILES["newsqa-json"])
        assert pairs == [
            english(f"{STORIES[0]}#0", STORIES[0], STORIES[0], "What ran aground?", FERRY),
            english(f"{STORIES[0]}#3", STORIES[0], STORIES[0], "How many passengers were there?", FERRY),
            english(f"{STORIES[1]}#0", STORIES[1], STORIES[1], "What opened?", BRIDGE),
        ]
        assert reasons(rejected) == [(f"{STORIES[0]}#{n}", "story holds no agreed answer") for n in (1, 2)]

    def test_split(self) -> None:
        """A split of the JSON file takes its stories alone, and rejects nothing of the others."""
        pairs, rejected = read(*FILES["newsqa-json"], split="dev")
        assert [pair.query["en"] for pair in pairs] == ["What opened?"]
        assert rejected == []

    def test_golden_csv(self) -> None:
        """The consensus of the set's own script: half of the validators, else the most frequent selection."""
        pairs, rejected = read(*FILES["newsqa-csv"])
        assert [(pair.query["en"], pair.passage["en"]) for pair in pairs] == [
            ("What ran aground?", FERRY),
            ("How many passengers were there?", FERRY),
            ("What opened?", BRIDGE),
        ]
        assert [pair.pair_id for pair in pairs] == [f"{STORIES[0]}#2", f"{STORIES[0]}#22", f"{STORIES[1]}#27"]
        assert {pair.passage_id for pair in pairs} == {pair.group for pair in pairs} == set(STORIES)
        assert [row.text for row in rejected] == ["Who was captain?", "ferry many", "Where was it?"]

    def test_csv_has_no_split(self) -> None:
        """A split of a CSV file cannot be told, so asking for one is an error."""
        with pytest.raises(CorpusError, match="split 'train'"):
            read(*FILES["newsqa-csv"], split="train")

    def test_broken_quotes(self, tmp_path: Path) -> None:
        """A row whose quotes are wrong is rejected, and the rows after it are read."""
        header, rows = FILES["newsqa-csv"][1].read_text().split("\n", 1)
        path = tmp_path / "train.csv"
        path.write_text(f'{header}\na,"b"c,,,,,\n{rows}')
        pairs, rejected = read(read_newsqa, path)
        assert len(pairs) == 3
        assert reasons(rejected)[0] == ("2", "row is not CSV: ',' expected after '\"'")

    def test_endless_field(self, tmp_path: Path) -> None:
        """A field of more than sixteen million characters is never held whole, and the rows after it are read."""
        header, rows = FILES["newsqa-csv"][1].read_text().split("\n", 1)
        path = tmp_path / "train.csv"
        path.write_text(f'{header}\na,"{"b" * 16_000_001}",,,,,\n{rows}')
        pairs, rejected = read(read_newsqa, path)
        assert len(pairs) == 3
        assert rejected[0].reason == "row is not CSV: field larger than field limit (16000000)"

    def test_votes_that_are_no_json(self, tmp_path: Path) -> None:
        """Votes that are no JSON reject their row alone."""
        path = tmp_path / "train.csv"
        with FILES["newsqa-csv"][1].open(newline="") as golden:
            rows = list(csv.reader(golden))
        rows[1][5] = "{none"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        pairs, rejected = read(read_newsqa, path)
        assert len(pairs) == 2
        assert rejected[0].reason == "field validated_answers: Input should be JSON or nothing"


class TestMfaq:
    def test_golden(self) -> None:
        """Each question in its own language, grouped by domain; equal answers are one passage."""
        pairs, rejected = read(*FILES["mfaq"])
        assert [(pair.pair_id, pair.group, pair.query, pair.passage) for pair in pairs] == [
            ("train.jsonl:1:0", "bikes.example", {"en": "Do  I need a helmet?"}, {"en": "Yes.<br>We lend one."}),
            ("train.jsonl:1:1", "bikes.example", {"en": "Can I pay by card?"}, {"en": "You can."}),
            ("train.jsonl:2:0", "räder.example", {"de": "Wo ist der Laden?"}, {"de": "Am Markt."}),
            ("train.jsonl:3:0", "bikes.example", {"no": "Er dere åpne?"}, {"no": "You can."}),
        ]
        assert pairs[1].passage_id == pairs[3].passage_id == text_hash("You can.")
        assert rejected == []

    def test_row_faults(self, tmp_path: Path) -> None:
        """A line that is no JSON, an unknown language, and a pair without answer: each is named, all others stay."""
        path = tmp_path / "train.jsonl"
        page = {"id": 1, "num_pairs": 2, "domain": "d", "language": "xx-y"}
        page["qa_pairs"] = [{"question": "q", "answer": "a"}, {"question": "only"}]
        path.write_text(f'{{"id": 20, \n{json.dumps(page)}\n{FILES["mfaq"][1].read_text()}')
        pairs, rejected = read(read_mfaq, path)
        assert len(pairs) == 4
        assert reasons(rejected) == [
            ("1", "line is not JSON"),
            ("train.jsonl:2:0", "language is not known"),
            ("train.jsonl:2:1", "field answer: Field required"),
        ]


class TestYahooQA:
    def test_golden_json(self) -> None:
        """nfL6: the question with its best answer, under its own id."""
        pairs, rejected = read(*FILES["yahoo-json"])
        mint, cats = text_hash("Hang it up."), text_hash("They are content.")
        assert pairs == [
            english("1020", mint, mint, "How to dry mint?", "Hang it up."),
            english("77", cats, cats, "Why do cats purr?", "They are content."),
        ]
        assert rejected == []

    def test_golden_xml(self) -> None:
        """L5 and L6: HTML within XML is decoded, and the language is that of the document."""
        pairs, rejected = read(*FILES["yahoo-xml"])
        assert [(pair.pair_id, pair.query, pair.passage) for pair in pairs] == [
            ("432470", {"en": "Why are y'all moving?"}, {"en": "Rent.\nNoise & dust, too."}),
            ("432471", {"es": "¿Cómo se seca la menta?"}, {"es": "Colgada."}),
        ]
        assert rejected == []

    def test_golden_csv(self) -> None:
        """CSV with the same fields, its answer over two lines."""
        pairs, rejected = read(*FILES["yahoo-csv"])
        assert [(pair.pair_id, pair.passage) for pair in pairs] == [("1020", {"en": "Hang it up,\nin the shade."})]
        assert rejected == []

    def test_documents_one_by_one(self, tmp_path: Path) -> None:
        """Documents that are cut, malformed, of an unknown language or repeated cost nothing but themselves."""
        golden = FILES["yahoo-xml"][1].read_text()
        document = golden[golden.index("<vespaadd>") : golden.index("</vespaadd>")] + "</vespaadd>\n"
        path = tmp_path / "sample.xml"
        path.write_text(
            document[:200]
            + "\n"
            + document.replace("</uri>", "")
            + document.replace("432470", "1").replace(">en<", ">zz<")
            + golden
            + document
            + document[:100]
        )
        pairs, rejected = read(read_yahoo_qa, path)
        assert pairs == read(*FILES["yahoo-xml"])[0]
        assert [row.reason for row in rejected] == [
            "document has no end",
            "document is not XML",
            "language is not known",
            "id was seen before",
            "document has no end",
        ]

    def test_other_files(self, tmp_path: Path) -> None:
        """A file with another ending, and XML of something else, are refused."""
        (tmp_path / "answers.txt").write_text("q a")
        (tmp_path / "feed.xml").write_text("<rss></rss>")
        with pytest.raises(CorpusError, match=r"ending '.txt'"):
            read(read_yahoo_qa, tmp_path / "answers.txt")
        with pytest.raises(CorpusError, match="no <vespaadd> in it"):
            read(read_yahoo_qa, tmp_path / "feed.xml")


class TestMrTyDi:
    def test_golden_folder(self) -> None:
        """All three published layouts at once, each language's questions with their relevant passages."""
        pairs, rejected = read(read_mr_tydi, GOLDEN / "mr_tydi", negatives=3)
        rey = "en:4:40#0", "en:40#0", "en:40", "Who was Ana Rey?", "Ana Rey Ana Rey was a painter."
        sea = "en:4:40#2", "en:40#2", "en:40", "Who was Ana Rey?", "Ana Rey She painted seas."
        assert [(p.pair_id, p.passage_id, p.group, *p.query.values(), *p.passage.values()) for p in pairs] == [
            ("fi:1:7#1", "fi:7#1", "fi:7", "Milloin mylly rakennettiin?", "Mylly\n\nMylly rakennettiin 1801."),
            ("fi:2:9#0", "fi:9#0", "fi:9", "Kuka oli Ana Rey?", "Ana Rey\n\nAna Rey oli taidemaalari."),
            ("en:3:12#0", "en:12#0", "en:12", "When was the mill built?", "Mill The mill was built in 1801."),
            rey,
            sea,
            ("sw:1:5#0", "sw:5#0", "sw:5", "Kinu kilijengwa lini?", "Kinu Kinu kilijengwa 1801."),
        ]
        assert [list(p.query) == list(p.passage) for p in pairs] == [True] * 6
        assert [dict(p.negatives) for p in pairs if p.negatives] == [
            {"en": ["Mill It burnt down.", "Millet Millet is a grain.", "Untitled text."]}
        ]
        assert rejected == []

    def test_one_language(self) -> None:
        """The folder of one language is enough, and another split is another file."""
        folder = GOLDEN / "mr_tydi" / "mrtydi-v1.1-english"
        assert {code for pair in read(read_mr_tydi, folder)[0] for code in pair.query} == {"en"}
        with pytest.raises(CorpusError, match=r"no questions; expected dev.jsonl or topic.dev.tsv"):
            read(read_mr_tydi, folder, split="dev")

    def test_question_faults(self, tmp_path: Path) -> None:
        """In `train.jsonl` a line that is no JSON, one without its passages and one that comes twice are named."""
        golden = (GOLDEN / "mr_tydi" / "mrtydi-v1.1-english" / "train.jsonl").read_text()
        (tmp_path / "english").mkdir()
        (tmp_path / "english" / "train.jsonl").write_text(
            f'{{"query_id": "1", \n{{"query_id": 2, "query": "q"}}\n{golden}{golden.splitlines()[0]}\n'
        )
        pairs, rejected = read(read_mr_tydi, tmp_path)
        assert pairs == read(read_mr_tydi, GOLDEN / "mr_tydi" / "mrtydi-v1.1-english")[0]
        assert reasons(rejected) == [
            ("1", "line is not JSON"),
            ("2", "field positive_passages: Field required"),
            ("en:3:12#0", "id was seen before"),
        ]

    def test_judgements_without_texts(self, tmp_path: Path) -> None:
        """Judgements of unknown queries and passages, malformed and repeated ones are named; the others stay."""
        folder = tmp_path / "finnish"
        shutil.copytree(GOLDEN / "mr_tydi" / "mrtydi-v1.0-finnish", folder)
        with (folder / "qrels.train.txt").open("a") as qrels:
            qrels.write("8\tQ0\t7#0\t1\n5\tQ0\t77#0\t1\n5 Q0 7#0\n1\tQ0\t7#1\t1\n")
        with (folder / "topic.train.tsv").open("a") as topics:
            topics.write("6\t \n1\tagain\nno tab\n")
        pairs, rejected = read(read_mr_tydi, folder)
        assert [pair.pair_id for pair in pairs] == ["fi:1:7#1", "fi:2:9#0"]
        assert reasons(rejected) == [
            ("4", "text is blank"),
            ("5", "id was seen before"),
            ("6", "row is not an id, a tab and a text"),
            ("6", "row is not query, Q0, docid and relevance"),
            ("7", "id was seen before"),
            ("8 7#0", "query of the judgement is not among the topics"),
            ("5 77#0", "passage of the judgement is not in the collection"),
        ]

    def test_missing_file_and_unknown_language(self, tmp_path: Path) -> None:
        """Topics without a collection, and a folder that names no language, are refused."""
        folder = tmp_path / "mrtydi-v1.0-finnish"
        shutil.copytree(GOLDEN / "mr_tydi" / "mrtydi-v1.0-finnish", folder)
        (folder / "collection" / "docs.jsonl").unlink()
        with pytest.raises(CorpusError, match=r"no such file in it; expected collection/docs.jsonl or corpus.jsonl"):
            read(read_mr_tydi, folder)
        folder.rename(tmp_path / "mrtydi-v1.0-elvish")
        with pytest.raises(CorpusError, match=r"mrtydi-v1.0-elvish: got 'elvish'"):
            read(read_mr_tydi, tmp_path)


def damaged(name: str, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of a golden file with one text replaced everywhere."""
    golden = FILES[name][1]
    content = golden.read_bytes()
    assert old in content
    path = folder / golden.name
    path.write_bytes(content.replace(old, new))
    return path


NUL_REASON = {"yahoo-xml": "document is not XML"}  # in other formats a text can hold the character


class TestDamagedFiles:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("fault", ["blank", "NUL", "long"])
    def test_a_question_that_cannot_be_used(self, name: str, fault: str, tmp_path: Path) -> None:
        """A blank question, a NUL and a text of a million and one characters cost their own pairs and no others."""
        nul = b"\\u0000" if FILES[name][1].suffix in (".json", ".jsonl") else b"\0"
        text, reason = {
            "blank": (b" ", "is blank"),
            "NUL": (b"a" + nul, NUL_REASON.get(name, "holds a NUL character")),
            "long": (b"a" * (MAX_TEXT_CHARACTERS + 1), "is longer than 1,000,000 characters"),
        }[fault]
        reader, golden = FILES[name]
        expected, usual = read(reader, golden)
        lost = [pair for pair in expected if QUESTION[name] in pair.query.values()]

        pairs, rejected = read(reader, damaged(name, tmp_path, QUESTION[name].encode(), text))

        assert len(lost) == 1
        assert pairs == [pair for pair in expected if pair not in lost]
        news = [row.reason for row in rejected if row.reason not in {row.reason for row in usual}]
        assert news
        assert all(reason in found for found in news)

    @pytest.mark.parametrize("name", FILES)
    def test_wrong_encoding(self, name: str, tmp_path: Path) -> None:
        """Latin-1 in a row costs that row; in a JSON array, which has no rows to go on from, it refuses the file."""
        reader, golden = FILES[name]
        path = damaged(name, tmp_path, QUESTION[name].encode(), b"d\xe9j\xe0 vu?")
        if golden.suffix == ".json":
            with pytest.raises(CorpusError, match="valid JSON in UTF-8"):
                read(reader, path)
            return
        pairs, rejected = read(reader, path)
        assert pairs == [pair for pair in read(reader, golden)[0] if QUESTION[name] not in pair.query.values()]
        assert any("is not UTF-8" in row.reason and "d\ufffdj" in row.text for row in rejected)

    @pytest.mark.parametrize("name", FILES)
    def test_gzip(self, name: str, tmp_path: Path) -> None:
        """A compressed file gives the same pairs, but for its name in their ids; cut off, it is refused."""
        reader, golden = FILES[name]
        path = tmp_path / f"{golden.name}.gz"
        path.write_bytes(gzip.compress(golden.read_bytes()))
        assert [pair.query for pair in read(reader, path)[0]] == [pair.query for pair in read(reader, golden)[0]]
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(CorpusError, match="readable gzip file"):
            read(reader, path)

    @pytest.mark.parametrize("name", FILES)
    def test_empty_and_absent(self, name: str, tmp_path: Path) -> None:
        """An empty file and none at all are refused by name."""
        reader, golden = FILES[name]
        path = tmp_path / golden.name
        with pytest.raises(CorpusError, match="no such file"):
            read(reader, path)
        path.touch()
        with pytest.raises(CorpusError, match=golden.name):
            read(reader, path)

    @pytest.mark.parametrize("name", ["duorc", "dpr-nq", "entity-questions", "newsqa-json", "yahoo-json"])
    def test_array_without_end(self, name: str, tmp_path: Path) -> None:
        """A JSON file that breaks off is refused by name."""
        reader, golden = FILES[name]
        path = tmp_path / golden.name
        path.write_bytes(golden.read_bytes()[:-20])
        with pytest.raises(CorpusError, match=rf"{golden.name}.*valid JSON in UTF-8"):
            read(reader, path)

    @pytest.mark.parametrize(
        ("name", "column"),
        [("wikiqa", "SentenceID"), ("newsqa-csv", "story_text"), ("yahoo-csv", "question")],
    )
    def test_missing_column(self, name: str, column: str, tmp_path: Path) -> None:
        """A table without a column is refused with the columns it has, and the nearest of them."""
        path = damaged(name, tmp_path, column.encode(), f"{column}x".encode())
        with pytest.raises(CorpusError, match=rf"columns .*{column}x.*also {column}\. Is it '{column}x'\?"):
            read(FILES[name][0], path)

    @pytest.mark.parametrize(
        ("name", "field"),
        [
            ("duorc", "plot"),
            ("dpr-nq", "positive_ctxs"),
            ("entity-questions", "question"),
            ("newsqa-json", "storyId"),
            ("mfaq", "domain"),
            ("yahoo-json", "answer"),
        ],
    )
    def test_missing_field(self, name: str, field: str, tmp_path: Path) -> None:
        """A field that no row has rejects them all, each with the field's name."""
        pairs, rejected = read(FILES[name][0], damaged(name, tmp_path, f'"{field}"'.encode(), b'"other"'))
        assert pairs == []
        assert {row.reason for row in rejected} == {f"field {field}: Field required"}


MMARCO = GOLDEN / "mmarco"
Texts = dict[str, dict[int, str]]  # language name -> id -> text


class TestMmarco:
    def test_golden(self) -> None:
        """Triples and judgements together: each pair once, its distinct negatives in order, in three languages."""
        pairs, rejected = read(read_mmarco, MMARCO, negatives=2, buckets=2)
        mill = {"en": "The mill was built in 1801.", "de": "Die Mühle wurde 1801 gebaut.", "zh": "磨坊建于1801年。"}
        corn = {"en": "A mill grinds corn.", "de": "Eine Mühle mahlt Korn.", "zh": "磨坊磨玉米。"}
        rey = {"en": "Ana Rey was a painter.", "de": "Ana Rey war Malerin.", "zh": "安娜·雷伊是一位画家。"}
        brushes = {"en": "Painters use brushes.", "de": "Maler nutzen Pinsel.", "zh": "画家使用画笔。"}
        grain = {"en": "Corn is a grain.", "de": "Korn ist Getreide.", "zh": "玉米是一种谷物。"}
        when = {"en": "when was the mill built", "de": "wann wurde die mühle gebaut", "zh": "磨坊是什么时候建造的"}
        who = {"en": "who was ana rey", "de": "wer war ana rey"}

        def negatives(*texts: dict[str, str]) -> dict[str, list[str]]:
            return {code: [text[code] for text in texts] for code in ("de", "en", "zh")} if texts else {}

        assert sorted(pairs, key=lambda pair: pair.pair_id) == [
            ParallelPair("121:0", "0", "0", when, mill, negatives(brushes, corn)),
            ParallelPair("121:1", "1", "1", when, corn, negatives(grain)),
            ParallelPair("33:2", "2", "2", who, rey, negatives(grain)),
            ParallelPair("33:3", "3", "3", who, brushes),
        ]
        assert rejected == []

    def test_languages_by_code(self) -> None:
        """Only the languages that are asked for are read; one without a collection is an error."""
        pairs, _ = read(read_mmarco, MMARCO, languages=["de"])
        assert {code for pair in pairs for code in (*pair.query, *pair.passage, *pair.negatives)} == {"de"}
        with pytest.raises(CorpusError, match="no collection in fr; expected one of de, en, zh"):
            read(read_mmarco, MMARCO, languages=["fr"])

    def test_published_layout(self, tmp_path: Path) -> None:
        """As published, compressed or not: the translations in a folder beside which the triples lie."""
        shutil.copytree(MMARCO / "collections", tmp_path / "google" / "collections")
        shutil.copytree(MMARCO / "queries", tmp_path / "google" / "queries")
        (tmp_path / "triples.train.ids.small.tsv").write_bytes((MMARCO / "triples.train.ids.small.tsv").read_bytes())
        (tmp_path / "qrels.train.tsv.gz").write_bytes(gzip.compress((MMARCO / "qrels.train.tsv").read_bytes()))
        collection = tmp_path / "google" / "collections" / "german_collection.tsv"
        collection.with_suffix(".tsv.gz").write_bytes(gzip.compress(collection.read_bytes()))
        collection.unlink()
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        assert read(read_mmarco, tmp_path / "google", scratch=scratch) == read(read_mmarco, MMARCO)
        assert list(scratch.iterdir()) == []

    def test_row_faults(self, tmp_path: Path) -> None:
        """Rows that are no ids, blank, NUL, not UTF-8 or repeated are named; a text they leave out is missing."""
        source = tmp_path / "mmarco"
        shutil.copytree(MMARCO, source)
        with (source / "collections" / "german_collection.tsv").open("ab") as file:
            file.write(b"x\ttext\n7 no tab\n5\t \n6\ta\0b\n8\td\xe9j\xe0\n1\tnochmal\n")
        with (source / "triples.train.ids.small.tsv").open("ab") as file:
            file.write(b"121\t0\n121\t0\tx\n121\t8\t3\n99\t1\t2\n33\t2\t77\n")
        with (source / "qrels.train.tsv").open("ab") as file:
            file.write(b"121\t0\t0\n")
        pairs, rejected = read(read_mmarco, source, buckets=1)
        assert pairs == read(read_mmarco, MMARCO, buckets=1)[0]
        assert [(row.file, row.row, row.reason) for row in rejected] == [
            ("german_collection.tsv", "6", "row is not a number, a tab and a text"),
            ("german_collection.tsv", "7", "row is not a number, a tab and a text"),
            ("german_collection.tsv", "8", "text is blank"),
            ("german_collection.tsv", "9", "text holds a NUL character"),
            ("german_collection.tsv", "10", "line is not UTF-8"),
            ("german_collection.tsv", "1", "id was seen before"),
            ("triples.train.ids.small.tsv", "7", "row is not the ids of a query, a relevant and another passage"),
            ("triples.train.ids.small.tsv", "8", "row is not the ids of a query, a relevant and another passage"),
            ("qrels.train.tsv", "5", "row is not query, 0, passage and relevance"),
            ("triples.train.ids.small.tsv", "33:2:77", "hard negative is in no language"),
            ("triples.train.ids.small.tsv", "99:1", "query is in no language"),
            ("triples.train.ids.small.tsv", "121:8", "passage is in no language"),
        ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("collections/elvish_collection.tsv", b"0\ta\n", r"elvish_collection.tsv: got 'elvish'"),
            ("collections/de_collection.tsv", b"0\ta\n", r"chinese, de, english, german; expected one collection"),
            ("collections/french_collection.tsv", b"0\ta\n", r"french_queries.train.tsv: got no such file"),
            ("collections/german_collection.tsv", b"", r"german_collection.tsv: got no rows"),
            ("queries/train/german_queries.train.tsv", b"who\n", r"german_queries.train.tsv: got no rows"),
            ("triples.train.ids.small.tsv", b"", r"triples.train.ids.small.tsv: got no rows"),
        ],
    )
    def test_file_faults(self, name: str, content: bytes, message: str, tmp_path: Path) -> None:
        """A language that is none, a missing and an empty file are refused by name."""
        source = tmp_path / "mmarco"
        shutil.copytree(MMARCO, source)
        (source / name).write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            read(read_mmarco, source)

    def test_cut_gzip_and_no_triples(self, tmp_path: Path) -> None:
        """A damaged compressed file is refused, and so is a folder without pairs or without languages."""
        source = tmp_path / "mmarco"
        shutil.copytree(MMARCO, source)
        collection = source / "collections" / "german_collection.tsv"
        collection.with_suffix(".tsv.gz").write_bytes(gzip.compress(collection.read_bytes())[:-12])
        collection.unlink()
        with pytest.raises(CorpusError, match="readable gzip file"):
            read(read_mmarco, source)
        (source / "triples.train.ids.small.tsv").unlink()
        (source / "qrels.train.tsv").unlink()
        with pytest.raises(CorpusError, match="neither triples"):
            read(read_mmarco, source, languages=["en"])
        with pytest.raises(CorpusError, match="no collection"):
            read(read_mmarco, tmp_path)

    def test_no_room_for_temporary_files(self, tmp_path: Path) -> None:
        """Where the join cannot write its files, the folder is named."""
        with pytest.raises(ResourceError, match=r"absent: got .*expected space for temporary files"):
            read(read_mmarco, MMARCO, scratch=tmp_path / "absent")

    @given(data=st.data())
    @settings(max_examples=40, deadline=None)
    def test_equals_a_join_in_memory(self, data: st.DataObject) -> None:
        """Random triples, judgements and gaps, in random order and many blocks, equal a join of dictionaries."""
        query, passage = st.integers(0, 6), st.integers(0, 9)
        triples = data.draw(st.lists(st.tuples(query, passage, passage), min_size=1, max_size=60))
        qrels = data.draw(st.lists(st.tuples(query, passage, st.integers(0, 1)), max_size=10))
        texts = [
            {
                name: {key: f"{name} {kind} {key}" for key in data.draw(st.permutations(keys)) if key}
                for name, keys in (
                    ("german", data.draw(st.lists(st.integers(0, top), min_size=2, unique=True).filter(any))),
                    ("thai", data.draw(st.lists(st.integers(0, top), min_size=2, unique=True).filter(any))),
                )
            }
            for kind, top in (("query", 6), ("passage", 9))
        ]
        negatives, buckets = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 5))
        with (
            TemporaryDirectory() as folder,
            patch.object(mmarco, "_PAIRS_AT_ONCE", data.draw(st.integers(1, 5))),
            patch.object(text_index, "_ROWS_AT_ONCE", data.draw(st.integers(1, 7))),
        ):
            write_mmarco(Path(folder), *texts, triples, qrels)
            pairs, rejected = read(read_mmarco, Path(folder), negatives=negatives, buckets=buckets)
        expected, missing = joined_in_memory(*texts, triples, qrels, negatives)
        assert sorted(pairs, key=lambda pair: pair.pair_id) == expected
        assert sorted(row.row for row in rejected) == missing

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_collection(self, tmp_path: Path) -> None:
        """Eight times the passages, queries and triples take less than 48 MB more at the peak."""
        peaks = [peak_of_mmarco(tmp_path / str(size), size) for size in (50_000, 400_000)]
        assert peaks[1] - peaks[0] < 48 << 20


def peak_of_mmarco(folder: Path, size: int) -> int:
    """Bytes resident at most in a process that reads `size` passages, as many triples and a tenth of the queries."""
    folder.mkdir()
    text = "x" * 400
    passages = {number: f"{number} {text}" for number in range(size)}
    queries = {number: f"query {number}" for number in range(size // 10)}
    triples = [(number % (size // 10), number % (size // 10), number) for number in range(size)]
    write_mmarco(folder, {"german": queries}, {"german": passages}, triples, [])
    script = (
        "import re, sys; from pathlib import Path; from hbt_ray.corpus.formats.mmarco import read_mmarco\n"
        "rejected = []; pairs = sum(1 for _ in read_mmarco(Path(sys.argv[1]), rejected.append))\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())\n"  # ru_maxrss has the parent's
        "print(pairs, len(rejected), int(peak[1]) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    pairs, rejected, peak = map(int, done.stdout.split())
    assert (pairs, rejected) == (size // 10, 0)
    return peak


def write_mmarco(
    folder: Path, queries: Texts, passages: Texts, triples: list[tuple[int, ...]], qrels: list[tuple[int, ...]]
) -> None:
    (folder / "collections").mkdir()
    (folder / "queries" / "train").mkdir(parents=True)
    for pattern, texts in (
        ("queries/train/{}_queries.train.tsv", queries),
        ("collections/{}_collection.tsv", passages),
    ):
        for name, rows in texts.items():
            content = "".join(f"{key}\t{text}\n" for key, text in rows.items())
            (folder / pattern.format(name)).write_text(content)
    (folder / "triples.train.ids.small.tsv").write_text("".join(f"{q}\t{p}\t{n}\n" for q, p, n in triples))
    if qrels:
        (folder / "qrels.train.tsv").write_text("".join(f"{q}\t0\t{p}\t{r}\n" for q, p, r in qrels))


def joined_in_memory(
    queries: Texts,
    passages: Texts,
    triples: list[tuple[int, ...]],
    qrels: list[tuple[int, ...]],
    negatives: int,
) -> tuple[list[ParallelPair], list[str]]:
    """The pairs sorted by id, and the ids of what is in no language."""
    named: dict[tuple[int, int], list[int]] = {}
    for query_id, passage_id, other in triples:
        others = named.setdefault((query_id, passage_id), [])
        if other not in others:
            others.append(other)
    for query_id, passage_id, relevance in qrels:
        if relevance:
            named.setdefault((query_id, passage_id), [])

    def cells(texts: Texts, key: int) -> dict[str, str]:
        codes = {"german": "de", "thai": "th"}
        return {codes[name]: rows[key] for name, rows in texts.items() if key in rows}

    pairs, missing = [], []
    for (query_id, passage_id), others in named.items():
        pair_id, kept = f"{query_id}:{passage_id}", others[:negatives]
        query, passage = cells(queries, query_id), cells(passages, passage_id)
        if not query or not passage:
            missing.append(pair_id)
            continue
        missing += [f"{pair_id}:{other}" for other in kept if not cells(passages, other)]
        hard = {
            code: texts
            for code in ("de", "th")
            if (texts := [cells(passages, other)[code] for other in kept if code in cells(passages, other)])
        }
        pairs.append(ParallelPair(pair_id, str(passage_id), str(passage_id), query, passage, hard))
    return sorted(pairs, key=lambda pair: pair.pair_id), sorted(missing)
