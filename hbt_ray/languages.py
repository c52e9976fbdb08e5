"""Languages of training and evaluation data: codes, families, resource levels, ordered pairs.

A code is valid when CLDR knows it, so a user's own language needs no entry here; the table adds what reports
group by. `resource_class` is the taxonomy of Joshi et al. (ACL 2020), 5 = "the winners" ... 0 = "the left-behinds".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import permutations

from babel import Locale
from babel.core import get_global

from hbt_ray.errors import ConfigError

UNLISTED = "unlisted"

# Codes of published test sets that CLDR does not hold: a group of languages, and one it has merged into dtp.
_OTHER_CODES = {"ber": "Berber languages", "kzj": "Coastal Kadazan"}

# code: (family, branch that reports group by; resource class)
_GROUPS: dict[str, tuple[str, int]] = {
    "ar": ("Semitic", 5),
    "bn": ("Indo-Aryan", 3),
    "da": ("Germanic", 3),
    "de": ("Germanic", 5),
    "el": ("Hellenic", 3),
    "en": ("Germanic", 5),
    "es": ("Romance", 5),
    "fa": ("Iranian", 4),
    "fi": ("Uralic", 4),
    "fr": ("Romance", 5),
    "hi": ("Indo-Aryan", 4),
    "id": ("Austronesian", 3),
    "it": ("Romance", 4),
    "ja": ("Japonic", 5),
    "ko": ("Koreanic", 4),
    "ru": ("Slavic", 4),
    "sv": ("Germanic", 4),
    "sw": ("Bantu", 2),
    "te": ("Dravidian", 1),
    "th": ("Tai", 3),
    "tr": ("Turkic", 4),
    "vi": ("Austroasiatic", 4),
    "yo": ("Volta-Niger", 2),
    "zh": ("Sinitic", 5),
}


@dataclass(frozen=True, slots=True)
class Language:
    """One language: CLDR `code`, English `name`, `family`, Joshi `resource_class` (None where not listed)."""

    code: str
    name: str
    family: str
    resource_class: int | None

    @property
    def resource_level(self) -> str:
        """`high` (class 4-5), `medium` (3), `low` (0-2) or `unlisted`."""
        if self.resource_class is None:
            return UNLISTED
        return "high" if self.resource_class >= 4 else "medium" if self.resource_class == 3 else "low"


@cache
def _known_codes() -> dict[str, str]:
    """Code -> English name; languages that CLDR knows without a name in English go by their code."""
    unnamed = {code: code for code in get_global("likely_subtags") if "_" not in code and code != "und"}
    return unnamed | _OTHER_CODES | dict(Locale("en").languages)


def language(code: str, where: str = "language") -> Language:
    """The language of a code. Raises ConfigError naming `where` if CLDR has no such code."""
    names = _known_codes()
    if code not in names:
        near = get_close_matches(code.lower(), sorted(_GROUPS), n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else "Use codes such as en, de, zh."
        raise ConfigError(where, repr(code), "an ISO 639 language code", hint)
    family, resource_class = _GROUPS.get(code, (UNLISTED, None))
    return Language(code, names[code], family, resource_class)


def checked_codes(codes: Iterable[str], where: str = "languages") -> tuple[str, ...]:
    """The codes as a tuple, each known and none twice. Raises ConfigError."""
    result = tuple(codes)
    for code in result:
        language(code, where)
        if result.count(code) > 1:
            raise ConfigError(where, f"{code!r} twice", "every language once", f"Remove one {code!r}.")
    return result


def ordered_pairs(codes: Sequence[str]) -> list[tuple[str, str]]:
    """All (query language, candidate language) pairs of two different languages, in the order of `codes`."""
    return list(permutations(codes, 2))
