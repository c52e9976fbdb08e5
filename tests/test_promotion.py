"""The gate before the champion: its rule, what it reads from the registry, and what it leaves there."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_comparison import LANGUAGES, QUESTIONS, per_query, schema

from hbt_ray.errors import BenchmarkError, ConfigError, ModelError, ResourceError
from hbt_ray.evaluation.gate import BETTER, NOT_WORSE, UNDECIDED, WORSE, judge
from hbt_ray.evaluation.significance import paired
from hbt_ray.promote import PROMOTED, REFUSED, TABLE_HEADER, UNCHANGED, Promotion, promote
from hbt_ray.tracking.promotion import move_champion
from hbt_ray.tracking.registry import MODEL_HASH, Registry, champion_of, find_version, open_registry
from hbt_ray.tracking.runs import tracking_store

FEW = 400  # resamples
LIKE_BEFORE = {"difference": 0.0, "low": 0.0, "high": 0.0, "system": 0.5}


def comparison(quality: dict[str, float], rank_distance: dict[str, float] = LIKE_BEFORE) -> dict[str, Any]:
    """What `compare` returns, as far as the gate reads it; the champion has 0.5 of everything."""
    common = {"baseline": 0.5, "p_value": 0.5, "p_holm": 1.0, "effect_size": 0.0, "clusters": 100}
    return {
        "benchmark": "made-up",
        "settings": {"multilingual": {"mAP": common | quality}},
        "language_bias": {"rank_distance": common | rank_distance},
    }


def between(low: float, high: float) -> dict[str, float]:
    middle = (low + high) / 2
    return {"difference": middle, "low": low, "high": high, "system": 0.5 + middle}


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.03, BETTER),
        (0.0, 0.0, NOT_WORSE),
        (-0.01, 0.03, NOT_WORSE),
        (-0.05, 0.01, NOT_WORSE),
        (-0.0501, 0.01, UNDECIDED),
        (-0.0501, 0.2, UNDECIDED),
        (-0.02, -0.01, WORSE),
        (-0.2, -0.1, WORSE),
    ],
)
def test_the_interval_decides(low: float, high: float, verdict: str) -> None:
    """With a margin of 0.1 x 0.5: a gain, a loss within the margin, too little known, or a loss however small."""
    (judged, same) = judge(comparison(between(low, high)), 0.1)
    assert (judged.verdict, judged.passes) == (verdict, verdict in (BETTER, NOT_WORSE))
    assert (same.verdict, same.margin) == (NOT_WORSE, 0.05)
    (_, mirrored) = judge(comparison(LIKE_BEFORE, between(-high, -low)), 0.1)
    assert mirrored.verdict == verdict, "of rank distance less is better"


def test_without_a_margin_only_a_gain_or_the_same_passes() -> None:
    """A margin of 0 makes it a test of superiority, which a model equal in every query passes too."""
    verdicts = [judge(comparison(between(*ends)), 0.0)[0].verdict for ends in ((0.0, 0.0), (-0.001, 0.1), (0.001, 0.1))]
    assert verdicts == [NOT_WORSE, UNDECIDED, BETTER]


def test_what_cannot_be_judged_is_refused() -> None:
    """A margin that is none, a benchmark without merged pool or rank distance, too few questions for an interval."""
    found = comparison(LIKE_BEFORE)
    for margin in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="--margin"):
            judge(found, margin)
    with pytest.raises(BenchmarkError, match="no multilingual mAP and no language bias rank distance"):
        judge(found | {"settings": {"multilingual": None}, "language_bias": {"rank_distance": None}})
    with pytest.raises(BenchmarkError, match="29 questions"):
        judge(comparison(LIKE_BEFORE | {"clusters": 29}))


def test_a_challenger_worse_by_the_margin_seldom_passes() -> None:
    """The rate of wrong passes is that of a one-sided test at 2.5 %, though rows of a question go together."""
    experiments, questions, languages, margin = 400, 80, 4, 0.1
    random = np.random.default_rng(5)
    cluster, cell = np.repeat(np.arange(questions), languages), np.tile(np.arange(languages), questions)
    settings = {"multilingual": range(languages)}
    passed = 0
    for _ in range(experiments):
        champion = random.normal(0.5, 0.1, questions * languages)
        loss = np.repeat(random.normal(0.05, 0.1, questions), languages) + random.normal(0, 0.02, len(champion))
        found = paired({"mAP": champion}, {"mAP": champion - loss}, cluster, cell, settings, resamples=FEW)
        row = found["multilingual"]["mAP"]._replace(baseline=0.5)._asdict()
        passed += judge(comparison(row), margin)[0].passes
    # 2.5 % of 400 are 10; 22 or more have a chance of 0.0007.
    assert passed < 22


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One registry for all tests, each with a model of its own: making a store takes seconds."""
    return open_registry(tracking_store(tmp_path_factory.mktemp("store") / "runs"))


class Encoder:
    """A registered model whose versions have made-up results."""

    def __init__(self, registry: Registry, name: str, scratch: Path) -> None:
        self.name = name
        self._registry = registry
        self._scratch = scratch
        self._experiment = registry.client.create_experiment(name, artifact_location=registry.store.artifact_root)
        registry.client.create_registered_model(name)

    def add(
        self,
        effect: float = 0.0,
        *,
        seed: int = 1,
        benchmarks: tuple[str, ...] = ("xquad-r",),
        evaluated: str | None = None,
        data: str = "287202302bf5",
        run_id: str | None = None,
        pool: bool = True,
    ) -> int:
        """Register a version that is better by `effect`, or worse; its number."""
        client = self._registry.client
        run_id = run_id or client.create_run(self._experiment).info.run_id
        number = len(client.search_model_versions(f"name = '{self.name}'")) + 1
        fingerprint = self.fingerprint(number)
        for benchmark in benchmarks:
            folder = results(self._scratch / f"{number}-{benchmark}", effect, seed, benchmark, data, pool)
            model = evaluated or fingerprint
            (folder / "metrics.json").write_text((folder / "metrics.json").read_text().replace("MODEL", model))
            client.log_artifacts(run_id, str(folder), f"evaluation/{benchmark}/{model}")
        client.create_model_version(self.name, "nowhere", run_id, tags={MODEL_HASH: fingerprint})
        return number

    def fingerprint(self, number: int) -> str:
        return f"{self.name}{number:09x}"

    def promoted(self, number: int, **options: Any) -> Promotion:
        return promote(self.name, number, resamples=FEW, **options)

    @property
    def champion(self) -> int | None:
        found = champion_of(self._registry, self.name)
        return None if found is None else found.number

    def tags(self, number: int) -> dict[str, str]:
        return dict(self._registry.client.get_model_version(self.name, str(number)).tags)

    def run_id(self, number: int) -> str:
        return find_version(self._registry, self.name, number).run_id


NAMES = (f"e{number:02}" for number in count())


@pytest.fixture
def enc(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """A model without versions, in the folder where `promote` looks for its store."""
    monkeypatch.chdir(Path(registry.store.uri.removeprefix("sqlite:///")).parents[1])
    return Encoder(registry, next(NAMES), tmp_path)


def results(folder: Path, effect: float, seed: int, benchmark: str, data: str, pool: bool) -> Path:
    """A results folder as `hbt-ray evaluate` leaves it, of the model "MODEL"; better by `effect` means less bias."""
    folder.mkdir()
    rows = per_query(LANGUAGES, QUESTIONS, seed=seed, effect=effect, pool=pool)
    for row in rows:
        if row["rank_distance"] is not None:
            row["rank_distance"] = 100 * (1 - row["rank_distance"])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), folder / "per_query.parquet")
    means = {
        name: float(np.mean([row[name] for row in rows if row["candidate_language"] == "all"] or [np.nan]))
        for name in ("mAP", "rank_distance")
    }
    metrics = {
        "benchmark": benchmark,
        "languages": list(LANGUAGES),
        "signature": f"hbt_ray 0.1|{benchmark}|data:{data}|model:MODEL|depth:full|ties:pessimistic|n:9x9|seed:-",
        "multilingual": {"mAP": means["mAP"] if pool else None},
        "language_bias": {"rank_distance": means["rank_distance"] if pool else None},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def test_the_first_champion_needs_results_and_nothing_else(enc: Encoder) -> None:
    """Without a champion there is nothing to compare with; its numbers are kept for the next one."""
    first = enc.promoted(enc.add())
    assert (first.status, first.exit_code, enc.champion) == (PROMOTED, 0, 1)
    assert first.judgements == []
    assert "the first champion, so not compared; on xquad-r: multilingual mAP 0." in first.reason
    assert first.evidence["champion_before"] is None
    assert enc.tags(1)["gate.champion_before"] == "none"
    assert enc.promoted(1).status == UNCHANGED


def test_a_better_challenger_is_promoted_and_a_worse_one_refused(enc: Encoder, registry: Registry) -> None:
    """The alias moves only for the better one; both keep the numbers, and the run keeps every attempt."""
    for number in (enc.add(), enc.add(0.05, seed=2), enc.add(-0.05, seed=3)):
        outcome = enc.promoted(number)
    assert enc.champion == 2
    assert (outcome.status, outcome.exit_code) == (REFUSED, 4)
    assert [judged.verdict for judged in outcome.judgements] == [WORSE, WORSE]
    assert all(judged.p_value < 0.01 for judged in outcome.judgements)
    for text in ("multilingual mAP worse: 0.5", "language bias rank distance worse: 4", "95% -0.1", "margin 0.02"):
        assert text in outcome.reason
    assert [(row[0], row[-1]) for row in outcome.table()] == [
        ("multilingual mAP", WORSE),
        ("language bias rank distance", WORSE),
    ]
    assert {len(row) for row in outcome.table()} == {len(TABLE_HEADER)}
    assert json.loads(json.dumps(outcome.summary()))["status"] == REFUSED
    better, refused = enc.tags(2), enc.tags(3)
    assert (better["gate.status"], better["gate.champion_before"], better["gate.forced"]) == (PROMOTED, "1", "no")
    assert (refused["gate.status"], refused["gate.champion_before"]) == (REFUSED, "2")
    evidence = json.loads(refused["gate.evidence"])
    assert evidence == outcome.evidence
    assert f"model:{enc.fingerprint(2)}" in evidence["signatures"]["champion"]
    assert f"model:{enc.fingerprint(3)}" in evidence["signatures"]["challenger"]
    measures = {measure["measure"]: measure for measure in evidence["measures"]}
    quality = measures["multilingual mAP"]
    assert quality["challenger"] - quality["champion"] == pytest.approx(quality["difference"], abs=1e-12)
    assert quality["low"] < quality["difference"] < quality["high"] < 0 < measures["language bias rank distance"]["low"]
    enc.promoted(3, margin=0.5)
    files = [item.path for item in registry.client.list_artifacts(enc.run_id(3), f"promotion/{enc.name}-3")]
    assert len(files) == 2
    stored = Path(registry.client.download_artifacts(enc.run_id(3), files[0]))
    assert json.loads(stored.read_text(encoding="utf-8")) == outcome.evidence


def test_a_loss_beyond_doubt_is_refused_within_any_margin(enc: Encoder) -> None:
    """Margins of many promotions must not add up: what is worse beyond doubt is worse."""
    enc.promoted(enc.add())
    outcome = enc.promoted(enc.add(-0.05, seed=3), margin=0.9)
    assert [judged.verdict for judged in outcome.judgements] == [WORSE, WORSE]
    assert outcome.status == REFUSED


def test_an_equal_challenger_passes(enc: Encoder) -> None:
    """The same results are not worse: a refactored or smaller model of the same quality may become champion."""
    enc.promoted(enc.add())
    outcome = enc.promoted(enc.add())
    assert [judged.verdict for judged in outcome.judgements] == [NOT_WORSE, NOT_WORSE]
    assert enc.champion == 2


def test_force_promotes_and_says_why(enc: Encoder) -> None:
    """The reason and the gate's own numbers are both recorded; a blank reason is none."""
    enc.promoted(enc.add())
    worse = enc.add(-0.05, seed=3)
    with pytest.raises(ConfigError, match="--force"):
        enc.promoted(worse, force=" ")
    outcome = enc.promoted(worse, force="licence of the old one ended")
    assert (outcome.status, enc.champion) == (PROMOTED, worse)
    assert outcome.reason.startswith("forced (licence of the old one ended); the gate: on xquad-r, multilingual mAP w")
    assert enc.tags(worse)["gate.forced"] == "licence of the old one ended"
    assert outcome.evidence["measures"][0]["verdict"] == WORSE


def test_missing_results_name_the_command_that_makes_them(enc: Encoder) -> None:
    """No results, or those of another model of the same run: of the challenger as of the champion."""
    evaluate = rf"hbt-ray evaluate --model models:/{enc.name}"
    with pytest.raises(BenchmarkError, match=rf"models:/{enc.name}/1: .*{evaluate}/1 --benchmark NAME"):
        enc.promoted(enc.add(benchmarks=()))
    enc.promoted(enc.add())
    other = enc.add(benchmarks=("xquad-r+context",), evaluated="another")
    command = rf"{evaluate}/3 --benchmark xquad-r --data DIR --out results/{enc.name}-3"
    with pytest.raises(BenchmarkError, match=f"no stored results of this very model.*{command}"):
        enc.promoted(other)
    assert "gate.status" not in enc.tags(other), "nothing was judged"
    enc.promoted(1, force="for the test")
    with pytest.raises(BenchmarkError, match=rf"models:/{enc.name}/1: .*{evaluate}/1 --benchmark xquad-r "):
        enc.promoted(2)


def test_two_versions_of_one_run_are_told_apart(enc: Encoder) -> None:
    """A run that went on has results of both its models; each version is judged by its own."""
    enc.promoted(enc.add())
    outcome = enc.promoted(enc.add(-0.05, seed=3, run_id=enc.run_id(1)))
    assert outcome.status == REFUSED
    assert {side: text.split("|")[3] for side, text in outcome.evidence["signatures"].items()} == {
        "champion": f"model:{enc.fingerprint(1)}",
        "challenger": f"model:{enc.fingerprint(2)}",
    }


def test_results_that_cannot_be_compared_are_refused_with_both_values(enc: Encoder) -> None:
    """Another copy of the data, another benchmark, no merged pool; --force records why nothing was compared."""
    first, second = (f"models:/{enc.name}/{number}" for number in (1, 2))
    enc.promoted(enc.add())
    other_data = enc.add(data="0123456789ab")
    with pytest.raises(BenchmarkError, match=rf"{first} .*{second} .*287202302bf5.*0123456789ab"):
        enc.promoted(other_data)
    with pytest.raises(BenchmarkError, match=r"results on mlqa-r and on xquad-r.*--benchmark xquad-r "):
        enc.promoted(enc.add(benchmarks=("mlqa-r",)))
    with pytest.raises(BenchmarkError, match=rf"{first}: got results on xquad-r only.*--benchmark mlqa-r "):
        enc.promoted(3, benchmark="mlqa-r")
    outcome = enc.promoted(other_data, force="new benchmark")
    assert (outcome.status, enc.champion) == (PROMOTED, other_data)
    assert f"not compared: stored results of {first}" in enc.tags(other_data)["gate.reason"]
    enc.promoted(enc.add(pool=False), force="for the test")
    with pytest.raises(BenchmarkError, match="no multilingual mAP"):
        enc.promoted(enc.add(pool=False))


def test_of_several_benchmarks_one_must_be_chosen(enc: Encoder) -> None:
    """Both have two: the user says which decides."""
    both = ("mlqa-r", "xquad-r")
    enc.promoted(enc.add(benchmarks=both))
    second = enc.add(0.05, seed=2, benchmarks=both)
    with pytest.raises(ConfigError, match="--benchmark: got nothing; expected one of mlqa-r, xquad-r"):
        enc.promoted(second)
    assert enc.promoted(second, benchmark="mlqa-r").evidence["benchmark"] == "mlqa-r"


def test_a_champion_that_was_moved_meanwhile_stays(enc: Encoder, registry: Registry) -> None:
    """The gate compared with a champion that is none any more: nothing is moved."""
    for number in (enc.add(), enc.add(), enc.add()):
        before = champion_of(registry, enc.name)
        enc.promoted(number)
    assert before is not None
    with pytest.raises(ModelError, match=r"@champion: got version 3; expected version 2, as before\. .*again"):
        move_champion(registry, replace(before, number=1), before)
    assert enc.champion == 3


def test_what_is_not_there_is_answered_with_what_is(enc: Encoder) -> None:
    """An unknown model or version is refused with the known ones and the store that was asked."""
    for _ in range(2):
        enc.add()
    with pytest.raises(ModelError, match=rf"runs/mlflow.db: got unknown model 'nobody'; .*{enc.name}.*not set"):
        promote("nobody", 1)
    with pytest.raises(ModelError, match=r"unknown version '7'; expected one of 1, 2\."):
        enc.promoted(7)


def test_no_store_is_said_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotion in a folder where nothing was trained names the variable and the folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"MLFLOW_TRACKING_URI: got no value, and no store .* in {tmp_path}/runs"):
        promote("enc", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_serve_is_a_clear_error(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server at the address, no place for a database, and one of an older MLflow with the command that mends it."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(Path(registry.store.uri.removeprefix("sqlite:///")).read_bytes())
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    database.close()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for address, message in (
        (f"sqlite:///{path}", f"schema of another MLflow.*mlflow db upgrade sqlite:///{path}"),
        (f"sqlite:///{path}/x.db", "mlflow.db/x.db: .*exists.* expected an MLflow store that answers"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9: .*an MLflow store that answers"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(ResourceError, match=message):
            promote("enc", 1)
