"""Texts as sets of shingles: n consecutive words, or n consecutive characters in scripts that write no spaces.

A token is a run of letters, marks and digits; each character of a script without spaces is a token of its own, whatever
the language is said to be. What a shingle spans depends on its first token alone, so a sentence has the same shingles
wherever it stands. Punctuation and white space do not count. All of it is arithmetic on the code points of many texts
at once: hashes are 64 bits wide and the same in every process.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

_SEPARATOR, _WORD, _CHARACTER = range(3)
_JOINERS = (0x200C, 0x200D)  # inside words of Persian or Hindi
_WITHOUT_SPACES = (  # blocks of the scripts that write words without spaces between them
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


@dataclass(frozen=True, slots=True)
class Shingles:
    """The shingle sets of texts, one after the other.

    Args:
        hashes: [S]; those of text i are hashes[offsets[i]:offsets[i + 1]], sorted and unique.
        offsets: [texts + 1].
    """

    hashes: Hashes
    offsets: Rows

    @property
    def sizes(self) -> Rows:
        """[texts]: shingles of each text."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Rows:
        """[S]: the text that each shingle belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.sizes)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of texts, one after the other: [T] hashes, the text of each, and whether it is a single character."""

    hashes: Hashes
    rows: Rows
    is_character: npt.NDArray[np.bool_]


def tokens(texts: Sequence[str]) -> Tokens:
    """The tokens of texts; upper and lower case are told apart."""
    joined = "\n".join(texts)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _kinds()[points]
    is_start = kinds != _SEPARATOR
    is_start[1:] &= (kinds[1:] == _CHARACTER) | (kinds[1:] != kinds[:-1])
    is_end = kinds != _SEPARATOR
    is_end[:-1] &= (kinds[:-1] == _CHARACTER) | (kinds[1:] != kinds[:-1])
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end) + 1
    text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    rows = np.searchsorted(text_starts, starts, side="right") - 1
    return Tokens(_span_hashes(points, starts, ends), rows, kinds[starts] == _CHARACTER)


def shingles(texts: Sequence[str], words: int, characters: int) -> Shingles:
    """The shingle set of each text; a text too short for one shingle has a single one of all its tokens.

    Args:
        texts: texts; upper and lower case are told apart.
        words: tokens of a shingle that begins with a word.
        characters: tokens of a shingle that begins with a character of a script without spaces.
    """
    found = tokens(texts)
    parts = [
        _windows(found, words, ~found.is_character),
        _windows(found, characters, found.is_character),
    ]
    rows = np.concatenate([part_rows for part_rows, _ in parts])
    hashes = np.concatenate([part_hashes for _, part_hashes in parts])
    short = np.flatnonzero((np.bincount(rows, minlength=len(texts)) == 0) & _has_tokens(found, len(texts)))
    if len(short):
        rows = np.concatenate([rows, short])
        hashes = np.concatenate([hashes, token_sequence_hashes(found, len(texts))[short]])
    return _sets(rows, hashes, len(texts))


def token_sequence_hashes(found: Tokens, texts: int) -> Hashes:
    """[texts]: a hash of all the tokens of each text in their order; 0 for a text without tokens."""
    place = np.arange(len(found.rows)) - np.searchsorted(found.rows, found.rows)
    terms = mixed(found.hashes + (place.astype(np.uint64) << np.uint64(32)))
    sums = np.zeros(texts, dtype=np.uint64)
    np.add.at(sums, found.rows, terms)
    return np.where(_has_tokens(found, texts), mixed(sums), np.uint64(0))


def overlap(one: Hashes, other: Hashes) -> int:
    """How many hashes two sorted sets share."""
    if len(one) > len(other):
        one, other = other, one
    if not len(other):
        return 0
    places = np.minimum(np.searchsorted(other, one), len(other) - 1)
    return int((other[places] == one).sum())


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared over all hashes of two sorted sets, 0 to 1; 0 if both are empty."""
    shared = overlap(one, other)
    return shared / (len(one) + len(other) - shared) if len(one) or len(other) else 0.0


def mixed(values: Hashes) -> Hashes:
    """Every bit of a value spread over all 64 (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _has_tokens(found: Tokens, texts: int) -> npt.NDArray[np.bool_]:
    return np.bincount(found.rows, minlength=texts) > 0


def _windows(found: Tokens, size: int, begins: npt.NDArray[np.bool_]) -> tuple[Rows, Hashes]:
    """Text and hash of every window of `size` tokens inside one text whose first token is one of `begins`."""
    last = len(found.rows) - size + 1
    if last <= 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    starts = np.flatnonzero(begins[:last] & (found.rows[:last] == found.rows[size - 1 :]))
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(size):
        hashes = mixed(hashes * np.uint64(_BASE) + found.hashes[starts + offset])
    return found.rows[starts], hashes


def _sets(rows: Rows, hashes: Hashes, texts: int) -> Shingles:
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[fresh], minlength=texts))])
    return Shingles(hashes[fresh], offsets.astype(np.int64))


def _span_hashes(points: npt.NDArray[np.uint32], starts: Rows, ends: Rows) -> Hashes:
    """A hash of each span of code points that does not depend on where it stands: a polynomial, from prefix sums."""
    length = len(points)
    terms = mixed(points.astype(np.uint64)) * _powers(_BASE, length)
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    hashes = (sums[ends] - sums[starts]) * _powers(_INVERSE, length + 1)[starts]
    return mixed(hashes + (ends - starts).astype(np.uint64))


def _powers(base: int, count: int) -> Hashes:
    """[count]: base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """[code points]: what each is part of."""
    kinds = np.array([unicodedata.category(chr(point))[0] in "LMN" for point in range(sys.maxunicode + 1)], np.uint8)
    kinds[list(_JOINERS)] = _WORD
    for first, last in _WITHOUT_SPACES:
        block = kinds[first : last + 1]
        block[block == _WORD] = _CHARACTER
    return kinds
