"""The command line: exit codes, one clear message, the last line of stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hbt_ray.cli import run
from hbt_ray.config import Config, load_config
from hbt_ray.corpus import formats
from hbt_ray.corpus.sample import write_sample_benchmark
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.evaluation.embeddings import Embeddings, save_embeddings
from hbt_ray.study.settings import load_study
from hbt_ray.sweep.settings import load_sweep
from hbt_ray.translation.settings import translation_settings

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "jobs" / "configs"
FORMATS = ROOT / "tests" / "data" / "formats"
FORMAT_OPTIONS = [
    ["afriqa", "afriqa"],
    ["belebele", "belebele"],
    ["dpr-nq", "dpr_nq/biencoder-nq-train.json", "--negatives", "1"],
    ["duorc", "duorc/SelfRC_train.json"],
    ["entity-questions", "entity_questions"],
    ["hf-datasets", "PARQUET", "--column", "query=question", "--column", "passage=text", "--language", "en"],
    ["mfaq", "mfaq"],
    ["mmarco", "mmarco", "--languages", "en,de"],
    ["mr-tydi", "mr_tydi", "--split", "train"],
    ["newsqa", "newsqa/combined-newsqa-data-v1.json"],
    ["squad", "squad/dev-v2.0.json", "--language", "en"],
    ["wikiqa", "wikiqa/WikiQA-train.tsv"],
    ["yahoo-qa", "yahoo_qa/yahoo_answers_qa.csv"],
]


@pytest.fixture
def config_file(toy_config: Config, tmp_path: Path) -> Path:
    """The toy configuration as a file, writing below tmp_path."""
    path = tmp_path / "toy.yaml"
    raw = toy_config.replaced({"run.out": str(tmp_path / "runs")}).model_dump(mode="json")
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def benchmark_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample benchmark on disk."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_sample_benchmark(folder)
    return folder


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a user's mistake: exit code 2, one line on stderr, no traceback."""
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return captured.err


def test_sample_writes_shards_that_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`data sample` then `data validate`: four datasets, valid."""
    assert run(["data", "sample", "--out", str(tmp_path / "s")]) == 0
    assert run(["data", "validate", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "countries" in out
    assert out.rstrip().endswith("valid")
    part = tmp_path / "s" / "countries" / "de" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert "de/part-00000.parquet" in failing(["data", "validate", str(tmp_path / "s")], capsys)


def test_jsonl_import_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A JSONL file becomes a dataset that validates; a row with an empty query is left out and named by its line."""
    source = tmp_path / "pairs.jsonl"
    rows = [{"pair_id": "1", "language": lang, "query": f"q {lang}", "passage": f"p {lang}"} for lang in ("en", "de")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["data", "import", "jsonl", "--source", str(source), "--dataset", "mine", "--out", str(tmp_path / "c")]
    assert run(arguments) == 0
    assert run(["data", "validate", str(tmp_path / "c" / "mine")]) == 0
    source.write_text(source.read_text() + json.dumps(rows[0] | {"pair_id": "2", "query": " "}) + "\n")
    capsys.readouterr()
    assert run(arguments) == 0
    assert "1 rows left out" in capsys.readouterr().out
    rejected = json.loads((tmp_path / "c" / "mine" / "rejected" / "import.jsonl").read_text())
    assert (rejected["file"], rejected["row"], rejected["reason"]) == ("pairs.jsonl", "3", "field query: text is blank")
    assert run(["data", "validate", str(tmp_path / "c" / "mine")]) == 0


@pytest.mark.parametrize("options", FORMAT_OPTIONS, ids=lambda options: options[0])
def test_every_format_is_imported_by_its_command(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`data import FORMAT` on a file of that format writes a dataset that validates."""
    name, source, *more = options
    path = FORMATS / source
    if source == "PARQUET":
        path = tmp_path / "saved"
        path.mkdir()
        pq.write_table(pa.table({"question": ["Where?", "When?"], "text": ["Here.", "Now."]}), path / "train.parquet")
    arguments = ["--source", str(path), "--dataset", "d", "--out", str(tmp_path), *more]
    assert run(["data", "import", name, *arguments]) == 0
    assert run(["data", "validate", str(tmp_path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("valid")


def test_every_format_has_a_command() -> None:
    """What is listed as a format is what the test above imports."""
    assert {options[0] for options in FORMAT_OPTIONS} == set(formats.FORMATS)


def test_clean_describe_and_leakage(benchmark_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corpus with a question of the benchmark and a pair twice: cleaned, described, found out with exit code 3."""
    (collection,) = load_benchmark("sample", benchmark_dir).collections
    asked = collection.queries["en"]
    rows = [
        {"pair_id": "leaked", "language": "en", "query": asked.texts[0], "passage": "It is not known."},
        {"pair_id": "one", "language": "en", "query": "Where is  it?", "passage": "It is here, in the middle."},
        {"pair_id": "two", "language": "en", "query": "Where is it?", "passage": "It is here, in the middle."},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    raw, clean = str(tmp_path / "raw"), str(tmp_path / "clean")
    assert (
        run(["data", "import", "jsonl", "--source", str(tmp_path / "rows.jsonl"), "--dataset", "d", "--out", raw]) == 0
    )
    assert run(["data", "clean", raw, "--out", clean]) == 0
    assert json.loads((tmp_path / "clean" / "d" / "manifest.json").read_text())["rows_per_part"] == [2]
    assert "near_qery" in failing(["data", "clean", raw, "--out", clean, "--set", "near_qery=1"], capsys)
    page = tmp_path / "page.html"
    assert run(["data", "describe", clean, "--html", str(page)]) == 0
    assert "Where is it?" in page.read_text(encoding="utf-8")
    report = tmp_path / "leakage.json"
    leakage = ["data", "leakage", clean, "--benchmark", "sample", "--data", str(benchmark_dir), "--out", str(report)]
    capsys.readouterr()
    assert run(leakage) == 3
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["status"], json.loads(report.read_text())["questions"]["en"]["found"]) == ("leakage", 1)
    assert run([*leakage, "--accept", "a test"]) == 0


def test_translation_that_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No settings, a target that is the source, a folder that is no model."""
    assert run(["data", "sample", "--out", str(tmp_path)]) == 0
    translate = ["data", "translate", "--corpus", str(tmp_path), "--dataset", "countries", "--from", "en"]
    assert "model" in failing([*translate, "--to", "fr"], capsys)
    assert "en" in failing([*translate, "--to", "en", "--model", str(tmp_path)], capsys)
    assert str(tmp_path) in failing([*translate, "--to", "fr", "--model", str(tmp_path)], capsys)


def test_plan_prints_the_realised_mixture(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` counts modes, datasets, languages and pairs of the first N batches."""
    assert run(["plan", str(config_file), "--steps", "40", "--set", "mix.alpha=1.0"]) == 0
    out = capsys.readouterr().out
    assert "X-X-mono" in out
    assert "X-Y" not in out
    assert "Training pairs of 40 batches" in out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mix.alhpa=0.5", ["mix.alhpa", "Did you mean 'alpha'"]),
        ("mix.alpha=1.5", ["mix.alpha", "1.5"]),
        ("train.temperature=0", ["train.temperature", "greater than 0"]),
        ("data.languages=[en,xx]", ["data.languages", "'xx'"]),
        ("data.languages=[en]", ["mix.alpha", "two languages"]),
        ("train.batch_size=4000", ["train.batch_size", "4000", "'toy'"]),
        ("data.root=/no/such/folder", ["/no/such/folder", "no such folder"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_bad_settings_are_one_clear_message(
    command: str, setting: str, words: list[str], config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Misspelt keys, values out of range and impossible mixes end with exit code 2 and name key and value."""
    message = failing([command, str(config_file), "--set", setting], capsys)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [("cluster.cpus_per_worker=900", "900 CPUs"), ("model.backbone=/no/such/model", "/no/such/model")],
)
def test_training_that_cannot_start_says_why(
    setting: str, words: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More workers than CPUs, or no model, is the user's mistake: exit code 2."""
    assert words in failing(["train", str(config_file), "--set", setting], capsys)


def test_a_dataset_folder_without_manifest_is_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts without a manifest are an import cut short, and said to be."""
    assert run(["data", "sample", "--out", str(tmp_path)]) == 0
    (tmp_path / "tongues" / "manifest.json").unlink()
    capsys.readouterr()
    assert "manifest.json" in failing(["data", "validate", str(tmp_path)], capsys)


def random_embeddings(benchmark_dir: Path, languages: list[str] | None = None) -> Embeddings:
    (collection,) = load_benchmark("sample", benchmark_dir, languages).collections
    rng = np.random.default_rng(5)

    def vectors(texts: Any) -> dict[str, Any]:
        return {lang: rng.normal(size=(len(group), 8)).astype(np.float32) for lang, group in texts.items()}

    return Embeddings(vectors(collection.queries), vectors(collection.candidates))


def evaluate(benchmark_dir: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--embeddings", str(tmp_path / "e"), "--benchmark", "sample",
        "--data", str(benchmark_dir), "--out", str(tmp_path / "out"), *more,
    ]  # fmt: skip


def test_evaluate_embeddings_writes_every_result(
    benchmark_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given embeddings become metrics.json, cells.csv, per_query.parquet, heatmap.png and report.html."""
    save_embeddings(tmp_path / "e", random_embeddings(benchmark_dir))
    assert run(evaluate(benchmark_dir, tmp_path)) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (last["monolingual"]["cells"], last["cross_lingual"]["cells"]) == (11, 110)
    for name in ("cells.csv", "per_query.parquet", "examples.json", "heatmap.png", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    header = (tmp_path / "out" / "cells.csv").read_text().splitlines()[0]
    assert header == "query_language,candidate_language,queries,mAP,R@1,R@10,R@100,nDCG@10,MRR@10"


def test_languages_restrict_the_matrix(benchmark_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--languages en,de` scores two languages only."""
    save_embeddings(tmp_path / "e", random_embeddings(benchmark_dir, ["en", "de"]))
    assert run(evaluate(benchmark_dir, tmp_path, "--languages", "en,de")) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["languages"] == ["en", "de"]


@pytest.mark.parametrize("fault", ["shape", "nan", "missing"])
def test_faulty_embeddings_are_named(
    fault: str, benchmark_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong shape, NaN or a missing file: the file is named, exit code 2."""
    save_embeddings(tmp_path / "e", random_embeddings(benchmark_dir))
    path = tmp_path / "e" / "queries.th.npy"
    vectors = np.load(path)
    if fault == "missing":
        path.unlink()
    elif fault == "shape":
        np.save(path, vectors[:-1])
    else:
        vectors[3, 2] = np.nan
        np.save(path, vectors)
    assert "queries.th" in failing(evaluate(benchmark_dir, tmp_path), capsys)


def test_a_benchmark_without_a_language_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that lacks a language file, or a benchmark nobody knows, is refused."""
    write_sample_benchmark(tmp_path / "b")
    (tmp_path / "b" / "ru.json").unlink()
    assert "ru" in failing(evaluate(tmp_path / "b", tmp_path), capsys)
    arguments = evaluate(tmp_path / "b", tmp_path)
    arguments[arguments.index("sample")] = "squad"
    assert "squad" in failing(arguments, capsys)


def test_evaluate_wants_a_model_or_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of the two is a mistake that names both options."""
    arguments = ["evaluate", "--benchmark", "sample", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert "--embeddings" in failing(arguments, capsys)


def test_unknown_options_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """What the parser itself refuses has the same exit code."""
    assert run(["train", "--no-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    """Every configuration in jobs/configs passes the checks; those of sweeps, studies and translations say so."""
    if path.name.startswith("translate-"):
        assert translation_settings(path, {"corpus": "somewhere"})
        return
    load = {"sweep": load_sweep, "study": load_study}.get(path.name.partition("-")[0], load_config)
    settings = ["data=somewhere"] if load is load_study else []
    assert load(path, settings)


def test_the_quickstart_configuration_is_the_shipped_one() -> None:
    """jobs/configs/sample.yaml and the copy inside the package are the same file."""
    inside = ROOT / "hbt_ray" / "sample.yaml"
    assert inside.read_text(encoding="utf-8") == (CONFIGS / "sample.yaml").read_text(encoding="utf-8")
