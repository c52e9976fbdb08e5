"""The batch plan: which pairs, in which languages, at which step (hybrid batches, arXiv 2408.10536).

`plan[step]` is a pure function of (seed, step, catalog, mix). It has no state to save: resuming at step k is
`plan[k]`, any number of ranks sees the same global batches, and the realised mixture is known without training.

Two random choices make a step. The *draw* picks the stream (X-X-mono: one dataset and language; mixed: one dataset)
from counter-based random numbers; the number of earlier draws of that stream says how far its *walk* has come. A walk
visits the usable rows of its stream, each once per epoch: row groups are permuted, rows shuffled inside a window
of consecutive groups, so that reading stays local. Draws are tabulated in chunks of `CHUNK` steps; reaching step k for
the first time costs k/CHUNK cheap tables, everything after is O(batch).

The presence bits of a corpus are all that a plan keeps. What follows from them, which rows a stream can use, is worked
out where it is needed: in blocks for sizes, for the row groups of a window when the walk enters it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from hbt_ray.config import AlphaSchedule, MixSection
from hbt_ray.errors import ConfigError

CHUNK = 65_536  # steps per table of draws
WINDOW = 16  # row groups shuffled together
BLOCK = 1 << 16  # bytes of presence bits worked on at once, so that intermediate results stay in the processor's cache

Mode = Literal["X-X-mono", "X-Y", "X-X"]
Bits = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Pair = tuple[int, int]
Bytes = slice | Rows  # which bytes of packed bits


@dataclass(frozen=True)
class DatasetRows:
    """What the plan knows of a dataset: no texts, only which cells exist.

    Args:
        name: dataset name.
        query, passage: uint8 [languages of the plan, ceil(rows / 8)]: packed bits; zero where the cell is missing.
        kept: uint8 [ceil(rows / 8)]: packed bits of the rows that may be drawn (those of the split).
        group_starts: int64 [row groups + 1].
    """

    name: str
    query: Bits
    passage: Bits
    kept: Bits
    group_starts: Rows


@dataclass(frozen=True)
class BatchSpec:
    """One global batch: row i pairs the query of `rows[i]` in one language with its passage in another or the same.

    `query_language` and `passage_language` are int8 [B] indices into the plan's languages; `rows` is int64 [B].
    """

    step: int
    dataset: str
    mode: Mode
    rows: Rows
    query_language: Codes
    passage_language: Codes

    def part(self, rank: int, world_size: int) -> BatchSpec:
        """The contiguous slice of one rank; slices in the order of ranks are the batch, sizes differ by one at most.

        Raises ConfigError if there are more ranks than rows.
        """
        size = len(self.rows)
        if world_size > size:
            raise ConfigError(
                "train.batch_size",
                size,
                f"at least one pair for each of the {world_size} workers",
                "Raise train.batch_size or lower cluster.workers.",
            )
        own = slice(rank * size // world_size, (rank + 1) * size // world_size)
        return BatchSpec(
            self.step,
            self.dataset,
            self.mode,
            self.rows[own],
            self.query_language[own],
            self.passage_language[own],
        )


class _Stream:
    """A walk over the usable rows of one dataset in one mode.

    `languages` are the fixed (query, passage) languages; None: they are drawn for every pair.
    """

    def __init__(
        self, number: int, dataset: int, mode: Mode, languages: Pair | None, data: DatasetRows, seed: int
    ) -> None:
        self.number = number
        self.dataset = dataset
        self.mode = mode
        self.languages = languages
        self.data = data
        self.size = _count(data, mode, languages)
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permuted_groups)
        self._window = lru_cache(maxsize=4)(self._shuffled_window)

    def _permuted_groups(self, epoch: int) -> tuple[npt.NDArray[np.int32], Rows]:
        """Permuted row groups, and the position at which each window of them ends."""
        counts = self._counts()
        order = _rng(self.seed, 1, self.number, epoch).permutation(len(counts))
        ends = np.cumsum(counts[order])[WINDOW - 1 :: WINDOW]
        return order.astype(np.int32), np.append(ends, self.size)

    def _counts(self) -> Rows:
        """int64 [row groups]: usable rows of each."""
        starts = self.data.group_starts[:-1]
        before, total = [], 0  # usable rows before each start
        for block in _blocks(self.data):
            usable = _usable(self.data, self.mode, self.languages, block)
            ones = np.bitwise_count(usable)
            ends = total + np.cumsum(ones, dtype=np.int64)
            here = starts[np.searchsorted(starts, 8 * block.start) : np.searchsorted(starts, 8 * block.stop)]
            byte = (here >> 3) - block.start
            before.append(ends[byte] - ones[byte] + np.bitwise_count(usable[byte] >> (8 - (here & 7))))
            total = int(ends[-1])
        return np.diff(np.append(np.concatenate(before), self.size))

    def _shuffled_window(self, epoch: int, window: int) -> Rows:
        """The usable rows of one window in the order they are visited."""
        groups = self._epoch(epoch)[0][window * WINDOW : (window + 1) * WINDOW]
        return _rng(self.seed, 2, self.number, epoch, window).permutation(self._rows_of(groups))

    def _rows_of(self, groups: npt.NDArray[np.int32]) -> Rows:
        """The usable rows of some row groups, group after group."""
        starts, stops = self.data.group_starts[groups], self.data.group_starts[groups + 1]
        first, last = starts >> 3, (stops + 7) >> 3
        flags = np.unpackbits(_usable(self.data, self.mode, self.languages, _ranges(first, last)))
        rows = _ranges(8 * first, 8 * last)
        group = np.repeat(np.arange(len(groups)), 8 * (last - first))  # its first and last byte may be shared
        return rows[flags.astype(bool) & (rows >= starts[group]) & (rows < stops[group])]

    def rows(self, position: int, count: int) -> Rows:
        """int64 [count]: the rows at positions position ... position + count - 1 of the endless walk."""
        pieces = []
        while count:
            epoch, offset = divmod(position, self.size)
            ends = self._epoch(epoch)[1]
            window = bisect_right(ends, offset)
            start = int(ends[window - 1]) if window else 0
            piece = self._window(epoch, window)[offset - start : offset - start + count]
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)


Table = tuple[list[_Stream], npt.NDArray[np.float64]]  # streams and their cumulative probabilities


class BatchPlan:
    """`plan[step] -> BatchSpec` for any step >= 0.

    Args:
        datasets: presence bits of every dataset, all over the same `languages`.
        languages: codes that the bits' first axis and the specs' language indices refer to.
        mix: α, kind of the mixed batches, ρ, scope of the language draw.
        batch_size: pairs of a global batch.
        seed: seed of draws and walks.
        small_streams: what to do with a stream of fewer rows than a batch: refuse it, or leave it out.

    Raises:
        ConfigError: α < 1 without a dataset of two languages, a stream smaller than a batch, nothing to draw from.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetRows],
        languages: Sequence[str],
        mix: MixSection,
        batch_size: int,
        seed: int,
        *,
        small_streams: Literal["refuse", "leave out"] = "refuse",
    ) -> None:
        self.datasets = tuple(datasets)
        self.languages = tuple(languages)
        self.mix = mix
        self.batch_size = batch_size
        self.seed = seed
        self._small_streams = small_streams
        self.streams: list[_Stream] = []
        self._x_y_size = lru_cache(maxsize=None)(lambda dataset: _count(self.datasets[dataset], "X-Y", None))
        self._alpha = _alpha_function(mix.alpha)
        highest, lowest = _alpha_range(mix.alpha)
        self._mono = self._mono_table() if highest > 0 else []
        self._mixed = self._mixed_table() if lowest < 1 else []
        self._totals_before: list[Rows] = [np.zeros(len(self.streams), dtype=np.int64)]
        self._chunks = lru_cache(maxsize=8)(self._draw_chunk)

    def __getitem__(self, step: int) -> BatchSpec:
        """The global batch of a step."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        stream, turn = self._draw(step)
        rows = stream.rows(turn * self.batch_size, self.batch_size)
        query, passage = self._languages_of(stream, rows, step)
        return BatchSpec(step, self.datasets[stream.dataset].name, stream.mode, rows, query, passage)

    # --- streams -----------------------------------------------------------------------------------------------

    def _mono_table(self) -> list[Table]:
        """One entry per drawable language: its streams and their cumulative probabilities."""
        by_language = [
            self._streams("X-X-mono", [(d, (code, code)) for d in range(len(self.datasets))])
            for code in range(len(self.languages))
        ]
        table = [self._weighted(streams) for streams in by_language if streams]
        if not table:
            raise self._nothing_to_draw("X-X-mono")
        return table

    def _mixed_table(self) -> list[Table]:
        """One entry per dataset (scope `pair`), or per (dataset, language pair) grouped by dataset (scope `batch`)."""
        numbers = range(len(self.datasets))
        if self.mix.mixed == "X-Y" and self.mix.pair_scope == "batch":
            codes = range(len(self.languages))
            pairs = [(q, p) for q in codes for p in codes if q != p]
            streams = self._streams("X-Y", [(d, pair) for d in numbers for pair in pairs])
        else:
            streams = self._streams(self.mix.mixed, [(d, None) for d in numbers])
        if not streams:
            raise self._nothing_to_draw(self.mix.mixed)
        return [self._weighted(streams)]

    def _streams(self, mode: Mode, keys: Sequence[tuple[int, Pair | None]]) -> list[_Stream]:
        """The streams of a mode that have rows, in order; too small ones are refused or left out."""
        result = []
        for dataset, languages in keys:
            data = self.datasets[dataset]
            stream = _Stream(len(self.streams), dataset, mode, languages, data, self.seed)
            if not stream.size:
                continue
            if stream.size < self.batch_size:
                if self._small_streams == "leave out":
                    continue
                raise ConfigError(
                    "train.batch_size",
                    self.batch_size,
                    f"at most {stream.size}, the usable rows of {self._describe(stream)}",
                    "Lower train.batch_size, or leave the dataset or language out (data.datasets, data.languages).",
                )
            self.streams.append(stream)
            result.append(stream)
        return result

    def _weighted(self, streams: list[_Stream]) -> Table:
        """Streams with cumulative probabilities: a dataset by size^ρ, then uniform over its streams."""
        siblings = Counter(stream.dataset for stream in streams)
        weights = np.array(
            [self._dataset_size(stream) ** self.mix.size_exponent / siblings[stream.dataset] for stream in streams]
        )
        return streams, np.cumsum(weights) / weights.sum()

    def _dataset_size(self, stream: _Stream) -> float:
        """Rows of the stream's dataset that its mode can use, in whatever language pair a batch has."""
        if stream.mode == "X-Y" and stream.languages is not None:
            return float(self._x_y_size(stream.dataset))
        return float(stream.size)

    def _describe(self, stream: _Stream) -> str:
        name = self.datasets[stream.dataset].name
        if stream.languages is None:
            return f"dataset {name!r} in {stream.mode} batches"
        query, passage = (self.languages[code] for code in stream.languages)
        return f"dataset {name!r} in {stream.mode} batches, {query if query == passage else f'{query}-{passage}'}"

    def _nothing_to_draw(self, mode: Mode) -> ConfigError:
        if mode == "X-Y":
            return ConfigError(
                "mix.alpha",
                "α < 1 (X-Y batches)",
                f"a dataset with two languages or more and {self.batch_size} rows",
                "Set mix.alpha: 1, lower train.batch_size, or add a language (data.languages).",
            )
        return ConfigError(
            "train.batch_size",
            self.batch_size,
            f"a stream with that many rows for {mode} batches",
            "Lower train.batch_size or add data.",
        )

    # --- draws -------------------------------------------------------------------------------------------------

    def _draw(self, step: int) -> tuple[_Stream, int]:
        """The stream of a step and how many batches it has given before."""
        chunk, offset = divmod(step, CHUNK)
        for earlier in range(len(self._totals_before) - 1, chunk):
            drawn = self._chunks(earlier)[0]
            totals = np.bincount(drawn, minlength=len(self.streams))
            self._totals_before.append(self._totals_before[earlier] + totals)
        drawn, turns = self._chunks(chunk)
        number = drawn[offset]
        return self.streams[number], int(self._totals_before[chunk][number] + turns[offset])

    def _draw_chunk(self, chunk: int) -> tuple[Rows, Rows]:
        """int64 [CHUNK] twice: the stream number of each step, and its earlier draws within the chunk."""
        mode, language, choice = _rng(self.seed, 0, chunk).random((3, CHUNK))
        is_mono = mode < self._alpha(np.arange(chunk * CHUNK, (chunk + 1) * CHUNK))
        drawn = np.empty(CHUNK, dtype=np.int64)
        for table, steps in ((self._mono, is_mono), (self._mixed, ~is_mono)):
            row = np.minimum((language * len(table)).astype(np.int64), len(table) - 1)
            for number, (streams, cumulative) in enumerate(table):
                here = steps & (row == number)
                index = np.searchsorted(cumulative, choice[here], side="right")
                numbers = np.array([stream.number for stream in streams])
                drawn[here] = numbers[np.minimum(index, len(streams) - 1)]
        return drawn, _earlier_occurrences(drawn, len(self.streams))

    def _languages_of(self, stream: _Stream, rows: Rows, step: int) -> tuple[Codes, Codes]:
        """int8 [B] query and passage languages, uniform over the (ordered) choices that each row really has."""
        if stream.languages is not None:
            query, passage = (np.full(len(rows), code, dtype=np.int8) for code in stream.languages)
            return query, passage
        data = self.datasets[stream.dataset]
        uniform = _rng(self.seed, 3, step).random(len(rows))
        return _language_pairs(_bits_of(data.query, rows), _bits_of(data.passage, rows), stream.mode, uniform)

    def steps(self, start: int, stop: int) -> Iterator[BatchSpec]:
        """The batches of steps start ... stop - 1."""
        return (self[step] for step in range(start, stop))


def _blocks(data: DatasetRows) -> Iterator[slice]:
    """The bytes of a dataset's bits, BLOCK at a time."""
    size = data.query.shape[1]
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _ranges(starts: Rows, stops: Rows) -> Rows:
    """The integers start ... stop - 1 of each range, one range after the other."""
    return np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])


def _count(data: DatasetRows, mode: Mode, languages: Pair | None) -> int:
    """How many rows a stream can use."""
    return sum(int(np.bitwise_count(_usable(data, mode, languages, block)).sum()) for block in _blocks(data))


def _usable(data: DatasetRows, mode: Mode, languages: Pair | None, where: Bytes) -> Bits:
    """Packed bits of the rows that a stream can use, of some bytes."""
    kept = data.kept[where]
    if languages is not None:
        query, passage = languages
        fixed: Bits = data.query[query, where] & data.passage[passage, where] & kept
        return fixed
    queries, passages = data.query[:, where], data.passage[:, where]
    same_language: Bits = np.bitwise_or.reduce(queries & passages, axis=0)
    if mode == "X-X":
        return same_language & kept
    one_query, two_queries = _one_and_two(queries)
    one_passage, two_passages = _one_and_two(passages)
    # With a single query and a single passage the pair is cross-lingual only if their languages differ.
    usable: Bits = one_query & one_passage & (two_queries | two_passages | ~same_language) & kept
    return usable


def _one_and_two(bits: Bits) -> tuple[Bits, Bits]:
    """Rows with at least one, and with at least two of the languages."""
    one, two = np.zeros_like(bits[0]), np.zeros_like(bits[0])
    for language in bits:
        two |= one & language
        one |= language
    return one, two


def _bits_of(bits: Bits, rows: Rows) -> npt.NDArray[np.int16]:
    """int16 [languages, B]: the bits of some rows, 0 or 1."""
    return (bits[:, rows >> 3] >> (7 - (rows & 7)).astype(np.uint8) & 1).astype(np.int16)


def _language_pairs(
    query: npt.NDArray[np.int16], passage: npt.NDArray[np.int16], mode: Mode, uniform: npt.NDArray[np.float64]
) -> tuple[Codes, Codes]:
    """Of each row pair number floor(uniform · n) of its n, counted by query language, then by passage language.

    Counts of pairs by query language say the same as a table of all pairs, in a tenth of its size.

    `query` and `passage` [languages, B] are 1 where the row has the text, `mode` is X-Y (languages differ) or X-X (they
    agree), each row must have such a pair; `uniform` [B] is in [0, 1).
    """
    choices = query * passage if mode == "X-X" else query * (passage.sum(axis=0, dtype=np.int16) - passage)
    ends = np.cumsum(choices, axis=0, dtype=np.int16)  # up to languages²: the codes are int8, so it fits
    wanted = (uniform * ends[-1]).astype(np.int16)
    asked = (ends <= wanted).sum(axis=0)
    if mode == "X-X":
        return asked.astype(np.int8), asked.astype(np.int8)
    rows = np.arange(len(uniform))
    others = passage.copy()
    others[asked, rows] = 0
    place = wanted - (ends - choices)[asked, rows]
    answered = (np.cumsum(others, axis=0, dtype=np.int16) <= place).sum(axis=0)
    return asked.astype(np.int8), answered.astype(np.int8)


def _earlier_occurrences(values: Rows, kinds: int) -> Rows:
    """int64 [n]: how often values[i] occurs in values[:i]."""
    order = np.argsort(values, kind="stable")
    firsts = np.cumsum(np.bincount(values, minlength=kinds)) - np.bincount(values, minlength=kinds)
    result = np.empty_like(values)
    result[order] = np.arange(len(values)) - firsts[values[order]]
    return result


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _alpha_function(alpha: float | AlphaSchedule) -> Callable[[Rows], npt.NDArray[np.float64]]:
    """α of an array of steps."""
    if not isinstance(alpha, AlphaSchedule):
        return lambda steps: np.full(len(steps), float(alpha))
    at, value = (np.array(column, dtype=np.float64) for column in zip(*alpha.points, strict=True))
    if alpha.interpolation == "linear":
        return lambda steps: np.interp(steps, at, value)
    return lambda steps: value[np.maximum(np.searchsorted(at, steps, side="right") - 1, 0)]


def _alpha_range(alpha: float | AlphaSchedule) -> tuple[float, float]:
    values = [value for _, value in alpha.points] if isinstance(alpha, AlphaSchedule) else [float(alpha)]
    return max(values), min(values)
