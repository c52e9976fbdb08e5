"""The embedded sample: a parallel QA corpus of eleven languages, made from CLDR and phone-number metadata.

It is what smoke runs and tests train and evaluate on, so it repeats the shape of the paper's data in small: datasets of
clearly different size, one without Thai and Turkish, one in English only, cells missing where CLDR has no name, two
languages of evaluation (Greek, Vietnamese) never seen in training, and a benchmark in XQuAD-R's format.

A fact is (entity, relation, value), e.g. (territory:JP, currency, yen). Benchmark facts never occur in training,
though their entities and their relations do, in other combinations: a model can only answer by composing them.
Facts are those of the installed CLDR version; where CLDR gives no single answer, there is no fact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import phonenumbers
import yaml
from babel import Locale, localedata
from babel import __version__ as babel_version
from babel.core import get_global
from babel.lists import format_list
from babel.numbers import get_currency_precision

from hbt_ray.corpus.pairs import ParallelPair

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
HELD_OUT = ("el", "vi")
TRAINING_LANGUAGES = tuple(code for code in LANGUAGES if code not in HELD_OUT)

PROVENANCE = {
    "source": f"Unicode CLDR via Babel {babel_version}; phonenumbers {phonenumbers.__version__}",
    "license": "Unicode-3.0 (CLDR), Apache-2.0 (phonenumbers), Apache-2.0 (sentence templates)",
}

BENCHMARK_PARAGRAPHS = 60
SENTENCES_PER_PARAGRAPH = 5
QUESTIONS_PER_PARAGRAPH = 4  # the other sentences of a paragraph are distractors
FACTS_LEFT_FOR_TRAINING = 4  # at least, of each entity of the benchmark

SECOND_QUESTION_SHARE = 0.2  # of the training facts; both questions share one passage

Names = Mapping[str, str]  # language code -> text; a language without a CLDR name is absent


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement: the `relation` of `entity` (`territory:JP`) is `value`; `subject` names the entity."""

    entity: str
    relation: str
    subject: Names
    value: Names

    @property
    def fact_id(self) -> str:
        """Entity and relation, e.g. `territory:JP/currency`."""
        return f"{self.entity}/{self.relation}"

    def languages(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of `wanted` in which both the entity and the value have a name."""
        return tuple(code for code in wanted if code in self.subject and code in self.value)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Which languages and relations one training dataset is made of."""

    languages: tuple[str, ...]
    relations: tuple[str, ...]


DATASETS: Mapping[str, Dataset] = {
    "countries": Dataset(
        TRAINING_LANGUAGES,
        (
            "currency",
            "currency_since",
            "calling_code",
            "exit_prefix",
            "official_language",
            "week_start",
            "weekend",
            "standard_time",
            "continent",
            "country_code",
        ),
    ),
    "currencies": Dataset(TRAINING_LANGUAGES, ("former_currency", "currency_code", "decimals")),
    "tongues": Dataset(
        tuple(code for code in TRAINING_LANGUAGES if code not in ("th", "tr")), ("script", "language_code")
    ),
    "endonyms": Dataset(("en",), ("endonym",)),
}


def sample_pairs(seed: int = 13) -> dict[str, list[ParallelPair]]:
    """Training pairs per dataset, largest dataset first.

    Query = question, passage = answer sentence, group = fact, so held-out facts are new and their
    entities are not, as in the benchmark. The same seed gives the same pairs on every machine
    with the same Babel and phonenumbers; another seed holds out other facts and chooses other phrasings.
    """
    held_out = {fact.fact_id for paragraph in benchmark_facts(seed) for fact in paragraph}
    facts = [fact for fact in _facts() if fact.fact_id not in held_out]
    return {
        name: [
            pair
            for fact in facts
            if fact.relation in dataset.relations
            for pair in _pairs_of_fact(fact, dataset.languages, seed)
        ]
        for name, dataset in DATASETS.items()
    }


def benchmark_facts(seed: int) -> list[list[Fact]]:
    """Facts kept out of training: BENCHMARK_PARAGRAPHS entities with SENTENCES_PER_PARAGRAPH facts each, in order.

    Only entities with FACTS_LEFT_FOR_TRAINING further facts are drawn, so that training meets each of them too.
    """
    by_entity: dict[str, list[Fact]] = {}
    for fact in _facts():
        if fact.languages(LANGUAGES) == LANGUAGES:
            by_entity.setdefault(fact.entity, []).append(fact)
    enough = SENTENCES_PER_PARAGRAPH + FACTS_LEFT_FOR_TRAINING
    rich = [facts for facts in by_entity.values() if len(facts) >= enough]
    random = Random(f"{seed}/benchmark")
    return [random.sample(facts, SENTENCES_PER_PARAGRAPH) for facts in random.sample(rich, BENCHMARK_PARAGRAPHS)]


def write_sample_benchmark(out: Path, seed: int = 13) -> None:
    """Write `<out>/<language>.json` in XQuAD-R's format for each of LANGUAGES, ids in the same order in all files.

    A paragraph is about one entity; all its sentences state facts that `sample_pairs(seed)` leaves out.
    """
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = benchmark_facts(seed)
    for language in LANGUAGES:
        articles = [
            {"title": _sentence(facts[0].subject[language]), "paragraphs": [_paragraph(facts, language, seed)]}
            for facts in paragraphs
        ]
        text = json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False, indent=1)
        (out / f"{language}.json").write_text(text + "\n", encoding="utf-8")


# --- from facts to sentences --------------------------------------------------------------------------------


@cache
def _wording() -> Any:
    """The sections `relations` and `articles` of sample_templates.yaml, which explains them."""
    file = resources.files("hbt_ray.corpus").joinpath("sample_templates.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _templates(fact: Fact, kind: str, language: str, seed: int) -> list[str]:
    """The phrasings of `kind` ("questions", "answers"), in an order drawn for this fact and language."""
    phrasings: list[str] = _wording()["relations"][fact.relation][language][kind]
    return Random(f"{seed}/{fact.fact_id}/{kind}/{language}").sample(phrasings, len(phrasings))


def _sentence(text: str) -> str:
    """Some CLDR names are lower case (es "yen japonés") but may open a sentence."""
    return text[0].upper() + text[1:]


def _question(fact: Fact, language: str, number: int, seed: int) -> str:
    template = _templates(fact, "questions", language, seed)[number]
    return _sentence(template.format(x=fact.subject[language]))


def _answer(fact: Fact, language: str, seed: int) -> tuple[str, int]:
    """The answer sentence and the character offset at which the value starts in it."""
    template = _templates(fact, "answers", language, seed)[0]
    names = {"x": fact.subject[language], "y": fact.value[language]}
    start = len(template[: template.index("{y}")].format(**names))
    return _sentence(template.format(**names)), start


def _pairs_of_fact(fact: Fact, wanted: Sequence[str], seed: int) -> Iterator[ParallelPair]:
    languages = fact.languages(wanted)
    if not languages:
        return
    passage = {code: _answer(fact, code, seed)[0] for code in languages}
    num_questions = 2 if Random(f"{seed}/{fact.fact_id}").random() < SECOND_QUESTION_SHARE else 1
    for number in range(num_questions):
        yield ParallelPair(
            pair_id=f"{fact.fact_id}/{number}",
            passage_id=fact.fact_id,
            group=fact.fact_id,
            query={code: _question(fact, code, number, seed) for code in languages},
            passage=passage,
        )


# --- the benchmark ------------------------------------------------------------------------------------------


def _paragraph(facts: Sequence[Fact], language: str, seed: int) -> dict[str, object]:
    """One XQuAD-R paragraph: a sentence per fact, and questions about the same facts in every language."""
    separator = "" if language == "zh" else " "
    asked = set(Random(f"{seed}/{facts[0].entity}/asked").sample(range(len(facts)), QUESTIONS_PER_PARAGRAPH))
    sentences: list[str] = []
    breaks: list[list[int]] = []
    qas: list[dict[str, object]] = []
    start = 0
    for position, fact in enumerate(facts):
        sentence, value_start = _answer(fact, language, seed)
        sentences.append(sentence)
        breaks.append([start, start + len(sentence)])
        if position in asked:
            qas.append(
                {
                    "id": fact.fact_id,
                    "question": _question(fact, language, 0, seed),
                    "answers": [{"answer_start": start + value_start, "text": fact.value[language]}],
                }
            )
        start += len(sentence) + len(separator)
    return {
        "context": separator.join(sentences),
        "sentences": sentences,
        "sentence_breaks": breaks,
        "qas": qas,
    }


# --- from CLDR and phone-number metadata to facts -----------------------------------------------------------

# IANA names a zone after the part of the world it is in; these are the CLDR codes of those parts.
_PARTS_OF_THE_WORLD = {"Africa": "002", "America": "019", "Asia": "142", "Europe": "150", "Pacific": "009"}

# Ascension and Tristan da Cunha have no ISO 3166 code of their own, Kosovo a provisional one.
_NOT_IN_ISO_3166 = ("AC", "TA", "XK")


@cache
def _facts() -> tuple[Fact, ...]:
    """Every fact, in an order that depends on CLDR's codes alone."""
    return tuple(
        Fact(entity, relation, subject, value)
        for entity, subject, values in (*_territories(), *_currencies(), *_languages())
        for relation, value in values.items()
        if value
    )


Entity = tuple[str, Names, Mapping[str, Names]]  # entity id, its names, relation -> value (empty: no single answer)


def _territories() -> Iterator[Entity]:
    """Territories that have a calling code: the inhabited ones."""
    for code in sorted(phonenumbers.SUPPORTED_REGIONS):
        if code in _NOT_IN_ISO_3166:
            continue
        week_start, weekend = _week(code)
        yield (
            f"territory:{code}",
            _territory_names(code),
            {
                "currency": _currency(code),
                "currency_since": _currency_since(code),
                "former_currency": _former_currency(code),
                "calling_code": _everywhere(f"+{phonenumbers.country_code_for_region(code)}"),
                "exit_prefix": _exit_prefix(code),
                "official_language": _official_language(code),
                "week_start": week_start,
                "weekend": weekend,
                "standard_time": _standard_time(code),
                "continent": _continent(code),
                "country_code": _everywhere(code),
            },
        )


def _currencies() -> Iterator[Entity]:
    """Currencies that are or were legal tender; the decimals of past ones are not recorded."""
    tender = [entry for code in get_global("territory_currencies") for entry in _legal_tender(code)]
    current = {currency for currency, _, end in tender if end is None}
    for code in sorted({currency for currency, _, _ in tender}):
        decimals = _everywhere(str(get_currency_precision(code))) if code in current else {}
        yield (
            f"currency:{code}",
            _names("currencies", code),
            {"currency_code": _everywhere(code), "decimals": decimals},
        )


def _languages() -> Iterator[Entity]:
    """Languages with a two-letter code and known writing."""
    for code, scripts in sorted(_scripts_by_language().items()):
        yield (
            f"language:{code}",
            _names("languages", code),
            {
                "script": _names("scripts", scripts[0]) if len(scripts) == 1 else {},
                "language_code": _everywhere(code),
                "endonym": _endonym(code),
            },
        )


@cache
def _locale(identifier: str) -> Locale:
    return Locale.parse(identifier)


def _everywhere(text: str) -> Names:
    return dict.fromkeys(LANGUAGES, text)


def _names(kind: str, code: str) -> Names:
    """CLDR's names of a code; a language that has none, or repeats the code, is left out rather than filled in."""
    found = {language: getattr(_locale(language), kind).get(code) for language in LANGUAGES}
    return {language: name for language, name in found.items() if name and name != code}


def _territory_names(code: str) -> Names:
    """Names as they stand inside a sentence: "the Bahamas", "las Islas Cook"."""
    names = dict(_names("territories", code))
    for language, articles in _wording()["articles"].items():
        for article, codes in articles.items():
            if code in codes:
                names[language] = f"{article} {names[language]}"
    return names


Date = tuple[int, int, int]


def _legal_tender(territory: str) -> list[tuple[str, Date | None, Date | None]]:
    """(currency, first day, last day or None for the current one) of everything that was legal tender."""
    entries = get_global("territory_currencies").get(territory, [])
    return [(currency, start, end) for currency, start, end, is_tender in entries if is_tender]


def _current_tender(territory: str) -> tuple[str, Date | None] | None:
    current = [(currency, start) for currency, start, end in _legal_tender(territory) if end is None]
    return current[0] if len(current) == 1 else None


def _currency(territory: str) -> Names:
    current = _current_tender(territory)
    return _names("currencies", current[0]) if current else {}


def _currency_since(territory: str) -> Names:
    current = _current_tender(territory)
    return _everywhere(str(current[1][0])) if current and current[1] else {}


def _former_currency(territory: str) -> Names:
    """The last currency to be withdrawn, if one alone was the last and it is not the current one again."""
    current = _current_tender(territory)
    ended = [(end, currency) for currency, _, end in _legal_tender(territory) if end is not None]
    if not current or not ended:
        return {}
    last_day = max(end for end, _ in ended)
    last = {currency for end, currency in ended if end == last_day}
    if len(last) != 1 or current[0] in last:
        return {}
    return _names("currencies", last.pop())


def _exit_prefix(territory: str) -> Names:
    """The prefix of calls abroad; a territory with a choice of carriers has a pattern instead, and no fact."""
    metadata = phonenumbers.PhoneMetadata.metadata_for_region(territory)
    prefix = metadata and (metadata.preferred_international_prefix or metadata.international_prefix)
    return _everywhere(prefix) if prefix and prefix.isdigit() else {}


def _official_language(territory: str) -> Names:
    """The one language with any official status: where a second one has it regionally, an answer can be disputed."""
    languages = get_global("territory_languages").get(territory, {})
    official = [code for code, data in languages.items() if data["official_status"]]
    return _names("languages", official[0]) if len(official) == 1 else {}


@cache
def _locale_by_territory() -> dict[str, str]:
    """Territory -> a locale with that territory's own week.

    Babel lets pt_AO inherit the week of pt_PT, which says nothing of Angola, so such locales are passed over.
    """
    own: dict[str, str] = {}
    for identifier in sorted(localedata.locale_identifiers()):
        parent = get_global("parent_exceptions").get(identifier, "")
        if not _territory_of(parent):
            own.setdefault(_territory_of(identifier), identifier)
    return own


def _territory_of(identifier: str) -> str:
    """The territory of a locale identifier such as zh_Hant_TW; empty for zh_Hant, es_419 and pt."""
    last = identifier.rpartition("_")[2]
    return last if len(last) == 2 and last.isupper() else ""


def _week(territory: str) -> tuple[Names, Names]:
    """First day of the week and weekend."""
    if territory not in _locale_by_territory():
        return {}, {}
    locale = _locale(_locale_by_territory()[territory])
    weekend = range(locale.weekend_start, locale.weekend_end + 1)
    return (
        {language: _weekday(language, locale.first_week_day) for language in LANGUAGES},
        {
            language: format_list([_weekday(language, day) for day in weekend], locale=language)
            for language in LANGUAGES
        },
    )


def _weekday(language: str, day: int) -> str:
    name: str = _locale(language).days["stand-alone"]["wide"][day]
    return name


def _zones(territory: str) -> list[str]:
    zones: list[str] = get_global("territory_zones").get(territory, [])
    return zones


def _standard_time(territory: str) -> Names:
    """The name of the standard time, where all zones of the territory share one."""
    metazones = {get_global("meta_zones").get(zone) for zone in _zones(territory)}
    if len(metazones) != 1 or None in metazones:
        return {}
    metazone = metazones.pop()
    found = {code: _locale(code).meta_zones.get(metazone, {}).get("long", {}) for code in LANGUAGES}
    return {code: widths["standard"] for code, widths in found.items() if widths.get("standard")}


def _continent(territory: str) -> Names:
    """The part of the world of all its zones; Türkiye's only zone is in Europe, most of the country is not."""
    areas = {zone.partition("/")[0] for zone in _zones(territory)}
    if len(areas) != 1 or territory == "TR":
        return {}
    part = _PARTS_OF_THE_WORLD.get(areas.pop())
    return _territory_names(part) if part else {}


@cache
def _scripts_by_language() -> dict[str, tuple[str, ...]]:
    """Two-letter language code -> the scripts CLDR knows it to be written in, sorted."""
    scripts: dict[str, set[str]] = {}
    for tag, likely in get_global("likely_subtags").items():
        language = tag.partition("_")[0]
        if len(language) == 2:
            scripts.setdefault(language, set()).add(likely.split("_")[1])
    return {language: tuple(sorted(found)) for language, found in scripts.items()}


def _endonym(language: str) -> Names:
    """A language's name for itself, for English questions; held-out languages stay out of training altogether."""
    if language in HELD_OUT or not localedata.exists(language):
        return {}
    name = _locale(language).languages.get(language)
    return {"en": name} if name else {}
