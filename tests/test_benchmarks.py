from __future__ import annotations

import gzip
import json
import pickle
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks import (
    Benchmark,
    Collection,
    Texts,
    judged_queries,
    load_beir,
    load_benchmark,
    load_lareqa,
    load_miracl,
    load_tatoeba,
    qrels_of,
)
from hbt_ray.evaluation.benchmarks.arrow import ArrowStrings, duplicates, find, mapped_strings
from hbt_ray.evaluation.benchmarks.bitext import cldr_code
from hbt_ray.evaluation.benchmarks.miracl import read_qrels, read_topics

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"
DOCS = Path(__file__).resolve().parents[1] / "docs"

# languages: ar de el en es hi ru th tr vi zh
XQUAD_R_CANDIDATES = (1222, 1276, 1234, 1180, 1215, 1244, 1219, 852, 1167, 1209, 1196)
XQUAD_R_DISTINCT_RELEVANT = (790, 818, 798, 787, 796, 798, 787, 603, 764, 794, 784)
# languages: ar de en es hi vi zh
MLQA_R_QUERIES = (517, 512, 1148, 500, 507, 511, 504)
MLQA_R_CANDIDATES = (2545, 2362, 6264, 1787, 2426, 2828, 2322)
MLQA_R_SHARED_IDS = (
    (517, 207, 517, 161, 186, 163, 188),
    (207, 512, 512, 196, 163, 182, 190),
    (517, 512, 1148, 500, 507, 511, 504),
    (161, 196, 500, 500, 187, 189, 161),
    (186, 163, 507, 187, 507, 177, 189),
    (163, 182, 511, 189, 177, 511, 184),
    (188, 190, 504, 161, 189, 184, 504),
)
# language: dev queries, dev relevant, train queries; slice passages, dev and train queries with a relevant one there
MIRACL = {
    "ar": (2896, 5658, 3495, 3015, 134, 139),
    "bn": (411, 863, 1631, 2840, 65, 279),
    "de": (305, 811, 0, 2515, 19, 0),
    "en": (799, 2326, 2863, 2751, 13, 53),
    "es": (648, 2987, 2162, 2578, 15, 43),
    "fa": (632, 1314, 2107, 2731, 39, 127),
    "fi": (1271, 2447, 2897, 2606, 26, 52),
    "fr": (343, 731, 1143, 2608, 14, 49),
    "hi": (350, 752, 1169, 2769, 47, 126),
    "id": (960, 3088, 4071, 3269, 144, 481),
    "ja": (860, 1790, 3477, 2659, 29, 98),
    "ko": (213, 547, 868, 2498, 18, 53),
    "ru": (1252, 3560, 4683, 2713, 33, 109),
    "sw": (482, 910, 1901, 2626, 120, 318),
    "te": (828, 854, 3452, 2673, 85, 407),
    "th": (733, 1343, 2972, 2907, 66, 319),
    "yo": (119, 144, 0, 1594, 53, 0),
    "zh": (393, 994, 1312, 2727, 46, 149),
}


def published(name: str, **options: Any) -> Benchmark:
    if not (DATASETS / name.removesuffix("-slice")).is_dir():
        pytest.skip(f"{name} is not in ../shared/datasets")
    return load_benchmark(name, DATASETS, **options)


def only(benchmark: Benchmark) -> Collection:
    (collection,) = benchmark.collections
    return collection


def relevant(collection: Collection, query_language: str) -> dict[str, dict[tuple[str, str], int]]:
    """query id -> {(candidate language, candidate id): grade}, read back from the compressed rows."""
    qrels, languages = collection.qrels[query_language], tuple(collection.candidates)
    ids = [collection.candidates[language].ids for language in languages]
    return {
        query: {
            (languages[qrels.language[entry]], ids[qrels.language[entry]][qrels.candidate[entry]]): int(
                qrels.grade[entry]
            )
            for entry in range(qrels.offsets[row], qrels.offsets[row + 1])
        }
        for row, query in enumerate(collection.queries[query_language].ids)
    }


def shared_questions(collection: Collection, query_language: str) -> list[int]:
    """How many queries have a relevant candidate in each candidate language; each of them has one."""
    return np.bincount(collection.qrels[query_language].language, minlength=len(collection.candidates)).tolist()


def lareqa(language: str = "en", answer_start: int = 9) -> dict[str, Any]:
    """Two paragraphs, three sentences, one question whose answer runs past the end of its sentence."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {"context": "Zeroth.", "sentences": ["Zeroth."], "sentence_breaks": [[0, 7]], "qas": []},
                    {
                        "context": "First. Second.",
                        "sentences": ["First.", "Second."],
                        "sentence_breaks": [[0, 6], [7, 14]],
                        "qas": [
                            {
                                "id": "q1",
                                "question": f"which ({language})?",
                                "answers": [{"answer_start": answer_start, "text": "cond. and on"}],
                            }
                        ],
                    },
                ],
            }
        ],
    }


MODES = ("sentence", "sentence+context")


def write(folder: Path, language: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{language}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def question(content: dict[str, Any]) -> dict[str, Any]:
    return content["data"][0]["paragraphs"][1]["qas"][0]


def test_small_file(tmp_path: Path) -> None:
    """Candidates are all sentences of all paragraphs; relevance follows the start of the answer, not its span."""
    write(tmp_path, "en", lareqa())
    collection = only(load_lareqa(tmp_path, "mine", ["en"]))
    assert collection.candidates["en"] == Texts(("en_0_0", "en_1_0", "en_1_1"), ("Zeroth.", "First.", "Second."))
    assert collection.queries["en"] == Texts(("q1",), ("which (en)?",))
    assert relevant(collection, "en") == {"q1": {("en", "en_1_1"): 1}}


def test_sentence_with_its_context(tmp_path: Path) -> None:
    """Sentence and paragraph make another text and another name; ids and relevance stay."""
    write(tmp_path, "en", lareqa())
    plain, full = (load_benchmark("xquad-r", tmp_path, ["en"], candidate_text=mode) for mode in MODES)
    assert full.name == only(full).name == "xquad-r+context"
    assert only(full).candidates["en"].texts == (
        "Zeroth. Zeroth.",
        "First. First. Second.",
        "Second. First. Second.",
    )
    assert only(full).candidates["en"].ids == only(plain).candidates["en"].ids
    assert only(full).qrels == only(plain).qrels
    assert full.data_hash != plain.data_hash


@pytest.mark.parametrize("name", ["xquad-r", "miracl", "beir", "tatoeba"])
def test_unknown_or_impossible_candidate_text(tmp_path: Path, name: str) -> None:
    """A mode that does not exist, and contexts of a benchmark that has none, are refused before anything is read."""
    write(tmp_path, "en", lareqa())
    mode = "paragraph" if name == "xquad-r" else "sentence+context"
    with pytest.raises(ConfigError, match=re.escape(f"candidate_text: got '{mode}'")):
        load_benchmark(name, tmp_path, ["en"], candidate_text=mode)


@pytest.mark.parametrize(("answer_start", "expected"), [(0, 1), (5, 1), (6, 2), (13, 2)])
def test_sentence_boundaries(tmp_path: Path, answer_start: int, expected: int) -> None:
    """A sentence holds the answers that start at its first up to its last character, not at its end."""
    content = lareqa(answer_start=answer_start)
    content["data"][0]["paragraphs"][1]["sentence_breaks"] = [[0, 6], [6, 14]]
    write(tmp_path, "en", content)
    assert relevant(only(load_lareqa(tmp_path, "mine")), "en") == {"q1": {("en", f"en_1_{expected - 1}"): 1}}


def test_same_text_twice_is_two_candidates(tmp_path: Path) -> None:
    """Nothing is de-duplicated: equal sentences are separate candidates, and only the one of the question counts."""
    content = lareqa()
    content["data"][0]["paragraphs"][0] |= {"context": "Second.", "sentence_breaks": [[0, 7]]}
    write(tmp_path, "en", content)
    collection = only(load_lareqa(tmp_path, "mine"))
    assert collection.candidates["en"].texts == ("Second.", "First.", "Second.")
    assert relevant(collection, "en") == {"q1": {("en", "en_1_1"): 1}}


def test_relevant_candidates_in_all_languages(tmp_path: Path) -> None:
    """A question has one relevant candidate in each language that has its id and none in the others."""
    write(tmp_path, "en", lareqa())
    write(tmp_path, "de", lareqa("de", answer_start=0))
    other = lareqa("ru")
    question(other)["id"] = "q2"
    write(tmp_path, "ru", other)
    collection = only(load_lareqa(tmp_path, "mine", ["en", "de", "ru"]))
    assert relevant(collection, "en") == {"q1": {("en", "en_1_1"): 1, ("de", "de_1_0"): 1}}
    assert relevant(collection, "ru") == {"q2": {("ru", "ru_1_1"): 1}}
    assert (collection.merged_pool, collection.parallel) == (True, True)
    assert not only(load_lareqa(tmp_path, "mine", ["en"])).merged_pool


def test_plain_and_gzipped_files_are_the_same(tmp_path: Path) -> None:
    """A gzipped file gives the same benchmark, with the same hash, as the plain one."""
    plain = write(tmp_path / "plain", "en", lareqa())
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "en.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    first, second = load_lareqa(tmp_path / "plain", "mine"), load_lareqa(tmp_path / "packed", "mine")
    assert first == second
    assert first.data_hash == second.data_hash


def test_data_hash_follows_the_data(tmp_path: Path) -> None:
    """The hash ignores the order of the languages and changes with a text, an id or a relevance."""
    write(tmp_path, "en", lareqa())
    write(tmp_path, "de", lareqa("de"))
    hashes = {load_lareqa(tmp_path, "mine", codes).data_hash for codes in (["en", "de"], ["de", "en"])}
    assert len(hashes) == 1
    changes = [lareqa("other text"), lareqa("de", answer_start=0), lareqa("de")]
    question(changes[2])["id"] = "q2"
    for content in changes:
        write(tmp_path, "de", content)
        hashes.add(load_lareqa(tmp_path, "mine").data_hash)
    assert len(hashes) == 4


def test_benchmark_travels_between_processes(tmp_path: Path) -> None:
    """A benchmark survives pickling, as Ray needs."""
    write(tmp_path, "en", lareqa())
    benchmark = load_lareqa(tmp_path, "mine")
    assert pickle.loads(pickle.dumps(benchmark)) == benchmark


@pytest.mark.parametrize(("name", "subfolder"), [("xquad-r", "."), ("xquad-r", "xquad-r"), ("sample", "benchmark")])
def test_folder_of_a_named_benchmark(tmp_path: Path, name: str, subfolder: str) -> None:
    """The language files may lie in the folder given or in the benchmark's own subfolder of it."""
    write(tmp_path / subfolder, "en", lareqa())
    assert load_benchmark(name, tmp_path, ["en"]).languages == ("en",)


def test_published_counts_of_xquad_r() -> None:
    """XQuAD-R gives the published 1,190 questions, candidates and distinct relevant candidates per language."""
    benchmark = published("xquad-r")
    collection = only(benchmark)
    assert benchmark.languages == ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
    assert [len(texts) for texts in collection.queries.values()] == [1190] * 11
    assert tuple(len(texts) for texts in collection.candidates.values()) == XQUAD_R_CANDIDATES
    qrels = collection.qrels["ar"]
    distinct = tuple(len(np.unique(qrels.candidate[qrels.language == column])) for column in range(11))
    assert distinct == XQUAD_R_DISTINCT_RELEVANT
    assert (benchmark.query_count, benchmark.candidate_count) == (13090, 13014)
    for code in benchmark.languages:
        assert np.array_equal(collection.qrels[code].language, np.tile(np.arange(11), 1190))
        assert (collection.qrels[code].grade == 1).all()
    assert (benchmark.notes, benchmark.left_out) == ((), {})


def test_published_counts_of_mlqa_r() -> None:
    """MLQA-R gives the published questions, candidates and shared questions of every language pair."""
    benchmark = published("mlqa-r")
    collection = only(benchmark)
    assert benchmark.languages == ("ar", "de", "en", "es", "hi", "vi", "zh")
    assert tuple(len(texts) for texts in collection.queries.values()) == MLQA_R_QUERIES
    assert tuple(len(texts) for texts in collection.candidates.values()) == MLQA_R_CANDIDATES
    shared = [shared_questions(collection, code) for code in benchmark.languages]
    assert shared == [list(row) for row in MLQA_R_SHARED_IDS]


def test_unknown_benchmark(tmp_path: Path) -> None:
    """An unknown benchmark is answered with the known ones."""
    with pytest.raises(ConfigError, match=r"'xquad'.*xquad-r, mlqa-r, sample, miracl, miracl-slice, beir, tatoeba"):
        load_benchmark("xquad", tmp_path)


@pytest.mark.parametrize(
    ("languages", "message"), [(["english"], "'english'"), (["en", "en"], "'en' twice"), ([], "at least one")]
)
def test_bad_languages(tmp_path: Path, languages: list[str], message: str) -> None:
    """Languages that do not exist, are named twice or are none at all are refused by name."""
    write(tmp_path, "en", lareqa())
    with pytest.raises(ConfigError, match=message):
        load_lareqa(tmp_path, "mine", languages)


@pytest.mark.parametrize(
    ("name", "known"),
    [("xquad-r", "ar, de, el"), ("miracl-slice", "bn, de"), ("beir", "beir-sci: de, en"), ("tatoeba", "de, zh")],
)
def test_unknown_language(tmp_path: Path, name: str, known: str) -> None:
    """A language that the benchmark lacks is refused with those that it has."""
    write(tmp_path, "en", lareqa())
    miracl(tmp_path, "bn"), miracl(tmp_path, "de")
    beir(tmp_path / "sci", languages=True)
    tatoeba(tmp_path, "deu"), tatoeba(tmp_path, "cmn")
    with pytest.raises(ConfigError, match=rf"languages: got 'fr'; expected at least one of those of .*{known}"):
        load_benchmark(name, tmp_path / "sci" if name == "beir" else tmp_path, ["de", "fr"])


def test_split_of_a_benchmark_without_splits(tmp_path: Path) -> None:
    """A split is refused where there is only one, rather than ignored."""
    with pytest.raises(ConfigError, match="split: got 'train'"):
        load_benchmark("xquad-r", tmp_path, split="train")


def test_absent_folder(tmp_path: Path) -> None:
    """A folder that is not there is named, by both loaders."""
    with pytest.raises(BenchmarkError, match="nowhere"):
        load_lareqa(tmp_path / "nowhere", "mine", ["en"])
    with pytest.raises(BenchmarkError, match=r"nowhere or .*nowhere/xquad-r"):
        load_benchmark("xquad-r", tmp_path / "nowhere")


def test_missing_language_file(tmp_path: Path) -> None:
    """A missing language file is reported with the language, the folder and the languages that are there."""
    write(tmp_path, "en", lareqa())
    with pytest.raises(BenchmarkError, match=r"no file for language 'de', only for en") as caught:
        load_benchmark("mlqa-r", tmp_path, ["en", "de"])
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"{}" * 500)[:-9], gzip.compress(b"{ broken")],
    ids=["not gzip", "cut off", "not JSON"],
)
def test_unreadable_file(tmp_path: Path, content: bytes) -> None:
    """A file that is no gzip, is cut off or holds no JSON is named."""
    (tmp_path / "en.json.gz").write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"en\.json\.gz"):
        load_lareqa(tmp_path, "mine", ["en"])


@pytest.mark.parametrize("key", ["id", "question", "answers"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    """A missing key of a question is reported with its place in the file."""
    content = lareqa()
    del question(content)[key]
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match=rf"en\.json: data\.0\.paragraphs\.1\.qas\.0\.{key}"):
        load_lareqa(tmp_path, "mine")


def test_missing_sentence_breaks(tmp_path: Path) -> None:
    """A plain SQuAD file, without sentence boundaries, is refused naming the missing key."""
    content = lareqa()
    for paragraph in content["data"][0]["paragraphs"]:
        del paragraph["sentence_breaks"]
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match=r"paragraphs\.0\.sentence_breaks"):
        load_lareqa(tmp_path, "mine")


@pytest.mark.parametrize(
    ("breaks", "count"), [([[0, 6], [10, 14]], 0), ([[0, 14], [7, 14]], 2)], ids=["gap", "overlap"]
)
def test_not_exactly_one_relevant_sentence(tmp_path: Path, breaks: list[list[int]], count: int) -> None:
    """A question whose answer starts in no sentence or in two is refused by its id."""
    content = lareqa()
    content["data"][0]["paragraphs"][1]["sentence_breaks"] = breaks
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match=f"paragraph 1: question 'q1': got {count} relevant sentences"):
        load_lareqa(tmp_path, "mine")


@pytest.mark.parametrize("sentence", [[0, 15], [6, 6], [-1, 6]])
def test_sentence_outside_its_context(tmp_path: Path, sentence: list[int]) -> None:
    """A sentence that is empty or leaves its context is refused with the length of the context."""
    content = lareqa()
    content["data"][0]["paragraphs"][1]["sentence_breaks"][0] = sentence
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match=r"paragraph 1: sentence_breaks.*<= 14"):
        load_lareqa(tmp_path, "mine")


def test_duplicate_question_id(tmp_path: Path) -> None:
    """A question id used twice in a language is refused."""
    content = lareqa()
    content["data"][0]["paragraphs"][1]["qas"] *= 2
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match="'q1': got this id twice"):
        load_lareqa(tmp_path, "mine")


def test_file_without_questions(tmp_path: Path) -> None:
    """A language without a single question is refused."""
    content = lareqa()
    content["data"][0]["paragraphs"][1]["qas"] = []
    write(tmp_path, "en", content)
    with pytest.raises(BenchmarkError, match="no question"):
        load_lareqa(tmp_path, "mine")


def packed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def json_lines(records: Sequence[object]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# --- collections ---


def candidates_of(counts: Mapping[str, int]) -> dict[str, Texts]:
    ids = {code: tuple(f"{code}{row}" for row in range(count)) for code, count in counts.items()}
    return {code: Texts(names, names) for code, names in ids.items()}


JUDGED = st.dictionaries(
    st.sampled_from([f"q{row}" for row in range(5)]),
    st.dictionaries(
        st.sampled_from([("de", f"de{row}") for row in range(4)] + [("en", f"en{row}") for row in range(3)]),
        st.integers(-1, 3),
    ),
)


@given(judgements=JUDGED)
def test_qrels_hold_exactly_the_positive_judgements(judgements: dict[str, dict[tuple[str, str], int]]) -> None:
    """Compressed rows read back as the positive judgements, sorted and unique; others are counted as left out."""
    asked = Texts(tuple(f"q{row}" for row in range(5)), tuple("abcde"))
    candidates = candidates_of({"en": 3, "de": 4})
    queries, without = judged_queries(asked, judgements)
    positive = {
        query: {key: grade for key, grade in judged.items() if grade > 0} for query, judged in judgements.items()
    }
    assert queries.ids == tuple(query for query in asked.ids if positive.get(query))
    assert without == 5 - len(queries)
    if not len(queries):
        return
    qrels = qrels_of(queries, judgements, candidates, "here")
    collection = Collection("c", {"en": queries}, candidates, {"en": qrels}, True, False)
    assert relevant(collection, "en") == {query: positive[query] for query in queries.ids}
    assert {array.dtype for array in vars(qrels).values()} == {np.dtype(np.int64)}
    for start, stop in zip(qrels.offsets[:-1], qrels.offsets[1:], strict=True):
        rows = list(zip(qrels.language[start:stop].tolist(), qrels.candidate[start:stop].tolist(), strict=True))
        assert rows == sorted(set(rows))


def test_judgements_of_unknown_candidates_are_listed() -> None:
    """Every unknown candidate counts, whatever its grade; the message names ten and says how many there are."""
    queries = Texts(("q",), ("text",))
    judgements = {"q": {("en", "en0"): 1, ("fr", "en0"): 1, **{("en", f"x{row:02d}"): row % 2 for row in range(11)}}}
    with pytest.raises(
        BenchmarkError, match=r"q\.tsv: got 12 candidate ids .*: 'en0', 'x00', .*'x08', \.\.\."
    ) as caught:
        qrels_of(queries, judgements, candidates_of({"en": 3}), "q.tsv")
    assert "x09" not in str(caught.value)


@pytest.mark.parametrize("kind", ["query", "candidate"])
def test_language_without_texts(kind: str) -> None:
    """A collection refuses a language without queries or candidates, by its name."""
    some, none = Texts(("a",), ("a",)), Texts((), ())
    qrels = qrels_of(some, {"a": {("en", "a"): 1}}, {"en": some}, "here")
    queries = {"en": some, "de": none} if kind == "query" else {"en": some}
    candidates = {"en": some, "de": none} if kind == "candidate" else {"en": some}
    with pytest.raises(BenchmarkError, match=f"collection c: de: got no {kind}"):
        Collection("c", queries, candidates, dict.fromkeys(queries, qrels), True, False)


def test_candidate_id_used_twice() -> None:
    """A collection refuses two candidates of one language under one id; two languages may share it."""
    texts, twice = Texts(("a",), ("a",)), Texts(("a", "b", "a"), ("1", "2", "3"))
    qrels = {"en": qrels_of(texts, {"a": {("en", "a"): 1}}, {"en": texts}, "here")}
    assert Collection("c", {"en": texts}, {"en": texts, "de": texts}, qrels, True, False).merged_pool
    with pytest.raises(BenchmarkError, match="collection c: de: got candidate 'a' a second time"):
        Collection("c", {"en": texts}, {"en": texts, "de": twice}, qrels, True, False)


def test_data_hash_sees_language_borders(tmp_path: Path) -> None:
    """Moving a candidate from one language to another, or changing a grade, changes the hash."""

    def benchmark(first: tuple[str, ...], second: tuple[str, ...], grade: int, codes: str = "ab") -> str:
        parts = dict(zip(codes, (Texts(first, first), Texts(second, second)), strict=True))
        candidates = {code: parts[code] for code in codes}
        queries = Texts(("q",), ("q",))
        qrels = qrels_of(queries, {"q": {(codes[0], first[0]): grade, (codes[1], second[0]): 1}}, candidates, "here")
        return Benchmark("b", (Collection("c", {"a": queries}, candidates, {"a": qrels}, True, False),)).data_hash

    assert benchmark(("1", "2"), ("3",), 1) == benchmark(("3",), ("1", "2"), 1, "ba")
    hashes = {benchmark(("1", "2"), ("3",), 1), benchmark(("1",), ("2", "3"), 1), benchmark(("1", "2"), ("3",), 2)}
    assert len(hashes) == 3


# --- Arrow strings ---


def arrow(values: Sequence[str], chunk: int) -> ArrowStrings:
    chunks = [pa.array(values[start : start + chunk], pa.string()) for start in range(0, len(values), chunk)]
    return ArrowStrings(pa.chunked_array(chunks, pa.string()))


@given(values=st.lists(st.text(max_size=3), max_size=30), chunk=st.integers(1, 7), cut=st.slices(30))
def test_arrow_strings_are_a_sequence(values: list[str], chunk: int, cut: slice) -> None:
    """Over Arrow memory as in a list: iteration, index, slice, pickled slice, first rows and repeated strings."""
    strings = arrow(values, chunk)
    assert list(strings) == values
    assert [strings[row] for row in range(-len(values), len(values))] == values + values
    assert list(strings[cut]) == list(pickle.loads(pickle.dumps(strings[cut]))) == values[cut]
    wanted = sorted({*values[::2], "absent"})
    assert find(strings, wanted) == {value: values.index(value) for value in wanted if value in values}
    assert duplicates(strings) == sorted({value for value in values if values.count(value) > 1})


def test_mapped_strings_are_pickled_as_an_address(tmp_path: Path) -> None:
    """A slice of a memory-mapped column travels as file and rows, not as its text."""
    table = pa.table({"text": [f"text {row} " * 100 for row in range(1000)]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=70)
    strings = mapped_strings(tmp_path / "a.arrow", "text")
    part = strings[100:900][50:60]
    assert list(part) == table["text"].to_pylist()[150:160]
    assert len(pickle.dumps(part)) < 1000
    assert pickle.loads(pickle.dumps(part)) == part
    assert list(pickle.loads(pickle.dumps(strings[5:2]))) == []


def test_pickled_slice_carries_only_itself() -> None:
    """A slice of strings in memory does not drag along the column that it was cut from."""
    strings = arrow(["x" * 1000] * 1000, 1000)
    assert len(pickle.dumps(strings[10:12])) < 5000


# --- MIRACL ---


def miracl(
    data: Path,
    language: str = "de",
    *,
    split: str = "dev",
    queries: Sequence[str] = ("q1", "q2"),
    qrels: str = "q1\tQ0\tp#1\t1\nq1\tQ0\tp#0\t0\nq2\tQ0\tp#0\t0\n",
    slice_of: Sequence[str] | None = ("p#0", "p#1"),
) -> None:
    """Topics, qrels and slice: q1 has the relevant passage p#1, q2 has none."""
    root = data / "miracl"
    packed(root / f"topics/topics.miracl-v1.0-{language}-{split}.tsv.gz", "".join(f'{q}\t{q} "?\n' for q in queries))
    packed(root / f"qrels/qrels.miracl-v1.0-{language}-{split}.tsv.gz", qrels)
    if slice_of is not None:
        passages = json_lines([{"docid": name, "text": f"T: {name}"} for name in slice_of])
        packed(data / f"miracl-slice/{language}.jsonl.gz", passages)


def full_corpus(folder: Path, names: Sequence[str] = ("p#0", "p#1", "p#2")) -> None:
    """Two files with one and the other passages, one of them without title."""
    records = [{"docid": name, "title": "" if name == "p#2" else "Title", "text": f"text {name}"} for name in names]
    packed(folder / "docs-0.jsonl.gz", json_lines(records[:1]))
    (folder / "docs-1.jsonl").write_text(json_lines(records[1:]), encoding="utf-8")


def test_published_counts_of_miracl() -> None:
    """Topics and qrels give the published queries and relevant passages of dev and train, each pair judged once."""
    root = DATASETS / "miracl"
    if not root.is_dir():
        pytest.skip("miracl is not in ../shared/datasets")
    judgements = {"dev": 0, "train": 0}
    for language, (dev, dev_relevant, train, *_) in MIRACL.items():
        for split, expected in (("dev", dev), ("train", train)):
            topics = root / f"topics/topics.miracl-v1.0-{language}-{split}.tsv.gz"
            if not topics.exists():
                assert expected == 0
                continue
            judged = read_qrels([root / f"qrels/qrels.miracl-v1.0-{language}-{split}.tsv.gz"])
            queries = read_topics([topics])
            assert len(queries) == expected
            assert set(judged) == set(queries.ids)
            judgements[split] += sum(map(len, judged.values()))
            if split == "dev":
                grades = [grade for documents in judged.values() for grade in documents.values()]
                assert sum(grade > 0 for grade in grades) == dev_relevant
    assert judgements == {"dev": 130408, "train": 343177}


@pytest.mark.parametrize("split", ["dev", "train", "dev+train"])
def test_published_counts_of_the_miracl_slice(split: str) -> None:
    """The slice gives its passages and queries per language, says what it left out and that it is a slice."""
    benchmark = published("miracl-slice", split=split)
    expected = {
        code: (passages, ("dev" in split) * dev + ("train" in split) * train)
        for code, (_, _, train_queries, passages, dev, train) in MIRACL.items()
        if train_queries or "dev" in split
    }
    counts = {
        part.name: (len(part.candidates[part.name]), len(part.queries[part.name])) for part in benchmark.collections
    }
    assert counts == expected
    asked = {code: ("dev" in split) * row[0] + ("train" in split) * row[2] for code, row in MIRACL.items()}
    assert benchmark.left_out == {code: asked[code] - kept for code, (_, kept) in expected.items()}
    assert benchmark.name == "miracl-slice"
    assert any("not comparable" in note for note in benchmark.notes)
    assert any(f"{benchmark.query_count} of {sum(asked.values())} queries" in note for note in benchmark.notes)
    assert not any(part.merged_pool or part.parallel for part in benchmark.collections)
    assert any(split in note for note in benchmark.notes) == (split != "dev")


def test_miracl_takes_the_slice_only_without_full_corpora(tmp_path: Path) -> None:
    """With a full corpus of one language the benchmark is that language in full; the slice can still be asked for."""
    miracl(tmp_path, "de"), miracl(tmp_path, "en")
    assert load_benchmark("miracl", tmp_path).name == "miracl-slice"
    full_corpus(tmp_path / "miracl-corpus-v1.0-de")
    benchmark = load_benchmark("miracl", tmp_path)
    assert (benchmark.name, benchmark.languages, benchmark.notes) == ("miracl", ("de",), ())
    assert load_benchmark("miracl-slice", tmp_path).languages == ("de", "en")


@pytest.mark.parametrize("scratch", [False, True], ids=["memory", "mapped"])
@pytest.mark.parametrize("folder", ["miracl-corpus-v1.0-de", "miracl/corpus/de"])
def test_full_miracl_corpus(tmp_path: Path, folder: str, scratch: bool) -> None:
    """Passages of all files in order, title before text; grades above 0 are relevant, queries without are counted."""
    miracl(tmp_path, slice_of=None)
    full_corpus(tmp_path / folder)
    benchmark = load_miracl(tmp_path, scratch=tmp_path / "scratch" if scratch else None)
    collection = only(benchmark)
    assert list(collection.candidates["de"].ids) == ["p#0", "p#1", "p#2"]
    assert list(collection.candidates["de"].texts) == ["Title text p#0", "Title text p#1", "text p#2"]
    assert relevant(collection, "de") == {"q1": {("de", "p#1"): 1}}
    assert collection.queries["de"] == Texts(("q1",), ('q1 "?',))
    assert benchmark.left_out == {"de": 1}
    assert (tmp_path / "scratch").is_dir() == scratch
    assert pickle.loads(pickle.dumps(benchmark)) == benchmark
    assert benchmark.data_hash == load_miracl(tmp_path).data_hash


def test_mapped_passages_take_no_memory(tmp_path: Path) -> None:
    """With a scratch folder the texts stay in a file: Arrow holds 20 MB of them without it, and nearly nothing with."""
    miracl(tmp_path, slice_of=[f"p#{row}" for row in range(2)])
    passages = [{"docid": f"p#{row}", "text": "x" * 1000} for row in range(20_000)]
    packed(tmp_path / "miracl-slice/de.jsonl.gz", json_lines(passages))
    held = {}
    for scratch in (None, tmp_path / "scratch"):
        before = pa.total_allocated_bytes()
        benchmark = load_miracl(tmp_path, scratch=scratch)
        held[scratch] = pa.total_allocated_bytes() - before
        assert list(only(benchmark).candidates["de"].texts[19_999:]) == ["x" * 1000]
        del benchmark
    assert held[None] > 20e6
    assert held[tmp_path / "scratch"] < 1e6


def test_duplicate_passage_in_another_file(tmp_path: Path) -> None:
    """A docid that two files of a corpus use is named at its second line."""
    miracl(tmp_path)
    full_corpus(tmp_path / "corpus" / "de", ["p#0", "p#1", "p#0"])
    with pytest.raises(BenchmarkError, match=r"docs-1\.jsonl:2: docid: got 'p#0' a second time"):
        load_miracl(tmp_path)


def test_passage_with_the_id_of_the_query_stays(tmp_path: Path) -> None:
    """A MIRACL passage may have the id of the query that it answers; it is neither dropped nor unjudged."""
    miracl(tmp_path, queries=["p#0"], qrels="p#0\tQ0\tp#0\t1\n")
    collection = only(load_miracl(tmp_path))
    assert relevant(collection, "de") == {"p#0": {("de", "p#0"): 1}}
    assert len(collection.candidates["de"]) == 2


def test_judged_passages_that_the_full_corpus_lacks(tmp_path: Path) -> None:
    """With a full corpus, unknown passages of any grade are an error that lists them; a slice counts them."""
    qrels = "q1\tQ0\tp#1\t1\n" + "".join(f"q{2 - row % 2}\tQ0\tgone#{row}\t{row % 2}\n" for row in range(12))
    miracl(tmp_path, qrels=qrels)
    assert "12 of 13 judgements" in load_miracl(tmp_path).notes[-1]
    full_corpus(tmp_path / "corpus" / "de")
    with pytest.raises(BenchmarkError, match=r"qrels\.miracl-v1\.0-de-dev.*: got 12 candidate ids .*'gone#0'.*\.\.\."):
        load_miracl(tmp_path)


def test_qrels_of_unknown_queries(tmp_path: Path) -> None:
    """Judgements of a query that the topics lack are listed."""
    miracl(tmp_path, qrels="q1\tQ0\tp#1\t1\nq9\tQ0\tp#1\t1\n")
    with pytest.raises(BenchmarkError, match=r"1 query ids that do not exist: 'q9'"):
        load_miracl(tmp_path)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\tQ0\tp#1\t1\nq1 Q0 p#0 1\n", r"tsv\.gz:2: got 'q1 Q0 p#0 1'; expected 4 fields"),
        ("q1\tQ0\tp#1\n", r"tsv\.gz:1"),
        ("q1\tQ0\tp#1\t1.0\n", r"tsv\.gz:1: got '1\.0'; expected an integer grade"),
        ("q1\tQ0\tp#1\t1\n\n", r"tsv\.gz:2: got ''"),
        ("q1\tQ0\tp#1\t1\nq1\tQ0\tp#1\t0\n", r"tsv\.gz:2: got query 'q1', candidate 'p#1' twice"),
    ],
)
def test_malformed_qrels(tmp_path: Path, qrels: str, message: str) -> None:
    """A line with wrong fields, a grade that is no integer or a second judgement is named by its number."""
    miracl(tmp_path, qrels=qrels)
    with pytest.raises(BenchmarkError, match=r"qrels\.miracl-v1\.0-de-dev\." + message):
        load_miracl(tmp_path)


def test_duplicate_query_id(tmp_path: Path) -> None:
    """A query id used twice is named at its second line."""
    miracl(tmp_path, queries=["q1", "q2", "q1"])
    with pytest.raises(BenchmarkError, match=r"topics\..*gz:3: got query id 'q1' a second time"):
        load_miracl(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"docid": "a", "text": "x"}', '{"docid": "b"}'], ":2: text: got no such key"),
        (['{"docid": "a", "text": "x"}', "", '{"text": "x"}'], ":3: docid: got no such key"),
        (['{"docid": 7, "text": "x"}'], ":1: docid: got 7; expected a string"),
        (['{"docid": "a", "text": null}'], ":1: text: got None"),
        (['{"docid": "a", "text": "x"}', '{"docid": "b", "text": "x"'], ":2: got .*JSON object on one line"),
        (['["a"]'], r":1: got \['a'\]"),
        (['{"docid": "a", "text": "\\ud800"}'], ":1: text: got .*surrogate"),
        (
            ['{"docid": "a", "text": "x"}', '{"docid": "b", "text": "x"}', '{"docid": "a", "text": "y"}'],
            ":3: docid: got 'a'",
        ),
        ([], ": got .*mpty"),
    ],
    ids=["no text", "no id", "number", "null", "cut off", "no object", "surrogate", "duplicate", "empty"],
)
def test_malformed_passages(tmp_path: Path, lines: Sequence[str], message: str) -> None:
    """A passage that is not what it should be is named by file, line and key."""
    miracl(tmp_path)
    packed(tmp_path / "miracl-slice/de.jsonl.gz", "".join(f"{line}\n" for line in lines))
    with pytest.raises(BenchmarkError, match=r"miracl-slice/de\.jsonl\.gz" + message):
        load_miracl(tmp_path)


@pytest.mark.parametrize("file", ["topics", "qrels", "passages"])
@pytest.mark.parametrize("damage", ["not gzip", "cut off", "not UTF-8"])
def test_unreadable_miracl_file(tmp_path: Path, file: str, damage: str) -> None:
    """Topics, qrels or passages that are no gzip, cut off or not UTF-8 are named."""
    miracl(tmp_path)
    paths = {
        "topics": tmp_path / "miracl/topics/topics.miracl-v1.0-de-dev.tsv.gz",
        "qrels": tmp_path / "miracl/qrels/qrels.miracl-v1.0-de-dev.tsv.gz",
        "passages": tmp_path / "miracl-slice/de.jsonl.gz",
    }
    content = gzip.decompress(paths[file].read_bytes())
    content = content.replace(b"q1", b"\xff").replace(b"T:", b"\xff")
    damaged = {"not gzip": b"plain", "cut off": gzip.compress(content)[:-9], "not UTF-8": gzip.compress(content)}[
        damage
    ]
    paths[file].write_bytes(damaged)
    with pytest.raises(
        BenchmarkError, match=re.escape(str(paths[file])) + (":1: got .*utf-8" if "UTF" in damage else "")
    ):
        load_miracl(tmp_path)


def test_absent_miracl_files(tmp_path: Path) -> None:
    """No topics at all, topics without qrels, an unknown split and a split without topics are told apart."""
    with pytest.raises(BenchmarkError, match="no topics or no passages"):
        load_benchmark("miracl", tmp_path)
    miracl(tmp_path)
    with pytest.raises(BenchmarkError, match="split train"):
        load_benchmark("miracl", tmp_path, split="train")
    with pytest.raises(ConfigError, match=r"'test'.*dev, train, dev\+train"):
        load_benchmark("miracl", tmp_path, split="test")
    (tmp_path / "miracl/qrels/qrels.miracl-v1.0-de-dev.tsv.gz").unlink()
    with pytest.raises(BenchmarkError, match=r"qrels\.miracl-v1\.0-de-dev\.tsv: got .*No such file"):
        load_benchmark("miracl", tmp_path)


# --- BEIR ---

HEADER = "query-id\tcorpus-id\tscore\n"


def beir(folder: Path, *, languages: bool = False, qrels: str = "q1\td1\t2\nq1\td2\t1\nq2\td1\t0\n") -> Path:
    """Two documents (German, English), two English queries and one German; q1 is judged, q2 only as 0, q3 not."""
    records = [
        {"_id": "d1", "title": "Titel", "text": "eins", "metadata": {"url": 1}, "language": "de"},
        {"_id": "d2", "text": "two", "metadata": {}, "language": "en"},
    ]
    queries = [{"_id": f"q{row}", "text": f"{row}?", "language": "de" if row == 3 else "en"} for row in (1, 2, 3)]
    if not languages:
        for record in [*records, *queries]:
            del record["language"]
    packed(folder / "corpus.jsonl.gz", json_lines(records))
    (folder / "queries.jsonl").write_text(json_lines(queries), encoding="utf-8")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(HEADER + qrels, encoding="utf-8")
    return folder


@pytest.mark.parametrize("language", [None, "de"])
@pytest.mark.parametrize("scratch", [False, True], ids=["memory", "mapped"])
def test_beir_folder(tmp_path: Path, language: str | None, scratch: bool) -> None:
    """A folder without languages is one collection of the language named, with grades, titles and counted queries."""
    folder = beir(tmp_path / "scifact")
    options = {"scratch": tmp_path / "scratch"} if scratch else {}
    benchmark = load_benchmark("beir", folder, None if language is None else [language], **options)
    collection, code = only(benchmark), language or "en"
    assert benchmark.name == collection.name == "beir-scifact"
    assert list(collection.candidates[code].ids) == ["d1", "d2"]
    assert list(collection.candidates[code].texts) == ["Titel eins", "two"]
    assert collection.queries == {code: Texts(("q1",), ("1?",))}
    assert relevant(collection, code) == {"q1": {(code, "d1"): 2, (code, "d2"): 1}}
    assert benchmark.left_out == {code: 2}
    assert (collection.merged_pool, collection.parallel) == (False, False)


@pytest.mark.parametrize("scratch", [False, True], ids=["memory", "mapped"])
def test_multilingual_beir_folder(tmp_path: Path, scratch: bool) -> None:
    """With a language per line, queries search the documents of every language; a language can be left out."""
    folder = beir(tmp_path / "news", languages=True, qrels="q1\td1\t2\nq1\td2\t1\nq3\td2\t1\n")
    where = tmp_path / "scratch" if scratch else None
    benchmark = load_beir(folder, scratch=where)
    collection = only(benchmark)
    assert {code: list(texts.texts) for code, texts in collection.candidates.items()} == {
        "en": ["two"],
        "de": ["Titel eins"],
    }
    assert relevant(collection, "en") == {"q1": {("de", "d1"): 2, ("en", "d2"): 1}}
    assert relevant(collection, "de") == {"q3": {("en", "d2"): 1}}
    assert benchmark.left_out == {"en": 1}
    stored = [path.name.rpartition("-")[2] for path in (tmp_path / "scratch").glob("*")]
    assert sorted(stored) == (["de.arrow", "en.arrow"] if scratch else [])
    assert collection.merged_pool
    assert benchmark.data_hash == load_beir(folder, ["en", "de"], scratch=where).data_hash
    english = load_beir(folder, ["en"], scratch=where)
    assert relevant(only(english), "en") == {"q1": {("en", "d2"): 1}}
    assert (english.languages, only(english).merged_pool) == (("en",), False)


def test_document_with_the_id_of_the_query_stays(tmp_path: Path) -> None:
    """Equal ids of a query and a document mean nothing."""
    folder = beir(tmp_path / "arguana", qrels="q1\tq1\t1\n")
    packed(folder / "corpus.jsonl.gz", json_lines([{"_id": "q1", "text": "same id"}]))
    assert relevant(only(load_beir(folder)), "en") == {"q1": {("en", "q1"): 1}}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (HEADER + "q1\td1\t1\nq1\td7\t0\nq8\td1\t1\n", r"1 query ids that do not exist: 'q8'"),
        (HEADER + "q1\td1\t1\nq1\td7\t0\n", r"1 document ids that do not exist: 'd7'"),
        ("q1\td1\t1\n", r"test\.tsv:1: got \['q1', 'd1', '1'\]; expected the header query-id corpus-id score"),
        ("", r"test\.tsv:1: got \[\]"),
        (HEADER + "q1\td1\tone\n", r"test\.tsv:2: got 'one'"),
        (HEADER + "q2\td1\t0\n", "collection beir-bad: all languages: got no query"),
    ],
)
def test_bad_beir_qrels(tmp_path: Path, qrels: str, message: str) -> None:
    """Unknown ids, a missing header, bad grades and qrels without any relevant document are refused."""
    folder = beir(tmp_path / "bad")
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=message):
        load_beir(folder)


def test_duplicate_beir_query(tmp_path: Path) -> None:
    """A query id used twice, here in two languages, is named at its second line."""
    folder = beir(tmp_path / "twice", languages=True)
    rows = [{"_id": "q1", "text": "?", "language": code} for code in ("en", "de")]
    (folder / "queries.jsonl").write_text(json_lines(rows), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"queries\.jsonl:2: _id: got 'q1' a second time"):
        load_beir(folder)


def test_absent_beir_files(tmp_path: Path) -> None:
    """A split that is not there is answered with those that are; a missing corpus is named."""
    folder = beir(tmp_path / "part")
    packed(folder / "qrels" / "train.tsv.gz", HEADER + "q2\td1\t1\n")
    assert only(load_beir(folder, split="train")).queries["en"].ids == ("q2",)
    with pytest.raises(BenchmarkError, match=r"no split 'dev'; expected one of the splits there: test, train"):
        load_beir(folder, split="dev")
    (folder / "corpus.jsonl.gz").unlink()
    with pytest.raises(BenchmarkError, match=r"part: got no corpus\.jsonl"):
        load_beir(folder)


def test_language_key_on_some_lines_only(tmp_path: Path) -> None:
    """The key `language` stands on all lines of both files or on none, and CLDR knows it."""
    folder = beir(tmp_path / "mixed", languages=True)
    corpus = [{"_id": "d1", "text": "eins", "language": "de"}, {"_id": "d2", "text": "two"}]
    packed(folder / "corpus.jsonl.gz", json_lines(corpus))
    with pytest.raises(BenchmarkError, match=r"corpus\.jsonl\.gz:2: language: got no such key"):
        load_beir(folder)
    packed(folder / "corpus.jsonl.gz", json_lines([{"_id": "d1", "text": "eins"}, {"_id": "d2", "text": "two"}]))
    with pytest.raises(BenchmarkError, match=r"a language per line in queries\.jsonl only"):
        load_beir(folder)
    packed(folder / "corpus.jsonl.gz", json_lines([{**record, "language": "german"} for record in corpus]))
    with pytest.raises(BenchmarkError, match=r"mixed: language: got 'german'"):
        load_beir(folder)


def test_duplicate_ids_in_a_large_corpus(tmp_path: Path) -> None:
    """One repeated id among a hundred thousand is found, at its second line."""
    folder = beir(tmp_path / "large")
    names = [f"d{row}" for row in range(100_000)]
    random.Random(3).shuffle(names)
    names[70_000] = names[5]
    packed(folder / "corpus.jsonl.gz", json_lines([{"_id": name, "text": "t"} for name in names]))
    with pytest.raises(BenchmarkError, match=rf"corpus\.jsonl\.gz:70001: _id: got '{names[5]}'"):
        load_beir(folder, scratch=tmp_path)


# --- Tatoeba ---


def tatoeba(data: Path, code: str, foreign: str = "eins\nzwei\neins\n", english: str = "one\ntwo\none\n") -> None:
    packed(data / f"tatoeba/tatoeba.{code}-eng.{code}.gz", foreign)
    packed(data / f"tatoeba/tatoeba.{code}-eng.eng.gz", english)


def test_published_counts_of_tatoeba() -> None:
    """112 languages with 88,877 pairs, each searched in both directions; 72 languages have 1,000 pairs."""
    benchmark = published("tatoeba")
    pairs = {part.name: len(part.candidates[part.name.rpartition("-")[2]]) for part in benchmark.collections}
    to_english = {name: count for name, count in pairs.items() if name.endswith("-en")}
    assert (len(pairs), len(to_english), sum(to_english.values())) == (224, 112, 88877)
    assert sum(count == 1000 for count in to_english.values()) == 72
    assert all(pairs[f"en-{name.removesuffix('-en')}"] == count for name, count in to_english.items())
    assert to_english["th-en"] == 548
    xquad_r = {"ar", "de", "el", "es", "hi", "ru", "tr", "vi", "zh"}
    assert {to_english[f"{code}-en"] for code in xquad_r} == {1000}


def test_tatoeba_directions(tmp_path: Path) -> None:
    """Each language gives two collections; the relevant candidate is the same line, doubled sentences stay."""
    tatoeba(tmp_path, "deu")
    tatoeba(tmp_path, "cmn", "二\n", "two\n")
    benchmark = load_tatoeba(tmp_path)
    assert [part.name for part in benchmark.collections] == ["de-en", "en-de", "zh-en", "en-zh"]
    german, english = benchmark.collections[:2]
    assert german.queries == english.candidates == {"de": Texts(("1", "2", "3"), ("eins", "zwei", "eins"))}
    assert german.candidates == english.queries == {"en": Texts(("1", "2", "3"), ("one", "two", "one"))}
    rows = {str(row): {("en", str(row)): 1} for row in (1, 2, 3)}
    assert relevant(german, "de") == rows
    assert german.qrels["de"] == qrels_of(german.queries["de"], rows, german.candidates, "here")
    assert (german.merged_pool, german.parallel) == (False, False)
    assert [part.name for part in load_tatoeba(tmp_path, ["en", "zh"]).collections] == ["zh-en", "en-zh"]
    with pytest.raises(ConfigError, match="languages: got none"):
        load_tatoeba(tmp_path, ["en"])


@pytest.mark.parametrize(
    ("iso", "code"), [("deu", "de"), ("cmn", "zh"), ("pes", "fa"), ("swh", "sw"), ("yue", "yue"), ("cbk", "cbk")]
)
def test_language_codes_of_bitext(iso: str, code: str) -> None:
    """ISO 639-3 codes become CLDR codes; a language without a shorter code keeps its own."""
    assert cldr_code(iso) == code


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ("eins\nzwei\n", r"got 2 lines of deu and 3 of eng"),
        ("eins\n\ndrei\n", r"tatoeba\.deu-eng\.deu\.gz:2: got an empty line"),
    ],
)
def test_unequal_bitext(tmp_path: Path, foreign: str, message: str) -> None:
    """Files of unequal length or with empty lines are not line-aligned and are refused."""
    tatoeba(tmp_path, "deu", foreign)
    with pytest.raises(BenchmarkError, match=message):
        load_tatoeba(tmp_path)


def test_bitext_files_that_are_missing_or_clash(tmp_path: Path) -> None:
    """No files, one side only, and two codes of one language are named."""
    with pytest.raises(BenchmarkError, match="benchmark tatoeba: got no such file"):
        load_tatoeba(tmp_path)
    tatoeba(tmp_path, "deu")
    tatoeba(tmp_path, "ger")
    with pytest.raises(BenchmarkError, match="files of deu and ger, both 'de'"):
        load_tatoeba(tmp_path)
    for path in (tmp_path / "tatoeba").glob("*ger*"):
        path.unlink()
    (tmp_path / "tatoeba/tatoeba.deu-eng.eng.gz").write_bytes(b"no gzip")
    with pytest.raises(BenchmarkError, match=r"deu-eng\.eng\.gz: got Not a gzipped file"):
        load_tatoeba(tmp_path)
    (tmp_path / "tatoeba/tatoeba.deu-eng.eng.gz").unlink()
    with pytest.raises(BenchmarkError, match=r"deu-eng\.eng: got .*No such file"):
        load_tatoeba(tmp_path)


# --- the worked example of docs/benchmarks.md ---


def documented_loader() -> Any:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example:[^\n]*-->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 60
    names: dict[str, Any] = {}
    exec(compile(code, "docs/benchmarks.md", "exec"), names)
    return names["load_belebele"]


def test_documented_example(tmp_path: Path) -> None:
    """The loader in the documentation works as printed there."""
    for language in ("en", "th"):
        rows = [
            {"id": row, "prompts": [{"text": f"{language} passage {row // 2}", "question": f"{language} {row}?"}]}
            for row in range(3)
        ]
        packed(tmp_path / f"{language}_belebele.jsonl.gz", json_lines(rows))
    collection = only(documented_loader()(tmp_path, ["en", "th"]))
    assert collection.candidates["th"] == Texts(("0", "2"), ("th passage 0", "th passage 1"))
    assert collection.queries["en"].texts == ("en 0?", "en 1?", "en 2?")
    assert relevant(collection, "en")["1"] == {("en", "0"): 1, ("th", "0"): 1}


def test_documented_example_on_belebele() -> None:
    """The loader in the documentation reads the real files: 895 questions and 488 passages per language."""
    folder = DATASETS / "belebele"
    if not folder.is_dir():
        pytest.skip("belebele is not in ../shared/datasets")
    benchmark = documented_loader()(folder, ["en", "th", "vi"])
    collection = only(benchmark)
    assert [len(texts) for texts in collection.queries.values()] == [895] * 3
    assert [len(texts) for texts in collection.candidates.values()] == [488] * 3
    assert all(shared_questions(collection, code) == [895] * 3 for code in benchmark.languages)
    assert benchmark.left_out == {}
