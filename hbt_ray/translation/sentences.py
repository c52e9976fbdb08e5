"""Split texts into sentences and put translated ones together again.

The rules are those of Unicode text segmentation (UAX 29) in small: a sentence ends after terminal punctuation with its
closing quotes and brackets, where the script puts none between sentences without a space, else before one. Joined
pieces and separators give the text exactly. Where in doubt a text is not split: a model bears a long piece better than
half a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

WIDE_TERMINALS = "。！？｡"  # of scripts that put no space between sentences
TERMINALS = r"!?…؟۔।॥։።፧፨။၊។៕༎჻‼⁇⁈⁉"  # with a space behind; the full stop has rules of its own
CLOSERS = r"""\"'”’»›)\]}」』）】》〉\u0f3d"""
CLAUSES = ",;:،؛、，；：·—–"
NO_SPACES = {"zh", "ja", "zh_Hans", "zh_Hant", "yue"}  # languages that put no space between sentences
NUMBERED = {"no", "nr", "vol", "fig", "art", "pp", "chap", "sec", "approx", "ca"}
TITLED = {"mr", "mrs", "ms", "dr", "prof", "st", "gen", "col", "lt", "sgt", "capt", "rev", "hon", "jr", "sr", "vs"}
LOOK_BACK = 60  # characters before a full stop that say whether it belongs to an abbreviation

_BOUNDARY = re.compile(rf"\n\s*|[{WIDE_TERMINALS}]+[{CLOSERS}]*\s*|[{TERMINALS}.]+[{CLOSERS}]*\s+")
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)\.+$")


class Split(NamedTuple):
    """A text as pieces and what stands around them.

    Args:
        pieces: [n] without outer white space.
        separators: [n + 1]; white space or nothing. separators[0] + pieces[0] + separators[1] + ... is the text.
    """

    pieces: list[str]
    separators: list[str]


def split(text: str, sentences: bool = True, max_characters: int = 400) -> Split:
    """The pieces of a text, none longer than `max_characters`; only those too long are split if not `sentences`."""
    starts = [0, *(_sentence_starts(text) if sentences else ())]
    spans = [
        span
        for start, stop in pairwise([*starts, len(text)])
        for span in _short_spans(text, *_trimmed(text, start, stop), max_characters)
    ]
    ends = [0, *(stop for _, stop in spans)]
    begins = [*(start for start, _ in spans), len(text)]
    return Split(
        [text[start:stop] for start, stop in spans],
        [text[end:begin] for end, begin in zip(ends, begins, strict=True)],
    )


def join(pieces: Sequence[str], separators: Sequence[str], language: str) -> str:
    """Translated pieces with their source's separators, but between sentences as the language writes them.

    A line break stays one; a space is nothing in Chinese and Japanese; nothing is a space elsewhere.
    """
    inner = [_separator(separator, language) for separator in separators[1:-1]]
    return "".join(part for pair in zip([separators[0], *inner], pieces, strict=True) for part in pair) + separators[-1]


def _separator(separator: str, language: str) -> str:
    if "\n" in separator:
        return separator
    if language in NO_SPACES:
        return ""
    return separator or " "


def _sentence_starts(text: str) -> list[int]:
    """Where sentences after the first begin."""
    return [
        match.end() for match in _BOUNDARY.finditer(text) if match.end() < len(text) and _ends_sentence(text, match)
    ]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match.group().lstrip("".join(WIDE_TERMINALS))
    if "\n" in match.group() or len(mark) < len(match.group()):
        return True
    if text[match.end()].islower() or unicodedata.category(text[match.end()]) in ("Pe", "Pf", "Po"):
        return False  # "e.g. this", "he said ... and"
    return not match.group().rstrip().endswith(".") or _full_stop_ends(
        text[max(0, match.end() - LOOK_BACK) : match.end()].rstrip(), text[match.end()]
    )


def _full_stop_ends(before: str, following: str) -> bool:
    """Whether the full stop that `before` ends with ends a sentence, or belongs to an abbreviation or a number."""
    match = _LAST_WORD.search(before)
    if match is None:
        return not following.isdigit() or not before[:-1][-1:].isdigit()
    word = match.group(1).lower()
    if following.isdigit() and word in NUMBERED:
        return False
    return len(word) > 1 and "." not in word and word not in TITLED  # initials, U.S., titles


def _short_spans(text: str, start: int, stop: int, limit: int) -> list[tuple[int, int]]:
    """The span as spans of at most `limit` characters, cut behind a clause, else at a space, else where it must be."""
    spans = []
    while stop - start > limit:
        cut = _cut(text, start, start + limit)
        spans.append(_trimmed(text, start, cut))
        start = _trimmed(text, cut, stop)[0]
    return [*spans, (start, stop)] if start < stop else spans


def _cut(text: str, start: int, stop: int) -> int:
    """Where to cut text[start:stop], behind its first half if possible; text goes on after `stop`."""
    least = start + (stop - start) // 2
    places = range(stop, least, -1)
    clauses = (i for i in places if text[i - 1] in CLAUSES and not text[i].isalnum())
    spaces = (i for i in places if text[i - 1].isspace() or text[i].isspace())
    letters = (i for i in places if not unicodedata.category(text[i]).startswith("M"))
    return next(chain(clauses, spaces, letters), stop)


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    inside = text[start:stop]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())
