from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from hbt_ray.config import HoldOutSection, MixSection
from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import ShardedDataset
from hbt_ray.corpus.writer import write_pairs
from hbt_ray.mixing.reader import SliceReader, StepRow, Tokenisation, passage_key, step_rows, text_key
from hbt_ray.mixing.source import PlanSource
from hbt_ray.storage import Folder

LANGUAGES = ("de", "en", "sw")
ROWS = 60
TOKENS = Tokenisation("Ask: ", "Tell: ", max_query_tokens=5, max_passage_tokens=6)
STEPS = range(3, 23)
PASSAGE_KEY = -3183157430178304128
HARD = 2


def query_text(name: str, row: int, lang: str) -> str:
    return f"{name} q{row} {lang}"


def passage_text(name: str, row: int, lang: str) -> str:
    """Every two pairs share a passage; it is too long for TOKENS."""
    return f"{name} p{row // 2} {lang} and more words"


def negative_text(name: str, row: int, number: int, lang: str) -> str:
    return f"{name} n{row}-{number} {lang}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two datasets with other texts but the same pair ids and passage ids."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("one", "two"):
        pairs = [
            ParallelPair(
                f"{n}",
                f"s{n // 2}",
                f"g{n // 6}",
                {lang: query_text(name, n, lang) for lang in LANGUAGES},
                {lang: passage_text(name, n, lang) for lang in LANGUAGES if (n + len(lang)) % 5 or lang == "en"},
                {lang: [negative_text(name, n, k, lang) for k in range(n % 5)] for lang in LANGUAGES},
            )
            for n in range(ROWS)
        ]
        write_pairs(Folder(str(folder)), name, pairs, LANGUAGES, {}, rows_per_part=25, rows_per_group=7)
    return str(folder)


@pytest.fixture
def source(root: str) -> PlanSource:
    return PlanSource(root, None, None, HoldOutSection(fraction=0.1), MixSection(), batch_size=8, seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One id per word, [CLS] in front."""
    words = {"[CLS]", "[UNK]", "[PAD]", "Ask:", "Tell:"}
    for name in ("one", "two"):
        for row in range(ROWS):
            for lang in LANGUAGES:
                words.update(query_text(name, row, lang).split(), passage_text(name, row, lang).split())
                words.update(word for k in range(5) for word in negative_text(name, row, k, lang).split())
    vocabulary = {word: number for number, word in enumerate(sorted(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    return tokenizer


def read(source: PlanSource, tokenizer: Tokenizer, rank: int = 0, world_size: int = 1) -> pa.Table:
    return SliceReader(source, TOKENS, rank, world_size).read(STEPS, tokenizer)


def rows_of(table: pa.Table) -> list[StepRow]:
    return list(step_rows(table))


def texts_of(row: StepRow) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each query and of each candidate."""
    stops = row.lengths.cumsum()
    texts = [row.ids[stop - length : stop].tolist() for stop, length in zip(stops, row.lengths, strict=True)]
    pairs = len(texts) - len(row.keys)
    return texts[:pairs], texts[pairs:]


def words(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return " ".join(str(tokenizer.id_to_token(number)) for number in ids)


def row_numbers(dataset: ShardedDataset) -> list[int]:
    """The number of the pair at every row of a dataset, from its whole parts."""
    parts = [dataset.read_part("en", part) for part in range(len(dataset.manifest.rows_per_part))]
    return [int(pair_id) for pair_id in pa.concat_tables(parts)["pair_id"].to_pylist()]


def test_the_right_texts_arrive(source: PlanSource, tokenizer: Tokenizer) -> None:
    """Every pair of a step has the text of its row and language, with its prefix, cut to its length."""
    opened = source.open()
    numbers = {name: row_numbers(dataset) for name, dataset in opened.datasets.items()}
    table = read(source, tokenizer)
    assert table["step"].to_pylist() == list(STEPS)
    assert set(table["mode"].to_pylist()) == {"X-X-mono", "X-Y"}
    for step, got in zip(STEPS, rows_of(table), strict=True):
        spec = opened.plan[step]
        assert (got.step, got.mode, got.dataset) == (step, spec.mode, spec.dataset)
        queries, passages = texts_of(got)
        assert len(queries) == len(passages) == 8
        for i, row in enumerate(spec.rows):
            number = numbers[spec.dataset][row]
            query_lang, passage_lang = (LANGUAGES[codes[i]] for codes in (spec.query_language, spec.passage_language))
            query = f"[CLS] Ask: {query_text(spec.dataset, number, query_lang)}"
            passage = f"[CLS] Tell: {passage_text(spec.dataset, number, passage_lang)}"
            assert words(tokenizer, queries[i]) == query
            assert words(tokenizer, passages[i]) == " ".join(passage.split()[:6])


def test_column_types(source: PlanSource, tokenizer: Tokenizer) -> None:
    """Token ids and lengths are int32, keys int64, one list per step; a row needs no copy of them."""
    table = read(source, tokenizer)
    types = {field.name: field.type for field in table.schema}
    assert (types["ids"], types["lengths"], types["keys"]) == tuple(map(pa.list_, (pa.int32(), pa.int32(), pa.int64())))
    row = rows_of(table)[0]
    assert (row.ids.dtype, row.lengths.dtype, row.keys.dtype) == ("int32", "int32", "int64")
    assert (len(row.ids), row.keys.shape) == (row.lengths.sum(), (8, 2))


def test_truncation_counts_special_tokens(source: PlanSource, tokenizer: Tokenizer) -> None:
    """A text longer than the limit becomes exactly as long as the limit, [CLS] included; others stay as they are."""
    tokens = Tokenisation("", "", max_query_tokens=3, max_passage_tokens=100)
    table = SliceReader(source, tokens, 0, 1).read(STEPS, tokenizer)
    steps = [texts_of(row) for row in rows_of(table)]
    assert {len(ids) for queries, _ in steps for ids in queries} == {3}
    assert {len(ids) for _, passages in steps for ids in passages} == {7}


def test_a_tokenizer_that_pads(source: PlanSource, tokenizer: Tokenizer) -> None:
    """A tokenizer saved with padding to a fixed length, as that of all-MiniLM-L6-v2, adds no pads and keeps limits."""
    padding = Tokenizer.from_str(tokenizer.to_str())
    padding.enable_padding(length=12, pad_id=padding.token_to_id("[PAD]"), pad_token="[PAD]")
    assert len(padding.encode("Ask:").ids) == 12
    assert read(source, padding) == read(source, tokenizer)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_slices_of_the_ranks_are_the_batch(source: PlanSource, tokenizer: Tokenizer, world_size: int) -> None:
    """What the ranks read, put together in order, is what one rank alone reads."""
    whole = rows_of(read(source, tokenizer))
    slices = [rows_of(read(source, tokenizer, rank, world_size)) for rank in range(world_size)]
    for row, parts in zip(whole, zip(*slices, strict=True), strict=True):
        assert {(part.step, part.mode, part.dataset) for part in parts} == {(row.step, row.mode, row.dataset)}
        assert [key for part in parts for key in part.keys.tolist()] == row.keys.tolist()
        for number, texts in enumerate(texts_of(row)):
            assert [ids for part in parts for ids in texts_of(part)[number]] == texts


def test_hard_negatives_follow_their_positive(source: PlanSource, tokenizer: Tokenizer) -> None:
    """Of each pair as many of its negatives as wanted, in the passage's language; a short supply leaves gaps."""
    opened = source.open()
    numbers = {name: row_numbers(dataset) for name, dataset in opened.datasets.items()}
    tokens = Tokenisation("Ask: ", "Tell: ", max_query_tokens=5, max_passage_tokens=8, hard_negatives=HARD)
    drawn: dict[tuple[str, int], set[str]] = {}
    for step, got in zip(STEPS, rows_of(SliceReader(source, tokens, 0, 1).read(STEPS, tokenizer)), strict=True):
        spec = opened.plan[step]
        _, candidates = texts_of(got)
        assert len(candidates) == 8 * (1 + HARD)
        for i, row in enumerate(spec.rows):
            number, lang = numbers[spec.dataset][row], LANGUAGES[spec.passage_language[i]]
            known = {negative_text(spec.dataset, number, k, lang): k for k in range(number % 5)}
            texts = [words(tokenizer, ids) for ids in candidates[i * (1 + HARD) + 1 : (i + 1) * (1 + HARD)]]
            found = [text.removeprefix("[CLS] Tell: ") for text in texts if text]
            assert len(found) == len(set(found)) == min(HARD, number % 5)
            assert set(found) <= known.keys()
            keys = got.keys[i * (1 + HARD) + 1 :][: len(found)]
            assert keys.tolist() == [[text_key(text)] * 2 for text in found]
            drawn.setdefault((spec.dataset, number), set()).update(found)
    assert any(len(texts) > HARD for texts in drawn.values())  # another draw at another step


def test_steps_are_read_alone_as_together(source: PlanSource, tokenizer: Tokenizer) -> None:
    """What a step reads does not depend on the steps that are read with it."""
    reader = SliceReader(source, TOKENS, 1, 2)
    alone = [reader.read([step], tokenizer) for step in STEPS]
    assert pa.concat_tables(alone).to_pylist() == reader.read(STEPS, tokenizer).to_pylist()


def test_passage_keys(source: PlanSource, tokenizer: Tokenizer) -> None:
    """Two pairs have one key exactly if dataset and passage_id are the same, whatever their languages."""
    opened = source.open()
    numbers = {name: row_numbers(dataset) for name, dataset in opened.datasets.items()}
    keys: dict[tuple[str, int], set[int]] = {}
    for step, got in zip(STEPS, rows_of(read(source, tokenizer)), strict=True):
        spec = opened.plan[step]
        for row, key in zip(spec.rows, got.keys[:, 0].tolist(), strict=True):
            keys.setdefault((spec.dataset, numbers[spec.dataset][row] // 2), set()).add(key)
    assert {len(found) for found in keys.values()} == {1}
    assert len(set.union(*keys.values())) == len(keys)
    shared = {passage for name, passage in keys if name == "one"} & {p for name, p in keys if name == "two"}
    assert len(shared) > 10  # the same passage_id in both datasets, under different keys


def test_text_keys(source: PlanSource, tokenizer: Tokenizer) -> None:
    """Two candidates have one text key exactly if their texts are the same."""
    keys: dict[str, set[int]] = {}
    tokens = Tokenisation("", "", max_query_tokens=50, max_passage_tokens=50)
    for got in rows_of(SliceReader(source, tokens, 0, 1).read(STEPS, tokenizer)):
        for ids, key in zip(texts_of(got)[1], got.keys[:, 1].tolist(), strict=True):
            keys.setdefault(words(tokenizer, ids), set()).add(key)
    assert {len(found) for found in keys.values()} == {1}
    assert len(set.union(*keys.values())) == len(keys) > 20


def test_passage_key_is_fixed() -> None:
    """The key is a hash of dataset and passage_id alone, the same in every process and release."""
    assert len({passage_key("mt", "12:3"), passage_key("mt1", "2:3"), passage_key("mt", "12:4")}) == 3
    assert passage_key("mt", "12:3") == PASSAGE_KEY


def test_every_cell_is_read_once(source: PlanSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A (dataset, language, row group) cell that the steps need is read once, and no other is."""
    calls: Counter[tuple[str, str, int]] = Counter()
    read_group = ShardedDataset.read_group

    def counted(self: ShardedDataset, lang: str, group: int, columns: Sequence[str]) -> Any:
        calls[self.name, lang, group] += 1
        return read_group(self, lang, group, columns)

    monkeypatch.setattr(ShardedDataset, "read_group", counted)
    read(source, tokenizer, rank=1, world_size=2)
    opened = source.open()
    needed = set()
    for spec in (opened.plan[step].part(1, 2) for step in STEPS):
        starts = opened.datasets[spec.dataset].group_starts
        for codes in (spec.query_language, spec.passage_language):
            for row, code in zip(spec.rows, codes, strict=True):
                group = max(g for g in range(len(starts) - 1) if starts[g] <= row)
                needed.add((spec.dataset, LANGUAGES[code], group))
    assert calls == dict.fromkeys(needed, 1)
