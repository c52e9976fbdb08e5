"""The evaluation against independent truths: a sort-based reference, trec_eval, a hand-worked example."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from numpy.typing import NDArray
from parallel import Parallel, as_parallel, integer_embeddings, normal_embeddings, synthetic

from hbt_ray import __version__
from hbt_ray.errors import ConfigError, EmbeddingError, ResourceError
from hbt_ray.evaluation.benchmarks import Collection, load_benchmark
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.embeddings import Embeddings, check_embeddings, load_embeddings, save_embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.evaluation.matrix import Evaluation
from hbt_ray.evaluation.metrics import MEASURES as ALL_MEASURES
from hbt_ray.evaluation.rankers import Ranker, rank_here, ray_ranker
from hbt_ray.evaluation.results import write_results

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"
MEASURES = ("mAP", "R@1", "R@10")


class Row(NamedTuple):
    """Per-query result of the reference."""

    relevant: int
    values: tuple[float, float, float]
    rank_distance: float | None


def evaluated(parallel: Parallel, embeddings: Embeddings, rank: Ranker = rank_here, **facts: Any) -> Evaluation:
    return evaluate_embeddings(parallel.benchmark, {parallel.name: embeddings}, rank, **facts)


def collection_of(parallel: Parallel) -> Collection:
    return parallel.benchmark.collections[0]


def reference(benchmark: Parallel, embeddings: Embeddings, language: str, query_id: str) -> Iterator[tuple[str, Row]]:
    """Candidate language and result of every cell of one query, by sorting all its scores."""
    query = embeddings.queries[language][benchmark.query_ids[language].index(query_id)].astype(np.float64)
    scores, gold = {}, {}
    for code in benchmark.languages:
        scores[code] = embeddings.candidates[code].astype(np.float64) @ query
        gold[code] = np.zeros(len(scores[code]), dtype=bool)
        if query_id in benchmark.relevant[code]:
            gold[code][benchmark.relevant[code][query_id]] = True
            yield code, from_order(scores[code], gold[code], pool=False)
    yield "all", from_order(np.concatenate(list(scores.values())), np.concatenate(list(gold.values())), pool=True)


def from_order(scores: NDArray[np.float64], gold: NDArray[np.bool_], pool: bool) -> Row:
    """Measures from an explicit order: score descending, and among equal scores relevant candidates last."""
    order = np.lexsort((gold, -scores))
    ranks = [position for position, index in enumerate(order, start=1) if gold[index]]
    precisions = [found / rank for found, rank in enumerate(ranks, start=1)]
    recalls = [sum(rank <= depth for rank in ranks) / len(ranks) for depth in (1, 10)]
    distance = float(ranks[-1] - ranks[0]) if pool and len(ranks) > 1 else None
    return Row(len(ranks), (math.fsum(precisions) / len(ranks), recalls[0], recalls[1]), distance)


def reference_rows(benchmark: Parallel, embeddings: Embeddings, share: float = 1.0) -> dict[tuple[str, str, str], Row]:
    """The reference for a seeded random share of the queries of each language."""
    rng = np.random.default_rng(11)
    return {
        (language, query_id, candidate_language): row
        for language in benchmark.languages
        for query_id in benchmark.query_ids[language]
        if rng.random() < share
        for candidate_language, row in reference(benchmark, embeddings, language, query_id)
    }


def evaluated_rows(evaluation: Evaluation) -> dict[tuple[str, str, str], Row]:
    """The per-query table in the shape of the reference."""
    return {
        (row["query_language"], row["query_id"], row["candidate_language"]): Row(
            row["relevant"], tuple(row[measure] for measure in MEASURES), row["rank_distance"]
        )
        for row in evaluation.per_query.to_pylist()
    }


def assert_equal_rows(actual: dict[tuple[str, str, str], Row], expected: dict[tuple[str, str, str], Row]) -> None:
    for key, row in expected.items():
        assert actual[key].relevant == row.relevant, key
        assert actual[key].rank_distance == row.rank_distance, key
        assert max(abs(x - y) for x, y in zip(actual[key].values, row.values, strict=True)) <= 1e-9, key


def aggregate(benchmark: Parallel, rows: dict[tuple[str, str, str], Row]) -> dict[str, Any]:
    """Settings and rank distance of the reference: mean over queries, then over cells, in plain loops."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for (query_language, _, candidate_language), row in rows.items():
        cells.setdefault((query_language, candidate_language), []).append(row)
    settings: dict[str, list[list[Row]]] = {"monolingual": [], "cross_lingual": [], "multilingual": []}
    for (query_language, candidate_language), members in cells.items():
        name = (
            "multilingual"
            if candidate_language == "all"
            else "monolingual"
            if query_language == candidate_language
            else "cross_lingual"
        )
        settings[name].append(members)
    result: dict[str, Any] = {}
    for name, groups in settings.items():
        means = [[sum(row.values[m] for row in group) / len(group) for m in range(3)] for group in groups]
        result[name] = {measure: sum(mean[m] for mean in means) / len(means) for m, measure in enumerate(MEASURES)} | {
            "cells": len(groups),
            "queries": sum(len(group) for group in groups),
        }
    distances = [
        [row.rank_distance for row in cells[code, "all"] if row.rank_distance is not None]
        for code in benchmark.languages
    ]
    means_by_language = [sum(values) / len(values) for values in distances if values]
    result["rank_distance"] = sum(means_by_language) / len(means_by_language)
    return result


def assert_equal_aggregates(evaluation: Evaluation, expected: dict[str, Any]) -> None:
    metrics = evaluation.metrics()
    for setting in ("monolingual", "cross_lingual", "multilingual"):
        found = {name: metrics[setting][name] for name in expected[setting]}
        assert found == pytest.approx(expected[setting], abs=1e-9, rel=0)
    assert metrics["language_bias"]["rank_distance"] == pytest.approx(expected["rank_distance"], rel=1e-12)


def published(name: str) -> Parallel:
    if not (DATASETS / name).is_dir():
        pytest.skip(f"{name} is not in ../shared/datasets")
    return as_parallel(load_benchmark(name, DATASETS))


@pytest.mark.parametrize(("name", "queries"), [("xquad-r", 400), ("mlqa-r", 400)])
@pytest.mark.parametrize("embed", [normal_embeddings, integer_embeddings], ids=["untied", "tied"])
def test_real_benchmark_equals_sorting(name: str, queries: int, embed: Any) -> None:
    """On the real pools every cell of randomly drawn queries equals the reference to 1e-9, with and without ties."""
    benchmark = published(name)
    embeddings = embed(benchmark, 16, 5)
    expected = reference_rows(benchmark, embeddings, queries / benchmark.benchmark.query_count)
    actual = evaluated_rows(evaluated(benchmark, embeddings))
    assert {key[0] for key in expected} == set(benchmark.languages)
    assert_equal_rows(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xquad-r", "mlqa-r"])
def test_whole_real_benchmark_equals_sorting(name: str) -> None:
    """On all queries of a real benchmark every row and every aggregate equals the reference to 1e-9."""
    benchmark = published(name)
    embeddings = normal_embeddings(benchmark, 16, 6)
    evaluation = evaluated(benchmark, embeddings)
    expected = reference_rows(benchmark, embeddings)
    actual = evaluated_rows(evaluation)
    assert actual.keys() == expected.keys()
    assert_equal_rows(actual, expected)
    assert_equal_aggregates(evaluation, aggregate(benchmark, expected))


@pytest.mark.parametrize("seed", range(5))
def test_heavy_ties_equal_sorting(seed: int) -> None:
    """With a handful of distinct scores and missing questions all rows and aggregates equal the reference."""
    benchmark = synthetic({"en": 30, "de": 17, "th": 5, "zh": 1}, questions=40, missing=0.5, seed=seed)
    embeddings = integer_embeddings(benchmark, 2, seed)
    evaluation = evaluated(benchmark, embeddings)
    expected = reference_rows(benchmark, embeddings)
    actual = evaluated_rows(evaluation)
    assert actual.keys() == expected.keys()
    assert_equal_rows(actual, expected)
    assert_equal_aggregates(evaluation, aggregate(benchmark, expected))


def test_trec_eval_equality() -> None:
    """Without ties mAP, R@1 and R@10 of every query in every cell equal trec_eval's to 1e-9."""
    benchmark = synthetic({"en": 60, "de": 45, "th": 30}, questions=50, missing=0.3, seed=2)
    embeddings = normal_embeddings(benchmark, 16, 3)
    actual = evaluated_rows(evaluated(benchmark, embeddings))
    compared = 0
    for query_language in benchmark.languages:
        for name, parts in [(code, [code]) for code in benchmark.languages] + [("all", benchmark.languages)]:
            qrels, run = trec(benchmark, embeddings, query_language, parts)
            results = pytrec_eval.RelevanceEvaluator(qrels, {"map", "recall.1,10"}).evaluate(run)
            for query_id, result in results.items():
                values = actual[query_language, query_id, name].values
                assert values == pytest.approx(
                    (result["map"], result["recall_1"], result["recall_10"]), abs=1e-9, rel=0
                )
                compared += 1
    assert compared == len(actual)


def trec(
    benchmark: Parallel, embeddings: Embeddings, query_language: str, parts: Any
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Qrels and run of one cell, for the queries with a relevant candidate in it."""
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for row, query_id in enumerate(benchmark.query_ids[query_language]):
        relevant = {
            f"{code}{benchmark.relevant[code][query_id]}": 1 for code in parts if query_id in benchmark.relevant[code]
        }
        if relevant:
            qrels[query_id] = relevant
            query = embeddings.queries[query_language][row].astype(np.float64)
            run[query_id] = {
                f"{code}{index}": float(score)
                for code in parts
                for index, score in enumerate(embeddings.candidates[code].astype(np.float64) @ query)
            }
            # trec_eval compares scores in single precision.
            assert len(set(np.float32(list(run[query_id].values())))) == len(run[query_id])
    return qrels, run


def hand_worked() -> tuple[Parallel, Embeddings]:
    """Two languages, one-dimensional vectors; q2 exists in English only.

    Scores of the candidates, relevant of q1 in brackets, of q2 in braces: en [3] {2} 3 1, de 4 [2].
    """
    benchmark = Parallel(
        name="hand",
        query_ids={"en": ("q1", "q2"), "de": ("q1",)},
        candidates={"en": ("a", "b", "c", "d"), "de": ("e", "f")},
        relevant={"en": {"q1": 0, "q2": 1}, "de": {"q1": 1}},
    )
    embeddings = Embeddings(
        queries={"en": np.array([[1.0], [1.0]]), "de": np.array([[-1.0]])},
        candidates={"en": np.array([[3.0], [2.0], [3.0], [1.0]]), "de": np.array([[4.0], [2.0]])},
    )
    return benchmark, embeddings


def test_hand_worked_metrics() -> None:
    """A worked example gives the literal numbers of every setting, rank distance included.

    English q1: 3 ties, so rank 2 in en; rank 2 in de; merged 4 3 [3] 2 [2] 1 with q2's candidate before the
    relevant 2, so ranks 3 and 5. English q2: rank 3 in en; merged 4 3 3 2 {2}: rank 5. German q1 reverses the
    order: rank 4 in en, rank 1 in de; merged 1 2 [2] 3 [3] 4, so ranks 3 and 5.
    """
    metrics = evaluated(*hand_worked(), model="m", seed=7).metrics()
    data_hash = hand_worked()[0].benchmark.data_hash[:12]
    log2 = math.log2
    assert {name: metrics["monolingual"][name] for name in (*ALL_MEASURES, "cells", "queries")} == pytest.approx(
        {
            "mAP": ((1 / 2 + 1 / 3) / 2 + 1) / 2,
            "R@1": 0.5,
            "R@10": 1.0,
            "R@100": 1.0,
            "nDCG@10": ((1 / log2(3) + 1 / 2) / 2 + 1) / 2,
            "MRR@10": ((1 / 2 + 1 / 3) / 2 + 1) / 2,
            "cells": 2,
            "queries": 3,
        },
        abs=1e-15,
    )
    assert metrics["cross_lingual"]["mAP"] == pytest.approx((1 / 2 + 1 / 4) / 2, abs=1e-15)
    assert metrics["cross_lingual"]["R@1"] == 0.0
    merged = (((1 / 3 + 2 / 5) / 2 + 1 / 5) / 2 + (1 / 3 + 2 / 5) / 2) / 2
    assert metrics["multilingual"]["mAP"] == pytest.approx(merged, abs=1e-15)
    assert metrics["multilingual"]["queries"] == 3
    bias = metrics["language_bias"]
    assert bias["rank_distance"] == 2.0
    assert bias["by_query_language"]["rank_distance"] == {"en": 2.0, "de": 2.0}
    assert bias["rank_distance_normalised"] == pytest.approx(2 / 5)
    assert bias["rank_distance_log2"] == pytest.approx(log2(5 / 3))
    assert bias["max@R"] == 5.0
    assert bias["lpr"] == 1.0  # English q1 meets English first, German q1 German
    assert bias["complete@20"] == 1.0
    assert bias["queries"] == 2
    assert bias["kendall_w"] is None
    assert "three candidate languages" in bias["undefined"]["kendall_w"]
    assert bias["peer"] is None
    assert bias["mrc"] == pytest.approx(-1.0, abs=1e-6)  # German q1 reverses the order that English q1 gives
    assert bias["language_share@10"]["en"] == pytest.approx({"en": 4 / 6, "de": 2 / 6})
    assert metrics["pool"] == {"en": 4, "de": 2}
    assert metrics["queries_without_relevant"] == {}
    assert metrics["signature"] == (
        f"hbt_ray {__version__}|hand|data:{data_hash}|model:m|depth:full|ties:pessimistic|n:3x6|seed:7"
    )


def test_constant_scorer_gets_the_worst_result() -> None:
    """A model that gives every text the same vector is ranked last everywhere and earns no credit from ties."""
    benchmark = synthetic({"en": 20, "de": 30}, questions=6, missing=0.0, seed=1)
    embeddings = Embeddings(
        queries={code: np.ones((6, 3), dtype=np.float32) for code in benchmark.languages},
        candidates={"en": np.ones((20, 3), np.float32), "de": np.ones((30, 3), np.float32)},
    )
    metrics = evaluated(benchmark, embeddings).metrics()
    assert metrics["monolingual"]["mAP"] == pytest.approx((1 / 20 + 1 / 30) / 2, rel=1e-12)
    assert metrics["multilingual"]["mAP"] == pytest.approx((1 / 49 + 2 / 50) / 2, rel=1e-12)
    assert [metrics[s]["R@10"] for s in ("monolingual", "cross_lingual", "multilingual")] == [0.0, 0.0, 0.0]


def test_perfect_scorer_reaches_the_ceiling() -> None:
    """A perfect model gets mAP 1 everywhere, and its multilingual R@1 is one over the number of languages."""
    benchmark = synthetic({"en": 8, "de": 8}, questions=8, missing=0.0, seed=1)
    identity = np.eye(8, dtype=np.float32)
    one_to_one = {f"q{i}": i for i in range(8)}
    benchmark = replace(benchmark, relevant={"en": one_to_one, "de": one_to_one})
    both = {"en": identity, "de": identity}
    metrics = evaluated(benchmark, Embeddings(both, both)).metrics()
    assert [metrics[s]["mAP"] for s in ("monolingual", "cross_lingual", "multilingual")] == [1.0, 1.0, 1.0]
    assert metrics["multilingual"]["R@1"] == 0.5
    assert metrics["language_bias"]["rank_distance"] == 1.0


def test_one_language_has_no_cross_lingual_result() -> None:
    """With one language cross-lingual values and rank distance are None and the other settings stand."""
    benchmark = synthetic({"en": 9}, questions=4, missing=0.0, seed=1)
    metrics = evaluated(benchmark, integer_embeddings(benchmark, 3, 1)).metrics()
    nothing = dict.fromkeys(ALL_MEASURES)
    assert metrics["cross_lingual"] == {**nothing, "cells": 0, "queries": 0, "intervals": {}}
    bias = metrics["language_bias"]
    assert [bias[name] for name in QUERY_BIAS] == [None] * len(QUERY_BIAS)
    assert bias["undefined"].keys() >= set(QUERY_BIAS)
    assert bias["by_query_language"]["rank_distance"] == {"en": None}
    assert metrics["monolingual"]["mAP"] == metrics["multilingual"]["mAP"] is not None


def test_cells_without_queries_are_left_out() -> None:
    """Two languages that share no question have no cell."""
    benchmark, embeddings = hand_worked()
    benchmark = replace(
        benchmark,
        query_ids={"en": ("q1", "q2"), "de": ("q3",)},
        relevant={"en": {"q1": 0, "q2": 1}, "de": {"q3": 1}},
    )
    evaluation = evaluated(benchmark, embeddings)
    assert [cell[:3] for cell in evaluation.cells] == [
        ("en", "en", 2),
        ("en", "all", 2),
        ("de", "de", 1),
        ("de", "all", 1),
    ]
    assert evaluation.metrics()["cross_lingual"]["cells"] == 0


def test_written_results(tmp_path: Path) -> None:
    """The three files hold the evaluation: metrics as JSON, one CSV line per cell, one Parquet row per result."""
    evaluation = evaluated(*hand_worked())
    out = tmp_path / "new" / "folder"
    write_results(evaluation, evaluation.metrics(), out)
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == evaluation.metrics()
    assert json.loads((out / "examples.json").read_text(encoding="utf-8")) == evaluation.examples
    with (out / "cells.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["query_language", "candidate_language", "queries", *ALL_MEASURES]
    assert lines[1][:6] == ["en", "en", "2", str((1 / 2 + 1 / 3) / 2), "0.0", "1.0"]
    assert [line[:2] for line in lines[1:]] == [
        [query_language, candidate_language]
        for query_language in ("en", "de")
        for candidate_language in ("en", "de", "all")
    ]
    assert pq.read_table(out / "per_query.parquet").equals(evaluation.per_query)


def test_per_query_rows_average_to_the_cells() -> None:
    """A cell's measures are the means of its per-query rows, so significance tests see what reports show."""
    benchmark = synthetic({"en": 30, "de": 17, "th": 5}, questions=40, missing=0.4, seed=8)
    evaluation = evaluated(benchmark, integer_embeddings(benchmark, 4, 8))
    rows = evaluated_rows(evaluation)
    for cell in evaluation.cells:
        values = [row.values for key, row in rows.items() if (key[0], key[2]) == cell[:2]]
        assert len(values) == cell.queries
        means = dict(zip(MEASURES, np.mean(values, axis=0), strict=True))
        assert {name: cell.measures[name] for name in MEASURES} == pytest.approx(means, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_embeddings_at_rest(tmp_path: Path, dtype: Any) -> None:
    """Saved embeddings load with the same bytes and dtype, and give the same evaluation."""
    benchmark, embeddings = hand_worked()
    embeddings = Embeddings(
        *({code: v.astype(dtype) for code, v in part.items()} for part in vars(embeddings).values())
    )
    save_embeddings(tmp_path / "embeddings", embeddings)
    loaded = load_embeddings(tmp_path / "embeddings", collection_of(benchmark))
    for code in benchmark.languages:
        assert loaded.queries[code].dtype == dtype
        np.testing.assert_array_equal(loaded.queries[code], embeddings.queries[code])
        np.testing.assert_array_equal(loaded.candidates[code], embeddings.candidates[code])
    assert evaluated(benchmark, loaded).metrics() == evaluated(benchmark, embeddings).metrics()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 1)), r"candidates\.de: got shape \(3, 1\); expected shape \(2, 1\)"),
        (np.ones((2, 2)), r"candidates\.de: got shape \(2, 2\); expected shape \(2, 1\)"),
        (np.ones(2), r"candidates\.de: got shape \(2,\)"),
        (np.ones((2, 1), dtype=np.float16), r"candidates\.de: got float16; expected float32 or float64"),
        (np.ones((2, 1), dtype=np.int64), r"candidates\.de: got int64"),
        (np.array([[1.0], [np.nan]]), r"candidates\.de: row 1: got the value nan"),
        (np.array([[np.inf], [np.nan]], dtype=np.float32), r"candidates\.de: row 0: got the value inf"),
        (np.array([[1.0], [-1e200]]), r"candidates\.de: row 1: got the value -1e\+200"),
    ],
    ids=["rows", "mixed dims", "1-D", "float16", "int64", "nan", "inf", "overflow"],
)
def test_bad_embeddings_are_refused(values: NDArray[Any], message: str) -> None:
    """Embeddings that do not fit are refused with the array, the row, what was found and what was expected."""
    benchmark, embeddings = hand_worked()
    embeddings = replace(embeddings, candidates={**embeddings.candidates, "de": values})
    with pytest.raises(EmbeddingError, match=message):
        evaluated(benchmark, embeddings)


def test_largest_finite_float32_is_accepted() -> None:
    """Every finite float32 value is fine: its products stay finite in float64."""
    benchmark, embeddings = hand_worked()
    largest = np.array([[np.finfo(np.float32).max], [1.0]], dtype=np.float32)
    check_embeddings(replace(embeddings, candidates={**embeddings.candidates, "de": largest}), collection_of(benchmark))


def test_embeddings_without_a_language_are_refused() -> None:
    """A language that the embeddings lack is named."""
    benchmark, embeddings = hand_worked()
    with pytest.raises(EmbeddingError, match=r"queries\.de: got nothing"):
        evaluated(benchmark, replace(embeddings, queries={"en": embeddings.queries["en"]}))


def test_missing_embedding_file(tmp_path: Path) -> None:
    """A missing file is named with its folder."""
    benchmark, embeddings = hand_worked()
    save_embeddings(tmp_path, embeddings)
    (tmp_path / "queries.de.npy").unlink()
    with pytest.raises(EmbeddingError, match=r"queries\.de\.npy: got no such file"):
        load_embeddings(tmp_path, collection_of(benchmark))


def test_embedding_file_with_the_wrong_shape(tmp_path: Path) -> None:
    """A file with too few rows is named with its folder and both shapes."""
    benchmark, embeddings = hand_worked()
    save_embeddings(tmp_path, replace(embeddings, queries={**embeddings.queries, "en": np.ones((1, 1))}))
    with pytest.raises(EmbeddingError, match=rf"{tmp_path}.*queries\.en.*\(1, 1\).*\(2, 1\)"):
        load_embeddings(tmp_path, collection_of(benchmark))


@pytest.mark.parametrize("content", ["pickle", "text", "empty"])
def test_file_that_is_no_array(tmp_path: Path, content: str) -> None:
    """A pickled, foreign or empty file is refused; nothing in it is executed."""
    benchmark, embeddings = hand_worked()
    save_embeddings(tmp_path, embeddings)
    path = tmp_path / "candidates.en.npy"
    if content == "pickle":
        np.save(path, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    else:
        path.write_text("not numpy" if content == "text" else "")
    with pytest.raises(EmbeddingError, match=r"candidates\.en\.npy"):
        load_embeddings(tmp_path, collection_of(benchmark))


def test_ray_must_be_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an initialised Ray the evaluation says so rather than start a cluster of its own."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ResourceError, match=r"ray\.init"):
        ray_ranker(actors=1)


@pytest.mark.ray
def test_ray_gives_identical_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors give the very same evaluation as this process, and too many actors are refused."""
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    benchmark = synthetic({"en": 700, "de": 500, "th": 300}, questions=600, missing=0.3, seed=4)
    embeddings = normal_embeddings(benchmark, 48, 4)
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        on_ray = evaluated(benchmark, embeddings, ray_ranker(2), model="m", seed=1)
        with pytest.raises(ResourceError, match="at most 2"):
            ray_ranker(actors=3)
        with pytest.raises(ConfigError, match="at least 1"):
            ray_ranker(actors=0)
    finally:
        ray.shutdown()
    here = evaluated(benchmark, embeddings, model="m", seed=1)
    assert on_ray.metrics() == here.metrics()
    assert on_ray.cells == here.cells
    assert on_ray.per_query.equals(here.per_query)
