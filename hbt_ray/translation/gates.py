"""Whether a translation is fit to be a cell: pure functions of the two texts, one reason each.

A gate looks for what translation models do when they fail: stop early, loop, copy, answer in another language, lose
numbers. It says nothing of style. Thresholds are those of GateSection, chosen so that real translations pass
(docs/translation.md has the shares). A gate that needs a certain length to be sure leaves shorter texts alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import py3langid.langid  # type: ignore[import-untyped]
from babel import Locale
from babel.core import get_global

from hbt_ray.translation.settings import GateSection

BLANK = "translation is blank"
NUL = "translation holds a NUL character"
WRONG_SCRIPT = "translation is not in the script of its language"
WRONG_LANGUAGE = "translation is in another language"
LENGTH = "translation is too long or too short for its source"
REPETITION = "translation repeats itself"
COPY = "translation repeats its source"
NUMBERS = "translation lacks numbers of its source"
ANSWERS = "translation lacks the answer"
DISSIMILAR = "embedding of the translation is far from its source's"
ROUND_TRIP = "translation back is far from the source"

LETTERS_OF_SCRIPT = 24  # fewer may be names
LOOP_LETTERS = 8  # of the whole run
LOOP_UNIT = 50  # characters of what is repeated, at most
CHRF_ORDER = 6
CHRF_BETA = 2.0
STEM_SHARE = 0.6  # of a word that stands for it where languages inflect
LETTER_WEIGHTS = {"CJK": 3.0, "HIRAGANA": 2.0, "KATAKANA": 2.0, "HANGUL": 2.0}  # letters of an alphabet to one of these

_SCRIPT_NAMES = {
    **{"Hans": ("CJK",), "Hant": ("CJK",), "Jpan": ("CJK", "HIRAGANA", "KATAKANA"), "Kore": ("HANGUL", "CJK")},
    **{"Orya": ("ORIYA",), "Laoo": ("LAO",), "Mymr": ("MYANMAR",)},
}
_SEVERAL_SCRIPTS = {"az", "bs", "kk", "ku", "mn", "pa", "sd", "sr", "tg", "uz"}
# Languages that identification takes for one another, in texts that are right.
_ALIKE = (
    {"bs", "hr", "sr", "sl"},
    {"id", "ms", "jv"},
    {"da", "nb", "nn", "no"},
    {"cs", "sk"},
    {"es", "gl", "pt", "ca", "an", "ext"},
    {"fr", "wa", "oc"},
    {"it", "vec", "lij"},
    {"de", "lb"},
    {"hi", "mr", "ne", "sa"},
    {"ar", "arz", "ary"},
    {"zh", "zh_Hans", "zh_Hant", "yue", "wuu"},
    {"ru", "uk", "be", "bg"},
    {"fa", "prs"},
    {"af", "nl"},
    {"tl", "fil"},
)


@dataclass(frozen=True)
class Cell:
    """A text and its translation.

    Args:
        source: the text.
        translation: what the model made of it.
        source_language: CLDR code.
        target_language: CLDR code.
        fault: what the model itself knows to be wrong, or None.
        answers: (answer, its translation) of a passage; empty if unknown.
        similarity: cosine of the two texts' embeddings; None if not measured.
        back: translation of the translation; None if there is none.
    """

    source: str
    translation: str
    source_language: str
    target_language: str
    fault: str | None = None
    answers: Sequence[tuple[str, str]] = field(default=())
    similarity: float | None = None
    back: str | None = None


Gate = Callable[[Cell, GateSection], bool]


def rejection(cell: Cell, gates: GateSection) -> str | None:
    """The first reason not to take a translation, or None."""
    if cell.fault:
        return cell.fault
    return next((reason for reason, rejects in _GATES.items() if rejects(cell, gates)), None)


# --- the gates -------------------------------------------------------------------------------------------------------


def is_blank(cell: Cell, gates: GateSection) -> bool:
    """No text at all."""
    return not cell.translation.strip()


def holds_nul(cell: Cell, gates: GateSection) -> bool:
    """A character that no tool downstream expects."""
    return "\0" in cell.translation


def is_in_wrong_script(cell: Cell, gates: GateSection) -> bool:
    """Mostly letters of another script than the target's, where the source's differs from it."""
    own, other = scripts(cell.target_language), scripts(cell.source_language)
    if gates.script is None or not own or own & other:
        return False
    found = [script_of(character) for character in cell.translation if character.isalpha()]
    return len(found) >= LETTERS_OF_SCRIPT and sum(script in own for script in found) < gates.script * len(found)


def is_in_wrong_language(cell: Cell, gates: GateSection) -> bool:
    """Identified as another language, and surely not as the target."""
    if gates.language is None or weighted_letters(cell.translation) < gates.language_letters:
        return False
    target = cell.target_language.partition("_")[0]
    alike = {target}.union(*(group for group in _ALIKE if target in group))
    identifier = _identifier()
    if alike.isdisjoint(identifier.labels):
        return False
    own = sum(probability for found, probability in identifier.rank(cell.translation) if found in alike)
    return bool(1 - own >= gates.language)


def has_wrong_length(cell: Cell, gates: GateSection) -> bool:
    """Beyond the factor, after scripts' characters per letter; texts without letters count their characters."""
    if gates.length_ratio is None:
        return False
    source, translation = weighted_length(cell.source), weighted_length(cell.translation)
    shorter, longer = sorted((source + gates.length_slack, translation + gates.length_slack))
    return longer > gates.length_ratio * shorter


def repeats_itself(cell: Cell, gates: GateSection) -> bool:
    """A loop that the source does not have."""
    if gates.repetition is None:
        return False
    return has_loop(cell.translation, gates.repetition) and not has_loop(cell.source, gates.repetition)


def repeats_source(cell: Cell, gates: GateSection) -> bool:
    """The same letters in the same order, in a text too long for a name."""
    if gates.copied_letters is None:
        return False
    source = folded(cell.source)
    return len(source) >= gates.copied_letters and source == folded(cell.translation)


def lacks_numbers(cell: Cell, gates: GateSection) -> bool:
    """Too few of the source's numbers, in whatever digits and with whatever separators."""
    if gates.numbers is None:
        return False
    wanted = [_significant(digits) for digits in numbers(cell.source, ordinals=False) if len(digits) > 1]
    found = {_significant(digits) for digits in numbers(cell.translation)}
    return sum(number in found for number in wanted) < gates.numbers * len(wanted)


def lacks_answers(cell: Cell, gates: GateSection) -> bool:
    """No answer is there, neither translated nor as it was, up to the ends of its words."""
    if not gates.answers or not cell.answers:
        return False
    text = folded(cell.translation)
    return not any(_occurs(form, text) for answer in cell.answers for form in answer)


def is_dissimilar(cell: Cell, gates: GateSection) -> bool:
    """An encoder that knows both languages puts them far apart."""
    return gates.embedding is not None and cell.similarity is not None and cell.similarity < gates.embedding


def is_lost_on_the_way_back(cell: Cell, gates: GateSection) -> bool:
    """Its translation back has little of the source's letters."""
    return gates.round_trip is not None and cell.back is not None and chrf(cell.back, cell.source) < gates.round_trip


_GATES: dict[str, Gate] = {
    BLANK: is_blank,
    NUL: holds_nul,
    REPETITION: repeats_itself,
    LENGTH: has_wrong_length,
    COPY: repeats_source,
    WRONG_SCRIPT: is_in_wrong_script,
    WRONG_LANGUAGE: is_in_wrong_language,
    NUMBERS: lacks_numbers,
    ANSWERS: lacks_answers,
    DISSIMILAR: is_dissimilar,
    ROUND_TRIP: is_lost_on_the_way_back,
}


# --- what they measure -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=100_000)
def script_of(character: str) -> str:
    """First word of a letter's Unicode name, which is its script: LATIN, CJK, DEVANAGARI."""
    return unicodedata.name(character, "?").partition(" ")[0]


@cache
def scripts(language: str) -> frozenset[str]:
    """Scripts of a language as `script_of` has them; empty where it is written in several."""
    if language in _SEVERAL_SCRIPTS:
        return frozenset()
    code = get_global("likely_subtags").get(language.partition("_")[0], "").split("_")[1:2]
    if not code:
        return frozenset()
    name = Locale("en").scripts.get(code[0], "?").upper().partition(" ")[0]
    return frozenset(_SCRIPT_NAMES.get(code[0], (name,)))


def weighted_letters(text: str) -> float:
    """Letters, an ideograph for three."""
    return sum(LETTER_WEIGHTS.get(script_of(c), 1.0) if c > "\u1100" else 1.0 for c in text if c.isalpha())


def weighted_length(text: str) -> float:
    """Characters, an ideograph for three."""
    return sum(LETTER_WEIGHTS.get(script_of(c), 1.0) if c > "\u1100" else 1.0 for c in text)


@cache
def _loop(times: int) -> re.Pattern[str]:
    return re.compile(rf"(?=\w)(.{{1,{LOOP_UNIT}}}?)\1{{{times - 1},}}", re.DOTALL)


def has_loop(text: str, times: int) -> bool:
    """Whether something with letters stands `times` times in a row, LOOP_LETTERS letters together at least."""
    return any(sum(map(str.isalpha, run.group())) >= LOOP_LETTERS for run in _loop(times).finditer(text))


_NUMBER = re.compile(r"\d+")
_CARDINAL = re.compile(r"\d+(?![\da-zà-öø-ÿа-я])")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:[.,٫٬'’](?=\d)|[ \u00a0\u2009\u202f](?=\d{3}(?!\d)))")


def numbers(text: str, ordinals: bool = True) -> Iterator[str]:
    """The numbers of a text as ASCII digits, without what groups digits or divides decimals.

    `ordinals` is whether 19th and 1930s count, which other languages may write as XIX and in words.
    """
    ascii_digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() and c > "9" else c for c in text)
    pattern = _NUMBER if ordinals else _CARDINAL
    return (match.group() for match in pattern.finditer(_BETWEEN_DIGITS.sub("", ascii_digits)))


def _significant(digits: str) -> str:
    """Without zeros at the ends: 250,000 and 25 times ten thousand are one number in different languages."""
    return digits.strip("0")


def folded(text: str) -> str:
    """Letters and digits alone, without case and accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if c.isalnum())


def _occurs(phrase: str, folded_text: str) -> bool:
    """Whether half of the words of a phrase occur, each by its beginning."""
    words = [folded(word) for word in phrase.split()]
    stems = [word[: max(min(3, len(word)), round(STEM_SHARE * len(word)))] for word in words if word]
    return bool(stems) and 2 * sum(stem in folded_text for stem in stems) >= len(stems)


def chrf(hypothesis: str, reference: str) -> float:
    """Character n-gram F-score (Popović 2015), n up to 6, β = 2, without white space: 0 ... 1."""
    scores = []
    left, right = ("".join(text.split()) for text in (hypothesis, reference))
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (left, right))
        if not ours or not theirs:
            continue
        common = (ours & theirs).total()
        scores.append((common / ours.total(), common / theirs.total()))
    if not scores:
        return float(left == right)
    precision, recall = (sum(values) / len(scores) for values in zip(*scores, strict=True))
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


@cache
def _identifier() -> py3langid.langid.LanguageIdentifier:
    return py3langid.langid.LanguageIdentifier.from_model_file(py3langid.langid.MODEL_FILE, norm_probs=True)
