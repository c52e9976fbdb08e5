"""The texts of a benchmark, indexed by their shingles, and how a training text is compared with all of them at once.

The benchmark is the small side: its index is in memory, and training texts stream past it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hbt_ray.corpus.cleaning import folded
from hbt_ray.corpus.shingles import Hashes, Rows, Shingles, shingles
from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks import Benchmark, Texts
from hbt_ray.settings_file import Section

QUESTION, CANDIDATE = "question", "candidate"
SAME_TEXT, SIMILAR, CONTAINED = "same text", "near-duplicate", "contained"

_INDEXED_AT_ONCE = 4096  # texts
_MOST_SHINGLES = 1 << 28  # of an index: 4 GiB
_FILTER_BITS = 24


class LeakageSettings(Section):
    """From when on a training text counts as a text of the benchmark.

    Args:
        words: words of a shingle.
        characters: characters of a shingle in scripts without spaces.
        similar: Jaccard similarity of the shingles of two texts from which they are near-duplicates.
        contained: share of the shorter text's shingles found in the longer one from which it is contained.
        shortest: fewest shingles of a text that can be contained; what is shorter stands in many texts by chance.
        id_characters: fewest characters of an id that two sources do not share by chance.
    """

    words: int = Field(3, ge=1, le=16)
    characters: int = Field(5, ge=1, le=32)
    similar: float = Field(0.8, gt=0, le=1)
    contained: float = Field(0.8, gt=0, le=1)
    shortest: int = Field(6, ge=1)
    id_characters: int = Field(12, ge=1)


class Item(NamedTuple):
    """A question or a candidate of a benchmark."""

    kind: str
    language: str
    id: str
    text: str


class Match(NamedTuple):
    """A training text and an item of the benchmark, both by number; `score` is what `how` measures, 0 to 1."""

    text: int
    item: int
    how: str
    score: float


@dataclass(frozen=True)
class BenchmarkIndex:
    """The items of a benchmark and where their shingles are; made by `index_benchmark`.

    Args:
        settings: of the comparison.
        parts: (kind, language, texts), one after the other; an item's number counts through them.
        starts: [parts + 1]: the number of the first item of each part, and of all.
        sizes: [items]: shingles of each item.
        keys: [K]: all shingles, sorted.
        offsets: [K + 1]: the items of key k are items[offsets[k]:offsets[k + 1]].
        items: [postings].
        likely: [2^24]: whether any key has these first bits; most shingles of other texts are told by that.
    """

    settings: LeakageSettings
    parts: Sequence[tuple[str, str, Texts]]
    starts: Rows
    sizes: Rows
    keys: Hashes
    offsets: Rows
    items: npt.NDArray[np.int32]
    likely: npt.NDArray[np.bool_]

    def item(self, number: int) -> Item:
        """An item by its number."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        kind, language, texts = self.parts[part]
        row = number - int(self.starts[part])
        return Item(kind, language, texts.ids[row], texts.texts[row])

    def matches(self, texts: Sequence[str], *, whole: bool) -> Iterator[Match]:
        """Every item that one of some training texts repeats.

        Args:
            texts: folded.
            whole: compare texts as wholes only; otherwise also look for the shorter text inside the longer one.
        """
        found = shingles(texts, self.settings.words, self.settings.characters)
        rows, items, shared = self._overlaps(found)
        sizes, lengths = self.sizes[items], found.sizes[rows]
        similarity = shared / (sizes + lengths - shared)
        shorter = np.minimum(sizes, lengths)
        inside = shared / shorter
        is_similar = similarity >= self.settings.similar
        is_inside = (inside >= self.settings.contained) & (shorter >= self.settings.shortest) & (not whole)
        for i in np.flatnonzero(is_similar | is_inside).tolist():
            row, item = int(rows[i]), int(items[i])
            if not is_similar[i]:
                yield Match(row, item, CONTAINED, float(inside[i]))
            elif similarity[i] == 1 and folded(self.item(item).text) == texts[row]:
                yield Match(row, item, SAME_TEXT, 1.0)
            else:
                yield Match(row, item, SIMILAR, float(similarity[i]))

    def _overlaps(self, found: Shingles) -> tuple[Rows, Rows, Rows]:
        """Text, item and number of shared shingles of all that share any."""
        candidates = np.flatnonzero(self.likely[found.hashes >> np.uint64(64 - _FILTER_BITS)])
        hashes, rows = found.hashes[candidates], found.rows[candidates]
        places = np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)
        hit = self.keys[places] == hashes
        places, rows = places[hit], rows[hit]
        counts = self.offsets[places + 1] - self.offsets[places]
        first = np.repeat(self.offsets[places] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        items = self.items[first + np.arange(len(first))]
        pairs: Rows
        pairs, shared = np.unique(np.repeat(rows, counts) * len(self.sizes) + items, return_counts=True)
        return pairs // len(self.sizes), pairs % len(self.sizes), shared


def index_benchmark(benchmark: Benchmark, settings: LeakageSettings) -> BenchmarkIndex:
    """Index all questions and candidates of a benchmark; 16 bytes per shingle stay in memory.

    Raises ConfigError for a benchmark too large to be the small side.
    """
    parts = list(_parts(benchmark))
    starts = np.cumsum([0, *(len(texts) for _, _, texts in parts)])
    hashes, items, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], []
    total = 0
    for number, texts in _batches(parts):
        found = shingles(list(map(folded, texts)), settings.words, settings.characters)
        hashes.append(found.hashes)
        items.append((found.rows + number).astype(np.int32))
        sizes.append(found.sizes)
        total += len(found.hashes)
        if total > _MOST_SHINGLES:
            expected = f"at most {_MOST_SHINGLES:,} shingles of {benchmark.name}"
            fix = "Search for fewer languages at a time, or for a slice of its candidates."
            raise ConfigError(f"benchmark {benchmark.name}", "more", expected, fix)
    joined, owners = np.concatenate(hashes), np.concatenate(items)
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    keys, first = np.unique(joined, return_index=True)
    likely = np.zeros(1 << _FILTER_BITS, dtype=bool)
    likely[keys >> np.uint64(64 - _FILTER_BITS)] = True
    offsets = np.append(first, len(joined))
    return BenchmarkIndex(settings, parts, starts, np.concatenate(sizes), keys, offsets, owners[order], likely)


def _parts(benchmark: Benchmark) -> Iterator[tuple[str, str, Texts]]:
    for collection in benchmark.collections:
        yield from ((QUESTION, language, texts) for language, texts in collection.queries.items())
        yield from ((CANDIDATE, language, texts) for language, texts in collection.candidates.items())


def _batches(parts: Sequence[tuple[str, str, Texts]]) -> Iterator[tuple[int, Sequence[str]]]:
    """Number of the first item, and texts."""
    number = 0
    for _, _, texts in parts:
        for start in range(0, len(texts), _INDEXED_AT_ONCE):
            batch = texts.texts[start : start + _INDEXED_AT_ONCE]
            yield number, batch
            number += len(batch)
