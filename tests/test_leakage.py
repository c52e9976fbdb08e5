"""Leakage: evaluation questions, sentences and articles in training shards, made up and real."""

import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbt_ray.commands import import_format
from hbt_ray.corpus.cleaning import CleaningSettings, clean
from hbt_ray.corpus.leakage_reports import kept_reports
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import ShardedDataset, open_corpus
from hbt_ray.corpus.validate import validate
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.errors import BenchmarkError, ConfigError, CorpusError, ResourceError
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.evaluation.benchmarks.lareqa import load_lareqa
from hbt_ray.leakage import LeakageReport, LeakageSettings, check_leakage, find_leakage, read_report
from hbt_ray.leakage.articles import plain_title, read_titles, untitled_documents
from hbt_ray.leakage.index import index_benchmark
from hbt_ray.leakage.report import Finding
from hbt_ray.storage import Folder

FORMATS = Path(__file__).resolve().parent / "data" / "formats"
DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"
real_data = pytest.mark.skipif(not DATASETS.is_dir(), reason="needs the real data sets")

RHINE = "The river Rhine flows from the Swiss Alps through several countries to the North Sea in the Netherlands."
SHORT = "It is long."
RHINE_DE = "Der Rhein fließt von den Schweizer Alpen durch mehrere Länder in den Niederlanden in die Nordsee."
QUESTION, QUESTION_DE = "Where does the river Rhine end?", "Wo endet der Fluss Rhein?"
QUESTION_ID = "5726e65e708984140094d53e"


def lareqa_file(folder: Path, lang: str, sentences: list[str], questions: dict[str, str], title: str) -> None:
    context = " ".join(sentences)
    starts = [context.index(sentence) for sentence in sentences]
    breaks = [[start, start + len(sentence)] for start, sentence in zip(starts, sentences, strict=True)]
    qas = [{"id": i, "question": q, "answers": [{"answer_start": 0, "text": "x"}]} for i, q in questions.items()]
    paragraph = {"context": context, "sentences": sentences, "sentence_breaks": breaks, "qas": qas}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": "1.1", "data": [{"title": title, "paragraphs": [paragraph]}]}
    (folder / f"{lang}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """A benchmark of one paragraph with two questions in English and German."""
    folder = tmp_path / "xquad-r"
    other = {"q2": "How many countries are there?"}
    lareqa_file(folder, "en", [RHINE, SHORT], {QUESTION_ID: QUESTION} | other, "Rhine_(river)")
    lareqa_file(folder, "de", [RHINE_DE], {QUESTION_ID: QUESTION_DE, "q2": "Wie viele Länder?"}, "Rhine_(river)")
    return folder


def shards(root: Path, pairs: list[ParallelPair], name: str = "train", *, named: bool = True) -> ShardedDataset:
    """Pairs written as shards whose documents have names; few pairs fill several parts all the same."""
    sizes = {"rows_per_part": 64, "rows_per_group": 8} if len(pairs) < 1000 else {}
    folder = Folder(str(root))
    write_pairs(folder, name, iter(pairs), None, {}, name_documents=named, **sizes)
    return ShardedDataset.open(folder / name)


def pair(pair_id: str = "a", *, group: str = "Lakes", lang: str = "en", **texts: str) -> ParallelPair:
    query, passage = texts.get("query", "Which lake is this?"), texts.get("passage", "A lake without a river.")
    return ParallelPair(pair_id, f"p-{pair_id}", group, {lang: query}, {lang: passage})


def search(folder: Path, tmp_path: Path, *pairs: ParallelPair, **changes: Any) -> tuple[LeakageReport, list[Finding]]:
    findings: list[Finding] = []
    benchmark = load_lareqa(folder, "xquad-r", ["en", "de"])
    titles = read_titles("xquad-r", folder, benchmark.languages)
    dataset = shards(tmp_path / "corpus", list(pairs))
    report = find_leakage([dataset], benchmark, titles, LeakageSettings(**changes), findings.append)
    assert report.text_findings == len(findings)
    return report, findings


def found(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    return sorted((f.kind, f.match, f.benchmark_language, f.column) for f in findings)


def test_other_texts_are_clean(benchmark_folder: Path, tmp_path: Path) -> None:
    """Short sentences and common words that stand in many texts are no leakage."""
    passage = f"{SHORT} The river flows through the country to the sea, and several lakes are in the Alps."
    report, findings = search(benchmark_folder, tmp_path, pair(query="Where does the river end?", passage=passage))
    assert (report.status, report.exit_code, findings, list(report.articles)) == ("clean", 0, [], [])
    assert [share.of for share in report.questions.values()] == [2, 2]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"query": " where does the river RHINE  end?"}, ("question", "same text", "en", "query")),
        ({"query": "Where does the river Rhine end"}, ("question", "near-duplicate", "en", "query")),
        ({"query": QUESTION_DE, "lang": "de"}, ("question", "same text", "de", "query")),
        ({"passage": RHINE}, ("candidate", "same text", "en", "passage")),
        (
            {"passage": f"It comes before the sentence. {RHINE.upper()} It comes after it."},
            ("candidate", "contained", "en", "passage"),
        ),
        ({"passage": RHINE.replace("several", "many")}, ("candidate", "contained", "en", "passage")),
        (
            {"passage": "the Swiss Alps through several countries to the North Sea"},
            ("candidate", "contained", "en", "passage"),
        ),
    ],
)
def test_texts_of_the_benchmark_are_found(
    benchmark_folder: Path, tmp_path: Path, texts: dict[str, str], expected: tuple[str, ...]
) -> None:
    """Word for word, but for case and punctuation, inside a longer text, cut out, with a word changed."""
    report, findings = search(benchmark_folder, tmp_path, pair("b"), pair(**texts))
    assert found(findings) == [expected]
    assert [(f.pair_id, f.dataset) for f in findings] == [("a", "train")]
    assert (report.status, report.exit_code) == ("leakage", 3)
    assert (report.datasets[0].leaked_rows, report.datasets[0].documents) == (1, ["Lakes"])


def test_hard_negatives_are_training_texts_too(benchmark_folder: Path, tmp_path: Path) -> None:
    """A candidate that is pushed away in training is known as well as one that is pulled near."""
    leaking = ParallelPair("a", "p", "Lakes", {"en": "Which?"}, {"en": "A lake."}, {"en": ["Other.", RHINE]})
    _, findings = search(benchmark_folder, tmp_path, leaking)
    assert found(findings) == [("candidate", "same text", "en", "negatives")]


def test_a_question_found_in_one_language_is_found_in_all(benchmark_folder: Path, tmp_path: Path) -> None:
    """Its translations ask the same, whatever language the training pair is in; sentences have no such ids."""
    report, _ = search(benchmark_folder, tmp_path, pair(query=QUESTION, passage=RHINE))
    assert {lang: share.found for lang, share in report.questions.items()} == {"en": 1, "de": 1}
    assert {lang: share.found for lang, share in report.candidates.items()} == {"en": 1, "de": 0}


def test_a_shared_id_is_enough_if_it_is_no_chance(benchmark_folder: Path, tmp_path: Path) -> None:
    """A translation that shares no word with any of the benchmark is found by its long id; `q2` says nothing."""
    foreign = {"lang": "fi", "query": "Mihin joki päättyy?", "passage": "Joki on pitkä."}
    report, findings = search(benchmark_folder, tmp_path, pair(QUESTION_ID, **foreign), pair("q2", **foreign))
    assert [(f.match, f.benchmark_id, f.pair_id) for f in findings] == [("same id", QUESTION_ID, QUESTION_ID)]
    assert {lang: share.found for lang, share in report.questions.items()} == {"en": 1, "de": 1}
    _, findings = search(benchmark_folder, tmp_path, pair("q2", **foreign), id_characters=2)
    assert [f.benchmark_id for f in findings] == ["q2"]


def test_a_passage_of_several_pairs_counts_once(benchmark_folder: Path, tmp_path: Path) -> None:
    """Findings are about texts; how many pairs hold them is said beside it."""
    texts = {"en": f"Before it. {RHINE}"}
    pairs = [ParallelPair(f"pair{i}", "p", "Lakes", {"en": f"What is lake {i}?"}, texts) for i in range(20)]
    report, findings = search(benchmark_folder, tmp_path, *pairs)
    assert len(findings) == 1
    assert report.datasets[0].leaked_rows == 20


def test_the_report_lists_a_bounded_number(benchmark_folder: Path, tmp_path: Path) -> None:
    """All findings are handed on; the report itself keeps the first hundred of each kind."""
    pairs = [pair(f"pair{i}", query=QUESTION) for i in range(130)]
    report, findings = search(benchmark_folder, tmp_path, *pairs)
    assert report.findings == {"question, same text": 130}
    assert len(findings) == 130
    assert len(report.listed) == 100


@pytest.mark.parametrize("name", ["Rhine_(river)", "Rhine (river)", "rhine%20%28river%29", " Rhine_(River) "])
def test_articles_are_found_by_any_spelling(benchmark_folder: Path, tmp_path: Path, name: str) -> None:
    """Underscores, percent-encoding and case differ between sources; severity is `article`, not `text`."""
    report, _ = search(benchmark_folder, tmp_path, pair(group=name), pair("b", group=name), pair("c", group="Rhine"))
    assert [(article.document, article.rows) for article in report.articles] == [(name, 2)]
    assert json.loads(report.to_json())["severity"] == {"text": 0, "article": 1}
    assert report.exit_code == 3


def test_percent_encoded_letters_of_titles() -> None:
    """In whatever normal form, and a lone percent sign is itself."""
    assert plain_title("Beyonc%C3%A9") == plain_title("Beyonce\u0301") == "beyoncé"
    assert plain_title("100%") == "100%"


def test_documents_without_titles_are_not_called_clean(benchmark_folder: Path, tmp_path: Path) -> None:
    """Shards that keep only numbers of documents cannot be compared with titles: that must be accepted by someone."""
    benchmark = load_lareqa(benchmark_folder, "xquad-r")
    dataset = shards(tmp_path / "corpus", [pair()], named=False)
    report = find_leakage([dataset], benchmark, frozenset({"rhine (river)"}))
    assert (report.status, report.exit_code, report.untitled) == ("incomplete", 3, {"train": 1})
    assert report.not_comparable == "1 document of train has no title"
    assert report.accept(["translated by hand from another encyclopedia"]).exit_code == 0


def test_a_benchmark_without_titles_is_compared_by_its_texts(benchmark_folder: Path, tmp_path: Path) -> None:
    """There is nothing for anyone to accept, and the report does not let it pass for a comparison of articles."""
    report = find_leakage([shards(tmp_path, [pair()])], load_lareqa(benchmark_folder, "tatoeba"), None)
    assert (report.status, report.not_comparable) == ("clean", "tatoeba gives no titles")
    assert json.loads(report.to_json())["not_comparable"] == "tatoeba gives no titles"


def test_an_id_is_no_title(benchmark_folder: Path, tmp_path: Path) -> None:
    """Where the source knows no article, a document has the name of its passage: one such and there is no "clean"."""
    report, _ = search(benchmark_folder, tmp_path, pair("a", group="p-a"), pair("b", group="p-b"), pair("c"))
    assert (report.status, report.untitled) == ("incomplete", {"train": 2})
    titled, _ = search(benchmark_folder, tmp_path, pair("a", group="p-b"), pair("b", group="Rhine"))
    assert (titled.status, titled.not_comparable) == ("clean", "")


def test_untitled_documents_are_counted_over_all_parts(tmp_path: Path) -> None:
    """Once each, however many pairs and passages they have, in whatever part those are."""
    pairs = [pair(str(i), group=f"p-{i - i % 3}" if i < 150 else "Lakes") for i in range(300)]
    dataset = shards(tmp_path, pairs)
    assert len(dataset.manifest.rows_per_part) > 1
    assert (untitled_documents(dataset), dataset.manifest.groups) == (50, 51)


@pytest.mark.parametrize(
    ("format_name", "source", "options"),
    [
        ("belebele", "belebele", {}),
        ("duorc", "duorc/SelfRC_train.json", {}),
        ("mfaq", "mfaq", {}),
        ("mmarco", "mmarco", {"languages": ["en", "de"]}),
        ("mr-tydi", "mr_tydi", {"split": "train"}),
        ("newsqa", "newsqa/combined-newsqa-data-v1.json", {}),
        ("wikiqa", "wikiqa/WikiQA-train.tsv", {}),
        ("yahoo-qa", "yahoo_qa/yahoo_answers_qa.csv", {}),
    ],
)
def test_formats_without_articles(tmp_path: Path, format_name: str, source: str, options: dict[str, Any]) -> None:
    """Numbers, hashes and web sites are no titles, also once the data are cleaned."""
    import_format(format_name, str(FORMATS / source), str(tmp_path / "raw"), "d", **options)
    raw = ShardedDataset.open(Folder(str(tmp_path / "raw" / "d")))
    settings = CleaningSettings(pivot=raw.manifest.languages[0])
    clean(raw, Folder(str(tmp_path / "clean")), settings)
    for root in ("raw", "clean"):
        dataset = ShardedDataset.open(Folder(str(tmp_path / root / "d")))
        assert untitled_documents(dataset) == dataset.manifest.groups > 0


@pytest.mark.parametrize(
    ("format_name", "source", "options", "untitled"),
    [
        ("squad", "squad/dev-v2.0.json", {"language": "en"}, 0),
        ("dpr-nq", "dpr_nq/biencoder-nq-train.json", {}, 0),
        ("entity-questions", "entity_questions", {}, 0),
        ("afriqa", "afriqa/gold_span_passages.afriqa.hau.en.train.json", {}, 1),
    ],
)
def test_formats_with_articles(
    tmp_path: Path, format_name: str, source: str, options: dict[str, Any], untitled: int
) -> None:
    """All titles are compared; of AfriQA's two usable passages one says no title."""
    import_format(format_name, str(FORMATS / source), str(tmp_path), "d", **options)
    dataset = ShardedDataset.open(Folder(str(tmp_path / "d")))
    assert untitled_documents(dataset) == untitled < dataset.manifest.groups


def test_the_command_keeps_report_and_findings(benchmark_folder: Path, tmp_path: Path) -> None:
    """Beside the corpus and where it is told to: what was found and in what data; read again it is the same report."""
    corpus, out = tmp_path / "corpus", tmp_path / "reports" / "mine.json"
    shards(corpus, [pair(query=QUESTION, group="Rhine (river)"), pair("b")])
    checked = check_leakage(str(corpus), "xquad-r", tmp_path, out, languages=["de", "en"])
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["status"], content["severity"]) == ("leakage", {"text": 1, "article": 1})
    assert content["benchmark_hash"] == load_benchmark("xquad-r", tmp_path, ["en", "de"]).data_hash
    lines = (out.parent / "mine.findings.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["benchmark_text"] for line in lines] == [QUESTION]
    assert read_report(out).to_json() == checked.report.to_json()
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine.findings.jsonl", "mine.json"]
    for address, copy in ((checked.address, out), (checked.findings, out.parent / "mine.findings.jsonl")):
        assert Path(address).parent == corpus / "leakage"
        assert Path(address).read_bytes() == copy.read_bytes()


def test_a_part_of_a_benchmark_does_not_replace_the_whole(benchmark_folder: Path, tmp_path: Path) -> None:
    """Reports of different languages are kept side by side, in a corpus that stays one."""
    corpus = tmp_path / "corpus"
    shards(corpus, [pair()])
    for languages in (["en"], ["en", "de"], ["de", "en"]):
        check_leakage(str(corpus), "xquad-r", tmp_path, languages=languages)
    kept = sorted(path.name for path in (corpus / "leakage").glob("*.json"))
    assert kept == ["xquad-r.de.en.json", "xquad-r.en.json"]
    assert [dataset.name for dataset in open_corpus(Folder(str(corpus)))] == ["train"]


def test_a_report_stands_for_its_own_data_only(benchmark_folder: Path, tmp_path: Path) -> None:
    """Other shards or one more dataset make it stale; fewer datasets than it is about do not."""
    corpus = tmp_path / "corpus"
    own = {name: shards(corpus, [pair(), pair("b")], name).data_hash for name in ("train", "more")}
    changed = shards(tmp_path / "changed", [pair(), pair("b", query="Another?")]).data_hash
    check_leakage(str(corpus), "xquad-r", tmp_path, languages=["en", "de"])
    cases = {
        "clean": [own, {"train": own["train"]}],
        "stale": [own | {"train": changed}, own | {"third": own["train"]}],
    }
    for status, trained in cases.items():
        for hashes in trained:
            (report,) = kept_reports([Folder(str(corpus)), Folder(str(corpus))], hashes)
            assert report.status == status
            assert report.benchmark_hash == load_benchmark("xquad-r", tmp_path, ["en", "de"]).data_hash


def test_a_report_beside_a_dataset_is_found(benchmark_folder: Path, tmp_path: Path) -> None:
    """Who searches one dataset of a corpus keeps the report in that dataset, which stays valid."""
    dataset = shards(tmp_path / "corpus", [pair()])
    check_leakage(dataset.folder.uri, "xquad-r", tmp_path, languages=["en", "de"])
    (report,) = kept_reports([Folder(str(tmp_path / "corpus")), dataset.folder], {"train": dataset.data_hash})
    assert (report.status, report.report) == ("clean", f"{dataset.folder.uri}/leakage/xquad-r.de.en.json")
    validate(dataset)


def test_a_file_that_is_no_report_is_noted(tmp_path: Path) -> None:
    """A training that took days does not fail over it, and does not take it for a report either."""
    folder = Folder(str(tmp_path))
    for name, content in {"a": b"{}", "b": b"not JSON", "c": b"\xff", "d": b'{"status": "perfect"}'}.items():
        folder.write(f"leakage/{name}.json", content)
    folder.write("leakage/e.findings.jsonl", b"")
    found = {report.benchmark: report for report in kept_reports([folder], {})}
    assert {name: report.status for name, report in found.items()} == dict.fromkeys("abcd", "unreadable")
    assert all(report.reasons[0] for report in found.values())


def test_accepted_leakage_is_on_record(benchmark_folder: Path, tmp_path: Path) -> None:
    """The reason, and how much there was of what when it was accepted."""
    corpus, out = tmp_path / "corpus", tmp_path / "report.json"
    shards(corpus, [pair(group="Rhine_(river)")])
    accept = ["one shared article"]
    report = check_leakage(str(corpus), "xquad-r", tmp_path, out, languages=["en", "de"], accept=accept).report
    assert (report.status, report.exit_code) == ("accepted", 0)
    assert json.loads(out.read_text())["accepted"] == [{"reason": "one shared article", "text": 0, "article": 1}]
    clean, _ = search(benchmark_folder, tmp_path, pair())
    assert clean.accept(["not needed"]) == clean


def test_faulty_input_is_named(benchmark_folder: Path, tmp_path: Path) -> None:
    """A report that is none, a folder without the benchmark's files, a damaged file, a reason without a word."""
    (tmp_path / "report.json").write_text('{"status": "clean"}')
    with pytest.raises(ConfigError, match=r"report\.json"):
        read_report(tmp_path / "report.json")
    with pytest.raises(ConfigError, match="Check the path"):
        read_report(tmp_path / "absent.json")
    with pytest.raises(BenchmarkError, match="no file of the languages fr"):
        read_titles("xquad-r", benchmark_folder, ["fr"])
    (benchmark_folder / "en.json").write_text('{"data": [{"title": 7}]}')
    with pytest.raises(CorpusError, match=r"data\[0\]\.title") as caught:
        read_titles("xquad-r", benchmark_folder, ["en"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert read_titles("tatoeba", benchmark_folder, ["en"]) is None
    with pytest.raises(ConfigError, match="Give the reason"):
        check_leakage(str(tmp_path), "xquad-r", tmp_path, accept=["one shared article", " "])


def test_a_corpus_that_cannot_be_written_is_refused_before_the_search(benchmark_folder: Path, tmp_path: Path) -> None:
    """The report would have no place where training finds it."""
    shards(tmp_path / "corpus", [pair()])
    (tmp_path / "corpus" / "leakage").write_text("in the way")
    with pytest.raises(ResourceError, match="leakage"):
        check_leakage(str(tmp_path / "corpus"), "no-such-benchmark", tmp_path)


def test_the_index_agrees_with_sets_of_words(benchmark_folder: Path) -> None:
    """Scores are those of word-tuple sets, for a text that repeats two thirds of a sentence."""
    index = index_benchmark(load_lareqa(benchmark_folder, "xquad-r", ["en"]), LeakageSettings(contained=0.5))
    words = RHINE.rstrip(".").lower().split()
    cut = words[:12]
    shingle_sets = [
        {tuple(part[i : i + 3]) for i in range(len(part) - 2)} for part in (words, [*cut, "x", "y", "z", *"abcdefgh"])
    ]
    expected = len(shingle_sets[0] & shingle_sets[1]) / len(shingle_sets[0])
    (match,) = index.matches([f"{' '.join(cut)} x y z a b c d e f g h"], whole=False)
    assert index.item(match.item).text == RHINE
    assert match.score == pytest.approx(expected)
    assert not list(index.matches(["", "?!"], whole=False))


# Real data


def squad(file: str, exclude: frozenset[str] = frozenset()) -> Iterator[ParallelPair]:
    """The pairs of an English SQuAD file, without paragraphs that hold one of the excluded question ids."""
    data = json.loads(gzip.decompress((DATASETS / "squad-en" / file).read_bytes()))["data"]
    for a, article in enumerate(data):
        for p, paragraph in enumerate(article["paragraphs"]):
            if exclude.isdisjoint(question["id"] for question in paragraph["qas"]):
                for q in paragraph["qas"]:
                    passage = {"en": paragraph["context"]}
                    yield ParallelPair(q["id"], f"{a}:{p}", article["title"], {"en": q["question"]}, passage)


def xquad_ids() -> frozenset[str]:
    data = json.loads(gzip.decompress((DATASETS / "xquad-r" / "en.json.gz").read_bytes()))["data"]
    return frozenset(q["id"] for article in data for p in article["paragraphs"] for q in p["qas"])


@real_data
def test_squad_dev_holds_all_of_xquad_r(tmp_path: Path) -> None:
    """All 1,190 questions, by id and by text, a sentence of each of the 240 paragraphs, all 48 articles."""
    shards(tmp_path / "corpus", list(squad("dev.json.gz")))
    out = tmp_path / "report.json"
    report = check_leakage(str(tmp_path / "corpus"), "xquad-r", DATASETS, out).report
    assert {share.found for share in report.questions.values()} == {1190}
    assert report.findings["question, same id"] == 1190
    findings = [json.loads(line) for line in out.with_suffix(".findings.jsonl").read_text().splitlines()]
    same_text = {f["benchmark_id"] for f in findings if f["match"] == "same text" and f["kind"] == "question"}
    assert same_text == xquad_ids()
    sentences = {f["benchmark_id"] for f in findings if f["kind"] == "candidate" and f["benchmark_language"] == "en"}
    assert len({sentence.split("_")[1] for sentence in sentences}) == 240
    assert report.candidates["en"].found == len(sentences) > 0.9 * 1180
    assert (len(report.articles), report.datasets[0].leaked_documents) == (48, 48)


@real_data
def test_squad_dev_without_xquad_shares_its_articles_only(tmp_path: Path) -> None:
    """No question and no sentence in 1,827 paragraphs, and 48 articles with all 9,380 pairs."""
    dataset = shards(tmp_path / "corpus", list(squad("dev.json.gz", xquad_ids())))
    benchmark = load_benchmark("xquad-r", DATASETS)
    report = find_leakage([dataset], benchmark, read_titles("xquad-r", DATASETS, benchmark.languages))
    assert (report.findings, report.status, report.exit_code) == ({}, "leakage", 3)
    assert (len(report.articles), sum(article.rows for article in report.articles)) == (48, 9380)


@real_data
@pytest.mark.slow
def test_squad_translations_without_xquad_share_its_articles_only(tmp_path: Path) -> None:
    """The same in eight languages: no translated text is one of XQuAD-R in any of its eleven."""
    names = ("es", "zh", "it", "da", "tr", "tr-excluded", "sv", "id")
    english = {pair.pair_id: pair for pair in squad("dev.json.gz", xquad_ids())}
    pairs = []
    for name in names:
        lang = name.partition("-")[0]
        data = json.loads(gzip.decompress((DATASETS / "squad-dev-mt" / f"{name}.json.gz").read_bytes()))["data"]
        for paragraph in (p for article in data for p in article["paragraphs"]):
            for q in paragraph["qas"]:
                if q["id"] in english and q["question"].strip():
                    own = english[q["id"]]
                    pairs.append(
                        ParallelPair(
                            f"{lang}-{q['id']}",
                            f"{lang}-{own.passage_id}",
                            own.group,
                            {lang: q["question"]},
                            {lang: paragraph["context"]},
                        )
                    )
    dataset = shards(tmp_path / "corpus", [*english.values(), *pairs])
    benchmark = load_benchmark("xquad-r", DATASETS)
    report = find_leakage([dataset], benchmark, read_titles("xquad-r", DATASETS, benchmark.languages))
    assert report.findings == {}
    assert len(report.articles) == 48
    assert dataset.manifest.rows == 47_848


@real_data
@pytest.mark.slow
def test_articles_of_squad_train_in_mlqa_r(tmp_path: Path) -> None:
    """Four articles by title, and two that share a sentence with an article of another name."""
    dataset = shards(tmp_path / "corpus", list(squad("train.json.gz")))
    benchmark = load_benchmark("mlqa-r", DATASETS, ["en"])
    report = find_leakage([dataset], benchmark, read_titles("mlqa-r", DATASETS, ["en"]))
    by_title = {article.document for article in report.articles}
    assert by_title == {
        "George_VI",
        "Group_(mathematics)",
        "Intellectual_property",
        "Super_Nintendo_Entertainment_System",
    }
    assert {"George_VI", "Josip_Broz_Tito", "Pacific_War"} < set(report.datasets[0].documents)
    groups = np.bincount(dataset.groups())
    assert {article.rows for article in report.articles} <= set(groups.tolist())
