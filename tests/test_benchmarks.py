from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark, load_benchmark, load_lareqa

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"

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


def published(name: str) -> Benchmark:
    if not (DATASETS / name).is_dir():
        pytest.skip(f"{name} is not in ../shared/datasets")
    return load_benchmark(name, DATASETS)


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
    benchmark = load_lareqa(tmp_path, "mine", ["en"])
    assert benchmark.candidates["en"] == ("Zeroth.", "First.", "Second.")
    assert benchmark.queries["en"] == ("which (en)?",)
    assert benchmark.query_ids["en"] == ("q1",)
    assert benchmark.relevant["en"] == {"q1": 2}


@pytest.mark.parametrize(("answer_start", "expected"), [(0, 1), (5, 1), (6, 2), (13, 2)])
def test_sentence_boundaries(tmp_path: Path, answer_start: int, expected: int) -> None:
    """A sentence holds the answers that start at its first up to its last character, not at its end."""
    content = lareqa(answer_start=answer_start)
    content["data"][0]["paragraphs"][1]["sentence_breaks"] = [[0, 6], [6, 14]]
    write(tmp_path, "en", content)
    assert load_lareqa(tmp_path, "mine").relevant["en"] == {"q1": expected}


def test_same_text_twice_is_two_candidates(tmp_path: Path) -> None:
    """Nothing is de-duplicated: equal sentences are separate candidates, and only the one of the question counts."""
    content = lareqa()
    content["data"][0]["paragraphs"][0] |= {"context": "Second.", "sentence_breaks": [[0, 7]]}
    write(tmp_path, "en", content)
    benchmark = load_lareqa(tmp_path, "mine")
    assert benchmark.candidates["en"] == ("Second.", "First.", "Second.")
    assert benchmark.relevant["en"] == {"q1": 2}


def test_relevant_indices(tmp_path: Path) -> None:
    """A question has an index in each language that has its id and -1 in the others."""
    write(tmp_path, "en", lareqa())
    write(tmp_path, "de", lareqa("de", answer_start=0))
    other = lareqa("ru")
    question(other)["id"] = "q2"
    write(tmp_path, "ru", other)
    benchmark = load_lareqa(tmp_path, "mine", ["en", "de", "ru"])
    assert benchmark.relevant_indices("en").tolist() == [[2, 1, -1]]
    assert benchmark.relevant_indices("ru").tolist() == [[-1, -1, 2]]


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
    languages = benchmark.languages
    assert languages == ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
    assert [len(benchmark.queries[code]) for code in languages] == [1190] * 11
    assert tuple(len(benchmark.candidates[code]) for code in languages) == XQUAD_R_CANDIDATES
    distinct = tuple(len(set(benchmark.relevant[code].values())) for code in languages)
    assert distinct == XQUAD_R_DISTINCT_RELEVANT
    assert (benchmark.query_count, benchmark.candidate_count) == (13090, 13014)
    assert all((benchmark.relevant_indices(code) >= 0).all() for code in languages)


def test_published_counts_of_mlqa_r() -> None:
    """MLQA-R gives the published questions, candidates and shared questions of every language pair."""
    benchmark = published("mlqa-r")
    languages = benchmark.languages
    assert languages == ("ar", "de", "en", "es", "hi", "vi", "zh")
    assert tuple(len(benchmark.queries[code]) for code in languages) == MLQA_R_QUERIES
    assert tuple(len(benchmark.candidates[code]) for code in languages) == MLQA_R_CANDIDATES
    shared = [(benchmark.relevant_indices(code) >= 0).sum(axis=0).tolist() for code in languages]
    assert shared == [list(row) for row in MLQA_R_SHARED_IDS]


def test_unknown_benchmark(tmp_path: Path) -> None:
    """An unknown benchmark is answered with the known ones."""
    with pytest.raises(ConfigError, match=r"'xquad'.*xquad-r, mlqa-r, sample"):
        load_benchmark("xquad", tmp_path)


@pytest.mark.parametrize(
    ("languages", "message"), [(["english"], "'english'"), (["en", "en"], "'en' twice"), ([], "at least one")]
)
def test_bad_languages(tmp_path: Path, languages: list[str], message: str) -> None:
    """Languages that do not exist, are named twice or are none at all are refused by name."""
    write(tmp_path, "en", lareqa())
    with pytest.raises(ConfigError, match=message):
        load_lareqa(tmp_path, "mine", languages)


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


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"{}" * 500)[:-9], gzip.compress(b"{ broken")])
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
