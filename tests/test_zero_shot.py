"""Zero-shot is claimed of a result only if its benchmark is known not to be in the training data."""

from __future__ import annotations

import dataclasses
import html
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_s3 import BUCKET, FaultyS3, environment, serve

from hbt_ray.cli import run
from hbt_ray.commands import (
    EvaluationRequest,
    _write_evaluation,
    compare_results,
    evaluate_embeddings_folder,
    evaluate_model,
)
from hbt_ray.config import Config
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.evaluation.embeddings import Embeddings, collection_folder, save_embeddings
from hbt_ray.evaluation.evaluate import evaluate_embeddings
from hbt_ray.evaluation.model_card import write_model_card
from hbt_ray.evaluation.report import System, write_comparison
from hbt_ray.evaluation.results import read_cells
from hbt_ray.leakage import ZeroShot, check_leakage, zero_shot
from hbt_ray.model.encoder import EncoderSettings
from hbt_ray.model.export import read_training, write_training
from hbt_ray.storage import Folder
from hbt_ray.train.fit import _training_facts

LANGUAGES = ("en", "de")
RHINE = {
    "en": "The river Rhine flows from the Swiss Alps through several countries to the North Sea in the Netherlands.",
    "de": "Der Rhein fließt von den Schweizer Alpen durch mehrere Länder in den Niederlanden in die Nordsee.",
}
QUESTIONS = {"en": "Where does the river Rhine end?", "de": "Wo endet der Fluss Rhein?"}
MOUNTAINS = {
    "en": ("How high is mountain {}?", "Mountain {} is high and stands alone in the wide plain of the south."),
    "de": ("Wie hoch ist der Berg {}?", "Der Berg {} ist hoch und steht allein in der weiten Ebene des Südens."),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a benchmark `xquad-r` in two languages: an article on the Rhine and one on eight mountains."""
    folder = tmp_path / "data" / "xquad-r"
    folder.mkdir(parents=True)
    for lang, sentence in RHINE.items():
        river = paragraph("5726e65e708984140094d53e", QUESTIONS[lang], sentence)
        mountains = [paragraph(f"m{i}", *(text.format(i) for text in MOUNTAINS[lang])) for i in range(8)]
        articles = [
            {"title": "Rhine_(river)", "paragraphs": [river]},
            {"title": "Mountains", "paragraphs": mountains},
        ]
        (folder / f"{lang}.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    return tmp_path / "data"


def paragraph(question_id: str, question: str, sentence: str) -> dict[str, Any]:
    """Two sentences and a question that the first one answers."""
    context = f"{sentence} It is well known."
    answers = [{"answer_start": 4, "text": "x"}]
    return {
        "context": context,
        "sentences": [sentence, "It is well known."],
        "sentence_breaks": [[0, len(sentence)], [len(sentence) + 1, len(context)]],
        "qas": [{"id": question_id, "question": question, "answers": answers}],
    }


def pair(pair_id: str = "a", group: str = "Lakes", query: str = "Which lake is this?") -> ParallelPair:
    return ParallelPair(pair_id, f"p-{pair_id}", group, {"en": query}, {"en": "A lake without a river."})


def write_corpus(root: str, *pairs: ParallelPair, name: str = "train") -> ShardedDataset:
    write_pairs(Folder(root), name, iter(pairs), None, {})
    return ShardedDataset.open(Folder(root) / name)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A corpus of one dataset, which has nothing to do with rivers."""
    root = str(tmp_path / "corpus")
    write_corpus(root, pair("a"), pair("b"))
    return root


@pytest.fixture
def config(toy_config: Config, corpus: str) -> Config:
    """Of a training on all that is in the corpus when it ends."""
    return toy_config.replaced({"data.root": corpus})


def trained(config: Config, **changes: Any) -> dict[str, Any]:
    """What training.json holds after a training that ends now."""
    facts = _training_facts(config.replaced(changes), config.data.root, step=5)
    return dict(json.loads(json.dumps(facts)))


def judged(training: dict[str, Any], data: Path, languages: tuple[str, ...] = LANGUAGES) -> ZeroShot:
    return zero_shot(training, "xquad-r", load_benchmark("xquad-r", data, languages).data_hash)


def search(corpus: str, data: Path, **options: Any) -> None:
    check_leakage(corpus, "xquad-r", data, **{"languages": LANGUAGES, **options})


# The claim


def test_without_a_report_there_is_no_claim(config: Config, data: Path) -> None:
    """It says what is missing, and of which data."""
    expected = (
        "Not claimed zero-shot: no leakage report of these training data for this benchmark; "
        "`hbt-ray data leakage` makes one."
    )
    assert judged(trained(config), data) == ZeroShot(False, expected, config.data.root)


def test_a_clean_report_is_a_claim(config: Config, data: Path) -> None:
    """It says what was searched for; a backbone that began from nothing has seen nothing before."""
    search(config.data.root, data)
    why = "Zero-shot: no question, candidate or article of this benchmark was found in the training data."
    assert judged(trained(config), data) == ZeroShot(True, why)


def test_a_backbone_from_elsewhere_is_not_vouched_for(config: Config, data: Path, tmp_path: Path) -> None:
    """The claim is about the data of our training; what came before it is said to be unknown."""
    search(config.data.root, data)
    found = judged(trained(config, **{"model.backbone": str(tmp_path)}), data)
    assert found.claim
    assert found.why.endswith("; what the backbone had seen before is not known.")


@pytest.mark.parametrize(
    ("leaking", "counts"),
    [
        ({"query": QUESTIONS["de"]}, "1 text and 0 articles"),
        ({"group": "Rhine (river)"}, "0 texts and 1 article"),
    ],
)
def test_what_is_found_must_be_accepted(config: Config, data: Path, leaking: dict[str, str], counts: str) -> None:
    """No claim, with the counts; with a reason a claim that gives both."""
    write_corpus(config.data.root, pair("a"), pair("b", **leaking))
    search(config.data.root, data)
    refused = judged(trained(config), data)
    assert (refused.claim, refused.corpus) == (False, config.data.root)
    assert refused.why == (
        f"Not claimed zero-shot: of this benchmark the training data hold {counts}, and nobody has accepted that."
    )
    search(config.data.root, data, accept=["other paragraphs"])
    why = f"Zero-shot: of this benchmark the training data hold {counts}, which is accepted: other paragraphs."
    assert judged(trained(config), data) == ZeroShot(True, why)


def test_articles_that_cannot_be_compared_must_be_accepted(config: Config, data: Path) -> None:
    """A source without articles proves nothing about them."""
    write_corpus(config.data.root, pair("a", group="p-a"))
    search(config.data.root, data)
    why = "articles: not comparable, 1 document of train has no title, and nobody has accepted that"
    assert judged(trained(config), data).why == f"Not claimed zero-shot: {why}."
    search(config.data.root, data, accept=["no encyclopedia"])
    found = judged(trained(config), data)
    assert found.claim
    assert "articles: not comparable, 1 document of train has no title" in found.why
    assert found.why.endswith("accepted: no encyclopedia.")


def test_a_report_is_void_when_the_data_change(config: Config, data: Path) -> None:
    """A text more in the shards, or a dataset more, and the search is to be made again."""
    search(config.data.root, data)
    write_corpus(config.data.root, pair("c"), name="more")
    assert judged(trained(config, **{"data.datasets": ["train"]}), data).claim
    stale = "Not claimed zero-shot: the leakage report for this benchmark is of other training data."
    assert judged(trained(config), data).why == stale
    search(config.data.root, data)
    assert judged(trained(config), data).claim
    write_corpus(config.data.root, pair("a"), pair("b", query="Which one?"))
    assert judged(trained(config), data).why == stale


def test_a_report_is_for_its_evaluation_data_only(config: Config, data: Path) -> None:
    """Languages of which nothing was searched need a search of their own; both reports are kept."""
    search(config.data.root, data, languages=("en",))
    assert judged(trained(config), data, ("en",)).claim
    assert judged(trained(config), data).why == (
        "Not claimed zero-shot: the leakage report for this benchmark is of other evaluation data or other languages."
    )
    search(config.data.root, data)
    training = trained(config)
    assert judged(training, data, ("en",)).claim
    assert judged(training, data).claim
    file = data / "xquad-r" / "de.json"
    file.write_text(file.read_text(encoding="utf-8").replace("endet", "beginnt"), encoding="utf-8")
    assert not judged(training, data).claim


def test_a_report_that_cannot_be_read_is_none(config: Config, data: Path) -> None:
    """The training ends as it would without, and the evaluation says why there is no claim."""
    Folder(config.data.root).write("leakage/xquad-r.json", b'{"status": "clean"}')
    why = "Not claimed zero-shot: the leakage report for this benchmark cannot be read."
    assert judged(trained(config), data).why == why


def test_every_training_before_counts(config: Config, data: Path, tmp_path: Path) -> None:
    """A backbone that hbt_ray trained brings its own data along, and those before them."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_training(first, trained(config))
    other = str(tmp_path / "other")
    write_corpus(other, pair("z"))
    search(other, data)
    later = config.replaced({"data.root": other, "model.backbone": str(first)})
    write_training(second, trained(later))
    last = config.replaced({"data.root": other, "model.backbone": str(second)})
    refused = judged(trained(last), data)
    assert (refused.claim, refused.corpus) == (False, config.data.root)
    search(config.data.root, data)
    write_training(first, trained(config))
    write_training(second, trained(later))
    assert judged(trained(last), data).claim


def test_training_that_is_not_known_is_no_training_without_leakage(config: Config, data: Path, tmp_path: Path) -> None:
    """An encoder from elsewhere, and one whose backbone was trained before hashes were noted."""
    assert judged({}, data) == ZeroShot(False, "Not claimed zero-shot: what this encoder was trained on is not known.")
    search(config.data.root, data)
    write_training(tmp_path, {"run": "earlier", "datasets": {"train": 2}})
    found = judged(trained(config, **{"model.backbone": str(tmp_path)}), data)
    assert found.why == "Not claimed zero-shot: what the backbone of this encoder was trained on is not known."


def test_a_benchmark_that_chose_the_configuration_is_not_zero_shot(config: Config, data: Path) -> None:
    """Whatever its texts have to do with the training data."""
    search(config.data.root, data)
    found = judged(trained(config, **{"run.chosen_on": ["xquad-r+context"]}), data)
    assert found == ZeroShot(False, "Not claimed zero-shot: the configuration was chosen on this benchmark.")


def test_reports_on_s3(toy_config: Config, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search keeps its report beside a corpus in a bucket, and training finds it there."""
    with serve(FaultyS3()) as server:
        for name, value in environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        root = f"s3://{BUCKET}/{tmp_path.name}"
        write_corpus(root, pair("a", query=QUESTIONS["en"]))
        checked = check_leakage(root, "xquad-r", data, languages=LANGUAGES, accept=["a test"])
        assert checked.address == f"{root}/leakage/xquad-r.de.en.json"
        assert Folder(f"{root}/leakage").entries() == ["xquad-r.de.en.findings.jsonl", "xquad-r.de.en.json"]
        found = judged(trained(toy_config.replaced({"data.root": root})), data)
    assert found.claim
    assert found.why.endswith("accepted: a test.")


# What an evaluation writes


def vectors(data: Path, text: str = "sentence", seed: int = 0) -> dict[str, Embeddings]:
    """A random vector for every text of the benchmark."""
    rng = np.random.default_rng(seed)
    (collection,) = load_benchmark("xquad-r", data, LANGUAGES, candidate_text=text).collections

    def drawn(texts: Any) -> dict[str, Any]:
        return {lang: rng.normal(size=(len(part), 8)).astype(np.float32) for lang, part in texts.items()}

    return {collection.name: Embeddings(drawn(collection.queries), drawn(collection.candidates))}


def evaluated(training: dict[str, Any], data: Path, out: Path, text: str = "sentence") -> dict[str, Any]:
    """metrics.json as an evaluation of a model with such a training.json leaves it."""
    request = EvaluationRequest("xquad-r", data, out, languages=LANGUAGES, candidate_text=text)
    benchmark = load_benchmark("xquad-r", data, LANGUAGES, candidate_text=text)
    evaluation = evaluate_embeddings(benchmark, vectors(data, text), model="m")
    _write_evaluation(evaluation, benchmark, request, "a model", training)
    return dict(json.loads((out / "metrics.json").read_text(encoding="utf-8")))


def page(folder: Path) -> str:
    return html.unescape((folder / "report.html").read_text(encoding="utf-8"))


def listed(note: str) -> str:
    """The note as a page has it among its notes."""
    return f'<li dir="auto">{note}</li>'


def test_what_is_missing_is_said_with_its_command(config: Config, data: Path, tmp_path: Path) -> None:
    """In metrics.json, notes and page; the command, run as it stands, and the training's end make it a claim."""
    metrics = evaluated(trained(config), data, tmp_path / "before")
    assert not metrics["zero_shot"]["claim"]
    assert metrics["zero_shot"]["why"] in metrics["notes"]
    assert metrics["zero_shot"]["why"] in page(tmp_path / "before")
    assert metrics["zero_shot"]["command"] in page(tmp_path / "before")
    program, *arguments = shlex.split(metrics["zero_shot"]["command"])
    assert (program, run(arguments)) == ("hbt-ray", 0)
    metrics = evaluated(trained(config), data, tmp_path / "after")
    assert metrics["zero_shot"] == {"claim": True, "why": metrics["notes"][-1], "command": None}
    assert metrics["notes"][-1] in page(tmp_path / "after")
    assert "data leakage" not in page(tmp_path / "after")


def test_sentences_with_their_contexts_are_searched_for_as_sentences(
    config: Config, data: Path, tmp_path: Path
) -> None:
    """The same report serves both forms of the candidates, which are the same paragraphs."""
    search(config.data.root, data)
    metrics = evaluated(trained(config), data, tmp_path / "out", "sentence+context")
    assert metrics["benchmark"] == "xquad-r+context"
    assert metrics["zero_shot"]["claim"]


def test_the_model_card_says_it(config: Config, data: Path, tmp_path: Path) -> None:
    """Beside the figures of that benchmark, without the paths of this machine."""
    training = trained(config)
    metrics = evaluated(training, data, tmp_path / "out")
    card = write_model_card(tmp_path, training, EncoderSettings("mean", "", "", 64), metrics).read_text(
        encoding="utf-8"
    )
    assert f"- {metrics['zero_shot']['why']}\n" in card
    assert str(tmp_path) not in card


def test_embeddings_are_of_an_unknown_encoder(data: Path, tmp_path: Path) -> None:
    """Nobody here knows what it was trained on."""
    benchmark = load_benchmark("xquad-r", data, LANGUAGES)
    save_embeddings(collection_folder(tmp_path / "e", benchmark, benchmark.collections[0]), vectors(data)["xquad-r"])
    request = EvaluationRequest("xquad-r", data, tmp_path / "out", languages=LANGUAGES)
    metrics = evaluate_embeddings_folder(tmp_path / "e", request)
    why = "Not claimed zero-shot: what this encoder was trained on is not known."
    assert metrics["zero_shot"] == {"claim": False, "why": why, "command": None}


def test_a_comparison_says_which_system_may_be_called_so(config: Config, data: Path, tmp_path: Path) -> None:
    """One line per kind of answer, with the names; one without names where all are alike."""
    search(config.data.root, data)
    systems = []
    for name, training in (("ours", trained(config)), ("theirs", {}), ("other", {})):
        metrics = evaluated(training, data, tmp_path / name)
        systems.append(System(name, metrics, read_cells(tmp_path / name)))
    claimed, unknown = systems[0].metrics["zero_shot"]["why"], systems[1].metrics["zero_shot"]["why"]
    write_comparison(tmp_path / "all", systems, title="All", notes=[claimed, "Two."])
    shown = page(tmp_path / "all")
    for note in ("Two.", f"ours: {claimed}", f"theirs, other: {unknown}"):
        assert listed(note) in shown
    assert listed(claimed) not in shown
    write_comparison(tmp_path / "alike", systems[1:], title="Alike")
    assert listed(unknown) in page(tmp_path / "alike")


def test_compare_takes_the_lines_from_the_folders(config: Config, data: Path, tmp_path: Path) -> None:
    """`hbt-ray compare` too, also with results from before there was such a line."""
    search(config.data.root, data)
    why = evaluated(trained(config), data, tmp_path / "ours")["zero_shot"]["why"]
    old = evaluated({}, data, tmp_path / "old")
    del old["zero_shot"]
    old["notes"] = ["From before."]
    (tmp_path / "old" / "metrics.json").write_text(json.dumps(old), encoding="utf-8")
    compare_results([tmp_path / "ours", tmp_path / "old"], out=tmp_path / "both", resamples=100)
    assert f"{tmp_path / 'ours'}: {why}" in page(tmp_path / "both")
    assert "From before." in page(tmp_path / "both")


@pytest.mark.ray
def test_a_model_carries_its_claim(
    config: Config, data: Path, toy_model: Path, tmp_path: Path, local_ray: None
) -> None:
    """Evaluated from its folder: unknown training, then that of training.json, in results and model card."""
    folder = tmp_path / "model"
    for path in filter(Path.is_file, toy_model.rglob("*")):
        (folder / path.relative_to(toy_model)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(toy_model)).write_bytes(path.read_bytes())
    request = EvaluationRequest("xquad-r", data, tmp_path / "out", languages=LANGUAGES, actors=1)
    metrics = evaluate_model(str(folder), request)
    assert metrics["zero_shot"]["why"] in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not metrics["zero_shot"]["claim"]
    search(config.data.root, data)
    write_training(folder, trained(config))
    dataset = ShardedDataset.open(Folder(config.data.root) / "train")
    assert read_training(folder)["data_hashes"] == {"train": dataset.data_hash}
    metrics = evaluate_model(str(folder), dataclasses.replace(request, out=tmp_path / "again"))
    assert metrics["zero_shot"]["claim"]
    assert metrics["zero_shot"]["why"] in (folder / "README.md").read_text(encoding="utf-8")
