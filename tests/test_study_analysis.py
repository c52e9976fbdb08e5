"""Tables and tests of a study against loops, enumeration and scipy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from hbt_ray.config import Config
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark, Collection, Qrels, Texts
from hbt_ray.evaluation.comparison import compare
from hbt_ray.evaluation.embeddings import Embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.evaluation.matrix import SETTINGS
from hbt_ray.evaluation.metrics import MEASURES
from hbt_ray.evaluation.results import read_cells, write_results
from hbt_ray.evaluation.significance import holm, interval
from hbt_ray.storage import Folder
from hbt_ray.study import analysis
from hbt_ray.study.analysis import analyse, arm_values, read_metrics, seed_test
from hbt_ray.study.arms import check_runs, start_weights, study_runs
from hbt_ray.study.averaging import joined_signature, write_averaged
from hbt_ray.study.run import claim_folder, figures
from hbt_ray.study.settings import load_study, slug

LANGUAGES = ("ar", "de", "en")
QUESTIONS = 24
WIDTH = 12
FEW = 1000  # resamples, enough for families of 36 tests

Evaluate = Callable[..., Path]


def sample_benchmark(languages: Sequence[str] = LANGUAGES) -> Benchmark:
    """Parallel questions, one relevant candidate in each language; the last language lacks every third question."""
    queries, qrels = {}, {}
    for code in languages:
        asked = [q for q in range(QUESTIONS) if code != languages[-1] or q % 3]
        queries[code] = Texts(tuple(f"q{q}" for q in asked), tuple(f"question {q}" for q in asked))
        count, span = len(asked), len(languages)
        qrels[code] = Qrels(
            offsets=np.arange(count + 1) * span,
            language=np.tile(np.arange(span), count),
            candidate=np.repeat(np.array(asked), span),
            grade=np.ones(count * span, dtype=np.int64),
        )
    pool = Texts(tuple(f"c{q}" for q in range(QUESTIONS)), tuple(f"text {q}" for q in range(QUESTIONS)))
    collection = Collection(
        "toy", queries, dict.fromkeys(languages, pool), qrels, merged_pool=len(languages) > 1, parallel=True
    )
    return Benchmark("toy", (collection,), ("a note",), {})


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Writes the results folder of a model whose vectors are meanings, a language's own direction and noise."""
    meaning = np.random.default_rng(7).normal(size=(QUESTIONS, WIDTH))

    def results(name: str, seed: int, noise: float, languages: Sequence[str] = LANGUAGES, bias: float = 0.5) -> Path:
        random = np.random.default_rng(seed)
        benchmark = sample_benchmark(languages)
        (collection,) = benchmark.collections
        direction = {code: bias * random.normal(size=WIDTH) for code in languages}

        def vectors(ids: Sequence[str], code: str) -> np.ndarray:
            rows = meaning[[int(name[1:]) for name in ids]] + direction[code]
            rows = rows + noise * random.normal(size=rows.shape)
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

        embeddings = Embeddings(
            {code: vectors(texts.ids, code) for code, texts in collection.queries.items()},
            {code: vectors(texts.ids, code) for code, texts in collection.candidates.items()},
        )
        found = evaluate_embeddings(benchmark, {"toy": embeddings}, model=f"{name}{seed}", seed=seed)
        out = tmp_path / "results" / f"{name}-s{seed}"
        write_results(found, {**found.metrics(), "seen_languages": ["de", "en"]}, out)
        return out

    return results


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "per_query.parquet").to_pylist())


def macro(rows: Sequence[Mapping[str, Any]], setting: str, measure: str, weight: Mapping[str, float]) -> float:
    """The macro-average of a setting from its definition, questions weighed."""
    cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        pair = row["query_language"], row["candidate_language"]
        kind = "multilingual" if pair[1] == "all" else "monolingual" if pair[0] == pair[1] else "cross_lingual"
        if kind == setting and row[measure] is not None:
            cells.setdefault(pair, []).append((weight[row["question"]], row[measure]))
    means = [
        sum(w * v for w, v in cell) / sum(w for w, _ in cell) for cell in cells.values() if sum(w for w, _ in cell)
    ]
    return sum(means) / len(means)


def everyone() -> dict[str, float]:
    return {f"q{q}": 1.0 for q in range(QUESTIONS)}


# --- values ----------------------------------------------------------------------------------------------------------


def test_values_are_the_means_of_what_the_evaluations_say(evaluate: Evaluate) -> None:
    """Every seed's number is its metrics.json's; mean and standard deviation are numpy's over them."""
    folders = [evaluate("a", seed, 0.8) for seed in (1, 2, 3)]
    values = arm_values(folders, resamples=FEW)
    metrics = [read_metrics(folder) for folder in folders]
    assert [len(values[setting]) for setting in SETTINGS] == [len(MEASURES)] * 3
    for section, measures in values.items():
        for measure, value in measures.items():
            said = [found[section][measure] for found in metrics]
            np.testing.assert_allclose(value["seeds"], said, rtol=1e-12)
            assert value["mean"] == pytest.approx(np.mean(said))
            assert value["sd"] == pytest.approx(np.std(said, ddof=1))
            assert value["low"] <= value["mean"] <= value["high"] or np.ptp(said) == 0


def test_with_one_seed_the_interval_is_that_of_the_questions(evaluate: Evaluate) -> None:
    """One seed: the ends are those of `significance.interval`, an independent implementation; no deviation."""
    folder = evaluate("a", 1, 0.8)
    values = arm_values([folder], resamples=FEW, seed=5)
    rows = rows_of(folder)
    pairs = list(dict.fromkeys((row["query_language"], row["candidate_language"]) for row in rows))
    names = sorted(everyone())
    ends = interval(
        {measure: np.array([row[measure] for row in rows], dtype=np.float64) for measure in ("mAP", "rank_distance")},
        np.array([names.index(row["question"]) for row in rows]),
        np.array([pairs.index((row["query_language"], row["candidate_language"])) for row in rows]),
        {
            "monolingual": [i for i, (q, c) in enumerate(pairs) if q == c],
            "cross_lingual": [i for i, (q, c) in enumerate(pairs) if c not in (q, "all")],
            "multilingual": [i for i, (_, c) in enumerate(pairs) if c == "all"],
        },
        resamples=20_000,
    )
    many = arm_values([folder], resamples=20_000, seed=5)
    for setting in SETTINGS:
        value = many[setting]["mAP"]
        assert (value["low"], value["high"]) == pytest.approx(ends[setting]["mAP"], abs=0.004)
        assert value["sd"] is None
        assert value["seeds"] == [value["mean"]]
    bias = many["language_bias"]["rank_distance"]
    assert (bias["low"], bias["high"]) == pytest.approx(ends["multilingual"]["rank_distance"], rel=0.02)
    assert values == arm_values([folder], resamples=FEW, seed=5)
    assert values != arm_values([folder], resamples=FEW, seed=6)


def test_the_interval_is_over_questions_and_seeds(evaluate: Evaluate) -> None:
    """Ends against a bootstrap written as loops over Python rows, with draws of its own."""
    folders = [evaluate("a", seed, noise) for seed, noise in ((1, 0.5), (2, 0.9), (3, 1.4))]
    rows = [rows_of(folder) for folder in folders]
    names = sorted(everyone())
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        weight = dict.fromkeys(names, 0.0)
        for q in random.integers(0, len(names), len(names)):
            weight[names[q]] += 1.0
        by_seed = [macro(found, "multilingual", "mAP", weight) for found in rows]
        drawn.append(np.mean([by_seed[s] for s in random.integers(0, 3, 3)]))
    value = arm_values(folders, resamples=20_000)["multilingual"]["mAP"]
    spread = value["high"] - value["low"]
    assert (value["low"], value["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06 * spread)
    one = arm_values(folders[:1], resamples=FEW)["multilingual"]["mAP"]
    assert spread > 1.5 * (one["high"] - one["low"])  # seeds that differ as these do add to it


def test_seeds_alone_give_the_enumerated_bootstrap(evaluate: Evaluate, tmp_path: Path) -> None:
    """Questions that are all alike: the ends are quantiles over the 27 draws of three seeds, each equally likely."""
    folders = []
    for seed, value in ((1, 0.2), (2, 0.5), (3, 0.9)):
        folder = evaluate("a", seed, 0.8)
        table = pq.read_table(folder / "per_query.parquet")
        place = table.schema.get_field_index("mAP")
        constant = np.full(table.num_rows, value)
        pq.write_table(table.set_column(place, "mAP", [constant]), folder / "per_query.parquet")
        folders.append(folder)
    means = sorted(np.mean(draw) for draw in product((0.2, 0.5, 0.9), repeat=3))
    found = arm_values(folders, resamples=20_000)["cross_lingual"]["mAP"]
    assert (found["low"], found["high"]) == pytest.approx((means[0], means[-1]))  # each of the ends has p = 1/27 > 2.5%
    assert found["mean"] == pytest.approx(np.mean(means))


def test_one_language_has_no_other_settings(evaluate: Evaluate) -> None:
    """Without a second language there is neither a cross-lingual cell nor a merged pool, and no bias."""
    values = arm_values([evaluate("a", seed, 0.8, ("en",)) for seed in (1, 2)], resamples=FEW)
    assert {section: bool(measures) for section, measures in values.items()} == {
        "monolingual": True,
        "cross_lingual": False,
        "multilingual": False,
        "language_bias": False,
    }


def test_sparse_tables_give_the_same(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks whose cells share few questions are kept sparse; the numbers are those of dense tables."""
    folders = [evaluate("a", seed, 0.8) for seed in (1, 2)]
    dense = arm_values(folders, resamples=FEW)
    monkeypatch.setattr(analysis, "DENSE", 2.0)
    sparse = arm_values(folders, resamples=FEW)
    for section, measures in dense.items():
        for measure, value in measures.items():
            other = sparse[section][measure]
            assert (other["mean"], other["low"], other["high"]) == pytest.approx(
                (value["mean"], value["low"], value["high"]), rel=1e-9
            )


def test_seeds_of_other_queries_are_refused(evaluate: Evaluate) -> None:
    """Rows are paired one by one, so other rows are an error that names both folders."""
    folders = [evaluate("a", 1, 0.8), evaluate("a", 2, 0.8)]
    path = folders[1] / "per_query.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(BenchmarkError, match=r"a-s1 and .*a-s2"):
        arm_values(folders)


# --- averaging -------------------------------------------------------------------------------------------------------


def test_the_average_of_seeds_is_an_evaluation(evaluate: Evaluate, tmp_path: Path) -> None:
    """Rows, cells and settings are means over seeds by query; `compare` takes the folder, and finds no difference
    from the seed when there is one.
    """
    folders = [evaluate("a", seed, 0.8) for seed in (1, 2, 3)]
    out = tmp_path / "averaged"
    write_averaged(folders, out)
    rows, seeds = rows_of(out), [rows_of(folder) for folder in folders]
    for i, row in enumerate(rows):
        for measure in ("mAP", "R@1", "rank_distance"):
            values = [found[i][measure] for found in seeds]
            assert row[measure] == (None if None in values else pytest.approx(np.mean(values)))
    metrics = read_metrics(out)
    each = [read_metrics(folder) for folder in folders]
    for section, measure in (("monolingual", "mAP"), ("multilingual", "R@10"), ("language_bias", "rank_distance")):
        assert metrics[section][measure] == pytest.approx(np.mean([found[section][measure] for found in each]))
        low, high = metrics[section]["intervals"][measure]
        assert low < metrics[section][measure] < high
    assert metrics["language_bias"]["friedman_p"] is None
    assert "friedman_p" in metrics["language_bias"]["undefined"]
    assert read_cells(out)[1]["mAP"] == pytest.approx(np.mean([read_cells(folder)[1]["mAP"] for folder in folders]))
    assert "|model:a1+a2+a3|" in metrics["signature"]
    assert metrics["signature"].endswith("seed:1+2+3")

    single = tmp_path / "single"
    write_averaged(folders[:1], single)
    assert read_metrics(single) == each[0]
    same = compare([folders[0], single], resamples=FEW)
    assert same["settings"]["multilingual"]["mAP"]["p_value"] == 1.0


def test_signatures_keep_what_they_share() -> None:
    """Equal fields stay, others hold every value once."""
    assert joined_signature(["v 1|x|model:a|seed:1", "v 1|x|model:a|seed:2"]) == "v 1|x|model:a|seed:1+2"


# --- tests against the baseline --------------------------------------------------------------------------------------


@pytest.fixture
def studied(evaluate: Evaluate, tmp_path: Path) -> dict[str, Any]:
    """A baseline, an arm that is clearly better and one that lacks a seed, analysed."""
    noise = {"base": 1.2, "good": 0.4, "short": 1.1}
    evaluated = {
        arm: {seed: evaluate(arm, seed + 10 * i, noise[arm]) for seed in (1, 2, 3)[: 2 if arm == "short" else 3]}
        for i, arm in enumerate(noise)
    }
    averaged = {arm: tmp_path / "averaged" / arm for arm in evaluated}
    for arm, folders in evaluated.items():
        write_averaged(list(folders.values()), averaged[arm])
    plain = {"untrained": {1: evaluate("untrained", 99, 9.0)}}
    options: dict[str, Any] = {"seen_languages": ["de", "en"], "resamples": FEW}
    found = analyse({**plain, **evaluated}, averaged, "base", **options)
    return {
        "found": found,
        "again": analyse({**plain, **evaluated}, averaged, "base", **options),
        "compared": compare(
            [averaged[arm] for arm in ("base", "good", "short")], resamples=FEW, seen_languages=["de", "en"]
        ),
    }


def test_tests_are_those_of_compare_with_a_test_over_seeds(studied: dict[str, Any]) -> None:
    """Each row is `compare`'s, and beside it scipy's paired t-test of the seeds' values; Holm over the family."""
    found, compared = studied["found"], studied["compared"]
    assert list(found["tests"]) == ["good", "short"]
    by_arm = {"good": compared, "short": compared["comparisons"][0]}
    family = []
    for arm, tests in found["tests"].items():
        assert tests["cells"] == by_arm[arm]["cells"]
        assert tests["groups"] == by_arm[arm]["groups"]
        for setting in SETTINGS:
            for measure in MEASURES:
                row = tests["settings"][setting][measure]
                assert {key: row[key] for key in by_arm[arm]["settings"][setting][measure]} == by_arm[arm]["settings"][
                    setting
                ][measure]
                ours, theirs = (found["table"][name][setting][measure]["seeds"] for name in (arm, "base"))
                differences = np.subtract(ours, theirs[: len(ours)])
                if np.ptp(differences) < 1e-12:
                    assert row["seed_p"] is None
                    continue
                expected = stats.ttest_1samp(differences, 0.0)
                assert row["seed_p"] == pytest.approx(expected.pvalue)
                ends = expected.confidence_interval()
                assert (row["seed_difference_low"], row["seed_difference_high"]) == pytest.approx((ends.low, ends.high))
                family.append(row)
    assert [row["seed_p_holm"] for row in family] == holm([row["seed_p"] for row in family])
    mean = found["tests"]["good"]["settings"]["multilingual"]["mAP"]
    assert mean["difference"] > 0.1
    assert mean["p_holm"] < 0.05


def test_monolingual_change_is_a_family_of_its_own(studied: dict[str, Any]) -> None:
    """Language by language the monolingual cells, with Holm's correction over arms and languages together."""
    found = studied["found"]
    change = found["monolingual_change"]
    assert {arm: tuple(rows) for arm, rows in change.items()} == {"good": LANGUAGES, "short": LANGUAGES}
    rows = [row for by_language in change.values() for row in by_language.values()]
    assert [row["p_holm"] for row in rows] == holm([row["p_value"] for row in rows])
    cells = {
        cell["query_language"]: cell["mAP"]["difference"]
        for cell in found["tests"]["good"]["cells"]
        if cell["query_language"] == cell["candidate_language"]
    }
    assert {code: row["difference"] for code, row in change["good"].items()} == cells


def test_the_result_is_json_and_the_same_again(studied: dict[str, Any]) -> None:
    """Resampling is seeded: the same folders give the same numbers, all of them finite."""
    assert studied["found"] == studied["again"]
    assert json.loads(json.dumps(studied["found"], allow_nan=False)) == studied["found"]
    assert list(studied["found"]["table"]) == ["untrained", "base", "good", "short"]
    assert {"value_interval", "tests", "seed_test", "correction", "resamples"} <= studied["found"]["method"].keys()


def test_without_another_arm_there_is_nothing_to_test(evaluate: Evaluate, tmp_path: Path) -> None:
    """Only the baseline finished: its table stands, tests are empty."""
    folder = evaluate("base", 1, 1.0)
    found = analyse({"base": {1: folder}}, {"base": tmp_path / "none"}, "base", seen_languages=None, resamples=FEW)
    assert (found["tests"], found["monolingual_change"]) == ({}, {})
    assert found["table"]["base"]["monolingual"]["mAP"]["seeds"] == [read_metrics(folder)["monolingual"]["mAP"]]


@pytest.mark.parametrize(
    ("arm", "baseline"),
    [({1: 0.5}, {1: 0.4}), ({1: 0.5, 2: 0.6}, {2: 0.4, 3: 0.1}), ({1: 0.5, 2: 0.6}, {1: 0.4, 2: 0.5})],
)
def test_a_test_over_seeds_needs_two_that_vary(arm: dict[int, float], baseline: dict[int, float]) -> None:
    """One common seed, or differences without any spread: null, not a number from nothing."""
    assert set(seed_test(arm, baseline).values()) == {None}


def test_metrics_are_named_by_benchmark_arm_setting_and_measure() -> None:
    """MLflow's names of the table's numbers; an arm goes by its slug."""
    value = {"mean": 0.5, "low": 0.4, "high": 0.6, "sd": None, "seeds": [0.5]}
    result = {"benchmarks": {"xquad-r": {"table": {"mono→cross": {"monolingual": {"R@1": value}}}}}}
    assert figures(result) == {
        "xquad-r/mono-cross/monolingual/R@1": 0.5,
        "xquad-r/mono-cross/monolingual/R@1/low": 0.4,
        "xquad-r/mono-cross/monolingual/R@1/high": 0.6,
    }


# --- the file and the runs -------------------------------------------------------------------------------------------


@pytest.fixture
def study_file(toy_config: Config, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of the toy corpus with some keys replaced, and its training configuration."""

    def write(changes: Mapping[str, Any] = {}, base: Mapping[str, Any] = {}) -> Path:
        config = toy_config.replaced({"run.out": str(tmp_path / "out"), **base})
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        raw = {
            "name": "s",
            "config": "toy.yaml",
            "arms": {"X-X-mono": {"mix.alpha": 1.0}, "X-Y": {"mix.alpha": 0.0}, "hybrid 0.5": {}},
            "baseline": "X-X-mono",
            "seeds": [1, 2],
            "benchmarks": [{"benchmark": "sample", "data": "sample://"}],
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_runs_share_all_but_arm_seed_and_fraction(
    study_file: Callable[..., Path], toy_corpus: str, tmp_path: Path
) -> None:
    """Names are unique and stable; held-out documents are the same in all, start weights in all of a seed."""
    study = load_study(study_file({"fractions": [0.5, 1.0], "settings": {"train.steps": 9}}))
    runs = study_runs(study, toy_corpus, tmp_path / "out" / "s")
    assert len({run.name for run in runs}) == 3 * 2 * 2
    assert runs[0].name == "s-X-X-mono-s1"
    assert runs[-1].name == "s-hybrid-0.5-s2-f0.5"
    assert {run.config.train.steps for run in runs} == {9}
    assert {run.config.data.hold_out.seed for run in runs} == {study.config.run.seed}
    assert [run.config.data.fraction for run in runs] == [1.0] * 6 + [0.5] * 6
    for run in runs:
        assert run.config.run.seed == run.seed
        assert run.config.model.backbone == start_weights(study.base, tmp_path / "out" / "s", run.seed)
    assert {run.config.mix.alpha for run in runs if run.arm == "X-Y"} == {0.0}
    check_runs(study, runs, toy_corpus)


@pytest.mark.parametrize(
    ("changes", "base", "words"),
    [
        ({"baseline": "X-X-mon"}, {}, ["baseline", "'X-X-mon'", "Did you mean 'X-X-mono'?"]),
        ({"seeds": []}, {}, ["seeds"]),
        ({"seeds": [1, 1]}, {}, ["seeds", "1 twice"]),
        ({"seeds": [-1]}, {}, ["seeds.0", "-1"]),
        ({"fractions": [0.0]}, {}, ["fractions.0", "0"]),
        ({"fractions": [1.5]}, {}, ["fractions.0", "1.5"]),
        ({"resamples": 10}, {}, ["resamples", "10"]),
        ({"bseline": "x"}, {}, ["'bseline'", "Did you mean 'baseline'?"]),
        ({"benchmarks": [{"benchmark": "xqad-r", "data": "d"}]}, {}, ["'xqad-r'", "Did you mean 'xquad-r'?"]),
        ({"benchmarks": [{"benchmark": "xquad-r"}]}, {}, ["benchmarks.0.data", "xquad-r's files"]),
        ({"benchmarks": [{"benchmark": "xquad-r", "date": "d"}]}, {}, ["'date'", "Did you mean 'data'?"]),
        ({"benchmarks": [{"benchmark": "sample", "data": "d"}] * 2}, {}, ["benchmarks.1", "'sample' twice"]),
        ({}, {"run.chosen_on": ["sample"]}, ["benchmarks.0.benchmark", "'sample'", "run.chosen_on"]),
        ({}, {"data.fraction": 0.5}, ["data.fraction", "`fractions`"]),
        ({"settings": {"run.seed": 3}}, {}, ["settings.run.seed", "`seeds`"]),
        ({"settings": {"train.stpes": 3}}, {}, ["train.stpes", "Did you mean 'steps'?"]),
        ({"arms": {"X-X-mono": {"train.steps": 3}}}, {}, ["arms.X-X-mono.train.steps", "the same in all arms"]),
        ({"arms": {"X-X-mono": {}, "X X mono": {}}}, {}, ["'X-X-mono' and 'X X mono'", "folders"]),
        ({"arms": {"X-X-mono": {}, "untrained": {}}}, {}, ["'untrained'"]),
    ],
)
def test_mistakes_of_the_file_name_key_and_value(
    changes: dict[str, Any], base: dict[str, Any], words: list[str], study_file: Callable[..., Path]
) -> None:
    """Each is one ConfigError with the file, the key and what would be right."""
    with pytest.raises(ConfigError) as error:
        load_study(study_file(changes, base))
    for word in ("study.yaml", *words):
        assert word in str(error.value)


def test_settings_of_the_command_line_replace_the_file(study_file: Callable[..., Path]) -> None:
    """`--set seeds=[5]` and `--set settings.train.steps=7`; anything else below a key is refused."""
    study = load_study(study_file(), ["seeds=[5]", "settings.train.steps=7", "data=/d"])
    assert (study.seeds, study.base.train.steps, study.data) == ((5,), 7, "/d")
    with pytest.raises(ConfigError, match=r"--set arms\.X-Y\.mix\.alpha"):
        load_study(study_file(), ["arms.X-Y.mix.alpha=1"])
    with pytest.raises(ConfigError, match="No such file"):
        load_study(Path("/no/such/study.yaml"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.languages": ["en"], "mix.alpha": 0.0}, ["arm 'bad'", "mix.alpha", "two languages"]),
        ({"mix.alhpa": 0.0}, ["arm 'bad'", "mix.alhpa", "Did you mean 'alpha'?"]),
        ({"mix.alpha": 2}, ["arm 'bad'", "mix.alpha", "2"]),
    ],
)
def test_an_arm_that_cannot_be_trained_is_named(
    settings: dict[str, Any], words: list[str], study_file: Callable[..., Path], toy_corpus: str, tmp_path: Path
) -> None:
    """What the corpus cannot make, and a misspelt key of an arm, are known before anything starts."""
    study = load_study(study_file({"arms": {"X-X-mono": {}, "bad": settings}}))
    with pytest.raises(ConfigError) as error:
        check_runs(study, study_runs(study, toy_corpus, tmp_path), toy_corpus)
    for word in words:
        assert word in str(error.value)


def test_a_folder_belongs_to_one_study(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """More seeds or arms are welcome; another value of a known key is refused, also after the arm was away."""
    folder = tmp_path / "out" / "s"
    claim_folder(folder, load_study(study_file()), "/corpus")
    (folder / "study.json").write_text("{}", encoding="utf-8")
    claim_folder(folder, load_study(study_file()), "/corpus")
    assert (folder / "study.json").exists()
    arms = {"X-X-mono": {"mix.alpha": 1.0}, "more": {"mix.alpha": 0.3}}
    claim_folder(folder, load_study(study_file({"seeds": [1, 2, 3], "arms": arms})), "/corpus")
    assert not (folder / "study.json").exists()  # it says nothing of the third seed
    for changes, words in (
        ({"settings": {"train.steps": 5}}, ["train.steps", "got 5", "expected 6"]),
        ({"arms": {"X-X-mono": {"mix.alpha": 1.0}, "X-Y": {"mix.alpha": 0.1}}}, ["arms.X-Y", "0.1", "0.0"]),
        ({"benchmarks": [{"benchmark": "sample", "data": "/x"}]}, ["benchmarks.sample", "/x", "sample://"]),
    ):
        with pytest.raises(ConfigError) as error:
            claim_folder(folder, load_study(study_file(changes)), "/corpus")
        for word in words:
            assert word in str(error.value)


def test_a_name_becomes_a_folder() -> None:
    """Arms are named as people like; folders, runs and metrics are ASCII."""
    assert [slug(arm) for arm in ("mono→cross", "hybrid 0.5", "X-X-mono", "α=1")] == [
        "mono-cross",
        "hybrid-0.5",
        "X-X-mono",
        "1",
    ]


@pytest.mark.parametrize("name", ["study-sample", "study-squad-mt", "study-lareqa"])
def test_shipped_studies_can_be_read(name: str) -> None:
    """The files in jobs/configs are valid, and every arm's settings are."""
    path = Path(__file__).resolve().parents[1] / "jobs" / "configs" / f"{name}.yaml"
    study = load_study(path, [] if name == "study-sample" else ["data=/benchmarks"])
    assert len(study_runs(study, "/corpus", Path("/out"))) == len(study.arms) * len(study.seeds)


def test_one_document_more_or_less(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    """A share of the documents too small for a batch is refused, with the arm's name."""
    pairs = [
        ParallelPair(str(i), f"p{i}", f"d{i // 4}", {"en": f"q {i}", "de": f"f {i}"}, {"en": f"a {i}", "de": f"b {i}"})
        for i in range(80)
    ]
    write_pairs(Folder(str(tmp_path / "c")), "tiny", pairs, ["en", "de"], {"source": "tests"}, rows_per_group=64)
    study = load_study(study_file({"fractions": [0.1]}, {"data.hold_out.fraction": 0.0}))
    with pytest.raises(ConfigError, match="arm 'X-X-mono'"):
        check_runs(study, study_runs(study, str(tmp_path / "c"), tmp_path), str(tmp_path / "c"))
