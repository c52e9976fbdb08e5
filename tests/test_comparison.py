from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.bias import QUERY_BIAS
from hbt_ray.evaluation.comparison import compare, headline_rows
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.significance import holm

LANGUAGES = ("ar", "de", "en")
QUESTIONS = 40
FEW = 400  # resamples: enough for families of 18 tests, quick

Row = dict[str, Any]
Write = Callable[..., Path]


def per_query(
    languages: Sequence[str], questions: int, *, seed: int, effect: float = 0.0, pool: bool = True, cross: bool = True
) -> list[Row]:
    """Rows of a benchmark of parallel questions; systems of different seeds share the questions' difficulty."""
    difficulty = np.random.default_rng(99).normal(0.5, 0.1, questions)
    rng = np.random.default_rng(seed)
    rows = []
    for query_language in languages:
        others = languages if cross else [query_language]
        for candidate_language in [*others, *(["all"] if pool else [])]:
            for question in range(questions):
                values = difficulty[question] + effect + rng.normal(0, 0.05, len(MEASURES) + len(QUERY_BIAS))
                bias = values[len(MEASURES) :] if candidate_language == "all" else [None] * len(QUERY_BIAS)
                rows.append(
                    {
                        "query_language": query_language,
                        "query_id": f"q{question}",
                        "question": f"q{question}" if cross else f"{query_language}:q{question}",
                        "candidate_language": candidate_language,
                        "relevant": len(languages) if candidate_language == "all" else 1,
                        **dict(zip(MEASURES, values[: len(MEASURES)], strict=True)),
                        **dict(zip(QUERY_BIAS, bias, strict=True)),
                    }
                )
    return rows


def schema() -> pa.Schema:
    texts = ["query_language", "query_id", "question", "candidate_language"]
    numbers = [*MEASURES, *QUERY_BIAS]
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("relevant", pa.int64()),
            *((name, pa.float64()) for name in numbers),
        ]
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a results folder of a name."""

    def folder(
        name: str,
        rows: list[Row],
        languages: Sequence[str] = LANGUAGES,
        benchmark: str = "xquad-r",
        data: str = "287202302bf5",
        depth: str = "full",
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), out / "per_query.parquet")
        signature = f"hbt_ray 0.1|{benchmark}|data:{data}|model:{name}|depth:{depth}|ties:pessimistic|n:9x9|seed:-"
        metrics = {"benchmark": benchmark, "languages": list(languages), "signature": signature}
        (out / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        return out

    return folder


@pytest.fixture
def pair(write: Write) -> tuple[Path, Path]:
    """Two systems; the second is better by 0.1."""
    return (
        write("a", per_query(LANGUAGES, QUESTIONS, seed=1)),
        write("b", per_query(LANGUAGES, QUESTIONS, seed=2, effect=0.1)),
    )


def mean(rows: list[Row], measure: str, cells: Sequence[tuple[str, str]]) -> float:
    """Macro-average over cells, from its definition."""
    return float(
        np.mean(
            [
                np.mean([r[measure] for r in rows if (r["query_language"], r["candidate_language"]) == cell])
                for cell in cells
            ]
        )
    )


def all_rows(found: object) -> Iterator[Row]:
    """Every comparison anywhere in the JSON."""
    if isinstance(found, dict) and "p_holm" in found:
        yield found
    elif isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from all_rows(value)


def test_the_result_is_json_of_the_described_shape(pair: tuple[Path, Path]) -> None:
    """Every setting, measure, cell and group has its place, and every row all its fields."""
    found = compare(pair, resamples=FEW, seen_languages=["en", "de"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["benchmark"] == "xquad-r"
    assert [system["folder"] for system in found["systems"]] == [str(folder) for folder in pair]
    assert "model:b" in found["systems"][1]["signature"]
    assert (found["baseline"], found["system"]) == (str(pair[0]), str(pair[1]))
    assert found["comparisons"] == []
    assert set(found["settings"]) == {"monolingual", "cross_lingual", "multilingual"}
    assert all(tuple(measures) == MEASURES for measures in found["settings"].values())
    assert tuple(found["language_bias"]) == QUERY_BIAS
    cells = [(cell["query_language"], cell["candidate_language"]) for cell in found["cells"]]
    assert cells == [(query, candidate) for query in LANGUAGES for candidate in (*LANGUAGES, "all")]
    assert {name: set(groups) for name, groups in found["groups"].items()} == {
        "family": {"Semitic", "Germanic"},
        "resource_level": {"high"},
        "seen": {"seen", "unseen"},
    }
    fields = {"difference", "low", "high", "p_value", "p_holm", "effect_size", "baseline", "system", "clusters"}
    assert all(set(row) == fields for row in all_rows(found))
    assert all(row["clusters"] == QUESTIONS for row in all_rows(found))
    assert found["method"]["clusters"] == QUESTIONS
    assert found["method"]["resamples"] == FEW
    assert found["method"]["seen_languages"] == ["de", "en"]
    assert "warning" not in found["method"]


def test_values_are_those_of_the_rows(pair: tuple[Path, Path]) -> None:
    """Baseline, system and difference are macro-averages of per_query.parquet; B is better, so positive."""
    found = compare(pair, resamples=FEW, seen_languages=["en", "de"])
    a, b = (pq.read_table(folder / "per_query.parquet").to_pylist() for folder in pair)
    cross = [(query, candidate) for query in LANGUAGES for candidate in LANGUAGES if query != candidate]
    pool = [(query, "all") for query in LANGUAGES]
    groups = found["groups"]
    for row, measure, cells in [
        (found["settings"]["monolingual"]["R@10"], "R@10", [(code, code) for code in LANGUAGES]),
        (found["settings"]["cross_lingual"]["mAP"], "mAP", cross),
        (found["settings"]["multilingual"]["nDCG@10"], "nDCG@10", pool),
        (found["language_bias"]["rank_distance"], "rank_distance", pool),
        (found["cells"][6]["R@1"], "R@1", [("de", "en")]),
        (groups["family"]["Germanic"]["cross_lingual"], "mAP", [("de", "en"), ("en", "de")]),
        (groups["family"]["Germanic"]["multilingual"], "mAP", [("de", "all"), ("en", "all")]),
        (groups["seen"]["unseen"]["monolingual"], "mAP", [("ar", "ar")]),
    ]:
        expected = mean(a, measure, cells), mean(b, measure, cells)
        assert (row["baseline"], row["system"]) == pytest.approx(expected)
        assert row["difference"] == pytest.approx(expected[1] - expected[0])
        assert row["low"] < row["difference"] < row["high"]
        assert row["difference"] > 0
    assert groups["family"]["Semitic"]["cross_lingual"] is None


def test_exchanged_systems_give_the_opposite(pair: tuple[Path, Path]) -> None:
    """Comparing B with A turns the sign of differences and effects and leaves every p-value."""
    forward, backward = (list(all_rows(compare(order, resamples=FEW))) for order in (pair, pair[::-1]))
    assert len(forward) == len(backward) > 100
    for one, other in zip(forward, backward, strict=True):
        assert one["p_value"] == other["p_value"]
        assert one["difference"] == -other["difference"]
        assert one["effect_size"] == pytest.approx(-other["effect_size"])


def test_the_order_of_rows_does_not_matter(pair: tuple[Path, Path], write: Write) -> None:
    """Rows are matched by query and cell: the second system's file in reverse gives the same numbers."""
    rows = pq.read_table(pair[1] / "per_query.parquet").to_pylist()
    backwards = write("backwards", rows[::-1])
    first, second = (compare([pair[0], other], resamples=FEW) for other in (pair[1], backwards))
    assert list(all_rows(first)) == list(all_rows(second))


def test_several_systems_share_the_families_of_holm(pair: tuple[Path, Path], write: Write) -> None:
    """Each further system has the same objects; the correction spans all of them, within settings, cells, groups."""
    third = write("c", per_query(LANGUAGES, QUESTIONS, seed=3, effect=0.015))
    found = compare([*pair, third], resamples=FEW, seen_languages=["en"])
    systems = [found, *found["comparisons"]]
    assert [system["system"] for system in systems] == [str(pair[1]), str(third)]
    alone = compare([pair[0], third], resamples=FEW, seen_languages=["en"])
    assert [row["p_value"] for row in all_rows(systems[1])] == [row["p_value"] for row in all_rows(alone)]
    families = [
        list(all_rows([system["settings"] for system in systems])),
        list(all_rows([system["language_bias"] for system in systems])),
        *([cell[name] for system in systems for cell in system["cells"]] for name in MEASURES),
        *(
            [row for system in systems for group in system["groups"][grouping].values() if (row := group[setting])]
            for grouping in ("family", "resource_level", "seen")
            for setting in found["settings"]
        ),
    ]
    for family in families:
        assert [row["p_holm"] for row in family] == holm([row["p_value"] for row in family])
    assert sum(map(len, families)) == len(list(all_rows(found)))
    assert found["method"]["families"]["settings"] == 2 * 3 * len(MEASURES)
    assert found["method"]["families"]["cells mAP"] == 2 * 12


def test_equal_systems_do_not_differ(write: Write) -> None:
    """Copies of one system: every difference 0, every p 1."""
    rows = per_query(LANGUAGES, QUESTIONS, seed=1)
    found = compare([write("a", rows), write("b", rows)], resamples=FEW)
    assert {(row["difference"], row["p_value"], row["p_holm"]) for row in all_rows(found)} == {(0.0, 1.0, 1.0)}


def test_settings_without_cells_are_null(write: Write) -> None:
    """Monolingual collections without a pool (MIRACL): no cross-lingual or multilingual setting and no bias.

    Their queries share no question, so every query is a cluster.
    """
    folders = [
        write(name, per_query(LANGUAGES, 12, seed=seed, pool=False, cross=False)) for seed, name in enumerate("ab")
    ]
    found = compare(folders, resamples=FEW)
    assert found["settings"]["cross_lingual"] is None
    assert found["settings"]["multilingual"] is None
    assert found["settings"]["monolingual"]["mAP"]["clusters"] == 36
    assert found["language_bias"] == dict.fromkeys(QUERY_BIAS)
    assert found["groups"]["seen"] == {}
    assert [cell["mAP"]["clusters"] for cell in found["cells"]] == [12, 12, 12]
    assert "12 clusters" in found["method"]["warning"]


def test_undefined_values_are_left_out_of_both(write: Write) -> None:
    """A null in either system leaves the query out of that measure: null in the one, NaN in the other."""
    a, b = (per_query(LANGUAGES, QUESTIONS, seed=seed) for seed in (1, 2))
    for rows, question, value in ((a, "q0", None), (b, "q1", float("nan"))):
        for row in rows:
            if row["question"] == question:
                row["lpr"] = value
    found = compare([write("a", a), write("b", b)], resamples=FEW)
    assert found["language_bias"]["lpr"]["clusters"] == QUESTIONS - 2
    assert found["language_bias"]["rank_distance"]["clusters"] == QUESTIONS
    both = [row for row in b if row["question"] not in ("q0", "q1")]
    pool = [(code, "all") for code in LANGUAGES]
    assert found["language_bias"]["lpr"]["system"] == pytest.approx(mean(both, "lpr", pool))


def test_a_language_that_no_table_lists_is_unlisted(write: Write) -> None:
    """Bitext has languages that CLDR does not name; they are compared all the same."""
    languages = ("kzj", "en")
    folders = [write(name, per_query(languages, 12, seed=seed), languages) for seed, name in enumerate("ab")]
    found = compare(folders, resamples=FEW)
    assert set(found["groups"]["family"]) == {"unlisted", "Germanic"}
    assert found["groups"]["resource_level"]["unlisted"]["monolingual"]["difference"] == pytest.approx(
        found["cells"][0]["mAP"]["difference"]
    )


def test_the_seed_decides(pair: tuple[Path, Path]) -> None:
    """The same seed gives the same JSON; another one other intervals of the same differences."""
    first, again, other = (compare(pair, resamples=FEW, seed=seed) for seed in (0, 0, 1))
    assert first == again
    row, another = (found["settings"]["multilingual"]["mAP"] for found in (first, other))
    assert row["difference"] == another["difference"]
    assert row["low"] != another["low"]


def test_too_few_resamples_for_a_family_are_said(pair: tuple[Path, Path]) -> None:
    """18 tests of the settings with 100 resamples: not even the smallest p, 1 / 101, survives Holm at 5 %."""
    found = compare(pair, resamples=100)
    assert min(row["p_holm"] for row in all_rows(found["settings"])) == pytest.approx(18 / 101)
    assert "100 resamples" in found["method"]["warning"]
    assert "warning" not in compare(pair, resamples=FEW)["method"]


def test_headline_rows_are_the_lines_of_a_table(pair: tuple[Path, Path]) -> None:
    """One line per system, setting and measure, then language bias."""
    found = compare(pair, resamples=FEW)
    rows = headline_rows(found)
    assert len(rows) == 3 * len(MEASURES) + len(QUERY_BIAS)
    assert rows[0][:3] == (str(pair[1]), "monolingual", "mAP")
    assert rows[-1].row == found["language_bias"][QUERY_BIAS[-1]]


def without(column: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([column])


def changed(column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """The same table with another value in the row of index 90: query q10 of ar, against en."""
    return lambda table: pa.Table.from_pylist(
        [row | {column: value} if at == 90 else row for at, row in enumerate(table.to_pylist())], schema=table.schema
    )


@pytest.mark.parametrize(
    ("change", "received"),
    [
        ({"benchmark": "mlqa-r"}, ["xquad-r", "mlqa-r"]),
        ({"languages": ["ar", "de", "en", "th"]}, ["ar, de, en in the first", "th"]),
        ({"data": "000000000000"}, ["data 287202302bf5", "000000000000"]),
        ({"depth": "1000"}, ["depth full", "1000"]),
    ],
)
def test_other_data_is_refused(pair: tuple[Path, Path], write: Write, change: Row, received: list[str]) -> None:
    """Another benchmark, other languages, data or depth: the error names both folders and both values."""
    other = write("other", per_query(LANGUAGES, QUESTIONS, seed=2), **change)
    with pytest.raises(BenchmarkError) as error:
        compare([pair[0], other])
    for text in (str(pair[0]), str(other), *received):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda table: table.slice(40), ["cells", "ar→ar in the first, none in the second"]),
        (lambda table: table.slice(1), ["480 rows", "479 rows, 1 not found"]),
        (changed("query_id", "new"), ["480 rows, 1 not found"]),
        (changed("question", "q7"), ["'question' of query 'q10'", "q10 in the first, q7 in the second"]),
        (changed("relevant", 2), ["'relevant' of query 'q10'", "1 in the first, 2 in the second"]),
    ],
)
def test_other_queries_are_refused(
    pair: tuple[Path, Path], change: Callable[[pa.Table], pa.Table], received: list[str]
) -> None:
    """The same signature over other rows: the error says which differ, in both folders."""
    path = pair[1] / "per_query.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(BenchmarkError) as error:
        compare(pair)
    for text in (*map(str, pair), *received):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (without("question"), "no column question"),
        (lambda table: pa.concat_tables([table, table.slice(0, 3)]), "3 repeated row(s)"),
        (lambda table: table.slice(0, 0), "no row"),
        (changed("query_language", "xx"), "query_language 'xx'"),
    ],
)
def test_damaged_rows_are_refused(
    pair: tuple[Path, Path], change: Callable[[pa.Table], pa.Table], received: str
) -> None:
    """Columns of an older version, repeated or no rows, a language that the benchmark has not."""
    path = pair[0] / "per_query.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(BenchmarkError) as error:
        compare(pair)
    assert received in str(error.value)
    assert str(pair[0]) in str(error.value)


@pytest.mark.parametrize("name", ["metrics.json", "per_query.parquet"])
def test_a_folder_without_results_is_refused(pair: tuple[Path, Path], name: str) -> None:
    """A missing file and a file of something else: the error names the file."""
    path = pair[1] / name
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=name):
        compare(pair)
    path.unlink()
    with pytest.raises(BenchmarkError, match="no such file"):
        compare(pair)


def test_metrics_of_something_else_are_refused(pair: tuple[Path, Path]) -> None:
    """A metrics.json that another program wrote."""
    (pair[1] / "metrics.json").write_text('{"loss": 1}', encoding="utf-8")
    with pytest.raises(BenchmarkError, match="signature"):
        compare(pair)


def test_arguments_are_checked(pair: tuple[Path, Path]) -> None:
    """Two different folders at least, known languages, resamples for a 5 % test."""
    with pytest.raises(ConfigError, match="two or more"):
        compare(pair[:1])
    with pytest.raises(ConfigError, match="none"):
        compare([])
    with pytest.raises(ConfigError, match="Name every folder once"):
        compare([*pair, pair[0].parent / "b" / ".." / "a"])
    with pytest.raises(ConfigError, match="resamples"):
        compare(pair, resamples=99)
    with pytest.raises(ConfigError, match="qq"):
        compare(pair, resamples=FEW, seen_languages=["qq"])
