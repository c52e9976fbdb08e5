"""Retrieval at validations: the numbers of the loop are those of an evaluation of the exported encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbt_ray.config import Config
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.mixing.source import held_out_groups
from hbt_ray.model.encoder import TextEncoder
from hbt_ray.storage import Folder
from hbt_ray.sweep.validation import (
    BIAS,
    METRICS,
    defined_metrics,
    held_out_benchmark,
    retrieval,
)
from hbt_ray.train.fit import fit
from hbt_ray.train.run_folder import claim_folder


def evaluated(benchmark: Benchmark, model: Path) -> Mapping[str, Any]:
    """The metrics of an exported encoder, by another way through tokens and batches."""
    encoder = TextEncoder(str(model))
    (collection,) = benchmark.collections
    settings = encoder.settings
    vectors = Embeddings(
        {code: encoder.encode(part.texts, settings.query_prefix) for code, part in collection.queries.items()},
        {code: encoder.encode(part.texts, settings.passage_prefix) for code, part in collection.candidates.items()},
    )
    return evaluate_embeddings(benchmark, {collection.name: vectors}).metrics()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("workers", "zero_stage"), [(1, 0), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_the_loop_measures_what_an_evaluation_of_the_export_does(
    workers: int, zero_stage: int, toy_config: Config, toy_corpus: str, toy_model: Path, tmp_path: Path
) -> None:
    """Every validation has its retrieval metrics in metrics.jsonl; the exported step's are those of its encoder."""
    config = toy_config.replaced(
        {
            "run.name": "retrieval",
            "run.out": str(tmp_path),
            "model.backbone": str(toy_model),
            "cluster.workers": workers,
            "cluster.zero_stage": zero_stage,
            "train.chunk_tokens": 64,
        }
    )
    benchmark = held_out_benchmark(config, toy_corpus, 37)
    run_dir = tmp_path / "retrieval"
    claim_folder(run_dir, config, toy_corpus)
    result = fit(config, run_dir, toy_corpus, retrieval=retrieval(benchmark))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/multilingual/mAP" in row] == [2, 5]
    metrics = evaluated(benchmark, result.model_dir)
    for name in defined_metrics(benchmark):
        section, _, measure = name.partition("/")
        assert result.metrics[f"validation/{name}"] == pytest.approx(metrics[section][measure], abs=1e-3), name
    low, high = metrics["multilingual"]["intervals"]["mAP"]
    assert result.metrics["validation/multilingual/mAP/low"] == pytest.approx(low, abs=1e-3)
    assert result.metrics["validation/multilingual/mAP/high"] == pytest.approx(high, abs=1e-3)


def test_held_out_questions_are_those_of_held_out_documents(toy_config: Config, toy_corpus: str) -> None:
    """Every question is of a held-out document and finds its own passage in every language."""
    benchmark = held_out_benchmark(toy_config, toy_corpus, 1000)
    (collection,) = benchmark.collections
    (dataset,) = open_corpus(Folder(toy_corpus))
    table = dataset.read_part("en", 0)
    held = held_out_groups(60, 0.2, 13)
    group_of = np.concatenate(dataset.map_groups(lambda rows: rows.copy()))
    expected = {f"toy/{table['pair_id'][row]}" for row in range(600) if held[group_of[row]]}
    assert len(expected) == 120
    assert {code: set(texts.ids) for code, texts in collection.queries.items()} == dict.fromkeys(
        ("de", "en", "zh"), expected
    )
    ids = collection.queries["zh"].ids
    qrels = collection.qrels["zh"]
    for row, question in enumerate(ids):
        entries = slice(qrels.offsets[row], qrels.offsets[row + 1])
        found = [
            collection.candidates[("de", "en", "zh")[code]].ids[place]
            for code, place in zip(qrels.language[entries], qrels.candidate[entries], strict=True)
        ]
        assert found == [question.replace("toy/", "toy/passage-")] * 3
    assert held_out_benchmark(toy_config, toy_corpus, 30).query_count == 90


def test_missing_texts_and_shared_passages(toy_config: Config, tmp_path: Path) -> None:
    """A passage of many questions is one candidate; a question without passage in the languages is left out."""
    pairs = [
        ParallelPair(
            pair_id=str(i),
            passage_id=f"p{i // 3}",
            group=f"d{i // 6}",
            query={"en": f"q{i}", "de": f"f{i}"},
            passage={"en" if i % 6 < 3 else "fr": f"passage {i // 3}"},
        )
        for i in range(60)
    ]
    write_pairs(Folder(str(tmp_path)), "some", pairs, ["de", "en", "fr"], {"source": "tests"}, rows_per_group=8)
    config = toy_config.replaced(
        {"data.root": str(tmp_path), "data.hold_out.fraction": 0.5, "data.languages": ["de", "en"]}
    )
    benchmark = held_out_benchmark(config, str(tmp_path), 1000)
    (collection,) = benchmark.collections
    assert {code: len(texts) for code, texts in collection.candidates.items()} == {"en": 5}
    assert {code: len(texts) for code, texts in collection.queries.items()} == {"de": 15, "en": 15}
    assert benchmark.left_out == {"de": 15, "en": 15}
    assert not collection.merged_pool
    assert {name.partition("/")[0] for name in defined_metrics(benchmark)} == {"monolingual", "cross_lingual"}


def test_what_cannot_be_chosen_by_is_refused(toy_config: Config, toy_corpus: str) -> None:
    """No held-out documents, or a benchmark of several collections."""
    with pytest.raises(ConfigError, match="held-out documents to choose by"):
        held_out_benchmark(toy_config.replaced({"data.hold_out.fraction": 0.0}), toy_corpus, 10)
    (collection,) = held_out_benchmark(toy_config, toy_corpus, 10).collections
    with pytest.raises(ConfigError, match="miracl with 2 collections"):
        retrieval(Benchmark("miracl", (collection, collection)))


def test_metrics_have_names_of_their_own() -> None:
    """Settings by measures, and language bias, without double."""
    assert len(set(METRICS)) == len(METRICS)
    assert {"monolingual/mAP", "cross_lingual/R@1", "multilingual/nDCG@10", f"{BIAS}/rank_distance"} <= set(METRICS)
