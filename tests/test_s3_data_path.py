"""The whole path of data in a bucket: import, translate, clean, validate, describe, search for leakage, train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import swift
import yaml
from faulty_s3 import BUCKET, FaultyS3, environment, serve

from hbt_ray.cli import run
from hbt_ray.config import Config
from hbt_ray.corpus.cleaning import CleaningSettings, clean
from hbt_ray.corpus.importers import local_source
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.sample import sample_pairs, write_sample_benchmark
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.errors import CorpusError
from hbt_ray.storage import Folder
from hbt_ray.train.record import accepted, damage

ROOT = Path(__file__).resolve().parents[1]
PAIRS, STEPS = 160, 20


def records(languages: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows in long form of the sample's largest dataset: one pair stands there twice, one has a question to leak."""
    pairs = sample_pairs()["countries"][:PAIRS]
    twice = pairs[3]
    pairs.append(ParallelPair("twice", twice.passage_id, twice.group, twice.query, twice.passage))
    return [
        {
            **{"pair_id": pair.pair_id, "language": lang, "group": pair.group},
            **{"query": pair.query[lang], "passage": pair.passage[lang]},
        }
        for pair in pairs
        for lang in languages
        if lang in pair.query and lang in pair.passage
    ]


def write_source(path: Path, languages: tuple[str, ...], leaked: str) -> None:
    """The records, one more with the leaked question in English, and a line that is no JSON."""
    leak = {"pair_id": "leak", "language": "en", "query": leaked, "passage": "Nobody knows.", "group": "leak"}
    lines = [json.dumps(row, ensure_ascii=False) for row in [*records(languages), leak]]
    path.write_text("\n".join([*lines, '{"pair_id": ']), encoding="utf-8")


def benchmark_question(folder: Path) -> str:
    """The first English question of the sample's benchmark, which is written to the folder."""
    write_sample_benchmark(folder)
    content = json.loads((folder / "en.json").read_text(encoding="utf-8"))
    question: str = content["data"][0]["paragraphs"][0]["qas"][0]["question"]
    return question


def check_leakage(report: dict[str, Any]) -> None:
    """The leaked question is found; it is the only one of the benchmark that stands in the English texts as it is."""
    assert report["status"] == "leakage"
    same = [found for found in report["listed"] if (found["kind"], found["match"]) == ("question", "same text")]
    assert [found["pair_id"] for found in same if found["language"] == "en"] == ["leak"]


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with serve(FaultyS3()) as server:
        for name, value in environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        yield server


def test_files_of_a_bucket_are_imported(moto: FaultyS3, tmp_path: Path) -> None:
    """A file or a folder at an `s3://` address is read from a copy on local disk, which ends with the import."""
    (tmp_path / "deep").mkdir()
    for name in ("a.jsonl", "deep/b c.jsonl"):
        (tmp_path / name).write_text(name)
    Folder(f"s3://{BUCKET}/source").upload(tmp_path)
    options = moto.endpoint.removeprefix("http://")
    with local_source(f"s3://{BUCKET}/source/?endpoint_override={options}&scheme=http") as folder:
        assert {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.jsonl")} == {
            "a.jsonl": "a.jsonl",
            "deep/b c.jsonl": "deep/b c.jsonl",
        }
        assert folder.name == "source"
    assert not folder.exists()
    with local_source(f"s3://{BUCKET}/source/deep/b%20c.jsonl") as file:
        assert (file.name, file.read_text()) == ("b c.jsonl", "deep/b c.jsonl")
    with local_source(str(tmp_path)) as local:
        assert local == tmp_path
    with pytest.raises(CorpusError, match=f"s3://{BUCKET}/source/absent: got nothing there"):
        local_source(f"s3://{BUCKET}/source/absent").__enter__()


def test_commands_on_a_bucket(moto: FaultyS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that starts no Ray: bytes, tables and reports are those of a local folder; a part is fetched once."""
    leaked = benchmark_question(tmp_path / "benchmark")
    write_source(tmp_path / "pairs.jsonl", ("en", "de", "th"), leaked)
    told = []
    for root in (f"s3://{BUCKET}/commands", str(tmp_path / "local")):
        report = tmp_path / f"report-{len(told)}.json"
        importing = ["data", "import", "jsonl", "--source", str(tmp_path / "pairs.jsonl"), "--dataset", "facts"]
        assert run([*importing, "--out", f"{root}/raw"]) == 0
        moto.requests.clear()
        assert run(["data", "clean", f"{root}/raw", "--out", f"{root}/clean"]) == 0
        fetched = [request for request in moto.requests if request.startswith("GET") and "en/part-00000" in request]
        assert len(fetched) in (0, 3)  # two looks at the pivot's texts and one at all
        assert run(["data", "validate", f"{root}/clean"]) == 0
        capsys.readouterr()
        assert run(["data", "describe", f"{root}/clean", "--html", str(tmp_path / "page.html")]) == 0
        searching = ["data", "leakage", f"{root}/clean", "--benchmark", "sample", "--data", str(tmp_path)]
        assert run([*searching, "--out", str(report)]) == 3
        check_leakage(json.loads(report.read_text()))
        tables = capsys.readouterr().out.replace(str(report), "report").replace(root, "root")
        told.append((tables, *(path.read_text().replace(root, "root") for path in (report, tmp_path / "page.html"))))
    assert told[0] == told[1]
    remote = Folder(f"s3://{BUCKET}/commands")
    local = tmp_path / "local"
    assert {name: remote.read(name) for name in remote.sizes()} == {
        path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()
    }
    rejected = [json.loads(line) for line in remote.read("clean/facts/rejected/cleaning.jsonl").splitlines()]
    assert [(row["row"], row["reason"]) for row in rejected] == [("twice", "pair repeats another")]


# --- the whole path --------------------------------------------------------------------------------------------------


def command(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command to its end, in a process of its own; the JSON object in its last line, if it ends with one."""
    line = [sys.executable, "-m", "hbt_ray.cli", *arguments]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    return dict(json.loads(last)) if last.startswith("{") else {}


def translation(model: Path, path: Path, corpus: str) -> Path:
    """Settings of a translation into gibberish, which no gate is to judge."""
    off = dict.fromkeys(("script", "language", "length_ratio", "repetition", "copied_letters", "numbers"))
    settings = {
        **{"corpus": corpus, "dataset": "facts", "targets": ["de", "tr"], "model": str(model), "actors": 2},
        **{"gates": {"cut_off": False, **off}, "generation": {"beams": 1, "tokens_per_token": 0.3}},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def training(toy_config: Config, path: Path, bucket: str) -> Path:
    """Settings of twenty steps with data and checkpoints in the bucket."""
    config = toy_config.replaced(
        {
            **{"run.name": "on-s3", "run.out": str(path.parent / "runs"), "run.storage": f"{bucket}/runs"},
            **{"data.root": f"{bucket}/clean", "train.steps": STEPS, "train.validate_every": 10},
        }
    )
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_whole_path_on_swift(
    swift_clients: dict[str, str], toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From English pairs to an encoder trained on three languages, with nothing but files of a user on local disk."""
    from hbt_ray.translation.scratch import write_m2m100

    for name, value in swift_clients.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{swift.BUCKET}/path"
    leaked = benchmark_question(tmp_path / "benchmark")
    write_source(tmp_path / "pairs.jsonl", ("en",), leaked)
    write_m2m100(tmp_path / "m2m100", (row[name] for row in records(("en",)) for name in ("query", "passage")))

    source = ["--source", str(tmp_path / "pairs.jsonl"), "--dataset", "facts"]
    command("data", "import", "jsonl", *source, "--out", f"{bucket}/raw")
    done = command(
        "data", "translate", "--config", str(translation(tmp_path / "m2m100", tmp_path / "t.yaml", f"{bucket}/raw"))
    )
    assert done["usable"]["de"] == {"queries": PAIRS + 2, "passages": PAIRS + 2, "pairs": PAIRS + 2}
    command("data", "clean", f"{bucket}/raw", "--out", f"{bucket}/clean")
    command("data", "validate", f"{bucket}/clean")
    command("data", "describe", f"{bucket}/clean", "--html", str(tmp_path / "page.html"))
    report = tmp_path / "leakage.json"
    searching = ["--benchmark", "sample", "--data", str(tmp_path), "--out", str(report)]
    command("data", "leakage", f"{bucket}/clean", *searching, code=3)
    trained = command("train", str(training(toy_config, tmp_path / "train.yaml", bucket)))

    raw, cleaned = Folder(f"{bucket}/raw/facts"), Folder(f"{bucket}/clean/facts")
    assert json.loads(raw.read("rejected/import.jsonl"))["reason"] == "line is not JSON"
    assert ShardedDataset.open(cleaned).manifest.languages == ("en", "de", "tr")
    assert ShardedDataset.open(cleaned).manifest.rows == PAIRS + 1
    raw.download(tmp_path / "copy" / "facts")
    copy = ShardedDataset.open(Folder(str(tmp_path / "copy" / "facts")))
    clean(copy, Folder(str(tmp_path / "cleaned-here")), CleaningSettings())
    for name in cleaned.sizes():
        assert cleaned.read(name) == (tmp_path / "cleaned-here" / "facts" / name).read_bytes()
    check_leakage(json.loads(report.read_text()))
    assert "facts" in (tmp_path / "page.html").read_text()
    assert trained["steps"] == STEPS
    storage = Folder(f"{bucket}/runs/on-s3")
    assert next((saved.step, damage(saved, storage)) for saved in accepted(storage)) == (STEPS, None)
    assert (storage / "model").read("model.safetensors") == (
        Path(trained["model_dir"]) / "model.safetensors"
    ).read_bytes()
