"""Evaluation through the command line: graded relevance, TREC files, FAISS, comparison, a model with a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from hbt_ray.cli import run
from hbt_ray.evaluation.benchmarks import Benchmark, load_benchmark
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.embeddings import Embeddings, collection_folder, save_embeddings
from hbt_ray.evaluation.metrics import MEASURES

LANGUAGES = ("en", "de", "zh")
DOCUMENTS, QUERIES = 40, 12


def write_beir(folder: Path, seed: int = 0) -> Path:
    """Three languages, graded relevance, several relevant documents per language, one query without any."""
    rng = np.random.default_rng(seed)
    lines: dict[str, list[dict[str, str]]] = {"corpus": [], "queries": []}
    qrels = ["query-id\tcorpus-id\tscore"]
    for language in LANGUAGES:
        for i in range(DOCUMENTS):
            lines["corpus"].append({"_id": f"{language}d{i}", "title": "t", "text": f"{i}", "language": language})
        for i in range(QUERIES):
            lines["queries"].append({"_id": f"{language}q{i}", "text": f"{i}?", "language": language})
            if (language, i) == ("de", 3):
                continue
            for other in LANGUAGES:
                for document in rng.choice(DOCUMENTS, rng.integers(1, 4), replace=False):
                    qrels.append(f"{language}q{i}\t{other}d{document}\t{rng.integers(1, 4)}")
    (folder / "qrels").mkdir(parents=True)
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
    return folder


def embed(benchmark: Benchmark, folder: Path, values: int | None = None, seed: int = 1) -> Path:
    """Random vectors: normally distributed, or of few integers so that most scores tie."""
    rng = np.random.default_rng(seed)

    def vectors(texts: Any) -> dict[str, Any]:
        drawn = {}
        for language, group in texts.items():
            shape = (len(group), 3 if values else 16)
            drawn[language] = (rng.integers(0, values, shape) if values else rng.normal(size=shape)).astype(np.float32)
        return drawn

    for collection in benchmark.collections:
        embeddings = Embeddings(vectors(collection.queries), vectors(collection.candidates))
        save_embeddings(collection_folder(folder, benchmark, collection), embeddings)
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "graded")


def evaluated(benchmark: str, data: Path, embeddings: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["evaluate", "--embeddings", str(embeddings), "--benchmark", benchmark, "--data", str(data)]
    assert run([*arguments, "--out", str(out), *more]) == 0
    return dict(json.loads((out / "metrics.json").read_text(encoding="utf-8")))


def trec_eval(out: Path, cell: str) -> dict[str, dict[str, float]]:
    """What trec_eval makes of the written files of a cell, under our names."""
    with (out / "qrels" / f"{cell}.trec").open() as qrels, (out / "runs" / f"{cell}.trec").open() as ranking:
        judged, found = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(ranking)
    wanted = {"map", "recall.1,10,100", "ndcg_cut.10", "recip_rank"}
    names = {"map": "mAP", "recall_1": "R@1", "recall_10": "R@10", "recall_100": "R@100", "ndcg_cut_10": "nDCG@10"}
    results = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(found)
    return {
        query: {names[name]: value for name, value in measures.items() if name in names}
        | {"MRR@10": measures["recip_rank"] if measures["recip_rank"] >= 0.1 else 0.0}
        for query, measures in results.items()
    }


@pytest.mark.parametrize("values", [None, 3], ids=["untied", "tied"])
def test_graded_relevance_equals_trec_eval_on_the_written_runs(beir: Path, tmp_path: Path, values: int | None) -> None:
    """Every measure of every query and cell of a multilingual BEIR folder is trec_eval's on the written files."""
    embeddings = embed(load_benchmark("beir", beir), tmp_path / "e", values)
    out = tmp_path / "out"
    metrics = evaluated("beir", beir, embeddings, out, "--trec", "--trec-depth", str(DOCUMENTS))
    assert metrics["queries_without_relevant"]["de"] == 1
    assert metrics["language_bias"]["peer"] is not None, "several judged documents per language"
    rows = pq.read_table(out / "per_query.parquet").to_pylist()
    full = set(LANGUAGES)  # the runs of single languages hold the whole pool
    compared = 0
    for cell in {
        (row["query_language"], row["candidate_language"]) for row in rows if row["candidate_language"] in full
    }:
        expected = trec_eval(out, "-".join(cell))
        for row in rows:
            if (row["query_language"], row["candidate_language"]) == cell:
                found = {name: row[name] for name in MEASURES}
                assert found == pytest.approx(expected[row["query_id"]], abs=1e-9, rel=0)
                compared += 1
    assert compared == 3 * (3 * QUERIES - 1)


def test_merged_pool_runs_keep_the_order(beir: Path, tmp_path: Path) -> None:
    """The whole run of the merged pool gives trec_eval every measure of ours; smaller pools are written whole."""
    embeddings = embed(load_benchmark("beir", beir), tmp_path / "e", 3)
    out = tmp_path / "out"
    evaluated("beir", beir, embeddings, out, "--trec", "--trec-depth", str(3 * DOCUMENTS))
    expected = trec_eval(out, "zh-all")
    rows = pq.read_table(out / "per_query.parquet").to_pylist()
    merged = [row for row in rows if (row["query_language"], row["candidate_language"]) == ("zh", "all")]
    assert len(merged) == QUERIES
    for row in merged:
        assert {name: row[name] for name in MEASURES} == pytest.approx(expected[row["query_id"]], abs=1e-9, rel=0)


def test_a_depth_beyond_the_pool_is_refused(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More candidates than there are: exit code 2, naming both numbers."""
    embeddings = embed(load_benchmark("beir", beir), tmp_path / "e")
    arguments = ["evaluate", "--embeddings", str(embeddings), "--benchmark", "beir", "--data", str(beir)]
    assert run([*arguments, "--out", str(tmp_path / "out"), "--trec", "--trec-depth", "121"]) == 2
    message = capsys.readouterr().err
    assert "121" in message
    assert "at most 120" in message


@pytest.mark.ray
@pytest.mark.parametrize("values", [None, 3], ids=["untied", "tied"])
def test_faiss_finds_what_full_ranking_finds(beir: Path, tmp_path: Path, values: int | None, local_ray: None) -> None:
    """To a depth of 20 FAISS gives the full ranking's cut-off measures in every cell, and no language bias."""
    embeddings = embed(load_benchmark("beir", beir), tmp_path / "e", values)
    full = evaluated("beir", beir, embeddings, tmp_path / "full")
    cut = evaluated("beir", beir, embeddings, tmp_path / "cut", "--ranking", "faiss", "--depth", "20")
    assert "|depth:20|" in cut["signature"]
    assert cut["language_bias"]["rank_distance"] is None
    assert "full depth" in cut["language_bias"]["undefined"]["rank_distance"]
    for setting in ("monolingual", "cross_lingual", "multilingual"):
        for name in ("R@1", "R@10", "nDCG@10", "MRR@10"):
            assert cut[setting][name] == full[setting][name]
        assert cut[setting]["mAP"] < full[setting]["mAP"]


def write_miracl(folder: Path, passages: dict[str, int]) -> Path:
    """The slice layout: topics, qrels and a few passages per language; one judged passage is not in the slice."""
    for name in ("miracl/topics", "miracl/qrels", "miracl-slice"):
        (folder / name).mkdir(parents=True)
    for language, count in passages.items():
        topics = "".join(f"{language}{i}#0\tquestion {i}\n" for i in range(4))
        qrels = (
            "".join(f"{language}{i}#0\tQ0\t{language}{i}#1\t1\n" for i in range(3)) + f"{language}3#0\tQ0\tfar#1\t1\n"
        )
        texts = "".join(json.dumps({"docid": f"{language}{i}#1", "text": f"T: {i}"}) + "\n" for i in range(count))
        (folder / f"miracl/topics/topics.miracl-v1.0-{language}-dev.tsv").write_text(topics)
        (folder / f"miracl/qrels/qrels.miracl-v1.0-{language}-dev.tsv").write_text(qrels)
        (folder / f"miracl-slice/{language}.jsonl").write_text(texts)
    return folder


def test_monolingual_slices(tmp_path: Path) -> None:
    """A benchmark of monolingual collections has no cross-lingual setting and no bias, and says why."""
    data = write_miracl(tmp_path / "data", {"sw": 9, "yo": 7})
    embeddings = embed(load_benchmark("miracl", data), tmp_path / "e")
    metrics = evaluated("miracl", data, embeddings, tmp_path / "out")
    assert metrics["benchmark"] == "miracl-slice"
    assert metrics["monolingual"]["cells"] == 2
    assert metrics["monolingual"]["queries"] == 6
    assert metrics["cross_lingual"]["mAP"] is metrics["multilingual"]["mAP"] is None
    assert metrics["queries_without_relevant"] == {"sw": 1, "yo": 1}
    assert [metrics["language_bias"][name] for name in QUERY_BIAS] == [None] * len(QUERY_BIAS)
    assert "merged pool" in metrics["language_bias"]["undefined"]["rank_distance"]
    assert any("not comparable" in note for note in metrics["notes"])


def test_compare_ends_with_one_json_object(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare` prints a table, writes a report, and its last line has settings, bias, cells and groups."""
    benchmark = load_benchmark("beir", beir)
    for name, seed in (("a", 1), ("b", 2)):
        evaluated("beir", beir, embed(benchmark, tmp_path / f"e{name}", seed=seed), tmp_path / name)
    capsys.readouterr()
    out = tmp_path / "comparison"
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]
    assert run([*arguments, "--seen-languages", "en,de", "--resamples", "500"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for setting in ("monolingual", "cross_lingual", "multilingual"):
        for name in ("mAP", "R@1", "R@10"):
            row = result["settings"][setting][name]
            assert row["low"] <= row["difference"] <= row["high"]
            assert row["p_value"] <= row["p_holm"] <= 1
    assert result["language_bias"]["rank_distance"]["difference"] != 0
    assert len(result["cells"]) == 12
    assert set(result["groups"]) == {"family", "resource_level", "seen"}
    assert (out / "report.html").stat().st_size > 0
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8")) == result


def test_results_of_different_benchmarks_are_not_compared(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, naming both."""
    data = write_miracl(tmp_path / "data", {"sw": 9})
    evaluated("beir", beir, embed(load_benchmark("beir", beir), tmp_path / "e1"), tmp_path / "a")
    evaluated("miracl", data, embed(load_benchmark("miracl", data), tmp_path / "e2"), tmp_path / "b")
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    message = capsys.readouterr().err
    assert "beir-graded" in message
    assert "miracl-slice" in message


@pytest.mark.ray
def test_a_model_is_encoded_once_and_gets_a_card(
    beir: Path, tmp_path: Path, toy_model: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second evaluation takes every vector from the cache, and gives the same numbers."""
    arguments = ["evaluate", "--model", str(toy_model), "--benchmark", "beir", "--data", str(beir)]
    arguments += ["--cache", str(tmp_path / "cache"), "--actors", "1"]
    assert run([*arguments, "--out", str(tmp_path / "first")]) == 0
    parts = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert parts
    assert run([*arguments, "--out", str(tmp_path / "second")]) == 0
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == parts
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0])["multilingual"] == json.loads(lines[-1])["multilingual"]
    assert "beir-graded" in (tmp_path / "first" / "README.md").read_text(encoding="utf-8")
