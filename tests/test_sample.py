from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.sample import (
    DATASETS,
    HELD_OUT,
    LANGUAGES,
    PROVENANCE,
    QUESTIONS_PER_PARAGRAPH,
    SENTENCES_PER_PARAGRAPH,
    TRAINING_LANGUAGES,
    Fact,
    benchmark_facts,
    sample_pairs,
    write_sample_benchmark,
)

SEED = 13

# One script per language that is not written in Latin letters, as Unicode names its characters.
SCRIPTS = {
    "ar": "ARABIC",
    "el": "GREEK",
    "hi": "DEVANAGARI",
    "ru": "CYRILLIC",
    "th": "THAI",
    "zh": "CJK",
}


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[ParallelPair]]:
    return sample_pairs(SEED)


@pytest.fixture(scope="module")
def held_out_facts() -> list[Fact]:
    return [fact for paragraph in benchmark_facts(SEED) for fact in paragraph]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Language -> paragraphs, as read back from the files."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_sample_benchmark(folder, SEED)
    files = {language: json.loads((folder / f"{language}.json").read_text("utf-8")) for language in LANGUAGES}
    return {
        language: [paragraph for article in file["data"] for paragraph in article["paragraphs"]]
        for language, file in files.items()
    }


def all_pairs(pairs: Mapping[str, list[ParallelPair]]) -> Iterator[ParallelPair]:
    for dataset in pairs.values():
        yield from dataset


def question_ids(paragraphs: list[dict[str, Any]]) -> list[str]:
    return [qa["id"] for paragraph in paragraphs for qa in paragraph["qas"]]


def pair_of(pairs: Mapping[str, list[ParallelPair]], dataset: str, pair_id: str) -> ParallelPair:
    return next(pair for pair in pairs[dataset] if pair.pair_id == pair_id)


# --- languages and datasets ---------------------------------------------------------------------------------


def test_two_of_the_eleven_languages_are_held_out() -> None:
    """Eleven languages of evaluation are the nine of training and the two held out."""
    assert len(LANGUAGES) == 11
    assert sorted(TRAINING_LANGUAGES + HELD_OUT) == sorted(LANGUAGES)


def test_held_out_languages_never_occur_in_training(pairs: dict[str, list[ParallelPair]]) -> None:
    """No training query or passage is in Greek or Vietnamese."""
    for pair in all_pairs(pairs):
        assert set(pair.query) | set(pair.passage) <= set(TRAINING_LANGUAGES)


def test_datasets_have_clearly_different_sizes(pairs: dict[str, list[ParallelPair]]) -> None:
    """Each dataset is at least 1.4 times the next, and all together hold 2,000 to 4,000 pairs."""
    sizes = [len(dataset) for dataset in pairs.values()]
    assert 2000 <= sum(sizes) <= 4000
    assert all(larger >= 1.4 * smaller for larger, smaller in pairwise(sizes))


def test_one_dataset_is_in_english_only(pairs: dict[str, list[ParallelPair]]) -> None:
    """The endonyms exist in English alone, so no cross-lingual batch can come from them."""
    assert {tuple(pair.query) for pair in pairs["endonyms"]} == {("en",)}


def test_one_dataset_lacks_thai_and_turkish(pairs: dict[str, list[ParallelPair]]) -> None:
    """The tongues have every training language but Thai and Turkish, as mMARCO has in the paper."""
    languages = {language for pair in pairs["tongues"] for language in pair.query}
    assert languages == set(TRAINING_LANGUAGES) - {"th", "tr"}


def test_a_language_without_a_name_is_a_missing_cell(pairs: dict[str, list[ParallelPair]]) -> None:
    """CLDR has no Hindi name of the Spanish peseta, so the pair about Andorra's peseta has no Hindi."""
    peseta = pair_of(pairs, "currencies", "territory:AD/former_currency/0")
    assert set(peseta.query) == set(peseta.passage) == set(TRAINING_LANGUAGES) - {"hi"}


def test_pair_ids_are_unique_within_a_dataset(pairs: dict[str, list[ParallelPair]]) -> None:
    """No two pairs of a dataset share a pair_id."""
    for dataset in pairs.values():
        assert len({pair.pair_id for pair in dataset}) == len(dataset)


def test_pairs_with_one_passage_id_share_passage_and_group(pairs: dict[str, list[ParallelPair]]) -> None:
    """Two questions on one fact have the same passage_id, passage and group, and different questions."""
    by_passage: dict[str, list[ParallelPair]] = defaultdict(list)
    for pair in all_pairs(pairs):
        by_passage[pair.passage_id].append(pair)
    shared = [group for group in by_passage.values() if len(group) > 1]
    assert len(shared) > 100
    for first, second in shared:
        assert first.passage == second.passage
        assert first.group == second.group
        assert all(first.query[language] != second.query[language] for language in first.query)


# --- the benchmark and training are disjoint ----------------------------------------------------------------


def test_benchmark_facts_never_occur_in_training(
    pairs: dict[str, list[ParallelPair]], held_out_facts: list[Fact]
) -> None:
    """No asked fact and no distractor of the benchmark is a training fact."""
    trained = {pair.passage_id for pair in all_pairs(pairs)}
    assert not trained & {fact.fact_id for fact in held_out_facts}


def test_benchmark_entities_and_relations_occur_in_training(
    pairs: dict[str, list[ParallelPair]], held_out_facts: list[Fact]
) -> None:
    """Every entity and every relation of the benchmark is trained, in other combinations and in every language."""
    for language in TRAINING_LANGUAGES:
        trained = [pair for pair in all_pairs(pairs) if language in pair.query]
        assert {fact.entity for fact in held_out_facts} <= {pair.passage_id.rpartition("/")[0] for pair in trained}
        relations = {pair.passage_id.rpartition("/")[2] for pair in trained}
        assert {fact.relation for fact in held_out_facts} <= relations


def test_benchmark_texts_never_occur_in_training(
    pairs: dict[str, list[ParallelPair]], benchmark: dict[str, list[dict[str, Any]]]
) -> None:
    """No sentence and no question of the benchmark is a training text in any language."""
    trained = {text for pair in all_pairs(pairs) for texts in (pair.query, pair.passage) for text in texts.values()}
    for paragraphs in benchmark.values():
        for paragraph in paragraphs:
            assert not trained & set(paragraph["sentences"])
            assert not trained & {qa["question"] for qa in paragraph["qas"]}


# --- XQuAD-R's format ---------------------------------------------------------------------------------------


def test_benchmark_is_parallel_in_eleven_languages(benchmark: dict[str, list[dict[str, Any]]]) -> None:
    """200 to 300 unique question ids stand in the same order in all eleven files."""
    ids = question_ids(benchmark["en"])
    assert 200 <= len(ids) == len(set(ids)) <= 300
    assert all(question_ids(benchmark[language]) == ids for language in LANGUAGES)


def test_sentence_breaks_cut_the_context_into_the_sentences(benchmark: dict[str, list[dict[str, Any]]]) -> None:
    """context[start:end] is the sentence for every entry of sentence_breaks, in all languages."""
    for paragraphs in benchmark.values():
        for paragraph in paragraphs:
            cut = [paragraph["context"][start:end] for start, end in paragraph["sentence_breaks"]]
            assert cut == paragraph["sentences"]


def test_each_answer_starts_in_exactly_one_sentence(benchmark: dict[str, list[dict[str, Any]]]) -> None:
    """A question has one answer, the context holds it at answer_start, and one sentence contains that start."""
    for paragraphs in benchmark.values():
        for paragraph in paragraphs:
            for qa in paragraph["qas"]:
                (answer,) = qa["answers"]
                start = answer["answer_start"]
                assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]
                assert sum(begin <= start < end for begin, end in paragraph["sentence_breaks"]) == 1


def test_a_paragraph_mixes_asked_sentences_and_distractors(benchmark: dict[str, list[dict[str, Any]]]) -> None:
    """A paragraph states facts of one entity; its questions have different answer sentences, one is not asked."""
    for paragraphs in benchmark.values():
        for paragraph in paragraphs:
            answered = [
                next(i for i, (begin, end) in enumerate(paragraph["sentence_breaks"]) if begin <= start < end)
                for start in (qa["answers"][0]["answer_start"] for qa in paragraph["qas"])
            ]
            assert len({qa["id"].partition("/")[0] for qa in paragraph["qas"]}) == 1
            assert len(set(paragraph["sentences"])) == SENTENCES_PER_PARAGRAPH
            assert len(set(answered)) == QUESTIONS_PER_PARAGRAPH < SENTENCES_PER_PARAGRAPH


def test_benchmark_asks_about_many_relations(held_out_facts: list[Fact]) -> None:
    """At least ten relations occur, so an entity's other facts are natural distractors."""
    assert len({fact.relation for fact in held_out_facts}) >= 10


# --- the texts ----------------------------------------------------------------------------------------------


def test_a_question_has_one_answer_within_a_language(
    pairs: dict[str, list[ParallelPair]], benchmark: dict[str, list[dict[str, Any]]]
) -> None:
    """No question text asks for two facts and no passage text states two, training and benchmark together."""
    fact_of: dict[tuple[str, str], str] = {}
    for pair in all_pairs(pairs):
        for language in pair.query:
            assert fact_of.setdefault((language, pair.query[language]), pair.passage_id) == pair.passage_id
            assert fact_of.setdefault((language, pair.passage[language]), pair.passage_id) == pair.passage_id
    for language, paragraphs in benchmark.items():
        for paragraph in paragraphs:
            for qa in paragraph["qas"]:
                assert fact_of.setdefault((language, qa["question"]), qa["id"]) == qa["id"]


def test_entity_names_are_translated(held_out_facts: list[Fact]) -> None:
    """Every entity of the benchmark has a name in the language's own script, none is a bare code."""
    for fact in held_out_facts:
        code = fact.entity.partition(":")[2]
        for language in LANGUAGES:
            name = fact.subject[language]
            assert name
            assert name != code
            if language in SCRIPTS:
                letters = [character for character in name if character.isalpha()]
                assert letters
                assert all(SCRIPTS[language] in unicodedata.name(letter) for letter in letters), (fact, language)


def test_training_texts_are_in_the_script_of_their_language(pairs: dict[str, list[ParallelPair]]) -> None:
    """Every training text of a language with its own script has letters of that script, and none is blank."""
    for pair in all_pairs(pairs):
        for texts in (pair.query, pair.passage):
            for language, text in texts.items():
                assert text.strip() == text != ""
                if language in SCRIPTS:
                    assert any(SCRIPTS[language] in unicodedata.name(character, "") for character in text)


def test_every_relation_is_worded_twice_in_every_language_of_its_datasets() -> None:
    """At least two questions and two answers; a question holds {x} once, an answer {x} and {y} once."""
    file = resources.files("hbt_ray.corpus").joinpath("sample_templates.yaml")
    relations = yaml.safe_load(file.read_text("utf-8"))["relations"]
    assert set(relations) == {relation for dataset in DATASETS.values() for relation in dataset.relations}
    for relation, by_language in relations.items():
        assert set(by_language) == ({"en"} if relation == "endonym" else set(LANGUAGES)), relation
        for language, wording in by_language.items():
            questions, answers = wording["questions"], wording["answers"]
            assert len(set(questions)) >= 2 <= len(set(answers)), (relation, language)
            assert all(text.count("{x}") == 1 and text.count("{y}") == 0 for text in questions)
            assert all(text.count("{x}") == text.count("{y}") == 1 for text in answers)


# --- the facts, against general knowledge -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact_id", "language", "value"),
    [
        ("territory:JP/currency", "de", "Japanischer Yen"),
        ("territory:HR/former_currency", "en", "Croatian Kuna"),
        ("territory:GR/calling_code", "en", "+30"),
        ("territory:US/exit_prefix", "es", "011"),
        ("territory:PT/official_language", "tr", "Portekizce"),
        ("territory:EG/weekend", "es", "viernes y sábado"),
        ("territory:BR/week_start", "en", "Sunday"),
        ("territory:KE/continent", "zh", "非洲"),
        ("territory:KE/standard_time", "en", "East Africa Time"),
        ("territory:EE/currency_since", "en", "2011"),
        ("currency:KWD/decimals", "de", "3"),
        ("currency:THB/currency_code", "th", "THB"),
        ("language:bg/script", "ru", "кириллица"),
        ("language:ja/language_code", "ar", "ja"),
        ("language:de/endonym", "en", "Deutsch"),
    ],
)
def test_known_facts(fact_id: str, language: str, value: str, pairs: dict[str, list[ParallelPair]]) -> None:
    """Facts that anyone can look up are stated as they are, in training or, if held out, in the benchmark."""
    statements = [pair.passage[language] for pair in all_pairs(pairs) if pair.passage_id == fact_id]
    held_out = [fact.value[language] for facts in benchmark_facts(SEED) for fact in facts if fact.fact_id == fact_id]
    (statement,) = set(statements) or set(held_out)
    assert value in statement


@pytest.mark.parametrize(
    "fact_id",
    [
        "territory:CH/official_language",  # four
        "territory:RU/standard_time",  # eleven zones
        "territory:RU/continent",  # two
        "territory:PA/currency",  # balboa and US dollar
        "territory:TL/week_start",  # Babel's pt_TL repeats Portugal's week
        "language:sr/script",  # Cyrillic and Latin
    ],
)
def test_ambiguous_facts_are_left_out(
    fact_id: str, pairs: dict[str, list[ParallelPair]], held_out_facts: list[Fact]
) -> None:
    """Where CLDR has several answers or none of its own, there is no question."""
    assert fact_id not in {pair.passage_id for pair in all_pairs(pairs)}
    assert fact_id not in {fact.fact_id for fact in held_out_facts}


def test_names_take_their_article_inside_a_sentence() -> None:
    """English and Spanish sentences say "the Bahamas" and "la RAE de Hong Kong", and capitalise at the start."""
    facts = {pair.passage_id: pair for seed in (13, 14) for pair in sample_pairs(seed)["countries"]}
    bahamas = facts["territory:BS/calling_code"].passage["en"]
    assert "the Bahamas" in bahamas
    assert "la RAE de Hong Kong" in facts["territory:HK/calling_code"].passage["es"]
    assert all(
        pair.passage[language][0].upper() == pair.passage[language][0]
        for pair in facts.values()
        for language in pair.passage
    )


# --- determinism --------------------------------------------------------------------------------------------

_DIGEST = """
import hashlib, pathlib, sys
from hbt_ray.corpus.sample import sample_pairs, write_sample_benchmark
out = pathlib.Path(sys.argv[1])
write_sample_benchmark(out)
files = b"".join(path.read_bytes() for path in sorted(out.iterdir()))
print(hashlib.sha256(repr(sample_pairs()).encode() + files).hexdigest())
"""


def digest(out: Path, hash_seed: str) -> str:
    """Digest of the whole sample made by a new Python process."""
    command = [sys.executable, "-c", _DIGEST, str(out)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_same_seed_gives_identical_output_in_any_process(tmp_path: Path) -> None:
    """Pairs and files do not depend on the process's hash seed."""
    assert digest(tmp_path / "first", "1") == digest(tmp_path / "second", "2")


def test_another_seed_gives_another_split() -> None:
    """Seeds 13 and 14 hold out different facts."""
    first, second = ({fact.fact_id for p in benchmark_facts(seed) for fact in p} for seed in (13, 14))
    assert len(first & second) < len(first) / 2


def test_provenance_names_source_and_licences() -> None:
    """The provenance names CLDR through Babel, its licence, and those of the numbers and the templates."""
    assert "CLDR via Babel" in PROVENANCE["source"]
    assert "Unicode-3.0" in PROVENANCE["license"]
    assert PROVENANCE["license"].count("Apache-2.0") == 2
